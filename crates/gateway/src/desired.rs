//! What the registry wants served: the endpoints, and how an update changes them. Pure.

use std::{collections::BTreeMap, fmt};

use modelyard_artifacts::Digest;
use modelyard_common::name::check_name;
use modelyard_proto::registry::v1 as proto;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    loader::ModelKey,
    options::{Condition, Options},
};

/// The most routes of one endpoint; the log's record names owed shadow routes by a byte.
pub(crate) const MAX_ROUTES: usize = 64;

/// What names an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct EndpointKey {
    pub project: String,
    pub name: String,
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.name)
    }
}

/// What a route's answers are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// The client gets them.
    Live,
    /// They are only logged.
    Shadow,
}

impl Role {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
        }
    }
}

/// A model version and the blob that holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct VersionRef {
    pub model: String,
    pub version: u32,
    pub digest: Digest,
    /// The blob with the signature of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Digest>,
}

impl VersionRef {
    /// Its blob, for an endpoint.
    pub(crate) fn model_key(&self, endpoint: &EndpointKey) -> ModelKey {
        ModelKey {
            endpoint: endpoint.clone(),
            digest: self.digest,
            bundle: self.bundle,
        }
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model, self.version)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// To this version.
    Version(VersionRef),
    /// Nowhere yet, for this reason.
    Unresolved(String),
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteSpec {
    pub role: Role,
    /// As written in the endpoint, such as `flight-delay@champion`.
    pub reference: String,
    /// Live: the share of the traffic, relative to the other live routes.
    pub weight: f64,
    /// Shadow: the share of the requests that are repeated.
    pub sample: f64,
    pub target: Target,
    /// Live: requests for which all of these hold take this route; empty: none does for that.
    #[serde(default)]
    pub when: Vec<Condition>,
}

impl RouteSpec {
    pub(crate) const fn version(&self) -> Option<&VersionRef> {
        match &self.target {
            Target::Version(version) => Some(version),
            Target::Unresolved(_) => None,
        }
    }
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndpointSpec {
    pub key: EndpointKey,
    pub routes: Vec<RouteSpec>,
    #[serde(default)]
    pub options: Options,
    /// Whether new routes are on their way.
    #[serde(default)]
    pub in_rollout: bool,
}

impl EndpointSpec {
    /// Whether a route of this role leads to a version.
    pub(crate) fn has_version(&self, role: Role) -> bool {
        self.routes
            .iter()
            .any(|route| route.role == role && route.version().is_some())
    }
}

/// All that the registry wants of this gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Desired {
    /// The registry's revision; zero: nothing has been received yet.
    pub revision: u64,
    /// The endpoints in the order of their names.
    #[serde(with = "as_list")]
    pub endpoints: BTreeMap<EndpointKey, EndpointSpec>,
    /// Endpoints whose last specification makes no sense; what was there before stays.
    #[serde(skip)]
    pub refused: BTreeMap<EndpointKey, String>,
}

impl Desired {
    /// Takes an update in. `true` if it was more than a heartbeat.
    pub(crate) fn apply(&mut self, response: proto::WatchResponse) -> bool {
        use proto::watch_response::Update;
        let changed = match response.update {
            Some(Update::Snapshot(snapshot)) => {
                let before = std::mem::take(&mut self.endpoints);
                self.refused.clear();
                for endpoint in snapshot.endpoints {
                    let key = key_of(&endpoint);
                    let old = before.get(&key).cloned();
                    self.take(key, endpoint, old);
                }
                true
            }
            Some(Update::Delta(delta)) => {
                for key in delta.removed {
                    let key = EndpointKey {
                        project: key.project,
                        name: key.name,
                    };
                    self.endpoints.remove(&key);
                    self.refused.remove(&key);
                }
                for endpoint in delta.changed {
                    let key = key_of(&endpoint);
                    let old = self.endpoints.remove(&key);
                    self.refused.remove(&key);
                    self.take(key, endpoint, old);
                }
                true
            }
            Some(Update::Heartbeat(_)) | None => false,
        };
        if changed {
            self.revision = response.revision;
        }
        changed
    }

