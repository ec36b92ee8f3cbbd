//! The server's memory under requests of many shapes.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    gateway::Gateway,
    messages,
    models::{FEATURES, INPUT, MAX_LENGTH, TOKENS, VOCABULARY, encoder, gradient_boosted},
};
use crate::{figures::median, load::Subject, process::resident_bytes, wire::Connection};

/// The endpoints: rows of one width, and sequences of any length.
const ROWS: &str = "rows";
const SEQUENCES: &str = "sequences";
/// The most rows of a request.
const MAX_ROWS: usize = 64;
/// Connections; every other one sends sequences.
const CONNECTIONS: usize = 16;
/// How often the memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Of so many parts of the time each is told by its median, because memory goes up and down with the log's files.
const PARTS: usize = 12;

/// What came out.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// How long it went on, in seconds.
    pub seconds: f64,
    /// Requests that were answered.
    pub requests: u64,
    /// Resident memory in each twelfth of the time.
    pub bytes: Vec<f64>,
    /// The last one over that at the end of the first third.
    pub growth: f64,
    /// Requests that the server refused.
    pub failed_requests: u64,
}

/// Measures it.
pub async fn measure(folder: &Path, time: Duration) -> Result<Memory> {
    let gateway = Gateway::start(folder, "memory", Vec::new()).await?;
    gateway.serve(ROWS, &gradient_boosted(), json!({})).await?;
    // What sequences are filled up with is left out by the model, so those of unlike lengths may be merged.
    let ragged = json!({"batching": {"ragged": [{"tensor": TOKENS, "axis": 1, "fill": 0}]}});
    gateway.serve(SEQUENCES, &encoder(), ragged).await?;
    let rows: Arc<[Vec<u8>]> = rows().into();
    let sequences: Arc<[Vec<u8>]> = sequences().into();
    let mut connections = JoinSet::new();
    let started = Instant::now();
    for connection in 0..CONNECTIONS {
        let requests = Arc::clone(if connection % 2 == 0 { &rows } else { &sequences });
        let random = StdRng::seed_from_u64(connection as u64);
        connections.spawn(send(gateway.subject.address, requests, random, started + time));
    }
    let looks = look(gateway.subject, started, time).await?;
    let (mut requests, mut failed_requests) = (0, 0);
    while let Some(ended) = connections.join_next().await {
        let (answered, refused) = ended.context("a connection's task ended early")??;
        requests += answered;
        failed_requests += refused;
    }
    gateway.stop().await?;
    let bytes: Vec<f64> = looks.chunks(looks.len().div_ceil(PARTS).max(1)).map(median).collect();
    let third = bytes.get(PARTS / 3 - 1).context("the time was too short")?;
    Ok(Memory {
        seconds: time.as_secs_f64(),
        requests,
        growth: bytes.last().unwrap_or(third) / third,
        bytes,
        failed_requests,
    })
}

/// The memory until the time is over.
async fn look(subject: Subject, started: Instant, time: Duration) -> Result<Vec<f64>> {
    let mut looks = Vec::new();
    while started.elapsed() < time {
        sleep(LOOK_INTERVAL).await;
        looks.push(resident_bytes(subject.pid)? as f64);
    }
    Ok(looks)
}

/// Requests of each number of rows.
fn rows() -> Vec<Vec<u8>> {
    let request = |rows: usize| {
        let values: Vec<f32> = (0..rows * FEATURES).map(|place| (place % 97) as f32 / 97.0).collect();
        messages::binary_floats(ROWS, INPUT, &[rows, FEATURES], &values)
    };
    (1..=MAX_ROWS).map(request).collect()
}

/// Requests of each length.
fn sequences() -> Vec<Vec<u8>> {
    let request = |length: usize| {
        let token = |place: usize| 1 + (length * 31 + place * 7) as i64 % (VOCABULARY - 1);
        let values: Vec<i64> = (0..length).map(token).collect();
        messages::binary_numbers(SEQUENCES, TOKENS, &[1, length], &values)
    };
    (1..=MAX_LENGTH).map(request).collect()
}

/// Sends any of the requests again and again; gives how many were answered well, and the others.
async fn send(address: SocketAddr, requests: Arc<[Vec<u8>]>, mut random: StdRng, end: Instant) -> Result<(u64, u64)> {
    let mut connection = Connection::open(address).await?;
    let (mut answered, mut refused) = (0, 0);
    while Instant::now() < end {
        let request = requests.get(random.random_range(0..requests.len()));
        let status = connection.ask(request.context("there is no request")?).await?;
        if status == 200 {
            answered += 1;
        } else {
            refused += 1;
        }
    }
    Ok((answered, refused))
}
