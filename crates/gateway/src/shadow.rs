//! Shadow routes: the same inputs, answered beside the traffic, for the log alone.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use modelyard_common::id::SharedIds;
use modelyard_inference::{Error as InferenceError, Prediction, Priority, Tensor, Terms};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    meters::{DropReason, Outcome, RouteMeters},
    predict::outcome_of,
    routing::Version,
    spool::{Definition, Encoded, EndpointLog, Entry, Owed, OwedToken, RawPrediction, read_live},
};

/// The most answers that wait in memory; more wait on disk.
const MAX_QUEUED: usize = 4096;

/// The most bytes of records that wait in memory.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Records of more bytes than this wait on disk, so that the queue's bytes stay bounded.
const MAX_RECORD_BYTES: usize = MAX_QUEUED_BYTES / MAX_QUEUED;

/// How many are computed at once: enough for a batch, few enough to leave the processors to live traffic.
const CONCURRENCY: usize = 16;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often and after what time a full queue is tried again: a shadow gives way to live traffic of the same version.
const ATTEMPTS: u32 = 200;
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// One answer to be computed.
pub(crate) struct ShadowJob {
    /// The live record's payload.
    pub record: Bytes,
    /// What it means.
    pub live: Arc<Definition>,
    pub shadow: Arc<Version>,
    pub meters: Arc<RouteMeters>,
    pub log: Arc<EndpointLog>,
    pub owed: OwedToken,
}

/// The way to the shadows' workers.
#[derive(Clone)]
pub(crate) struct ShadowQueue {
    sender: mpsc::Sender<ShadowJob>,
}

impl ShadowQueue {
    /// A queue, and what its worker takes from.
    pub(crate) fn new() -> (Self, mpsc::Receiver<ShadowJob>) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        (Self { sender }, receiver)
    }

    /// Takes a job, now or, when the queue is full, from disk later. When the disk's room is tight as well, the answer
    /// is given up, which is counted.
    pub(crate) fn push(&self, job: ShadowJob) {
        let refused = if job.record.len() > MAX_RECORD_BYTES {
            Some(job)
        } else {
            match self.sender.try_send(job) {
                Ok(()) => None,
                Err(mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) => Some(job),
            }
        };
        let Some(job) = refused else { return };
        if job.log.room().is_tight() {
            job.meters.count(Outcome::Rejected);
            job.log.room().lose(DropReason::ShadowOverload, 1);
        } else {
            job.owed.postpone();
        }
    }
}

/// Computes what is queued, until the soft end; what is left then is computed from disk, after the next start.
pub(crate) async fn work(
    mut jobs: mpsc::Receiver<ShadowJob>,
    ids: SharedIds,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = soft.cancelled() => break,
            Some(()) = running.next() => {}
            job = jobs.recv(), if running.len() < CONCURRENCY => match job {
                Some(job) => running.push(answer_job(job, &ids)),
                None => break,
            },
        }
    }
    jobs.close();
    while let Some(job) = jobs.recv().await {
        job.owed.postpone();
    }
    while running.next().await.is_some() {}
    Ok(())
}

async fn answer_job(job: ShadowJob, ids: &SharedIds) {
    let Some(record) = read_live(job.record) else {
        job.log.room().lose(DropReason::Damaged, 1);
        return;
    };
    let (owed, meters) = (job.owed.owed(), Some(&*job.meters));
    answer(&record, &job.live, &job.shadow, meters, &job.log, owed, ids).await;
}

/// Computes an owed answer and writes it to the log; what cannot be computed is counted as lost.
pub(crate) async fn answer(
    record: &RawPrediction,
    live: &Definition,
    shadow: &Version,
    meters: Option<&RouteMeters>,
    log: &EndpointLog,
    owed: Owed,
    ids: &SharedIds,
) {
    match compute(record, live, shadow, owed).await {
        Ok((encoded, latency, batch_rows)) => {
            if let Some(meters) = meters {
                meters.answered(latency, batch_rows);
            }
            // A lost record was counted where it was lost.
            let entry = Entry {
                record: encoded,
                definition: Arc::clone(&shadow.definition),
                owed: Vec::new(),
            };
            log.append_shadow(entry, || ids.next());
        }
        Err(error) => {
            if let Some(meters) = meters {
                meters.count(outcome_of(&error));
            }
            tracing::debug!(version = %shadow.name, request_id = record.facts().id, %error, "a shadow has no answer");
            log.room().lose(DropReason::ShadowFailed, 1);
        }
    }
}

async fn compute(
    record: &RawPrediction,
    live: &Definition,
    shadow: &Version,
    owed: Owed,
) -> Result<(Encoded, Duration, usize)> {
    let mut inputs = record
        .inputs(live)
        .ok_or_else(|| Error::invalid("the logged inputs cannot be read"))?;
    // A version may take fewer inputs than the one that clients see.
    let signature = shadow.signature();
    inputs.retain(|input| signature.inputs.iter().any(|spec| spec.name == input.name()));
    let inputs = signature.arrange(inputs)?;
    let encoded = Encoded::shadow(&shadow.definition, &record.facts(), &inputs, owed);
    let started = Instant::now();
    let prediction = predict(shadow, inputs, started + DEADLINE).await?;
    let latency = started.elapsed();
    let encoded = encoded
        .finish(&shadow.definition, latency.as_micros() as u64, &prediction.outputs)
        .ok_or_else(|| Error::invalid("the outputs are not one for each row"))?;
    Ok((encoded, latency, prediction.batch_rows))
}

/// Predicts; waits while live traffic of the same version has its queue full.
async fn predict(shadow: &Version, inputs: Vec<Tensor>, deadline: Instant) -> Result<Prediction> {
    let mut attempts = 0;
    // What clients wait for goes first.
    let terms = Terms {
        deadline: Some(deadline),
        priority: Priority::Low,
        ..Terms::default()
    };
    loop {
        attempts += 1;
        let predictor = shadow.model.predictor().await?;
        match predictor.predict_on(terms, inputs.clone()).await {
            Err(InferenceError::QueueFull { .. } | InferenceError::Overloaded { .. }) if attempts < ATTEMPTS => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            result => return Ok(result?),
        }
    }
}
