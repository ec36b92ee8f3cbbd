//! What the audit chain is told by a service with a database of its own: an event is a job in the transaction of its change,
//! and is delivered until the registry has it. The chain knows an event by its id, so that delivering it again adds nothing.

use async_trait::async_trait;
use modelyard_auth::{Access, audit::NewEvent};

use crate::{Handler, Job, JobId, MAX_ATTEMPTS, NewJob, Outcome, Result, Running};

/// The queue of events on their way to the chain.
pub const QUEUE: &str = "audit";

/// The job that delivers an event.
///
/// # Errors
/// None that can happen: an event is JSON always.
pub fn delivery(event: &NewEvent) -> Result<NewJob> {
    let payload =
        serde_json::to_value(event).map_err(|error| modelyard_db::Error::value("audit event", &error.to_string()))?;
    Ok(NewJob {
        max_attempts: MAX_ATTEMPTS,
        ..NewJob::new(JobId::from(event.id), QUEUE, payload, event.at)
    })
}

/// Delivers events to the registry.
pub struct Delivery(pub Access);

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
