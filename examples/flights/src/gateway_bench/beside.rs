//! The gateway beside a bare handler and a raw session, under the same requests.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::raw::RawTurn;
use crate::{
    bare_server::BareServer,
    figures::{Ratio, median},
    load::{Load, Message, Subject, in_turns},
};

/// Connections that load both servers.
pub const CONNECTIONS: usize = 64;
/// How often each server has its turn, beside the first one, which does not count.
pub const ROUNDS: usize = 5;
/// How long a turn takes, and one of a single connection.
const TURN: Duration = Duration::from_millis(1500);
const SINGLE_TURN: Duration = Duration::from_millis(400);
/// How long a raw session has its turn.
pub const RAW_TURN: Duration = Duration::from_millis(400);

/// What came out: medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Beside {
    /// The gateway's requests per second over those of the bare handler.
    pub throughput: Ratio,
    /// The gateway's CPU time a request over that of the bare handler and a run of the raw session together.
    pub cpu: Ratio,
    /// What the gateway adds to the raw session at p50 with one connection, in microseconds.
    pub added_p50_us: Ratio,
    /// What the bare handler takes at p50 with one connection, in microseconds.
    pub bare_p50_us: f64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// CPU time a request of the gateway, of the bare handler, and a run of the raw session, in microseconds.
    pub cpu_us: [f64; 3],
    /// What the load itself took of the machine while the gateway was loaded.
    pub load_share: f64,
    /// Requests that the gateway refused.
    pub failed_requests: u64,
}

/// One round.
struct Round {
    throughput: f64,
    rate: f64,
    cpu_us: [f64; 3],
    added_p50_us: f64,
    bare_p50_us: f64,
    load_share: f64,
}

/// A comparison while it goes on.
pub struct Comparison {
    gateway: Subject,
    bare: BareServer,
    load: Load,
    processors: usize,
    rounds: Vec<Round>,
    failed_requests: u64,
}

impl Comparison {
    /// One that sends a message to both.
    pub fn new(gateway: Subject, bare: BareServer, message: Message, processors: usize) -> Self {
        Self {
            gateway,
            bare,
            load: Load {
                connections: CONNECTIONS,
                turn: TURN,
                message,
            },
            processors,
            rounds: Vec::new(),
            failed_requests: 0,
        }
    }

    /// Has each server take its turns beside what the raw session did. The round 0 warms up and does not count.
    pub async fn round(&mut self, round: usize, raw: &RawTurn) -> Result<()> {
        let (ours, theirs) = in_turns(self.gateway, self.bare.subject, &self.load, round).await?;
        let single = self.load.over(1).lasting(SINGLE_TURN);
        let (our_single, their_single) = in_turns(self.gateway, self.bare.subject, &single, round).await?;
        self.failed_requests += ours.failed + our_single.failed;
        if round > 0 {
            self.rounds.push(Round {
                throughput: ours.rate() / theirs.rate(),
                rate: ours.rate(),
                cpu_us: [ours.server_cpu_us(), theirs.server_cpu_us(), raw.cpu_us],
                added_p50_us: our_single.p50_us() - raw.p50_us(),
                bare_p50_us: their_single.p50_us(),
                load_share: ours.own_share(self.processors),
            });
        }
        Ok(())
    }

    /// What came out.
    pub fn end(self) -> Beside {
        let each = |of: fn(&Round) -> f64| self.rounds.iter().map(of).collect::<Vec<f64>>();
        Beside {
            throughput: Ratio::of(each(|round| round.throughput)),
            cpu: Ratio::of(each(|round| {
                let [gateway, bare, raw] = round.cpu_us;
                gateway / (bare + raw)
            })),
            added_p50_us: Ratio::of(each(|round| round.added_p50_us)),
            bare_p50_us: median(&each(|round| round.bare_p50_us)),
            requests_per_second: median(&each(|round| round.rate)),
            cpu_us: [
                median(&each(|round| round.cpu_us[0])),
                median(&each(|round| round.cpu_us[1])),
                median(&each(|round| round.cpu_us[2])),
            ],
            load_share: median(&each(|round| round.load_share)),
            failed_requests: self.failed_requests,
        }
    }
}
