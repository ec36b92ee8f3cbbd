//! `flights bench`: the gateway beside a bare axum handler that parses and answers the same bytes, in one run.
//!
//! Both servers are processes of their own and get the same load in turns, so that what else the machine does hits both.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{Json, Router, extract::State, routing::post};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::Instant,
};

/// Connections that send one request after the other.
const CONNECTIONS: usize = 16;

/// How often each server has its turn.
const ROUNDS: usize = 5;

/// How long a turn takes.
const TURN: Duration = Duration::from_secs(3);

/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What is measured against: `modelyard` with a model, and a request to it.
pub struct Subject {
    /// Address of the gateway's public listener.
    pub address: SocketAddr,
    /// Its process.
    pub pid: u32,
    /// Path of the request.
    pub path: String,
    /// Body of the request.
    pub body: String,
}

/// Medians over the rounds.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Comparison {
    /// Requests per second of the gateway over those of the bare handler.
    pub throughput_ratio: f64,
    /// Server CPU time a request of the gateway over that of the bare handler.
    pub cpu_ratio: f64,
    /// The ratio of throughput in each round.
    pub rounds: Vec<f64>,
    /// Requests that were not answered with 200.
    pub failed_requests: u64,
}

/// One turn of load.
struct Turn {
    requests: u64,
    failed: u64,
    cpu_ticks: u64,
}

/// Loads the gateway and a bare handler in turns and compares them.
pub async fn compare(subject: &Subject) -> Result<Comparison> {
    let answer = exchange(subject.address, &request_bytes(subject)).await?;
    let bare = BareServer::start(&["bare-handler", &answer]).await?;
    let bare_subject = Subject {
        address: bare.address,
        pid: bare.pid,
        path: subject.path.clone(),
        body: subject.body.clone(),
    };
    // The first turns warm both up and do not count.
    load(subject).await?;
    load(&bare_subject).await?;
    let (mut throughput, mut cpu, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let ours = load(subject).await?;
        let theirs = load(&bare_subject).await?;
        failed += ours.failed;
        throughput.push(ours.requests as f64 / theirs.requests as f64);
        cpu.push(cpu_per_request(&ours) / cpu_per_request(&theirs));
    }
    Ok(Comparison {
        throughput_ratio: median(&throughput),
        cpu_ratio: median(&cpu),
        rounds: throughput,
        failed_requests: failed,
    })
}

fn cpu_per_request(turn: &Turn) -> f64 {
    turn.cpu_ticks as f64 / turn.requests.max(1) as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn request_bytes(subject: &Subject) -> Vec<u8> {
    format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
        subject.path,
        subject.address,
        subject.body.len(),
        subject.body
    )
    .into_bytes()
}

async fn load(subject: &Subject) -> Result<Turn> {
    let request = request_bytes(subject);
    let before = cpu_ticks(subject.pid)?;
    let end = Instant::now() + TURN;
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        connections.spawn(one_connection(subject.address, request.clone(), end));
    }
    let (mut requests, mut failed) = (0, 0);
    while let Some(result) = connections.join_next().await {
        let (answered, refused) = result.context("a connection's task ended early")??;
        requests += answered;
        failed += refused;
    }
    if requests == 0 {
        bail!("{} answered no request", subject.address);
    }
    Ok(Turn {
        requests,
        failed,
        cpu_ticks: cpu_ticks(subject.pid)?.saturating_sub(before),
    })
}

/// Sends until `end`; gives the requests that were answered with 200, and the others.
async fn one_connection(address: SocketAddr, request: Vec<u8>, end: Instant) -> Result<(u64, u64)> {
    let mut stream = connect(address).await?;
    let (mut answered, mut refused) = (0, 0);
    while Instant::now() < end {
        stream.get_mut().write_all(&request).await?;
        let (status, _) = read_answer(&mut stream).await?;
        if status == 200 {
            answered += 1;
        } else {
            refused += 1;
        }
    }
    Ok((answered, refused))
}

pub(crate) async fn connect(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("{address} does not answer"))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request and its answer's body.
async fn exchange(address: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = connect(address).await?;
    stream.get_mut().write_all(request).await?;
    let (status, body) = read_answer(&mut stream).await?;
    let body = String::from_utf8(body).context("the answer is not text")?;
    if status != 200 {
        bail!("the request is refused with status {status}: {body}");
    }
    Ok(body)
}

/// Reads a status line, headers and a body of known length: as little work as a client can do.
pub(crate) async fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<(u16, Vec<u8>)> {
    let (status, length) = read_head(stream).await?;
    if length > MAX_ANSWER_BYTES {
        bail!("the answer of {length} bytes is larger than expected");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((status, body))
}

/// Reads a status line and headers; gives the status and the length of the body.
pub(crate) async fn read_head(stream: &mut BufReader<TcpStream>) -> Result<(u16, usize)> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("the answer is not HTTP")?;
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("the length of the answer is no number")?;
        }
    }
    Ok((status, length))
}

/// CPU time of a process in clock ticks, user and system: fields 14 and 15 of /proc/PID/stat.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| user + system)
        .context("/proc/PID/stat cannot be read")
}

/// A bare handler in a process of its own, ended when this is dropped.
pub(crate) struct BareServer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pid: u32,
    _process: Child,
}

impl BareServer {
    /// Starts this program with the arguments that make it one.
    pub(crate) async fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the bare handler cannot be started")?;
        let output = process.stdout.take().context("the bare handler has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        Ok(Self {
            address: line.trim().parse().context("the bare handler names no address")?,
            pid: process.id().context("the bare handler has ended")?,
            _process: process,
        })
    }
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
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    announce(listener.local_addr()?)?;
    let router = Router::new()
        .route("/v2/models/{name}/infer", post(bare_handler))
        .with_state(std::sync::Arc::new(answer));
    let listener = axum::serve::ListenerExt::tap_io(listener, |connection| {
        connection.set_nodelay(true).ok();
    });
    axum::serve(listener, router).await?;
    Ok(())
}

async fn bare_handler(State(answer): State<std::sync::Arc<Value>>, Json(request): Json<BareRequest>) -> Json<Value> {
    if request.inputs.is_empty() {
        return Json(Value::Null);
    }
    Json((*answer).clone())
}
