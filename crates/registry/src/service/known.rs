//! Who may do what, as it changes: read once for this process and for all that follow.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use modelyard_auth::{Access, Action, Caller, Resource, State};
use modelyard_common::{clock::SharedClock, readiness::Gate};
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
    error::{Error, Result},
    metrics,
    store::Stores,
};

/// How large a piece of the state is that is sent at once, in bytes.
const PART_BYTES: usize = 1 << 20;
/// How long an answer waits until this process knows what it changed.
const KNOWN_PATIENCE: Duration = Duration::from_secs(5);

/// The state at a revision.
struct Told {
    revision: u64,
    state: State,
    /// As it is sent, written when somebody asks for it.
    json: OnceLock<Bytes>,
}

impl Told {
    fn json(&self) -> Bytes {
        let write = || serde_json::to_vec(&self.state).map(Bytes::from).unwrap_or_default();
        self.json.get_or_init(write).clone()
    }
}

/// The state, kept up to date.
pub(crate) struct Known {
    stores: Stores,
    access: Access,
    clock: SharedClock,
    told: watch::Sender<Arc<Told>>,
    changed: Notify,
    loading: Mutex<()>,
}

impl Known {
    /// Reads the state.
    pub(crate) async fn open(stores: Stores, access: Access, clock: SharedClock) -> Result<Arc<Self>> {
        let told = Told {
            revision: 0,
            state: State::default(),
            json: OnceLock::new(),
        };
        let known = Self {
            stores,
            access,
            clock,
            told: watch::Sender::new(Arc::new(told)),
            changed: Notify::new(),
            loading: Mutex::new(()),
        };
        known.catch_up().await?;
        Ok(Arc::new(known))
    }

    /// Something was changed by this process.
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Follows the database until `soft` is cancelled. `gate` is open as long as it can be read.
    pub(crate) async fn run(self: Arc<Self>, gate: Gate, soft: CancellationToken) -> Result<(), Infallible> {
        follow("who may do what", &self.changed, || self.catch_up(), gate, soft).await
    }

    /// Reads the state if there is a newer one.
    async fn catch_up(&self) -> Result<()> {
        let _one_at_a_time = self.loading.lock().await;
        let revision = self.stores.access.access_revision().await?;
        if revision == self.told.borrow().revision {
            return Ok(());
        }
        let (revision, state) = self.stores.access.access_state(self.clock.now()).await?;
        self.access
            .set(revision, state.clone())
            .map_err(|error| Error::State(format!("the stored policies cannot be used: {error}")))?;
        ::metrics::gauge!(metrics::ACCESS_REVISION).set(revision as f64);
        self.told.send_replace(Arc::new(Told {
            revision,
            state,
            json: OnceLock::new(),
        }));
        Ok(())
    }
}

/// What one who watches is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccessUpdate {
    /// The revision.
    pub(crate) revision: u64,
    /// A piece of the state as JSON; empty and not the last one: nothing changed.
    pub(crate) part: Bytes,
    /// Whether the state is complete with it.
    pub(crate) is_last: bool,
}

/// One who watches. It holds one state at most, however slow it is: those in between are passed over.
struct Watcher {
    states: watch::Receiver<Arc<Told>>,
    told: Option<u64>,
    rest: Option<(u64, Bytes)>,
    next_heartbeat: Instant,
    soft: CancellationToken,
}

impl Watcher {
    async fn next(&mut self) -> Option<AccessUpdate> {
        loop {
            if self.soft.is_cancelled() {
                return None;
            }
            if let Some((revision, mut rest)) = self.rest.take() {
                let part = rest.split_to(rest.len().min(PART_BYTES));
                let is_last = rest.is_empty();
                if !is_last {
                    self.rest = Some((revision, rest));
                }
                self.next_heartbeat = Instant::now() + HEARTBEAT;
                return Some(AccessUpdate {
                    revision,
                    part,
                    is_last,
                });
            }
            let state = Arc::clone(&self.states.borrow_and_update());
            if self.told != Some(state.revision) {
                self.told = Some(state.revision);
                self.rest = Some((state.revision, state.json()));
                continue;
            }
            tokio::select! {
                () = self.soft.cancelled() => return None,
                changed = self.states.changed() => if changed.is_err() {
                    return None;
                },
                () = tokio::time::sleep_until(self.next_heartbeat) => {
                    self.next_heartbeat = Instant::now() + HEARTBEAT;
                    return Some(AccessUpdate { revision: state.revision, part: Bytes::new(), is_last: false });
                }
            }
        }
    }
}

impl Registry {
    /// Everything that decisions rest on, now and each time that it changes, until the process stops. Who holds the present
    /// revision is told only what changes from here on, after a heartbeat at once.
    pub(crate) async fn watch_access(
        &self,
        caller: &Caller,
        node: &str,
        since_revision: u64,
    ) -> Result<impl Stream<Item = AccessUpdate> + Send + 'static + use<>> {
        caller.authorize(Action::AccessWatch, Resource::INSTALLATION)?;
        check_node(node)?;
        self.known.catch_up().await?;
        let mut states = self.known.told.subscribe();
        let present = states.borrow_and_update().revision;
        let watcher = Watcher {
            states,
            told: (present == since_revision).then_some(present),
            rest: None,
            next_heartbeat: Instant::now(),
            soft: self.soft.clone(),
        };
        Ok(stream::unfold(watcher, |mut watcher| async move {
            let update = watcher.next().await?;
            Some((update, watcher))
        }))
    }

    /// Who may do what was changed: this process knows it when this returns, others follow within moments.
    pub(super) async fn know_change(&self) -> Result<()> {
        // The database has it. If it cannot be read now, whoever follows reads it as soon as it can.
        self.known.catch_up().await
    }

    /// Waits until this process knows what was changed at a revision.
    pub(super) async fn know(&self, revision: u64) {
        self.known.notify();
        if !self.access.wait_for(revision, KNOWN_PATIENCE).await {
            tracing::warn!(revision, "this process does not know yet what was changed");
        }
    }
}
