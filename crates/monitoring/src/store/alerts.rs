//! Alerts.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::{AlertFilter, AlertStore, SqlStore, read_json, span};
use crate::{
    error::{Error, Result},
    model::{
        alert::{Alert, AlertState},
        page::{Page, PageRequest},
    },
};

/// How much of an error's text is kept, in bytes.
const MAX_ERROR_BYTES: usize = 2048;

#[derive(sqlx::FromRow)]
struct AlertRow {
    id: String,
    project: String,
    rule: String,
    monitor: String,
    endpoint: String,
    start_at: i64,
    end_at: i64,
    model: String,
    version: i64,
    state: String,
    conditions: String,
    trigger_name: Option<String>,
    trigger_error: Option<String>,
    pipeline_run_id: Option<String>,
    fired_at: i64,
    resolved_at: Option<i64>,
}

impl AlertRow {
    fn alert(self) -> Result<Alert> {
        let state = AlertState::read(&self.state);
        Ok(Alert {
            state: state.ok_or_else(|| modelyard_db::Error::value("state of an alert", &self.state))?,
            conditions: read_json("conditions of an alert", &self.conditions)?,
            window: span(self.start_at, self.end_at),
            version: u32::try_from(self.version).unwrap_or(0),
            fired_at: Timestamp::from_micros(self.fired_at),
            resolved_at: self.resolved_at.map(Timestamp::from_micros),
            id: self.id,
            project: self.project,
            rule: self.rule,
            monitor: self.monitor,
            endpoint: self.endpoint,
            model: self.model,
            trigger: self.trigger_name,
            trigger_error: self.trigger_error,
            pipeline_run_id: self.pipeline_run_id,
        })
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, project, rule, monitor, endpoint, start_at, end_at, model, version, state, conditions, trigger_name,
                    trigger_error, pipeline_run_id, fired_at, resolved_at FROM alert ",
            $rest
        )
    };
}

/// The place of an alert in their list: when it fired, and its id.
fn read_place(cursor: Option<&str>) -> Result<(i64, String)> {
    let Some(cursor) = cursor else {
        // No id is greater.
        return Ok((i64::MAX, "~".to_owned()));
    };
    let place = cursor
        .split_once('.')
        .and_then(|(at, id)| Some((at.parse().ok()?, id.to_owned())));
    place.ok_or_else(|| {
        Error::request("cursor is not one of this list: pass `next_cursor` of the page before it unchanged")
    })
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl AlertStore for SqlStore<P> {
    async fn find_alert(&self, project: &str, id: &str) -> Result<Option<Alert>> {
        let row: Option<AlertRow> = sqlx::query_as(select!("WHERE project = $1 AND id = $2"))
            .bind(project)
            .bind(id)
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(AlertRow::alert).transpose()
    }

    async fn alert_to_fire(&self, id: &str) -> Result<Option<Alert>> {
        let row: Option<AlertRow> = sqlx::query_as(select!("WHERE id = $1 AND pipeline_run_id IS NULL"))
            .bind(id)
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(AlertRow::alert).transpose()
    }

    async fn list_alerts(&self, project: &str, filter: &AlertFilter, page: &PageRequest) -> Result<Page<Alert>> {
        let (at, id) = read_place(page.after.as_deref())?;
        let rows: Vec<AlertRow> = sqlx::query_as(select!(
            "WHERE project = $1 AND (fired_at < $2 OR (fired_at = $2 AND id < $3))
               AND state = COALESCE($4, state) AND rule = COALESCE($5, rule)
             ORDER BY fired_at DESC, id DESC LIMIT $6"
        ))
        .bind(project)
        .bind(at)
        .bind(id)
        .bind(filter.state.map(AlertState::as_str))
        .bind(filter.rule.as_deref())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let alerts = rows.into_iter().map(AlertRow::alert).collect::<Result<_>>()?;
        Ok(page.cut(alerts, |alert: &Alert| {
            format!("{}.{}", alert.fired_at.as_micros(), alert.id)
        }))
    }

    async fn alert_fired(&self, id: &str, pipeline_run_id: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "UPDATE alert SET pipeline_run_id = $2, trigger_error = NULL WHERE id = $1 AND pipeline_run_id IS NULL",
        )
        .bind(id)
        .bind(pipeline_run_id)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn alert_not_fired(&self, id: &str, error: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE alert SET trigger_error = $2 WHERE id = $1 AND pipeline_run_id IS NULL")
            .bind(id)
            .bind(&error[..error.floor_char_boundary(MAX_ERROR_BYTES)])
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn count_firing(&self) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM alert WHERE state = 'firing'")
            .fetch_one(self.pools.reader())
            .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
