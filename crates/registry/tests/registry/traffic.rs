//! How the traffic of endpoints stands: changes that hold at once, rollouts, and the way back.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use modelyard_proto::registry::v1::{
    ChangeRolloutRequest, Endpoint, EndpointTraffic, GetEndpointRequest, ListRolloutsRequest, ReportTrafficRequest,
    Rollout, RouteRole, VersionTraffic, change_rollout_request::Change,
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::support::{PROJECT, TestRegistry, registries};

const ENDPOINT: &str = "endpoints/e";

/// Three versions of model `m`; the endpoint follows an alias, which points at the first.
async fn declare(registry: &TestRegistry, spec: &Value) {
    let digest = registry.upload_model().await;
    for _ in 0..3 {
        registry.create_version("m", &digest).await;
    }
    registry.set_alias("m", "champion", 1).await;
    registry.take(Method::PUT, ENDPOINT, spec).await;
}

fn gradual() -> Value {
    json!({"routes": [{"model": "m@champion"}], "shadow": [{"model": "m/1"}],
           "rollout": {"steps": [10], "interval": "1m", "guards": [{"metric": "error_rate", "max": 0.01}]}})
}

/// What gateways are told.
async fn desired(registry: &TestRegistry) -> Endpoint {
    let request = GetEndpointRequest {
        project: PROJECT.to_owned(),
        name: "e".to_owned(),
    };
    let answer = registry.endpoints().get_endpoint(request).await.unwrap();
    answer.into_inner().endpoint.unwrap()
}

/// The live versions and their shares.
async fn live(registry: &TestRegistry) -> Vec<(u32, f64)> {
    let routes = desired(registry).await.routes;
    let live = routes.iter().filter(|route| route.role() == RouteRole::Live);
    live.map(|route| (route.version, route.weight)).collect()
}

async fn rollouts(registry: &TestRegistry) -> Vec<Rollout> {
    let answer = registry.endpoints().list_rollouts(ListRolloutsRequest {}).await;
    answer.unwrap().into_inner().rollouts
}

async fn change(registry: &TestRegistry, revision: u64, change: Change) -> Result<(), Status> {
    let request = ChangeRolloutRequest {
        project: PROJECT.to_owned(),
        endpoint: "e".to_owned(),
        revision,
        change: Some(change),
    };
    registry.endpoints().change_rollout(request).await.map(drop)
}

/// What the audit chain says of rollouts, the oldest first.
async fn audited(registry: &TestRegistry) -> Vec<String> {
    let uri = "/api/v1/audit/events?action=endpoint.write&limit=100";
    let request = Request::get(uri).body(Body::empty()).unwrap();
    let response = registry.router.clone().oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events: Value = serde_json::from_slice(&body).unwrap();
    let mut words: Vec<(u64, String)> = Vec::new();
    for event in events["items"].as_array().unwrap() {
        if let Some(word) = event["details"]["rollout"].as_str() {
            words.push((event["seq"].as_u64().unwrap(), word.to_owned()));
        }
    }
    words.sort();
    words.into_iter().map(|(_, word)| word).collect()
}

