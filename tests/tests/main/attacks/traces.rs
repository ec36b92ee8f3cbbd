//! What is written down: logs, the audit chain, the configuration and the bodies of errors.

use std::{fs, path::Path};

use anyhow::Result;
use reqwest::{Method, header::HeaderValue};
use serde_json::{Value, json};

use super::{
    MINE, Scene,
    raw::{self, eventually},
};
use crate::{
    deployment::modelyard,
    permissions::installation::{ADMIN_PASSWORD, accepted},
};

/// A line of a log of the attacker's making, a colour, and a mark that turns the text around.
const FORGED: &str = "x\n{\"level\":\"INFO\",\"message\":\"FORGED\"}\r\u{1b}[31mred\u{202e}drawkcab";
const FORGED_IN_PATH: &str = "x%0A%7B%22FORGED%22%7D%1B%5B31m%E2%80%AE";
/// What is confidential and a number: such a text is read otherwise.
const NUMBER: &str = "8273645519283746";

/// Whether a text has what changes how a line looks, or where it ends.
fn is_harmful(c: char) -> bool {
    let is_mark = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    is_mark || c.is_control()
}

pub async fn names_cannot_forge_lines(scene: &mut Scene) -> Result<()> {
    let sign_in = scene
        .at
        .request(Method::POST, "/api/v1/auth/sign-in")
        .header("x-forwarded-for", "203.0.113.70")
        .json(&json!({"name": FORGED, "password": "any password"}));
    scene.expect("a forged name of a user", sign_in, &[401]).await?;
    let basic = scene
        .at
        .request(Method::GET, "/api/v1/auth/me")
        .header("x-forwarded-for", "203.0.113.71")
        .basic_auth(FORGED.replace(':', ";"), Some("any password"));
    scene.expect("a forged name by Basic", basic, &[401]).await?;
    let project = format!("/api/v1/projects/{MINE}");
    for path in ["secrets", "pipelines", "endpoints", "monitors", "alert-rules"] {
        let body = json!({"value": "any", "steps": [], "routes": [{"model": "a@b"}]});
        let request = scene.attack(Method::PUT, &format!("{project}/{path}/{FORGED_IN_PATH}"));
        scene
            .expect(&format!("a forged name of {path}"), request.json(&body), &[400])
            .await?;
    }
    // What is not there is named in the answer and in the chain.
    let denied = format!("/api/v1/projects/{FORGED_IN_PATH}/models/{FORGED_IN_PATH}");
    scene
        .expect("a forged project", scene.attack(Method::GET, &denied), &[404])
        .await?;
    let unmarked = format!("{project}/sensitive/model/{FORGED_IN_PATH}");
    scene
        .expect("a forged mark", scene.attack(Method::PUT, &unmarked), &[400])
        .await?;
    let token = scene.attack(Method::POST, "/api/v1/tokens");
    scene
        .expect("a forged name of a token", token.json(&json!({"name": FORGED})), &[400])
        .await?;
    let question = json!({"principal": format!("user:{FORGED}"), "action": FORGED, "resource": FORGED});
    let explain = scene.attack(Method::POST, "/api/v1/auth/explain").json(&question);
    scene.expect("a forged question", explain, &[400]).await?;
    // Headers carry no line breaks, but what is not ASCII, and words that are no ids.
    let marks = HeaderValue::from_bytes("id\u{202e}drawkcab".as_bytes())?;
    for (index, id) in [marks.clone(), HeaderValue::from_static("<b>FORGED</b> id")]
        .iter()
        .enumerate()
    {
        let request = scene
            .attack(Method::PUT, &format!("{project}/secrets/header-{index}"))
            .header("x-request-id", id)
            .header("user-agent", marks.clone())
            .json(&json!({"value": "any"}));
        accepted(request).await?;
    }
    Ok(())
}

