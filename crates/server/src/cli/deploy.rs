//! `deploy`, `rollback` and `rollout`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments,
    client::Client,
    output::{self, Format},
};

/// How often `--wait` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Whether to wait for the gateways.
#[derive(Args)]
struct WaitArguments {
    /// Wait until the gateways serve it
    #[arg(long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Args)]
pub struct DeployArguments {
    /// Endpoint; made when it does not exist
    endpoint: String,
    /// Model version to serve, or alias to follow
    #[arg(long, value_name = "NAME/VERSION|NAME@ALIAS")]
    model: String,
    #[command(flatten)]
    waiting: WaitArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
}

pub async fn deploy(arguments: &DeployArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let segments = ["endpoints", arguments.endpoint.as_str()];
    let mut spec = match client.find(&segments).await? {
        Some(endpoint) => endpoint.get("spec").cloned().context("the server gave no spec")?,
        None => json!({}),
    };
    spec["routes"] = json!([{ "model": arguments.model }]);
    let applied = client
        .send(client.project_request(Method::PUT, &segments)?.json(&spec))
        .await?;
    let endpoint = if arguments.waiting.wait {
        let waiting = Waiting {
            client: &client,
            endpoint: &arguments.endpoint,
            wanted: &arguments.model,
            timeout: arguments.waiting.timeout,
            format: arguments.connection.server.output,
            is_rollback: false,
        };
        waiting.until_ready().await?
    } else {
        applied.get("resource").cloned().unwrap_or(applied)
    };
    match arguments.connection.server.output {
        Format::Json => output::print_json(&endpoint),
        Format::Text if arguments.waiting.wait => {
            let serving = endpoint.pointer("/status/nodes/0/serving/0").and_then(Value::as_str);
            output::print_line(&format!(
                "endpoint/{} serves {}",
                arguments.endpoint,
                serving.unwrap_or(&arguments.model)
            ))
        }
        Format::Text => output::print_line(&format!("endpoint/{} follows {}", arguments.endpoint, arguments.model)),
    }
}

/// What is wanted of a rollout that is under way.
#[derive(Subcommand)]
pub enum RolloutCommand {
    /// Keep the new versions' share as it is
    Pause(RolloutArguments),
    /// Go on with a paused rollout
    Resume(RolloutArguments),
    /// Let the new versions serve at once
    Promote(RolloutArguments),
    /// Refuse the new versions
    Abort(RolloutArguments),
}

#[derive(Args)]
pub struct RolloutArguments {
    /// Endpoint
    endpoint: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

impl RolloutCommand {
    const fn parts(&self) -> (&'static str, &RolloutArguments) {
        match self {
            Self::Pause(arguments) => ("pause", arguments),
            Self::Resume(arguments) => ("resume", arguments),
            Self::Promote(arguments) => ("promote", arguments),
            Self::Abort(arguments) => ("abort", arguments),
        }
    }
}

/// Changes the rollout that an endpoint is in.
pub async fn change_rollout(command: &RolloutCommand) -> anyhow::Result<()> {
    let (change, arguments) = command.parts();
    let client = arguments.connection.client()?;
    let request = client.project_request(Method::GET, &["rollouts"])?;
    let query = [("endpoint", arguments.endpoint.as_str()), ("limit", "1")];
    let newest = client.send(request.query(&query)).await?;
    let is_open = |rollout: &&Value| rollout.get("ended_at").is_none_or(Value::is_null);
    let Some(id) = newest
        .pointer("/items/0")
        .filter(is_open)
        .and_then(|rollout| rollout.get("id")?.as_str())
    else {
        bail!(
            "endpoint `{}` is in no rollout: see `modelyard get rollouts`",
            arguments.endpoint
        );
    };
    let rollout = client
        .send(client.project_request(Method::POST, &["rollouts", id, change])?)
        .await?;
    match arguments.connection.server.output {
        Format::Json => output::print_json(&rollout),
        Format::Text => {
            let state = rollout.get("state").and_then(Value::as_str).unwrap_or_default();
            let share = rollout.get("share").and_then(Value::as_f64).unwrap_or_default();
            output::print_line(&format!(
                "endpoint/{}: the rollout is {state}, its share {share} %",
                arguments.endpoint
            ))
        }
    }
}

#[derive(Args)]
pub struct RollbackArguments {
    /// Endpoint
    endpoint: String,
    #[command(flatten)]
    waiting: WaitArguments,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Brings back what an endpoint served before.
pub async fn roll_back(arguments: &RollbackArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let segments = ["endpoints", arguments.endpoint.as_str(), "rollback"];
    let mut endpoint = client.send(client.project_request(Method::POST, &segments)?).await?;
    let stable = stable_versions(&endpoint);
    if arguments.waiting.wait {
        let waiting = Waiting {
            client: &client,
            endpoint: &arguments.endpoint,
            wanted: &stable,
            timeout: arguments.waiting.timeout,
            format: arguments.connection.server.output,
            is_rollback: true,
        };
        endpoint = waiting.until_ready().await?;
    }
    match arguments.connection.server.output {
        Format::Json => output::print_json(&endpoint),
        Format::Text => output::print_line(&format!("endpoint/{} is back at {stable}", arguments.endpoint)),
    }
}

/// The versions that an endpoint serves, in words.
fn stable_versions(endpoint: &Value) -> String {
    let routes = endpoint.pointer("/traffic/stable").and_then(Value::as_array);
    let version = |route: &Value| {
        let model = route.get("model")?.as_str()?;
        Some(format!("{model}/{}", route.get("version")?.as_u64()?))
    };
    let versions: Vec<String> = routes.into_iter().flatten().filter_map(version).collect();
    versions.join(", ")
}

/// A wait for the gateways to serve what an endpoint shall.
struct Waiting<'a> {
    client: &'a Client,
    endpoint: &'a str,
    wanted: &'a str,
    timeout: Duration,
    format: Format,
    /// What was refused is what it is about.
    is_rollback: bool,
}

/// How what an endpoint is to serve stands.
#[derive(PartialEq, Eq)]
enum Rollout {
    /// It serves.
    None,
    UnderWay,
    Refused,
}

fn rollout_of(endpoint: &Value) -> Rollout {
    match endpoint.pointer("/traffic/candidate/rejected").and_then(Value::as_bool) {
        None => Rollout::None,
        Some(false) => Rollout::UnderWay,
        Some(true) => Rollout::Refused,
    }
}

impl Waiting<'_> {
    async fn until_ready(&self) -> anyhow::Result<Value> {
        let bar = output::progress(self.format, "{spinner} {msg}", 0);
        bar.enable_steady_tick(LOOK_INTERVAL);
        bar.set_message("waiting for the gateways");
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            let endpoint = self.client.get(&["endpoints", self.endpoint]).await?;
            let rollout = rollout_of(&endpoint);
            let is_ready = endpoint.pointer("/status/ready").and_then(Value::as_bool) == Some(true);
            if is_ready && rollout != Rollout::UnderWay {
                bar.finish_and_clear();
                if rollout == Rollout::Refused && !self.is_rollback {
                    bail!(
                        "endpoint `{}` does not serve {}: it was refused, see `modelyard get rollouts`",
                        self.endpoint,
                        self.wanted
                    );
                }
                return Ok(endpoint);
            }
            if is_ready {
                bar.set_message("the rollout is under way");
            }
            if let Some(failure) = failed_route(&endpoint) {
                bail!("endpoint `{}` cannot serve {}: {failure}", self.endpoint, self.wanted);
            }
            if tokio::time::Instant::now() >= deadline {
                bail!(
                    "endpoint `{}` does not serve {} after {}: {}",
                    self.endpoint,
                    self.wanted,
                    humantime::format_duration(self.timeout),
                    unresolved(&endpoint).unwrap_or("no gateway has reported that it is ready")
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Why a live route failed on a node that reports on the endpoint as it is now.
fn failed_route(endpoint: &Value) -> Option<&str> {
    let nodes = endpoint.pointer("/status/nodes")?.as_array()?;
    let routes = nodes.iter().filter_map(|node| node.get("routes")?.as_array()).flatten();
    let mut failed = routes.filter(|route| route.get("state").and_then(Value::as_str) == Some("failed"));
    failed.find_map(|route| route.get("message")?.as_str())
}

/// Why a reference of the endpoint points at nothing.
fn unresolved(endpoint: &Value) -> Option<&str> {
    let routes = endpoint.get("resolved")?.as_array()?;
    routes
        .iter()
        .filter_map(|route| route.get("unresolved")?.as_str())
        .find(|why| !why.is_empty())
}
