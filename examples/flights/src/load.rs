//! Load on a server: connections that send the same request one after the other, for a while.

use std::{
    fs, io,
    net::SocketAddr,
    process::{self, Command},
    sync::{Arc, LazyLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::Instant,
};

use crate::{
    figures::median,
    grpc,
    process::{cpu_seconds, own_cpu_seconds},
    wire,
};

/// The share of a turn after which its rate is taken: until then the connections come about.
const SETTLED: f64 = 0.1;

/// A server under load.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process whose CPU time counts, with that of all below it.
    pub pid: u32,
}

/// What is sent.
#[derive(Debug, Clone)]
pub enum Message {
    /// A whole request of HTTP/1.1.
    Http(Arc<[u8]>),
    /// A message to `ModelInfer`.
    Grpc(Arc<[u8]>),
}

/// What is done to a server for a while.
#[derive(Debug, Clone)]
pub struct Load {
    /// How many send, each one request after the other.
    pub connections: usize,
    /// For how long.
    pub turn: Duration,
    /// What each sends.
    pub message: Message,
}

impl Load {
    /// The same for another time.
    pub fn lasting(&self, turn: Duration) -> Self {
        Self { turn, ..self.clone() }
    }

    /// The same from another number of connections.
    pub fn over(&self, connections: usize) -> Self {
        Self {
            connections,
            ..self.clone()
        }
    }
}

/// A request that was answered well.
#[derive(Debug, Clone, Copy)]
struct Answered {
    /// Seconds since the turn began.
    at: f64,
    /// In microseconds.
    took: f64,
}

/// What a load came to.
#[derive(Debug)]
pub struct Turn {
    answered: Vec<Answered>,
    /// When the connections sent their last requests, in seconds.
    end: f64,
    /// Requests that were refused.
    pub failed: u64,
    /// Until the last answer, in seconds.
    pub seconds: f64,
    /// CPU time of the server, in seconds.
    pub server_cpu: f64,
    /// CPU time of this process, in seconds.
    pub own_cpu: f64,
}

impl Turn {
    /// Answers a second while all connections were busy: the slope of the line through the answers' times. Unlike their number in
    /// an interval it does not depend on where a batch of answers falls.
    pub fn rate(&self) -> f64 {
        let mut times: Vec<f64> = self
            .answered
            .iter()
            .map(|answered| answered.at)
            .filter(|at| (self.end * SETTLED..=self.end).contains(at))
            .collect();
        times.sort_by(f64::total_cmp);
        let count = times.len() as f64;
        let middle = times.iter().sum::<f64>() / count;
        let (mut above, mut below) = (0.0, 0.0);
        for (place, at) in times.iter().enumerate() {
            above += (at - middle) * (place as f64 - (count - 1.0) / 2.0);
            below += (at - middle) * (at - middle);
        }
        above / below
    }

    /// CPU time of the server for each request, in microseconds.
    pub fn server_cpu_us(&self) -> f64 {
        self.server_cpu * 1e6 / self.requests()
    }

    /// The share of all processors that this process took.
    pub fn own_share(&self, processors: usize) -> f64 {
        self.own_cpu / (self.seconds * processors as f64)
    }

    /// How long an answer took at p50, in microseconds.
    pub fn p50_us(&self) -> f64 {
        let took: Vec<f64> = self.answered.iter().map(|answered| answered.took).collect();
        median(&took)
    }

    fn requests(&self) -> f64 {
        self.answered.len() as f64 + self.failed as f64
    }
}

/// The threads that send. They are of the scheduling class `batch`: sharing the processors with the server, they would else take
/// one from it at nearly each of its answers, because they mostly wait for these, and the server would pay for the switch.
static SENDERS: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    let give_way = || {
        // Where it cannot be set, the server pays more.
        let thread = fs::read_link("/proc/thread-self").unwrap_or_default();
        if let Some(thread) = thread.file_name() {
            let class = ["--batch", "--pid", "0"];
            Command::new("chrt").args(class).arg(thread).status().ok();
        }
    };
    Builder::new_multi_thread()
        .enable_all()
        .thread_name("load")
        .on_thread_start(give_way)
        .build()
});

