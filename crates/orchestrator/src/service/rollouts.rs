//! Rollouts: looked at, changed by hand, and ended by alerts.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::name::check_name;
use modelyard_proto::orchestrator::v1::ReportAlertRequest;

use super::{Orchestrator, page};
use crate::{
    error::{Error, Result},
    model::{Rollout, RolloutPage, RolloutState},
    rollouts,
};

/// How often a change is tried again that met another one.
const ATTEMPTS: u32 = 10;

/// The longest part of an alert's reason that is kept, in bytes.
const MAX_REASON_BYTES: usize = 512;

/// What somebody wants of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RolloutChange {
    /// It keeps its share.
    Pause,
    /// It goes on with the step where it was paused, which begins anew.
    Resume,
    /// The new routes serve at once.
    Promote,
    /// They are refused.
    Abort,
}

impl RolloutChange {
    const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

impl Orchestrator {
    /// Rollouts, the newest first.
    pub(crate) async fn list_rollouts(
        &self,
        caller: &Caller,
        project: &str,
        endpoint: Option<&str>,
        limit: Option<u32>,
        cursor: Option<&str>,
    ) -> Result<RolloutPage> {
        caller.authorize(Action::EndpointRead, Resource::project(project))?;
        if let Some(endpoint) = endpoint {
            check_name("an endpoint", endpoint)?;
        }
        let page = page(limit, cursor)?;
        let stores = &self.engine.stores;
        let mut items = stores.rollouts.list_rollouts(project, endpoint, page).await?;
        let more = items.len() > page.limit as usize;
        items.truncate(page.limit as usize);
        let next_cursor = items.last().filter(|_| more).map(|rollout| rollout.id.clone());
        Ok(RolloutPage { items, next_cursor })
    }

    /// A rollout.
    pub(crate) async fn get_rollout(&self, caller: &Caller, project: &str, id: &str) -> Result<Rollout> {
        caller.authorize(Action::EndpointRead, Resource::project(project))?;
        Ok(self.find_rollout(project, id).await?.0)
    }

    async fn find_rollout(&self, project: &str, id: &str) -> Result<(Rollout, i64)> {
        let found = self.engine.stores.rollouts.find_rollout(project, id).await?;
        found.ok_or_else(|| Error::NotFound {
            what: "rollout",
            name: id.chars().take(64).collect(),
            remedy: "list them with GET rollouts",
        })
    }

    /// Changes a rollout by hand.
    pub(crate) async fn change_rollout(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        change: RolloutChange,
    ) -> Result<Rollout> {
        caller.authorize(Action::EndpointWrite, Resource::project(project))?;
        for _ in 0..ATTEMPTS {
            let (rollout, changes) = self.find_rollout(project, id).await?;
            let name = rollout.endpoint.clone();
            let endpoint = Resource::named(Kind::Endpoint, project, &name);
            caller.authorize(Action::EndpointWrite, endpoint)?;
            let mut event = caller.event(Action::EndpointWrite, Operation::Apply, &endpoint);
            event.add_detail("rollout", change.word());
            let before = rollout.share;
            let after = self.changed(caller, rollout, change)?;
            let stores = &self.engine.stores;
            if stores.rollouts.change_rollout(&after, changes, Some(&event)).await? {
                // Should this fail, the next look tells it.
                rollouts::tell(&self.engine.tools.registry, &after, before).await?;
                return Ok(after);
            }
        }
        Err(Error::Stale)
    }

    fn changed(&self, caller: &Caller, mut rollout: Rollout, change: RolloutChange) -> Result<Rollout> {
        let now = self.engine.clock.now();
        let over = |rollout: &Rollout| Error::RolloutOver {
            id: rollout.id.clone(),
            state: rollout.state.as_str(),
            change: change.word(),
        };
        if rollout.state.is_over() {
            return Err(over(&rollout));
        }
        let by = |what: &str| Some(format!("{what} by {}", caller.principal()));
        match change {
            RolloutChange::Pause => {
                rollout.state = RolloutState::Paused;
                rollout.reason = by("paused");
            }
            RolloutChange::Resume => {
                if rollout.state != RolloutState::Paused {
                    return Err(over(&rollout));
                }
                rollout.state = RolloutState::Running;
                rollout.reason = None;
                rollout.step_started_at = now;
            }
            RolloutChange::Promote => {
                rollout.state = RolloutState::Promoted;
                rollout.reason = by("promoted");
                rollout.share = 100.0;
                rollout.ended_at = Some(now);
            }
            RolloutChange::Abort => {
                rollout.state = RolloutState::RolledBack;
                rollout.reason = by("aborted");
                rollout.share = 0.0;
                rollout.ended_at = Some(now);
            }
        }
        Ok(rollout)
    }

    /// Rolls back the rollouts that an alert speaks against; which they are.
    pub(crate) async fn report_alert(&self, caller: &Caller, alert: &ReportAlertRequest) -> Result<Vec<String>> {
        caller.authorize(Action::TriggerFire, Resource::project(&alert.project))?;
        let version = format!("{}/{}", alert.model, alert.version);
        let mut rolled_back = Vec::new();
        for (rollout, change) in self.engine.stores.rollouts.open_rollouts().await? {
            let is_meant = rollout.project == alert.project
                && rollout.endpoint == alert.endpoint
                && rollout.is_guarded_by(&alert.rule)
                && rollout.to.contains(&version);
            if !is_meant {
                continue;
            }
            let end = alert.reason.floor_char_boundary(MAX_REASON_BYTES);
            let reason = alert.reason.get(..end).unwrap_or_default();
            let reason = format!("alert {} of rule `{}` fires: {reason}", alert.alert, alert.rule);
            let share = rollout.share;
            let ended = rollouts::end(&self.engine, rollout, change, RolloutState::RolledBack, &reason).await?;
            // Should this fail, the next look tells it.
            rollouts::tell(&self.engine.tools.registry, &ended, share).await?;
            rolled_back.push(ended.id);
        }
        Ok(rolled_back)
    }
}
