//! Tensors of 10 MB there and back, beside a handler that copies the body once.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::{
    gateway::Gateway,
    messages,
    models::{INPUT, scale},
};
use crate::{
    bare_server::BareServer,
    figures::{Ratio, median},
    load::{Load, Message, in_turns},
    wire,
};

/// The endpoint.
const ENDPOINT: &str = "large";
/// The elements of a tensor: 10 MB of FP32.
const ELEMENTS: usize = 2_500_000;
/// Connections that load both servers.
const CONNECTIONS: usize = 4;
/// How often each server has its turn, and for how long.
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_secs(2);

/// What came out: medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Large {
    /// The gateway's requests per second over those of the bare handler.
    pub throughput: Ratio,
    /// Requests per second.
    pub requests_per_second: f64,
    /// CPU time a request of the gateway and of the bare handler, in milliseconds.
    pub cpu_ms: [f64; 2],
    /// Requests that the gateway refused.
    pub failed_requests: u64,
}

/// Measures it. Nothing is logged: nobody keeps tensors of this size in a log.
pub async fn measure(folder: &Path) -> Result<Large> {
    let gateway = Gateway::start(folder, ENDPOINT, Vec::new()).await?;
    let further = json!({"log": {"predictions": false}});
    gateway.serve(ENDPOINT, &scale(ELEMENTS, 1.0), further).await?;
    let values: Vec<f32> = (0..ELEMENTS).map(|place| place as f32).collect();
    let request = messages::binary_floats(ENDPOINT, INPUT, &[1, ELEMENTS], &values);
    wire::exchange(gateway.subject.address, &request).await?;
    // It answers with what it got, whatever the file says.
    let bare = BareServer::start(&["bare-model", "copy", "none"]).await?;
    let load = Load {
        connections: CONNECTIONS,
        turn: TURN,
        message: Message::Http(request.into()),
    };
    let (mut throughput, mut rates, mut failed_requests) = (Vec::new(), Vec::new(), 0);
    let mut cpu = [Vec::new(), Vec::new()];
    // The first round warms both up and does not count.
    for round in 0..=ROUNDS {
        let (ours, theirs) = in_turns(gateway.subject, bare.subject, &load, round).await?;
        failed_requests += ours.failed;
        if round > 0 {
            throughput.push(ours.rate() / theirs.rate());
            rates.push(ours.rate());
            let [our_cpu, their_cpu] = &mut cpu;
            our_cpu.push(ours.server_cpu_us() / 1e3);
            their_cpu.push(theirs.server_cpu_us() / 1e3);
        }
    }
    gateway.stop().await?;
    Ok(Large {
        throughput: Ratio::of(throughput),
        requests_per_second: median(&rates),
        cpu_ms: cpu.map(|each| median(&each)),
        failed_requests,
    })
}
