//! What changes a run after it was made, and what it says of datasets and logged models.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::change,
    run_rows::{PointRow, stored_value},
    to_json,
};
use crate::{
    error::{Error, Result},
    model::{
        run::{MetricPoint, Run},
        tracking::{Lifecycle, MetricSampling, ModelMetric, RUN_NAME_TAG, RunChange, RunDataset, RunModel},
    },
};

/// How many rows are inserted with one statement.
const INSERTED_ROWS: usize = 500;

/// What changes runs.
#[async_trait]
pub trait TrackingStore: Send + Sync {
    /// Changes a run, deletes or restores it. What it was and is.
    async fn change_run(&self, project: &str, run_id: &str, change: &RunChange, event: &NewEvent) -> Result<Run>;
    /// Removes a tag of a run; whether there was one.
    async fn delete_run_tag(&self, project: &str, run_id: &str, key: &str) -> Result<bool>;
    /// Adds datasets and logged models to a run. What is there already stays as it is.
    async fn add_run_links(
        &self,
        project: &str,
        run_id: &str,
        datasets: &[RunDataset],
        models: &[RunModel],
    ) -> Result<()>;
    /// The points of a metric at some steps of each run, by run, step and time. Runs of other projects have none.
    async fn sample_metric(&self, project: &str, sampling: &MetricSampling) -> Result<Vec<(String, MetricPoint)>>;
}

/// What a run that is not there is answered with.
pub(crate) fn no_run(run_id: &str) -> Error {
    let shown: String = run_id.chars().take(64).flat_map(char::escape_default).collect();
    Error::NotThere(format!("Run with id={shown} not found"))
}

/// The largest step that a chart shows: those beyond cannot be spread evenly in 64 bits.
const MAX_STEP: i64 = 1 << 61;

/// The evenly spread steps `$3` of the series `$1` from step `$2` to `$4`: for each of them the first step at or after it, which an index finds, so that the time depends on how many are wanted and not on how many there are.
const SAMPLED_STEPS: &str = "
    WITH RECURSIVE ends AS (
        SELECT (SELECT MIN(step) FROM run_metric_point WHERE series_id = $1 AND step >= $2) AS first,
               (SELECT MAX(step) FROM run_metric_point WHERE series_id = $1 AND step <= $4) AS last
    ), place AS (
        SELECT CAST(0 AS BIGINT) AS n
        UNION ALL
        SELECT n + 1 FROM place WHERE n + 1 < $3
    )
    SELECT DISTINCT (
        SELECT MIN(step) FROM run_metric_point
        WHERE series_id = $1
          AND step >= first + (last - first) / CASE WHEN $3 > 1 THEN $3 - 1 ELSE 1 END * n
                    + ((last - first) % CASE WHEN $3 > 1 THEN $3 - 1 ELSE 1 END) * n
                      / CASE WHEN $3 > 1 THEN $3 - 1 ELSE 1 END
    ) AS step
    FROM ends, place WHERE first IS NOT NULL AND last IS NOT NULL AND first <= last";

/// Up to so many points of a series are read whole for a chart, so that they can be spread by their number.
const MAX_SPREAD: i64 = 10_000;

