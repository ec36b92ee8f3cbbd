//! Which version answers, and which answers are kept.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use http::{Request, StatusCode};
use modelyard_common::rpc::local;
use modelyard_proto::{
    inference::{
        InferParameter, grpc_inference_service_client::GrpcInferenceServiceClient, infer_parameter::ParameterChoice,
    },
    registry::v1::{Attribute, Cache, Condition, Endpoint, Route, attribute::Source},
};
use modelyard_testkit::wait::until;
use serde_json::{Value, json};

use crate::{
    extensions::grpc_rows,
    harness::{PATIENCE, Running, World, endpoint, live},
    onnx::{simple, slow},
    peers::Registry,
};

fn body(id: &str, parameters: &Value) -> Value {
    json!({"id": id, "parameters": parameters,
           "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]})
}

/// The version that answers a request with a header and parameters.
async fn version(running: &Running, id: &str, header: Option<(&str, &str)>, parameters: &Value) -> String {
    let mut request = Request::post("/v2/models/e/infer");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let request = request.body(body(id, parameters).to_string().into()).unwrap();
    let answer = running.send(request).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    answer.json()["model_version"].as_str().unwrap().to_owned()
}

/// A gateway with an endpoint `e` over versions of model `m`, numbered from 1.
async fn serve(routes: impl FnOnce(&[String]) -> Vec<Route>, change: impl FnOnce(&mut Endpoint)) -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let mut digests = Vec::new();
    for factor in 1..=3_u8 {
        digests.push(world.store(simple(f32::from(factor))).await);
    }
    let mut endpoint = endpoint("e", routes(&digests));
    change(&mut endpoint);
    world.registry.set(vec![endpoint]);
    let running = world.start_ready().await;
    (world, running)
}

fn header(name: &str) -> Attribute {
    Attribute {
        source: Some(Source::Header(name.to_owned())),
    }
}

fn parameter(name: &str) -> Attribute {
    Attribute {
        source: Some(Source::Parameter(name.to_owned())),
    }
}

fn when(attribute: Attribute, equals: &str) -> Condition {
    Condition {
        attribute: Some(attribute),
        equals: equals.to_owned(),
    }
}

#[tokio::test]
async fn conditions_decide_before_weights() {
    let routes = |digests: &[String]| {
        let mut beta = live("m", 2, &digests[1], 0.0);
        beta.when = vec![when(header("x-beta"), "yes"), when(parameter("tenant"), "7")];
        let mut gold = live("m", 3, &digests[2], 0.0);
        gold.when = vec![when(parameter("gold"), "true")];
        vec![live("m", 1, &digests[0], 1.0), beta, gold]
    };
    let (_world, running) = serve(routes, |_| ()).await;
    let cases = [
        (None, json!({}), "1"),
        (Some(("x-beta", "yes")), json!({}), "1"),
        (Some(("X-Beta", "yes")), json!({"tenant": 7}), "2"),
        (Some(("x-beta", "no")), json!({"tenant": "7"}), "1"),
        (Some(("x-beta", "yes")), json!({"tenant": "7", "gold": true}), "2"),
        (None, json!({"gold": true, "others": 0.5}), "3"),
    ];
    for (index, (header, parameters, expected)) in cases.into_iter().enumerate() {
        let found = version(&running, &format!("r{index}"), header, &parameters).await;
        assert_eq!(found, expected, "{header:?} {parameters}");
    }
    // The same over gRPC.
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let mut request = grpc_rows("", &[1.0, 2.0]);
    let tenant = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(7)),
    };
    request.parameters = HashMap::from([("tenant".to_owned(), tenant)]);
    let mut call = tonic::Request::new(request);
    call.metadata_mut().insert("x-beta", "yes".parse().unwrap());
    let answer = client.model_infer(call).await.unwrap().into_inner();
    assert_eq!(answer.model_version, "2");
    running.stop().await;
}

