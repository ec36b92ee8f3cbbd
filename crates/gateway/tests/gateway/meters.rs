//! What the metrics tell.

use modelyard_common::telemetry::render_metrics;
use modelyard_testkit::wait::until;
use serde_json::json;

use crate::{
    harness::{PATIENCE, World, endpoint, live},
    onnx::slow,
    peers::Registry,
};

/// How many requests wait before the endpoint's model, as it is scraped.
fn queued(endpoint: &str) -> Option<f64> {
    let start = format!("modelyard_gateway_queued_requests{{endpoint=\"{endpoint}\"");
    let metrics = render_metrics();
    let line = metrics.lines().find(|line| line.starts_with(&start))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn nobody_waits_when_all_who_waited_are_gone() {
    const CLIENTS: usize = 32;
    const REQUESTS: usize = 10_000;
    // Installs the recorder, before anything is measured.
    let _installed = render_metrics();
    let mut world = World::new(Registry::new(vec![]));
    world.config.max_batch_rows = 1;
    let digest = world.store(slow(1.0, 100)).await;
    world
        .registry
        .set(vec![endpoint("waiting", vec![live("m", 1, &digest, 1.0)])]);
    let running = world.start_ready().await;
    let request = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]});
    let clients = (0..CLIENTS).map(|_| async {
        for _ in 0..REQUESTS {
            running.post("/v2/models/waiting/infer", &request).await;
        }
    });
    let some_wait = until("requests wait", PATIENCE, || async {
        queued("waiting").filter(|queued| *queued > 0.0)
    });
    tokio::select! {
        _ = futures::future::join_all(clients) => panic!("nobody was seen waiting"),
        _ = some_wait => {}
    }
    // The clients went away in the middle of their requests: no later answer tells of the queue.
    until("nobody waits", PATIENCE, || async {
        queued("waiting").filter(|queued| *queued == 0.0)
    })
    .await;
    running.stop().await;
}
