//! `sensitive`: what in a project is marked, so that policies can ask more of those who touch it.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{
    ConnectionArguments, auth,
    client::Level,
    output::{self, Column, Format, column, text_at},
};

/// The marks in URLs.
const SENSITIVE: &str = "sensitive";

const COLUMNS: &[Column] = &[
    column("kind", |item| text_at(item, &["/kind"])),
    column("name", |item| text_at(item, &["/name"])),
    column("marked", |item| text_at(item, &["/created_at"])),
];

/// The commands for what is sensitive.
#[derive(Subcommand)]
pub enum SensitiveCommand {
    /// Mark something as sensitive, also before it exists
    Mark(MarkArguments),
    /// Take the mark off
    Unmark(MarkArguments),
    /// List what is marked
    List {
        #[command(flatten)]
        connection: ConnectionArguments,
    },
}

/// What `sensitive mark` and `sensitive unmark` take.
#[derive(Args)]
pub struct MarkArguments {
    /// Kind, `model` or `endpoint` for example
    kind: String,
    /// Name
    name: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Runs one of the commands.
pub async fn run(command: &SensitiveCommand) -> anyhow::Result<()> {
    match command {
        SensitiveCommand::Mark(arguments) => mark(arguments, true).await,
        SensitiveCommand::Unmark(arguments) => mark(arguments, false).await,
        SensitiveCommand::List { connection } => {
            let client = connection.client()?;
            let items = client.list_at(Level::Project, &[SENSITIVE], &[], None).await?;
            output::print_list(&items, COLUMNS, connection.server.output)
        }
    }
}

async fn mark(arguments: &MarkArguments, is_sensitive: bool) -> anyhow::Result<()> {
    let kind = auth::kind_in_project(&arguments.kind)?.word();
    let client = arguments.connection.client()?;
    let method = if is_sensitive { Method::PUT } else { Method::DELETE };
    client
        .send(client.project_request(method, &[SENSITIVE, kind, &arguments.name])?)
        .await?;
    let outcome = if is_sensitive { "marked" } else { "unmarked" };
    match arguments.connection.server.output {
        Format::Json => output::print_json(&json!({"kind": kind, "name": arguments.name, "outcome": outcome})),
        Format::Text => output::print_line(&format!("{kind}/{} {outcome}", arguments.name)),
    }
}
