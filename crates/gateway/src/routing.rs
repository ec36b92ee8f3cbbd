//! Which version answers: the routing table, and the choice by what a request carries or by its key.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use modelyard_common::Timestamp;
use modelyard_inference::{Batching, Signature};

use crate::{
    desired::{EndpointKey, EndpointSpec, Role, RouteSpec, Target, VersionRef},
    error::{Error, Result},
    meters::{Load, RouteMeters},
    model::{Model, Platform},
    options::{Attribute, Condition, Options},
    spool::{Definition, EndpointLog},
    traffic::VersionCounts,
};

/// Finds what a request carries.
pub(crate) type Carried<'a> = &'a (dyn Fn(&Attribute) -> Option<Cow<'a, str>> + Send + Sync);

/// A loaded model version as the routes of one endpoint use it.
pub(crate) struct Version {
    pub name: VersionRef,
    /// The version's number as text.
    pub text: String,
    pub model: Arc<Model>,
    /// How its rows are written to the log.
    pub definition: Arc<Definition>,
    /// When it answered last, in milliseconds since the epoch; 0: it has not.
    last_answer_ms: AtomicU64,
    /// Answers that were kept for a request, and that were not.
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    /// What came of its requests.
    pub counts: VersionCounts,
}

impl Version {
    /// A version as its endpoint serves it; the values of tensors that are named in `redact` are left out of the log.
    pub(crate) fn new(name: VersionRef, model: Arc<Model>, redact: &[String]) -> Arc<Self> {
        let by_row = model.batching() == Batching::Rows;
        let definition = Definition::new(&name, model.signature(), by_row, redact);
        Arc::new(Self {
            text: name.version.to_string(),
            name,
            model,
            definition: Arc::new(definition),
            last_answer_ms: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            cache_misses: AtomicU64::new(0),
            counts: VersionCounts::default(),
        })
    }

    /// Notes that it answered now.
    pub(crate) fn answered(&self, now: Timestamp) {
        let ms = u64::try_from(now.as_micros() / 1000).unwrap_or(0);
        self.last_answer_ms.store(ms, Ordering::Relaxed);
    }

    /// When it answered last, in milliseconds since the epoch; 0: it has not.
    pub(crate) fn last_answer_ms(&self) -> u64 {
        self.last_answer_ms.load(Ordering::Relaxed)
    }

    /// Notes whether an answer was kept.
    pub(crate) fn asked_cache(&self, was_kept: bool) {
        let counter = if was_kept { &self.cache_hits } else { &self.cache_misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers were kept, and how many were not, of those that may be.
    pub(crate) fn cache_counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.cache_hits), count(&self.cache_misses))
    }

    /// What runs it.
    pub(crate) fn platform(&self) -> Platform {
        self.model.platform()
    }

    /// What it takes and gives.
    pub(crate) fn signature(&self) -> &Signature {
        self.model.signature()
    }
}

/// Sets the choice of what is logged apart from all other choices by the id.
const LOG_SALT: u64 = 0x6c6f_6700;

/// Why an endpoint answers nothing while its first versions are on their way.
pub(crate) const LOADING: &str = "its versions are being loaded";

/// A share of the live traffic.
pub(crate) struct LiveRoute {
    weight: f64,
    salt: u64,
    /// Requests for which all of these hold come here; none do if it is empty.
    when: Vec<Condition>,
    pub version: Arc<Version>,
    pub meters: Arc<RouteMeters>,
}

impl LiveRoute {
    /// When a key would arrive here, if keys arrived at random and as often as the weight says: the route where it arrives
    /// first is its own (weighted rendezvous hashing, Schindelhauer and Schomaker 2005). A weight that grows only brings
    /// keys here.
    fn arrival(&self, key: &[u8]) -> f64 {
        if self.weight <= 0.0 {
            return f64::INFINITY;
        }
        -unit(hash(self.salt, key)).ln() / self.weight
    }

