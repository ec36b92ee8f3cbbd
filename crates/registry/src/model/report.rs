//! What the gateways report, and what it says about an endpoint.

use std::{collections::BTreeSet, time::Duration};

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    desired::{Route, RouteRole},
    endpoint::EndpointKey,
};

/// After this time without a report a node does not count any more; nodes report every ten seconds.
pub const REPORT_LIFETIME: Duration = Duration::from_secs(30);
/// After this time the report of a node that is gone is forgotten.
pub const REPORT_RETENTION: Duration = Duration::from_hours(24);
/// The longest name of a node, in bytes.
pub const MAX_NODE_BYTES: usize = 255;
/// The most endpoints of one report.
pub const MAX_REPORTED_ENDPOINTS: usize = 10_000;
/// The longest message about a route that is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// How far a node is with a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// It is on its way.
    Loading,
    /// It can take traffic.
    Ready,
    /// It cannot be loaded; the message says why.
    Failed,
}

/// What a node says about one route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteReport {
    /// Live or shadow.
    pub role: RouteRole,
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u32,
    /// How far the node is with it.
    pub state: RouteState,
    /// Why it failed, else empty.
    pub message: String,
}

/// What a node says about one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointReport {
    /// The endpoint.
    pub key: EndpointKey,
    /// Its routes.
    pub routes: Vec<RouteReport>,
    /// The versions that get live traffic right now, as `model/version`.
    pub serving: Vec<String>,
}

/// What a node says; it replaces what the node said before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The node.
    pub node: String,
    /// The revision that it has applied.
    pub revision: u64,
    /// When the registry heard it.
    pub reported_at: Timestamp,
    /// Its endpoints.
    pub endpoints: Vec<EndpointReport>,
}

/// The most buckets of latencies that a version has.
pub const MAX_LATENCY_BUCKETS: usize = 128;
/// The most versions of an endpoint in a report about its traffic.
pub const MAX_REPORTED_VERSIONS: usize = 64;

/// What a node counted of one version since its process began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionTraffic {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u32,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed by our fault.
    pub failed: u64,
    /// Answers by their latency, in the contract's buckets.
    pub latency_buckets: Vec<u64>,
}

/// What a node's process counted of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficReport {
    /// The node.
    pub node: String,
    /// Its process.
    pub process: String,
    /// The endpoint.
    pub key: EndpointKey,
    /// Its versions.
    pub versions: Vec<VersionTraffic>,
}

/// What a node made of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// The revision that it has applied.
    pub revision: u64,
    /// When it said so.
    pub reported_at: Timestamp,
    /// Whether that is too long ago to count.
    pub stale: bool,
    /// Its routes.
    pub routes: Vec<RouteReport>,
    /// The versions that get live traffic right now, as `model/version`.
    pub serving: Vec<String>,
}

/// What the gateways made of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct EndpointStatus {
    /// The revision of the desired state.
    pub revision: u64,
    /// Whether all nodes serve exactly the versions that the live routes mean now.
    pub ready: bool,
    /// What each node says.
    pub nodes: Vec<NodeStatus>,
}

impl EndpointStatus {
    /// The status of an endpoint whose routes mean `resolved` and that shall serve `routes`. Without a node that reports, and with a live route that points at
    /// nothing, an endpoint is not ready.
    #[must_use]
    pub fn new(
        revision: u64,
        resolved: &[Route],
        routes: &[Route],
        mut nodes: Vec<NodeStatus>,
        now: Timestamp,
    ) -> Self {
        for node in &mut nodes {
            node.stale = now.since(node.reported_at) > REPORT_LIFETIME;
        }
        let live = |routes: &'_ [Route]| -> Vec<Option<String>> {
            let live = routes.iter().filter(|route| route.role == RouteRole::Live);
            live.map(Route::target).collect()
        };
        let wanted: BTreeSet<String> = live(routes).into_iter().flatten().collect();
        let resolved = live(resolved).iter().all(Option::is_some);
        let mut fresh = nodes.iter().filter(|node| !node.stale).peekable();
        let ready = resolved
            && fresh.peek().is_some()
            && fresh.all(|node| node.serving.iter().cloned().collect::<BTreeSet<_>>() == wanted);
        Self { revision, ready, nodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn route(role: RouteRole, version: Option<u32>) -> Route {
        Route {
            role,
            reference: "m@a".to_owned(),
            weight: 1.0,
            sample: 1.0,
            when: Vec::new(),
            model: version.map(|_| "m".to_owned()),
            version,
            artifact_digest: None,
            bundle_digest: None,
            artifact_size_bytes: None,
            unresolved: None,
        }
    }

    fn node(age: Duration, serving: &[&str]) -> NodeStatus {
        NodeStatus {
            node: "n".to_owned(),
            revision: 1,
            reported_at: Timestamp::from_micros(NOW) - age,
            stale: false,
            routes: Vec::new(),
            serving: serving.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn ready_when_every_living_node_serves_what_is_wanted() {
        let fresh = Duration::from_secs(5);
        let stale = REPORT_LIFETIME + Duration::from_secs(1);
        let live = |version| vec![route(RouteRole::Live, version), route(RouteRole::Shadow, None)];
        let cases = [
            (live(Some(2)), vec![], false),
            (live(Some(2)), vec![node(fresh, &["m/2"])], true),
            (live(Some(2)), vec![node(fresh, &["m/1"])], false),
            (live(Some(2)), vec![node(fresh, &["m/1", "m/2"])], false),
            (live(Some(2)), vec![node(fresh, &["m/2"]), node(fresh, &[])], false),
            (live(Some(2)), vec![node(fresh, &["m/2"]), node(stale, &["m/1"])], true),
            (live(Some(2)), vec![node(stale, &["m/2"])], false),
            (live(None), vec![node(fresh, &[])], false),
        ];
        for (index, (routes, nodes, expected)) in cases.into_iter().enumerate() {
            let status = EndpointStatus::new(7, &routes, &routes, nodes, Timestamp::from_micros(NOW));
            assert_eq!(status.ready, expected, "case {index}");
        }
        // While new routes are on their way, what serves is what was there before.
        let (resolved, serving) = (live(Some(3)), live(Some(2)));
        let nodes = vec![node(fresh, &["m/2"])];
        assert!(EndpointStatus::new(7, &resolved, &serving, nodes, Timestamp::from_micros(NOW)).ready);
    }
}
