//! Signing in.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use modelyard_common::{ErrorKind, Fault as _};
use serde_json::json;

use super::{
    super::{
        Error,
        config::{Provider, SignIn},
        sign_in::{Begun, Callback, Finished, SignIns},
        verify::Refusal,
    },
    CLIENT, FakeProvider, ISSUER, MINUTE, SECRET, config,
    forge::{Key, assemble, forgeries, hs256},
    provider, seconds, sign_ins,
};

async fn finish(sign_ins: &SignIns, begun: &Begun, code: &str, state: &str) -> Result<Finished, Error> {
    let callback = Callback {
        code: Some(code),
        state: Some(state),
        ..Callback::default()
    };
    sign_ins.finish("okta", callback, Some(&begun.cookie)).await
}

/// A whole sign-in.
async fn sign_in(fake: &FakeProvider, sign_ins: &SignIns) -> Result<Finished, Error> {
    let begun = sign_ins.begin("okta", "/models?tab=1").await?;
    let (code, state) = fake.authorize(&begun.location);
    finish(sign_ins, &begun, &code, &state).await
}

fn refusal(result: Result<Finished, Error>) -> Option<Refusal> {
    match result {
        Err(Error::Token { refusal, .. }) => Some(refusal),
        _ => None,
    }
}

#[tokio::test]
async fn whoever_the_provider_knows_signs_in() {
    let fake = FakeProvider::new();
    for key in [Key::Rsa("r"), Key::ed("e"), Key::ec("k")] {
        *fake.keys.lock() = vec![key];
        let sign_ins = sign_ins(&fake, provider());
        let finished = sign_in(&fake, &sign_ins).await.unwrap();
        assert_eq!(finished.return_to, "/models?tab=1");
        assert!(finished.may_create);
        let profile = finished.profile;
        assert_eq!((profile.issuer.as_str(), profile.subject.as_str()), (ISSUER, "0001"));
        assert_eq!(
            (profile.name.as_str(), profile.display_name.as_str()),
            ("alice", "Alice Liddell")
        );
        // What cannot be the name of a group is nobody's.
        assert_eq!(profile.groups.into_iter().collect::<Vec<_>>(), ["ml-team", "staff"]);
    }
    assert_eq!(fake.user_info_requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn no_forged_token_is_accepted() {
    let fake = FakeProvider::new();
    for key in [Key::Rsa("k1"), Key::ed("k1"), Key::ec("k1")] {
        *fake.keys.lock() = vec![key];
        let sign_ins = sign_ins(&fake, provider());
        let forged = forgeries(fake.keys.lock().last().unwrap(), &json!({"x": 1}));
        for (index, (what, _)) in forged.into_iter().enumerate() {
            *fake.token.lock() = Some(Box::new(move |key, claims| forgeries(key, claims).swap_remove(index).1));
            // A key that is not there is looked for again, but not all the time.
            fake.clock.advance(MINUTE);
            let error = sign_in(&fake, &sign_ins).await.expect_err(what);
            assert!(
                matches!(
                    error,
                    Error::Token { .. } | Error::Unavailable { .. } | Error::Refused { .. }
                ),
                "{what}: {error:?}"
            );
        }
        *fake.token.lock() = None;
        sign_in(&fake, &sign_ins).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_for_us_from_them_and_for_now() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    let at = |offset| seconds(&fake.clock, offset);
    for (claims, expected) in [
        (json!({"iss": "https://evil.example"}), Some(Refusal::Issuer)),
        (json!({"iss": "https://id.example/"}), Some(Refusal::Issuer)),
        (json!({"aud": "another"}), Some(Refusal::Audience)),
        (json!({"aud": [CLIENT, "another"]}), Some(Refusal::Audience)),
        (json!({"aud": []}), Some(Refusal::Audience)),
        (json!({"aud": null}), Some(Refusal::Audience)),
        (json!({"azp": "another"}), Some(Refusal::Audience)),
        (json!({"exp": at(-61)}), Some(Refusal::Expired)),
        (json!({"nbf": at(120)}), Some(Refusal::NotYet)),
        (json!({"nbf": "soon"}), Some(Refusal::NotYet)),
        (json!({"iat": at(120)}), Some(Refusal::NotYet)),
        (json!({"nonce": "another"}), Some(Refusal::Nonce)),
        (json!({"nonce": null}), Some(Refusal::Nonce)),
        (json!({"aud": [CLIENT], "azp": CLIENT}), None),
        // The clocks need not be the same to the second.
        (json!({"exp": at(-30), "nbf": at(30), "iat": at(30)}), None),
    ] {
        *fake.claims.lock() = claims.clone();
        let result = sign_in(&fake, &sign_ins).await;
        assert_eq!(result.is_ok(), expected.is_none(), "{claims}: {result:?}");
        assert_eq!(refusal(result), expected, "{claims}");
    }
    for missing in ["exp", "iat", "iss", "sub"] {
        *fake.claims.lock() = json!({missing: null});
        sign_in(&fake, &sign_ins).await.expect_err(missing);
    }
}

#[tokio::test]
async fn a_shared_secret_signs_only_where_the_configuration_says_so() {
    let fake = FakeProvider::new();
    *fake.token.lock() = Some(Box::new(|_, claims| {
        assemble(&json!({"alg": "HS256"}), claims, |message| {
            hs256(SECRET.as_bytes(), message)
        })
    }));
    let usual = sign_ins(&fake, provider());
    assert_eq!(refusal(sign_in(&fake, &usual).await), Some(Refusal::Algorithm));
    let by_secret = Provider {
        algorithms: vec!["HS256".to_owned()],
        ..provider()
    };
    let by_secret = sign_ins(&fake, by_secret);
    sign_in(&fake, &by_secret).await.unwrap();
    *fake.token.lock() = Some(Box::new(|_, claims| {
        assemble(&json!({"alg": "HS256"}), claims, |message| {
            hs256(b"another secret", message)
        })
    }));
    assert_eq!(refusal(sign_in(&fake, &by_secret).await), Some(Refusal::Signature));
    *fake.token.lock() = None;
    assert_eq!(refusal(sign_in(&fake, &by_secret).await), Some(Refusal::Algorithm));
}

#[tokio::test]
async fn a_sign_in_ends_where_it_began() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    let begun = sign_ins.begin("okta", "/").await.unwrap();
    let (code, state) = fake.authorize(&begun.location);
    let callback = Callback {
        code: Some(&code),
        state: Some(&state),
        ..Callback::default()
    };
    // No cookie, another's, a broken one.
    assert_eq!(
        sign_ins.finish("okta", callback, None).await.unwrap_err(),
        Error::NotBegun
    );
    let other = sign_ins.begin("okta", "/").await.unwrap();
    let error = sign_ins
        .finish("okta", callback, Some(&other.cookie))
        .await
        .unwrap_err();
    assert_eq!(error, Error::State);
    let broken = begun.cookie.replace("v1.", "v1.0");
    let error = sign_ins.finish("okta", callback, Some(&broken)).await.unwrap_err();
    assert_eq!(error, Error::NotBegun);
    // No state, another's.
    for state in [None, Some(""), Some("guess")] {
        let callback = Callback { state, ..callback };
        let error = sign_ins
            .finish("okta", callback, Some(&begun.cookie))
            .await
            .unwrap_err();
        assert_eq!(error, Error::State);
    }
    // Another provider.
    let error = sign_ins
        .finish("google", callback, Some(&begun.cookie))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // An answer that another provider made.
    let mixed = Callback {
        iss: Some("https://evil.example"),
        ..callback
    };
    let error = sign_ins.finish("okta", mixed, Some(&begun.cookie)).await.unwrap_err();
    assert_eq!(error, Error::Issuer);
    // After all that the code is still good, once.
    finish(&sign_ins, &begun, &code, &state).await.unwrap();
    let error = finish(&sign_ins, &begun, &code, &state).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { code, .. } if code.contains("invalid_grant")),
        "{error:?}"
    );
    // Too late.
    let begun = sign_ins.begin("okta", "/").await.unwrap();
    let (code, state) = fake.authorize(&begun.location);
    fake.clock.advance(10 * MINUTE);
    let error = finish(&sign_ins, &begun, &code, &state).await.unwrap_err();
    assert_eq!(error, Error::NotBegun);
}

