//! Follows the registry's desired state, and never forgets the last good one.

use std::{convert::Infallible, sync::Arc, time::Duration};

use modelyard_common::rpc::{Channel, MAX_MESSAGE_BYTES};
use modelyard_proto::registry::v1::{WatchRequest, endpoint_service_client::EndpointServiceClient};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{desired::Desired, meters};

/// How often the registry sends a sign of life at least.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A watch that is silent for this long is taken for broken.
const SILENCE_LIMIT: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);

/// The waits between attempts: doubled from the first to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// Waits that grow, with jitter, so that many gateways do not come back at once.
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, last: Duration) -> Self {
        Self {
            next: first,
            first,
            last,
        }
    }

    /// How long to wait now: half to all of the present step.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::random_range(0.5..=1.0));
        self.next = self.next.saturating_mul(2).min(self.last);
        wait
    }

    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Follows until the soft end. Each new state goes to `desired`, which keeps the last one while the registry is away.
pub(crate) async fn follow(
    registry: Channel,
    node: Arc<str>,
    desired: watch::Sender<Arc<Desired>>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut backoff = Backoff::new(FIRST_BACKOFF, LAST_BACKOFF);
    let mut away = false;
    loop {
        let ended = tokio::select! {
            ended = stream(&registry, &node, &desired, &mut backoff, &mut away) => ended,
            () = soft.cancelled() => return Ok(()),
        };
        meters::watch_connected(false);
        if !away {
            away = true;
            let revision = desired.borrow().revision;
            tracing::warn!(error = %ended.message(), revision, "the registry's watch ended: the last good state stays");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = soft.cancelled() => return Ok(()),
        }
    }
}

/// One watch, until it breaks.
async fn stream(
    registry: &Channel,
    node: &str,
    desired: &watch::Sender<Arc<Desired>>,
    backoff: &mut Backoff,
    away: &mut bool,
) -> Status {
    let mut client = EndpointServiceClient::new(registry.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = WatchRequest {
        node: node.to_owned(),
        since_revision: desired.borrow().revision,
    };
    let silent = |_| Status::unavailable("the registry is silent");
    let mut updates = match timeout(SILENCE_LIMIT, client.watch(request)).await.map_err(silent) {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) | Err(status) => return status,
    };
    loop {
        let update = match timeout(SILENCE_LIMIT, updates.message()).await.map_err(silent) {
            Ok(Ok(Some(update))) => update,
            Ok(Ok(None)) => return Status::unavailable("the registry closed the watch"),
            Ok(Err(status)) | Err(status) => return status,
        };
        backoff.reset();
        meters::watch_connected(true);
        if std::mem::take(away) {
            tracing::info!(revision = update.revision, "the registry's watch is back");
        }
        let mut next = Desired::clone(&desired.borrow());
        if next.apply(update) {
            desired.send_replace(Arc::new(next));
        }
    }
}
