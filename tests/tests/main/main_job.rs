//! The main job in every topology, on every database, and while processes are killed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use modelyard_flights::{MIN_AUC_GAIN, Quiet, Report, run_main_job};
use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use crate::deployment::{Deployment, Engine, Topology};

/// The small job: enough flights for an alert and a retrained model that is better, few enough for a minute.
const MONTHS: usize = 5;
const SAMPLE: f64 = 0.05;

/// The largest difference between two values of one metric, measured on the same predictions.
const TOLERANCE: f64 = 1e-6;

/// How long calls are tried again while processes are down.
const AWAY: Duration = Duration::from_mins(2);

/// Few requests at once, so that the replays last and more of the kills meet requests under way.
const FEW_REQUESTS: usize = 2;

/// The kills that a disturbed job must have seen.
const MIN_KILLS: u32 = 5;

/// Another seed for the moments of the kills, for looking into a failure or for more of them.
const SEED: &str = "MODELYARD_KILL_SEED";

/// How long a process lives, and how long it stays dead, in milliseconds.
const LIFE_MS: std::ops::Range<u64> = 100..1_500;
const DEATH_MS: std::ops::Range<u64> = 0..600;
/// After so many kills one life is longer, so that a machine that is slow gets a step done now and then.
const KILLS_IN_A_ROW: u32 = 5;
const LONG_LIFE_MS: std::ops::Range<u64> = 4_000..8_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_comes_out_the_same_in_every_topology_and_on_every_database() -> Result<()> {
    let expected = undisturbed(Topology::AllInOne, Engine::Sqlite).await?;
    println!("{}", expected.table());
    ensure!(
        expected.summary.retrainings > 0,
        "no model was retrained, so the job shows nothing"
    );
    for (topology, engine) in [
        (Topology::Split, Engine::Sqlite),
        (Topology::AllInOne, Engine::Postgres),
        (Topology::Split, Engine::Postgres),
    ] {
        let report = undisturbed(topology, engine).await?;
        check_same(&expected, &report).with_context(|| format!("{topology:?} on {engine:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_comes_out_the_same_while_the_server_is_killed() -> Result<()> {
    disturbed_like_undisturbed(Topology::AllInOne, 20_130_301).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_comes_out_the_same_while_single_roles_are_killed() -> Result<()> {
    disturbed_like_undisturbed(Topology::Split, 20_130_401).await
}

#[tokio::test(flavor = "multi_thread")]
async fn retraining_on_all_flights_beats_never_retraining() -> Result<()> {
    let mut deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let job = deployment.main_job(10, 1.0, Duration::ZERO);
    let report = run_main_job(&job, &Quiet).await;
    let report = with_logs(report, &mut deployment)?;
    println!("{}\n{}\n{:?}", report.table(), report.closing_line(), report.parts);
    let shortfalls = report.shortfalls();
    ensure!(shortfalls.is_empty(), "{shortfalls:?}");
    ensure!(report.summary.auc_gain >= MIN_AUC_GAIN);
    deployment.stop().await
}

async fn undisturbed(topology: Topology, engine: Engine) -> Result<Report> {
    let mut deployment = Deployment::start(topology, engine).await?;
    // Nothing is tried again: the switch of the endpoint must not cost a single request.
    let job = deployment.main_job(MONTHS, SAMPLE, Duration::ZERO);
    let report = run_main_job(&job, &Quiet).await;
    let report = with_logs(report, &mut deployment)?;
    check_complete(&report)?;
    deployment.stop().await?;
    Ok(report)
}

#[expect(clippy::print_stdout, reason = "a test shows what it measured")]
async fn disturbed_like_undisturbed(topology: Topology, seed: u64) -> Result<()> {
    let expected = undisturbed(topology, Engine::Sqlite).await?;
    let mut deployment = Deployment::start(topology, Engine::Sqlite).await?;
    let mut job = deployment.main_job(MONTHS, SAMPLE, AWAY);
    job.concurrency = FEW_REQUESTS;
    let seed = std::env::var(SEED)
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(seed);
    let mut kills = 0;
    let report = tokio::select! {
        report = run_main_job(&job, &Quiet) => report,
        failed = kill_at_random(&mut deployment, seed, &mut kills) => failed.map(|never| match never {}),
    };
    println!("{kills} kills with the seed {seed}");
    let report = with_logs(report, &mut deployment)?;
    println!("{}\nrequests sent again: {}", report.table(), report.retried_requests);
    ensure!(kills >= MIN_KILLS, "the job was disturbed only {kills} times");
    check_complete(&report)?;
    check_same(&expected, &report)?;
    for index in 0..deployment.len() {
        deployment.kill(index)?;
    }
    Ok(())
}

/// Kills a process at a random moment and starts it again, on and on.
async fn kill_at_random(deployment: &mut Deployment, seed: u64, kills: &mut u32) -> Result<std::convert::Infallible> {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let is_long = *kills % KILLS_IN_A_ROW == KILLS_IN_A_ROW - 1;
        let life = if is_long { LONG_LIFE_MS } else { LIFE_MS };
        tokio::time::sleep(Duration::from_millis(random.random_range(life))).await;
        // Half of the kills meet the last process, which takes the requests.
        let last = deployment.len() - 1;
        let index = if random.random_bool(0.5) {
            last
        } else {
            random.random_range(0..=last)
        };
        deployment.kill(index)?;
        *kills += 1;
        tokio::time::sleep(Duration::from_millis(random.random_range(DEATH_MS))).await;
        deployment.restart(index).await?;
    }
}

/// Adds the ends of the servers' logs to a failure, and keeps the folder.
fn with_logs(report: Result<Report>, deployment: &mut Deployment) -> Result<Report> {
    if report.is_err() {
        deployment.keep_folder();
    }
    report.with_context(|| {
        format!(
            "{}\nfolder: {}\nerror",
            deployment.logs(),
            deployment.folder().display()
        )
    })
}

fn check_complete(report: &Report) -> Result<()> {
    ensure!(report.warnings.is_empty(), "{:?}", report.warnings);
    ensure!(report.summary.failed_requests == 0);
    Ok(())
}

/// Checks that two jobs came out the same: counts, versions and alerts exactly, metrics up to the tolerance.
fn check_same(expected: &Report, report: &Report) -> Result<()> {
    let facts = |report: &Report| {
        let rows = report.months.iter();
        rows.map(|row| {
            (
                row.month.clone(),
                row.requests,
                row.version,
                row.alert.clone(),
                row.retrained_to,
            )
        })
        .collect::<Vec<_>>()
    };
    ensure!(
        facts(expected) == facts(report),
        "expected\n{}\nand got\n{}",
        expected.table(),
        report.table()
    );
    for (one, other) in expected.months.iter().zip(&report.months) {
        for (name, one, other) in [
            ("auc", one.auc, other.auc),
            (
                "auc_never_retrained",
                one.auc_never_retrained,
                other.auc_never_retrained,
            ),
            ("drift_share", one.drift_share, other.drift_share),
        ] {
            ensure!((one - other).abs() <= TOLERANCE, "{name} of a month: {one} and {other}");
        }
    }
    Ok(())
}
