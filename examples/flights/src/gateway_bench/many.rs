//! Many endpoints with models of their own, of which a tenth fits into memory: what those that are asked most have of the others.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use modelyard_flights::{Api, Look, Quiet, wait_for};
use modelyard_inference::session_bytes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::{
    gateway::{Gateway, declare, is_ready},
    messages,
    models::{INPUT, scale},
};
use crate::{
    complain,
    figures::{Ratio, median, quantile},
    wire::Connection,
};

/// The share of the models that fits into memory.
const FITTING: f64 = 0.1;
/// Those whose latency is told: asked so often that they stay in memory.
const POPULAR: usize = 5;
/// The width of a model's rows.
const WIDTH: usize = 4;
/// Connections that load the server.
const CONNECTIONS: usize = 16;
/// Connections that register models.
const WRITERS: usize = 16;
/// How often the popular ones are asked alone and beside the others, and for how long.
const ROUNDS: usize = 3;
const ALONE_TURN: Duration = Duration::from_secs(3);
const ALL_TURN: Duration = Duration::from_secs(6);
/// How long it may take until all are ready.
const READY_PATIENCE: Duration = Duration::from_mins(4);
/// The most endpoints of a page.
const PAGE: usize = 1000;

/// What came out.
#[derive(Debug, Serialize)]
pub struct Many {
    /// How many endpoints there are.
    pub models: usize,
    /// How long it took to register them and until all were ready, in seconds.
    pub registered_seconds: f64,
    pub ready_seconds: f64,
    /// p99 of the popular ones beside the others over that without them.
    pub p99: Ratio,
    /// p99 without the others and beside them, in milliseconds; the median over the rounds.
    pub p99_ms: [f64; 2],
    /// p99 of the others, in milliseconds; the median over the rounds.
    pub others_p99_ms: f64,
    /// Requests a second without the others and beside them.
    pub requests_per_second: [f64; 2],
    /// Requests that the server refused.
    pub failed_requests: u64,
}

/// Latencies of a turn, in milliseconds.
#[derive(Default)]
struct Latencies {
    popular: Vec<f64>,
    others: Vec<f64>,
    failed: u64,
}

/// Measures it.
pub async fn measure(folder: &Path, models: usize) -> Result<Many> {
    ensure!(
        models >= POPULAR,
        "{models} models are too few: {POPULAR} of them are told"
    );
    let fitting = (models as f64 * FITTING).ceil() as u64 * session_bytes(model(0).len() as u64);
    let memory = (
        "MODELYARD__GATEWAY__MODEL_MEMORY_BYTES".to_owned(),
        format!("{fitting}B"),
    );
    let gateway = Gateway::start(folder, "many", vec![memory]).await?;
    let started = Instant::now();
    register(&gateway.api, models).await?;
    let registered_seconds = started.elapsed().as_secs_f64();
    complain(&format!("  all registered after {registered_seconds:.1} s"));
    wait_ready(&gateway.api, models).await?;
    let ready_seconds = started.elapsed().as_secs_f64();
    complain(&format!("  all ready after {ready_seconds:.1} s"));
    let requests: Arc<[Vec<u8>]> = (0..models).map(request).collect();
    let turn = |asked, time| load(gateway.subject.address, Arc::clone(&requests), asked, time);
    // The first turn has the popular ones loaded and does not count.
    turn(POPULAR, ALONE_TURN).await?;
    let mut each: [Vec<f64>; 5] = Default::default();
    let (mut p99, mut failed_requests) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        // What is left of the predictions before is no part of being alone.
        gateway.wait_idle().await?;
        let alone = turn(POPULAR, ALONE_TURN).await?;
        let all = turn(models, ALL_TURN).await?;
        failed_requests += alone.failed + all.failed;
        let values = [
            quantile(&alone.popular, 0.99),
            quantile(&all.popular, 0.99),
            quantile(&all.others, 0.99),
            alone.popular.len() as f64 / ALONE_TURN.as_secs_f64(),
            (all.popular.len() + all.others.len()) as f64 / ALL_TURN.as_secs_f64(),
        ];
        p99.push(values[1] / values[0]);
        for (all, value) in each.iter_mut().zip(values) {
            all.push(value);
        }
    }
    gateway.stop().await?;
    let [alone_ms, beside_ms, others_ms, alone_rate, all_rate] = each.map(|values| median(&values));
    Ok(Many {
        models,
        registered_seconds,
        ready_seconds,
        p99: Ratio::of(p99),
        p99_ms: [alone_ms, beside_ms],
        others_p99_ms: others_ms,
        requests_per_second: [alone_rate, all_rate],
        failed_requests,
    })
}

