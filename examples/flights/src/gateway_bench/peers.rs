//! Single rows to the gradient-boosted model, beside other servers of models with the same file: `mlflow models serve` and MLServer.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::process::Command;

use super::{
    beside::CONNECTIONS,
    gateway::Gateway,
    messages,
    models::{FEATURES, INPUT, OUTPUT, gradient_boosted},
    raw::processors,
};
use crate::{
    complain,
    figures::{Ratio, median},
    load::{Load, Message, Subject, load},
    peer_server::{PeerServer, free_address},
    wire,
};

/// The endpoint, and the model's name at MLServer.
const ENDPOINT: &str = "small";
/// How often each server has its turn, beside the first one, which does not count, and for how long.
const ROUNDS: usize = 3;
const TURN: Duration = Duration::from_secs(3);

/// Saves an ONNX file as MLflow does.
const SAVE: &str = "
import sys, numpy, onnx, mlflow.onnx
from mlflow.models import infer_signature
file, folder, features, given, answered = sys.argv[1:]
rows = numpy.zeros((2, int(features)), numpy.float32)
signature = infer_signature({given: rows}, {answered: rows[:, :1]})
mlflow.onnx.save_model(onnx.load(file), folder, signature=signature, onnx_execution_providers=['CPUExecutionProvider'])
";

/// One server of others, and what came out: medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Peer {
    /// What it is called.
    pub name: &'static str,
    /// The gateway's requests per second over its own.
    pub throughput: Ratio,
    /// Its CPU time a request over the gateway's.
    pub cpu: Ratio,
    /// Requests per second of the gateway and of the other.
    pub requests_per_second: [f64; 2],
    /// How long an answer took at p50, of the gateway and of the other, in milliseconds.
    pub p50_ms: [f64; 2],
    /// Requests that either refused.
    pub failed_requests: u64,
}

/// Measures those that this Python has.
pub async fn measure(folder: &Path, python: &Path) -> Result<Vec<Peer>> {
    let folder = folder.join("peers");
    fs::create_dir_all(&folder)?;
    let onnx = gradient_boosted();
    let file = folder.join("small.onnx");
    fs::write(&file, &onnx)?;
    let model = folder.join("model");
    save(python, &file, &model).await?;
    let gateway = Gateway::start(&folder, "gateway", Vec::new()).await?;
    gateway.serve(ENDPOINT, &onnx, json!({})).await?;
    let row: Vec<f32> = (0..FEATURES).map(|feature| feature as f32 * 0.0625 - 0.9).collect();
    let mut peers = Vec::new();

    complain("  mlflow models serve");
    let invocation = |path: &str| {
        let body = json!({"inputs": {INPUT: [row]}}).to_string();
        wire::post(path, &[("content-type", "application/json")], body.as_bytes())
    };
    let ours = invocation(&format!("/endpoints/{ENDPOINT}/invocations"));
    let theirs = start_mlflow(python, &folder, &model).await?;
    let name = "mlflow models serve";
    peers.push(beside(name, gateway.subject, ours, &theirs, invocation("/invocations")).await?);
    theirs.stop().await?;

    if has(python, "mlserver_mlflow").await? {
        complain("  MLServer");
        let request = messages::json_floats(ENDPOINT, INPUT, &[1, FEATURES], &row);
        let theirs = start_mlserver(python, &folder, &model).await?;
        peers.push(beside("MLServer", gateway.subject, request.clone(), &theirs, request).await?);
        theirs.stop().await?;
    }
    gateway.stop().await?;
    Ok(peers)
}

