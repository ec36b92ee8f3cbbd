//! Endpoints as desired state, and what the gateways report.

use std::time::Duration;

use http::{Method, StatusCode};
use modelyard_proto::registry::v1::{
    EndpointStatus, GetEndpointRequest, ReportStatusRequest, RouteRole, RouteState, RouteStatus,
};
use serde_json::{Value, json};

use crate::support::{PROJECT, TestRegistry, registries};

const ENDPOINT: &str = "endpoints/flight-delay";

fn spec() -> Value {
    json!({"routes": [{"model": "flight-delay@champion"}], "shadow": [{"model": "flight-delay/1", "sample": 0.5}]})
}

async fn report(registry: &TestRegistry, node: &str, version: u32) {
    let route = RouteStatus {
        role: RouteRole::Live.into(),
        model: "flight-delay".to_owned(),
        version,
        state: RouteState::Ready.into(),
        message: String::new(),
    };
    let status = EndpointStatus {
        project: PROJECT.to_owned(),
        name: "flight-delay".to_owned(),
        routes: vec![route],
        serving: vec![format!("flight-delay/{version}")],
    };
    let request = ReportStatusRequest {
        node: node.to_owned(),
        revision: 3,
        endpoints: vec![status],
    };
    registry.endpoints().report_status(request).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_may_come_before_its_model() {
    for (_place, registry) in registries().await {
        let declared = registry.take(Method::PUT, ENDPOINT, &spec()).await;
        assert_eq!(declared["outcome"], "created");
        let resource = &declared["resource"];
        assert_eq!(
            (&resource["kind"], &resource["name"]),
            (&json!("Endpoint"), &json!("flight-delay"))
        );
        assert_eq!(resource["spec"]["routes"][0]["weight"], 100.0);
        assert_eq!(resource["spec"]["log"]["predictions"], true);
        assert_eq!(
            resource["resolved"][0]["unresolved"],
            "model flight-delay does not exist"
        );
        assert_eq!(registry.get(ENDPOINT).await, *resource);

        let digest = registry.upload_model().await;
        registry.create_version("flight-delay", &digest).await;
        let resolved = &registry.get(ENDPOINT).await["resolved"];
        assert_eq!(
            resolved[0]["unresolved"],
            "alias champion of model flight-delay is not set"
        );
        assert_eq!(
            (&resolved[1]["version"], &resolved[1]["artifact_digest"]),
            (&json!(1), &json!(digest))
        );
        registry.set_alias("flight-delay", "champion", 1).await;
        let request = GetEndpointRequest {
            project: PROJECT.to_owned(),
            name: "flight-delay".to_owned(),
        };
        let endpoint = registry
            .endpoints()
            .get_endpoint(request)
            .await
            .unwrap()
            .into_inner()
            .endpoint
            .unwrap();
        assert!(endpoint.log.as_ref().unwrap().predictions);
        let route = &endpoint.routes[0];
        assert_eq!(
            (route.role(), route.model.as_str(), route.version),
            (RouteRole::Live, "flight-delay", 1)
        );
        assert_eq!(endpoint.routes[1].role(), RouteRole::Shadow);
        assert!(route.artifact_size_bytes > 0 && route.unresolved.is_empty());
    }
}

#[tokio::test]
async fn declaring_says_what_it_did() {
    for (_place, registry) in registries().await {
        registry.take(Method::PUT, ENDPOINT, &spec()).await;
        let before = registry.get("events").await;
        registry.clock.advance(Duration::from_mins(1));
        let again = registry.take(Method::PUT, ENDPOINT, &spec()).await;
        assert_eq!(again["outcome"], "unchanged");
        assert_eq!(again["resource"]["updated_at"], again["resource"]["created_at"]);
        assert_eq!(registry.get("events").await, before);
        let other = json!({"routes": [{"model": "m/2", "weight": 3}, {"model": "m/1"}], "log": {"predictions": false}});
        let updated = registry.take(Method::PUT, ENDPOINT, &other).await;
        assert_eq!(
            (&updated["outcome"], &updated["resource"]["resolved"][0]["weight"]),
            (&json!("updated"), &json!(3.0))
        );
        assert_ne!(updated["resource"]["updated_at"], updated["resource"]["created_at"]);

        for name in ["b", "c", "a"] {
            registry.take(Method::PUT, &format!("endpoints/{name}"), &spec()).await;
        }
        let page = registry.get("endpoints?limit=3").await;
        let names: Vec<_> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap())
            .collect();
        assert_eq!((names, page["next_cursor"].as_str()), (vec!["a", "b", "c"], Some("c")));
        let (status, _) = registry.json(Method::DELETE, ENDPOINT, &Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        for method in [Method::DELETE, Method::GET] {
            let (status, ..) = registry.refuse(method, ENDPOINT, &Value::Null).await;
            assert_eq!(status, StatusCode::NOT_FOUND);
        }
        let kinds: Vec<_> = registry.get("events").await["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds.first().map(String::as_str), Some("endpoint_changed"));
        assert_eq!(kinds.last().map(String::as_str), Some("endpoint_deleted"));
    }
}

#[tokio::test]
async fn a_bad_spec_is_refused_with_all_its_problems() {
    for (_place, registry) in registries().await {
        let bad = json!({"routes": [{"model": "m", "weight": 0}], "shadow": [{"modle": "m/1"}], "rolout": {}});
        let (status, reason, detail) = registry.refuse(Method::PUT, ENDPOINT, &bad).await;
        assert_eq!((status, reason.as_str()), (StatusCode::BAD_REQUEST, "INVALID_SPEC"));
        for named in [
            "`m` names no model version",
            "has weight 0",
            "shadow[0]: unknown field `modle`",
            "`rolout`",
        ] {
            assert!(detail.contains(named), "{named}: {detail}");
        }
        let (_, reason, _) = registry.refuse(Method::PUT, "endpoints/a%2Fb", &spec()).await;
        assert_eq!(reason, "INVALID_NAME");
        assert_eq!(registry.get("endpoints").await["items"], json!([]));
        assert_eq!(registry.get("events").await["items"], json!([]));
    }
}

#[tokio::test]
async fn ready_means_that_all_living_nodes_serve_what_is_wanted() {
    for (_place, registry) in registries().await {
        let digest = registry.upload_model().await;
        for _ in 0..2 {
            registry.create_version("flight-delay", &digest).await;
        }
        registry.set_alias("flight-delay", "champion", 1).await;
        registry.take(Method::PUT, ENDPOINT, &spec()).await;
        let ready = async || registry.get(ENDPOINT).await["status"]["ready"] == true;
        assert!(!ready().await, "nobody serves it");
        report(&registry, "one", 1).await;
        assert!(ready().await);
        registry.set_alias("flight-delay", "champion", 2).await;
        assert!(!ready().await, "the old version is served");
        report(&registry, "one", 2).await;
        report(&registry, "two", 1).await;
        assert!(!ready().await, "one of two serves the old version");
        // The second node is gone.
        registry.clock.advance(Duration::from_secs(31));
        report(&registry, "one", 2).await;
        assert!(ready().await);
        let status = &registry.get(ENDPOINT).await["status"];
        assert_eq!(status["nodes"][0]["serving"], json!(["flight-delay/2"]));
        assert_eq!(status["nodes"][0]["routes"][0]["state"], "ready");
        assert_eq!(
            (&status["nodes"][0]["stale"], &status["nodes"][1]["stale"]),
            (&json!(false), &json!(true))
        );
    }
}
