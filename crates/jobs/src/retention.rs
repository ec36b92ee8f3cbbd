//! Removing what is long done.

use std::{convert::Infallible, sync::Arc, time::Duration};

use modelyard_common::clock::SharedClock;
use tokio_util::sync::CancellationToken;

use crate::store::JobStore;

/// How long finished jobs and their attempts are kept where nothing else is asked for: long enough to look into a
/// failure after a weekend.
pub const KEEP_FINISHED: Duration = Duration::from_hours(7 * 24);
/// How often finished jobs are looked for.
const INTERVAL: Duration = Duration::from_mins(10);
/// How many are removed in one transaction: writers wait for it.
const BATCH: u32 = 500;

/// Removes jobs that ended longer than `keep` ago, until `soft` is cancelled. A failure is logged, and tried again at
/// the next time.
pub async fn retain(
    store: Arc<dyn JobStore>,
    clock: SharedClock,
    keep: Duration,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        loop {
            match store.remove_finished(clock.now() - keep, BATCH).await {
                Ok(removed) if removed < u64::from(BATCH) => break,
                Ok(_) if soft.is_cancelled() => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = %error, "finished jobs could not be removed");
                    break;
                }
            }
        }
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
