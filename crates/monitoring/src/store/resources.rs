//! Monitors and alert rules.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use modelyard_jobs::audit::delivery;
use serde::de::DeserializeOwned;

use super::{ResourceStore, SqlStore, read_json, write_json};
use crate::{
    error::{Error, Result},
    model::{
        monitor::{self, Monitor, MonitorSpec},
        page::{Page, PageRequest},
        resource::{Applied, Outcome, Resource},
        rule::{self, AlertRule, AlertRuleSpec},
    },
};

#[derive(sqlx::FromRow)]
struct ResourceRow {
    project: String,
    name: String,
    spec: String,
    created_at: i64,
    updated_at: i64,
}

impl ResourceRow {
    fn read<S: DeserializeOwned>(self, kind: &'static str) -> Result<Resource<S>> {
        Ok(Resource {
            kind,
            spec: read_json("spec", &self.spec)?,
            name: self.name,
            project: self.project,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

/// What declaring a spec does to what is there.
fn outcome<S: PartialEq>(known: Option<&Resource<S>>, spec: &S) -> Outcome {
    match known {
        None => Outcome::Created,
        Some(known) if known.spec == *spec => Outcome::Unchanged,
        Some(_) => Outcome::Updated,
    }
}

fn applied<S: Clone>(
    kind: &'static str,
    place: (&str, &str),
    spec: &S,
    known: Option<Resource<S>>,
    outcome: Outcome,
    now: Timestamp,
) -> Applied<S> {
    let resource = match known {
        Some(known) if outcome == Outcome::Unchanged => known,
        known => Resource {
            kind,
            project: place.0.to_owned(),
            name: place.1.to_owned(),
            spec: spec.clone(),
            created_at: known.map_or(now, |known| known.created_at),
            updated_at: now,
        },
    };
    Applied { outcome, resource }
}

/// Windows of another length, or of another endpoint, would stand beside the old ones under one name.
fn check_change(known: Option<&Monitor>, name: &str, spec: &MonitorSpec) -> Result<()> {
    match known {
        Some(known) if known.spec.endpoint != spec.endpoint || known.spec.window != spec.window => {
            Err(Error::State(format!(
                "endpoint and window of monitor `{name}` cannot change: declare another monitor, or delete this one first"
            )))
        }
        _ => Ok(()),
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ResourceStore for SqlStore<P> {
    async fn put_monitor(
        &self,
        project: &str,
        name: &str,
        spec: &MonitorSpec,
        event: &NewEvent,
    ) -> Result<Applied<MonitorSpec>> {
        let now = event.at;
        let text = write_json("spec", spec)?;
        let mut tx = self.pools.begin().await?;
        self.lock(&mut tx, project, &spec.endpoint, now).await?;
        let known: Option<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM monitor WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        let known: Option<Monitor> = known.map(|row| row.read(monitor::KIND)).transpose()?;
        check_change(known.as_ref(), name, spec)?;
        let outcome = outcome(known.as_ref(), spec);
        if outcome != Outcome::Unchanged {
            sqlx::query(
                "INSERT INTO monitor (project, name, endpoint, spec, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)
                 ON CONFLICT (project, name) DO UPDATE SET spec = excluded.spec, updated_at = excluded.updated_at",
            )
            .bind(project)
            .bind(name)
            .bind(&spec.endpoint)
            .bind(&text)
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
            let job = self.backfill_job(project, name, now)?;
            self.enqueue(&mut tx, &job, now).await?;
            let known = known
                .as_ref()
                .map(|known| write_json("spec", &known.spec))
                .transpose()?;
            let delivery = delivery(&event.with_digests(known.as_deref(), Some(&text)))?;
            self.enqueue(&mut tx, &delivery, now).await?;
            tx.commit().await?;
            self.jobs.wake().notify();
        }
        Ok(applied(monitor::KIND, (project, name), spec, known, outcome, now))
    }

    async fn find_monitor(&self, project: &str, name: &str) -> Result<Option<Monitor>> {
        let row: Option<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM monitor WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(name)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(|row| row.read(monitor::KIND)).transpose()
    }

    async fn list_monitors(&self, project: &str, page: &PageRequest) -> Result<Page<Monitor>> {
        let rows: Vec<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM monitor
             WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let monitors = rows
            .into_iter()
            .map(|row| row.read(monitor::KIND))
            .collect::<Result<_>>()?;
        Ok(page.cut(monitors, |monitor: &Monitor| monitor.name.clone()))
    }

    async fn delete_monitor(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let rule: Option<String> =
            sqlx::query_scalar("SELECT name FROM alert_rule WHERE project = $1 AND monitor = $2 ORDER BY name LIMIT 1")
                .bind(project)
                .bind(name)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(rule) = rule {
            return Err(Error::State(format!(
                "monitor `{name}` is used by alert rule `{rule}`: delete the rule first"
            )));
        }
        let query = "DELETE FROM monitor WHERE project = $1 AND name = $2 RETURNING spec";
        let deleted: Option<String> = sqlx::query_scalar(query)
            .bind(project)
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if deleted.is_some() {
            let delivery = delivery(&event.with_digests(deleted.as_deref(), None))?;
            self.enqueue(&mut tx, &delivery, event.at).await?;
        }
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(deleted.is_some())
    }

    async fn put_rule(
        &self,
        project: &str,
        name: &str,
        spec: &AlertRuleSpec,
        event: &NewEvent,
    ) -> Result<Applied<AlertRuleSpec>> {
        let now = event.at;
        let text = write_json("spec", spec)?;
        let mut tx = self.pools.begin().await?;
        let endpoint: Option<String> =
            sqlx::query_scalar("SELECT endpoint FROM monitor WHERE project = $1 AND name = $2")
                .bind(project)
                .bind(&spec.monitor)
                .fetch_optional(&mut *tx)
                .await?;
        let endpoint = endpoint.ok_or_else(|| {
            Error::State(format!(
                "alert rule `{name}` refers to monitor `{}`, which does not exist: declare the monitor first",
                spec.monitor
            ))
        })?;
        let watermark = self.lock(&mut tx, project, &endpoint, now).await?;
        let known: Option<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM alert_rule WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        let known: Option<AlertRule> = known.map(|row| row.read(rule::KIND)).transpose()?;
        if known.as_ref().is_some_and(|known| known.spec.monitor != spec.monitor) {
            return Err(Error::State(format!(
                "the monitor of alert rule `{name}` cannot change: declare another rule, or delete this one first"
            )));
        }
        let outcome = outcome(known.as_ref(), spec);
        if outcome != Outcome::Unchanged {
            sqlx::query(
                "INSERT INTO alert_rule (project, name, monitor, spec, judges_from, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $6)
                 ON CONFLICT (project, name) DO UPDATE SET spec = excluded.spec, updated_at = excluded.updated_at",
            )
            .bind(project)
            .bind(name)
            .bind(&spec.monitor)
            .bind(&text)
            .bind(watermark.map(Timestamp::as_micros))
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
            self.touch_unjudged(&mut tx, (project, &spec.monitor), now).await?;
            let known = known
                .as_ref()
                .map(|known| write_json("spec", &known.spec))
                .transpose()?;
            let delivery = delivery(&event.with_digests(known.as_deref(), Some(&text)))?;
            self.enqueue(&mut tx, &delivery, now).await?;
            tx.commit().await?;
            self.jobs.wake().notify();
        }
        Ok(applied(rule::KIND, (project, name), spec, known, outcome, now))
    }

    async fn find_rule(&self, project: &str, name: &str) -> Result<Option<AlertRule>> {
        let row: Option<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM alert_rule WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(name)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(|row| row.read(rule::KIND)).transpose()
    }

    async fn list_rules(&self, project: &str, page: &PageRequest) -> Result<Page<AlertRule>> {
        let rows: Vec<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, created_at, updated_at FROM alert_rule
             WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let rules = rows
            .into_iter()
            .map(|row| row.read(rule::KIND))
            .collect::<Result<_>>()?;
        Ok(page.cut(rules, |rule: &AlertRule| rule.name.clone()))
    }

    async fn delete_rule(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool> {
        let now = event.at;
        let mut tx = self.pools.begin().await?;
        let place: Option<(String, String)> = sqlx::query_as(
            "SELECT r.monitor, m.endpoint FROM alert_rule r JOIN monitor m ON m.project = r.project AND m.name = r.monitor
             WHERE r.project = $1 AND r.name = $2",
        )
        .bind(project)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((monitor, endpoint)) = place else {
            return Ok(false);
        };
        self.lock(&mut tx, project, &endpoint, now).await?;
        let query = "DELETE FROM alert_rule WHERE project = $1 AND name = $2 RETURNING spec";
        let spec: Option<String> = sqlx::query_scalar(query)
            .bind(project)
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE alert SET state = 'resolved', resolved_at = $3 WHERE project = $1 AND rule = $2 AND state = 'firing'",
        )
        .bind(project)
        .bind(name)
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        self.touch_unjudged(&mut tx, (project, &monitor), now).await?;
        let delivery = delivery(&event.with_digests(spec.as_deref(), None))?;
        self.enqueue(&mut tx, &delivery, now).await?;
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(true)
    }
}
