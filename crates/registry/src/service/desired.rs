//! The desired state as it changes: read once for all who watch.

use std::{convert::Infallible, sync::Arc};

use futures::{Stream, stream};
use modelyard_auth::{Action, Caller, Resource};
use modelyard_common::readiness::Gate;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Registry,
    follow::{HEARTBEAT, check_node, follow},
};
use crate::{
    error::Result,
    metrics,
    model::desired::{DesiredState, Difference},
    store::Stores,
};

/// The desired state, kept up to date.
pub struct Desired {
    stores: Stores,
    state: watch::Sender<Arc<DesiredState>>,
    changed: Notify,
    loading: Mutex<()>,
}

impl Desired {
    /// Reads the state.
    pub async fn open(stores: Stores) -> Result<Arc<Self>> {
        let state = Arc::new(stores.endpoints.desired_state().await?);
        Ok(Arc::new(Self {
            stores,
            state: watch::Sender::new(state),
            changed: Notify::new(),
            loading: Mutex::new(()),
        }))
    }

    /// Something was changed by this process.
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Follows the database until `soft` is cancelled. `gate` is open as long as it can be read.
    pub async fn run(self: Arc<Self>, gate: Gate, soft: CancellationToken) -> Result<(), Infallible> {
        follow("the desired state", &self.changed, || self.catch_up(), gate, soft).await
    }

    /// Reads the state if there is a newer one.
    async fn catch_up(&self) -> Result<()> {
        let _one_at_a_time = self.loading.lock().await;
        let revision = self.stores.projects.revision().await?;
        if revision == self.state.borrow().revision {
            return Ok(());
        }
        let state = self.stores.endpoints.desired_state().await?;
        ::metrics::gauge!(metrics::REVISION).set(state.revision as f64);
        self.state.send_replace(Arc::new(state));
        Ok(())
    }
}

/// What one who watches is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Everything.
    Snapshot(Arc<DesiredState>),
    /// What changed since the last update.
    Delta {
        /// The revision with the change.
        revision: u64,
        /// The change.
        difference: Difference,
    },
    /// Nothing changed.
    Heartbeat {
        /// The revision up to which nothing changed.
        revision: u64,
    },
}

/// One who watches. It holds at most two states, however slow it is: those in between are passed over.
struct Watcher {
    states: watch::Receiver<Arc<DesiredState>>,
    told: Option<Arc<DesiredState>>,
    next_heartbeat: Instant,
    soft: CancellationToken,
    _counted: Counted,
}

/// Counts the open streams.
struct Counted;

impl Counted {
    fn new() -> Self {
        ::metrics::gauge!(metrics::WATCHERS).increment(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ::metrics::gauge!(metrics::WATCHERS).decrement(1);
    }
}

impl Watcher {
    async fn next(&mut self) -> Option<Update> {
        loop {
            if self.soft.is_cancelled() {
                return None;
            }
            let state = Arc::clone(&self.states.borrow_and_update());
            let told = self.told.replace(Arc::clone(&state));
            let update = match told {
                None => Some(Update::Snapshot(state)),
                Some(told) => state.since(&told).map(|difference| Update::Delta {
                    revision: state.revision,
                    difference,
                }),
            };
            if let Some(update) = update {
                self.next_heartbeat = Instant::now() + HEARTBEAT;
                return Some(update);
            }
            tokio::select! {
                () = self.soft.cancelled() => return None,
                changed = self.states.changed() => if changed.is_err() {
                    return None;
                },
                () = tokio::time::sleep_until(self.next_heartbeat) => {
                    self.next_heartbeat = Instant::now() + HEARTBEAT;
                    let revision = self.told.as_ref().map_or(0, |told| told.revision);
                    return Some(Update::Heartbeat { revision });
                }
            }
        }
    }
}

impl Registry {
    /// The desired state of all endpoints and its changes, until the process stops. Who holds the present revision is told
    /// only what changes from here on, after a heartbeat at once; everybody else gets everything first.
    pub async fn watch(
        &self,
        caller: &Caller,
        node: &str,
        since_revision: u64,
    ) -> Result<impl Stream<Item = Update> + Send + 'static + use<>> {
        self.enter(caller, Action::EndpointWatch, Resource::INSTALLATION)
            .await?;
        check_node(node)?;
        // The caller may know a revision from another process that this one has not seen yet.
        self.desired.catch_up().await?;
        let mut states = self.desired.state.subscribe();
        let present = Arc::clone(&states.borrow_and_update());
        let watcher = Watcher {
            states,
            told: (present.revision == since_revision).then_some(present),
            next_heartbeat: Instant::now(),
            soft: self.soft.clone(),
            _counted: Counted::new(),
        };
        Ok(stream::unfold(watcher, |mut watcher| async move {
            let update = watcher.next().await?;
            Some((update, watcher))
        }))
    }
}
