//! The life of models in memory: let go of, and loaded again with their next request.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use http::StatusCode;
use modelyard_common::telemetry::render_metrics;
use modelyard_proto::registry::v1::{Endpoint, Limits};
use modelyard_testkit::wait::until;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    harness::{Answer, PATIENCE, Running, World, endpoint, live},
    onnx::{simple, slow},
    peers::Registry,
};

/// A metric without labels, or the sum over all labels, as it is scraped.
pub fn metric(name: &str) -> f64 {
    let metrics = render_metrics();
    let lines = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{']))
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn body() -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]})
}

/// A gateway whose endpoint `e` lets go of its model at once when nobody asks, and the model's digest.
async fn idle() -> (World, Running, String) {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(simple(2.0)).await;
    let mut idle = endpoint("e", vec![live("m", 1, &digest, 1.0)]);
    idle.unload_after_ms = 1;
    // What comes of its version is told.
    idle.in_rollout = true;
    world.registry.set(vec![idle]);
    let running = world.start_ready().await;
    (world, running, digest)
}

async fn ask(running: &Running, endpoint: &str) -> Answer {
    running.post(&format!("/v2/models/{endpoint}/infer"), &body()).await
}

async fn check(running: &Running, endpoint: &str, factor: f64) {
    let answer = ask(running, endpoint).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    assert_eq!(answer.json()["outputs"][0]["data"], json!([factor, 2.0 * factor]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_models_go_and_come_back_with_the_next_request() {
    let _installed = render_metrics();
    let (_world, running, _) = idle().await;
    for round in 1..=3_u8 {
        until("the model is gone", PATIENCE, || async {
            (metric("modelyard_gateway_model_unloads_total") >= f64::from(round)).then_some(())
        })
        .await;
        // It is ready all the same, and what is known of it is told.
        assert_eq!(running.get("/v2/models/e/ready").await.status, StatusCode::OK);
        let config = running.get("/v2/models/e/config").await.json();
        assert!(config["max_batch_size"].as_u64().unwrap() > 1, "{config}");
        // All who come while it is being loaded are answered.
        let clients = (0..16).map(|_| check(&running, "e", 2.0));
        futures::future::join_all(clients).await;
        let statistics = running.get("/v2/models/e/stats").await.json();
        assert_eq!(
            statistics["model_stats"][0]["inference_count"],
            16 * round,
            "it counts on"
        );
    }
    running.stop().await;
}

fn many(digests: &[String]) -> Vec<Endpoint> {
    let each = digests.iter().enumerate();
    each.map(|(index, digest)| endpoint(&format!("e{index}"), vec![live("m", index as u32 + 1, digest, 1.0)]))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_models_than_memory_are_served_and_those_in_use_stay() {
    const MODELS: u8 = 12;
    let _installed = render_metrics();
    let mut world = World::new(Registry::new(vec![]));
    // A session is taken for half a MiB and its file.
    world.config.model_memory_bytes = Some(3 << 20);
    let mut digests = Vec::new();
    for factor in 1..=MODELS {
        digests.push(world.store(simple(f32::from(factor))).await);
    }
    world.registry.set(many(&digests));
    let running = world.start_ready().await;
    for factor in (1..=MODELS).chain(1..=MODELS) {
        check(&running, "e0", 1.0).await;
        check(&running, &format!("e{}", factor - 1), f64::from(factor)).await;
    }
    until("few are loaded", PATIENCE, || async {
        let loaded = metric("modelyard_gateway_loaded_models");
        (loaded > 0.0 && loaded <= 5.0).then_some(())
    })
    .await;
    // The one that was always in use was loaded once, whatever the others did.
    let loads = metric("modelyard_gateway_model_loads_total");
    for _ in 0..20 {
        check(&running, "e0", 1.0).await;
    }
    assert!((metric("modelyard_gateway_model_loads_total") - loads).abs() < 0.5);
    running.stop().await;
    // After a restart, what does not fit is not loaded to begin with, and answers.
    let before = metric("modelyard_gateway_model_loads_total");
    let running = world.start_ready().await;
    let at_start = metric("modelyard_gateway_model_loads_total") - before;
    assert!(at_start < f64::from(MODELS), "{at_start} were loaded");
    for factor in 1..=MODELS {
        check(&running, &format!("e{}", factor - 1), f64::from(factor)).await;
    }
    running.stop().await;
}

/// A server that takes calls and never answers holds up the loads of its own models, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_of_silent_servers_keep_no_other_from_serving() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("grpc://{}", silent.local_addr().unwrap());
    let mut world = World::new(Registry::new(vec![]));
    world.config.upstreams = vec!["*".to_owned()];
    let description = json!({"upstream": {"url": url, "model": "m", "version": "1"}});
    let away = world.store(description.to_string().into_bytes()).await;
    let here = world.store(simple(2.0)).await;
    // More than there are processors, and before the other.
    let mut endpoints: Vec<Endpoint> = (0..16)
        .map(|number| endpoint(&format!("away-{number}"), vec![live("m", 1, &away, 1.0)]))
        .collect();
    endpoints.push(endpoint("here", vec![live("m", 2, &here, 1.0)]));
    world.registry.set(endpoints);
    let began = Instant::now();
    let running = world.start().await;
    until("the other one serves", PATIENCE, || async {
        (ask(&running, "here").await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert!(!running.readiness.missing().is_empty(), "others are being loaded");
    running.stop().await;
    world.config.ready_after = Duration::from_millis(100);
    let running = world.start_ready().await;
    assert_eq!(ask(&running, "away-0").await.status, StatusCode::SERVICE_UNAVAILABLE);
    running.stop().await;
    // A call is given up after half a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_would_wait_too_long_is_told_when_to_come_again() {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(slow(1.0, 400)).await;
    let mut busy = endpoint("e", vec![live("m", 1, &digest, 1.0)]);
    busy.limits = Some(Limits {
        max_queue_time_ms: 1,
        ..Limits::default()
    });
    busy.batching = Some(modelyard_proto::registry::v1::Batching {
        max_rows: 1,
        ..Default::default()
    });
    world.registry.set(vec![busy]);
    let running = world.start_ready().await;
    let clients = (0..24).map(|_| async {
        let mut refused = None;
        for _ in 0..40 {
            let answer = ask(&running, "e").await;
            match answer.status {
                StatusCode::OK => {}
                StatusCode::TOO_MANY_REQUESTS => refused = Some(answer),
                other => panic!("{other}: {:?}", answer.body),
            }
        }
        refused
    });
    let refused = futures::future::join_all(clients).await;
    let refused = refused.into_iter().flatten().next().unwrap();
    let message = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(message.contains("would wait about"), "{message}");
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait >= 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_cannot_come_back_fails_fast_and_recovers() {
    let _installed = render_metrics();
    let (world, running, digest) = idle().await;
    until("the model is gone", PATIENCE, || async {
        (metric("modelyard_gateway_model_unloads_total") >= 1.0).then_some(())
    })
    .await;
    let folder = world.data_dir().join("gateway/models/default");
    let file = folder.join(digest.trim_start_matches("sha256:"));
    let content = std::fs::read(&file).unwrap();
    let artifacts = modelyard_artifacts::Artifacts::new(world.storage.clone());
    let blob = artifacts.project("default").unwrap();
    std::fs::remove_file(&file).unwrap();
    blob.delete(digest.parse().unwrap()).await.unwrap();
    // It is never the fault of who asks, and everybody is told at once.
    let began = Instant::now();
    for answer in futures::future::join_all((0..8).map(|_| ask(&running, "e"))).await {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{:?}", answer.body);
        assert_eq!(answer.headers["retry-after"], "1");
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains("the model cannot be loaded"), "{message}");
    }
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
    until("it is counted as the version's failure", PATIENCE, || async {
        let counted = world.registry.traffic("e");
        counted.iter().any(|version| version.failed >= 8).then_some(())
    })
    .await;
    world.store(content).await;
    until("it answers again", PATIENCE, || async {
        (ask(&running, "e").await.status == StatusCode::OK).then_some(())
    })
    .await;
    running.stop().await;
}
