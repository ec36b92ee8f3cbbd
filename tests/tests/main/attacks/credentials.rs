//! Tokens, sessions, passwords and roles.

use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder, header};
use serde_json::{Value, json};

use super::{
    ATTACKER, MINE, PASSWORD, Scene, THEIRS,
    raw::{self, checksum, eventually},
};
use crate::permissions::installation::{accepted, call, grpc_refusal, text};

const ME: &str = "/api/v1/auth/me";
/// How many wrong passwords are tried before guessing must have become slow.
const GUESSES: usize = 10;
/// More than any token needs, and less than the server's limit of all headers.
const LONG_HEADER: usize = 6_000;

/// Signs the attacker in as a browser does.
async fn session(scene: &mut Scene) -> Result<String> {
    let request = scene
        .at
        .request(Method::POST, "/api/v1/auth/sign-in")
        .json(&json!({"name": ATTACKER, "password": PASSWORD}));
    let answer = request.send().await?.error_for_status()?;
    let cookie = answer
        .headers()
        .get(header::SET_COOKIE)
        .context("no cookie")?
        .to_str()?
        .to_owned();
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        scene
            .findings
            .check(cookie.contains(attribute), format!("the cookie lacks {attribute}"));
    }
    let pair = cookie.split(';').next().unwrap_or_default();
    let token = pair.split_once('=').context("no value")?.1.to_owned();
    scene.confidential.push(token.clone());
    Ok(token)
}

pub async fn forged_tokens_open_nothing(scene: &mut Scene) -> Result<()> {
    let good = scene.token.clone();
    let session = session(scene).await?;
    let unknown = "mdyp_0123456789ABCDEFGHIJKLMNOPQRSTUV";
    let unknown = format!("{unknown}{}", checksum(unknown));
    let mut wrong_sum = good.clone();
    let last = if wrong_sum.pop() == Some('0') { '1' } else { '0' };
    wrong_sum.push(last);
    let make = |name: &str, lifetime: &str| {
        scene
            .at
            .request(Method::POST, "/api/v1/tokens")
            .bearer_auth(&good)
            .json(&json!({"name": name, "expires_in": lifetime}))
    };
    let expired = text(&accepted(make("short", "1s")).await?, "/token")?.to_owned();
    let revoked = accepted(make("revoked", "1h")).await?;
    let revoke = format!("/api/v1/tokens/{}", text(&revoked, "/id")?);
    let revoked = text(&revoked, "/token")?.to_owned();
    let answer = scene.attack(Method::DELETE, &revoke).send().await?;
    scene
        .findings
        .check(answer.status().as_u16() == 204, "a token of one's own is not revoked");
    let me = |token: &str| scene.at.request(Method::GET, ME).bearer_auth(token);
    eventually("the token ends", || async {
        (me(&expired).send().await.ok()?.status().as_u16() == 401).then_some(())
    })
    .await;

    let bearer = |token: &str| format!("Bearer {token}");
    let cookie = |token: &str| format!("modelyard_session={token}");
    let long = "x".repeat(LONG_HEADER);
    let cases: Vec<(&str, Vec<(&str, String)>)> = vec![
        ("a wrong checksum", vec![("authorization", bearer(&wrong_sum))]),
        ("never made", vec![("authorization", bearer(&unknown))]),
        ("expired", vec![("authorization", bearer(&expired))]),
        ("revoked", vec![("authorization", bearer(&revoked))]),
        ("a session as bearer", vec![("authorization", bearer(&session))]),
        ("a token as cookie", vec![("cookie", cookie(&good))]),
        ("an unknown cookie", vec![("cookie", cookie(&unknown))]),
        (
            "twice",
            vec![("authorization", bearer(&good)), ("authorization", bearer(&good))],
        ),
        (
            "a bad one beside a good session",
            vec![("authorization", bearer(&unknown)), ("cookie", cookie(&session))],
        ),
        ("long", vec![("authorization", bearer(&long))]),
        ("empty", vec![("authorization", "Bearer ".to_owned())]),
        ("another scheme", vec![("authorization", format!("Token {good}"))]),
        ("no scheme", vec![("authorization", good.clone())]),
        ("basic that is none", vec![("authorization", "Basic ????".to_owned())]),
    ];
    for (what, headers) in cases {
        let add = |request: RequestBuilder| {
            headers
                .iter()
                .fold(request, |request, (name, value)| request.header(*name, value))
        };
        let body = scene
            .expect(what, add(scene.at.request(Method::GET, ME)), &[401])
            .await?;
        let repeats = scene.confidential.iter().any(|text| body.contains(text.as_str()));
        scene.findings.check(!repeats, format!("{what}: the answer repeats it"));
        let models = scene.at.request(Method::GET, "/v2/models");
        scene
            .expect(&format!("{what}, for models"), add(models), &[401])
            .await?;
        let method = "inference.GRPCInferenceService/ModelMetadata";
        let answer = add(call(&scene.at.http2, &scene.at.url, method, &[])).send().await?;
        let refusal = grpc_refusal(&answer);
        scene.findings.check(
            // A cookie without the marks of a page of ours is refused before it is looked at.
            matches!(refusal, Some((7 | 16, _))),
            format!("{what}, over gRPC: {refusal:?}"),
        );
    }
    // More than a server reads of headers: a refusal, and no more.
    let huge = format!("Bearer {}", "x".repeat(1 << 20));
    let huge = raw::request("GET /api/v1/auth/me", &[("Host", "x"), ("Authorization", &huge)], "");
    if let Ok((status, _)) = raw::send(&scene.at.url, &huge).await {
        scene
            .findings
            .check((400..500).contains(&status), format!("a huge header: {status}"));
    }
    // A token in the place of a password names its owner, whatever name stands beside it.
    let me = scene.at.request(Method::GET, ME).basic_auth("admin", Some(&good));
    let me = accepted(me).await?;
    scene.findings.check(
        me.get("principal") == Some(&json!(format!("user:{ATTACKER}"))),
        format!("the name beside a token counts: {me}"),
    );
    Ok(())
}

