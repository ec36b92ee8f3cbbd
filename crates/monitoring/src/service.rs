//! The operations of monitoring, which its faces and its jobs call.

mod alerts;
mod jobs;
mod predictions;
mod resources;
mod score;
mod segments;

use std::{convert::Infallible, sync::Arc, time::Duration};

use modelyard_analytics::Analytics;
use modelyard_common::{clock::SharedClock, name::check_name};
use modelyard_jobs::JobStore;
use tokio_util::sync::CancellationToken;

pub use jobs::JobHandler;

use crate::{
    error::{Error, Result},
    measure,
    peers::{Orchestrator, Registry},
    store::Store,
    tables::EndpointTables,
};

/// The one project that there is.
const DEFAULT_PROJECT: &str = "default";
/// How often is looked for work that no job is there for, and for what can be forgotten.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long segments are remembered that were committed, so that handing them over again costs nothing.
const KEEP_SEGMENTS: Duration = Duration::from_hours(7 * 24);
/// How many segments are forgotten in one transaction.
const FORGET_BATCH: u32 = 500;
/// The most endpoints that are looked at: for a request id without an endpoint, and for metrics.
const MAX_ENDPOINTS: u32 = 1000;

/// Monitoring.
pub struct Monitoring {
    store: Arc<dyn Store>,
    jobs: Arc<dyn JobStore>,
    analytics: Analytics,
    registry: Registry,
    orchestrator: Orchestrator,
    clock: SharedClock,
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
    ) -> Self {
        Self {
            store,
            jobs,
            analytics,
            registry,
            orchestrator,
            clock,
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
        self.store
            .remove_ended_segments(now - KEEP_SEGMENTS, FORGET_BATCH)
            .await?;
        measure::firing(self.store.count_firing().await?);
        for (endpoint, watermark) in self.store.endpoints(DEFAULT_PROJECT, MAX_ENDPOINTS).await? {
            if let Some(watermark) = watermark {
                measure::watermark(&endpoint, watermark, now);
            }
        }
        Ok(())
    }
}

/// Checks that a project exists.
fn check_project(project: &str) -> Result<()> {
    check_name("a project", project)?;
    if project == DEFAULT_PROJECT {
        return Ok(());
    }
    Err(Error::not_found("project", project, "use `default`"))
}
