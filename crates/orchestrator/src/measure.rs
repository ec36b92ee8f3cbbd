//! The metrics of the orchestrator: names and labels in one place.

use std::time::Duration;

/// Runs that ended, by how.
const RUNS_FINISHED: &str = "orchestrator_runs_finished_total";
/// Attempts of steps that ended, by what they do and how.
const STEPS_FINISHED: &str = "orchestrator_steps_finished_total";
/// How long an attempt took, in seconds, by what it does.
const STEP_DURATION: &str = "orchestrator_step_duration_seconds";
/// Triggers that were fired, by whether a run was started or the key was known.
const TRIGGERS_FIRED: &str = "orchestrator_triggers_fired_total";

/// A run ended. `status` is one of its words.
pub(crate) fn run_finished(status: &'static str) {
    metrics::counter!(RUNS_FINISHED, "status" => status).increment(1);
}

/// An attempt ended. `op` is one of the built-in ones.
pub(crate) fn step_finished(op: &'static str, outcome: &'static str, took: Duration) {
    metrics::counter!(STEPS_FINISHED, "op" => op, "outcome" => outcome).increment(1);
    metrics::histogram!(STEP_DURATION, "op" => op).record(took.as_secs_f64());
}

/// A trigger was fired.
pub(crate) fn trigger_fired(created: bool) {
    let outcome = if created { "started" } else { "repeated" };
    metrics::counter!(TRIGGERS_FIRED, "outcome" => outcome).increment(1);
}
