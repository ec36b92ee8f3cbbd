//! `audit`: who did what, and the proof of it.

mod verify;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use modelyard_auth::{Kind, Principal};
use modelyard_common::Timestamp;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::{
    ServerArguments, auth,
    client::Level,
    file::NewFile,
    output::{self, Column, Format, column, text_at},
};

/// The commands for the audit chain.
#[derive(Subcommand)]
pub enum AuditCommand {
    /// List events, the newest first
    Events(EventsArguments),
    /// Verify the server's audit chain, or an export without any server; exit code 1 when it is not intact
    Verify(verify::VerifyArguments),
    /// Write the whole audit chain to a file or to standard output
    Export(ExportArguments),
    /// Sign the newest event, and with it all before it
    Sign {
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Print the public keys that verify signatures, as PEM
    Keys {
        #[command(flatten)]
        server: ServerArguments,
    },
}

/// What `audit events` takes.
#[derive(Args)]
pub struct EventsArguments {
    /// Only those of this project; `--project=` selects those of the installation itself [default: all]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Only those by this one: `alice` or user:alice, service-account:ci, anonymous
    #[arg(long, value_name = "PRINCIPAL", value_parser = auth::principal_of)]
    actor: Option<Principal>,
    /// Only this action, `alias.write` for example
    #[arg(long)]
    action: Option<String>,
    /// Only those on things of this kind
    #[arg(long, value_name = "KIND")]
    resource_kind: Option<String>,
    /// Only those on the thing with this name
    #[arg(long, value_name = "NAME")]
    resource: Option<String>,
    /// Only those that ended so
    #[arg(long, value_parser = ["success", "denied", "failed"])]
    outcome: Option<String>,
    /// Only those of this request
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Only those from this time on, 2026-01-31T00:00:00Z for example
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only those before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// How many at most; `audit export` gives all
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    server: ServerArguments,
}

/// What `audit export` takes.
#[derive(Args)]
pub struct ExportArguments {
    /// Form of the export
    #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
    format: ExportFormat,
    /// File to write; it is there when it is whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArguments,
}

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The chain with its signatures, which `audit verify` reads.
    Jsonl,
    /// Events of the Open Cybersecurity Schema Framework, one a line.
    Ocsf,
}

impl ExportFormat {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Ocsf => "ocsf",
        }
    }
}

/// Runs one of the commands.
pub async fn run(command: &AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Events(arguments) => events(arguments).await,
        AuditCommand::Verify(arguments) => verify::verify(arguments).await,
        AuditCommand::Export(arguments) => export(arguments).await,
        AuditCommand::Sign { server } => sign(server).await,
        AuditCommand::Keys { server } => keys(server).await,
    }
}

const EVENT_COLUMNS: &[Column] = &[
    column("seq", |event| text_at(event, &["/seq"])),
    column("time", |event| text_at(event, &["/at"])),
    column("actor", actor),
    column("action", |event| text_at(event, &["/action"])),
    column("operation", |event| text_at(event, &["/details/operation"])),
    column("resource", resource),
    column("outcome", outcome),
];

fn actor(event: &Value) -> String {
    let actor = text_at(event, &["/actor"]);
    match event.get("on_behalf_of").and_then(Value::as_str) {
        Some(other) => format!("{actor} for {other}"),
        None => actor,
    }
}

/// How it ended, why, and of a sign-in in vain with which name.
fn outcome(event: &Value) -> String {
    let mut text = text_at(event, &["/outcome"]);
    for (before, pointer) in [(": ", "/reason"), (" of ", "/details/name")] {
        if let Some(more) = event.pointer(pointer).and_then(Value::as_str)
            && event.get("reason").is_some_and(Value::is_string)
        {
            text.push_str(before);
            text.push_str(more);
        }
    }
    text
}

/// The resource in the form that `auth explain` takes.
fn resource(event: &Value) -> String {
    let field = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, project, name) = (field("resource_kind"), field("project"), field("resource"));
    if name.is_empty() {
        kind.to_owned()
    } else if project.is_empty() || kind == Kind::Project.word() {
        format!("{kind}:{name}")
    } else {
        format!("{kind}:{project}/{name}")
    }
}

/// The chain has the words of the command line. Kinds beyond those of projects, such as `user`, are known to the server.
fn kind_word(word: &str) -> String {
    let known = Kind::find(word).map(Kind::word);
    known.unwrap_or(word).to_owned()
}

async fn events(arguments: &EventsArguments) -> anyhow::Result<()> {
    let filters = filters(arguments);
    let query: Vec<_> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let client = arguments.server.client()?;
    let limit = usize::from(arguments.limit);
    let items = client
        .list_at(Level::Installation, &["audit", "events"], &query, Some(limit))
        .await?;
    output::print_list(&items, EVENT_COLUMNS, arguments.server.output)
}

/// The filters as the API names them; those that are not given select everything.
fn filters(arguments: &EventsArguments) -> Vec<(&'static str, String)> {
    let filters = [
        ("project", arguments.project.clone()),
        ("actor", arguments.actor.as_ref().map(Principal::to_string)),
        ("action", arguments.action.clone()),
        ("resource_kind", arguments.resource_kind.as_deref().map(kind_word)),
        ("resource", arguments.resource.clone()),
        ("outcome", arguments.outcome.clone()),
        ("request_id", arguments.request_id.clone()),
        ("since", arguments.since.map(|time| time.to_string())),
        ("until", arguments.until.map(|time| time.to_string())),
    ];
    let given = filters.into_iter().filter_map(|(name, value)| Some((name, value?)));
    given.collect()
}

