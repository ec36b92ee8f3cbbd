//! Moves rollouts on: looks at the endpoints with new routes on their way, decides by the rules, and tells the registry.
//!
//! What was decided is stored before the registry is told, and told again until the registry says so itself: a crash
//! between the two costs a second.

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    time::Duration,
};

use modelyard_common::{ErrorKind, Fault as _, error::Chain};
use modelyard_proto::registry::v1 as proto;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::Engine,
    error::{Error, Result},
    model::{Counts, Decision, Rollout, RolloutState, Traffic},
    registry::Registry,
};

/// How often is looked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks until the soft end.
pub(crate) async fn run(engine: Engine, soft: CancellationToken) -> Result<(), Infallible> {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_failed = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = soft.cancelled() => return Ok(()),
        }
        match look(&engine).await {
            Ok(()) => has_failed = false,
            Err(error) if !std::mem::replace(&mut has_failed, true) => {
                tracing::warn!(error = %Chain(&error), "rollouts do not move on: trying again");
            }
            Err(_) => {}
        }
    }
}

async fn look(engine: &Engine) -> Result<()> {
    let under_way = engine.tools.registry.list_rollouts().await?;
    let mut seen = HashSet::new();
    for found in under_way {
        seen.insert((found.project.clone(), found.endpoint.clone(), found.revision));
        let (project, endpoint) = (found.project.clone(), found.endpoint.clone());
        // One that cannot be moved on does not hold up the others.
        if let Err(error) = move_on(engine, found).await {
            tracing::warn!(project, endpoint, error = %Chain(&error), "a rollout does not move on");
        }
    }
    for (rollout, change) in engine.stores.rollouts.open_rollouts().await? {
        let key = (rollout.project.clone(), rollout.endpoint.clone(), rollout.revision);
        if !seen.contains(&key) {
            let reason = "other routes were declared, or it was ended by hand";
            end(engine, rollout, change, RolloutState::Superseded, reason).await?;
        }
    }
    Ok(())
}

async fn move_on(engine: &Engine, found: proto::Rollout) -> Result<()> {
    let store = &engine.stores.rollouts;
    let traffic = traffic_of(&found);
    let known = store
        .find_rollout_of(&found.project, &found.endpoint, found.revision)
        .await?;
    let Some((mut rollout, change)) = known else {
        let rollout = begin(engine, &found, traffic)?;
        store.begin_rollout(&rollout).await?;
        tracing::info!(endpoint = %rollout.endpoint, to = rollout.to.join(", "), share = rollout.share, "a rollout begins");
        return tell(&engine.tools.registry, &rollout, found.share).await;
    };
    let now = engine.clock.now();
    match rollout.decide(now, &traffic) {
        Decision::Wait => {}
        Decision::Advance => {
            rollout.step += 1;
            rollout.share = rollout.step_share();
            rollout.step_started_at = now;
            rollout.baseline = traffic;
            if !store.change_rollout(&rollout, change, None).await? {
                // Another one was faster: what it decided is seen the next time.
                return Ok(());
            }
            tracing::info!(endpoint = %rollout.endpoint, share = rollout.share, "a rollout moves on");
        }
        Decision::Promote => {
            rollout.share = 100.0;
            rollout = end(engine, rollout, change, RolloutState::Promoted, "all steps went well").await?;
        }
        Decision::RollBack(reason) => {
            rollout = end(engine, rollout, change, RolloutState::RolledBack, &reason).await?;
        }
    }
    tell(&engine.tools.registry, &rollout, found.share).await
}

/// Ends a rollout; what it is then.
pub(crate) async fn end(
    engine: &Engine,
    mut rollout: Rollout,
    change: i64,
    state: RolloutState,
    reason: &str,
) -> Result<Rollout> {
    rollout.state = state;
    rollout.reason = Some(reason.to_owned());
    rollout.ended_at = Some(engine.clock.now());
    if state == RolloutState::RolledBack {
        rollout.share = 0.0;
    }
    if engine.stores.rollouts.change_rollout(&rollout, change, None).await? {
        tracing::info!(endpoint = %rollout.endpoint, state = state.as_str(), reason, "a rollout has ended");
        return Ok(rollout);
    }
    // Somebody else has changed it meanwhile: that counts.
    let found = engine
        .stores
        .rollouts
        .find_rollout(&rollout.project, &rollout.id)
        .await?;
    Ok(found.map_or(rollout, |(rollout, _)| rollout))
}

/// Tells the registry what was decided, unless it says so itself.
pub(crate) async fn tell(registry: &Registry, rollout: &Rollout, share: f64) -> Result<()> {
    use proto::change_rollout_request::Change;
    let reason = || rollout.reason.clone().unwrap_or_default();
    let change = match rollout.state {
        RolloutState::Running | RolloutState::Paused if share.total_cmp(&rollout.share).is_eq() => return Ok(()),
        RolloutState::Running | RolloutState::Paused => Change::Share(rollout.share),
        RolloutState::Promoted => Change::Promote(reason()),
        RolloutState::RolledBack => Change::Reject(reason()),
        RolloutState::Superseded => return Ok(()),
    };
    let told = registry.change_rollout(proto::ChangeRolloutRequest {
        project: rollout.project.clone(),
        endpoint: rollout.endpoint.clone(),
        revision: rollout.revision,
        change: Some(change),
    });
    match told.await {
        Ok(()) => Ok(()),
        // It has ended meanwhile, which is seen the next time.
        Err(error) if error.kind() == ErrorKind::FailedPrecondition => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn begin(engine: &Engine, found: &proto::Rollout, baseline: Traffic) -> Result<Rollout> {
    let now = engine.clock.now();
    let rules = serde_json::from_str(&found.rules_json)
        .map_err(|error| Error::request(format!("the rules of the rollout cannot be read: {error}")))?;
    let mut rollout = Rollout {
        id: engine.ids.next().to_string(),
        project: found.project.clone(),
        endpoint: found.endpoint.clone(),
        revision: found.revision,
        rules,
        from: versions_of(&found.stable_json),
        to: versions_of(&found.candidate_json),
        state: RolloutState::Running,
        step: 0,
        share: 0.0,
        step_started_at: now,
        baseline,
        reason: None,
        created_at: now,
        ended_at: None,
    };
    rollout.share = rollout.step_share();
    Ok(rollout)
}

/// The versions that routes lead to, as `model/version`.
fn versions_of(routes: &str) -> Vec<String> {
    let routes: Vec<Value> = serde_json::from_str(routes).unwrap_or_default();
    let version = |route: &Value| {
        let model = route.get("model")?.as_str()?;
        Some(format!("{model}/{}", route.get("version")?.as_u64()?))
    };
    routes.iter().filter_map(version).collect()
}

fn traffic_of(found: &proto::Rollout) -> Traffic {
    let mut traffic = Traffic::new();
    for node in &found.nodes {
        let counts = node.versions.iter().map(|version| {
            let counts = Counts {
                answered: version.answered,
                failed: version.failed,
                buckets: version.latency_buckets.clone(),
            };
            (format!("{}/{}", version.model, version.version), counts)
        });
        let counts: BTreeMap<String, Counts> = counts.collect();
        traffic.insert(format!("{} {}", node.node, node.process), counts);
    }
    traffic
}