fn name(number: usize) -> String {
    format!("model-{number}")
}

fn model(number: usize) -> Vec<u8> {
    scale(WIDTH, number as f32)
}

fn request(number: usize) -> Vec<u8> {
    messages::binary_floats(&name(number), INPUT, &[1, WIDTH], &[1.0; WIDTH])
}

/// Registers all models, several at a time.
async fn register(api: &Api, models: usize) -> Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let api = api.clone();
        writers.spawn(async move {
            for number in (writer..models).step_by(WRITERS) {
                declare(&api, &name(number), &model(number), json!({})).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.context("the task of a writer ended early")??;
    }
    Ok(())
}

async fn wait_ready(api: &Api, models: usize) -> Result<()> {
    let what = format!("all {models} endpoints are ready");
    wait_for(&what, READY_PATIENCE, &Quiet, async || {
        let ready = count_ready(api).await?;
        Ok(if ready == models {
            Look::Found(())
        } else {
            Look::NotYet(format!("{ready} are"))
        })
    })
    .await
}

async fn count_ready(api: &Api) -> Result<usize> {
    let (mut ready, mut path) = (0, format!("endpoints?limit={PAGE}"));
    loop {
        let page = api.get(&path).await?;
        let items = page.get("items").and_then(Value::as_array);
        ready += items.map_or(0, |items| items.iter().filter(|item| is_ready(item)).count());
        let Some(cursor) = page.get("next_cursor").and_then(Value::as_str) else {
            return Ok(ready);
        };
        path = format!("endpoints?limit={PAGE}&cursor={cursor}");
    }
}

/// Asks the first so many models, each the less often the later it comes.
async fn load(address: SocketAddr, requests: Arc<[Vec<u8>]>, asked: usize, time: Duration) -> Result<Latencies> {
    let end = Instant::now() + time;
    let mut connections = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let random = StdRng::seed_from_u64(connection as u64);
        connections.spawn(send(address, Arc::clone(&requests), Zipf::new(asked), random, end));
    }
    let mut all = Latencies::default();
    while let Some(ended) = connections.join_next().await {
        let each = ended.context("a connection's task ended early")??;
        all.popular.extend(each.popular);
        all.others.extend(each.others);
        all.failed += each.failed;
    }
    Ok(all)
}

async fn send(
    address: SocketAddr,
    requests: Arc<[Vec<u8>]>,
    zipf: Zipf,
    mut random: StdRng,
    end: Instant,
) -> Result<Latencies> {
    let mut connection = Connection::open(address).await?;
    let mut latencies = Latencies::default();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(latencies);
        }
        let rank = zipf.draw(&mut random);
        let status = connection
            .ask(requests.get(rank).context("there is no request")?)
            .await?;
        let took = sent.elapsed().as_secs_f64() * 1e3;
        match (status, rank < POPULAR) {
            (200, true) => latencies.popular.push(took),
            (200, false) => latencies.others.push(took),
            _ => latencies.failed += 1,
        }
    }
}

/// Ranks, each drawn in proportion to one over its place.
struct Zipf {
    /// The weights up to each rank.
    up_to: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize) -> Self {
        let mut total = 0.0;
        let up_to = (1..=ranks).map(|place| {
            total += 1.0 / place as f64;
            total
        });
        Self { up_to: up_to.collect() }
    }

    fn draw(&self, random: &mut StdRng) -> usize {
        let total = self.up_to.last().copied().unwrap_or_default();
        let drawn = random.random::<f64>() * total;
        let rank = self.up_to.partition_point(|up_to| *up_to <= drawn);
        // What is drawn may be rounded up to the total.
        rank.min(self.up_to.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_drawn_in_proportion_to_one_over_their_place() {
        let (zipf, mut random) = (Zipf::new(4), StdRng::seed_from_u64(1));
        let mut drawn = [0_u32; 4];
        for _ in 0..25_000 {
            drawn[zipf.draw(&mut random)] += 1;
        }
        for (rank, expected) in [12_000.0, 6000.0, 4000.0, 3000.0].into_iter().enumerate() {
            let share = f64::from(drawn[rank]) / expected;
            assert!((0.9..1.1).contains(&share), "{drawn:?}");
        }
    }
}
