//! `audit verify`: by the server, or of an export without any.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use modelyard_auth::audit::{PublicKey, export::verify_export};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{
    ServerArguments,
    output::{self, Format, text_at},
};

/// What `audit verify` takes.
#[derive(Args)]
pub struct VerifyArguments {
    /// Export to verify, as `audit export` writes it; no server is needed then [default: the server's own chain]
    file: Option<PathBuf>,
    /// Public keys whose signatures count, as `audit keys` prints them [default: those in the export, which prove that it
    /// is whole and not whose it is]
    #[arg(long, value_name = "PEM_FILE", requires = "file")]
    public_key: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArguments,
}

/// Runs `audit verify`.
pub async fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let found = match &arguments.file {
        Some(file) => verify_file(file, arguments.public_key.as_deref())?,
        None => verify_on_server(&arguments.server).await?,
    };
    match arguments.server.output {
        Format::Json => output::print_json(&found)?,
        Format::Text => output::print_line(&story(&found))?,
    }
    match found.get("intact").and_then(Value::as_bool) {
        Some(true) => Ok(()),
        Some(false) => bail!("the audit chain is not intact: keep what there is, and compare it with earlier exports"),
        None => bail!("the answer has no verdict: is the server of another version?"),
    }
}

async fn verify_on_server(server: &ServerArguments) -> anyhow::Result<Value> {
    let client = server.client()?;
    let request = client.installation_request(Method::POST, &["audit", "verify"])?;
    client.send(request).await
}

/// Verifies an export, and tells what was found in the words of the API.
fn verify_file(file: &Path, public_key: Option<&Path>) -> anyhow::Result<Value> {
    let keys = public_key.map(read_keys).transpose()?;
    let wrong = || format!("`{}` cannot be verified", file.display());
    let reader = BufReader::new(File::open(file).with_context(wrong)?);
    let report = verify_export(reader, keys.as_deref()).with_context(wrong)?;
    let mut problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
    if report.more_problems > 0 {
        problems.push(format!("and {} more", report.more_problems));
    }
    Ok(json!({
        "intact": report.is_intact(),
        "events": report.events,
        "checkpoints": report.checkpoints,
        "first": report.first_seq,
        "head": report.last_seq,
        "problems": problems,
        "keys": if keys.is_some() { GIVEN_KEYS } else { OWN_KEYS },
    }))
}

/// The signatures were verified with the keys of whoever asked.
const GIVEN_KEYS: &str = "given";
/// The signatures were verified with the keys that the export brings.
const OWN_KEYS: &str = "own";

fn read_keys(file: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let text = fs::read_to_string(file).with_context(|| format!("`{}` cannot be read", file.display()))?;
    PublicKey::all_from_pem(&text).with_context(|| format!("`{}` has no keys", file.display()))
}