#[tokio::test]
async fn a_growing_canary_only_adds_users() {
    const USERS: usize = 400;
    let routes = |weight: f64| {
        move |digests: &[String]| {
            vec![
                live("m", 1, &digests[0], 100.0 - weight),
                live("m", 2, &digests[1], weight),
            ]
        }
    };
    let sticky = |endpoint: &mut Endpoint| endpoint.sticky = Some(header("x-user"));
    let mut before = vec![false; USERS];
    let mut shares = Vec::new();
    for weight in [5.0, 25.0, 50.0, 100.0] {
        let (_world, running) = serve(routes(weight), sticky).await;
        let mut canary = Vec::new();
        for user in 0..USERS {
            let user = format!("user-{user}");
            let mut versions = Vec::new();
            // Whatever the request's own id.
            for id in ["a", "b"] {
                versions.push(version(&running, id, Some(("x-user", &user)), &json!({})).await);
            }
            assert_eq!(versions[0], versions[1], "{user} moves");
            canary.push(versions[0] == "2");
        }
        let lost = before.iter().zip(&canary).filter(|(before, now)| **before && !**now);
        assert_eq!(lost.count(), 0, "at {weight}");
        shares.push(canary.iter().filter(|is_canary| **is_canary).count() as f64 / USERS as f64);
        before = canary;
        running.stop().await;
    }
    for (share, expected) in shares.iter().zip([0.05, 0.25, 0.5, 1.0]) {
        let deviation = (expected * (1.0 - expected) / USERS as f64).sqrt();
        assert!((share - expected).abs() <= 4.0 * deviation, "{shares:?}");
    }
    // Requests that carry no user are told apart by their ids.
    let (_world, running) = serve(routes(50.0), sticky).await;
    let mut found = Vec::new();
    for id in 0..40 {
        found.push(version(&running, &id.to_string(), None, &json!({})).await);
    }
    assert!(
        found.contains(&"1".to_owned()) && found.contains(&"2".to_owned()),
        "{found:?}"
    );
    running.stop().await;
}

/// Requests, rows that were computed, and answers from the cache, as Triton's clients are told.
async fn counted(running: &Running) -> (u64, u64, u64) {
    let statistics = running.get("/v2/models/e/stats").await.json();
    let model = &statistics["model_stats"][0];
    let count = |value: &Value| value.as_u64().unwrap();
    (
        count(&model["inference_stats"]["success"]["count"]),
        count(&model["inference_count"]),
        count(&model["inference_stats"]["cache_hit"]["count"]),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_kept_where_that_is_wanted_and_logged_all_the_same() {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(slow(2.0, 20)).await;
    let mut cached = endpoint("e", vec![live("m", 1, &digest, 1.0)]);
    cached.cache = Some(Cache {
        time_to_live_ms: 60_000,
    });
    world.registry.set(vec![cached.clone()]);
    let running = world.start_ready().await;
    let ask = |id: &'static str, value: f64| {
        let running = &running;
        async move {
            let body = json!({"id": id, "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 2.0]}]});
            let answer = running.post("/v2/models/e/infer", &body).await.json();
            assert_eq!(answer["id"], id);
            assert_eq!(answer["outputs"][0]["data"], json!([value * 2.0, 4.0]));
        }
    };
    // Those that come together wait for one run.
    tokio::join!(ask("a", 1.0), ask("b", 1.0), ask("c", 1.0));
    ask("d", 1.0).await;
    ask("e", 7.0).await;
    assert_eq!(counted(&running).await, (5, 2, 3));
    // Each request is in the log, however it was answered.
    until("all are logged", PATIENCE, || async {
        let rows: usize = world.rows("e").await.iter().map(RecordBatch::num_rows).sum();
        assert!(rows <= 5, "{rows}");
        (rows == 5).then_some(())
    })
    .await;
    // Another version's answers are its own.
    let other = world.store(simple(3.0)).await;
    cached.routes = vec![live("m", 2, &other, 1.0)];
    world.registry.set(vec![cached]);
    until("the other version answers", PATIENCE, || async {
        let found = version(&running, "f", None, &json!({})).await;
        (found == "2").then_some(())
    })
    .await;
    let body = body("g", &json!({}));
    let answer = running.post("/v2/models/e/infer", &body).await.json();
    assert_eq!(answer["outputs"][0]["data"], json!([3.0, 6.0]));
    running.stop().await;
}

#[tokio::test]
async fn what_comes_of_versions_is_told_while_new_routes_are_on_their_way() {
    let routes = |digests: &[String]| vec![live("m", 1, &digests[0], 50.0), live("m", 2, &digests[1], 50.0)];
    let (world, running) = serve(routes, |endpoint| endpoint.in_rollout = true).await;
    let mut answered = HashMap::from([(1, 0), (2, 0)]);
    for id in 0..20 {
        let version = version(&running, &format!("r{id}"), None, &json!({})).await;
        *answered.get_mut(&version.parse::<u32>().unwrap()).unwrap() += 1;
    }
    // A client's fault is nobody else's.
    let wrong = json!({"inputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]});
    assert_eq!(
        running.post("/v2/models/e/infer", &wrong).await.status,
        StatusCode::BAD_REQUEST
    );
    let told = until("all is told", PATIENCE, || async {
        let told = world.registry.traffic("e");
        (told.iter().map(|version| version.answered).sum::<u64>() == 20).then_some(told)
    })
    .await;
    for version in told {
        assert_eq!(
            version.answered, answered[&version.version],
            "version {}",
            version.version
        );
        assert_eq!(version.latency_buckets.iter().sum::<u64>(), version.answered);
        assert_eq!(version.failed, 0);
    }
    running.stop().await;
}