    fn take(&mut self, key: EndpointKey, endpoint: proto::Endpoint, old: Option<EndpointSpec>) {
        match EndpointSpec::try_from(endpoint) {
            Ok(spec) => {
                self.endpoints.insert(key, spec);
            }
            Err(error) => {
                tracing::warn!(endpoint = %key, %error, "an endpoint's update is refused: what was there before stays");
                if let Some(old) = old {
                    self.endpoints.insert(key.clone(), old);
                }
                self.refused.insert(key, error.to_string());
            }
        }
    }
}

fn key_of(endpoint: &proto::Endpoint) -> EndpointKey {
    EndpointKey {
        project: endpoint.project.clone(),
        name: endpoint.name.clone(),
    }
}

impl TryFrom<proto::Endpoint> for EndpointSpec {
    type Error = Error;

    fn try_from(endpoint: proto::Endpoint) -> Result<Self> {
        let refuse = |detail: String| Error::InvalidEndpoint { detail };
        // The names become folders of the spool.
        check_name("a project", &endpoint.project).map_err(|error| refuse(error.to_string()))?;
        check_name("an endpoint", &endpoint.name).map_err(|error| refuse(error.to_string()))?;
        if endpoint.routes.len() > MAX_ROUTES {
            return Err(refuse(format!(
                "it has {} routes, and at most {MAX_ROUTES} are possible",
                endpoint.routes.len()
            )));
        }
        let options = Options::try_from(&endpoint)?;
        let routes = endpoint
            .routes
            .into_iter()
            .map(RouteSpec::try_from)
            .collect::<Result<Vec<_>>>()?;
        let live = || routes.iter().filter(|route| route.role == Role::Live);
        if live().next().is_some() && live().map(|route| route.weight).sum::<f64>() <= 0.0 {
            return Err(refuse("the weights of its live routes are all zero".to_owned()));
        }
        Ok(Self {
            key: EndpointKey {
                project: endpoint.project,
                name: endpoint.name,
            },
            routes,
            options,
            in_rollout: endpoint.in_rollout,
        })
    }
}

impl TryFrom<proto::Route> for RouteSpec {
    type Error = Error;

    fn try_from(route: proto::Route) -> Result<Self> {
        let reference = route.reference.clone();
        let refuse = |detail: String| Error::InvalidEndpoint {
            detail: format!("route {reference}: {detail}"),
        };
        let role = match route.role() {
            proto::RouteRole::Live => Role::Live,
            proto::RouteRole::Shadow => Role::Shadow,
            proto::RouteRole::Unspecified => return Err(refuse("it is neither live nor shadow".to_owned())),
        };
        if !(route.weight.is_finite() && route.weight >= 0.0) {
            return Err(refuse(format!("{} is no weight", route.weight)));
        }
        if !(0.0..=1.0).contains(&route.sample) {
            return Err(refuse(format!("sample is {}: choose 0 to 1", route.sample)));
        }
        let target = if route.model.is_empty() {
            Target::Unresolved(if route.unresolved.is_empty() {
                format!("{} points at nothing", route.reference)
            } else {
                route.unresolved
            })
        } else {
            let digest = |text: &str| {
                text.parse()
                    .map_err(|error: modelyard_artifacts::InvalidDigest| refuse(error.to_string()))
            };
            let bundle = Some(route.bundle_digest.as_str()).filter(|text| !text.is_empty());
            Target::Version(VersionRef {
                digest: digest(&route.artifact_digest)?,
                bundle: bundle.map(digest).transpose()?,
                model: route.model,
                version: route.version,
            })
        };
        Ok(Self {
            role,
            reference: route.reference,
            weight: route.weight,
            sample: route.sample,
            target,
            when: route.when.into_iter().map(Condition::try_from).collect::<Result<_>>()?,
        })
    }
}

/// A map with a structured key as a list of its values: JSON's keys are texts.
mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{EndpointKey, EndpointSpec};

