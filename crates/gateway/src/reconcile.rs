//! Makes what is served into what is wanted: loads versions, swaps the table, keeps what works.

mod entry;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use modelyard_common::{error::Chain, readiness::Gate};
use modelyard_inference::InputShapes;
use modelyard_proto::registry::v1 as proto;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use self::entry::{Entry, Failed};
use crate::{
    desired::{Desired, EndpointKey, EndpointSpec, Role, VersionRef},
    error::{Error, reason_for_clients},
    loader::Loader,
    meters,
    model::{Model, Shapes},
    persist::{Kept, StateFile},
    predict::Gateway,
    repository::{Change, Command},
    routing::{Endpoint, LOADING, Table, Version, reason_for_nothing},
    spool::Shipping,
    status::Report,
};

/// The name of the inference service in health checks.
const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";

/// The one task that changes the table.
pub(crate) struct Reconciler {
    pub gateway: Arc<Gateway>,
    pub loader: Arc<Loader>,
    pub shipping: Arc<Shipping>,
    pub desired: watch::Receiver<Arc<Desired>>,
    pub reports: watch::Sender<Option<Report>>,
    pub state: StateFile,
    pub health: HealthReporter,
    pub gate: Gate,
    /// What is loaded and unloaded by hand.
    pub commands: mpsc::Receiver<Command>,
    entries: BTreeMap<EndpointKey, Entry>,
    started: bool,
    /// After what time it counts as ready whatever is still being loaded, and whether that has passed.
    ready_after: Duration,
    is_overdue: bool,
}

/// After the state was told and kept it rests, so many times as long as that took: of a thousand endpoints that come one by one it is
/// not told and kept a thousand times.
const REST_AFTER_SETTLING: u32 = 3;

/// What a process before left behind.
pub(crate) struct Before {
    /// What each endpoint served.
    pub serving: BTreeMap<EndpointKey, EndpointSpec>,
    /// Shapes of inputs that were seen.
    pub shapes: BTreeMap<EndpointKey, Vec<InputShapes>>,
}

type Loaded = Vec<(VersionRef, Result<Arc<Model>, Error>)>;

/// What a load came to.
struct Done {
    key: EndpointKey,
    generation: u64,
    spec: EndpointSpec,
    loaded: Loaded,
}

type Loads = FuturesUnordered<BoxFuture<'static, Done>>;

