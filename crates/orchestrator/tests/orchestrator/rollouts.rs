//! Rollouts: moved on by what is counted, by hand and by alerts, over crashes.

use http::{Method, StatusCode};
use modelyard_proto::registry::v1::{NodeTraffic, Rollout, VersionTraffic, change_rollout_request::Change};
use modelyard_testkit::{postgres::TestDatabase, wait::until};
use serde_json::{Value, json};

use crate::world::{PATIENCE, World};

/// A rollout of version 2 after version 1, as the registry tells of it.
fn under_way(revision: u64) -> Rollout {
    let routes = |version: u32| json!([{"model": "m", "version": version}]).to_string();
    Rollout {
        project: "default".to_owned(),
        endpoint: "e".to_owned(),
        revision,
        rules_json: json!({"steps": [5.0, 50.0], "interval": "1s", "min_requests": 10, "guards": [
            {"metric": "error_rate", "max": 0.1}, {"alert": "drift"}]})
        .to_string(),
        stable_json: routes(1),
        candidate_json: routes(2),
        share: 0.0,
        nodes: Vec::new(),
    }
}

/// What a gateway counted of version 2.
fn counted(answered: u64, failed: u64) -> Vec<NodeTraffic> {
    let traffic = VersionTraffic {
        model: "m".to_owned(),
        version: 2,
        answered,
        failed,
        latency_buckets: vec![answered],
    };
    vec![NodeTraffic {
        node: "g".to_owned(),
        process: "p".to_owned(),
        versions: vec![traffic],
    }]
}

async fn newest(world: &World) -> Option<Value> {
    let rollouts = world.get("rollouts?endpoint=e&limit=1").await;
    rollouts["items"].get(0).cloned()
}

async fn wait_for(world: &World, state: &str, share: f64) -> Value {
    until(&format!("a rollout is {state} at {share}"), PATIENCE, || async {
        let rollout = newest(world).await?;
        (rollout["state"] == state && rollout["share"] == share).then_some(rollout)
    })
    .await
}

/// What the registry was told last.
async fn told(world: &World) -> Change {
    until("the registry is told", PATIENCE, || async {
        world.registry.contents.lock().changes.last()?.change.clone()
    })
    .await
}

fn count(world: &World, answered: u64, failed: u64) {
    for rollout in &mut world.registry.contents.lock().rollouts {
        rollout.nodes = counted(answered, failed);
    }
}

async fn on_both(test: impl AsyncFn(World)) {
    test(World::new().await).await;
    if let Some(place) = TestDatabase::postgres().await.unwrap() {
        test(World::on(place).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_follow_until_all_went_well_also_over_crashes() {
    on_both(async |mut world| {
        world.registry.contents.lock().rollouts = vec![under_way(7)];
        let rollout = wait_for(&world, "running", 5.0).await;
        assert_eq!((&rollout["from"], &rollout["to"]), (&json!(["m/1"]), &json!(["m/2"])));
        assert_eq!(told(&world).await, Change::Share(5.0));
        count(&world, 10, 0);
        wait_for(&world, "running", 50.0).await;
        world.kill_and_restart().await;
        count(&world, 20, 0);
        let ended = wait_for(&world, "promoted", 100.0).await;
        assert_eq!(ended["id"], rollout["id"]);
        assert!(ended["ended_at"].is_string());
        until("the registry is told of the end", PATIENCE, || async {
            world.registry.contents.lock().rollouts.is_empty().then_some(())
        })
        .await;
        assert_eq!(told(&world).await, Change::Promote("all steps went well".to_owned()));
        // Another change of the same endpoint is a rollout of its own.
        world.registry.contents.lock().rollouts = vec![under_way(8)];
        let other = wait_for(&world, "running", 5.0).await;
        assert_ne!(other["id"], rollout["id"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_told_until_the_registry_says_so() {
    let mut world = World::new().await;
    world.registry.contents.lock().rollouts = vec![under_way(7)];
    wait_for(&world, "running", 5.0).await;
    count(&world, 8, 2);
    wait_for(&world, "rolled_back", 0.0).await;
    until("the registry is told", PATIENCE, || async {
        world.registry.contents.lock().rollouts.is_empty().then_some(())
    })
    .await;
    // As if the registry had lost it: it is told again, and nothing begins anew.
    world.registry.contents.lock().rollouts = vec![under_way(7)];
    world.kill_and_restart().await;
    until("the registry is told again", PATIENCE, || async {
        world.registry.contents.lock().rollouts.is_empty().then_some(())
    })
    .await;
    let Change::Reject(reason) = told(&world).await else {
        panic!("{:?}", told(&world).await)
    };
    assert!(reason.starts_with("error_rate is 0.2"), "{reason}");
    assert_eq!(world.get("rollouts").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_that_blame_the_new_version_end_it() {
    let world = World::new().await;
    world.registry.contents.lock().rollouts = vec![under_way(7)];
    let rollout = wait_for(&world, "running", 5.0).await;
    assert!(world.report_alert("decay", 2).await.is_empty(), "of another rule");
    assert!(world.report_alert("drift", 1).await.is_empty(), "about the old version");
    assert_eq!(world.report_alert("drift", 2).await, [rollout["id"].as_str().unwrap()]);
    let ended = wait_for(&world, "rolled_back", 0.0).await;
    assert_eq!(ended["reason"], "alert a1 of rule `drift` fires: drift_share is 0.9");
    assert!(matches!(told(&world).await, Change::Reject(_)));
    assert!(world.report_alert("drift", 2).await.is_empty(), "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_pause_promote_and_abort() {
    let world = World::new().await;
    let act = async |rollout: &Value, change: &str| {
        let path = format!("rollouts/{}/{change}", rollout["id"].as_str().unwrap());
        world.send(Method::POST, &path, None).await
    };
    world.registry.contents.lock().rollouts = vec![under_way(7)];
    let rollout = wait_for(&world, "running", 5.0).await;
    let (status, refused) = act(&rollout, "resume").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    assert_eq!(act(&rollout, "pause").await.1["state"], "paused");
    // Whatever is counted meanwhile.
    count(&world, 0, 100);
    assert_eq!(act(&rollout, "pause").await.1["state"], "paused");
    assert_eq!(act(&rollout, "promote").await.1["state"], "promoted");
    assert!(matches!(told(&world).await, Change::Promote(_)));
    let (_, refused) = act(&rollout, "abort").await;
    assert!(
        refused["detail"].as_str().unwrap().contains("nothing to abort"),
        "{refused}"
    );
    world.registry.contents.lock().rollouts = vec![under_way(8)];
    let rollout = wait_for(&world, "running", 5.0).await;
    assert_eq!(act(&rollout, "abort").await.1["state"], "rolled_back");
    assert!(matches!(told(&world).await, Change::Reject(_)));
    // One that goes away by itself was overtaken.
    world.registry.contents.lock().rollouts = vec![under_way(9)];
    wait_for(&world, "running", 5.0).await;
    world.registry.contents.lock().rollouts.clear();
    wait_for(&world, "superseded", 5.0).await;
    let (status, _) = world.send(Method::GET, "rollouts/absent", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
