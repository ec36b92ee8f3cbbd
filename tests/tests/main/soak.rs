//! A gateway under requests of many shapes for a while: the hour of it is the benchmark's.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::deployment::binary;

/// How long it goes on, in minutes.
const MINUTES: &str = "0.5";

/// By how much the memory may be more at the end than after a third of it. In so little time caches are still being filled, and beside
/// other tests; what kept a hundred bytes of each request would be far beyond it.
const MAX_GROWTH: f64 = 1.5;

/// The fewest requests that show anything.
const MIN_REQUESTS: u64 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_requests() -> Result<()> {
    let flights = binary().with_file_name("flights");
    let arguments = ["bench", "gateway", "--only", "memory", "--soak", MINUTES, "-o", "json"];
    let ran = Command::new(&flights)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let ran = ran.with_context(|| {
        format!(
            "`{}` cannot be run: build it with `cargo build --workspace --bins`",
            flights.display()
        )
    })?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let report: Value = serde_json::from_slice(&ran.stdout)?;
    let memory = report.get("memory").context("the memory is not in the report")?;
    let requests = memory.get("requests").and_then(Value::as_u64).unwrap_or_default();
    let growth = memory.get("growth").and_then(Value::as_f64).context("no growth")?;
    ensure!(requests >= MIN_REQUESTS, "{memory}");
    ensure!(growth <= MAX_GROWTH, "{memory}");
    Ok(())
}
