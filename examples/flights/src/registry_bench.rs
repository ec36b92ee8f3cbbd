//! `flights bench registry`: tracking by MLflow's protocol, beside MLflow's own server where there is one, in one run; artifacts
//! beside a plain copy; a long metric history; a search over many runs; the server's memory under all that, and its start with what
//! it then has.

mod artifacts;
mod bare_files;
mod history;
mod mlflow;
mod report;
mod requests;
mod search;
mod tracking;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use modelyard_flights::{Server, ServerOptions};
use tokio::time::Instant;

pub use self::bare_files::serve as serve_bare_files;
use self::{
    report::{Report, show},
    tracking::{Measured, measure_all},
};
use crate::{Format, complain, figures::median, load::Subject, modelyard, process::Peaks};

/// Connections that send one request after the other.
const CONNECTIONS: usize = 8;
/// How often the server is started with what the loads have left.
const STARTS: usize = 3;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub struct RegistryArguments {
    /// The program `mlflow` of a Python environment, whose server is measured in the same run
    #[arg(long, value_name = "PROGRAM")]
    mlflow: Option<PathBuf>,
    /// How many runs are searched, and are there when the server starts
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    runs: usize,
    /// How many points the long metric history has
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT")]
    points: usize,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

/// Runs the benchmark.
pub async fn run(arguments: &RegistryArguments) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("modelyard-bench-").tempdir()?;
    let mut peaks = Peaks::default();
    let server = start(folder.path()).await?;
    let ours = subject(&server)?;
    complain("this server");
    let tracking = measure_all(&ours).await?;
    peaks.note(ours.pid, "tracking")?;
    let theirs = measure_theirs(arguments, folder.path()).await?;
    complain("artifacts, beside a plain copy");
    let artifacts = artifacts::compare(ours.address, folder.path()).await?;
    peaks.note(ours.pid, "artifacts")?;
    complain(&format!("a metric history of {} points", arguments.points));
    let run_id = history::log(ours.address, arguments.points).await?;
    peaks.note(ours.pid, "logging a long history")?;
    let chart_ms = history::chart(ours.address, &run_id, arguments.points).await?;
    peaks.note(ours.pid, "its chart")?;
    complain(&format!("making {} runs and searching them", arguments.runs));
    let search_ms = search::search(ours.address, arguments.runs).await?;
    peaks.note(ours.pid, "making and searching runs")?;
    server.stop().await?;
    complain("starting with all that, and reading the history whole");
    let (server, ready_ms) = start_again(folder.path()).await?;
    let ours = subject(&server)?;
    let whole_history = history::read_whole(ours, &run_id, arguments.points).await?;
    peaks.note(ours.pid, "reading a long history")?;
    server.stop().await?;
    let report = Report {
        runs: arguments.runs,
        tracking,
        theirs,
        artifacts,
        chart_ms,
        whole_history,
        search_ms,
        ready_ms,
        peaks,
    };
    show(&report, arguments.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn measure_theirs(
    arguments: &RegistryArguments,
    folder: &Path,
) -> Result<Option<BTreeMap<&'static str, Measured>>> {
    let Some(program) = &arguments.mlflow else {
        return Ok(None);
    };
    complain("MLflow's own server");
    let theirs = mlflow::start(program, folder).await?;
    let measured = measure_all(&theirs.subject).await?;
    theirs.stop().await?;
    Ok(Some(measured))
}

/// A server on what is in the folder, ready.
async fn start(folder: &Path) -> Result<Server> {
    let mut server = Server::start(ServerOptions {
        binary: modelyard()?,
        wrapper: Vec::new(),
        data_dir: folder.join("data"),
        log: folder.join("server.log"),
        arguments: ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]
            .map(str::to_owned)
            .to_vec(),
        environment: Vec::new(),
    })
    .await?;
    server.wait_ready().await?;
    Ok(server)
}

/// Starts the server several times. The last one, and the median of how long they took until they were ready, in milliseconds; some
/// 20 of them are the time between two looks.
async fn start_again(folder: &Path) -> Result<(Server, f64)> {
    let mut took = Vec::new();
    loop {
        let started = Instant::now();
        let server = start(folder).await?;
        took.push(started.elapsed().as_secs_f64() * 1000.0);
        if took.len() == STARTS {
            return Ok((server, median(&took)));
        }
        server.stop().await?;
    }
}

fn subject(server: &Server) -> Result<Subject> {
    Ok(Subject {
        address: server.addresses().public.trim_start_matches("http://").parse()?,
        pid: server.addresses().pid,
    })
}
