//! Endpoints with their aliases followed to versions, and what changed between two moments.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    endpoint::{EndpointKey, EndpointSpec},
    endpoint_options::Condition,
    traffic::Traffic,
};

/// What a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RouteRole {
    /// It answers.
    Live,
    /// Its answers are logged and thrown away.
    Shadow,
}

impl RouteRole {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Shadow]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// A route with its reference followed to a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// Live or shadow.
    pub role: RouteRole,
    /// As written in the spec.
    pub reference: String,
    /// Live: its share of the traffic, relative to the other live routes.
    pub weight: f64,
    /// Shadow: the share of the requests that are repeated.
    pub sample: f64,
    /// Live: requests for which all of these hold take this route; empty: none does for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
    /// The model; null while the reference points at nothing.
    pub model: Option<String>,
    /// Its version.
    pub version: Option<u32>,
    /// The version's file.
    pub artifact_digest: Option<String>,
    /// The size of that file in bytes.
    pub artifact_size_bytes: Option<u64>,
    /// The Sigstore bundle with the signature of its files.
    #[serde(default)]
    pub bundle_digest: Option<String>,
    /// Why the reference points at nothing.
    pub unresolved: Option<String>,
}

impl Route {
    /// The version that the route means, as `model/version`.
    #[must_use]
    pub fn target(&self) -> Option<String> {
        let (model, version) = self.model.as_ref().zip(self.version)?;
        Some(format!("{model}/{version}"))
    }
}

/// An endpoint as a gateway shall serve it.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredEndpoint {
    /// Which one.
    pub key: EndpointKey,
    /// Live routes first, each in the order of the spec.
    pub routes: Vec<Route>,
    /// What it was declared to be.
    pub spec: EndpointSpec,
    /// Whether new routes are on their way.
    pub in_rollout: bool,
}

/// All endpoints at one revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DesiredState {
    /// The revision; every change up to it is in.
    pub revision: u64,
    /// The endpoints.
    pub endpoints: BTreeMap<EndpointKey, Arc<DesiredEndpoint>>,
}

/// What leads from one desired state to another.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Difference {
    /// New endpoints, and those that are another way now.
    pub changed: Vec<Arc<DesiredEndpoint>>,
    /// Endpoints that are gone.
    pub removed: Vec<EndpointKey>,
}

impl DesiredEndpoint {
    /// An endpoint whose routes mean this now, with the traffic as it stands: live routes are those that the traffic says.
    #[must_use]
    pub fn new(key: EndpointKey, spec: EndpointSpec, resolved: Vec<Route>, traffic: Option<&Traffic>) -> Self {
        let candidate = traffic.and_then(|traffic| traffic.candidate.as_ref());
        let routes = match traffic {
            None => resolved,
            Some(traffic) => {
                let shadows = resolved.into_iter().filter(|route| route.role == RouteRole::Shadow);
                traffic.effective().into_iter().chain(shadows).collect()
            }
        };
        Self {
            key,
            routes,
            spec,
            in_rollout: candidate.is_some_and(|candidate| !candidate.rejected),
        }
    }
}

impl DesiredState {
    /// What leads from `before` to this; None when nothing changed.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Difference> {
        let differs = |key: &EndpointKey, endpoint: &Arc<DesiredEndpoint>| before.endpoints.get(key) != Some(endpoint);
        let changed: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(key, endpoint)| differs(key, endpoint))
            .map(|(_, endpoint)| Arc::clone(endpoint))
            .collect();
        let gone = |key: &&EndpointKey| !self.endpoints.contains_key(*key);
        let removed: Vec<_> = before.endpoints.keys().filter(gone).cloned().collect();
        let nothing = changed.is_empty() && removed.is_empty();
        (!nothing).then_some(Difference { changed, removed })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(revision: u64, weights: &BTreeMap<u8, u8>) -> DesiredState {
        let endpoint = |(name, weight): (&u8, &u8)| {
            let key = EndpointKey {
                project: "default".to_owned(),
                name: name.to_string(),
            };
            let endpoint = DesiredEndpoint {
                key: key.clone(),
                routes: vec![Route {
                    role: RouteRole::Live,
                    reference: "m@a".to_owned(),
                    weight: f64::from(*weight),
                    sample: 0.0,
                    when: Vec::new(),
                    model: None,
                    version: None,
                    artifact_digest: None,
                    bundle_digest: None,
                    artifact_size_bytes: None,
                    unresolved: None,
                }],
                spec: EndpointSpec::default(),
                in_rollout: false,
            };
            (key, Arc::new(endpoint))
        };
        DesiredState {
            revision,
            endpoints: weights.iter().map(endpoint).collect(),
        }
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_state_to_the_other(
            before in proptest::collection::btree_map(0_u8..6, 0_u8..3, 0..6),
            after in proptest::collection::btree_map(0_u8..6, 0_u8..3, 0..6),
        ) {
            let (old, new) = (state(1, &before), state(2, &after));
            let difference = new.since(&old);
            prop_assert_eq!(difference.is_none(), before == after);
            let mut endpoints = old.endpoints;
            for endpoint in difference.iter().flat_map(|difference| &difference.changed) {
                let replaced = endpoints.insert(endpoint.key.clone(), Arc::clone(endpoint));
                prop_assert_ne!(replaced.as_ref(), Some(endpoint), "sent without a change");
            }
            for key in difference.iter().flat_map(|difference| &difference.removed) {
                prop_assert!(endpoints.remove(key).is_some());
            }
            prop_assert_eq!(endpoints, new.endpoints);
        }
    }
}
