//! `run`.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    ConnectionArguments, UsageError,
    client::Client,
    output::{self, Format},
    resource,
};

/// How often `--wait` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct RunArguments {
    /// Pipeline, or a YAML file that has it
    #[arg(value_name = "PIPELINE[.yaml]")]
    pipeline: String,
    /// Parameter of the run
    #[arg(short, long = "parameter", value_name = "KEY=VALUE")]
    parameters: Vec<String>,
    /// Wait until the run has ended; exit code 1 when it failed
    #[arg(long)]
    wait: bool,
    /// Names this run: saying the same again gives the run that was started first
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

pub async fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let parameters = parse_parameters(&arguments.parameters)?;
    let client = arguments.connection.client()?;
    let path = Path::new(&arguments.pipeline);
    let is_file = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml");
    let name = if is_file {
        resource::apply_pipeline(&arguments.connection, path).await?
    } else {
        arguments.pipeline.clone()
    };
    let request = client.project_request(Method::POST, &["pipelines", &name, "runs"])?;
    let body = json!({ "parameters": parameters, "idempotency_key": arguments.key });
    let mut run = client.send(request.json(&body)).await?;
    let id = run
        .get("id")
        .and_then(Value::as_str)
        .context("the server gave no id")?
        .to_owned();
    let format = arguments.connection.server.output;
    if arguments.wait {
        run = wait(&client, &id, format).await?;
    }
    match format {
        Format::Json => output::print_json(&run)?,
        Format::Text if arguments.wait => output::print_line(&summary(&run))?,
        Format::Text => output::print_line(&format!("pipeline-run/{id} started"))?,
    }
    let status = run.get("status").and_then(Value::as_str).unwrap_or("unknown");
    if arguments.wait && status != "succeeded" {
        let why = run.get("error").and_then(Value::as_str).unwrap_or("see its steps");
        bail!("pipeline run {id} of `{name}` {status}: {why}");
    }
    Ok(())
}

/// Values are read as JSON scalars where they are such, else as text.
fn parse_parameters(parameters: &[String]) -> anyhow::Result<Map<String, Value>> {
    let mut parsed = Map::new();
    for parameter in parameters {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(UsageError(format!("`{parameter}` is no parameter: write it as key=value")).into());
        };
        let value = match serde_json::from_str::<Value>(value) {
            Ok(scalar) if !scalar.is_object() && !scalar.is_array() => scalar,
            _ => json!(value),
        };
        if parsed.insert(key.to_owned(), value).is_some() {
            return Err(UsageError(format!("the parameter `{key}` is given twice")).into());
        }
    }
    Ok(parsed)
}

async fn wait(client: &Client, id: &str, format: Format) -> anyhow::Result<Value> {
    let bar = output::progress(format, "{spinner} {wide_msg}", 0);
    bar.enable_steady_tick(LOOK_INTERVAL);
    loop {
        let run = client.get(&["pipeline-runs", id]).await?;
        show(&bar, &run);
        if let Some("succeeded" | "failed" | "cancelled") = run.get("status").and_then(Value::as_str) {
            bar.finish_and_clear();
            return Ok(run);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn steps(run: &Value) -> impl Iterator<Item = &Value> {
    run.get("steps").and_then(Value::as_array).into_iter().flatten()
}

fn show(bar: &ProgressBar, run: &Value) {
    let running = steps(run).find(|step| step.get("status").and_then(Value::as_str) == Some("running"));
    let Some(step) = running else { return };
    let name = step.get("name").and_then(Value::as_str).unwrap_or_default();
    let progress = step.get("progress");
    let message = progress
        .and_then(|progress| progress.get("message")?.as_str())
        .unwrap_or_default();
    let count = |key| {
        progress
            .and_then(|progress| progress.get(key)?.as_u64())
            .unwrap_or_default()
    };
    bar.set_message(format!("{name}: {message} {}/{}", count("done"), count("total")));
}

fn summary(run: &Value) -> String {
    let text = |step: &Value, key: &str| step.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let rows = steps(run).map(|step| {
        vec![
            text(step, "name"),
            text(step, "op"),
            text(step, "status"),
            text(step, "error"),
        ]
    });
    output::table(&["step", "op", "status", "error"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_types() {
        let parsed =
            parse_parameters(&["a=1".into(), "b=true".into(), "c=flights@latest".into(), "d=[1]".into()]).unwrap();
        assert_eq!(
            Value::Object(parsed),
            json!({"a": 1, "b": true, "c": "flights@latest", "d": "[1]"})
        );
        assert!(parse_parameters(&["a".into()]).is_err());
        assert!(parse_parameters(&["a=1".into(), "a=2".into()]).is_err());
    }
}
