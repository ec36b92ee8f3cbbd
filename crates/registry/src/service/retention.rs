//! What is forgotten after a time.

use std::{convert::Infallible, time::Duration};

use modelyard_artifacts::Artifacts;
use modelyard_common::{clock::SharedClock, error::Chain};
use tokio_util::sync::CancellationToken;

use super::collector::end_left_removals;
use crate::{
    error::{Error, Result},
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
        forget(&stores, &blobs, &clock).await;
    }
}

/// Each kind by itself: what cannot be forgotten now holds up nothing else.
async fn forget(stores: &Stores, blobs: &Artifacts, clock: &SharedClock) {
    let now = clock.now();
    tell("events", stores.events.prune_events(now - EVENT_RETENTION).await);
    tell("reports", stores.endpoints.prune_reports(now - REPORT_RETENTION).await);
    tell("tokens", stores.tokens.prune_tokens(now - TOKEN_RETENTION).await);
    tell(
        "deliveries",
        stores.webhooks.prune_deliveries(now - DELIVERY_RETENTION).await,
    );
    tell(
        "uploads in parts",
        stores.artifact_uploads.prune_uploads(now - UPLOAD_LIFETIME).await,
    );
    tell("removals", stores.blobs.prune_removals(now - REMOVAL_RETENTION).await);
    tell(
        "collections",
        stores.collections.prune_collections(now - RECORD_RETENTION).await,
    );
    tell("blobs", end_left_removals(stores, blobs, now).await);
    let swept = blobs.sweep_uploads((now - UPLOAD_LIFETIME).to_datetime()).await;
    tell("unfinished files", swept.map_err(Error::from));
}

fn tell(what: &str, removed: Result<u64>) {
    match removed {
        Ok(0) => {}
        Ok(count) => tracing::debug!(what, count, "old entries removed"),
        Err(error) => tracing::warn!(what, error = %Chain(&error), "old entries stay until the next attempt"),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use modelyard_artifacts::{Storage, StorageConfig};
    use modelyard_common::clock::ManualClock;

    use super::*;
    use crate::store::testing::{at, test_stores};

    #[tokio::test]
    async fn what_cannot_be_forgotten_holds_up_nothing_else() {
        for test in test_stores().await {
            test.run(
                "INSERT INTO webhook_delivery (id, webhook_id, event, body, state, attempts, error, created_at)
                 VALUES ('d', 'w', 'e', '', 'delivered', 1, '', 1);
                 DROP TABLE event;",
            )
            .await;
            let blobs = Artifacts::new(Storage::open(&StorageConfig::memory()).unwrap());
            let clock: SharedClock = ManualClock::at(at(1_000_000_000));
            forget(&test.stores, &blobs, &clock).await;
            assert_eq!(test.number("SELECT COUNT(*) FROM webhook_delivery").await, 0);
        }
    }

    #[tokio::test]
    async fn deliveries_go_by_their_age_or_with_their_webhook() {
        for test in test_stores().await {
            let (old, young) = (at(1).as_micros(), at(100).as_micros());
            let mut script = "INSERT INTO webhook (id, project, name, description, url, status, created_at, updated_at)
                 VALUES ('w', 'default', 'w', '', 'u', 'ACTIVE', 0, 0);"
                .to_owned();
            for (id, webhook, created_at) in [("old", "w", old), ("young", "w", young), ("lost", "gone", young)] {
                let _ = write!(
                    script,
                    "INSERT INTO webhook_delivery (id, webhook_id, event, body, state, attempts, error, created_at)
                     VALUES ('{id}', '{webhook}', 'e', '', 'delivered', 1, '', {created_at});"
                );
            }
            test.run(script).await;
            assert_eq!(test.stores.webhooks.prune_deliveries(at(50)).await.unwrap(), 2);
            let left = "SELECT COUNT(*) FROM webhook_delivery WHERE id = 'young'";
            assert_eq!(test.number(left).await, 1);
        }
    }
}