/// What was found, for people.
fn story(found: &Value) -> String {
    let mut lines = vec![format!(
        "{}; events: {}, checkpoints: {}, head: {}",
        match found.get("intact").and_then(Value::as_bool) {
            Some(true) => "intact",
            _ => "not intact",
        },
        text_at(found, &["/events"]),
        text_at(found, &["/checkpoints"]),
        text_at(found, &["/head"])
    )];
    if let Some(first) = found.get("first").and_then(Value::as_u64).filter(|first| *first > 1) {
        lines.push(format!("it is a part of a chain, which begins with event {first}"));
    }
    let problems = found.get("problems").and_then(Value::as_array).into_iter().flatten();
    lines.extend(problems.map(|problem| format!("problem: {}", text_at(problem, &[""]))));
    if found.get("keys").and_then(Value::as_str) == Some(OWN_KEYS) {
        lines.push(
            "the signatures were verified with the keys in the file itself: this shows that the file is whole, not \
             whose it is; name the installation's keys with --public-key to know both"
                .to_owned(),
        );
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use modelyard_auth::audit::{
        GENESIS, NewEvent, SigningKey,
        export::{write_checkpoint, write_event, write_header},
        link, sign,
    };

    use super::*;

    /// A signed export of a few events.
    fn export(key: &SigningKey) -> String {
        let mut out = Vec::new();
        let mut prev = GENESIS;
        write_header(&[key.public_key()], 1, &prev, &mut out).unwrap();
        for seq in 1..=3 {
            let event: NewEvent = serde_json::from_value(json!({
                "id": format!("00000000-0000-7000-8000-00000000000{seq}"), "at": "2026-01-31T00:00:00Z",
                "project": "default", "actor": "user:alice", "on_behalf_of": null, "action": "alias.write",
                "resource_kind": "model", "resource": "delay@champion", "outcome": "success", "reason": null,
                "before_digest": null, "after_digest": null, "request_id": null, "source_address": null, "details": {},
            }))
            .unwrap();
            let at = event.at;
            let event = link(&prev, event, seq).unwrap();
            write_event(&event, &mut out).unwrap();
            prev = event.hash;
            if seq == 3 {
                let checkpoint = sign(key, &key.public_key().id(), seq, prev, at);
                write_checkpoint(&checkpoint, &mut out).unwrap();
            }
        }
        String::from_utf8(out).unwrap()
    }

    struct Case {
        folder: tempfile::TempDir,
    }

    impl Case {
        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    fn case() -> Case {
        Case {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    #[test]
    fn a_good_export_is_intact_and_its_keys_are_named() {
        let case = case();
        let (key, _) = SigningKey::generate().unwrap();
        let file = case.file("chain.jsonl", &export(&key));
        let own = verify_file(&file, None).unwrap();
        let expected = json!({
            "intact": true, "events": 3, "checkpoints": 1, "first": 1, "head": 3, "problems": [], "keys": "own",
        });
        assert_eq!(own, expected);
        assert!(
            story(&own).starts_with("intact; events: 3, checkpoints: 1, head: 3\n"),
            "{}",
            story(&own)
        );
        assert!(story(&own).contains("not whose it is"));

        let pem = case.file("key.pem", &key.public_key().to_pem());
        let given = verify_file(&file, Some(&pem)).unwrap();
        assert_eq!(story(&given), "intact; events: 3, checkpoints: 1, head: 3");

        let (other, _) = SigningKey::generate().unwrap();
        let pem = case.file("other.pem", &other.public_key().to_pem());
        let forged = verify_file(&file, Some(&pem)).unwrap();
        assert_eq!(forged["intact"], false);
        assert!(story(&forged).contains("problem: the checkpoint of event 3 is signed with key"));
    }

    #[test]
    fn a_changed_export_is_not_intact() {
        let case = case();
        let (key, _) = SigningKey::generate().unwrap();
        let good = export(&key);
        let changed = good.replacen("user:alice", "user:mallet", 1);
        let found = verify_file(&case.file("changed.jsonl", &changed), None).unwrap();
        assert_eq!(found["intact"], false);
        assert!(
            story(&found).contains("problem: event 1 was changed"),
            "{}",
            story(&found)
        );

        let mut lines: Vec<_> = good.lines().collect();
        lines.pop();
        let found = verify_file(&case.file("cut.jsonl", &(lines.join("\n") + "\n")), None).unwrap();
        assert!(story(&found).starts_with("not intact; events: 3"), "{}", story(&found));
        assert!(story(&found).contains("the end was cut off"));
    }

    #[test]
    fn what_is_no_export_or_key_is_named() {
        let case = case();
        let (key, _) = SigningKey::generate().unwrap();
        let other = case.file("other.txt", "something else\n");
        let error = format!("{:#}", verify_file(&other, None).unwrap_err());
        assert!(
            error.contains("other.txt` cannot be verified") && error.contains("no export"),
            "{error}"
        );
        let good = case.file("chain.jsonl", &export(&key));
        let error = format!("{:#}", verify_file(&good, Some(&other)).unwrap_err());
        assert!(
            error.contains("other.txt` has no keys") && error.contains("PEM"),
            "{error}"
        );
    }

    #[test]
    fn the_servers_words_are_told() {
        let found =
            json!({"intact": false, "events": 9, "checkpoints": 2, "head": 9, "problems": ["event 4 is missing"]});
        assert_eq!(
            story(&found),
            "not intact; events: 9, checkpoints: 2, head: 9\nproblem: event 4 is missing"
        );
    }
}