/// Keeps `limit` points of all of a series: of parts of the same size, the larger ones first, the first point each, and
/// the last of all. These are the points that `MLflow`'s server chooses.
fn spread(points: &mut Vec<PointRow>, limit: usize) {
    let all = points.len();
    if all <= limit {
        return;
    }
    let mut chosen = (0..limit)
        .map(|part| part * (all / limit) + part.min(all % limit))
        .peekable();
    let mut place = 0;
    let last = points.pop();
    points.retain(|_| {
        let keep = chosen.next_if_eq(&place).is_some();
        place += 1;
        keep
    });
    points.truncate(limit - 1);
    points.extend(last);
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Whether a series has more than so many points from one step to another.
    async fn has_more_points(
        tx: &mut Transaction<<P as Pools>::Db>,
        series: i64,
        steps: (i64, i64),
        count: i64,
    ) -> Result<bool> {
        let query = sqlx::query_scalar(
            "SELECT 1 FROM run_metric_point WHERE series_id = $1 AND step BETWEEN $2 AND $3 LIMIT 1 OFFSET $4",
        );
        let query = query.bind(series).bind(steps.0).bind(steps.1).bind(count);
        let found: Option<i32> = query.fetch_optional(&mut **tx).await?;
        Ok(found.is_some())
    }

    /// The points of a series from one step to another, in order.
    async fn all_points(
        tx: &mut Transaction<<P as Pools>::Db>,
        series: i64,
        steps: (i64, i64),
    ) -> Result<Vec<PointRow>> {
        let query = sqlx::query_as(
            "SELECT timestamp, step, value, is_nan FROM run_metric_point
             WHERE series_id = $1 AND step BETWEEN $2 AND $3
             ORDER BY step, timestamp, value, is_nan",
        );
        Ok(query
            .bind(series)
            .bind(steps.0)
            .bind(steps.1)
            .fetch_all(&mut **tx)
            .await?)
    }

    /// The last point each at `limit` steps of a series, which lie evenly between its first and its last step.
    async fn points_of_steps(
        tx: &mut Transaction<<P as Pools>::Db>,
        series: i64,
        (first, last): (i64, i64),
        limit: u32,
    ) -> Result<Vec<PointRow>> {
        let steps: Vec<Option<i64>> = sqlx::query_scalar(SAMPLED_STEPS)
            .bind(series)
            .bind(first)
            .bind(i64::from(limit))
            .bind(last)
            .fetch_all(&mut **tx)
            .await?;
        let mut steps: Vec<i64> = steps.into_iter().flatten().filter(|step| *step <= last).collect();
        if limit == 1 {
            let newest = sqlx::query_scalar(
                "SELECT MAX(step) FROM run_metric_point WHERE series_id = $1 AND step BETWEEN $2 AND $3",
            );
            let newest: Option<i64> = newest.bind(series).bind(first).bind(last).fetch_one(&mut **tx).await?;
            steps = newest.into_iter().collect();
        }
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        // Many points can have one step: the last of them.
        let of_each = (i64::from(limit) / steps.len() as i64).max(1);
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(
            "SELECT timestamp, step, value, is_nan FROM (
                SELECT timestamp, step, value, is_nan,
                       ROW_NUMBER() OVER (PARTITION BY step ORDER BY timestamp DESC, value DESC) AS place
                FROM run_metric_point WHERE series_id = ",
        );
        query.push_bind(series).push(" AND step IN (");
        let mut wanted = query.separated(", ");
        for step in steps {
            wanted.push_bind(step);
        }
        query.push(")) AS sampled WHERE place <= ").push_bind(of_each);
        query.push(" ORDER BY step, timestamp, value");
        Ok(query.build_query_as().fetch_all(&mut **tx).await?)
    }

    /// The experiment of a run that takes something; one that was deleted takes nothing.
    pub(super) async fn active_run(tx: &mut Transaction<<P as Pools>::Db>, project: &str, run_id: &str) -> Result<i64> {
        let found: Option<(i64, String)> =
            sqlx::query_as("SELECT experiment_id, lifecycle FROM run WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(run_id)
                .fetch_optional(&mut **tx)
                .await?;
        match found {
            None => Err(no_run(run_id)),
            Some((experiment_id, lifecycle)) if lifecycle == "active" => Ok(experiment_id),
            Some(_) => Err(Error::State(format!(
                "The run {run_id} must be in the 'active' state. Current state is deleted."
            ))),
        }
    }

    /// Holds a run to the end of the transaction, so that what is read of it is what is changed.
    pub(super) async fn hold_run(tx: &mut Transaction<<P as Pools>::Db>, project: &str, run_id: &str) -> Result<()> {
        sqlx::query("UPDATE run SET status = status WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(run_id)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    pub(super) async fn rename_run(tx: &mut Transaction<<P as Pools>::Db>, run_id: &str, name: &str) -> Result<()> {
        sqlx::query("UPDATE run SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(run_id)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Adds values that were measured on logged models of the project.
    pub(super) async fn insert_model_metrics(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        run_id: &str,
        metrics: &[ModelMetric],
    ) -> Result<()> {
        let mut models: Vec<&str> = metrics.iter().map(|metric| metric.model_id.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        for model_id in models {
            let found: Option<String> =
                sqlx::query_scalar("SELECT id FROM logged_model WHERE project = $1 AND id = $2")
                    .bind(project)
                    .bind(model_id)
                    .fetch_optional(&mut **tx)
                    .await?;
            if found.is_none() {
                return Err(Error::NotThere(format!("Logged model with ID '{model_id}' not found.")));
            }
        }
        for chunk in metrics.chunks(INSERTED_ROWS) {
            let mut query = QueryBuilder::new(
                "INSERT INTO logged_model_metric (model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, \
                 value, is_nan) ",
            );
            query.push_values(chunk, |mut row, metric| {
                let (value, is_nan) = stored_value(&metric.point);
                row.push_bind(metric.model_id.clone())
                    .push_bind(metric.key.clone())
                    .push_bind(run_id.to_owned())
                    .push_bind(metric.dataset.0.clone())
                    .push_bind(metric.dataset.1.clone())
                    .push_bind(metric.point.timestamp.as_micros())
                    .push_bind(metric.point.step)
                    .push_bind(value)
                    .push_bind(is_nan);
            });
            query.push(" ON CONFLICT DO NOTHING");
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    pub(super) async fn insert_datasets(
        tx: &mut Transaction<<P as Pools>::Db>,
        run_id: &str,
        datasets: &[RunDataset],
    ) -> Result<()> {
        let first: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(position), -1) + 1 FROM run_dataset WHERE run_id = $1")
                .bind(run_id)
                .fetch_one(&mut **tx)
                .await?;
        for (offset, dataset) in datasets.iter().enumerate() {
            sqlx::query(
                "INSERT INTO run_dataset (run_id, position, name, digest, context, source_type, source, schema, profile,
                                          tags)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                 ON CONFLICT (run_id, name, digest, context) DO NOTHING",
            )
            .bind(run_id)
            .bind(first + offset as i64)
            .bind(&dataset.name)
            .bind(&dataset.digest)
            .bind(&dataset.context)
            .bind(&dataset.source_type)
            .bind(&dataset.source)
            .bind(dataset.schema.as_deref())
            .bind(dataset.profile.as_deref())
            .bind(to_json("tags of a dataset", &dataset.tags)?)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// Adds logged models to a run. What is there already stays as it is.
    pub(super) async fn insert_run_models(
        tx: &mut Transaction<<P as Pools>::Db>,
        run_id: &str,
        models: &[RunModel],
    ) -> Result<()> {
        for model in models {
            sqlx::query(
                "INSERT INTO run_model (run_id, role, model_id, step) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (run_id, role, model_id) DO NOTHING",
            )
            .bind(run_id)
            .bind(model.role.as_str())
            .bind(&model.model_id)
            .bind(model.step)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TrackingStore for SqlStore<P> {
    async fn change_run(&self, project: &str, run_id: &str, changing: &RunChange, event: &NewEvent) -> Result<Run> {
        let mut tx = self.pools.begin().await?;
        Self::hold_run(&mut tx, project, run_id).await?;
        let before = Self::run_in(&mut tx, project, run_id).await?;
        let before = before.ok_or_else(|| no_run(run_id))?;
        if changing.lifecycle.is_none() && before.lifecycle == Lifecycle::Deleted {
            return Err(Error::State(format!(
                "The run {run_id} must be in the 'active' state. Current state is deleted."
            )));
        }
        let lifecycle = changing.lifecycle.unwrap_or(before.lifecycle);
        let deleted_at = match lifecycle {
            Lifecycle::Active => None,
            Lifecycle::Deleted => Some(event.at.as_micros()),
        };
        sqlx::query(
            "UPDATE run SET status = $1, end_time = $2, name = $3, lifecycle = $4, deleted_at = $5 WHERE id = $6",
        )
        .bind(changing.status.unwrap_or(before.status).as_str())
        .bind(
            changing
                .end_time
                .or(before.end_time)
                .map(modelyard_common::Timestamp::as_micros),
        )
        .bind(changing.name.as_ref().unwrap_or(&before.name))
        .bind(lifecycle.as_str())
        .bind(deleted_at)
        .bind(run_id)
        .execute(&mut *tx)
        .await?;
        if let Some(name) = &changing.name {
            let tag = [((run_id, RUN_NAME_TAG), name.as_str())].into();
            Self::upsert_tags(&mut tx, &tag).await?;
        }
        let run = Self::run_in(&mut tx, project, run_id).await?;
        let run = run.ok_or_else(|| no_run(run_id))?;
        if run != before {
            Self::append_audit(&mut tx, &change(event, &before, &run)?).await?;
            tx.commit().await?;
        }
        Ok(run)
    }

    async fn delete_run_tag(&self, project: &str, run_id: &str, key: &str) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::active_run(&mut tx, project, run_id).await?;
        let deleted = sqlx::query("DELETE FROM run_tag WHERE run_id = $1 AND key = $2")
            .bind(run_id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    async fn add_run_links(
        &self,
        project: &str,
        run_id: &str,
        datasets: &[RunDataset],
        models: &[RunModel],
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_run(&mut tx, project, run_id).await?;
        Self::active_run(&mut tx, project, run_id).await?;
        Self::insert_datasets(&mut tx, run_id, datasets).await?;
        Self::insert_run_models(&mut tx, run_id, models).await?;
        Ok(tx.commit().await?)
    }

    async fn sample_metric(&self, project: &str, sampling: &MetricSampling) -> Result<Vec<(String, MetricPoint)>> {
        let mut tx = self.pools.snapshot().await?;
        let (first, last) = sampling.steps.unwrap_or((-MAX_STEP, MAX_STEP));
        let steps = (first.clamp(-MAX_STEP, MAX_STEP), last.clamp(-MAX_STEP, MAX_STEP));
        let mut points = Vec::new();
        for run_id in &sampling.run_ids {
            let Some(series) = Self::metric_series(&mut tx, project, run_id, &sampling.key).await? else {
                continue;
            };
            let rows = if Self::has_more_points(&mut tx, series, steps, MAX_SPREAD).await? {
                Self::points_of_steps(&mut tx, series, steps, sampling.limit.max(1)).await?
            } else {
                let mut rows = Self::all_points(&mut tx, series, steps).await?;
                spread(&mut rows, sampling.limit.max(1) as usize);
                rows
            };
            points.extend(rows.into_iter().map(|row| (run_id.clone(), row.into_point())));
        }
        tx.rollback().await?;
        Ok(points)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(all: i64, limit: usize) -> Vec<i64> {
        let point = |step| PointRow {
            timestamp: 0,
            step,
            value: 0.0,
            is_nan: 0,
        };
        let mut points: Vec<PointRow> = (0..all).map(point).collect();
        spread(&mut points, limit);
        points.iter().map(|point| point.step).collect()
    }

    #[test]
    fn points_are_spread_as_mlflow_spreads_them() {
        assert_eq!(chosen(10, 5), [0, 2, 4, 6, 9]);
        assert_eq!(chosen(20, 5), [0, 4, 8, 12, 19]);
        assert_eq!(chosen(11, 5), [0, 3, 5, 7, 10]);
        assert_eq!(chosen(3, 1), [2]);
        assert_eq!(chosen(3, 3), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn as_many_points_as_wanted_are_kept_and_the_ends_among_them(all in 1_i64..500, limit in 1_usize..60) {
            let kept = chosen(all, limit);
            prop_assert_eq!(kept.len(), limit.min(all as usize));
            prop_assert!(kept.is_sorted_by(|left, right| left < right));
            prop_assert_eq!(kept.last(), Some(&(all - 1)));
            prop_assert!(limit == 1 || kept.first() == Some(&0));
        }
    }
}
