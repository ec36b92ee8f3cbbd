//! Processes that are killed while clients ask for predictions: the others go on, what fails fails fast, and all of it recovers
//! by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use modelyard_testkit::wait::until;
use tokio::time::Instant;

use crate::{deployment::Topology, permissions::installation::PATIENCE, rollouts::Scene};

/// The places of the processes, in the order in which they start.
const REGISTRY: usize = 0;
const ORCHESTRATOR: usize = 1;
const MONITORING: usize = 2;
const GATEWAY: usize = 3;

/// How many requests are answered while a process is away.
const REQUESTS: usize = 200;
/// A request that cannot be answered is refused within this time.
const FAST: Duration = Duration::from_secs(5);

/// Waits until so many more requests were answered; none may fail.
async fn answered(scene: &Scene) -> Result<()> {
    let mut count = 0;
    let deadline = Instant::now() + PATIENCE;
    while count < REQUESTS {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let outcomes = scene.load.take();
        ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed.first());
        count += outcomes.answered.values().sum::<usize>();
        ensure!(
            Instant::now() < deadline,
            "{count} of {REQUESTS} requests were answered"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_go_on_while_other_processes_are_killed() -> Result<()> {
    let mut scene = Scene::start(Topology::Split).await?;
    answered(&scene).await?;
    for process in [MONITORING, ORCHESTRATOR, REGISTRY] {
        scene.deployment.kill(process)?;
        answered(&scene).await?;
    }
    // The gateway alone, and anew: it serves what it served last.
    scene.deployment.kill(GATEWAY)?;
    let killed = Instant::now();
    until("requests fail", PATIENCE, || async {
        (!scene.load.take().failed.is_empty()).then_some(())
    })
    .await;
    ensure!(
        killed.elapsed() < FAST,
        "a client waited {:?} for a no",
        killed.elapsed()
    );
    scene.deployment.restart(GATEWAY).await?;
    scene.all_get("1").await?;
    answered(&scene).await?;
    // All come back, and a new version comes to serve as if nothing had been.
    for process in [REGISTRY, ORCHESTRATOR, MONITORING] {
        scene.deployment.restart(process).await?;
        answered(&scene).await?;
    }
    until("the registry takes changes", PATIENCE, || async {
        scene.point_at(2).await.ok()
    })
    .await;
    // Killed in the middle of the rollout, it goes on where it was.
    scene.rollout_in("running", 2).await?;
    for process in [ORCHESTRATOR, REGISTRY] {
        scene.deployment.kill(process)?;
        scene.deployment.restart(process).await?;
    }
    scene.rollout_in("promoted", 2).await?;
    let outcomes = scene.all_get("2").await?;
    ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed.first());
    scene.stop().await
}
