//! Waiting for a condition with a deadline instead of sleeping.

use std::{future::Future, time::Duration};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` gives a value, and panics after `patience` with what was waited for.
pub async fn until<T, F>(what: &str, patience: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
