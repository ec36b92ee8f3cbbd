//! Rollouts in the database.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use modelyard_jobs::{audit::delivery, enqueue_in};
use serde::Serialize;

use super::{Page, RolloutStore, SqlStore, rows::read_json};
use crate::{
    error::Result,
    model::{Rollout, RolloutState},
};

#[derive(sqlx::FromRow)]
struct RolloutRow {
    id: String,
    project: String,
    endpoint: String,
    revision: i64,
    rules: String,
    versions_from: String,
    versions_to: String,
    state: String,
    step: i64,
    share: f64,
    step_started_at: i64,
    baseline: String,
    reason: Option<String>,
    created_at: i64,
    ended_at: Option<i64>,
    change: i64,
}

impl RolloutRow {
    fn into_rollout(self) -> Result<(Rollout, i64)> {
        let state = RolloutState::parse(&self.state)
            .ok_or_else(|| modelyard_db::Error::value("state of a rollout", &self.state))?;
        let rollout = Rollout {
            rules: read_json("rules of a rollout", &self.rules)?,
            from: read_json("versions of a rollout", &self.versions_from)?,
            to: read_json("versions of a rollout", &self.versions_to)?,
            baseline: read_json("counts of a rollout", &self.baseline)?,
            state,
            step: usize::try_from(self.step).unwrap_or(0),
            share: self.share,
            revision: u64::try_from(self.revision).unwrap_or(0),
            step_started_at: Timestamp::from_micros(self.step_started_at),
            created_at: Timestamp::from_micros(self.created_at),
            ended_at: self.ended_at.map(Timestamp::from_micros),
            reason: self.reason,
            id: self.id,
            project: self.project,
            endpoint: self.endpoint,
        };
        Ok((rollout, self.change))
    }
}

/// The columns of [`RolloutRow`].
macro_rules! select_rollouts {
    ($rest:literal) => {
        concat!(
            "SELECT id, project, endpoint, revision, rules, versions_from, versions_to, state, step, share,
                    step_started_at, baseline, reason, created_at, ended_at, change FROM rollout ",
            $rest
        )
    };
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value).map_err(|_| modelyard_db::Error::value("part of a rollout", "what is no JSON"))?)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl RolloutStore for SqlStore<P> {
    async fn begin_rollout(&self, rollout: &Rollout) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "INSERT INTO rollout (id, project, endpoint, revision, rules, versions_from, versions_to, state, step, share,
                                  step_started_at, baseline, reason, created_at, ended_at, change)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0)
             ON CONFLICT (project, endpoint, revision) DO NOTHING",
        )
        .bind(&rollout.id)
        .bind(&rollout.project)
        .bind(&rollout.endpoint)
        .bind(rollout.revision as i64)
        .bind(json(&rollout.rules)?)
        .bind(json(&rollout.from)?)
        .bind(json(&rollout.to)?)
        .bind(rollout.state.as_str())
        .bind(rollout.step as i64)
        .bind(rollout.share)
        .bind(rollout.step_started_at.as_micros())
        .bind(json(&rollout.baseline)?)
        .bind(&rollout.reason)
        .bind(rollout.created_at.as_micros())
        .bind(rollout.ended_at.map(Timestamp::as_micros))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn change_rollout(&self, rollout: &Rollout, change: i64, event: Option<&NewEvent>) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let changed = sqlx::query(
            "UPDATE rollout SET state = $3, step = $4, share = $5, step_started_at = $6, baseline = $7, reason = $8,
                                ended_at = $9, change = change + 1
             WHERE id = $1 AND change = $2",
        )
        .bind(&rollout.id)
        .bind(change)
        .bind(rollout.state.as_str())
        .bind(rollout.step as i64)
        .bind(rollout.share)
        .bind(rollout.step_started_at.as_micros())
        .bind(json(&rollout.baseline)?)
        .bind(&rollout.reason)
        .bind(rollout.ended_at.map(Timestamp::as_micros))
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(event) = event {
            enqueue_in(&mut tx, &delivery(event)?, event.at).await?;
        }
        tx.commit().await?;
        self.wake.notify();
        Ok(true)
    }

    async fn find_rollout(&self, project: &str, id: &str) -> Result<Option<(Rollout, i64)>> {
        let row: Option<RolloutRow> = sqlx::query_as(select_rollouts!("WHERE project = $1 AND id = $2"))
            .bind(project)
            .bind(id)
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(RolloutRow::into_rollout).transpose()
    }

    async fn find_rollout_of(&self, project: &str, endpoint: &str, revision: u64) -> Result<Option<(Rollout, i64)>> {
        let row: Option<RolloutRow> = sqlx::query_as(select_rollouts!(
            "WHERE project = $1 AND endpoint = $2 AND revision = $3"
        ))
        .bind(project)
        .bind(endpoint)
        .bind(revision as i64)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(RolloutRow::into_rollout).transpose()
    }

    async fn open_rollouts(&self) -> Result<Vec<(Rollout, i64)>> {
        let rows: Vec<RolloutRow> = sqlx::query_as(select_rollouts!("WHERE ended_at IS NULL ORDER BY id"))
            .fetch_all(self.pools.reader())
            .await?;
        rows.into_iter().map(RolloutRow::into_rollout).collect()
    }

    async fn list_rollouts(&self, project: &str, endpoint: Option<&str>, page: Page<'_>) -> Result<Vec<Rollout>> {
        let rows: Vec<RolloutRow> = sqlx::query_as(select_rollouts!(
            "WHERE project = $1 AND (CAST($2 AS TEXT) IS NULL OR endpoint = $2)
             AND (CAST($3 AS TEXT) IS NULL OR id < $3) ORDER BY id DESC LIMIT $4"
        ))
        .bind(project)
        .bind(endpoint)
        .bind(page.after)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(self.pools.reader())
        .await?;
        rows.into_iter().map(|row| Ok(row.into_rollout()?.0)).collect()
    }
}