async fn save(python: &Path, file: &Path, model: &Path) -> Result<()> {
    let output = Command::new(python)
        .args(["-c", SAVE])
        .args([file, model])
        .args([&FEATURES.to_string(), INPUT, OUTPUT])
        .output()
        .await
        .with_context(|| format!("{} cannot be started", python.display()))?;
    ensure!(
        output.status.success(),
        "{} needs mlflow, onnx and onnxruntime: {}",
        python.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn has(python: &Path, module: &str) -> Result<bool> {
    let output = Command::new(python)
        .args(["-c", &format!("import {module}")])
        .output()
        .await?;
    Ok(output.status.success())
}

/// A program beside the Python.
fn beside_python(python: &Path, name: &str) -> Result<Command> {
    let programs = python.parent().context("the Python is in no folder")?;
    let mut command = Command::new(programs.join(name));
    // They start others by their names.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(PathBuf::from(programs)).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(paths)?);
    Ok(command)
}

async fn start_mlflow(python: &Path, folder: &Path, model: &Path) -> Result<PeerServer> {
    let address = free_address()?;
    let mut command = beside_python(python, "mlflow")?;
    command
        .args(["models", "serve", "--env-manager", "local", "--host", "127.0.0.1"])
        .args(["--workers", &processors()?.to_string()])
        .args(["--port", &address.port().to_string(), "--model-uri"])
        .arg(model);
    let log = folder.join("mlflow.log");
    PeerServer::start(&mut command, address, &log, async |address| {
        is_there(address, "/ping").await
    })
    .await
}

async fn start_mlserver(python: &Path, folder: &Path, model: &Path) -> Result<PeerServer> {
    let address = free_address()?;
    let settings = json!({
        "debug": false,
        "host": "127.0.0.1",
        "http_port": address.port(),
        "grpc_port": free_address()?.port(),
        "metrics_port": free_address()?.port(),
        "parallel_workers": processors()?,
    });
    let served = json!({
        "name": ENDPOINT,
        "implementation": "mlserver_mlflow.MLflowRuntime",
        "parameters": {"uri": model},
    });
    let place = folder.join("mlserver");
    fs::create_dir_all(&place)?;
    fs::write(place.join("settings.json"), settings.to_string())?;
    fs::write(place.join("model-settings.json"), served.to_string())?;
    let mut command = beside_python(python, "mlserver")?;
    command.arg("start").arg(&place);
    let log = folder.join("mlserver.log");
    PeerServer::start(&mut command, address, &log, async |address| {
        is_there(address, &format!("/v2/models/{ENDPOINT}/ready")).await
    })
    .await
}

/// Whether a path is answered with 200.
async fn is_there(address: SocketAddr, path: &str) -> bool {
    let answer = reqwest::get(format!("http://{address}{path}")).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

async fn beside(
    name: &'static str,
    gateway: Subject,
    ours: Vec<u8>,
    theirs: &PeerServer,
    their_request: Vec<u8>,
) -> Result<Peer> {
    let load_of = |request: Vec<u8>| Load {
        connections: CONNECTIONS,
        turn: TURN,
        message: Message::Http(request.into()),
    };
    let (our_load, their_load) = (load_of(ours), load_of(their_request));
    let (mut throughput, mut cpu, mut failed_requests) = (Vec::new(), Vec::new(), 0);
    let (mut rates, mut p50) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    // The first round warms both up and does not count.
    for round in 0..=ROUNDS {
        let turns = [
            load(gateway, &our_load).await?,
            load(theirs.subject, &their_load).await?,
        ];
        failed_requests += turns.iter().map(|turn| turn.failed).sum::<u64>();
        if round == 0 {
            continue;
        }
        let [one, other] = &turns;
        throughput.push(one.rate() / other.rate());
        cpu.push(other.server_cpu_us() / one.server_cpu_us());
        for (turn, (rates, p50)) in turns.iter().zip(rates.iter_mut().zip(&mut p50)) {
            rates.push(turn.rate());
            p50.push(turn.p50_us() / 1e3);
        }
    }
    Ok(Peer {
        name,
        throughput: Ratio::of(throughput),
        cpu: Ratio::of(cpu),
        requests_per_second: rates.map(|rates| median(&rates)),
        p50_ms: p50.map(|p50| median(&p50)),
        failed_requests,
    })
}
