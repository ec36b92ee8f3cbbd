//! How new routes of endpoints come to serve: what gateways count, and what the orchestrator makes of it.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::name::check_name;

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        endpoint::EndpointKey,
        report::{MAX_LATENCY_BUCKETS, MAX_NODE_BYTES, MAX_REPORTED_ENDPOINTS, MAX_REPORTED_VERSIONS, TrafficReport},
    },
    store::{OnItsWay, TrafficChange},
};

/// The longest reason that the audit chain is told, in bytes.
const MAX_REASON_BYTES: usize = 1024;

impl Registry {
    /// Replaces what a gateway said of the traffic of endpoints.
    pub async fn report_traffic(&self, caller: &Caller, reports: Vec<TrafficReport>) -> Result<()> {
        self.enter(caller, Action::EndpointWatch, Resource::INSTALLATION)
            .await?;
        if reports.len() > MAX_REPORTED_ENDPOINTS {
            return Err(Error::request(format!(
                "the report is about {} endpoints: report at most {MAX_REPORTED_ENDPOINTS}",
                reports.len()
            )));
        }
        for report in &reports {
            let is_name = |text: &str| !text.is_empty() && text.len() <= MAX_NODE_BYTES && !text.contains('\0');
            let in_bounds = report.versions.len() <= MAX_REPORTED_VERSIONS
                && report
                    .versions
                    .iter()
                    .all(|version| version.latency_buckets.len() <= MAX_LATENCY_BUCKETS);
            if !(is_name(&report.node) && is_name(&report.process) && in_bounds) {
                return Err(Error::request(format!(
                    "the report about endpoint `{}` is out of bounds: name node and process, and report at most \
                     {MAX_REPORTED_VERSIONS} versions with {MAX_LATENCY_BUCKETS} buckets each",
                    report.key.name
                )));
            }
        }
        self.stores
            .traffic
            .save_traffic_reports(&reports, self.clock.now())
            .await
    }

    /// The rollouts that are under way.
    pub async fn list_rollouts(&self, caller: &Caller) -> Result<Vec<OnItsWay>> {
        self.enter(caller, Action::EndpointWatch, Resource::INSTALLATION)
            .await?;
        self.stores.traffic.list_candidates().await
    }

    /// Moves a rollout on: for the orchestrator, which decides by the rules, or for who may change the endpoint.
    pub async fn change_rollout(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        change: Option<TrafficChange>,
        reason: &str,
    ) -> Result<()> {
        self.enter(caller, Action::EndpointWatch, Resource::INSTALLATION)
            .await?;
        let change = change.ok_or_else(|| Error::request("the change of a rollout is missing: name one"))?;
        check_name("an endpoint", name)?;
        let key = EndpointKey {
            project: project.to_owned(),
            name: name.to_owned(),
        };
        let mut event = caller.event(
            Action::EndpointWrite,
            Operation::Apply,
            &Resource::named(Kind::Endpoint, project, name),
        );
        let (word, share) = match change {
            TrafficChange::Share(_, share) => ("share", Some(share)),
            TrafficChange::Promote(_) => ("promote", None),
            TrafficChange::Reject(_) => ("reject", None),
            TrafficChange::RollBack => ("rollback", None),
        };
        event.add_detail("rollout", word);
        if let Some(share) = share {
            event.add_detail("share", share);
        }
        let end = reason.floor_char_boundary(MAX_REASON_BYTES);
        if let Some(reason) = reason.get(..end).filter(|reason| !reason.is_empty()) {
            event.add_detail("reason", reason);
        }
        let changed = self.stores.traffic.change_traffic(&key, change, &event).await?;
        if changed.is_none() {
            return Err(Error::State(format!(
                "endpoint `{name}` has no rollout: it has not served yet"
            )));
        }
        self.desired.notify();
        Ok(())
    }
}