impl Reconciler {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part that the one writer of the table moves"
    )]
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        loader: Arc<Loader>,
        shipping: Arc<Shipping>,
        desired: watch::Receiver<Arc<Desired>>,
        reports: watch::Sender<Option<Report>>,
        state: StateFile,
        health: HealthReporter,
        gate: Gate,
        commands: mpsc::Receiver<Command>,
        before: Before,
        ready_after: Duration,
    ) -> Self {
        let Before { serving, mut shapes } = before;
        let entries = serving
            .into_iter()
            .map(|(key, spec)| {
                let mut entry = Entry::new(spec.clone());
                entry.shapes = Arc::new(Shapes::new(shapes.remove(&key).unwrap_or_default()));
                entry.fallback = Some(spec);
                (key, entry)
            })
            .collect();
        Self {
            gateway,
            loader,
            shipping,
            desired,
            reports,
            state,
            health,
            gate,
            commands,
            entries,
            started: false,
            ready_after,
            is_overdue: false,
        }
    }

    /// Reconciles until the soft end.
    pub(crate) async fn run(mut self, soft: CancellationToken) -> Result<(), Infallible> {
        let mut loads = Loads::new();
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.plan(&loads);
        let (mut is_settled, mut rest_until) = (false, Instant::now());
        let ready_at = Instant::now() + self.ready_after;
        loop {
            if !is_settled && Instant::now() >= rest_until {
                let begun = Instant::now();
                self.settle(loads.is_empty()).await;
                rest_until = Instant::now() + begun.elapsed() * REST_AFTER_SETTLING;
                is_settled = true;
                continue;
            }
            let retries = self.entries.values().filter_map(|entry| entry.retry);
            let ends = self.entries.values().flat_map(|entry| &entry.replaced);
            let next = retries.chain(ends.map(|(until, _)| *until));
            let due = next
                .chain((!self.started && !self.is_overdue).then_some(ready_at))
                .min();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = soft.cancelled() => break,
                changed = self.desired.changed() => {
                    // The follower ends with the soft end only.
                    if changed.is_err() {
                        soft.cancelled().await;
                        break;
                    }
                    self.plan(&loads);
                }
                Some(done) = loads.next() => self.apply(done, &loads),
                Some(command) = self.commands.recv() => self.change(command, &loads),
                () = due => {
                    self.is_overdue |= Instant::now() >= ready_at;
                    self.retry(&loads);
                }
                () = tokio::time::sleep_until(rest_until), if !is_settled => continue,
            }
            is_settled = false;
        }
        // With what was seen of requests since the last change.
        self.settle(false).await;
        self.gate.close("stopping");
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.health
            .set_service_status(INFERENCE_SERVICE, ServingStatus::NotServing)
            .await;
        Ok(())
    }

    /// Takes the desired state in, and begins to load what is new in it.
    fn plan(&mut self, loads: &Loads) {
        let desired = Arc::clone(&self.desired.borrow_and_update());
        if desired.revision == 0 {
            return;
        }
        self.entries.retain(|key, _| desired.endpoints.contains_key(key));
        for (key, spec) in &desired.endpoints {
            let entry = self.entries.entry(key.clone());
            let entry = entry.or_insert_with(|| Entry::new(spec.clone()));
            let known = entry.generation > 0 && entry.spec == *spec;
            if known {
                continue;
            }
            entry.spec = spec.clone();
            entry.generation += 1;
            entry.failures.clear();
            entry.retry = None;
            entry.backoff.reset();
            if spec.has_version(Role::Live) {
                entry.begin(spec.clone(), &self.loader, loads);
            } else {
                // Nothing to load: what served goes on serving, or the reason is told.
                entry.loading = false;
                if entry.serving.is_none() {
                    entry.show_nothing(reason_for_nothing(&spec.routes));
                    entry.refuse_waiters();
                }
            }
        }
        self.swap();
    }

    /// Loads or unloads by hand.
    fn change(&mut self, command: Command, loads: &Loads) {
        let Some(entry) = self.entries.get_mut(&command.key) else {
            // Dropped, which tells that it is gone.
            return;
        };
        match command.change {
            Change::Load if entry.serving.is_some() => {
                // Whoever asked may have gone.
                let _ = command.done.send(Ok(()));
            }
            Change::Load => {
                entry.waiters.push(command.done);
                if !entry.spec.has_version(Role::Live) {
                    entry.refuse_waiters();
                } else if !entry.loading {
                    entry.generation += 1;
                    entry.failures.clear();
                    entry.retry = None;
                    entry.show_nothing(LOADING.to_owned());
                    entry.begin(entry.spec.clone(), &self.loader, loads);
                }
            }
            Change::Unload => {
                entry.unload();
                tracing::info!(endpoint = %command.key, "unloaded by hand");
                let _ = command.done.send(Ok(()));
            }
        }
        self.swap();
    }

    /// Begins again what has failed long enough ago.
    fn retry(&mut self, loads: &Loads) {
        let now = Instant::now();
        for entry in self.entries.values_mut() {
            entry.forget_replaced();
            if entry.retry.is_some_and(|retry| retry <= now) {
                entry.retry = None;
                entry.begin(entry.spec.clone(), &self.loader, loads);
            }
        }
    }

    /// Puts loaded versions to work, all of an endpoint's live ones or none.
    fn apply(&mut self, done: Done, loads: &Loads) {
        let Some(entry) = self.entries.get_mut(&done.key) else {
            return;
        };
        if entry.generation != done.generation {
            return;
        }
        entry.loading = false;
        let mut versions = HashMap::new();
        let mut failures = Vec::new();
        for (name, result) in done.loaded {
            match result {
                Ok(model) => {
                    let redact = &done.spec.options.log.redact;
                    let version = entry
                        .known_version(&name, &model, redact)
                        .unwrap_or_else(|| Version::new(name.clone(), model, redact));
                    versions.insert(name, version);
                }
                Err(error) => {
                    let message = Chain(&error).to_string();
                    tracing::warn!(endpoint = %done.key, version = %name, error = message,
                        "a version cannot be loaded: what served before goes on serving");
                    failures.push((name, message, reason_for_clients(&error)));
                }
            }
        }
        let failed = done.spec.routes.iter().filter_map(|route| {
            let version = route.version()?;
            let (_, message, reason) = failures.iter().find(|(name, _, _)| name == version)?;
            Some(Failed {
                role: route.role,
                version: version.clone(),
                message: message.clone(),
                reason: reason.clone(),
            })
        });
        let failed: Vec<Failed> = failed.collect();
        let live_failed = failed.iter().any(|failed| failed.role == Role::Live);
        let is_wanted = done.spec == entry.spec;
        if is_wanted {
            entry.retry = (!failed.is_empty()).then(|| Instant::now() + entry.backoff.next());
            entry.failures = failed;
        }
        if live_failed {
            entry.fall_back(&self.loader, loads);
            entry.refuse_waiters();
            self.swap();
        } else {
            self.serve(&done.key, done.spec, &versions);
        }
    }

    fn serve(&mut self, key: &EndpointKey, spec: EndpointSpec, versions: &HashMap<VersionRef, Arc<Version>>) {
        let log = spec
            .options
            .log
            .predictions
            .then(|| self.shipping.log(key))
            .transpose()
            .unwrap_or_else(|error| {
                tracing::error!(endpoint = %key, error = %Chain(&error), "predictions are not logged");
                None
            });
        if let Some(entry) = self.entries.get_mut(key) {
            let endpoint = Arc::new(Endpoint::new(&spec, versions, log));
            tracing::info!(endpoint = %key, serving = endpoint.serving().join(", "), "endpoint serves");
            entry.shown = Arc::clone(&endpoint);
            entry.replace(spec, &endpoint);
            entry.fallback = None;
            for waiter in entry.waiters.drain(..) {
                // Whoever waited may have gone.
                let _ = waiter.send(Ok(()));
            }
        }
        self.swap();
    }

    fn swap(&self) {
        let table = Table::new(self.entries.values().map(|entry| Arc::clone(&entry.shown)));
        // Requests that are running keep the endpoint, and with it the versions, that they began with.
        self.gateway.table.store(Arc::new(table));
    }

    /// What follows each step: readiness, the report, the file, the cache.
    async fn settle(&mut self, idle: bool) {
        let desired = Arc::clone(&self.desired.borrow());
        if desired.revision == 0 {
            return;
        }
        if !self.started && (self.is_overdue || self.entries.values().all(|entry| !entry.loading)) {
            self.started = true;
            self.gateway.started.store(true, Ordering::Release);
            self.gate.open();
            self.health.set_service_status("", ServingStatus::Serving).await;
            self.health
                .set_service_status(INFERENCE_SERVICE, ServingStatus::Serving)
                .await;
        }
        meters::revision(desired.revision);
        let report = Report {
            revision: desired.revision,
            endpoints: self.statuses(&desired),
        };
        self.reports.send_if_modified(|last| {
            let changed = last.as_ref() != Some(&report);
            *last = Some(report);
            changed
        });
        let serving = self.entries.iter().filter_map(|(key, entry)| {
            let spec = entry
                .serving
                .as_ref()
                .map(|(spec, _)| spec)
                .or(entry.fallback.as_ref())?;
            Some((key.clone(), spec.clone()))
        });
        let shapes = self
            .entries
            .iter()
            .map(|(key, entry)| (key.clone(), entry.shapes.seen()));
        let kept = Kept {
            serving: serving.collect(),
            desired: Desired::clone(&desired),
            shapes: shapes.filter(|(_, shapes)| !shapes.is_empty()).collect(),
        };
        if let Err(error) = self.state.write(&kept).await {
            tracing::warn!(error = %Chain(&error), "the last state cannot be written: a restart needs the registry");
        }
        if idle {
            let used: HashSet<_> = kept
                .serving
                .values()
                .chain(kept.desired.endpoints.values())
                .flat_map(|spec| {
                    let versions = spec.routes.iter().filter_map(|route| route.version());
                    versions.map(|version| version.model_key(&spec.key))
                })
                .collect();
            self.loader.sweep(used).await;
        }
    }

    fn statuses(&self, desired: &Desired) -> Vec<proto::EndpointStatus> {
        let mut statuses: Vec<proto::EndpointStatus> = self
            .entries
            .iter()
            .map(|(key, entry)| proto::EndpointStatus {
                project: key.project.clone(),
                name: key.name.clone(),
                routes: entry.route_statuses(),
                serving: entry
                    .serving
                    .as_ref()
                    .map(|(_, endpoint)| endpoint.serving())
                    .unwrap_or_default(),
            })
            .collect();
        for (key, message) in &desired.refused {
            let refusal = proto::RouteStatus {
                state: proto::RouteState::Failed.into(),
                message: message.clone(),
                ..proto::RouteStatus::default()
            };
            match statuses
                .iter_mut()
                .find(|status| status.project == key.project && status.name == key.name)
            {
                Some(status) => status.routes.push(refusal),
                None => statuses.push(proto::EndpointStatus {
                    project: key.project.clone(),
                    name: key.name.clone(),
                    routes: vec![refusal],
                    serving: Vec::new(),
                }),
            }
        }
        statuses
    }
}
