//! `flights bench registry`: tracking by MLflow's protocol, beside MLflow's own server where there is one, in one run.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use modelyard_flights::{Server, ServerOptions};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Format,
    bench::{connect, read_answer},
    complain, modelyard, print,
};

/// Connections that send one request after the other.
const CONNECTIONS: usize = 8;
/// How long each operation is asked for.
const TURN: Duration = Duration::from_secs(4);
/// How long MLflow's server may take until it answers.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// How often the search is asked for.
const SEARCHES: usize = 21;
/// The metrics of each run that is searched.
const METRICS: usize = 10;
/// What Linux counts CPU time in for programs, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;
/// Where the protocol is.
const API: &str = "/api/2.0/mlflow";

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub struct RegistryArguments {
    /// The program `mlflow` of a Python environment, whose server is measured in the same run
    #[arg(long, value_name = "PROGRAM")]
    mlflow: Option<PathBuf>,
    /// How many runs are searched
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    runs: usize,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

/// One operation of one server.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measured {
    requests_per_second: f64,
    cpu_ms_per_request: f64,
}

/// A server under load.
struct Subject {
    address: SocketAddr,
    /// The process whose CPU time counts, with all below it.
    pid: u32,
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

fn bytes((line, body): &(String, Value)) -> Vec<u8> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    format!(
        "{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn ask(address: SocketAddr, line: &str, body: Value) -> Result<Value> {
    let mut stream = connect(address).await?;
    stream.get_mut().write_all(&bytes(&(line.to_owned(), body))).await?;
    let (status, answer) = read_answer(&mut stream).await?;
    ensure!(status == 200, "{line}: {status} {}", String::from_utf8_lossy(&answer));
    Ok(serde_json::from_slice(&answer)?)
}

async fn new_run(address: SocketAddr) -> Result<String> {
    let made = ask(
        address,
        &format!("POST {API}/runs/create"),
        json!({"experiment_id": "0"}),
    )
    .await?;
    let id = made.pointer("/run/info/run_id").and_then(Value::as_str);
    Ok(id.context("the run has no id")?.to_owned())
}

async fn measure(subject: &Subject, message: Message, runs: &[String]) -> Result<Measured> {
    let before = cpu_seconds(subject.pid)?;
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (address, runs) = (subject.address, runs.to_vec());
        connections.spawn(async move {
            let mut stream = connect(address).await?;
            let mut number = 0;
            while started.elapsed() < TURN {
                let request = bytes(&message(&runs, connection, number));
                stream.get_mut().write_all(&request).await?;
                let (status, answer) = read_answer(&mut stream).await?;
                ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&answer));
                number += 1;
            }
            Ok(number)
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

async fn measure_all(subject: &Subject) -> Result<BTreeMap<&'static str, Measured>> {
    let mut runs = Vec::new();
    for _ in 0..3 * CONNECTIONS {
        runs.push(new_run(subject.address).await?);
    }
    let mut all = BTreeMap::new();
    for (name, message) in OPERATIONS {
        complain(&format!("  {name}"));
        all.insert(name, measure(subject, message, &runs).await?);
    }
    Ok(all)
}

/// Makes runs with metrics, and asks for the first page of a search that filters by one metric and orders by another. The
/// median, in milliseconds.
async fn search(address: SocketAddr, runs: usize) -> Result<f64> {
    let made = ask(
        address,
        &format!("POST {API}/experiments/create"),
        json!({"name": "searched"}),
    )
    .await?;
    let experiment = made
        .get("experiment_id")
        .and_then(Value::as_str)
        .context("no id")?
        .to_owned();
    let mut writers = JoinSet::new();
    for writer in 0..CONNECTIONS {
        let experiment = experiment.clone();
        writers.spawn(async move {
            for number in (writer..runs).step_by(CONNECTIONS) {
                let made = ask(address, &format!("POST {API}/runs/create"), json!({"experiment_id": experiment})).await?;
                let run_id = made.pointer("/run/info/run_id").cloned().unwrap_or_default();
                let metrics: Vec<Value> = (0..METRICS)
                    .map(|metric| {
                        let value = (number * (metric + 7919)) % 10_007;
                        json!({"key": format!("m{metric}"), "value": value as f64 / 10_007.0, "timestamp": 1, "step": 0})
                    })
                    .collect();
                ask(address, &format!("POST {API}/runs/log-batch"), json!({"run_id": run_id, "metrics": metrics})).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let query = json!({"experiment_ids": [experiment], "filter": "metrics.m1 > 0.5", "order_by": ["metrics.m0 DESC"], "max_results": 100});
    let mut took = Vec::new();
    for _ in 0..SEARCHES {
        let started = Instant::now();
        let found = ask(address, &format!("POST {API}/runs/search"), query.clone()).await?;
        took.push(started.elapsed().as_secs_f64() * 1000.0);
        let found = found.get("runs").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(found == 100.min(runs / 3), "the search found {found} runs");
    }
    took.sort_by(f64::total_cmp);
    Ok(took.get(SEARCHES / 2).copied().unwrap_or_default())
}

/// CPU time of a process and all below it, in seconds.
fn cpu_seconds(root: u32) -> Result<f64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has ended meanwhile counts no more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        if let (Some(parent), Some(user), Some(system)) = (fields.first(), fields.get(10), fields.get(11)) {
            found.insert(pid, (*parent as u32, user + system));
        }
    }
    ensure!(found.contains_key(&root), "process {root} is gone");
    let is_below = |pid: u32| {
        let mut at = Some(pid);
        while let Some(pid) = at {
            if pid == root {
                return true;
            }
            at = found.get(&pid).map(|(parent, _)| *parent);
        }
        false
    };
    let ticks: u64 = found
        .iter()
        .filter(|(pid, _)| is_below(**pid))
        .map(|(_, (_, ticks))| ticks)
        .sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// MLflow's server, with what makes it faster than as it comes: no jobs beside it.
struct Theirs {
    process: Child,
    subject: Subject,
}

impl Theirs {
    async fn start(program: &Path, folder: &Path) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        drop(listener);
        let database = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let log = fs::File::create(folder.join("mlflow.log"))?;
        let process = Command::new(program)
            .args([
                "server",
                "--workers",
                "4",
                "--host",
                "127.0.0.1",
                "--port",
                &address.port().to_string(),
            ])
            .args(["--backend-store-uri", &database])
            .args([
                "--artifacts-destination",
                &folder.join("artifacts").display().to_string(),
            ])
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let pid = process.id().context("MLflow's server has ended")?;
        let theirs = Self {
            process,
            subject: Subject { address, pid },
        };
        let deadline = Instant::now() + START_PATIENCE;
        while ask(
            address,
            &format!("POST {API}/experiments/search"),
            json!({"max_results": 1}),
        )
        .await
        .is_err()
        {
            if Instant::now() > deadline {
                bail!(
                    "MLflow's server does not answer: {}",
                    fs::read_to_string(folder.join("mlflow.log"))?
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(theirs)
    }

    async fn stop(mut self) -> Result<()> {
        if let Some(group) = Pid::from_raw(self.subject.pid.cast_signed()) {
            kill_process_group(group, Signal::KILL)?;
        }
        self.process.wait().await?;
        Ok(())
    }
}

/// Runs the benchmark.
pub async fn run(arguments: &RegistryArguments) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("modelyard-bench-").tempdir()?;
    let mut server = Server::start(ServerOptions {
        binary: modelyard()?,
        wrapper: Vec::new(),
        data_dir: folder.path().join("data"),
        log: folder.path().join("server.log"),
        arguments: ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]
            .map(str::to_owned)
            .to_vec(),
        environment: Vec::new(),
    })
    .await?;
    server.wait_ready().await?;
    let ours = Subject {
        address: server.addresses().public.trim_start_matches("http://").parse()?,
        pid: server.addresses().pid,
    };
    complain("this server");
    let measured = measure_all(&ours).await?;
    let theirs = match &arguments.mlflow {
        None => None,
        Some(program) => {
            complain("MLflow's own server");
            let theirs = Theirs::start(program, folder.path()).await?;
            let measured = measure_all(&theirs.subject).await?;
            theirs.stop().await?;
            Some(measured)
        }
    };
    complain(&format!("making {} runs and searching them", arguments.runs));
    let search_ms = search(ours.address, arguments.runs).await?;
    server.stop().await?;
    show(arguments, &measured, theirs.as_ref(), search_ms)?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    arguments: &RegistryArguments,
    ours: &BTreeMap<&str, Measured>,
    theirs: Option<&BTreeMap<&str, Measured>>,
    search_ms: f64,
) -> Result<()> {
    if arguments.output == Format::Json {
        let all = json!({"modelyard": ours, "mlflow": theirs, "search": {"runs": arguments.runs, "p50_ms": search_ms}});
        return print(&serde_json::to_string_pretty(&all)?);
    }
    for (name, ours) in ours {
        let mut line = format!(
            "{name}: {:.0} a second, {:.3} ms of CPU each",
            ours.requests_per_second, ours.cpu_ms_per_request
        );
        if let Some(theirs) = theirs.and_then(|theirs| theirs.get(name)) {
            line.push_str(&format!(
                "; MLflow's server: {:.0} and {:.1}, so {:.0} times the requests (bar: 30), {:.0} times less CPU (bar: 50)",
                theirs.requests_per_second,
                theirs.cpu_ms_per_request,
                ours.requests_per_second / theirs.requests_per_second,
                theirs.cpu_ms_per_request / ours.cpu_ms_per_request
            ));
        }
        print(&line)?;
    }
    print(&format!(
        "first page of a search over {} runs, filtered by a metric, ordered by another: {search_ms:.1} ms at p50 (bar: 50)",
        arguments.runs
    ))
}