/// Loads a server for a turn.
pub async fn load(subject: Subject, load: &Load) -> Result<Turn> {
    let own = process::id();
    let senders = SENDERS
        .as_ref()
        .map_err(|error| anyhow!("the load's threads cannot start: {error}"))?;
    let before = (cpu_seconds(subject.pid)?, own_cpu_seconds(own)?);
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for _ in 0..load.connections {
        let connection = one_connection(subject.address, load.message.clone(), started, load.turn);
        connections.spawn_on(connection, senders.handle());
    }
    let (mut answered, mut failed) = (Vec::new(), 0);
    while let Some(ended) = connections.join_next().await {
        let (more, refused) = ended.context("a connection's task ended early")??;
        answered.extend(more);
        failed += refused;
    }
    ensure!(
        !answered.is_empty(),
        "{} answered none of {failed} requests",
        subject.address
    );
    Ok(Turn {
        answered,
        end: load.turn.as_secs_f64(),
        failed,
        seconds: started.elapsed().as_secs_f64(),
        server_cpu: cpu_seconds(subject.pid)? - before.0,
        own_cpu: own_cpu_seconds(own)? - before.1,
    })
}

/// Loads two servers, one after the other: who comes first changes with the rounds.
pub async fn in_turns(ours: Subject, theirs: Subject, same: &Load, round: usize) -> Result<(Turn, Turn)> {
    if round.is_multiple_of(2) {
        let ours = load(ours, same).await?;
        Ok((ours, load(theirs, same).await?))
    } else {
        let theirs = load(theirs, same).await?;
        Ok((load(ours, same).await?, theirs))
    }
}

/// Sends until the turn ends; gives the answered requests and the number of those that were refused.
async fn one_connection(
    address: SocketAddr,
    message: Message,
    started: Instant,
    turn: Duration,
) -> Result<(Vec<Answered>, u64)> {
    let mut connection = Connection::open(address, &message).await?;
    let (mut answered, mut refused) = (Vec::new(), 0);
    let mut sent = started.elapsed();
    while sent < turn {
        let is_well = connection.ask().await?;
        let now = started.elapsed();
        if is_well {
            answered.push(Answered {
                at: now.as_secs_f64(),
                took: now.saturating_sub(sent).as_secs_f64() * 1e6,
            });
        } else {
            refused += 1;
        }
        sent = now;
    }
    Ok((answered, refused))
}

/// A connection of either protocol, with what it sends.
enum Connection {
    Http(wire::Connection, Arc<[u8]>),
    Grpc(grpc::Connection),
}

impl Connection {
    async fn open(address: SocketAddr, message: &Message) -> Result<Self> {
        Ok(match message {
            Message::Http(request) => Self::Http(wire::Connection::open(address).await?, Arc::clone(request)),
            Message::Grpc(message) => Self::Grpc(grpc::Connection::open(address, message).await?),
        })
    }

    /// Whether the answer is one.
    async fn ask(&mut self) -> Result<bool> {
        match self {
            Self::Http(connection, request) => Ok(connection.ask(request).await? == 200),
            Self::Grpc(connection) => connection.ask().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_batches_wherever_they_fall() {
        // Ten answers at once, every half second, from some moment on.
        for first in [0.05, 0.3, 0.45] {
            let batches = (0..20).map(|batch| first + 0.5 * f64::from(batch));
            let answered = batches.flat_map(|at| [Answered { at, took: 1.0 }; 10]).collect();
            let turn = Turn {
                answered,
                end: 10.0,
                failed: 0,
                seconds: 10.5,
                server_cpu: 1.0,
                own_cpu: 1.0,
            };
            assert!((turn.rate() - 20.0).abs() < 0.2, "{}", turn.rate());
        }
    }
}