    fn is_meant(&self, carried: Carried<'_>) -> bool {
        let holds =
            |condition: &Condition| carried(&condition.attribute).is_some_and(|value| value == condition.equals);
        !self.when.is_empty() && self.when.iter().all(holds)
    }
}

/// A repetition of the live traffic.
pub(crate) struct ShadowRoute {
    sample: f64,
    salt: u64,
    pub version: Arc<Version>,
    pub meters: Arc<RouteMeters>,
}

/// An endpoint with its loaded versions.
pub(crate) struct Endpoint {
    pub key: EndpointKey,
    salt: u64,
    live: Vec<LiveRoute>,
    /// Whether a live route has conditions.
    has_conditions: bool,
    shadows: Vec<ShadowRoute>,
    /// How it treats its requests.
    pub options: Options,
    /// Whether new routes are on their way.
    pub in_rollout: bool,
    /// Where its predictions are logged; none if they are not.
    pub log: Option<Arc<EndpointLog>>,
    /// Why there is no live route.
    reason: String,
}

impl Endpoint {
    /// An endpoint that has nothing to serve.
    pub(crate) fn empty(key: EndpointKey, reason: String) -> Self {
        Self {
            salt: hash(0, key.name.as_bytes()),
            key,
            live: Vec::new(),
            has_conditions: false,
            shadows: Vec::new(),
            options: Options::default(),
            in_rollout: false,
            log: None,
            reason,
        }
    }

    /// An endpoint of its specification and the versions that are loaded; routes to others are left out.
    pub(crate) fn new(
        spec: &EndpointSpec,
        versions: &HashMap<VersionRef, Arc<Version>>,
        log: Option<Arc<EndpointLog>>,
    ) -> Self {
        let mut endpoint = Self::empty(spec.key.clone(), String::new());
        endpoint.log = log;
        endpoint.options = spec.options.clone();
        endpoint.in_rollout = spec.in_rollout;
        let loaded = |role: Role| {
            spec.routes
                .iter()
                .filter(move |route| route.role == role)
                .filter_map(|route| Some((route, versions.get(route.version()?)?)))
        };
        let meters = |version: &Version, role: Role| {
            Arc::new(RouteMeters::new(
                &spec.key.name,
                &version.name.to_string(),
                role.label(),
            ))
        };
        for (route, version) in loaded(Role::Live) {
            endpoint.has_conditions |= !route.when.is_empty();
            endpoint.live.push(LiveRoute {
                weight: route.weight,
                // By the version and not by its place in the list, so that a change of the others moves nothing.
                salt: hash(endpoint.salt, version.name.to_string().as_bytes()),
                when: route.when.clone(),
                version: Arc::clone(version),
                meters: meters(version, Role::Live),
            });
        }
        for (route, version) in loaded(Role::Shadow) {
            endpoint.shadows.push(ShadowRoute {
                sample: route.sample,
                salt: hash(endpoint.salt, route.reference.as_bytes()),
                version: Arc::clone(version),
                meters: meters(version, Role::Shadow),
            });
        }
        endpoint
    }

    /// The route for a request: the one to the version that it asks for, the first whose conditions hold, or the one that
    /// its key falls to. The key is what it carries where the endpoint is sticky, else its id.
    ///
    /// # Errors
    /// `NotReady` if there is no live route, `VersionNotServed` if no route leads to the version.
    pub(crate) fn choose(
        &self,
        id: &str,
        version: Option<&str>,
        carried: Carried<'_>,
    ) -> Result<(&Arc<Version>, &RouteMeters)> {
        if let Some(version) = version {
            return self.find(version);
        }
        self.route(id, carried)
            .map(|route| (&route.version, &*route.meters))
            .ok_or_else(|| self.not_ready())
    }

