//! Runs: order, conditions, failures, crashes, and what a step costs.

use std::{sync::atomic::Ordering, time::Instant};

use http::{Method, StatusCode};
use modelyard_proto::registry::v1::DatasetVersion;
use modelyard_testkit::{postgres::test_databases, wait::until};
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, step};

fn dataset_step(name: &str) -> Value {
    json!({"name": name, "op": "dataset", "with": {"dataset": "flights@latest"}})
}

fn add_dataset(world: &World) {
    let version = DatasetVersion {
        project: "default".to_owned(),
        name: "flights".to_owned(),
        version: 1,
        digest: format!("sha256:{}", "0".repeat(64)),
        rows: 7,
        ..DatasetVersion::default()
    };
    world.registry.contents.lock().datasets.push(version);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_flow_along_the_edges_and_conditions_skip() {
    for place in test_databases().await.unwrap() {
        let world = World::on(place).await;
        let steps = json!([
            {"name": "last", "op": "value", "with": {"sum": "{{ steps.b.outputs.text }}", "n": "{{ steps.a.outputs.n }}"}},
            {"name": "a", "op": "value", "with": {"n": 5, "no": false}},
            {"name": "b", "op": "value", "with": {"text": "n is {{ steps.a.outputs.n }}"}},
            {"name": "off", "op": "value", "when": "{{ steps.a.outputs.no }}"},
            {"name": "after-off", "op": "value", "needs": ["off"]},
        ]);
        let run = world.finish(&world.run_steps(steps).await).await;
        assert_eq!(run["status"], "succeeded", "{run}");
        assert_eq!(step(&run, "last")["outputs"], json!({"sum": "n is 5", "n": 5}));
        assert_eq!(step(&run, "off")["status"], "skipped");
        assert_eq!(step(&run, "after-off")["status"], "skipped");
        assert_eq!(step(&run, "after-off")["error"], "it needs `off`, which was skipped");
        assert!(run["started_at"].is_string() && run["finished_at"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_fails_the_run_and_other_branches_go_on() {
    let world = World::new().await;
    let steps = json!([
        {"name": "bad", "op": "dataset", "with": {"dataset": "nothing@latest"}, "retry": {"attempts": 2, "backoff": "1ms"}},
        {"name": "after", "op": "value", "needs": ["bad"]},
        {"name": "beside", "op": "value"},
    ]);
    let run = world.finish(&world.run_steps(steps).await).await;
    assert_eq!(run["status"], "failed");
    assert_eq!(run["error"], "step `bad` failed: dataset `nothing` does not exist");
    assert_eq!(
        (&step(&run, "bad")["status"], &step(&run, "bad")["attempt"]),
        (&json!("failed"), &json!(2))
    );
    assert_eq!(step(&run, "after")["status"], "skipped");
    assert_eq!(step(&run, "beside")["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for() {
    let world = World::new().await;
    add_dataset(&world);
    world.registry.away.store(true, Ordering::SeqCst);
    let id = world.run_steps(json!([dataset_step("d")])).await;
    let waiting = world
        .wait(&id, "the step says what it waits for", |run| {
            run["steps"][0]["progress"].is_object()
        })
        .await;
    assert_eq!(waiting["status"], "running");
    let message = waiting["steps"][0]["progress"]["message"].as_str().unwrap();
    assert_eq!(message, "waiting for the registry: the registry is away");
    world.registry.away.store(false, Ordering::SeqCst);
    let run = world.finish(&id).await;
    assert_eq!(
        (&run["status"], &run["steps"][0]["attempt"]),
        (&json!("succeeded"), &json!(1))
    );
    assert_eq!(run["steps"][0]["outputs"]["reference"], "flights/1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_goes_on_where_it_was() {
    for place in test_databases().await.unwrap() {
        let mut world = World::on(place).await;
        add_dataset(&world);
        world
            .registry
            .permits
            .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
        let steps = json!([
            {"name": "first", "op": "value", "with": {"n": 1}},
            {"name": "d", "op": "dataset", "needs": ["first"], "with": {"dataset": "flights@latest"}},
            {"name": "last", "op": "value", "with": {"rows": "{{ steps.d.outputs.rows }}"}},
        ]);
        let id = world.run_steps(steps).await;
        for killed in 1..=3 {
            let calls = until("the step is in the middle of its call", PATIENCE, async || {
                Some(world.registry.calls.load(Ordering::SeqCst)).filter(|calls| *calls >= killed)
            });
            assert_eq!(calls.await, killed, "a step is begun once by each process");
            world.kill_and_restart().await;
        }
        world.registry.permits.add_permits(1_000);
        let run = world.finish(&id).await;
        assert_eq!(run["status"], "succeeded", "{run}");
        assert_eq!(step(&run, "last")["outputs"], json!({"rows": 7}));
        assert_eq!(step(&run, "d")["attempt"], 1, "a crash is no attempt of the pipeline's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_stops_at_once_and_a_finished_one_cannot_be() {
    let world = World::new().await;
    world
        .registry
        .permits
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let id = world
        .run_steps(json!([dataset_step("d"), {"name": "after", "op": "value", "needs": ["d"]}]))
        .await;
    world
        .wait(&id, "the step is shown as running", |run| {
            run["steps"][0]["status"] == "running"
        })
        .await;
    let path = format!("pipeline-runs/{id}/cancel");
    for _ in 0..2 {
        let (status, run) = world.send(Method::POST, &path, None).await;
        assert_eq!((status, &run["status"]), (StatusCode::OK, &json!("cancelled")));
        assert_eq!(run["steps"][1]["status"], "cancelled");
    }
    // Its worker is free again: four more light steps than there are workers all end.
    world.registry.permits.add_permits(1_000);
    let id = world.run_steps(json!([{"name": "v", "op": "value"}])).await;
    world.finish(&id).await;
    let (status, problem) = world
        .send(Method::POST, &format!("pipeline-runs/{id}/cancel"), None)
        .await;
    assert_eq!(
        (status, &problem["reason"]),
        (StatusCode::BAD_REQUEST, &json!("PIPELINE_RUN_FINISHED"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_fails() {
    let world = World::new().await;
    world
        .registry
        .permits
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut slow = dataset_step("d");
    slow["timeout"] = json!("100ms");
    let run = world.finish(&world.run_steps(json!([slow])).await).await;
    assert_eq!(
        run["error"],
        "step `d` failed: it took longer than its timeout of 100ms"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_of_a_trigger_starts_one_run() {
    for place in test_databases().await.unwrap() {
        let mut world = World::on(place).await;
        world
            .put(
                "triggers/t",
                &json!({"pipeline": "p", "parameters": {"n": "{{ event.version }}"}}),
            )
            .await;
        let event = json!({"version": 3});
        let early = world.fire("t", "alert:1", &event).await.unwrap_err();
        assert_eq!(early.code(), tonic::Code::FailedPrecondition);
        assert!(
            early
                .message()
                .contains("starts the pipeline `p`, which does not exist"),
            "{early}"
        );
        let pipeline = json!({"parameters": {"n": 0}, "steps": [{"name": "v", "op": "value", "with": {"n": "{{ parameters.n }}"}}]});
        world.put("pipelines/p", &pipeline).await;
        let fired: Vec<String> = futures::future::join_all((0..8).map(|_| world.fire("t", "alert:1", &event)))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert!(fired.iter().all(|id| *id == fired[0]), "{fired:?}");
        let run = world.finish(&fired[0]).await;
        assert_eq!(run["trigger"], json!({"name": "t", "key": "alert:1"}));
        assert_eq!(run["steps"][0]["outputs"], json!({"n": 3}));
        let other = world.fire("t", "alert:2", &event).await.unwrap();
        assert_ne!(other, fired[0]);
        world.kill_and_restart().await;
        let (status, _) = world.send(Method::DELETE, "triggers/t", None).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        assert_eq!(world.fire("t", "alert:1", &event).await.unwrap(), fired[0]);
        assert_eq!(
            world.fire("t", "alert:3", &event).await.unwrap_err().code(),
            tonic::Code::NotFound
        );
        let listed = world.get("pipeline-runs?trigger_key=alert:1").await;
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    }
}

/// The bound is for a busy machine; the design's is one second.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_steps_in_ten_layers_take_little_time() {
    let world = World::new().await;
    let mut steps = Vec::new();
    for layer in 0..10 {
        for place in 0..10 {
            let needs: Vec<String> = (0..10)
                .filter(|_| layer > 0)
                .map(|before| format!("s{}-{before}", layer - 1))
                .collect();
            steps.push(
                json!({"name": format!("s{layer}-{place}"), "op": "value", "with": {"n": place}, "needs": needs}),
            );
        }
    }
    let began = Instant::now();
    let id = world.run_steps(json!(steps)).await;
    let run = world.finish(&id).await;
    let took = began.elapsed();
    println!("10 x 10 steps: {took:?}");
    assert_eq!(run["status"], "succeeded");
    assert!(took.as_secs() < 5, "{took:?}");
}
