//! What runs log: params, metrics and tags, of many callers in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, run_rows::stored_value, tracking::no_run};
use crate::{
    error::{Error, Result},
    model::{
        run::{MetricPoint, RunBatch},
        tracking::RUN_NAME_TAG,
    },
};

/// How many rows are inserted with one statement.
const INSERTED_ROWS: usize = 500;

/// Keeps the greatest (step, timestamp, value) of a series, and tells which series they are.
const KEEP_LATEST: &str = "
    ON CONFLICT (run_id, key) DO UPDATE SET (timestamp, step, value, is_nan) = (
        SELECT run_metric.timestamp, run_metric.step, run_metric.value, run_metric.is_nan
        UNION ALL
        SELECT excluded.timestamp, excluded.step, excluded.value, excluded.is_nan
        ORDER BY 2 DESC, 1 DESC, 3 DESC LIMIT 1
    )
    RETURNING run_id, key, id";

/// What runs log.
#[async_trait]
pub trait RunLogStore: Send + Sync {
    /// Adds params, metrics and tags to runs: all of them, or none.
    async fn log_batches(&self, batches: &[RunBatch]) -> Result<()>;
}

/// Texts by run and key: the order in which every transaction takes its locks.
type Texts<'a> = BTreeMap<(&'a str, &'a str), &'a str>;

/// A point to be stored, with the run's experiment.
#[derive(Clone, Copy)]
struct Logged<'a> {
    run_id: &'a str,
    experiment_id: i64,
    key: &'a str,
    point: MetricPoint,
}

fn param_changed((run, key): (&str, &str), old: &str, new: &str) -> Error {
    Error::ParamChanged {
        run: run.to_owned(),
        key: key.to_owned(),
        old: old.to_owned(),
        new: new.to_owned(),
    }
}

/// The params of all batches. One that two of them give different values is refused.
fn params(batches: &[RunBatch]) -> Result<Texts<'_>> {
    let mut params = Texts::new();
    for RunBatch { run_id, batch, .. } in batches {
        for (key, value) in &batch.params {
            let place = (run_id.as_str(), key.as_str());
            if let Some(before) = params.insert(place, value)
                && before != value
            {
                return Err(param_changed(place, before, value));
            }
        }
    }
    Ok(params)
}

/// The tags of all batches; the last one of a run and key stays.
fn tags(batches: &[RunBatch]) -> Texts<'_> {
    let all = batches.iter().flat_map(|RunBatch { run_id, batch, .. }| {
        let tags = batch.tags.iter();
        tags.map(|(key, value)| ((run_id.as_str(), key.as_str()), value.as_str()))
    });
    all.collect()
}

/// The points of all batches in the order of their table, which is written faster so.
fn points<'a>(batches: &'a [RunBatch], experiments: &BTreeMap<String, i64>) -> Vec<Logged<'a>> {
    let all = batches.iter().flat_map(|RunBatch { run_id, batch, .. }| {
        let experiment_id = experiments.get(run_id).copied().unwrap_or_default();
        batch.metrics.iter().map(move |(key, point)| Logged {
            run_id,
            experiment_id,
            key,
            point: *point,
        })
    });
    let mut points: Vec<Logged<'_>> = all.collect();
    points.sort_by_key(|logged| (logged.run_id, logged.key, logged.point.step, logged.point.timestamp));
    points
}

/// The latest point of each metric of each run, of points that are in order; in the order of the locks.
fn latest<'a>(points: &[Logged<'a>]) -> Vec<Logged<'a>> {
    let mut latest: Vec<Logged<'a>> = Vec::new();
    for logged in points {
        match latest.last_mut() {
            Some(last) if (last.run_id, last.key) == (logged.run_id, logged.key) => {
                if logged.point.is_after(&last.point) {
                    last.point = logged.point;
                }
            }
            _ => latest.push(*logged),
        }
    }
    latest
}