    fn route(&self, id: &str, carried: Carried<'_>) -> Option<&LiveRoute> {
        if self.has_conditions
            && let Some(route) = self.live.iter().find(|route| route.is_meant(carried))
        {
            return Some(route);
        }
        if let [only] = self.live.as_slice() {
            return (only.weight > 0.0).then_some(only);
        }
        let key = self.options.sticky.as_ref().and_then(carried);
        let key = key.as_deref().filter(|key| !key.is_empty()).unwrap_or(id).as_bytes();
        let arrivals = self.live.iter().map(|route| (route.arrival(key), route));
        arrivals
            .filter(|(arrival, _)| arrival.is_finite())
            .min_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, route)| route)
    }

    fn find(&self, version: &str) -> Result<(&Arc<Version>, &RouteMeters)> {
        let live = self.live.iter().map(|route| (&route.version, &*route.meters));
        let shadows = self.shadows.iter().map(|route| (&route.version, &*route.meters));
        live.chain(shadows)
            .find(|(candidate, _)| candidate.text == version)
            .ok_or_else(|| {
                if self.live.is_empty() {
                    return self.not_ready();
                }
                Error::VersionNotServed {
                    endpoint: self.key.name.clone(),
                    version: version.chars().take(64).collect(),
                    served: self.versions().join(", "),
                }
            })
    }

    /// The shadow routes that repeat a request.
    pub(crate) fn shadows_for(&self, id: &str) -> impl Iterator<Item = &ShadowRoute> {
        self.shadows
            .iter()
            .filter(move |route| route.sample >= 1.0 || unit(hash(route.salt, id.as_bytes())) < route.sample)
    }

    /// The version whose metadata stands for the endpoint.
    ///
    /// # Errors
    /// As [`Endpoint::choose`].
    pub(crate) fn describe(&self, version: Option<&str>) -> Result<&Arc<Version>> {
        match (version, self.live.first()) {
            (Some(version), _) => self.find(version).map(|(version, _)| version),
            (None, Some(route)) => Ok(&route.version),
            (None, None) => Err(self.not_ready()),
        }
    }

    /// The numbers of the versions that can be asked for, each once.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut versions = Vec::new();
        let live = self.live.iter().map(|route| &route.version);
        for version in live.chain(self.shadows.iter().map(|route| &route.version)) {
            if !versions.contains(&version.text) {
                versions.push(version.text.clone());
            }
        }
        versions
    }

    /// The models of all routes.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        let live = self.live.iter().map(|route| &route.version);
        let all = live.chain(self.shadows.iter().map(|route| &route.version));
        all.map(|version| Arc::clone(&version.model)).collect()
    }

    /// The versions that live routes lead to.
    pub(crate) fn live_versions(&self) -> impl Iterator<Item = &Version> {
        self.live.iter().map(|route| &*route.version)
    }

    /// The live versions as `model/version`, each once.
    pub(crate) fn serving(&self) -> Vec<String> {
        let mut serving: Vec<String> = self.live.iter().map(|route| route.version.name.to_string()).collect();
        serving.dedup();
        serving
    }

    /// Whether a version has a route of this role.
    pub(crate) fn routes_to(&self, role: Role, version: &VersionRef) -> bool {
        match role {
            Role::Live => self.live.iter().any(|route| route.version.name == *version),
            Role::Shadow => self.shadows.iter().any(|route| route.version.name == *version),
        }
    }

    /// A version that a route leads to.
    pub(crate) fn version(&self, name: &VersionRef) -> Option<Arc<Version>> {
        let live = self.live.iter().map(|route| &route.version);
        live.chain(self.shadows.iter().map(|route| &route.version))
            .find(|version| version.name == *name)
            .cloned()
    }

    fn loads(&self) -> impl Iterator<Item = (Arc<RouteMeters>, Load)> {
        let live = self.live.iter().map(|route| (&route.meters, &route.version));
        let shadows = self.shadows.iter().map(|route| (&route.meters, &route.version));
        live.chain(shadows).map(|(meters, version)| {
            let model = &version.model;
            let (queued, expected_wait) = model.queued();
            let load = Load {
                queued,
                expected_wait,
                workers: model.workers(),
                busy: model.busy(),
            };
            (Arc::clone(meters), load)
        })
    }

    /// Whether a request's record belongs into the log.
    pub(crate) fn is_logged(&self, id: &str) -> bool {
        let sample = self.options.log.sample;
        sample >= 1.0 || unit(hash(self.salt ^ LOG_SALT, id.as_bytes())) < sample
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.live.is_empty()
    }

    /// Whether its first versions are on their way.
    pub(crate) fn is_loading(&self) -> bool {
        !self.is_ready() && self.reason == LOADING
    }

    /// Why there is no live route.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    fn not_ready(&self) -> Error {
        Error::NotReady {
            endpoint: self.key.name.clone(),
            reason: self.reason.clone(),
        }
    }
}