#[tokio::test]
async fn a_code_of_another_sign_in_is_of_no_use() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    let mine = sign_ins.begin("okta", "/").await.unwrap();
    let theirs = sign_ins.begin("okta", "/").await.unwrap();
    let (_, my_state) = fake.authorize(&mine.location);
    let (their_code, _) = fake.authorize(&theirs.location);
    // The provider sees that the verifier is another's.
    let error = finish(&sign_ins, &mine, &their_code, &my_state).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    // One that does not look is found out by the nonce.
    fake.checks_pkce.store(false, Ordering::Relaxed);
    let (their_code, _) = fake.authorize(&theirs.location);
    let result = finish(&sign_ins, &mine, &their_code, &my_state).await;
    assert_eq!(refusal(result), Some(Refusal::Nonce));
}

#[tokio::test]
async fn what_the_provider_refuses_is_told_and_nothing_else() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    let begun = sign_ins.begin("okta", "/").await.unwrap();
    let (_, state) = fake.authorize(&begun.location);
    let callback = Callback {
        state: Some(&state),
        error: Some("access_denied\r\n<script>\u{202e}"),
        ..Callback::default()
    };
    let error = sign_ins
        .finish("okta", callback, Some(&begun.cookie))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the provider `okta` refused: access_denied<script>");
    let nothing = Callback {
        state: Some(&state),
        ..Callback::default()
    };
    let error = sign_ins.finish("okta", nothing, Some(&begun.cookie)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }));
    // Signing in leads nowhere else.
    let error = sign_ins.begin("okta", "//evil.example").await.unwrap_err();
    assert_eq!(error, Error::ReturnPath);
}

