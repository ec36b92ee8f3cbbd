//! The operations of tracking: requests per second, and the server's CPU time for each.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::{
    CONNECTIONS,
    requests::{API, Connection},
};
use crate::{complain, load::Subject, process::cpu_seconds};

/// How long each operation is asked for.
const TURN: Duration = Duration::from_secs(4);

/// One operation of one server.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Over all connections.
    pub requests_per_second: f64,
    /// Of the server and what it started.
    pub cpu_ms_per_request: f64,
}

/// What is sent: by connection and number.
type Message = fn(&[String], usize, u64) -> (String, Value);

const OPERATIONS: [(&str, Message); 5] = [
    ("create run", |_, _, number| {
        (
            format!("POST {API}/runs/create"),
            json!({"experiment_id": "0", "start_time": 1_700_000_000_000_u64 + number}),
        )
    }),
    ("log metric", |runs, connection, number| {
        let metric = json!({"run_id": runs[connection], "key": "loss", "value": 0.5, "timestamp": 1000 + number, "step": number});
        (format!("POST {API}/runs/log-metric"), metric)
    }),
    ("log parameter", |runs, connection, number| {
        let param = json!({"run_id": runs[connection], "key": format!("p{number}"), "value": "1"});
        (format!("POST {API}/runs/log-parameter"), param)
    }),
    ("get run", |runs, connection, _| {
        // Runs of their own: those that log have long lists.
        let run_id = &runs[CONNECTIONS + connection];
        (format!("GET {API}/runs/get?run_id={run_id}"), Value::Null)
    }),
    ("log batch of 1000 metrics", |runs, connection, number| {
        let first = number * 1000;
        let metrics: Vec<Value> = (first..first + 1000)
            .map(|step| json!({"key": format!("b{}", step % 10), "value": 0.5, "timestamp": step, "step": step}))
            .collect();
        let batch = json!({"run_id": runs[2 * CONNECTIONS + connection], "metrics": metrics});
        (format!("POST {API}/runs/log-batch"), batch)
    }),
];

async fn measure(subject: &Subject, message: Message, runs: &[String]) -> Result<Measured> {
    let before = cpu_seconds(subject.pid)?;
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (address, runs) = (subject.address, runs.to_vec());
        connections.spawn(async move {
            let mut kept = Connection::open(address).await?;
            let mut number = 0;
            while started.elapsed() < TURN {
                let (line, body) = message(&runs, connection, number);
                kept.ask_bytes(&line, &body).await?;
                number += 1;
            }
            anyhow::Ok(number)
        });
    }
    let mut requests = 0;
    while let Some(ended) = connections.join_next().await {
        requests += ended??;
    }
    let requests = requests as f64;
    Ok(Measured {
        requests_per_second: requests / started.elapsed().as_secs_f64(),
        cpu_ms_per_request: (cpu_seconds(subject.pid)? - before) * 1000.0 / requests,
    })
}

/// Measures every operation of a server.
pub async fn measure_all(subject: &Subject) -> Result<BTreeMap<&'static str, Measured>> {
    let mut connection = Connection::open(subject.address).await?;
    let mut runs = Vec::new();
    for _ in 0..3 * CONNECTIONS {
        runs.push(connection.new_run("0").await?);
    }
    let mut all = BTreeMap::new();
    for (name, message) in OPERATIONS {
        complain(&format!("  {name}"));
        all.insert(name, measure(subject, message, &runs).await?);
    }
    Ok(all)
}