pub async fn other_sites_cannot_use_a_session(scene: &mut Scene) -> Result<()> {
    let session = session(scene).await?;
    let order = |scene: &Scene, headers: &[(&'static str, &str)]| {
        let request = scene
            .at
            .request(Method::POST, "/api/v1/tokens")
            .header(header::COOKIE, format!("modelyard_session={session}"))
            .json(&json!({"name": "of-a-browser"}));
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
    };
    let own = scene.at.url.clone();
    let suffixed = format!("{own}.evil.example");
    for headers in [
        vec![],
        vec![("sec-fetch-site", "cross-site")],
        vec![("sec-fetch-site", "same-site")],
        vec![("sec-fetch-site", "none")],
        vec![("origin", "https://evil.example")],
        vec![("origin", "null")],
        vec![("origin", suffixed.as_str())],
        vec![("origin", own.as_str()), ("sec-fetch-site", "cross-site")],
    ] {
        let body = scene
            .expect(&format!("{headers:?}"), order(scene, &headers), &[403])
            .await?;
        scene
            .findings
            .check(body.contains("CROSS_SITE"), format!("{headers:?}: {body}"));
        let infer = scene
            .at
            .request(Method::POST, "/v2/models/any/infer")
            .header(header::COOKIE, format!("modelyard_session={session}"))
            .json(&json!({"inputs": []}));
        let infer = headers
            .iter()
            .fold(infer, |request, (name, value)| request.header(*name, *value));
        scene.expect(&format!("infer, {headers:?}"), infer, &[403]).await?;
    }
    for headers in [vec![("sec-fetch-site", "same-origin")], vec![("origin", own.as_str())]] {
        let made = order(scene, &headers);
        let made = scene.expect(&format!("{headers:?}"), made, &[201]).await?;
        let made: Value = serde_json::from_str(&made)?;
        scene.confidential.push(text(&made, "/token")?.to_owned());
    }
    // Nor can they sign a browser in as somebody of theirs.
    let sign_in = |scene: &Scene| {
        scene
            .at
            .request(Method::POST, "/api/v1/auth/sign-in")
            .json(&json!({"name": ATTACKER, "password": PASSWORD}))
    };
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        scene
            .expect(
                &format!("signing in from {value}"),
                sign_in(scene).header(name, value),
                &[403],
            )
            .await?;
    }
    let as_form = scene
        .at
        .request(Method::POST, "/api/v1/auth/sign-in")
        .header(header::CONTENT_TYPE, "text/plain")
        .body(json!({"name": ATTACKER, "password": PASSWORD}).to_string());
    scene.expect("signing in by a form", as_form, &[400, 415]).await?;
    Ok(())
}