#[tokio::test]
async fn without_rules_an_alias_moves_the_traffic_at_once_and_rollback_brings_it_back() {
    for (_place, registry) in registries().await {
        declare(&registry, &json!({"routes": [{"model": "m@champion"}]})).await;
        let path = format!("{ENDPOINT}/rollback");
        let (status, _, detail) = registry.refuse(Method::POST, &path, &Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(detail.contains("nothing to go back to"), "{detail}");
        registry.set_alias("m", "champion", 2).await;
        assert_eq!(live(&registry).await, [(2, 100.0)]);
        assert!(rollouts(&registry).await.is_empty());
        let back = registry.take(Method::POST, &path, &Value::Null).await;
        assert_eq!(back["traffic"]["stable"][0]["version"], 1);
        assert_eq!(back["traffic"]["candidate"]["rejected"], true);
        assert_eq!(live(&registry).await, [(1, 100.0)]);
        // What the routes mean is told beside it.
        assert_eq!(back["resolved"][0]["version"], 2);
        // Saying the same again brings nothing; something else does.
        registry.set_alias("m", "champion", 2).await;
        registry
            .take(
                Method::PUT,
                ENDPOINT,
                &json!({"routes": [{"model": "m@champion"}], "log": {"predictions": false}}),
            )
            .await;
        assert_eq!(live(&registry).await, [(1, 100.0)]);
        assert!(!desired(&registry).await.log.unwrap().predictions);
        registry.set_alias("m", "champion", 3).await;
        assert_eq!(live(&registry).await, [(3, 100.0)]);
        let events = registry.get("events").await;
        let kinds: Vec<&str> = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|event| event["kind"].as_str())
            .collect();
        assert!(
            kinds.iter().filter(|kind| **kind == "endpoint_changed").count() >= 3,
            "{kinds:?}"
        );
        let absent = registry
            .refuse(Method::POST, "endpoints/absent/rollback", &Value::Null)
            .await;
        assert_eq!(absent.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn with_rules_new_routes_wait_for_their_share() {
    for (_place, registry) in registries().await {
        declare(&registry, &gradual()).await;
        assert_eq!(
            live(&registry).await,
            [(1, 100.0)],
            "the first deployment is no rollout"
        );
        registry.set_alias("m", "champion", 2).await;
        assert_eq!(live(&registry).await, [(1, 100.0)]);
        assert!(desired(&registry).await.in_rollout);
        let found = rollouts(&registry).await.remove(0);
        assert_eq!((found.endpoint.as_str(), found.share), ("e", 0.0));
        let rules: Value = serde_json::from_str(&found.rules_json).unwrap();
        assert_eq!(rules["guards"][0]["max"], 0.01);
        let revision = found.revision;
        change(&registry, revision, Change::Share(10.0)).await.unwrap();
        change(&registry, revision, Change::Share(10.0)).await.unwrap();
        assert_eq!(live(&registry).await, [(1, 90.0), (2, 10.0)]);
        // Shadows are not part of it.
        assert_eq!(desired(&registry).await.routes.len(), 3);
        assert_eq!(registry.get(ENDPOINT).await["traffic"]["candidate"]["share"], 10.0);
        for (revision, wanted, code) in [
            (revision + 1, Change::Share(20.0), Code::FailedPrecondition),
            (revision, Change::Share(101.0), Code::InvalidArgument),
        ] {
            assert_eq!(change(&registry, revision, wanted).await.unwrap_err().code(), code);
        }
        change(&registry, revision, Change::Promote("fine".to_owned()))
            .await
            .unwrap();
        assert_eq!(live(&registry).await, [(2, 100.0)]);
        assert!(!desired(&registry).await.in_rollout && rollouts(&registry).await.is_empty());
        let over = change(&registry, revision, Change::Reject(String::new()))
            .await
            .unwrap_err();
        assert_eq!(over.code(), Code::FailedPrecondition);
        // One that is refused stays away; the next one is another.
        registry.set_alias("m", "champion", 3).await;
        let next = rollouts(&registry).await.remove(0).revision;
        assert!(next > revision);
        change(&registry, next, Change::Reject("slow".to_owned()))
            .await
            .unwrap();
        assert_eq!(live(&registry).await, [(2, 100.0)]);
        assert!(rollouts(&registry).await.is_empty());
        registry.set_alias("m", "champion", 1).await;
        assert_ne!(rollouts(&registry).await.remove(0).revision, next);
        assert_eq!(audited(&registry).await, ["share", "promote", "reject"]);
    }
}

#[tokio::test]
async fn what_gateways_count_is_told_with_the_rollout() {
    for (_place, registry) in registries().await {
        declare(&registry, &gradual()).await;
        registry.set_alias("m", "champion", 2).await;
        let report = |process: &str, answered: u64, endpoint: &str| ReportTrafficRequest {
            node: "g1".to_owned(),
            process: process.to_owned(),
            endpoints: vec![EndpointTraffic {
                project: PROJECT.to_owned(),
                name: endpoint.to_owned(),
                versions: vec![VersionTraffic {
                    model: "m".to_owned(),
                    version: 2,
                    answered,
                    failed: 1,
                    latency_buckets: vec![answered, 0],
                }],
            }],
        };
        // The last word counts; an endpoint that is gone is nobody's fault.
        for request in [report("p1", 5, "e"), report("p2", 7, "e"), report("p2", 7, "gone")] {
            registry.endpoints().report_traffic(request).await.unwrap();
        }
        let nodes = rollouts(&registry).await.remove(0).nodes;
        assert_eq!(nodes.len(), 1);
        assert_eq!((nodes[0].process.as_str(), nodes[0].versions[0].answered), ("p2", 7));
        assert_eq!(nodes[0].versions[0].latency_buckets, [7, 0]);
        let mut wide = report("p1", 1, "e");
        wide.endpoints[0].versions[0].latency_buckets = vec![0; 1000];
        let refused = registry.endpoints().report_traffic(wide).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        // With the endpoint all of it goes.
        registry.take(Method::DELETE, ENDPOINT, &Value::Null).await;
        assert!(rollouts(&registry).await.is_empty());
    }
}
