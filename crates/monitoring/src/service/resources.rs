//! Monitors, their windows, and alert rules.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::{Timestamp, name::check_name};
use serde_json::Value;

use super::Monitoring;
use crate::{
    error::{Error, Result},
    model::{
        monitor::{Monitor, MonitorSpec},
        page::{Page, PageRequest},
        resource::Applied,
        rule::{AlertRule, AlertRuleSpec},
        score::MonitorWindow,
    },
};

fn no_monitor(name: &str) -> Error {
    Error::not_found("monitor", name, "declare it with `modelyard apply`")
}

fn no_rule(name: &str) -> Error {
    Error::not_found("alert rule", name, "declare it with `modelyard apply`")
}

impl Monitoring {
    /// Declares a monitor. What is in the log already is scored, too.
    ///
    /// # Errors
    /// What is wrong with the spec, or the database.
    pub async fn put_monitor(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        spec: Value,
    ) -> Result<Applied<MonitorSpec>> {
        caller.authorize(Action::MonitorWrite, Resource::named(Kind::Monitor, project, name))?;
        check_name("a monitor", name)?;
        let spec = MonitorSpec::read(name, spec)?;
        let event = caller.event(
            Action::MonitorWrite,
            Operation::Apply,
            &Resource::named(Kind::Monitor, project, name),
        );
        self.store.put_monitor(project, name, &spec, &event).await
    }

    /// A monitor.
    ///
    /// # Errors
    /// There is none, or the database.
    pub async fn get_monitor(&self, caller: &Caller, project: &str, name: &str) -> Result<Monitor> {
        caller.authorize(Action::MonitorRead, Resource::named(Kind::Monitor, project, name))?;
        check_name("a monitor", name)?;
        self.store
            .find_monitor(project, name)
            .await?
            .ok_or_else(|| no_monitor(name))
    }

    /// Monitors by name.
    ///
    /// # Errors
    /// The database.
    pub async fn list_monitors(&self, caller: &Caller, project: &str, page: &PageRequest) -> Result<Page<Monitor>> {
        caller.authorize(Action::MonitorRead, Resource::project(project))?;
        self.store.list_monitors(project, page).await
    }

    /// Removes a monitor with its windows.
    ///
    /// # Errors
    /// There is none, an alert rule refers to it, or the database.
    pub async fn delete_monitor(&self, caller: &Caller, project: &str, name: &str) -> Result<()> {
        caller.authorize(Action::MonitorWrite, Resource::named(Kind::Monitor, project, name))?;
        check_name("a monitor", name)?;
        let event = caller.event(
            Action::MonitorWrite,
            Operation::Delete,
            &Resource::named(Kind::Monitor, project, name),
        );
        let deleted = self.store.delete_monitor(project, name, &event).await?;
        deleted.then_some(()).ok_or_else(|| no_monitor(name))
    }

    /// The windows of a monitor that have rows, newest first or oldest first.
    ///
    /// # Errors
    /// There is no such monitor, or the database.
    pub async fn list_windows(
        &self,
        caller: &Caller,
        project: &str,
        monitor: &str,
        page: &PageRequest,
        ascending: bool,
    ) -> Result<Page<MonitorWindow>> {
        caller.authorize(Action::MonitorRead, Resource::named(Kind::Monitor, project, monitor))?;
        let monitor = self.get_monitor(caller, project, monitor).await?;
        self.store.list_windows(&monitor, page, ascending).await
    }

    /// A window of a monitor.
    ///
    /// # Errors
    /// There is no such monitor or window, or the database.
    pub async fn get_window(
        &self,
        caller: &Caller,
        project: &str,
        monitor: &str,
        start: Timestamp,
    ) -> Result<MonitorWindow> {
        caller.authorize(Action::MonitorRead, Resource::named(Kind::Monitor, project, monitor))?;
        let monitor = self.get_monitor(caller, project, monitor).await?;
        let window = self.store.find_window(&monitor, start).await?;
        window.ok_or_else(|| {
            let remedy = format!(
                "no predictions of endpoint `{}` were scored there yet",
                monitor.spec.endpoint
            );
            Error::not_found("window", start.to_string(), remedy)
        })
    }

    /// Declares an alert rule. It judges the windows that end from now on, in event time.
    ///
    /// # Errors
    /// What is wrong with the spec, or the database.
    pub async fn put_rule(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        spec: Value,
    ) -> Result<Applied<AlertRuleSpec>> {
        caller.authorize(Action::AlertRuleWrite, Resource::named(Kind::AlertRule, project, name))?;
        check_name("an alert rule", name)?;
        let spec = AlertRuleSpec::read(name, spec)?;
        let event = caller.event(
            Action::AlertRuleWrite,
            Operation::Apply,
            &Resource::named(Kind::AlertRule, project, name),
        );
        self.store.put_rule(project, name, &spec, &event).await
    }

    /// An alert rule.
    ///
    /// # Errors
    /// There is none, or the database.
    pub async fn get_rule(&self, caller: &Caller, project: &str, name: &str) -> Result<AlertRule> {
        caller.authorize(Action::AlertRuleRead, Resource::named(Kind::AlertRule, project, name))?;
        check_name("an alert rule", name)?;
        self.store.find_rule(project, name).await?.ok_or_else(|| no_rule(name))
    }

    /// Alert rules by name.
    ///
    /// # Errors
    /// The database.
    pub async fn list_rules(&self, caller: &Caller, project: &str, page: &PageRequest) -> Result<Page<AlertRule>> {
        caller.authorize(Action::AlertRuleRead, Resource::project(project))?;
        self.store.list_rules(project, page).await
    }

    /// Removes an alert rule and resolves its alerts.
    ///
    /// # Errors
    /// There is none, or the database.
    pub async fn delete_rule(&self, caller: &Caller, project: &str, name: &str) -> Result<()> {
        caller.authorize(Action::AlertRuleWrite, Resource::named(Kind::AlertRule, project, name))?;
        check_name("an alert rule", name)?;
        let event = caller.event(
            Action::AlertRuleWrite,
            Operation::Delete,
            &Resource::named(Kind::AlertRule, project, name),
        );
        let deleted = self.store.delete_rule(project, name, &event).await?;
        deleted.then_some(()).ok_or_else(|| no_rule(name))
    }
}
