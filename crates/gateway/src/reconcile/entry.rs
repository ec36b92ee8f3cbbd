//! One endpoint: what it shall serve, what it serves, and what it served.

use std::{collections::HashSet, sync::Arc, time::Duration};

use modelyard_proto::registry::v1 as proto;
use tokio::{sync::oneshot, time::Instant};

use super::{Done, Loads};
use crate::{
    desired::{EndpointSpec, Role, VersionRef},
    error::Error,
    loader::{Loader, Wanted},
    model::{Model, Shapes},
    routing::{Endpoint, LOADING, Version},
    watch::Backoff,
};

/// The waits before a version that could not be loaded is tried again: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// For how long a version stays in memory that serves no more: whoever takes the change back has it at once. Where memory is short it
/// is the first to go.
const REPLACED_STAY: Duration = Duration::from_mins(10);

/// Why an endpoint answers nothing whose models were unloaded by hand.
const UNLOADED: &str = "it was unloaded by hand on this gateway: load it again, or deploy a version";

/// One endpoint.
pub(super) struct Entry {
    pub spec: EndpointSpec,
    /// Grows with each change of the specification, so that a load that was overtaken is known.
    pub generation: u64,
    pub loading: bool,
    pub failures: Vec<Failed>,
    pub retry: Option<Instant>,
    pub backoff: Backoff,
    /// What serves, and the specification that it came of.
    pub serving: Option<(EndpointSpec, Arc<Endpoint>)>,
    /// What served before, and until when it stays in memory.
    pub replaced: Vec<(Instant, Arc<Model>)>,
    /// What served in a process before, in case that the specification cannot be loaded.
    pub fallback: Option<EndpointSpec>,
    pub shown: Arc<Endpoint>,
    /// What was seen of its requests.
    pub shapes: Arc<Shapes>,
    /// Who waits for the end of the loading.
    pub waiters: Vec<oneshot::Sender<Result<(), Error>>>,
}

/// A version that could not be loaded.
pub(super) struct Failed {
    pub role: Role,
    pub version: VersionRef,
    /// Why.
    pub message: String,
    /// Why, as far as whoever asks for predictions is told.
    pub reason: String,
}

impl Entry {
    pub(super) fn new(spec: EndpointSpec) -> Self {
        Self {
            shown: Arc::new(Endpoint::empty(spec.key.clone(), LOADING.to_owned())),
            spec,
            generation: 0,
            loading: false,
            failures: Vec::new(),
            retry: None,
            backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
            serving: None,
            replaced: Vec::new(),
            fallback: None,
            shapes: Arc::default(),
            waiters: Vec::new(),
        }
    }

    /// Lets go of what serves, until it is loaded by hand or the specification changes.
    pub(super) fn unload(&mut self) {
        // A load that is under way comes to nothing.
        self.generation += 1;
        self.loading = false;
        self.retry = None;
        self.serving = None;
        self.replaced.clear();
        self.fallback = None;
        let failed = self.spec.routes.iter().filter_map(|route| {
            Some(Failed {
                role: route.role,
                version: route.version()?.clone(),
                message: UNLOADED.to_owned(),
                reason: UNLOADED.to_owned(),
            })
        });
        self.failures = failed.collect();
        self.show_nothing(UNLOADED.to_owned());
        self.refuse_waiters();
    }

    /// Serves something else from now on; what served before stays for a while.
    pub(super) fn replace(&mut self, spec: EndpointSpec, endpoint: &Arc<Endpoint>) {
        let (now, until) = (Instant::now(), Instant::now() + REPLACED_STAY);
        let replaced = self.serving.replace((spec, Arc::clone(endpoint)));
        let replaced = replaced.iter().flat_map(|(_, before)| before.models());
        self.replaced.extend(replaced.map(|model| (until, model)));
        let serves = endpoint.models();
        self.replaced
            .retain(|(until, model)| *until > now && !serves.iter().any(|served| Arc::ptr_eq(served, model)));
    }

