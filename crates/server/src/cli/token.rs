//! `token`: tokens, which let programs and the command line in.

use anyhow::Context;
use clap::{Args, Subcommand};
use modelyard_auth::{Grant, Principal, PrincipalKind};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ServerArguments, UsageError, auth, kind,
    output::{self, Format},
    resource,
};

/// The commands for tokens.
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Create a token and print it: this once only
    Create(CreateArguments),
    /// List tokens: your own, or as an admin all of them
    List(ListArguments),
    /// Revoke a token: at once, and for good
    Revoke(RevokeArguments),
}

/// What `token create` takes.
#[derive(Args)]
pub struct CreateArguments {
    /// Name, which says what the token is for
    name: String,
    /// Whose it is, service-account:NAME for example [default: you]
    #[arg(long, value_name = "SUBJECT", value_parser = auth::principal_of)]
    owner: Option<Principal>,
    /// What it may do of all that its owner may [default: all of it]; a place is PROJECT, PROJECT/endpoints/NAME or `*`
    #[arg(long, value_name = "ROLE@PLACE", value_delimiter = ',')]
    scope: Vec<Grant>,
    /// When it ends, `12h` or `30days` for example [default: the server's, 90 days]
    #[arg(long, value_name = "DURATION", value_parser = duration_text, conflicts_with = "never_expires")]
    expires_in: Option<String>,
    /// It does not end until it is revoked
    #[arg(long)]
    never_expires: bool,
    #[command(flatten)]
    server: ServerArguments,
}

/// What `token list` takes.
#[derive(Args)]
pub struct ListArguments {
    /// Only the tokens of this user or service account
    #[arg(long, value_name = "SUBJECT", value_parser = auth::principal_of)]
    owner: Option<Principal>,
    #[command(flatten)]
    server: ServerArguments,
}

/// What `token revoke` takes.
#[derive(Args)]
pub struct RevokeArguments {
    /// Id, as `token list` shows it
    id: String,
    #[command(flatten)]
    server: ServerArguments,
}

/// Runs one of the commands.
pub async fn run(command: &TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(arguments) => create(arguments).await,
        TokenCommand::List(arguments) => list(arguments).await,
        TokenCommand::Revoke(arguments) => revoke(arguments).await,
    }
}

async fn create(arguments: &CreateArguments) -> anyhow::Result<()> {
    let body = creation(arguments)?;
    let client = arguments.server.client()?;
    let request = client.installation_request(Method::POST, &[kind::TOKEN.plural])?;
    let answer = client.send(request.json(&body)).await?;
    if arguments.server.output == Format::Json {
        return output::print_json(&answer);
    }
    let token = answer.get("token").and_then(Value::as_str);
    output::print_line(token.context("the server gave no token")?)?;
    let end = output::text_at(&answer, &["/expires_at"]);
    let end = if end == "-" {
        "it does not end".to_owned()
    } else {
        format!("it ends {end}")
    };
    output::hint(&format!(
        "this token is shown this once: keep it where only its user reads it; {end}"
    ));
    Ok(())
}

/// What is sent to create a token.
fn creation(arguments: &CreateArguments) -> Result<Value, UsageError> {
    let mut body = json!({ "name": arguments.name, "never_expires": arguments.never_expires });
    if let Some(owner) = &arguments.owner {
        body["owner"] = json!(checked_owner(owner)?);
    }
    if !arguments.scope.is_empty() {
        let scope: Vec<_> = arguments.scope.iter().map(Grant::to_string).collect();
        body["scope"] = json!(scope);
    }
    if let Some(expires_in) = &arguments.expires_in {
        body["expires_in"] = json!(expires_in);
    }
    Ok(body)
}

fn checked_owner(owner: &Principal) -> Result<String, UsageError> {
    match owner.kind() {
        PrincipalKind::User | PrincipalKind::ServiceAccount => Ok(owner.to_string()),
        PrincipalKind::Service | PrincipalKind::Anonymous => Err(UsageError(format!(
            "{owner} cannot have tokens: name user:NAME or service-account:NAME"
        ))),
    }
}

/// The server reads it; what is wrong with it is known before.
fn duration_text(text: &str) -> Result<String, humantime::DurationError> {
    humantime::parse_duration(text)?;
    Ok(text.to_owned())
}

async fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let owner = arguments.owner.as_ref().map(checked_owner).transpose()?;
    let query: Vec<_> = owner.iter().map(|owner| ("owner", owner.as_str())).collect();
    let client = arguments.server.client()?;
    resource::list(&client, &kind::TOKEN, &query, arguments.server.output).await
}

async fn revoke(arguments: &RevokeArguments) -> anyhow::Result<()> {
    let client = arguments.server.client()?;
    let kind = kind::TOKEN;
    let request = client.installation_request(Method::DELETE, &[kind.plural, &arguments.id])?;
    client.send(request).await?;
    match arguments.server.output {
        Format::Json => output::print_json(&json!({"kind": kind.yaml, "id": arguments.id, "outcome": "revoked"})),
        Format::Text => output::print_line(&format!("{}/{} revoked", kind.singular, arguments.id)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Create {
        #[command(flatten)]
        arguments: CreateArguments,
    }

    fn body(words: &str) -> Result<Value, String> {
        let words = std::iter::once("create").chain(words.split_whitespace());
        let create = Create::try_parse_from(words).map_err(|error| error.to_string())?;
        creation(&create.arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_not_said_is_left_to_the_server() {
        for (words, expected) in [
            ("laptop", json!({"name": "laptop", "never_expires": false})),
            (
                "ci --owner service-account:ci --expires-in 30days --scope viewer@default,caller@default/endpoints/delay",
                json!({
                    "name": "ci", "owner": "service-account:ci", "expires_in": "30days", "never_expires": false,
                    "scope": ["viewer@default", "caller@default/endpoints/delay"],
                }),
            ),
            (
                "robot --owner alice --never-expires --scope auditor@*",
                json!({"name": "robot", "owner": "user:alice", "never_expires": true, "scope": ["auditor@*"]}),
            ),
        ] {
            assert_eq!(body(words), Ok(expected), "{words}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (words, expected) in [
            ("x --owner service:gateway", "cannot have tokens"),
            ("x --owner group:team", "names nobody"),
            ("x --scope viewer", "ROLE@PROJECT"),
            ("x --expires-in soon", "soon"),
            ("x --expires-in 1h --never-expires", "cannot be used with"),
            ("", "<NAME>"),
        ] {
            let error = body(words).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        }
    }
}
