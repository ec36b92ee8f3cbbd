//! The operations of monitoring, which its faces and its jobs call.

mod alerts;
mod comparisons;
mod jobs;
mod predictions;
mod resources;
mod score;
mod segments;

use std::{convert::Infallible, sync::Arc, time::Duration};

use arrow::array::RecordBatch;
use futures::TryStreamExt as _;
use modelyard_analytics::{Analytics, SendableRecordBatchStream};
use modelyard_common::{Timestamp, clock::SharedClock};
use modelyard_jobs::JobStore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use comparisons::ComparisonRequest;
pub use jobs::JobHandler;

use crate::{
    error::{Error, Result},
    measure,
    peers::{Orchestrator, Registry},
    store::Store,
    tables::EndpointTables,
};

/// How often is looked for work that no job is there for, and for what can be forgotten.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long segments are remembered that were committed, so that handing them over again costs nothing.
const KEEP_SEGMENTS: Duration = Duration::from_hours(7 * 24);
/// How many of a kind are forgotten in one transaction, and each time that is looked: writers wait for it.
const FORGET_BATCH: u32 = 500;
/// The most endpoints that are looked at: for a request id without an endpoint, and for metrics.
const MAX_ENDPOINTS: u32 = 1000;

/// How many batches of a query wait for the thread that computes.
const BATCHES_AHEAD: usize = 2;

/// Computes something of what a query gives, on a thread of its own and one batch behind the query.
async fn compute_over<T: Send + 'static>(
    mut answers: SendableRecordBatchStream,
    work: impl FnOnce(&mut dyn Iterator<Item = RecordBatch>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, mut receiver) = mpsc::channel(BATCHES_AHEAD);
    let numbers = tokio::task::spawn_blocking(move || work(&mut std::iter::from_fn(|| receiver.blocking_recv())));
    let read = async {
        while let Some(batch) = answers.try_next().await.map_err(|error| Error::Query(error.into()))? {
            // The thread has stopped at an error, which it answers with.
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        Ok::<_, Error>(())
    }
    .await;
    drop(sender);
    let computed = numbers.await.map_err(|error| Error::Thread(error.to_string()))?;
    read?;
    computed
}

/// How long is kept what would grow for ever.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Windows after their last change.
    pub windows: Duration,
    /// Alerts after their end.
    pub alerts: Duration,
}

/// Monitoring.
pub struct Monitoring {
    store: Arc<dyn Store>,
    jobs: Arc<dyn JobStore>,
    analytics: Analytics,
    registry: Registry,
    orchestrator: Orchestrator,
    clock: SharedClock,
    retention: Retention,
}

impl Monitoring {
    /// Monitoring over what it needs.
    #[must_use]
    pub const fn new(
        store: Arc<dyn Store>,
        jobs: Arc<dyn JobStore>,
        analytics: Analytics,
        registry: Registry,
        orchestrator: Orchestrator,
        clock: SharedClock,
        retention: Retention,
    ) -> Self {
        Self {
            store,
            jobs,
            analytics,
            registry,
            orchestrator,
            clock,
            retention,
        }
    }

    fn tables(&self, project: &str, endpoint: &str) -> Result<EndpointTables> {
        EndpointTables::new(&self.analytics, project, endpoint)
    }

    /// Looks after what no job does, until `soft` is cancelled. Failures are logged, and it is tried again the next time.
    ///
    /// # Errors
    /// Never.
    pub async fn upkeep(self: Arc<Self>, soft: CancellationToken) -> Result<(), Infallible> {
        loop {
            if let Err(error) = self.keep_up().await {
                tracing::warn!(error = %error, "upkeep of monitoring failed: it is tried again");
            }
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = tokio::time::sleep(UPKEEP_INTERVAL) => {}
            }
        }
    }

    async fn keep_up(&self) -> Result<()> {
        let now = self.clock.now();
        self.store.sweep(now).await?;
        self.forget(now).await?;
        measure::firing(self.store.count_firing().await?);
        for (project, endpoint, watermark) in self.store.all_endpoints(MAX_ENDPOINTS).await? {
            if let Some(watermark) = watermark {
                measure::watermark(&project, &endpoint, watermark, now);
            }
        }
        Ok(())
    }

    /// Forgets what is older than it is kept. What one time leaves is left to the next.
    async fn forget(&self, now: Timestamp) -> Result<()> {
        let Retention { windows, alerts } = self.retention;
        let segments = self.store.remove_ended_segments(now - KEEP_SEGMENTS, FORGET_BATCH);
        let segments = segments.await?;
        let windows_forgotten = self.store.forget_windows(now - windows, FORGET_BATCH).await?;
        let endpoints = self.store.forget_endpoints(now - windows, FORGET_BATCH).await?;
        let alerts = self.store.forget_alerts(now - alerts, FORGET_BATCH).await?;
        tracing::debug!(
            segments,
            windows = windows_forgotten,
            endpoints,
            alerts,
            "old entries forgotten"
        );
        Ok(())
    }
}