#[tokio::test]
async fn a_provider_whose_answers_name_it_must_be_named() {
    let fake = FakeProvider::new();
    *fake.metadata.lock() = json!({"authorization_response_iss_parameter_supported": true});
    let sign_ins = sign_ins(&fake, provider());
    assert_eq!(sign_in(&fake, &sign_ins).await.unwrap_err(), Error::Issuer);
    let begun = sign_ins.begin("okta", "/").await.unwrap();
    let (code, state) = fake.authorize(&begun.location);
    let callback = Callback {
        code: Some(&code),
        state: Some(&state),
        iss: Some(ISSUER),
        error: None,
    };
    sign_ins.finish("okta", callback, Some(&begun.cookie)).await.unwrap();
}

#[tokio::test]
async fn keys_rotate_and_nobody_makes_us_ask_all_the_time() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    sign_in(&fake, &sign_ins).await.unwrap();
    // Discovery, keys, code.
    assert_eq!(fake.requests(), 3);
    sign_in(&fake, &sign_ins).await.unwrap();
    assert_eq!(fake.requests(), 4);
    fake.clock.advance(MINUTE);
    fake.keys.lock().push(Key::ec("k2"));
    sign_in(&fake, &sign_ins).await.unwrap();
    assert_eq!(fake.requests(), 7);
    // A key that the provider does not have: it is asked once in a while.
    *fake.token.lock() = Some(Box::new(|_, claims| Key::ec("k3").token(claims)));
    for _ in 0..5 {
        assert_eq!(refusal(sign_in(&fake, &sign_ins).await), Some(Refusal::UnknownKey));
    }
    assert_eq!(fake.requests(), 12);
    fake.clock.advance(MINUTE);
    for _ in 0..5 {
        assert_eq!(refusal(sign_in(&fake, &sign_ins).await), Some(Refusal::UnknownKey));
    }
    assert_eq!(fake.requests(), 12 + 5 + 2);
    *fake.token.lock() = None;
    // A key that was withdrawn counts no more once everything was fetched again.
    let withdrawn = fake.keys.lock().remove(0);
    fake.clock.advance(61 * MINUTE);
    sign_in(&fake, &sign_ins).await.unwrap();
    *fake.token.lock() = Some(Box::new(move |_, claims| withdrawn.token(claims)));
    assert_eq!(refusal(sign_in(&fake, &sign_ins).await), Some(Refusal::UnknownKey));
}

