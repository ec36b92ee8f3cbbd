//! Desired state: what is served, when it changes, and when it cannot.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use http::StatusCode;
use modelyard_proto::registry::v1::{Route, RouteState};
use modelyard_testkit::wait::until;
use serde_json::{Value, json};

use crate::{
    harness::{Answer, PATIENCE, Running, World, endpoint, live, shadow},
    onnx::{simple, slow},
    peers::Registry,
};

fn request(id: &str) -> Value {
    json!({"id": id, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]})
}

/// The version that answered, after checking that the numbers are that version's.
fn version_of(answer: &Answer) -> u64 {
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let answer = answer.json();
    let version: u64 = answer["model_version"].as_str().unwrap().parse().unwrap();
    let factor = answer["outputs"][0]["data"][0].as_f64().unwrap();
    assert!(
        (factor - version as f64).abs() < 1e-9,
        "version {version} answered {factor}"
    );
    version
}

async fn wait_for_version(running: &Running, version: u64) {
    until("the version answers", PATIENCE, || async {
        let answer = running.post("/v2/models/e/infer", &request("a")).await;
        (version_of(&answer) == version).then_some(())
    })
    .await;
}

/// A world with versions 1 to 3 of model `m`, whose answers tell them apart.
async fn world() -> (World, Vec<String>) {
    let world = World::new(Registry::new(vec![]));
    let mut digests = Vec::new();
    for factor in 1..=3_u8 {
        digests.push(world.store(simple(f32::from(factor))).await);
    }
    (world, digests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_change_under_load_without_one_failed_request() {
    let (world, digests) = world().await;
    let route = |version: u32| {
        let digest = &digests[version as usize - 1];
        vec![endpoint("e", vec![live("m", version, digest, 1.0)])]
    };
    world.registry.set(route(1));
    let running = Arc::new(world.start_ready().await);
    let done = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients = (0..8).map(|client| {
        let (running, done, answered) = (Arc::clone(&running), Arc::clone(&done), Arc::clone(&answered));
        async move {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = running
                    .post("/v2/models/e/infer", &request(&format!("c{client}")))
                    .await;
                last = version_of(&answer);
                answered.fetch_add(1, Ordering::Relaxed);
            }
            last
        }
    });
    let changes = async {
        for version in [2, 3, 1, 2, 3] {
            let before = answered.load(Ordering::Relaxed);
            world.registry.set(route(version));
            wait_for_version(&running, u64::from(version)).await;
            until("requests between two changes", PATIENCE, || async {
                (answered.load(Ordering::Relaxed) > before + 50).then_some(())
            })
            .await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let (last, ()) = tokio::join!(futures::future::join_all(clients), changes);
    assert_eq!(last, vec![3; 8]);
    until("the report", PATIENCE, || async {
        (world.registry.status("e")?.serving == ["m/3"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_update_that_cannot_be_loaded_is_refused_reported_and_overcome() {
    let (world, digests) = world().await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 1, &digests[0], 1.0)])]);
    let running = world.start_ready().await;
    let broken = world.store(b"this is no model".to_vec()).await;
    let missing = modelyard_artifacts::Digest::of(b"never stored").to_string();
    for (digest, word) in [(&broken, "not an ONNX model"), (&missing, "sha256:")] {
        // The good half of the update must not be applied either.
        let routes = vec![live("m", 2, &digests[1], 1.0), live("m", 9, digest, 1.0)];
        world.registry.set(vec![endpoint("e", routes)]);
        let status = until("the failure is reported", PATIENCE, || async {
            let status = world.registry.status("e")?;
            let failed = |route: &modelyard_proto::registry::v1::RouteStatus| {
                route.state() == RouteState::Failed && route.message.contains(word)
            };
            status.routes.iter().any(failed).then_some(status)
        })
        .await;
        assert_eq!(status.serving, ["m/1"]);
        for id in 0..20 {
            let answer = running.post("/v2/models/e/infer", &request(&id.to_string())).await;
            assert_eq!(version_of(&answer), 1);
        }
    }
    // A specification that makes no sense at all is told of, too.
    let nonsense = Route {
        artifact_digest: "sha256:short".to_owned(),
        ..live("m", 2, "", 1.0)
    };
    world.registry.set(vec![endpoint("e", vec![nonsense])]);
    until("the nonsense is reported", PATIENCE, || async {
        let status = world.registry.status("e")?;
        status
            .routes
            .iter()
            .any(|route| route.message.contains("is not a digest"))
            .then_some(())
    })
    .await;
    assert_eq!(version_of(&running.post("/v2/models/e/infer", &request("a")).await), 1);
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 2, &digests[1], 1.0)])]);
    wait_for_version(&running, 2).await;
}

