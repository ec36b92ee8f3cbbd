//! What was acknowledged is there, once, whenever the server was killed.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::Client;
use serde_json::{Value, json};

use crate::deployment::{Deployment, Engine, Topology};

/// How many write at the same time.
const WRITERS: u64 = 8;
/// How often the server is killed.
const KILLS: usize = 12;
/// The longest time between two kills, in milliseconds.
const CALM: u64 = 400;
const SEED: u64 = 7;

async fn call(http: &Client, url: &str, path: &str, body: &Value) -> Result<Value> {
    let answer = http
        .post(format!("{url}/api/2.0/mlflow/{path}"))
        .json(body)
        .send()
        .await?;
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.is_success(), "{path}: {status} {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Logs step after step, and notes which were acknowledged. One that was not is tried again until it is.
async fn write(http: Client, url: String, run_id: String, stop: Arc<AtomicBool>, known: Arc<Mutex<BTreeSet<u64>>>) {
    let mut step = 0;
    while !stop.load(Ordering::Relaxed) {
        let metric = json!({"run_id": run_id, "key": "m", "value": step, "timestamp": 1000 + step, "step": step});
        if call(&http, &url, "runs/log-metric", &metric).await.is_ok() {
            known.lock().unwrap_or_else(PoisonError::into_inner).insert(step);
            step += 1;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

async fn killed_while_many_write(engine: Engine) -> Result<()> {
    let mut deployment = Deployment::start(Topology::AllInOne, engine).await?;
    let url = deployment.url().to_owned();
    let http = Client::builder().timeout(Duration::from_secs(20)).build()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let made = call(&http, &url, "runs/create", &json!({})).await?;
        let run_id = made.pointer("/run/info/run_id").and_then(Value::as_str);
        let run_id = run_id.context("the run has no id")?.to_owned();
        let known = Arc::new(Mutex::new(BTreeSet::new()));
        let writing = write(http.clone(), url.clone(), run_id.clone(), stop.clone(), known.clone());
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        writers.push((run_id, known, tokio::spawn(writing)));
    }
    let mut random = StdRng::seed_from_u64(SEED);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.random_range(1..CALM))).await;
        deployment.kill(0)?;
        deployment.restart(0).await?;
    }
    stop.store(true, Ordering::Relaxed);
    for (run_id, known, writing) in writers {
        writing.await?;
        let known = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let path = format!("{url}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=m");
        let history: Value = http.get(path).send().await?.json().await?;
        let points = history.get("metrics").and_then(Value::as_array).context("no history")?;
        let steps: Vec<u64> = points.iter().filter_map(|point| point.get("step")?.as_u64()).collect();
        let once: BTreeSet<u64> = steps.iter().copied().collect();
        ensure!(
            once.len() == steps.len(),
            "a step of {run_id} is there twice: {steps:?}"
        );
        let lost: Vec<_> = known.difference(&once).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: steps {lost:?} of {run_id}");
        ensure!(known.len() > KILLS, "only {} steps were written", known.len());
    }
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_metric_survives_kills_on_sqlite() -> Result<()> {
    killed_while_many_write(Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_metric_survives_kills_on_postgresql() -> Result<()> {
    killed_while_many_write(Engine::Postgres).await
}
