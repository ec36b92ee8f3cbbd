//! What the audit chain is told: an event is a job in the transaction of its change, and is delivered until the registry
//! has it. The chain knows an event by its id, so that delivering it again adds nothing.

use async_trait::async_trait;
use modelyard_artifacts::Digest;
use modelyard_auth::{Access, audit::NewEvent};
use modelyard_jobs::{Handler, Job, JobId, MAX_ATTEMPTS, NewJob, Outcome, Running};

use crate::error::Result;

/// The queue of events on their way to the chain.
pub(crate) const QUEUE: &str = "audit";

/// The event with the digests of a spec before and after.
pub(crate) fn change(event: &NewEvent, before: Option<&str>, after: Option<&str>) -> NewEvent {
    let digest = |spec: &str| Digest::of(spec.as_bytes()).to_string();
    NewEvent {
        before_digest: before.map(digest),
        after_digest: after.map(digest),
        ..event.clone()
    }
}

/// The job that delivers an event.
pub(crate) fn delivery(event: &NewEvent) -> Result<NewJob> {
    let payload =
        serde_json::to_value(event).map_err(|error| modelyard_db::Error::value("audit event", &error.to_string()))?;
    Ok(NewJob {
        max_attempts: MAX_ATTEMPTS,
        ..NewJob::new(JobId::from(event.id), QUEUE, payload, event.at)
    })
}

/// Delivers events to the registry.
pub(crate) struct Delivery(pub(crate) Access);

#[async_trait]
impl Handler for Delivery {
    async fn run(&self, job: &Job, _: &Running) -> Outcome {
        match serde_json::from_value::<NewEvent>(job.payload.clone()) {
            Ok(event) => match self.0.deliver(vec![event]).await {
                Ok(()) => Outcome::Done,
                // Nothing that happened may be missing from the chain: the registry comes back.
                Err(error) => Outcome::retry(error),
            },
            Err(error) => Outcome::fail(format!("the job is no audit event of this version: {error}")),
        }
    }
}
