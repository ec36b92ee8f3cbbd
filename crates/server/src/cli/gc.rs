//! `gc`, `quota`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use modelyard_common::config::size;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, UsageError,
    client::{Client, Level},
    output::{self, Format},
};

/// How often is looked how far a collection is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The most objects that are told one by one.
const MAX_TOLD: usize = 1000;

#[derive(Args)]
pub struct GcArguments {
    /// Collect in every project
    #[arg(long, conflicts_with_all = ["project", "runs", "experiments", "logged_models"])]
    all_projects: bool,
    /// Only what was deleted longer ago, such as 30d or 7d4h [default: 30d; 0s for what is named]
    #[arg(long, value_name = "AGE")]
    older_than: Option<String>,
    /// Keep content that nothing names and that was stored later than this ago [default: 48h]
    #[arg(long, value_name = "AGE")]
    blob_grace: Option<String>,
    /// Only this run, which is deleted
    #[arg(long = "run", value_name = "ID")]
    runs: Vec<String>,
    /// Only this experiment, which is deleted, with all that is in it; its name is free again
    #[arg(long = "experiment", value_name = "ID")]
    experiments: Vec<String>,
    /// Only this logged model, which is deleted
    #[arg(long = "logged-model", value_name = "ID")]
    logged_models: Vec<String>,
    /// Tell what would be freed, and free nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: ConnectionArguments,
}

#[derive(Args)]
pub struct QuotaArguments {
    /// Let the project store at most this much, such as 50GiB
    #[arg(long, value_name = "SIZE", conflicts_with = "no_limit")]
    limit: Option<String>,
    /// Let the project store as much as there is room for
    #[arg(long)]
    no_limit: bool,
    #[command(flatten)]
    connection: ConnectionArguments,
}

pub async fn run(arguments: &GcArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let format = arguments.connection.server.output;
    let started = start(arguments, &client).await?;
    let mut ended = Vec::with_capacity(started.len());
    for collection in &started {
        ended.push(wait(&client, collection, format).await?);
    }
    match format {
        Format::Json if arguments.all_projects => output::print_json(&json!({ "items": ended }))?,
        Format::Json => output::print_json(&ended.first())?,
        Format::Text => {
            for collection in &ended {
                print(&client, collection).await?;
            }
        }
    }
    let failed = ended.iter().find(|collection| text(collection, "state") != "finished");
    if let Some(failed) = failed {
        bail!(
            "collection {} of project `{}` failed: {}",
            text(failed, "id"),
            text(failed, "project"),
            text(failed, "error")
        );
    }
    Ok(())
}

/// Starts the collections.
async fn start(arguments: &GcArguments, client: &Client) -> anyhow::Result<Vec<Value>> {
    let request = json!({
        "older_than": arguments.older_than,
        "blob_grace": arguments.blob_grace,
        "run_ids": arguments.runs,
        "experiment_ids": arguments.experiments,
        "logged_model_ids": arguments.logged_models,
        "dry_run": arguments.dry_run,
    });
    if !arguments.all_projects {
        let post = client.project_request(Method::POST, &["gc"])?;
        return Ok(vec![client.send(post.json(&request)).await?]);
    }
    let post = client.installation_request(Method::POST, &["gc"])?;
    let mut answer = client.send(post.json(&request)).await?;
    match answer.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => bail!("the answer is not a list: is the server of another version?"),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

async fn wait(client: &Client, started: &Value, format: Format) -> anyhow::Result<Value> {
    let (project, id) = (text(started, "project"), text(started, "id"));
    let bar = output::progress(format, "{spinner} {wide_msg}", 0);
    bar.enable_steady_tick(LOOK_INTERVAL);
    loop {
        let segments = ["projects", project, "gc", id];
        let collection = client.get_at(Level::Installation, &segments).await?;
        if text(&collection, "state") != "running" {
            bar.finish_and_clear();
            return Ok(collection);
        }
        bar.set_message(format!(
            "{project}: {} {}",
            text(&collection, "phase"),
            in_words(&collection)
        ));
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn counts(collection: &Value) -> impl Iterator<Item = &Value> {
    collection.get("freed").and_then(Value::as_array).into_iter().flatten()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn in_words(collection: &Value) -> String {
    let words: Vec<_> = counts(collection)
        .map(|count| format!("{} {}", number(count, "count"), text(count, "kind")))
        .collect();
    words.join(", ")
}

/// Tells what a collection freed, and what stays and why.
async fn print(client: &Client, collection: &Value) -> anyhow::Result<()> {
    let (project, id) = (text(collection, "project"), text(collection, "id"));
    let is_dry = collection.pointer("/request/dry_run").and_then(Value::as_bool) == Some(true);
    let done = if is_dry { "would be freed" } else { "freed" };
    let rows: Vec<_> = counts(collection)
        .map(|count| {
            vec![
                text(count, "kind").to_owned(),
                number(count, "count").to_string(),
                number(count, "size_bytes").to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        output::print_line(&format!("{project}: nothing {done}"))?;
    } else {
        output::print_line(&format!("{project}: {done}"))?;
        output::print_line(&output::table(&["kind", "count", "bytes"], rows))?;
    }
    if number(collection, "kept") > 0 {
        let segments = ["projects", project, "gc", id, "objects"];
        let kept = [("outcome", "kept")];
        let objects = client
            .list_at(Level::Installation, &segments, &kept, Some(MAX_TOLD))
            .await?;
        for object in &objects {
            output::print_line(&format!(
                "kept {}/{}: {}",
                text(object, "kind"),
                text(object, "id"),
                text(object, "reason")
            ))?;
        }
    }
    output::print_line(&format!("record {id}, list {}", text(collection, "list_digest")))
}

pub async fn quota(arguments: &QuotaArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let limit = match (&arguments.limit, arguments.no_limit) {
        (Some(limit), _) => Some(Some(parse_size(limit)?)),
        (None, true) => Some(None),
        (None, false) => None,
    };
    let quota = match limit {
        None => client.get(&["quota"]).await?,
        Some(limit) => {
            let put = client.project_request(Method::PUT, &["quota"])?;
            client.send(put.json(&json!({ "limit_bytes": limit }))).await?
        }
    };
    if arguments.connection.server.output == Format::Json {
        return output::print_json(&quota);
    }
    let used = quota.get("used_bytes").and_then(Value::as_u64);
    let used = used.context("the server gave no usage")?;
    let limit = quota.get("limit_bytes").and_then(Value::as_u64);
    output::print_line(&output::facts(&[
        ("used", format!("{used} bytes")),
        (
            "limit",
            limit.map_or_else(|| "none".to_owned(), |limit| format!("{limit} bytes")),
        ),
    ]))
}

fn parse_size(text: &str) -> anyhow::Result<u64> {
    size::deserialize(Value::from(text)).map_err(|error| UsageError(format!("--limit: {error}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_the_configuration() {
        assert_eq!(parse_size("50GiB").unwrap(), 50 << 30);
        assert_eq!(parse_size("1000").unwrap(), 1000);
        assert!(parse_size("much").is_err());
    }

    #[test]
    fn progress_tells_what_was_freed_so_far() {
        let collection = json!({"freed": [{"kind": "run", "count": 2, "size_bytes": 0}, {"kind": "blob", "count": 3, "size_bytes": 9}]});
        assert_eq!(in_words(&collection), "2 run, 3 blob");
    }
}
