//! Alerts: shown, and their triggers fired.

use modelyard_auth::{Action, Caller, Kind, Resource};
use modelyard_common::{error::Chain, name::check_name};
use modelyard_jobs::Claim;

use super::Monitoring;
use crate::{
    error::{Error, Result},
    model::{
        alert::Alert,
        page::{Page, PageRequest},
    },
    store::{AlertFilter, FireJob},
};

/// The longest text that is looked up as the id of an alert, in bytes.
const MAX_ID_BYTES: usize = 64;

impl Monitoring {
    /// Alerts, the newest first.
    ///
    /// # Errors
    /// What is wrong with the request, or the database.
    pub async fn list_alerts(
        &self,
        caller: &Caller,
        project: &str,
        filter: &AlertFilter,
        page: &PageRequest,
    ) -> Result<Page<Alert>> {
        caller.authorize(Action::AlertRead, Resource::project(project))?;
        if let Some(rule) = &filter.rule {
            check_name("an alert rule", rule)?;
        }
        self.store.list_alerts(project, filter, page).await
    }

    /// An alert.
    ///
    /// # Errors
    /// There is none, or the database.
    pub async fn get_alert(&self, caller: &Caller, project: &str, id: &str) -> Result<Alert> {
        caller.authorize(Action::AlertRead, Resource::named(Kind::Alert, project, id))?;
        let found = if id.len() > MAX_ID_BYTES {
            None
        } else {
            self.store.find_alert(project, id).await?
        };
        found.ok_or_else(|| {
            let shown: String = id.chars().take(MAX_ID_BYTES).flat_map(char::escape_default).collect();
            Error::not_found("alert", shown, "list them with GET alerts")
        })
    }

    /// Tells rollouts of an alert, and fires its trigger.
    pub(super) async fn run_fire(&self, job: &FireJob, claim: &Claim) -> Result<()> {
        if let Some(alert) = self.store.alert_to_fire(&job.alert).await? {
            let rolled_back = self.orchestrator.report(&alert).await?;
            if !rolled_back.is_empty() {
                tracing::info!(
                    alert = alert.id,
                    rollouts = rolled_back.join(", "),
                    "rollouts were rolled back"
                );
            }
            if let Some(trigger) = alert.trigger.as_deref() {
                self.fire(&alert, trigger).await?;
            }
        }
        self.jobs.complete(claim, self.clock.now()).await?;
        Ok(())
    }

    async fn fire(&self, alert: &Alert, trigger: &str) -> Result<()> {
        match self.orchestrator.fire(alert, trigger).await {
            Ok(run) => {
                self.store.alert_fired(&alert.id, &run).await?;
                tracing::info!(alert = alert.id, trigger, pipeline_run = run, "a trigger was fired");
                Ok(())
            }
            Err(error) => {
                self.store
                    .alert_not_fired(&alert.id, &Chain(&error).to_string())
                    .await?;
                Err(error)
            }
        }
    }
}
