//! `auth`: who one is, and who may do what.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use modelyard_auth::{InvalidPrincipal, Kind, Principal, PrincipalKind, password::MAX_PASSWORD_BYTES};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, ServerArguments, UsageError,
    client::{Client, Level},
    input, kind,
    output::{self, Format, text_at},
    resource,
};

/// The commands for access.
#[derive(Subcommand)]
pub enum AuthCommand {
    /// Print who you are to the server, and what you may
    Me {
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Tell whether somebody may do something, and why
    Explain(ExplainArguments),
    /// List what can be done at all: roles and policies name it
    Actions {
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Print the Cedar schema, and the policies that are built in
    Schema {
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Set a password: your own, or as an admin somebody else's
    Password(PasswordArguments),
}

/// What `auth explain` takes.
#[derive(Args)]
pub struct ExplainArguments {
    /// Who: `alice` or user:alice, service-account:ci, service:gateway
    #[arg(long = "as", value_name = "PRINCIPAL", value_parser = principal_of)]
    principal: Principal,
    /// What: `alias.write` for example; `auth actions` lists them
    action: String,
    /// On what: `installation`, `project`, KIND/NAME (both in the project of --project), project:NAME, or
    /// KIND:PROJECT/NAME
    resource: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// What `auth password` takes.
#[derive(Args)]
pub struct PasswordArguments {
    /// Whose, as an admin [default: your own]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with the new password; one newline at its end is left out [default: standard input; a terminal asks]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// File with the present password, which your own is changed with [default: a terminal asks]
    #[arg(long, value_name = "FILE")]
    present_file: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArguments,
}

/// Runs one of the commands.
pub async fn run(command: &AuthCommand) -> anyhow::Result<()> {
    match command {
        AuthCommand::Me { server } => me(server).await,
        AuthCommand::Explain(arguments) => explain(arguments).await,
        AuthCommand::Actions { server } => resource::list(&server.client()?, &kind::ACTION, &[], server.output).await,
        AuthCommand::Schema { server } => schema(server).await,
        AuthCommand::Password(arguments) => password(arguments).await,
    }
}

/// The principal that a word on the command line means; a name alone is a user's.
pub fn principal_of(word: &str) -> Result<Principal, InvalidPrincipal> {
    match word.parse() {
        Err(_) if !word.contains(':') => format!("user:{word}").parse(),
        parsed => parsed,
    }
}

/// The kind of things in a project that a word on the command line means.
pub fn kind_in_project(word: &str) -> Result<Kind, UsageError> {
    let is_inside = |kind: &Kind| !matches!(kind, Kind::Installation | Kind::Project);
    let found = Kind::find(word).or_else(|| Kind::find(&word.to_lowercase()));
    found.filter(is_inside).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL
            .iter()
            .filter(|kind| is_inside(kind))
            .map(|kind| kind.word())
            .collect();
        UsageError(format!(
            "`{word}` is no kind of things in a project: use {}",
            known.join(", ")
        ))
    })
}

/// The resource that a word on the command line means, as the API writes it.
fn resource_of(word: &str, project: &str) -> Result<String, UsageError> {
    if word == "installation" {
        return Ok(word.to_owned());
    }
    if word == "project" {
        return Ok(format!("project:{project}"));
    }
    let wrong = || {
        UsageError(format!(
            "`{word}` is no resource: write it as installation, project, project:NAME, KIND/NAME or KIND:PROJECT/NAME"
        ))
    };
    if let Some(name) = word.strip_prefix("project:") {
        let is_name = !name.is_empty() && !name.contains('/');
        return if is_name { Ok(word.to_owned()) } else { Err(wrong()) };
    }
    // The name of an artifact has a colon, too.
    let (place, name) = word.split_once('/').ok_or_else(wrong)?;
    let (kind, project) = place.split_once(':').unwrap_or((place, project));
    if name.is_empty() || project.is_empty() {
        return Err(wrong());
    }
    let kind = kind_in_project(kind)?.word();
    Ok(format!("{kind}:{project}/{name}"))
}

async fn me(server: &ServerArguments) -> anyhow::Result<()> {
    let answer = get_me(&server.client()?).await?;
    match server.output {
        Format::Json => output::print_json(&answer),
        Format::Text => output::print_line(&story_of_me(&answer)),
    }
}

async fn get_me(client: &Client) -> anyhow::Result<Value> {
    client.get_at(Level::Installation, &["auth", "me"]).await
}

/// Who one is, for people.
fn story_of_me(me: &Value) -> String {
    let via = text_at(me, &["/via"]);
    let via = match me.get("token_id").and_then(Value::as_str) {
        Some(id) => format!("{via} {id}"),
        None => via,
    };
    let or = |pointer: &str, none: &str| match me.pointer(pointer) {
        None | Some(Value::Null) => none.to_owned(),
        Some(_) => text_at(me, &[pointer]),
    };
    output::facts(&[
        ("principal", text_at(me, &["/principal"])),
        ("known by", via),
        ("roles", text_at(me, &["/roles"])),
        ("narrowed to", or("/scope", "-")),
        ("projects", or("/projects", "all")),
    ])
}

async fn explain(arguments: &ExplainArguments) -> anyhow::Result<()> {
    let resource = resource_of(&arguments.resource, &arguments.connection.project)?;
    let client = arguments.connection.server.client()?;
    let request = client.installation_request(Method::POST, &["auth", "explain"])?;
    let body = json!({
        "principal": arguments.principal,
        "action": arguments.action,
        "resource": resource,
    });
    let answer = client.send(request.json(&body)).await?;
    match arguments.connection.server.output {
        Format::Json => output::print_json(&answer),
        Format::Text => output::print_line(&story_of_decision(&answer)),
    }
}

/// A decision and its reasons, for people.
fn story_of_decision(decision: &Value) -> String {
    let verdict = match decision.get("allowed").and_then(Value::as_bool) {
        Some(true) => "allowed",
        _ => "refused",
    };
    let question = format!(
        "{} does {} on {}",
        text_at(decision, &["/principal"]),
        text_at(decision, &["/action"]),
        text_at(decision, &["/resource"])
    );
    let mut facts = vec![
        (verdict, question),
        ("why", text_at(decision, &["/why"])),
        ("roles", text_at(decision, &["/roles"])),
        ("policies", text_at(decision, &["/policies"])),
    ];
    if decision.get("scope_roles").is_some_and(Value::is_array) {
        facts.push(("narrowed to", text_at(decision, &["/scope_roles"])));
    }
    let errors = decision.get("errors").and_then(Value::as_array).into_iter().flatten();
    facts.extend(errors.map(|error| ("error", text_at(error, &[""]))));
    output::facts(&facts)
}

async fn schema(server: &ServerArguments) -> anyhow::Result<()> {
    let client = server.client()?;
    let answer = client.get_at(Level::Installation, &["auth", "schema"]).await?;
    if server.output == Format::Json {
        return output::print_json(&answer);
    }
    let text = |field: &str| {
        let text = answer.get(field).and_then(Value::as_str).map(str::trim_end);
        text.with_context(|| format!("the server gave no {field}"))
    };
    output::print_line(&format!(
        "// The schema.\n\n{}\n\n// The policies that are built in.\n\n{}",
        text("schema")?,
        text("policies")?
    ))
}

async fn password(arguments: &PasswordArguments) -> anyhow::Result<()> {
    let present = present_password(arguments)?;
    let new = new_password(arguments.file.as_deref())?;
    let client = arguments.server.client()?;
    let name = match &arguments.user {
        Some(name) => name.clone(),
        None => own_name(&client).await?,
    };
    let mut body = json!({ "password": new });
    if let Some(present) = present {
        body["present_password"] = json!(present);
    }
    let request = client.installation_request(Method::PUT, &["users", &name, "password"])?;
    client.send(request.json(&body)).await?;
    match arguments.server.output {
        Format::Json => output::print_json(&json!({"kind": "User", "name": name, "outcome": "updated"})),
        Format::Text => output::print_line(&format!("user/{name} has a new password")),
    }
}

fn present_password(arguments: &PasswordArguments) -> anyhow::Result<Option<String>> {
    const WHAT: &str = "present password";
    match &arguments.present_file {
        Some(file) => input::read_value(WHAT, Some(file), MAX_PASSWORD_BYTES).map(Some),
        None if arguments.user.is_some() => Ok(None),
        None if input::is_typed(None) => input::prompt(WHAT, MAX_PASSWORD_BYTES).map(Some),
        None => Err(UsageError(
            "your own password is changed with the present one: name a file that has it with --present-file, or, as an admin, name the user with --user"
                .to_owned(),
        )
        .into()),
    }
}

fn new_password(file: Option<&Path>) -> anyhow::Result<String> {
    let new = input::read_value("new password", file, MAX_PASSWORD_BYTES)?;
    if new.is_empty() {
        return Err(
            UsageError("the new password is empty: write one to standard input or to a file".to_owned()).into(),
        );
    }
    if input::is_typed(file) && input::prompt("new password, again", MAX_PASSWORD_BYTES)? != new {
        bail!("the two passwords differ: nothing was changed");
    }
    Ok(new)
}

/// The name of the user who calls.
async fn own_name(client: &Client) -> anyhow::Result<String> {
    let me = get_me(client).await?;
    let principal = me.get("principal").and_then(Value::as_str);
    let principal: Principal = principal.context("the server did not say who you are")?.parse()?;
    match principal.kind() {
        PrincipalKind::User => Ok(principal.name().to_owned()),
        _ => bail!("{principal} has no password: name a user with --user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_a_user() {
        for (word, expected) in [
            ("alice", "user:alice"),
            ("a@b.example", "user:a@b.example"),
            ("user:alice", "user:alice"),
            ("service-account:ci", "service-account:ci"),
            ("service:gateway", "service:gateway"),
            ("anonymous", "anonymous"),
        ] {
            assert_eq!(principal_of(word).unwrap().to_string(), expected);
        }
        for word in ["", "a b", "group:team", "user:"] {
            assert!(principal_of(word).is_err(), "{word}");
        }
    }

    #[test]
    fn resources_are_read_in_all_their_forms() {
        for (word, expected) in [
            ("installation", "installation"),
            ("project", "project:flights"),
            ("project:other", "project:other"),
            ("model/delay", "model:flights/delay"),
            ("AlertRule/late", "alert-rule:flights/late"),
            ("MODEL/delay", "model:flights/delay"),
            ("model:other/delay", "model:other/delay"),
            ("PipelineRun:other/1", "pipeline-run:other/1"),
            ("artifact/sha256:01", "artifact:flights/sha256:01"),
            ("artifact:other/sha256:01", "artifact:other/sha256:01"),
        ] {
            assert_eq!(resource_of(word, "flights").unwrap(), expected);
        }
        for word in [
            "",
            "model",
            "model:delay",
            "model/",
            "model:/delay",
            "project:",
            "project:a/b",
            "project/a",
            "installation/x",
            "widget/x",
            "user/alice",
        ] {
            let error = resource_of(word, "flights").unwrap_err().to_string();
            assert!(
                error.contains("write it as") || error.contains("use alert,"),
                "{word}: {error}"
            );
        }
    }

    #[test]
    fn decisions_are_told_with_their_reasons() {
        let mut decision = json!({
            "principal": "user:alice", "action": "alias.write", "resource": "model:default/delay", "allowed": true,
            "policies": ["roles", "own"], "roles": ["deployer"], "scope_roles": null, "errors": [],
            "why": "the role deployer has it",
        });
        assert_eq!(
            story_of_decision(&decision),
            "allowed   user:alice does alias.write on model:default/delay\n\
             why       the role deployer has it\n\
             roles     deployer\n\
             policies  roles, own"
        );
        decision["allowed"] = json!(false);
        decision["policies"] = json!([]);
        decision["scope_roles"] = json!(["viewer"]);
        decision["errors"] = json!(["a policy failed"]);
        let story = story_of_decision(&decision);
        for line in [
            "refused      user:alice does",
            "policies     -",
            "narrowed to  viewer",
            "error        a policy failed",
        ] {
            assert!(story.lines().any(|found| found.starts_with(line)), "{story}");
        }
    }

    #[test]
    fn nothing_is_not_everything() {
        let me = json!({"principal": "user:alice", "via": "token", "token_id": "1", "scope": null, "projects": null, "roles": []});
        assert_eq!(
            story_of_me(&me),
            "principal    user:alice\n\
             known by     token 1\n\
             roles        -\n\
             narrowed to  -\n\
             projects     all"
        );
        let me = json!({"principal": "user:alice", "via": "session", "token_id": null, "scope": [], "projects": [], "roles": ["viewer@default"]});
        assert!(story_of_me(&me).ends_with("projects     -"), "{}", story_of_me(&me));
    }
}
