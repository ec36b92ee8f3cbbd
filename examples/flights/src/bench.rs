//! `flights bench`: the gateway beside a bare axum handler that parses and answers the same bytes, in one run.
//!
//! Both servers are processes of their own and get the same load in turns, so that what else the machine does hits both.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{Json, Router, extract::State, routing::post};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    bare_server::{BareServer, serve},
    figures::{Ratio, median},
    load::{Load, Message, Subject, in_turns},
    wire,
};

/// Connections that send one request after the other.
const CONNECTIONS: usize = 16;

/// How often each server has its turn.
const ROUNDS: usize = 5;

/// How long a turn takes.
const TURN: Duration = Duration::from_secs(3);

/// Medians over the rounds.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Comparison {
    /// Requests per second of the gateway over those of the bare handler.
    pub throughput: Ratio,
    /// Server CPU time a request of the gateway over that of the bare handler.
    pub cpu_ratio: f64,
    /// Requests that were not answered with 200.
    pub failed_requests: u64,
}

/// Loads the gateway and a bare handler in turns with a request in JSON, and compares them.
pub async fn compare(gateway: Subject, path: &str, body: &str) -> Result<Comparison> {
    let request = wire::post(path, &[("content-type", "application/json")], body.as_bytes());
    let answer = wire::exchange(gateway.address, &request).await?;
    let answer = String::from_utf8(answer.body).context("the answer is not text")?;
    let bare = BareServer::start(&["bare-handler", &answer]).await?;
    let load = Load {
        connections: CONNECTIONS,
        turn: TURN,
        message: Message::Http(request.into()),
    };
    let (mut throughput, mut cpu, mut failed_requests) = (Vec::new(), Vec::new(), 0);
    // The first round warms both up and does not count.
    for round in 0..=ROUNDS {
        let (ours, theirs) = in_turns(gateway, bare.subject, &load, round).await?;
        if round > 0 {
            failed_requests += ours.failed;
            throughput.push(ours.rate() / theirs.rate());
            cpu.push(ours.server_cpu_us() / theirs.server_cpu_us());
        }
    }
    Ok(Comparison {
        throughput: Ratio::of(throughput),
        cpu_ratio: median(&cpu),
        failed_requests,
    })
}

/// A request in the Open Inference Protocol's JSON form, as a handler without a library would declare it.
#[derive(Deserialize)]
struct BareRequest {
    #[expect(dead_code, reason = "parsed like the gateway's, and not used")]
    id: Option<String>,
    inputs: Vec<BareTensor>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsed like the gateway's, and not used")]
struct BareTensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    data: Vec<Value>,
}

/// Serves the bare handler: it parses every request into types and answers with the same value each time, serialized anew.
pub async fn serve_bare_handler(answer: &str, announce: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let answer: Value = serde_json::from_str(answer).context("the answer is not JSON")?;
    let router = Router::new()
        .route("/v2/models/{name}/infer", post(bare_handler))
        .with_state(Arc::new(answer));
    serve(router, announce).await
}

async fn bare_handler(State(answer): State<Arc<Value>>, Json(request): Json<BareRequest>) -> Json<Value> {
    if request.inputs.is_empty() {
        return Json(Value::Null);
    }
    Json((*answer).clone())
}
