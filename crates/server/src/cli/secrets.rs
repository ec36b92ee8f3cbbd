//! `secrets`: what pipelines and alerts need and nobody should see.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, input, kind,
    output::{self, Format},
    resource,
};

/// The largest value, in bytes.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// The commands for secrets.
#[derive(Subcommand)]
pub enum SecretsCommand {
    /// Set a secret's value; it is never shown again
    Set(SetArguments),
    /// List secrets, without their values
    List {
        #[command(flatten)]
        connection: ConnectionArguments,
    },
    /// Remove a secret
    Delete(DeleteArguments),
}

/// What `secrets set` takes.
#[derive(Args)]
pub struct SetArguments {
    /// Name
    name: String,
    /// File with the value, in UTF-8; one newline at its end is left out [default: standard input; a terminal asks]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// What `secrets delete` takes.
#[derive(Args)]
pub struct DeleteArguments {
    /// Name
    name: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Runs one of the commands.
pub async fn run(command: &SecretsCommand) -> anyhow::Result<()> {
    match command {
        SecretsCommand::Set(arguments) => set(arguments).await,
        SecretsCommand::List { connection } => {
            resource::list(&connection.client()?, &kind::SECRET, &[], connection.server.output).await
        }
        SecretsCommand::Delete(arguments) => {
            let connection = &arguments.connection;
            resource::remove(
                &connection.client()?,
                &kind::SECRET,
                &arguments.name,
                connection.server.output,
            )
            .await
        }
    }
}

async fn set(arguments: &SetArguments) -> anyhow::Result<()> {
    let value = input::read_value("value", arguments.file.as_deref(), MAX_VALUE_BYTES)?;
    let client = arguments.connection.client()?;
    let kind = kind::SECRET;
    let request = client.project_request(Method::PUT, &[kind.plural, &arguments.name])?;
    let answer = client.send(request.json(&json!({ "value": value }))).await?;
    if arguments.connection.server.output == Format::Json {
        return output::print_json(&answer);
    }
    let word = answer.get("outcome").and_then(Value::as_str).unwrap_or("set");
    output::print_line(&format!("{}/{} {word}", kind.singular, arguments.name))
}
