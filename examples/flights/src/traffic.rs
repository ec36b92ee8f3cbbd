//! Predictions over both protocols, at the rate that the server answers.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use modelyard_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use serde::{Deserialize, de::IgnoredAny};
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    api::{chain, is_away},
    encode::Encoder,
    progress::Progress,
};

/// HTTP/2 connections that the gRPC requests share.
const GRPC_CONNECTIONS: usize = 2;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one attempt may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The pauses between attempts while the server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The failures whose text is kept.
const KEPT_FAILURES: usize = 5;

/// How often the progress of a replay is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What goes on while nothing is replayed: so many senders a protocol, each with this pause between requests.
const TRICKLE_SENDERS: usize = 2;
const TRICKLE_PAUSE: Duration = Duration::from_millis(10);
/// The requests that it repeats, the last ones of the month.
const TRICKLE_REQUESTS: usize = 256;

/// How a request travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// JSON over HTTP/1.1.
    Http,
    /// Raw tensors over gRPC.
    Grpc,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
    /// The version of the latest answer of each protocol, in the order of [`PROTOCOLS`]; zero before the first.
    latest: [AtomicU64; 2],
}

impl Tally {
    /// Requests that ended without an answer, or with a refusal.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Attempts that were made again because the server was away.
    pub fn retried(&self) -> u64 {
        self.retried.load(Relaxed)
    }

    /// The texts of the first failures.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().map(|texts| texts.clone()).unwrap_or_default()
    }

    /// The version that answered last, by protocol.
    pub fn latest_versions(&self) -> BTreeMap<Protocol, u64> {
        let versions = self.latest.iter().map(|version| version.load(Relaxed));
        PROTOCOLS.into_iter().zip(versions).collect()
    }

    fn record(&self, protocol: Protocol, outcome: Result<u64, String>) {
        match outcome {
            Ok(version) => {
                self.answered.fetch_add(1, Relaxed);
                let [http, grpc] = &self.latest;
                let latest = if protocol == Protocol::Http { http } else { grpc };
                latest.store(version, Relaxed);
            }
            Err(text) => {
                self.failed.fetch_add(1, Relaxed);
                if let Ok(mut failures) = self.failures.lock()
                    && failures.len() < KEPT_FAILURES
                {
                    failures.push(text);
                }
            }
        }
    }
}

/// Connections to an endpoint.
#[derive(Debug)]
pub struct Traffic {
    http: reqwest::Client,
    infer_url: String,
    grpc: Vec<GrpcInferenceServiceClient<Channel>>,
    away: Duration,
    /// What became of the requests so far.
    pub tally: Tally,
}

/// What one attempt came to.
enum Attempt {
    Answered(u64),
    /// The server, or the one behind it, is not there at present.
    Away(String),
    Refused(String),
}

impl Traffic {
    /// Connections to `endpoint`. A request is sent again for `away` while the server is away; with zero, never.
    pub fn new(url: &str, grpc_url: &str, endpoint: &str, away: Duration) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .context("the HTTP client cannot be made")?;
        let address = Endpoint::from_shared(grpc_url.to_owned())
            .with_context(|| format!("`{grpc_url}` is not an address: write it as http://HOST:PORT"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true);
        let connect = |_| GrpcInferenceServiceClient::new(address.connect_lazy());
        Ok(Self {
            http,
            infer_url: format!("{}/v2/models/{endpoint}/infer", url.trim_end_matches('/')),
            grpc: (0..GRPC_CONNECTIONS).map(connect).collect(),
            away,
            tally: Tally::default(),
        })
    }