#[tokio::test]
async fn a_version_whose_blob_comes_late_is_served_without_another_update() {
    let (world, digests) = world().await;
    let model = simple(9.0);
    let late = modelyard_artifacts::Digest::of(&model).to_string();
    world.registry.set(vec![
        endpoint("e", vec![live("m", 9, &late, 1.0)]),
        endpoint("f", vec![live("m", 1, &digests[0], 1.0)]),
    ]);
    let running = world.start_ready().await;
    let answer = running.post("/v2/models/e/infer", &request("a")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{:?}", answer.body);
    let message = answer.json()["error"].to_string();
    assert!(message.contains("m/9 cannot be loaded"), "{message}");
    world.store(model).await;
    until("the version is served", PATIENCE, || async {
        let answer = running.post("/v2/models/e/infer", &request("a")).await;
        (answer.status == StatusCode::OK && version_of(&answer) == 9).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_cannot_be_loaded_holds_nothing_up() {
    let (world, digests) = world().await;
    let broken = world.store(b"this is no model".to_vec()).await;
    let routes = vec![live("m", 2, &digests[1], 1.0), shadow("m", 9, &broken, 1.0)];
    world.registry.set(vec![endpoint("e", routes)]);
    let running = world.start_ready().await;
    wait_for_version(&running, 2).await;
    until("the failure is reported", PATIENCE, || async {
        let status = world.registry.status("e")?;
        status
            .routes
            .iter()
            .any(|route| route.state() == RouteState::Failed)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_last_good_state_serves_while_the_registry_is_away() {
    let (world, digests) = world().await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 2, &digests[1], 1.0)])]);
    let running = world.start_ready().await;
    wait_for_version(&running, 2).await;
    running.kill().await;
    world.registry.leave();
    let running = world.start_ready().await;
    wait_for_version(&running, 2).await;
    running.kill().await;
}

#[tokio::test]
async fn after_a_restart_what_served_last_is_served_where_the_new_cannot_be() {
    let (world, digests) = world().await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 2, &digests[1], 1.0)])]);
    let running = world.start_ready().await;
    wait_for_version(&running, 2).await;
    let broken = world.store(b"this is no model".to_vec()).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 3, &broken, 1.0)])]);
    until("the failure is reported", PATIENCE, || async {
        let status = world.registry.status("e")?;
        status
            .routes
            .iter()
            .any(|route| route.state() == RouteState::Failed)
            .then_some(())
    })
    .await;
    // The report goes out before the file is written.
    until("the state is on disk", PATIENCE, || async {
        let text = std::fs::read_to_string(world.data_dir().join("gateway/state.json")).unwrap();
        text.contains(&broken).then_some(())
    })
    .await;
    running.kill().await;
    world.registry.leave();
    let running = world.start_ready().await;
    wait_for_version(&running, 2).await;
}

