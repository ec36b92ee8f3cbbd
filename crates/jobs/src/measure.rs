//! The metrics of the queue. Labels are queues and outcomes, both few.

use std::time::Duration;

use metrics::{counter, histogram};

/// Jobs claimed, by queue.
const CLAIMED: &str = "modelyard_jobs_claimed_total";
/// Attempts ended, by queue and outcome.
const ENDED: &str = "modelyard_jobs_ended_total";
/// Time from being due to being claimed, by queue.
const WAIT_SECONDS: &str = "modelyard_jobs_wait_seconds";
/// Time in the handler, by queue.
const RUN_SECONDS: &str = "modelyard_jobs_run_seconds";
/// Looks into the queue that failed.
const POLL_ERRORS: &str = "modelyard_jobs_poll_errors_total";

pub(crate) fn claimed(queue: &str, wait: Duration) {
    counter!(CLAIMED, "queue" => queue.to_owned()).increment(1);
    histogram!(WAIT_SECONDS, "queue" => queue.to_owned()).record(wait.as_secs_f64());
}

pub(crate) fn ended(queue: &str, outcome: &'static str, run: Duration) {
    counter!(ENDED, "queue" => queue.to_owned(), "outcome" => outcome).increment(1);
    histogram!(RUN_SECONDS, "queue" => queue.to_owned()).record(run.as_secs_f64());
}

pub(crate) fn poll_failed() {
    counter!(POLL_ERRORS).increment(1);
}