    /// Sends every flight of a month once, half of them over each protocol, `concurrency` at a time.
    pub async fn replay(
        self: &Arc<Self>,
        encoder: &Arc<Encoder>,
        concurrency: usize,
        progress: &dyn Progress,
    ) -> Result<()> {
        let total = encoder.month.len();
        let sent = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        for (half, protocol) in PROTOCOLS.into_iter().enumerate() {
            let next = Arc::new(AtomicUsize::new(half));
            for lane in 0..concurrency.div_ceil(PROTOCOLS.len()).max(1) {
                let (traffic, encoder) = (self.clone(), encoder.clone());
                let (next, sent) = (next.clone(), sent.clone());
                senders.spawn(async move {
                    loop {
                        let row = next.fetch_add(PROTOCOLS.len(), Relaxed);
                        if row >= total {
                            return;
                        }
                        traffic.send(&encoder, row, protocol, lane).await;
                        sent.fetch_add(1, Relaxed);
                    }
                });
            }
        }
        let started = Instant::now();
        let mut interval = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                ended = senders.join_next() => match ended {
                    Some(result) => result.context("a sender ended early")?,
                    None => break,
                },
                _ = interval.tick() => tell(progress, sent.load(Relaxed), total, started),
            }
        }
        tell(progress, sent.load(Relaxed), total, started);
        Ok(())
    }

    /// Repeats the last requests of a month until the trickle is stopped.
    pub fn trickle(self: &Arc<Self>, encoder: &Arc<Encoder>) -> Trickle {
        let stop = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        let total = encoder.month.len();
        let first = total.saturating_sub(TRICKLE_REQUESTS);
        for protocol in PROTOCOLS {
            for lane in 0..TRICKLE_SENDERS {
                let (traffic, encoder, stop) = (self.clone(), encoder.clone(), stop.clone());
                senders.spawn(async move {
                    for row in (first..total).cycle().skip(lane).step_by(TRICKLE_SENDERS) {
                        if stop.load(Relaxed) {
                            return;
                        }
                        traffic.send(&encoder, row, protocol, lane).await;
                        tokio::time::sleep(TRICKLE_PAUSE).await;
                    }
                });
            }
        }
        Trickle { stop, senders }
    }

    /// Sends one request until it is answered, refused, or the server was away for too long.
    async fn send(&self, encoder: &Encoder, row: usize, protocol: Protocol, lane: usize) {
        let mut first_failure = None;
        let mut pause = FIRST_PAUSE;
        let outcome = loop {
            let attempt = match protocol {
                Protocol::Http => self.send_http(encoder, row).await,
                Protocol::Grpc => self.send_grpc(encoder, row, lane).await,
            };
            match attempt {
                Attempt::Answered(version) => break Ok(version),
                Attempt::Refused(text) => break Err(text),
                Attempt::Away(text) => {
                    let since = *first_failure.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.away {
                        break Err(text);
                    }
                }
            }
            self.tally.retried.fetch_add(1, Relaxed);
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        let outcome = outcome.map_err(|text| format!("{} over {protocol:?}: {text}", encoder.month.id(row)));
        self.tally.record(protocol, outcome);
    }

    async fn send_http(&self, encoder: &Encoder, row: usize) -> Attempt {
        let body = match encoder.json(row) {
            Ok(body) => body,
            Err(error) => return Attempt::Refused(format!("{error:#}")),
        };
        let request = self
            .http
            .post(&self.infer_url)
            .header("content-type", "application/json");
        let response = match request.body(body).send().await {
            Ok(response) => response,
            Err(error) => return Attempt::Away(chain(&error)),
        };
        let status = response.status();
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return Attempt::Away(chain(&error)),
        };
        if status.is_success() {
            return check_answer(&body, encoder.month.id(row));
        }
        let text = format!("{status} {}", String::from_utf8_lossy(&body));
        if is_away(status) {
            Attempt::Away(text)
        } else {
            Attempt::Refused(text)
        }
    }

    async fn send_grpc(&self, encoder: &Encoder, row: usize, lane: usize) -> Attempt {
        let Some(client) = self.grpc.get(lane % GRPC_CONNECTIONS) else {
            return Attempt::Refused("there is no connection".to_owned());
        };
        match client.clone().model_infer(encoder.message(row)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let is_whole = answer.id == encoder.month.id(row) && !answer.raw_output_contents.is_empty();
                checked(is_whole, &answer.model_version)
            }
            Err(status) if is_server_away(&status) => Attempt::Away(chain(&status)),
            Err(status) => Attempt::Refused(chain(&status)),
        }
    }
}

/// The requests that go on in the background; they end when this is stopped or dropped.
pub struct Trickle {
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Trickle {
    /// Ends it; requests under way are finished first.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.senders.join_next().await {
            ended.context("a sender ended early")?;
        }
        Ok(())
    }
}

fn tell(progress: &dyn Progress, sent: u64, total: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64().max(f64::EPSILON);
    progress.requests(sent, total as u64, sent as f64 / seconds);
}

/// What an answer over HTTP must have.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    model_version: Cow<'a, str>,
    outputs: Vec<IgnoredAny>,
}

fn check_answer(body: &[u8], id: &str) -> Attempt {
    match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => checked(answer.id == id && !answer.outputs.is_empty(), &answer.model_version),
        Err(error) => Attempt::Refused(format!("the answer cannot be read: {error}")),
    }
}

fn checked(is_whole: bool, version: &str) -> Attempt {
    match version.parse() {
        Ok(version) if is_whole => Attempt::Answered(version),
        Ok(_) => Attempt::Refused("the answer is of another request, or empty".to_owned()),
        Err(_) => Attempt::Refused(format!("the answer names no model version: `{version}`")),
    }
}

/// Whether a call failed because nobody was there to answer it.
fn is_server_away(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::Cancelled | Code::DeadlineExceeded => true,
        // A connection that broke: a status from the server has no source.
        Code::Unknown | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_answers_to_the_same_request_count() {
        let answer = |text: &str| check_answer(text.as_bytes(), "a-1");
        let whole = r#"{"model_name":"m","model_version":"3","id":"a-1","outputs":[{"name":"label","data":[1]}]}"#;
        assert!(matches!(answer(whole), Attempt::Answered(3)));
        for broken in [
            whole.replace("a-1", "b-1"),
            whole.replace(r#"{"name":"label","data":[1]}"#, ""),
            whole.replace(r#""3""#, r#""three""#),
            "{".to_owned(),
        ] {
            assert!(matches!(answer(&broken), Attempt::Refused(_)), "{broken}");
        }
    }

    #[test]
    fn refusals_over_grpc_are_not_taken_for_a_server_that_is_away() {
        assert!(is_server_away(&Status::unavailable("no version to serve")));
        for refusal in [
            Status::invalid_argument("x"),
            Status::not_found("x"),
            Status::internal("x"),
            Status::unknown("x"),
        ] {
            assert!(!is_server_away(&refusal), "{refusal}");
        }
        let broken = Status::from_error("connection reset".into());
        assert!(is_server_away(&broken), "{broken}");
    }
}