async fn export(arguments: &ExportArguments) -> anyhow::Result<()> {
    // An interrupt ends the process at once, and would leave the temporary file.
    tokio::select! {
        done = write_export(arguments) => done,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt.context("interrupts cannot be waited for")?;
            bail!("the export was interrupted: no file was written")
        }
    }
}

async fn write_export(arguments: &ExportArguments) -> anyhow::Result<()> {
    let client = arguments.server.client()?;
    let request = client.installation_request(Method::GET, &["audit", "export"])?;
    let request = request.query(&[("format", arguments.format.as_str())]);
    let Some(out) = &arguments.out else {
        return write_to_standard_output(client.send_raw(request).await?).await;
    };
    let mut file = NewFile::begin(out)?;
    let mut response = client.send_raw(request).await?;
    let mut size_bytes = 0;
    while let Some(chunk) = response.chunk().await.context(BROKE_OFF)? {
        file.write(&chunk)?;
        size_bytes += chunk.len() as u64;
    }
    file.keep()?;
    match arguments.server.output {
        Format::Json => output::print_json(&json!({ "file": out, "size_bytes": size_bytes })),
        Format::Text => output::print_line(&format!("`{}` written, {size_bytes} bytes", out.display())),
    }
}

const BROKE_OFF: &str = "the export broke off: try again";

async fn write_to_standard_output(mut response: Response) -> anyhow::Result<()> {
    while let Some(chunk) = response.chunk().await.context(BROKE_OFF)? {
        match io::stdout().write_all(&chunk) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("standard output cannot be written")?,
        }
    }
    match io::stdout().flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn sign(server: &ServerArguments) -> anyhow::Result<()> {
    let client = server.client()?;
    let request = client.installation_request(Method::POST, &["audit", "checkpoints"])?;
    let checkpoint = client.send(request).await?;
    match server.output {
        Format::Json => output::print_json(&checkpoint),
        Format::Text => output::print_line(&format!(
            "event {} and all before it are signed with key {}; its hash is {}",
            text_at(&checkpoint, &["/seq"]),
            text_at(&checkpoint, &["/key_id"]),
            text_at(&checkpoint, &["/hash"])
        )),
    }
}

/// The text is what `audit verify --public-key` reads.
async fn keys(server: &ServerArguments) -> anyhow::Result<()> {
    let client = server.client()?;
    let items = client
        .list_at(Level::Installation, &["audit", "keys"], &[], None)
        .await?;
    if server.output == Format::Json {
        return output::print_json(&json!({ "items": items }));
    }
    if items.is_empty() {
        output::hint("there is no key yet: it is made at the first signature, `modelyard audit sign`");
    }
    for key in &items {
        let pem = key.get("public_key").and_then(Value::as_str);
        output::print_line(pem.context("the server gave a key without its text")?.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Events {
        #[command(flatten)]
        arguments: EventsArguments,
    }

    fn parse(words: &[&str]) -> Result<EventsArguments, clap::Error> {
        let words = std::iter::once("events").chain(words.iter().copied());
        Events::try_parse_from(words).map(|events| events.arguments)
    }

    #[test]
    fn only_filters_that_are_given_are_sent() {
        assert_eq!(filters(&parse(&[]).unwrap()), []);
        let words = [
            "--project=",
            "--actor=alice",
            "--resource-kind=AlertRule",
            "--outcome=denied",
            "--since=2026-01-31T01:00:00+01:00",
        ];
        let expected = [
            ("project", ""),
            ("actor", "user:alice"),
            ("resource_kind", "alert-rule"),
            ("outcome", "denied"),
            ("since", "2026-01-31T00:00:00Z"),
        ];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(filters(&parse(&words).unwrap()), expected);
        for wrong in ["--outcome=maybe", "--since=yesterday", "--limit=0", "--actor=a b"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        assert_eq!(parse(&[]).unwrap().limit, 50);
        assert_eq!(kind_word("user"), "user");
    }

    #[test]
    fn events_are_rows() {
        let row = |event: &Value| -> Vec<String> { EVENT_COLUMNS.iter().map(|column| (column.text)(event)).collect() };
        let mut event = json!({
            "seq": 7, "at": "2026-01-31T00:00:00Z", "project": "default", "actor": "service:orchestrator",
            "on_behalf_of": "user:alice", "action": "alias.write", "resource_kind": "model", "resource": "delay@champion",
            "outcome": "success", "details": {"operation": "apply", "name": "v2"},
        });
        assert_eq!(
            row(&event),
            [
                "7",
                "2026-01-31T00:00:00Z",
                "service:orchestrator for user:alice",
                "alias.write",
                "apply",
                "model:default/delay@champion",
                "success",
            ]
        );
        event["reason"] = json!("WRONG_PASSWORD");
        assert_eq!(outcome(&event), "success: WRONG_PASSWORD of v2");
        event["on_behalf_of"] = Value::Null;
        assert_eq!(actor(&event), "service:orchestrator");
        for (kind, project, name, expected) in [
            ("user", "", "alice", "user:alice"),
            ("project", "default", "default", "project:default"),
            ("installation", "", "", "installation"),
        ] {
            let event = json!({"resource_kind": kind, "project": project, "resource": name});
            assert_eq!(resource(&event), expected);
        }
    }
}