pub async fn rights_do_not_grow(scene: &mut Scene) -> Result<()> {
    let me = format!("user:{ATTACKER}");
    let order = |name: &str, scope: &[&str]| json!({"name": name, "scope": scope});
    let mut tokens = Vec::new();
    for (name, scope) in [("narrow", format!("viewer@{MINE}")), ("wide", "admin@*".to_owned())] {
        let made = scene
            .attack(Method::POST, "/api/v1/tokens")
            .json(&order(name, &[&scope]));
        tokens.push(text(&accepted(made).await?, "/token")?.to_owned());
    }
    scene.confidential.extend(tokens.clone());
    let [narrow, wide] = <[String; 2]>::try_from(tokens).unwrap_or_default();
    let admin = |place: &str| json!({"subject": me, "role": "admin", "place": place});
    let own_bindings = format!("/api/v1/projects/{MINE}/role-bindings/grow");
    let their_bindings = format!("/api/v1/projects/{THEIRS}/role-bindings/grow");
    let on_their_endpoint = format!("{THEIRS}/endpoints/any");
    let password = format!("/api/v1/users/{ATTACKER}/password");
    let new_password = json!({"password": "another long password of mine", "present_password": PASSWORD});
    let token = scene.token.clone();
    let cases: Vec<(&str, &str, &str, Value, &[u16])> = vec![
        (&token, "PUT", "/api/v1/role-bindings/grow", admin("*"), &[403]),
        (&token, "PUT", "/api/v1/role-bindings/grow", admin(MINE), &[403]),
        (&token, "PUT", &own_bindings, admin("*"), &[400]),
        (&token, "PUT", &own_bindings, admin(THEIRS), &[400]),
        (&token, "PUT", &own_bindings, admin(&on_their_endpoint), &[400]),
        (&token, "PUT", &their_bindings, admin(""), &[404]),
        (
            &token,
            "PUT",
            "/api/v1/roles/grow",
            json!({"actions": ["identity.write"]}),
            &[403],
        ),
        (
            &token,
            "PUT",
            "/api/v1/policies/grow",
            json!({"policy": "permit (principal, action, resource);"}),
            &[403],
        ),
        (
            &token,
            "PUT",
            "/api/v1/users/mallory",
            json!({"groups": ["admins"]}),
            &[403],
        ),
        (
            &token,
            "PUT",
            "/api/v1/users/admin/password",
            json!({"password": "a password of the attacker"}),
            &[403],
        ),
        (
            &token,
            "PUT",
            &password,
            json!({"password": "a password without the present one"}),
            &[400],
        ),
        (
            &token,
            "POST",
            "/api/v1/tokens",
            json!({"name": "of-admin", "owner": "user:admin"}),
            &[403],
        ),
        (&narrow, "POST", "/api/v1/tokens", json!({"name": "wider"}), &[400]),
        (&narrow, "POST", "/api/v1/tokens", order("wider", &["admin@*"]), &[400]),
        (&narrow, "PUT", &password, new_password, &[400]),
        (&narrow, "PUT", &own_bindings, admin(MINE), &[403]),
        (&wide, "PUT", "/api/v1/role-bindings/grow", admin("*"), &[403]),
        (&wide, "PUT", &their_bindings, admin(""), &[404]),
        (&wide, "POST", "/api/v1/tokens", json!({"name": "lasting"}), &[400]),
    ];
    for (token, method, path, body, statuses) in cases {
        let request = scene.at.request(method.parse()?, path).bearer_auth(token).json(&body);
        scene
            .expect(&format!("{method} {path} {body}"), request, statuses)
            .await?;
    }
    Ok(())
}

pub async fn guessing_is_slowed_down(scene: &mut Scene) -> Result<()> {
    // An address of its own, so that nobody else is slowed down.
    let attempt = |scene: &Scene, password: &str| {
        scene
            .at
            .request(Method::POST, "/api/v1/auth/sign-in")
            .header("x-forwarded-for", "203.0.113.77")
            .json(&json!({"name": ATTACKER, "password": password}))
    };
    let mut statuses = Vec::new();
    for number in 0..GUESSES {
        let status = attempt(scene, &format!("wrong password {number}"))
            .send()
            .await?
            .status();
        statuses.push(status.as_u16());
        if status.as_u16() == 429 {
            break;
        }
    }
    scene
        .findings
        .check(statuses.last() == Some(&429), format!("guessing goes on: {statuses:?}"));
    let basic = scene
        .at
        .request(Method::GET, ME)
        .header("x-forwarded-for", "203.0.113.78")
        .basic_auth(ATTACKER, Some(&format!("{PASSWORD} that was not seen before")));
    for (what, request) in [("the right password", attempt(scene, PASSWORD)), ("basic", basic)] {
        let answer = request.send().await?;
        let wait = answer.headers().get(header::RETRY_AFTER).cloned();
        let wait = wait.and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok());
        let status = answer.status().as_u16();
        scene.findings.check(
            status == 429 && wait.is_some_and(|seconds| (1..60).contains(&seconds)),
            format!(
                "{what} after many wrong ones: {status}, Retry-After {wait:?}, {}",
                answer.text().await?
            ),
        );
    }
    Ok(())
}