/// Why an endpoint with these routes has nothing to serve.
pub(crate) fn reason_for_nothing(routes: &[RouteSpec]) -> String {
    let reasons: Vec<&str> = routes
        .iter()
        .filter(|route| route.role == Role::Live)
        .filter_map(|route| match &route.target {
            Target::Unresolved(reason) => Some(reason.as_str()),
            Target::Version(_) => None,
        })
        .collect();
    if reasons.is_empty() {
        "it has no live route".to_owned()
    } else {
        reasons.join("; ")
    }
}

/// All endpoints, replaced as a whole.
#[derive(Default)]
pub(crate) struct Table {
    projects: HashMap<String, HashMap<String, Arc<Endpoint>>>,
}

impl Table {
    pub(crate) fn new(endpoints: impl IntoIterator<Item = Arc<Endpoint>>) -> Self {
        let mut table = Self::default();
        for endpoint in endpoints {
            let project = table.projects.entry(endpoint.key.project.clone()).or_default();
            project.insert(endpoint.key.name.clone(), endpoint);
        }
        table
    }

    pub(crate) fn find(&self, project: &str, name: &str) -> Option<&Arc<Endpoint>> {
        self.projects.get(project)?.get(name)
    }

    /// How the model of each route is, with the route's metrics.
    pub(crate) fn loads(&self) -> Vec<(Arc<RouteMeters>, Load)> {
        let endpoints = self.projects.values().flat_map(HashMap::values);
        endpoints.flat_map(|endpoint| endpoint.loads()).collect()
    }

    /// The endpoints with new routes on their way.
    pub(crate) fn in_rollout(&self) -> impl Iterator<Item = &Endpoint> {
        let endpoints = self.projects.values().flat_map(HashMap::values);
        endpoints
            .map(|endpoint| &**endpoint)
            .filter(|endpoint| endpoint.in_rollout)
    }

    /// The names of a project's endpoints, sorted.
    pub(crate) fn names(&self, project: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .projects
            .get(project)
            .map(|endpoints| endpoints.keys().cloned().collect())
            .unwrap_or_default();
        names.sort_unstable();
        names
    }
}

/// A hash that stays the same over restarts, machines and releases, so that a request id keeps its route: FNV-1a, mixed
/// by the finalizer of SplitMix64.
fn hash(salt: u64, bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ salt;
    for &byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A hash as a number between 0 and 1, both excluded.
fn unit(hash: u64) -> f64 {
    // The 52 bits that a double holds between any two of its powers of two, and half a step, so that none is 0.
    ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_even_and_stay_as_they_are() {
        const REQUESTS: usize = 100_000;
        // A change of these numbers moves every client to another route.
        assert_eq!(hash(0, b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(7, b"request-1"), 0xf00d_2c26_21d6_a30d);
        assert_ne!(hash(7, b"request-1"), hash(8, b"request-1"));
        for share in [0.05, 0.25, 0.5] {
            let salt = hash(0, b"flight-delay");
            let below = (0..REQUESTS)
                .filter(|index| unit(hash(salt, format!("request-{index}").as_bytes())) < share)
                .count();
            let found = below as f64 / REQUESTS as f64;
            // Four standard deviations.
            let tolerance = 4.0 * (share * (1.0 - share) / REQUESTS as f64).sqrt();
            assert!((found - share).abs() < tolerance, "{found} of {share}");
        }
    }
}