/// The experiments of the wanted runs, each in its project, of active runs with their projects and experiments.
fn experiments_of(
    wanted: &BTreeSet<(&str, &str)>,
    active: Vec<(String, String, i64)>,
) -> Result<BTreeMap<String, i64>> {
    let found: BTreeSet<(&str, &str)> = active
        .iter()
        .map(|(run_id, project, _)| (run_id.as_str(), project.as_str()))
        .collect();
    // Two projects can ask for one run. Which of them has it, and why not, is told to who asks for it alone.
    if let Some((run_id, _)) = wanted.iter().find(|pair| !found.contains(*pair)) {
        return Err(no_run(run_id));
    }
    Ok(active
        .into_iter()
        .map(|(run_id, _, experiment_id)| (run_id, experiment_id))
        .collect())
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The experiments of runs that take something. One that was deleted takes nothing.
    async fn active_runs(
        tx: &mut Transaction<<P as Pools>::Db>,
        batches: &[RunBatch],
    ) -> Result<BTreeMap<String, i64>> {
        let wanted: BTreeSet<(&str, &str)> = batches
            .iter()
            .map(|batch| (batch.run_id.as_str(), batch.project.as_str()))
            .collect();
        if wanted.len() == 1 {
            let mut active = BTreeMap::new();
            for (run_id, project) in wanted {
                active.insert(run_id.to_owned(), Self::active_run(tx, project, run_id).await?);
            }
            return Ok(active);
        }
        let mut query =
            QueryBuilder::new("SELECT id, project, experiment_id FROM run WHERE lifecycle = 'active' AND id IN (");
        let mut ids = query.separated(", ");
        for (run_id, _) in &wanted {
            ids.push_bind((*run_id).to_owned());
        }
        query.push(")");
        experiments_of(&wanted, query.build_query_as().fetch_all(&mut **tx).await?)
    }

    pub(super) async fn upsert_tags(tx: &mut Transaction<<P as Pools>::Db>, tags: &Texts<'_>) -> Result<()> {
        let rows: Vec<_> = tags.iter().collect();
        for chunk in rows.chunks(INSERTED_ROWS) {
            let mut query = QueryBuilder::new("INSERT INTO run_tag (run_id, key, value) ");
            query.push_values(chunk, |mut row, ((run_id, key), value)| {
                row.push_bind((*run_id).to_owned())
                    .push_bind((*key).to_owned())
                    .push_bind((**value).to_owned());
            });
            query.push(" ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value");
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Adds params. One that is there with another value is an error.
    pub(super) async fn insert_params(tx: &mut Transaction<<P as Pools>::Db>, params: &Texts<'_>) -> Result<()> {
        let rows: Vec<_> = params.iter().collect();
        for chunk in rows.chunks(INSERTED_ROWS) {
            let mut query = QueryBuilder::new("INSERT INTO run_param (run_id, key, value) ");
            query.push_values(chunk, |mut row, ((run_id, key), value)| {
                row.push_bind((*run_id).to_owned())
                    .push_bind((*key).to_owned())
                    .push_bind((**value).to_owned());
            });
            query.push(" ON CONFLICT (run_id, key) DO NOTHING");
            let inserted = query.build().execute(&mut **tx).await?.rows_affected();
            if inserted != chunk.len() as u64 {
                Self::check_params(tx, chunk).await?;
            }
        }
        Ok(())
    }

    /// Refuses params that are there with another value.
    async fn check_params(tx: &mut Transaction<<P as Pools>::Db>, params: &[(&(&str, &str), &&str)]) -> Result<()> {
        let runs: BTreeSet<&str> = params.iter().map(|((run_id, _), _)| *run_id).collect();
        for run_id in runs {
            let present: Vec<(String, String)> = sqlx::query_as("SELECT key, value FROM run_param WHERE run_id = $1")
                .bind(run_id)
                .fetch_all(&mut **tx)
                .await?;
            let present: BTreeMap<String, String> = present.into_iter().collect();
            for ((of, key), new) in params {
                if *of == run_id
                    && let Some(old) = present.get(*key)
                    && old != **new
                {
                    return Err(param_changed((run_id, key), old, new));
                }
            }
        }
        Ok(())
    }

    /// Adds points to their series, and the series where there is none yet.
    async fn insert_metrics(tx: &mut Transaction<<P as Pools>::Db>, points: &[Logged<'_>]) -> Result<()> {
        let mut series: BTreeMap<(String, String), i64> = BTreeMap::new();
        for chunk in latest(points).chunks(INSERTED_ROWS) {
            let mut query = QueryBuilder::new(
                "INSERT INTO run_metric (run_id, key, timestamp, step, value, is_nan, experiment_id) ",
            );
            query.push_values(chunk, |mut row, logged| {
                let (value, is_nan) = stored_value(&logged.point);
                row.push_bind(logged.run_id.to_owned())
                    .push_bind(logged.key.to_owned())
                    .push_bind(logged.point.timestamp.as_micros())
                    .push_bind(logged.point.step)
                    .push_bind(value)
                    .push_bind(is_nan)
                    .push_bind(logged.experiment_id);
            });
            query.push(KEEP_LATEST);
            let rows: Vec<(String, String, i64)> = query.build_query_as().fetch_all(&mut **tx).await?;
            series.extend(rows.into_iter().map(|(run_id, key, id)| ((run_id, key), id)));
        }
        let mut rows: Vec<(i64, MetricPoint)> = Vec::with_capacity(points.len());
        let (mut of, mut id) = (("", ""), 0);
        for logged in points {
            let this = (logged.run_id, logged.key);
            if this != of {
                let found = series.get(&(this.0.to_owned(), this.1.to_owned())).copied();
                id = found.ok_or_else(|| Error::State(format!("the metric `{}` was not stored: try again", this.1)))?;
                of = this;
            }
            rows.push((id, logged.point));
        }
        for chunk in rows.chunks(INSERTED_ROWS) {
            let mut query =
                QueryBuilder::new("INSERT INTO run_metric_point (series_id, step, timestamp, value, is_nan) ");
            query.push_values(chunk, |mut row, (series, point)| {
                let (value, is_nan) = stored_value(point);
                row.push_bind(*series)
                    .push_bind(point.step)
                    .push_bind(point.timestamp.as_micros())
                    .push_bind(value)
                    .push_bind(is_nan);
            });
            query.push(" ON CONFLICT (series_id, step, timestamp, value, is_nan) DO NOTHING");
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Adds points to one metric of a run.
    pub(super) async fn insert_points(
        tx: &mut Transaction<<P as Pools>::Db>,
        run_id: &str,
        experiment_id: i64,
        key: &str,
        points: &[MetricPoint],
    ) -> Result<()> {
        let logged = points.iter().map(|point| Logged {
            run_id,
            experiment_id,
            key,
            point: *point,
        });
        let logged: Vec<Logged<'_>> = logged.collect();
        Self::insert_metrics(tx, &logged).await
    }

    /// The series of a metric of a run; 0, which none has, where it has no point yet; None: no such run.
    pub(super) async fn metric_series(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        run_id: &str,
        key: &str,
    ) -> Result<Option<i64>> {
        let found = sqlx::query_scalar(
            "SELECT COALESCE(m.id, 0) FROM run r LEFT JOIN run_metric m ON m.run_id = r.id AND m.key = $3
             WHERE r.project = $1 AND r.id = $2",
        );
        Ok(found
            .bind(project)
            .bind(run_id)
            .bind(key)
            .fetch_optional(&mut **tx)
            .await?)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl RunLogStore for SqlStore<P> {
    async fn log_batches(&self, batches: &[RunBatch]) -> Result<()> {
        let params = params(batches)?;
        let tags = tags(batches);
        let mut tx = self.pools.begin().await?;
        let experiments = Self::active_runs(&mut tx, batches).await?;
        Self::insert_params(&mut tx, &params).await?;
        Self::insert_metrics(&mut tx, &points(batches, &experiments)).await?;
        for RunBatch { project, run_id, batch } in batches {
            Self::insert_model_metrics(&mut tx, project, run_id, &batch.model_metrics).await?;
        }
        Self::upsert_tags(&mut tx, &tags).await?;
        for ((run_id, key), name) in &tags {
            if *key == RUN_NAME_TAG {
                Self::rename_run(&mut tx, run_id, name).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_in_its_own_project_only() {
        let active = || {
            vec![
                ("r".to_owned(), "mine".to_owned(), 1),
                ("s".to_owned(), "mine".to_owned(), 2),
            ]
        };
        let found = experiments_of(&[("r", "mine"), ("s", "mine")].into(), active()).unwrap();
        assert_eq!(found, [("r".to_owned(), 1), ("s".to_owned(), 2)].into());
        for wanted in [
            BTreeSet::from([("r", "mine"), ("r", "theirs")]),
            BTreeSet::from([("r", "theirs"), ("s", "mine")]),
            BTreeSet::from([("r", "mine"), ("gone", "mine")]),
        ] {
            assert!(
                matches!(experiments_of(&wanted, active()), Err(Error::NotThere(_))),
                "{wanted:?}"
            );
        }
    }
}
