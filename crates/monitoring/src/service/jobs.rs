//! The jobs of monitoring.

use std::sync::Arc;

use async_trait::async_trait;
use modelyard_common::error::Chain;
use modelyard_jobs::{Handler, Job, Outcome, Running};
use serde::de::DeserializeOwned;

use super::Monitoring;
use crate::{
    error::{Error, Result},
    store::{self, ScoreJob},
};

/// Does the jobs of all queues. A job settles itself in the transaction that stores what it did.
pub struct JobHandler(pub Arc<Monitoring>);

fn payload<T: DeserializeOwned>(job: &Job) -> Result<T> {
    let read = serde_json::from_value(job.payload.clone());
    read.map_err(|_| modelyard_db::Error::value("payload of a job", &job.payload.to_string()).into())
}

impl JobHandler {
    async fn work(&self, job: &Job, running: &Running) -> Result<()> {
        let claim = &running.claim;
        match job.queue.as_str() {
            store::COMMIT => self.0.run_commit(&payload(job)?, claim).await,
            store::LABELS => self.0.run_labels(&payload(job)?, claim).await,
            store::BACKFILL => self.0.run_backfill(&payload(job)?, claim).await,
            store::FIRE => self.0.run_fire(&payload(job)?, claim).await,
            store::SCORE => {
                let window: ScoreJob = payload(job)?;
                let scored = self.0.run_score(&window, claim).await;
                if let Err(error) = &scored {
                    self.0.store.note_error(&window, &Chain(error).to_string()).await?;
                }
                scored
            }
            queue => Err(Error::Log(format!("nobody does jobs of the queue `{queue}`"))),
        }
    }
}

#[async_trait]
impl Handler for JobHandler {
    async fn run(&self, job: &Job, running: &Running) -> Outcome {
        match self.work(job, running).await {
            // A stale job is held by another attempt now: what that one does counts.
            Ok(()) | Err(Error::Jobs(modelyard_jobs::Error::Stale(_))) => Outcome::Settled,
            // Nothing here is hopeless: storages and peers come back, and what is at fault may be mended. The number of
            // attempts is bounded, and the upkeep begins anew.
            Err(error) => Outcome::retry(Chain(&error)),
        }
    }
}
