//! Exchanging tokens.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use modelyard_auth::Grant;
use serde_json::{Value, json};

use super::{
    super::{
        Error,
        config::{Rule, SignIn, Workload},
        fetch::Fetch,
        verify::Refusal,
        workload::{Accepted, Workloads},
    },
    FakeProvider, ISSUER, MINUTE,
    forge::{Key, forgeries},
    seconds,
};

const AUDIENCE: &str = "https://yard.example";

fn grants(texts: &[&str]) -> Vec<Grant> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn rule(claims: &[(&str, &str)], service_account: &str, scope: Option<&[&str]>) -> Rule {
    Rule {
        claims: claims
            .iter()
            .map(|(name, glob)| ((*name).to_owned(), (*glob).to_owned()))
            .collect(),
        service_account: service_account.to_owned(),
        scope: scope.map(grants),
    }
}

fn workload() -> Workload {
    Workload {
        name: "cluster".to_owned(),
        issuer: ISSUER.to_owned(),
        rules: vec![
            rule(
                &[("sub", "system:serviceaccount:prod:*"), ("repository", "acme/*")],
                "deployer",
                Some(&["deployer@default"]),
            ),
            rule(&[("/kubernetes.io/namespace", "prod")], "trainer", None),
            rule(
                &[("sub", "system:serviceaccount:*"), ("run_attempt", "1")],
                "guest",
                Some(&["viewer@default"]),
            ),
        ],
        ..Workload::default()
    }
}

fn config(workload: Workload) -> SignIn {
    SignIn {
        public_url: Some(AUDIENCE.to_owned()),
        providers: Vec::new(),
        workloads: vec![workload],
    }
}

fn workloads(fake: &Arc<FakeProvider>, workload: Workload) -> Workloads {
    let config = config(workload);
    assert_eq!(config.problems(), Vec::<String>::new());
    Workloads::new(&config, fake.clock.clone(), |_| Ok(fake.clone() as Arc<dyn Fetch>)).unwrap()
}

fn claims(fake: &FakeProvider, more: &Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "system:serviceaccount:prod:x",
        "kubernetes.io": {"namespace": "prod"},
        "iat": seconds(&fake.clock, 0), "nbf": seconds(&fake.clock, 0), "exp": seconds(&fake.clock, 3600),
    });
    super::patch(&mut claims, more);
    claims
}

fn refusal(result: Result<Accepted, Error>) -> Option<Refusal> {
    match result {
        Err(Error::Token { refusal, .. }) => Some(refusal),
        _ => None,
    }
}

#[tokio::test]
async fn the_first_rule_that_fits_counts() {
    let fake = FakeProvider::new();
    // As clusters and GitHub do: nothing but the keys.
    let endpoints = json!({"authorization_endpoint": null, "token_endpoint": null, "userinfo_endpoint": null});
    *fake.metadata.lock() = endpoints;
    let workloads = workloads(&fake, workload());
    let accept = async |more: Value| {
        let token = fake.keys.lock()[0].token(&claims(&fake, &more));
        workloads.accept(&token).await.map(|accepted| accepted.service_account)
    };
    let ok = |name: &str| Ok(name.to_owned());
    assert_eq!(accept(json!({"repository": "acme/models"})).await, ok("deployer"));
    assert_eq!(accept(json!({"repository": "acme2/models"})).await, ok("trainer"));
    assert_eq!(accept(json!({"repository": ["acme/models"]})).await, ok("trainer"));
    let dev = json!({"kubernetes.io": {"namespace": "dev"}, "run_attempt": 1});
    assert_eq!(accept(dev).await, ok("guest"));
    for nobody in [
        json!({"kubernetes.io": {"namespace": "dev"}}),
        json!({"kubernetes.io": "prod"}),
        json!({"kubernetes.io": null, "sub": "prod"}),
    ] {
        assert_eq!(accept(nobody).await, Err(Error::NoRule("cluster".to_owned())));
    }
    let token = fake.keys.lock()[0].token(&claims(&fake, &json!({"repository": "acme/x"})));
    let accepted = workloads.accept(&token).await.unwrap();
    assert_eq!(accepted.scope, Some(grants(&["deployer@default"])));
    assert_eq!(accepted.lifetime, Duration::from_mins(15));
    assert_eq!(
        (accepted.workload.as_str(), accepted.subject.as_str()),
        ("cluster", "system:serviceaccount:prod:x")
    );
}

#[tokio::test]
async fn tokens_are_verified_as_those_of_people_are() {
    let fake = FakeProvider::new();
    let workloads = workloads(&fake, workload());
    for key in [Key::ec("k1"), Key::ed("k1"), Key::Rsa("k1")] {
        *fake.keys.lock() = vec![key];
        fake.clock.advance(61 * MINUTE);
        let forged = forgeries(&fake.keys.lock()[0], &claims(&fake, &json!({})));
        for (what, token) in forged {
            if what == "an access token" {
                // One that was made for us is as good as any.
                workloads.accept(&token).await.unwrap();
                continue;
            }
            workloads.accept(&token).await.expect_err(what);
        }
        let token = fake.keys.lock()[0].token(&claims(&fake, &json!({})));
        workloads.accept(&token).await.unwrap();
    }
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let token = fake.keys.lock()[0].token_by(algorithm, &claims(&fake, &json!({})));
        workloads.accept(&token).await.expect(algorithm);
    }
    let at = |offset| seconds(&fake.clock, offset);
    for (more, expected) in [
        (json!({"iss": "https://evil.example"}), Refusal::Issuer),
        (json!({"iss": 1}), Refusal::Issuer),
        (json!({"aud": "https://kubernetes.default.svc"}), Refusal::Audience),
        (
            json!({"aud": [AUDIENCE, "https://kubernetes.default.svc"]}),
            Refusal::Audience,
        ),
        (json!({"exp": at(-120)}), Refusal::Expired),
        (json!({"nbf": at(120)}), Refusal::NotYet),
        (json!({"iat": at(120)}), Refusal::NotYet),
        (json!({"sub": ""}), Refusal::Malformed),
    ] {
        let token = fake.keys.lock()[0].token(&claims(&fake, &more));
        assert_eq!(refusal(workloads.accept(&token).await), Some(expected), "{more}");
    }
}