#[tokio::test]
async fn an_alias_that_is_not_set_is_named_and_costs_no_answers_once_it_was() {
    let (world, digests) = world().await;
    let open = Route {
        reference: "m@champion".to_owned(),
        model: String::new(),
        unresolved: "alias champion of model m is not set".to_owned(),
        ..live("m", 0, "", 1.0)
    };
    world.registry.set(vec![endpoint("e", vec![open.clone()])]);
    let running = world.start_ready().await;
    let answer = running.post("/v2/models/e/infer", &request("a")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        answer.json()["error"],
        "endpoint e has no version to serve: alias champion of model m is not set"
    );
    let ready = running.get("/v2/models/e/ready").await;
    assert_eq!(
        (ready.status, &ready.json()["ready"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!(false))
    );
    let set = live("m", 1, &digests[0], 1.0);
    world.registry.set(vec![endpoint("e", vec![set])]);
    until("the endpoint is ready", PATIENCE, || async {
        (running.get("/v2/models/e/ready").await.status == StatusCode::OK).then_some(())
    })
    .await;
    world
        .registry
        .set(vec![endpoint("e", vec![open]), endpoint("mark", vec![])]);
    until("the update has arrived", PATIENCE, || async {
        (running.get("/v2/models/mark/ready").await.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    assert_eq!(version_of(&running.post("/v2/models/e/infer", &request("a")).await), 1);
    world.registry.set(vec![]);
    until("the endpoint is gone", PATIENCE, || async {
        (running.get("/v2/models/e/ready").await.status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

#[tokio::test]
async fn traffic_is_split_by_weight_and_an_id_keeps_its_route() {
    const REQUESTS: usize = 1000;
    let (world, digests) = world().await;
    let split = |weights: [f64; 2]| {
        let routes = vec![
            live("m", 1, &digests[0], weights[0]),
            live("m", 2, &digests[1], weights[1]),
        ];
        vec![endpoint("e", routes)]
    };
    world.registry.set(split([3.0, 1.0]));
    let running = world.start_ready().await;
    let ask = async |running: &Running| -> HashMap<usize, u64> {
        let mut versions = HashMap::new();
        for id in 0..REQUESTS {
            let answer = running.post("/v2/models/e/infer", &request(&format!("id-{id}"))).await;
            versions.insert(id, version_of(&answer));
        }
        versions
    };
    let first = ask(&running).await;
    let second = first.values().filter(|&&version| version == 2).count();
    // A quarter, within four standard deviations.
    assert!((195..=305).contains(&second), "{second} of {REQUESTS}");
    assert_eq!(ask(&running).await, first);
    world.registry.set(split([1.0, 1.0]));
    until("the weights are reported", PATIENCE, || async {
        let answer = running.post("/v2/models/e/infer", &request("id-0")).await;
        assert_eq!(answer.status, StatusCode::OK);
        // Some id that was version 1's before the change moves to version 2.
        let mut moved = false;
        for (id, _) in first.iter().filter(|(_, version)| **version == 1).take(40) {
            let answer = running.post("/v2/models/e/infer", &request(&format!("id-{id}"))).await;
            moved |= version_of(&answer) == 2;
        }
        moved.then_some(())
    })
    .await;
    // More weight only adds: who was version 2's stays.
    for (id, version) in ask(&running).await {
        assert!(first[&id] == 1 || version == 2, "id-{id} went back");
    }
    // A version that is asked for answers, whatever the weights; one without a route does not.
    for version in [1, 2] {
        let answer = running
            .post(&format!("/v2/models/e/versions/{version}/infer"), &request("x"))
            .await;
        assert_eq!(version_of(&answer), version);
    }
    let answer = running.post("/v2/models/e/versions/3/infer", &request("x")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(
        answer.json()["error"],
        "endpoint `e` does not serve version `3`: it serves 1, 2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_the_queue_full_is_told_when_to_come_again() {
    let mut world = World::new(Registry::new(vec![]));
    world.config.max_queued_requests = 1;
    let digest = world.store(slow(2.0, 400)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 1, &digest, 1.0)])]);
    let running = world.start_ready().await;
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]});
    let many = (0..64).map(|_| running.post("/v2/models/e/infer", &body));
    let answers = futures::future::join_all(many).await;
    let (answered, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == StatusCode::OK);
    assert!(
        !answered.is_empty() && !refused.is_empty(),
        "{} answered",
        answered.len()
    );
    for answer in refused {
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(answer.json()["error"].as_str().unwrap().contains("queue"));
    }
    running.stop().await;
}
