//! Sequences to an encoder, beside a raw session at its best batch size.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use modelyard_inference::Tensor;
use serde::Serialize;
use serde_json::json;

use super::{
    beside::CONNECTIONS,
    gateway::Gateway,
    messages,
    models::{TOKENS, VOCABULARY, encoder},
    raw::{Raw, processors},
};
use crate::{
    complain,
    figures::{Ratio, median},
    load::{Load, Message, load},
};

/// The endpoint.
const ENDPOINT: &str = "encoder";
/// The length of each sequence.
const LENGTH: usize = 32;
/// The sizes of batches that the raw session is tried with.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// How long each is tried.
const TRIAL: Duration = Duration::from_millis(800);
/// How often each has its turn, beside the gateway's first one, which does not count.
const ROUNDS: usize = 5;
/// How long a turn takes: many batches.
const TURN: Duration = Duration::from_secs(4);
const RAW_TURN: Duration = Duration::from_secs(3);

/// What came out: medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Encoder {
    /// The gateway's sequences per second over those of the raw session.
    pub plain: Ratio,
    /// The same over what the raw session would do with what the load itself leaves of the machine.
    pub scaled: Ratio,
    /// Sequences per second.
    pub sequences_per_second: f64,
    /// What the load itself took of the machine.
    pub load_share: f64,
    /// How the raw session was best.
    pub raw: Way,
    /// The gateway's CPU time a sequence, and that of the raw session, in milliseconds.
    pub cpu_ms: [f64; 2],
    /// Requests that the gateway refused.
    pub failed_requests: u64,
}

/// A way to use all processors.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Way {
    /// Sessions that run at the same time.
    pub sessions: usize,
    /// The threads of each.
    pub threads: usize,
    /// The sequences of each run.
    pub batch: usize,
}

/// One round.
struct Round {
    rate: f64,
    raw_rate: f64,
    load_share: f64,
    cpu_ms: [f64; 2],
}

/// Measures it.
pub async fn measure(folder: &Path) -> Result<Encoder> {
    let onnx = encoder();
    let processors = processors()?;
    complain("  the raw session's best batch size");
    let raw = best(&onnx, processors)?;
    let sessions = Raw::open(&onnx, raw.sessions, raw.threads)?;
    let batch = tokens(raw.batch)?;
    complain(&format!(
        "  the gateway and {} raw sessions of {} threads with batches of {} in turns",
        raw.sessions, raw.threads, raw.batch
    ));
    let gateway = Gateway::start(folder, ENDPOINT, Vec::new()).await?;
    gateway.serve(ENDPOINT, &onnx, json!({})).await?;
    let request = messages::binary_numbers(ENDPOINT, TOKENS, &[1, LENGTH], &sequence(0));
    let load_of = Load {
        connections: CONNECTIONS,
        turn: TURN,
        message: Message::Http(request.into()),
    };
    let (mut rounds, mut failed_requests) = (Vec::new(), 0);
    // The first round warms both up and does not count.
    for round in 0..=ROUNDS {
        let turn = load(gateway.subject, &load_of).await?;
        let theirs = sessions.measure(&batch, RAW_TURN)?;
        failed_requests += turn.failed;
        if round > 0 {
            let sequences = raw.batch as f64;
            rounds.push(Round {
                rate: turn.rate(),
                raw_rate: theirs.rate * sequences,
                load_share: turn.own_share(processors),
                cpu_ms: [turn.server_cpu_us() / 1e3, theirs.cpu_us / sequences / 1e3],
            });
        }
    }
    gateway.stop().await?;
    Ok(told(&rounds, raw, failed_requests))
}

fn told(rounds: &[Round], raw: Way, failed_requests: u64) -> Encoder {
    let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    Encoder {
        plain: Ratio::of(each(|round| round.rate / round.raw_rate)),
        scaled: Ratio::of(each(|round| round.rate / (round.raw_rate * (1.0 - round.load_share)))),
        sequences_per_second: median(&each(|round| round.rate)),
        load_share: median(&each(|round| round.load_share)),
        raw,
        cpu_ms: [
            median(&each(|round| round.cpu_ms[0])),
            median(&each(|round| round.cpu_ms[1])),
        ],
        failed_requests,
    }
}

/// The way in which raw sessions do most: one of all threads, or one a processor, at each batch size.
fn best(onnx: &[u8], processors: usize) -> Result<Way> {
    let mut best: Option<(f64, Way)> = None;
    for (sessions, threads) in [(processors, 1), (1, processors)] {
        let raw = Raw::open(onnx, sessions, threads)?;
        for batch in BATCHES {
            let input = tokens(batch)?;
            // The first runs of a session are slow.
            raw.measure(&input, Duration::ZERO)?;
            let rate = raw.measure(&input, TRIAL)?.rate * batch as f64;
            if best.is_none_or(|(most, _)| rate > most) {
                let way = Way {
                    sessions,
                    threads,
                    batch,
                };
                best = Some((rate, way));
            }
        }
    }
    best.map(|(_, way)| way).context("no batch size was tried")
}

/// Tokens that are none to fill up.
fn sequence(number: usize) -> Vec<i64> {
    let token = |place: usize| 1 + (number * 31 + place * 7) as i64 % (VOCABULARY - 1);
    (0..LENGTH).map(token).collect()
}

fn tokens(batch: usize) -> Result<Tensor> {
    let values = (0..batch).flat_map(sequence).collect();
    Ok(Tensor::from_vec(TOKENS, vec![batch as i64, LENGTH as i64], values)?)
}