#[tokio::test]
async fn keys_come_from_a_file_where_the_issuer_cannot_be_reached() {
    let fake = FakeProvider::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let write = |keys: &[Key]| {
        let keys: Vec<Value> = keys.iter().map(Key::jwk).collect();
        fs::write(&path, json!({"keys": keys}).to_string()).unwrap();
    };
    for prefix in ["", "file://"] {
        let first = [Key::ec("a")];
        write(&first);
        let workloads = workloads(
            &fake,
            Workload {
                jwks_uri: Some(format!("{prefix}{}", path.display())),
                ..workload()
            },
        );
        workloads
            .accept(&first[0].token(&claims(&fake, &json!({}))))
            .await
            .unwrap();
        // A new file is seen when a token needs it.
        let second = [Key::ed("b")];
        write(&second);
        fake.clock.advance(MINUTE);
        workloads
            .accept(&second[0].token(&claims(&fake, &json!({}))))
            .await
            .unwrap();
        let old = workloads.accept(&first[0].token(&claims(&fake, &json!({})))).await;
        assert_eq!(refusal(old), Some(Refusal::UnknownKey));
    }
    assert_eq!(fake.requests(), 0);
    fs::remove_file(&path).unwrap();
    let workloads = workloads(
        &fake,
        Workload {
            jwks_uri: Some(path.display().to_string()),
            ..workload()
        },
    );
    let token = Key::ec("a").token(&claims(&fake, &json!({})));
    let error = workloads.accept(&token).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn several_entries_may_name_one_issuer() {
    let fake = FakeProvider::new();
    let mut config = config(workload());
    config.workloads.push(Workload {
        name: "other".to_owned(),
        audience: Some("other".to_owned()),
        rules: vec![rule(&[("sub", "system:*")], "other", None)],
        ..workload()
    });
    assert_eq!(config.problems(), Vec::<String>::new());
    let workloads = Workloads::new(&config, fake.clock.clone(), |_| Ok(fake.clone() as Arc<dyn Fetch>)).unwrap();
    for (audience, service_account) in [(AUDIENCE, "trainer"), ("other", "other")] {
        let token = fake.keys.lock()[0].token(&claims(&fake, &json!({"aud": audience})));
        assert_eq!(workloads.accept(&token).await.unwrap().service_account, service_account);
    }
}

#[test]
fn a_scope_gets_narrower_and_never_wider() {
    let accepted = |scope: Option<&[&str]>| Accepted {
        workload: "w".to_owned(),
        subject: "s".to_owned(),
        service_account: "a".to_owned(),
        scope: scope.map(grants),
        lifetime: MINUTE,
    };
    let narrowed = |scope: Option<&[&str]>, wanted: &[&str]| {
        accepted(scope)
            .narrowed(grants(wanted))
            .is_some_and(|narrowed| narrowed.scope == Some(grants(wanted)))
    };
    assert!(narrowed(None, &["admin@*"]));
    let held = Some(["deployer@default", "viewer@*"].as_slice());
    for wanted in [
        ["deployer@default"].as_slice(),
        &["deployer@default/endpoints/x"],
        &["viewer@default", "viewer@other"],
        &["viewer@*"],
        &[],
    ] {
        assert!(narrowed(held, wanted), "{wanted:?}");
    }
    for wanted in [
        ["deployer@*"].as_slice(),
        &["deployer@other"],
        &["admin@default"],
        &["viewer@*", "admin@*"],
    ] {
        assert!(!narrowed(held, wanted), "{wanted:?}");
    }
    assert!(!narrowed(Some(&["viewer@default/endpoints/x"]), &["viewer@default"]));
}

#[test]
fn settings_that_cannot_be_are_named() {
    for (change, problem) in [
        ((|one| one.issuer.clear()) as fn(&mut Workload), "is no address"),
        (|one| one.issuer = "http://id.example".to_owned(), "https://"),
        (
            |one| one.jwks_uri = Some("http://id.example/keys".to_owned()),
            "https://",
        ),
        (|one| one.jwks_uri = Some("keys.json".to_owned()), "is no address"),
        (|one| one.lifetime = Duration::from_hours(2), "between 1 and 60 minutes"),
        (|one| one.rules.clear(), "rules is empty"),
        (|one| one.rules[0].claims = BTreeMap::new(), "fits every token"),
        (
            |one| one.rules[0].claims = [("sub".to_owned(), "**".to_owned())].into(),
            "fits every token",
        ),
        (|one| one.rules[0].service_account = "a b".to_owned(), "service_account"),
    ] {
        let mut workload = workload();
        change(&mut workload);
        let found = config(workload).problems().join("; ");
        assert!(found.contains(problem), "{problem}: {found}");
    }
    let mut without = config(workload());
    without.public_url = None;
    assert!(without.problems().join("; ").contains("audience is missing"));
}
