//! Following the database: what this process changes is known at once, what others change after a moment.

use std::{convert::Infallible, time::Duration};

use modelyard_common::{error::Chain, readiness::Gate};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    model::report::MAX_NODE_BYTES,
};

/// How often those who watch hear something, at least.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the database is asked for changes that other processes made.
pub const POLL: Duration = Duration::from_millis(500);

/// Catches up with the database after each change and each [`POLL`], until `soft` is cancelled. `gate` is open as long as
/// `what` can be read.
pub(super) async fn follow<F: Future<Output = Result<()>>>(
    what: &str,
    changed: &Notify,
    catch_up: impl Fn() -> F,
    gate: Gate,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = changed.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        match catch_up().await {
            Ok(()) => gate.open(),
            Err(error) => {
                tracing::warn!(what, error = %Chain(&error), "the database cannot be followed: the last state stays, trying again");
                gate.close(format!("{what} cannot be read"));
            }
        }
    }
}

/// The name of one who watches.
pub(super) fn check_node(node: &str) -> Result<()> {
    if node.len() <= MAX_NODE_BYTES {
        return Ok(());
    }
    Err(Error::request(format!(
        "the name of the node has {} bytes: use at most {MAX_NODE_BYTES}",
        node.len()
    )))
}