#[tokio::test]
async fn a_provider_that_is_away_is_told_and_comes_back() {
    let fake = FakeProvider::new();
    fake.is_away.store(true, Ordering::Relaxed);
    let sign_ins = sign_ins(&fake, provider());
    let error = sign_ins.begin("okta", "/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("connection refused"), "{error}");
    // The failure of a moment ago is not repeated.
    fake.is_away.store(false, Ordering::Relaxed);
    assert_eq!(sign_ins.begin("okta", "/").await.unwrap_err(), error);
    fake.clock.advance(Duration::from_secs(6));
    sign_in(&fake, &sign_ins).await.unwrap();
    // What is known lasts while the provider is away, for a day.
    fake.is_away.store(true, Ordering::Relaxed);
    fake.clock.advance(2 * 60 * MINUTE);
    sign_ins.begin("okta", "/").await.unwrap();
    fake.clock.advance(24 * 60 * MINUTE);
    let error = sign_ins.begin("okta", "/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn what_a_provider_says_of_itself_must_be_right() {
    for (metadata, problem) in [
        (
            json!({"issuer": "https://evil.example"}),
            "calls itself `https://evil.example`",
        ),
        (json!({"issuer": "https://id.example/"}), "write the issuer as it does"),
        (
            json!({"token_endpoint": "http://id.example/token"}),
            "is not one of https://",
        ),
        (
            json!({"jwks_uri": "http://169.254.169.254/keys"}),
            "is not one of https://",
        ),
        (json!({"jwks_uri": null}), "where its keys are"),
        (json!({"token_endpoint": null}), "where its token endpoint is"),
        (json!({"authorization_endpoint": 1}), "cannot be read"),
    ] {
        let fake = FakeProvider::new();
        *fake.metadata.lock() = metadata;
        let error = sign_ins(&fake, provider()).begin("okta", "/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(problem), "{error}");
    }
    let fake = FakeProvider::new();
    fake.keys.lock().clear();
    let error = sign_ins(&fake, provider()).begin("okta", "/").await.unwrap_err();
    assert!(error.to_string().contains("no key"), "{error}");
}

#[tokio::test]
async fn names_and_groups_are_read_as_configured() {
    let fake = FakeProvider::new();
    let name = async |provider: Provider, claims| {
        *fake.claims.lock() = claims;
        let finished = sign_in(&fake, &sign_ins(&fake, provider)).await?;
        Ok::<_, Error>((
            finished.profile.name,
            finished.profile.groups.into_iter().collect::<Vec<_>>().join(" "),
        ))
    };
    let ok = |name: &str, groups: &str| Ok((name.to_owned(), groups.to_owned()));
    let mail = json!({"preferred_username": null, "email": "a@b.example", "email_verified": true});
    assert_eq!(name(provider(), mail.clone()).await, ok("a@b.example", "ml-team staff"));
    for verified in [json!(false), json!(null), json!("true")] {
        let mut mail = mail.clone();
        mail["email_verified"] = verified;
        let error = name(provider(), mail).await.unwrap_err();
        assert!(matches!(error, Error::NoName { .. }), "{error:?}");
    }
    let error = name(provider(), json!({"preferred_username": "no name"}))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoName { .. }), "{error:?}");
    let pointed = Provider {
        name_claim: Some("upn".to_owned()),
        groups_claim: "/realm_access/roles".to_owned(),
        group_prefix: "okta/".to_owned(),
        ..provider()
    };
    let claims = json!({"upn": "bob", "realm_access": {"roles": ["admin"]}});
    assert_eq!(name(pointed, claims).await, ok("bob", "okta/admin"));
    // Only members of some groups.
    let closed = Provider {
        allowed_groups: ["ops".to_owned()].into(),
        ..provider()
    };
    assert_eq!(name(closed.clone(), json!({})).await, Err(Error::NotAllowed));
    assert_eq!(name(closed.clone(), json!({"groups": "ops"})).await, ok("alice", "ops"));
    let prefixed = Provider {
        group_prefix: "okta.".to_owned(),
        ..closed
    };
    assert_eq!(
        name(prefixed, json!({"groups": ["ops"]})).await,
        ok("alice", "okta.ops")
    );
}

#[tokio::test]
async fn what_the_token_leaves_out_is_asked_for() {
    let fake = FakeProvider::new();
    let sign_ins = sign_ins(&fake, provider());
    *fake.claims.lock() = json!({"groups": null, "preferred_username": null});
    *fake.user_info.lock() = json!({"sub": "0001", "iss": "x", "preferred_username": "alice", "groups": ["ops"]});
    let profile = sign_in(&fake, &sign_ins).await.unwrap().profile;
    assert_eq!((profile.name.as_str(), profile.groups.contains("ops")), ("alice", true));
    // About somebody else.
    for other in [
        json!({"sub": "0002", "groups": ["admins"]}),
        json!({"groups": ["admins"]}),
    ] {
        *fake.user_info.lock() = other;
        let error = sign_in(&fake, &sign_ins).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    let problems = |change: fn(&mut SignIn)| {
        let mut config = config(provider());
        change(&mut config);
        config.problems().join("; ")
    };
    assert_eq!(problems(|_| {}), "");
    for (change, problem) in [
        (
            (|config| config.public_url = None) as fn(&mut SignIn),
            "public_url is missing",
        ),
        (
            |config| config.public_url = Some("yard.example".to_owned()),
            "is no address",
        ),
        (
            |config| config.public_url = Some("http://yard.example".to_owned()),
            "https://",
        ),
        (
            |config| config.public_url = Some("https://a.example/x".to_owned()),
            "scheme, host and port alone",
        ),
        (|config| config.providers.push(provider()), "is there twice"),
        (|config| config.providers[0].name = "a/b".to_owned(), "is not a name"),
        (
            |config| config.providers[0].issuer = "http://id.example".to_owned(),
            "https://",
        ),
        (|config| config.providers[0].client_id.clear(), "client_id is missing"),
        (
            |config| config.providers[0].algorithms = vec!["none".to_owned()],
            "`none` is no signature",
        ),
        (|config| config.providers[0].algorithms.clear(), "algorithms is empty"),
        (
            |config| {
                config.providers[0].algorithms = vec!["HS256".to_owned()];
                config.providers[0].client_secret = None;
            },
            "at least 32 bytes",
        ),
        (
            |config| config.providers[0].group_roles = BTreeMap::from([("a b".to_owned(), Vec::new())]),
            "cannot name a user",
        ),
    ] {
        let found = problems(change);
        assert!(found.contains(problem), "{problem}: {found}");
    }
    let local = problems(|config| {
        config.public_url = Some("http://127.0.0.1:8080".to_owned());
        config.providers[0].issuer = "http://localhost:9000".to_owned();
    });
    assert_eq!(local, "");
}

#[test]
fn groups_get_roles_by_the_configuration() {
    let mut provider = provider();
    provider.group_prefix = "okta/".to_owned();
    let roles = vec!["contributor@default".parse().unwrap(), "viewer@*".parse().unwrap()];
    provider.group_roles = BTreeMap::from([("ml-team".to_owned(), roles)]);
    let bindings = config(provider).bindings();
    let names: Vec<_> = bindings.iter().map(|one| one.name.as_str()).collect();
    assert!(names.iter().all(|name| name.starts_with("sign-in/okta/")), "{names:?}");
    assert_ne!(names[0], names[1]);
    let mut shown: Vec<_> = bindings
        .iter()
        .map(|one| format!("{} {}", one.subject, one.grant))
        .collect();
    shown.sort_unstable();
    assert_eq!(
        shown,
        ["group:okta/ml-team contributor@default", "group:okta/ml-team viewer@*"]
    );
}