pub async fn errors_do_not_repeat_what_is_confidential(scene: &mut Scene) -> Result<()> {
    let number: Value = serde_json::from_str(NUMBER)?;
    let sign_in = "/api/v1/auth/sign-in";
    let password = "/api/v1/users/mallory/password";
    let secret = format!("/api/v1/projects/{MINE}/secrets/number");
    for (method, path, body) in [
        ("POST", sign_in, json!({"name": "mallory", "password": number})),
        ("POST", sign_in, json!(NUMBER)),
        ("POST", sign_in, json!({"name": "mallory", "password": [NUMBER]})),
        ("PUT", password, json!({"password": number})),
        (
            "PUT",
            password,
            json!({"password": "short", "present_password": number}),
        ),
        ("PUT", &secret, json!({"value": number})),
        ("PUT", &secret, json!(NUMBER)),
    ] {
        let request = scene.attack(method.parse()?, path).json(&body);
        let answer = scene.expect(&format!("{method} {path}"), request, &[400]).await?;
        scene.findings.check(
            !answer.contains(NUMBER),
            format!("{method} {path} {body} repeats what is confidential: {answer}"),
        );
    }
    scene.confidential.push(NUMBER.to_owned());
    Ok(())
}

pub async fn refusals_are_in_the_chain(scene: &mut Scene) -> Result<()> {
    for (outcome, reason) in [
        ("denied", "PERMISSION_DENIED"),
        ("failed", "INVALID_PASSWORD"),
        ("failed", "SIGN_IN_THROTTLED"),
    ] {
        let at = &scene.at;
        let path = format!("/api/v1/audit/events?outcome={outcome}&limit=1000");
        eventually(&format!("{reason} is in the chain"), || async {
            let found = at.get(&path).await.ok()?;
            found.to_string().contains(reason).then_some(())
        })
        .await;
    }
    let verified = accepted(scene.at.as_admin(Method::POST, "/api/v1/audit/verify")).await?;
    scene.findings.check(
        verified.get("intact") == Some(&json!(true)),
        format!("the chain is broken: {verified}"),
    );
    Ok(())
}

/// Every text in a value.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            found.push(key);
            texts(value, found);
        }),
        _ => {}
    }
}

pub async fn nothing_confidential_is_written(scene: &mut Scene, log: &Path) -> Result<()> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = scene
            .at
            .get(&format!("/api/v1/audit/events?limit=1000{cursor}"))
            .await?;
        cursor = page
            .get("next_cursor")
            .and_then(Value::as_str)
            .map_or_else(String::new, |next| format!("&cursor={next}"));
        events.push(page);
        if cursor.is_empty() {
            break;
        }
    }
    let mut found = Vec::new();
    for page in &events {
        texts(page, &mut found);
    }
    let mut harmful: Vec<_> = found
        .into_iter()
        .filter(|text| text.chars().any(is_harmful))
        .map(|text| format!("an audit event has {text:?}"))
        .collect();
    harmful.sort_unstable();
    harmful.dedup();
    for what in harmful {
        scene.findings.check(false, what);
    }
    let export = scene.at.as_admin(Method::GET, "/api/v1/audit/export").send().await?;
    let export = export.text().await?;
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    for line in log.lines() {
        let is_clean = !line.chars().any(is_harmful) && !line.starts_with("{\"level\":\"INFO\",\"message\":\"FORGED");
        scene.findings.check(is_clean, format!("the log has the line {line:?}"));
    }
    let password = [("MODELYARD__REGISTRY__ADMIN_PASSWORD", ADMIN_PASSWORD)];
    let printed = modelyard(&["config", "print"], &password)?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    scene.findings.check(
        printed.contains("***"),
        format!("the password is not printed as ***: {printed}"),
    );
    let confidential = scene.confidential.clone();
    for text in confidential.iter().map(String::as_str).chain([ADMIN_PASSWORD]) {
        for (what, written) in [
            ("the log", &log),
            ("the audit chain", &export),
            ("`config print`", &printed),
        ] {
            let line = written.lines().find(|line| line.contains(text));
            scene
                .findings
                .check(line.is_none(), format!("{what} has `{text}`: {line:?}"));
        }
    }
    // The server is well after all of it.
    let alive = raw::request("GET /readyz", &[("Host", "x")], "");
    let (status, answer) = raw::send(&scene.at.url, &alive).await?;
    scene.findings.check(status == 200, answer);
    Ok(())
}