    pub(super) fn serialize<S: Serializer>(
        endpoints: &BTreeMap<EndpointKey, EndpointSpec>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(endpoints.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<EndpointKey, EndpointSpec>, D::Error> {
        let list = Vec::<EndpointSpec>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|spec| (spec.key.clone(), spec)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proto::watch_response::Update;

    use super::*;

    fn route(version: u32) -> proto::Route {
        proto::Route {
            role: proto::RouteRole::Live.into(),
            reference: "m@champion".to_owned(),
            weight: 1.0,
            model: "m".to_owned(),
            version,
            artifact_digest: Digest::of(&version.to_le_bytes()).to_string(),
            ..proto::Route::default()
        }
    }

    fn endpoint(name: &str, routes: Vec<proto::Route>) -> proto::Endpoint {
        proto::Endpoint {
            project: "default".to_owned(),
            name: name.to_owned(),
            routes,
            ..proto::Endpoint::default()
        }
    }

    fn update(revision: u64, update: Update) -> proto::WatchResponse {
        proto::WatchResponse {
            revision,
            update: Some(update),
        }
    }

    fn versions(desired: &Desired) -> Vec<(&str, u32)> {
        desired
            .endpoints
            .iter()
            .map(|(key, spec)| {
                let version = spec
                    .routes
                    .first()
                    .and_then(RouteSpec::version)
                    .map_or(0, |v| v.version);
                (key.name.as_str(), version)
            })
            .collect()
    }

    #[test]
    fn snapshots_replace_and_deltas_change() {
        let mut desired = Desired::default();
        let endpoints = vec![endpoint("a", vec![route(1)]), endpoint("b", vec![route(1)])];
        assert!(desired.apply(update(5, Update::Snapshot(proto::Snapshot { endpoints }))));
        assert_eq!(versions(&desired), [("a", 1), ("b", 1)]);
        let delta = proto::Delta {
            changed: vec![endpoint("a", vec![route(2)]), endpoint("c", vec![route(3)])],
            removed: vec![proto::EndpointKey {
                project: "default".to_owned(),
                name: "b".to_owned(),
            }],
        };
        assert!(desired.apply(update(6, Update::Delta(delta))));
        assert_eq!(versions(&desired), [("a", 2), ("c", 3)]);
        assert!(!desired.apply(update(6, Update::Heartbeat(proto::Heartbeat {}))));
        assert_eq!(desired.revision, 6);
        let endpoints = vec![endpoint("c", vec![route(4)])];
        assert!(desired.apply(update(2, Update::Snapshot(proto::Snapshot { endpoints }))));
        assert_eq!((versions(&desired), desired.revision), (vec![("c", 4)], 2));
    }

    #[test]
    fn a_specification_without_sense_changes_nothing_and_is_reported() {
        type Spoil = fn(&mut proto::Route);
        let spoilt: [(&str, Spoil); 4] = [
            ("digest", |route| route.artifact_digest = "sha256:7".to_owned()),
            ("weight", |route| route.weight = f64::NAN),
            ("sample", |route| route.sample = 2.0),
            ("neither", |route| route.role = 0),
        ];
        for (word, spoil) in spoilt {
            let mut desired = Desired::default();
            let endpoints = vec![endpoint("a", vec![route(1)])];
            desired.apply(update(1, Update::Snapshot(proto::Snapshot { endpoints })));
            let mut bad = route(2);
            spoil(&mut bad);
            let delta = proto::Delta {
                changed: vec![endpoint("a", vec![bad]), endpoint("../b", vec![route(2)])],
                removed: vec![],
            };
            desired.apply(update(2, Update::Delta(delta)));
            assert_eq!(versions(&desired), [("a", 1)], "{word}");
            let messages: Vec<&String> = desired.refused.values().collect();
            assert_eq!(messages.len(), 2, "{messages:?}");
            assert!(messages.iter().any(|message| message.contains(word)), "{messages:?}");
        }
    }

    #[test]
    fn it_survives_its_file() -> Result<(), serde_json::Error> {
        let mut desired = Desired::default();
        let mut open = route(0);
        open.model = String::new();
        open.unresolved = "alias champion of model m is not set".to_owned();
        let endpoints = vec![endpoint("a", vec![route(1), open])];
        desired.apply(update(7, Update::Snapshot(proto::Snapshot { endpoints })));
        let text = serde_json::to_string(&desired)?;
        assert_eq!(serde_json::from_str::<Desired>(&text)?, desired);
        Ok(())
    }
}
