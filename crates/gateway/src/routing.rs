//! Which version answers: the routing table, and the choice by the request's id.

use std::{collections::HashMap, sync::Arc};

use modelyard_inference::{Batching, Signature};

use crate::{
    desired::{EndpointKey, EndpointSpec, Role, RouteSpec, Target, VersionRef},
    error::{Error, Result},
    loader::LoadedModel,
    meters::RouteMeters,
    spool::{Definition, EndpointLog},
};

/// A loaded model version as the routes of one endpoint use it.
pub(crate) struct Version {
    pub name: VersionRef,
    /// The version's number as text.
    pub text: String,
    pub model: Arc<LoadedModel>,
    /// How its rows are written to the log.
    pub definition: Arc<Definition>,
}

impl Version {
    pub(crate) fn new(name: VersionRef, model: Arc<LoadedModel>) -> Arc<Self> {
        let definition = Definition::new(
            &name,
            model.predictor.signature(),
            model.predictor.batching() == Batching::Rows,
        );
        Arc::new(Self {
            text: name.version.to_string(),
            name,
            model,
            definition: Arc::new(definition),
        })
    }

    pub(crate) fn signature(&self) -> &Signature {
        self.model.predictor.signature()
    }
}

/// A share of the live traffic.
pub(crate) struct LiveRoute {
    /// Requests whose hash is below this, and not below the route's before, are this route's.
    upper: f64,
    pub version: Arc<Version>,
    pub meters: Arc<RouteMeters>,
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
    shadows: Vec<ShadowRoute>,
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
            shadows: Vec::new(),
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
        let total: f64 = loaded(Role::Live).map(|(route, _)| route.weight).sum();
        let mut upper = 0.0;
        for (route, version) in loaded(Role::Live) {
            upper += if total > 0.0 { route.weight / total } else { 0.0 };
            endpoint.live.push(LiveRoute {
                upper,
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

    /// The route for a request: the one that its id falls to, or the one to the version that it asks for.
    ///
    /// # Errors
    /// `NotReady` if there is no live route, `VersionNotServed` if no route leads to the version.
    pub(crate) fn choose(&self, id: &str, version: Option<&str>) -> Result<(&Arc<Version>, &RouteMeters)> {
        if let Some(version) = version {
            return self.find(version);
        }
        let point = unit(hash(self.salt, id.as_bytes()));
        self.live
            .iter()
            .find(|route| point < route.upper)
            // The last bound may miss 1 by rounding.
            .or_else(|| self.live.iter().rev().find(|route| route.upper > 0.0))
            .map(|route| (&route.version, &*route.meters))
            .ok_or_else(|| self.not_ready())
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

    fn queues(&self) -> impl Iterator<Item = (Arc<RouteMeters>, usize)> {
        let live = self.live.iter().map(|route| (&route.meters, &route.version));
        let shadows = self.shadows.iter().map(|route| (&route.meters, &route.version));
        live.chain(shadows)
            .map(|(meters, version)| (Arc::clone(meters), version.model.predictor.queued()))
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.live.is_empty()
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

    /// What waits before the model of each route, with the route's metrics.
    pub(crate) fn queues(&self) -> Vec<(Arc<RouteMeters>, usize)> {
        let endpoints = self.projects.values().flat_map(HashMap::values);
        endpoints.flat_map(|endpoint| endpoint.queues()).collect()
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

/// A hash as a number from 0 to 1, 1 excluded.
fn unit(hash: u64) -> f64 {
    // The 53 bits that a double holds.
    (hash >> 11) as f64 / (1_u64 << 53) as f64
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
