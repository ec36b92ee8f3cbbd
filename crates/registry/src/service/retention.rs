//! What is forgotten after a time.

use std::{convert::Infallible, time::Duration};

use modelyard_artifacts::Artifacts;
use modelyard_common::{clock::SharedClock, error::Chain};
use tokio_util::sync::CancellationToken;

use super::collector::end_left_removals;
use crate::{
    error::Result,
    model::{
        collection::{RECORD_RETENTION, REMOVAL_RETENTION},
        report::REPORT_RETENTION,
    },
    store::Stores,
};

/// How long the feed of events goes back.
pub const EVENT_RETENTION: Duration = Duration::from_hours(24 * 90);
/// How long tokens are listed after their end.
pub const TOKEN_RETENTION: Duration = Duration::from_hours(24 * 30);
/// An unfinished upload of this age is what a crash left behind.
pub const UPLOAD_LIFETIME: Duration = Duration::from_hours(48);
/// How long is kept what became of a webhook's deliveries.
pub const DELIVERY_RETENTION: Duration = Duration::from_hours(24 * 30);
/// How often is looked for what can be forgotten.
const INTERVAL: Duration = Duration::from_hours(1);

/// Forgets old events, reports of gateways that are gone, and unfinished uploads, until `soft` is cancelled.
pub async fn run_retention(
    stores: Stores,
    blobs: Artifacts,
    clock: SharedClock,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        if let Err(error) = forget(&stores, &blobs, &clock).await {
            tracing::warn!(error = %Chain(&error), "old entries stay until the next attempt");
        }
    }
}

async fn forget(stores: &Stores, blobs: &Artifacts, clock: &SharedClock) -> Result<()> {
    let now = clock.now();
    let events = stores.events.prune_events(now - EVENT_RETENTION).await?;
    let reports = stores.endpoints.prune_reports(now - REPORT_RETENTION).await?;
    let tokens = stores.tokens.prune_tokens(now - TOKEN_RETENTION).await?;
    let deliveries = stores.webhooks.prune_deliveries(now - DELIVERY_RETENTION).await?;
    let unfinished = stores.artifact_uploads.prune_uploads(now - UPLOAD_LIFETIME).await?;
    let removals = stores.blobs.prune_removals(now - REMOVAL_RETENTION).await?;
    let collections = stores.collections.prune_collections(now - RECORD_RETENTION).await?;
    end_left_removals(stores, blobs, now).await?;
    let uploads = blobs.sweep_uploads((now - UPLOAD_LIFETIME).to_datetime()).await?;
    tracing::debug!(
        events,
        reports,
        tokens,
        deliveries,
        unfinished,
        removals,
        collections,
        uploads,
        "old entries removed"
    );
    Ok(())
}