    /// Lets go of what has stayed for long enough.
    pub(super) fn forget_replaced(&mut self) {
        let now = Instant::now();
        self.replaced.retain(|(until, _)| *until > now);
    }

    /// Tells those who wait for the loading why nothing is loaded.
    pub(super) fn refuse_waiters(&mut self) {
        for waiter in self.waiters.drain(..) {
            let error = Error::NotReady {
                endpoint: self.spec.key.name.clone(),
                reason: self.shown.reason().to_owned(),
            };
            // Whoever waited may have gone.
            let _ = waiter.send(Err(error));
        }
    }

    /// Begins to load all versions of a specification.
    pub(super) fn begin(&mut self, spec: EndpointSpec, loader: &Arc<Loader>, loads: &Loads) {
        self.loading = true;
        let names: HashSet<VersionRef> = spec
            .routes
            .iter()
            .filter_map(|route| route.version().cloned())
            .collect();
        let loader = Arc::clone(loader);
        let generation = self.generation;
        let wanted = Wanted {
            batcher: spec.options.batcher(loader.batcher()),
            unload_after: spec.options.unload_after,
            shapes: Arc::clone(&self.shapes),
        };
        loads.push(Box::pin(async move {
            let each = names.into_iter().map(|name| {
                let (loader, key, wanted) = (&loader, name.model_key(&spec.key), wanted.clone());
                async move {
                    let result = loader.load(key, Some(wanted)).await;
                    (name, result)
                }
            });
            let loaded = futures::future::join_all(each).await;
            Done {
                key: spec.key.clone(),
                generation,
                spec,
                loaded,
            }
        }));
    }

    /// After a failure: keeps what serves, or begins to load what served in a process before.
    pub(super) fn fall_back(&mut self, loader: &Arc<Loader>, loads: &Loads) {
        if self.serving.is_some() {
            return;
        }
        let reasons: Vec<String> = self
            .failures
            .iter()
            .map(|failed| format!("{} cannot be loaded: {}", failed.version, failed.reason))
            .collect();
        self.show_nothing(reasons.join("; "));
        // Taken, so that it is tried once.
        if let Some(spec) = self.fallback.take().filter(|fallback| *fallback != self.spec) {
            tracing::warn!(endpoint = %spec.key, "what served before the restart is loaded instead");
            self.begin(spec, loader, loads);
        }
    }

    pub(super) fn show_nothing(&mut self, reason: String) {
        self.shown = Arc::new(Endpoint::empty(self.spec.key.clone(), reason));
    }

    /// A version as it serves now, so that its log definition and counters go on, if it stays as it is.
    pub(super) fn known_version(
        &self,
        name: &VersionRef,
        model: &Arc<Model>,
        redact: &[String],
    ) -> Option<Arc<Version>> {
        let version = self.serving.as_ref()?.1.version(name)?;
        (Arc::ptr_eq(&version.model, model) && version.definition.is_of(name, redact)).then_some(version)
    }

    pub(super) fn route_statuses(&self) -> Vec<proto::RouteStatus> {
        let serving = self.serving.as_ref().map(|(_, endpoint)| endpoint);
        let each = self.spec.routes.iter().filter_map(|route| {
            let version = route.version()?;
            let failed = self
                .failures
                .iter()
                .find(|failed| failed.role == route.role && failed.version == *version);
            let state = if serving.is_some_and(|endpoint| endpoint.routes_to(route.role, version)) {
                proto::RouteState::Ready
            } else if failed.is_some() {
                proto::RouteState::Failed
            } else {
                proto::RouteState::Loading
            };
            Some(proto::RouteStatus {
                role: match route.role {
                    Role::Live => proto::RouteRole::Live,
                    Role::Shadow => proto::RouteRole::Shadow,
                }
                .into(),
                model: version.model.clone(),
                version: version.version,
                state: state.into(),
                message: failed.map(|failed| failed.message.clone()).unwrap_or_default(),
            })
        });
        each.collect()
    }
}
