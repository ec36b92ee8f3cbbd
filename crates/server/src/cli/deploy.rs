//! `deploy`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments,
    client::Client,
    output::{self, Format},
};

/// How often `--wait` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct DeployArguments {
    /// Endpoint; made when it does not exist
    endpoint: String,
    /// Model version to serve, or alias to follow
    #[arg(long, value_name = "NAME/VERSION|NAME@ALIAS")]
    model: String,
    /// Wait until the gateways serve it
    #[arg(long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
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
    let endpoint = if arguments.wait {
        wait_until_ready(&client, arguments).await?
    } else {
        applied.get("resource").cloned().unwrap_or(applied)
    };
    match arguments.connection.server.output {
        Format::Json => output::print_json(&endpoint),
        Format::Text if arguments.wait => {
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

async fn wait_until_ready(client: &Client, arguments: &DeployArguments) -> anyhow::Result<Value> {
    let bar = output::progress(arguments.connection.server.output, "{spinner} {msg}", 0);
    bar.enable_steady_tick(LOOK_INTERVAL);
    bar.set_message("waiting for the gateways");
    let deadline = tokio::time::Instant::now() + arguments.timeout;
    loop {
        let endpoint = client.get(&["endpoints", &arguments.endpoint]).await?;
        if endpoint.pointer("/status/ready").and_then(Value::as_bool) == Some(true) {
            bar.finish_and_clear();
            return Ok(endpoint);
        }
        if let Some(failure) = failed_route(&endpoint) {
            bail!(
                "endpoint `{}` cannot serve {}: {failure}",
                arguments.endpoint,
                arguments.model
            );
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "endpoint `{}` does not serve {} after {}: {}",
                arguments.endpoint,
                arguments.model,
                humantime::format_duration(arguments.timeout),
                unresolved(&endpoint).unwrap_or("no gateway has reported that it is ready")
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
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
