//! A long metric history: logged, drawn, and read whole.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::{
    CONNECTIONS,
    requests::{API, Connection},
};
use crate::{figures::median, load::Subject, process::resident_bytes};

/// The metric that has the history.
const KEY: &str = "loss";
/// The points of one batch.
const BATCH: usize = 1000;
/// The steps of a chart.
const CHART_STEPS: usize = 320;
/// How often the chart is asked for.
const CHARTS: usize = 21;
/// How long the whole history may take.
const READ_PATIENCE: Duration = Duration::from_mins(5);
/// After how many bytes of the history the server's memory is looked at.
const LOOK_BYTES: u64 = 1 << 20;

/// A history that was read whole.
#[derive(Debug, Serialize)]
pub struct WholeHistory {
    /// What was read.
    pub points: usize,
    /// The size of the answer.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// The server's resident memory before.
    pub memory_before_bytes: u64,
    /// The most that it was seen to have while it answered.
    pub memory_peak_bytes: u64,
}

/// Logs one point at each step, in batches over several connections; gives the run.
pub async fn log(address: SocketAddr, points: usize) -> Result<String> {
    let run_id = Connection::open(address).await?.new_run("0").await?;
    let mut writers = JoinSet::new();
    for writer in 0..CONNECTIONS {
        writers.spawn(write(address, run_id.clone(), writer, points));
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(run_id)
}

/// Logs every batch that is a writer's.
async fn write(address: SocketAddr, run_id: String, writer: usize, points: usize) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    let line = format!("POST {API}/runs/log-batch");
    for first in (writer * BATCH..points).step_by(CONNECTIONS * BATCH) {
        let metrics: Vec<Value> = (first..points.min(first + BATCH))
            .map(|step| {
                let value = 1.0 / (1.0 + step as f64);
                json!({"key": KEY, "value": value, "timestamp": 1_700_000_000_000 + step, "step": step})
            })
            .collect();
        connection
            .ask_bytes(&line, &json!({"run_id": run_id, "metrics": metrics}))
            .await?;
    }
    Ok(())
}

/// Asks for the points of a chart; the median, in milliseconds.
pub async fn chart(address: SocketAddr, run_id: &str, points: usize) -> Result<f64> {
    let line = format!(
        "GET {API}/metrics/get-history-bulk-interval?run_ids={run_id}&metric_key={KEY}&max_results={CHART_STEPS}"
    );
    let mut connection = Connection::open(address).await?;
    let mut took = Vec::new();
    for _ in 0..CHARTS {
        let started = Instant::now();
        let answer = connection.ask(&line, &Value::Null).await?;
        took.push(started.elapsed().as_secs_f64() * 1000.0);
        let drawn = answer.get("metrics").and_then(Value::as_array).map_or(0, Vec::len);
        let least = points.min(CHART_STEPS / 2);
        ensure!(
            drawn >= least,
            "the chart has {drawn} points instead of {least} at least"
        );
    }
    Ok(median(&took))
}

/// Reads a history whole, as MLflow's client asks for it, and looks at the server's memory meanwhile.
pub async fn read_whole(subject: Subject, run_id: &str, points: usize) -> Result<WholeHistory> {
    let http = reqwest::Client::builder().timeout(READ_PATIENCE).build()?;
    let url = format!(
        "http://{}{API}/metrics/get-history?run_id={run_id}&run_uuid={run_id}&metric_key={KEY}",
        subject.address
    );
    let memory_before_bytes = resident_bytes(subject.pid)?;
    let started = Instant::now();
    let mut answer = http.get(url).send().await?.error_for_status()?;
    let (mut objects, mut bytes, mut looked_at) = (0, 0, 0);
    let mut memory_peak_bytes = memory_before_bytes;
    while let Some(piece) = answer.chunk().await.context("the history broke off")? {
        objects += piece.split(|byte| *byte == b'{').count() - 1;
        bytes += piece.len() as u64;
        if bytes - looked_at >= LOOK_BYTES {
            looked_at = bytes;
            memory_peak_bytes = memory_peak_bytes.max(resident_bytes(subject.pid)?);
        }
    }
    // Every point is an object, and the answer that holds them is one.
    let read = objects.saturating_sub(1);
    ensure!(read == points, "the history has {read} points instead of {points}");
    Ok(WholeHistory {
        points: read,
        bytes,
        seconds: started.elapsed().as_secs_f64(),
        memory_before_bytes,
        memory_peak_bytes,
    })
}
