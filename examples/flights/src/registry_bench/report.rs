//! What the benchmark of the registry prints.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;
use serde::Serialize;

use super::{
    artifacts::{Copies, FILE_BYTES},
    history::WholeHistory,
    tracking::Measured,
};
use crate::{
    Format,
    figures::{Ratio, at_least, at_most},
    print,
    process::Peaks,
};

/// The bar: requests per second over those of MLflow's server.
const MIN_REQUESTS: f64 = 30.0;
/// The bar: CPU time a request of MLflow's server over ours.
const MIN_CPU: f64 = 50.0;
/// The bar: rate of artifacts over that of the plain copy.
const MIN_COPY: f64 = 0.8;
/// The bar of the search and of the chart.
const MAX_ANSWER_MS: f64 = 50.0;
/// The bar of the start, with so many runs.
const MAX_READY_MS: f64 = 1000.0;
/// The runs that the bar of the start is for.
const READY_RUNS: usize = 1_000_000;
/// The bar of the resident memory, in megabytes.
const MAX_MEMORY_MB: f64 = 300.0;
/// Bytes of a megabyte.
const MEGABYTE: f64 = 1e6;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many runs were searched.
    pub runs: usize,
    /// The operations of tracking.
    #[serde(rename = "modelyard")]
    pub tracking: BTreeMap<&'static str, Measured>,
    /// The same by MLflow's server.
    #[serde(rename = "mlflow")]
    pub theirs: Option<BTreeMap<&'static str, Measured>>,
    /// Beside a plain copy.
    pub artifacts: Copies,
    /// At p50.
    pub chart_ms: f64,
    /// By a server that was just started.
    pub whole_history: WholeHistory,
    /// At p50.
    pub search_ms: f64,
    /// From the start of the process until it says that it is ready.
    pub ready_ms: f64,
    /// By load, in its order.
    pub peaks: Peaks,
}

/// Prints a report. A bar that is not met is marked.
pub fn show(report: &Report, format: Format) -> Result<()> {
    if format == Format::Json {
        return print(&serde_json::to_string_pretty(report)?);
    }
    let mut lines: Vec<String> = report
        .tracking
        .iter()
        .map(|(name, ours)| tracking_line(name, *ours, report.theirs.as_ref().and_then(|theirs| theirs.get(name))))
        .collect();
    lines.push(format!(
        "artifacts of {} MiB beside a plain copy through axum on the same disk, which fsyncs each file too, but makes and verifies no digest \
         and has no database:",
        FILE_BYTES >> 20
    ));
    lines.push(copy_line("  upload", &report.artifacts.upload));
    lines.push(copy_line("  download", &report.artifacts.download));
    lines.push(format!(
        "chart of a metric history of {} points: {:.1} ms at p50 ({})",
        report.whole_history.points,
        report.chart_ms,
        at_most(report.chart_ms, MAX_ANSWER_MS, " ms")
    ));
    lines.push(history_line(&report.whole_history));
    lines.push(format!(
        "first page of a search over {} runs, filtered by a metric, ordered by another: {:.1} ms at p50 ({})",
        report.runs,
        report.search_ms,
        at_most(report.search_ms, MAX_ANSWER_MS, " ms")
    ));
    lines.push(ready_line(report));
    lines.push(memory_line(&report.peaks));
    lines.iter().try_for_each(|line| print(line))
}

fn tracking_line(name: &str, ours: Measured, theirs: Option<&Measured>) -> String {
    let mut line = format!(
        "{name}: {:.0} a second, {:.3} ms of CPU each",
        ours.requests_per_second, ours.cpu_ms_per_request
    );
    if let Some(theirs) = theirs {
        let requests = ours.requests_per_second / theirs.requests_per_second;
        let cpu = theirs.cpu_ms_per_request / ours.cpu_ms_per_request;
        let _ = write!(
            line,
            "; MLflow's server: {:.0} and {:.1}, so {requests:.0} times the requests ({}), {cpu:.0} times less CPU ({})",
            theirs.requests_per_second,
            theirs.cpu_ms_per_request,
            at_least(requests, MIN_REQUESTS),
            at_least(cpu, MIN_CPU)
        );
    }
    line
}

fn copy_line(direction: &str, ratio: &Ratio) -> String {
    format!(
        "{direction}: {:.2} of its rate ({}; rounds: {})",
        ratio.median,
        at_least(ratio.median, MIN_COPY),
        ratio.shown()
    )
}

fn history_line(read: &WholeHistory) -> String {
    let (before, peak) = (
        read.memory_before_bytes as f64 / MEGABYTE,
        read.memory_peak_bytes as f64 / MEGABYTE,
    );
    format!(
        "the same history whole: {:.0} MB in {:.1} s; resident memory of the server, just started: {before:.0} MB before, {peak:.0} MB \
         at most meanwhile, so {:.0} MB more",
        read.bytes as f64 / MEGABYTE,
        read.seconds,
        peak - before
    )
}

fn ready_line(report: &Report) -> String {
    let bar = at_most(report.ready_ms, MAX_READY_MS, " ms");
    let meant_for = if report.runs < READY_RUNS {
        format!("; it is meant for {READY_RUNS} runs: --runs {READY_RUNS}")
    } else {
        String::new()
    };
    format!(
        "start with {} runs: ready after {:.0} ms ({bar}{meant_for})",
        report.runs, report.ready_ms
    )
}

fn memory_line(peaks: &Peaks) -> String {
    let highest = peaks.highest() as f64 / MEGABYTE;
    let loads: Vec<String> = peaks
        .all()
        .iter()
        .map(|peak| format!("{} {:.0}", peak.load, peak.bytes as f64 / MEGABYTE))
        .collect();
    format!(
        "most resident memory of the server: {highest:.0} MB ({}; {})",
        at_most(highest, MAX_MEMORY_MB, " MB"),
        loads.join(", ")
    )
}
