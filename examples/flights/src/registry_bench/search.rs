//! The search over many runs.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::requests::{API, Connection};
use crate::figures::median;

/// Connections that make the runs: many, so that they share commits.
const WRITERS: usize = 32;
/// How often the search is asked for.
const SEARCHES: usize = 21;
/// The runs of a page.
const PAGE: usize = 100;
/// The metrics of each run that is searched.
const METRICS: usize = 10;

/// Makes runs with metrics, and asks for the first page of a search that filters by one metric and orders by another. The
/// median, in milliseconds.
pub async fn search(address: SocketAddr, runs: usize) -> Result<f64> {
    let mut connection = Connection::open(address).await?;
    let made = connection
        .ask(&format!("POST {API}/experiments/create"), &json!({"name": "searched"}))
        .await?;
    let experiment = made
        .get("experiment_id")
        .and_then(Value::as_str)
        .context("the experiment has no id")?
        .to_owned();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(address, experiment.clone(), writer, runs));
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let query = json!({
        "experiment_ids": [experiment],
        "filter": "metrics.m1 > 0.5",
        "order_by": ["metrics.m0 DESC"],
        "max_results": PAGE,
    });
    let mut took = Vec::new();
    for _ in 0..SEARCHES {
        let started = Instant::now();
        let found = connection.ask(&format!("POST {API}/runs/search"), &query).await?;
        took.push(started.elapsed().as_secs_f64() * 1000.0);
        let found = found.get("runs").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(
            (PAGE.min(runs / 3)..=PAGE).contains(&found),
            "the search found {found} runs"
        );
    }
    Ok(median(&took))
}

/// Makes every run that is a writer's.
async fn write(address: SocketAddr, experiment: String, writer: usize, runs: usize) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    let line = format!("POST {API}/runs/log-batch");
    for number in (writer..runs).step_by(WRITERS) {
        let run_id = connection.new_run(&experiment).await?;
        let metrics: Vec<Value> = (0..METRICS)
            .map(|metric| {
                let value = (number * (metric + 7919)) % 10_007;
                json!({"key": format!("m{metric}"), "value": value as f64 / 10_007.0, "timestamp": 1, "step": 0})
            })
            .collect();
        connection
            .ask_bytes(&line, &json!({"run_id": run_id, "metrics": metrics}))
            .await?;
    }
    Ok(())
}
