//! `flights bench`: a server with the first model, and what it is measured against.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use modelyard_flights::{Api, ENDPOINT, MainJob, Server, ServerOptions, train_first_model};
use serde_json::json;

use crate::{
    Format,
    bench::{Comparison, compare},
    complain,
    evidence::{self, Evidence},
    example_folder,
    load::Subject,
    modelyard, print,
    terminal::Terminal,
};

/// The bar: requests per second over those of the bare handler.
const MIN_THROUGHPUT_RATIO: f64 = 0.7;

/// One request, as the README shows it.
const REQUEST: &str = include_str!("../request.json");

/// Share of the flights that the model is trained on; the size of the model is that of the whole.
const SAMPLE: f64 = 0.5;

/// How long a call is tried again.
const CALLS_AWAY: Duration = Duration::from_secs(10);

/// Runs the benchmark.
pub async fn run(format: Format) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("modelyard-bench-").tempdir()?;
    let terminal = Terminal::new();
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
    let addresses = server.addresses().clone();
    let job = MainJob {
        url: addresses.public.clone(),
        grpc_url: addresses.public.clone(),
        binary: modelyard()?,
        folder: example_folder(),
        months: 1,
        sample: SAMPLE,
        concurrency: 1,
        away: Duration::ZERO,
    };
    let trained = train_first_model(&job, &terminal).await;
    terminal.finish();
    trained.with_context(|| format!("the server's log says:\n{}\nerror", server.last_log_lines()))?;
    // Without the shadow of the main job: each request is predicted once, as by the bare handler.
    let spec = json!({"routes": [{"model": "flight-delay@champion"}]});
    let api = Api::new(&addresses.public, CALLS_AWAY)?;
    api.put(&format!("endpoints/{ENDPOINT}"), &spec).await?;
    complain("loading the gateway and a bare handler in turns");
    let gateway = Subject {
        address: addresses.public.trim_start_matches("http://").parse()?,
        pid: addresses.pid,
    };
    let comparison = compare(gateway, &format!("/v2/models/{ENDPOINT}/infer"), REQUEST).await?;
    complain("knowing callers, writing and verifying the audit chain");
    let evidence = evidence::measure(&addresses.public, &addresses.internal).await?;
    server.stop().await?;
    show(&comparison, &evidence, format)?;
    Ok(if comparison.failed_requests == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(comparison: &Comparison, evidence: &Evidence, format: Format) -> Result<()> {
    if format == Format::Json {
        let all = json!({"prediction": comparison, "access": evidence});
        return print(&serde_json::to_string_pretty(&all)?);
    }
    print(&format!(
        "access: {:.1} µs at p50 to know a caller and its rights (bar: 20); audit chain: {:.0} events per second, each on the disk before its answer (bar: 10,000), {} events verified in {:.1} s (bar: 5 s for 1,000,000)",
        evidence.authorize_p50_us, evidence.events_per_second, evidence.verified_events, evidence.verify_seconds
    ))?;
    print(&format!(
        "prediction over HTTP beside a bare handler: {:.2} of its requests per second (bar: {MIN_THROUGHPUT_RATIO}), {:.2} times its CPU time a request",
        comparison.throughput.median, comparison.cpu_ratio
    ))?;
    print(&format!(
        "rounds: {}; failed requests: {}",
        comparison.throughput.shown(),
        comparison.failed_requests
    ))
}
