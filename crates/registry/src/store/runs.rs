//! Experiments and runs.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::{after, change},
    experiments::{ExperimentRow, no_experiment, select_experiments},
    run_rows::{PointRow, RunRow, artifact_uri, select_runs, stored_value},
    tracking::no_run,
};
use crate::{
    error::{Error, Result},
    model::{
        page::{Page, PageRequest},
        run::{Experiment, ExperimentChoice, MetricPlace, MetricPoint, NewRun, Run, RunPlace, RunStatus},
        tracking::Lifecycle,
    },
};

/// How many runs are inserted with one statement.
const INSERTED_RUNS: usize = 100;

/// What a new run needs to know of its experiment.
#[derive(Clone, sqlx::FromRow)]
struct Home {
    id: i64,
    name: String,
    lifecycle: String,
    artifact_location: String,
}

/// The columns of [`Home`].
macro_rules! select_homes {
    ($rest:literal) => {
        concat!("SELECT id, name, lifecycle, artifact_location FROM experiment ", $rest)
    };
}

impl Home {
    fn active(self) -> Result<Self> {
        if self.lifecycle == Lifecycle::Active.as_str() {
            return Ok(self);
        }
        Err(Error::State(format!(
            "The experiment {} must be in the 'active' state. Current state is deleted. Restore it, or use another.",
            self.id
        )))
    }
}

/// The run that comes into being.
fn created(new: &NewRun, home: Home) -> Run {
    Run {
        artifact_uri: artifact_uri(&home.artifact_location, home.id, &new.run_id),
        run_id: new.run_id.clone(),
        project: new.project.clone(),
        experiment_id: home.id.to_string(),
        experiment: home.name,
        name: new.name.clone(),
        user_id: new.user_id.clone(),
        status: RunStatus::Running,
        lifecycle: Lifecycle::Active,
        start_time: new.start_time,
        end_time: None,
        params: BTreeMap::new(),
        metrics: BTreeMap::new(),
        tags: new.tags.clone(),
        inputs: new.inputs.clone(),
        datasets: Vec::new(),
        models: Vec::new(),
    }
}

/// Experiments and runs.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Adds a run, or finds the one that was added with the same idempotency key.
    async fn create_run(&self, run: &NewRun) -> Result<Run>;
    /// Adds runs without idempotency keys and inputs: all of them, or none.
    async fn create_runs(&self, runs: &[NewRun]) -> Result<Vec<Run>>;
    /// Ends a run. Ending it the same way again changes nothing.
    async fn finish_run(&self, project: &str, run_id: &str, status: RunStatus, event: &NewEvent) -> Result<Run>;
    /// A run.
    async fn find_run(&self, project: &str, run_id: &str) -> Result<Option<Run>>;
    /// The runs of a project or of one of its experiments, newest first.
    async fn list_runs(
        &self,
        project: &str,
        experiment: Option<&str>,
        page: &PageRequest<RunPlace>,
    ) -> Result<Page<Run>>;
    /// The history of a metric by step, time and value; None: no such run.
    async fn metric_history(
        &self,
        project: &str,
        run_id: &str,
        key: &str,
        page: &PageRequest<MetricPlace>,
    ) -> Result<Option<Page<MetricPoint>>>;
    /// The experiments by id.
    async fn list_experiments(&self, project: &str, page: &PageRequest<u64>) -> Result<Page<Experiment>>;
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The experiment of a new run. One that is named and missing is created.
    async fn experiment_of(tx: &mut Transaction<<P as Pools>::Db>, new: &NewRun) -> Result<Home> {
        let name = match &new.experiment {
            ExperimentChoice::Numbered(id) => {
                let found: Option<Home> = sqlx::query_as(select_homes!("WHERE project = $1 AND id = $2"))
                    .bind(&new.project)
                    .bind(id)
                    .fetch_optional(&mut **tx)
                    .await?;
                return found.ok_or_else(|| no_experiment(*id))?.active();
            }
            ExperimentChoice::Named(name) => name,
        };
        if let Some(found) = Self::find_home(tx, &new.project, name).await? {
            return found.active();
        }
        // Raising the counter keeps others from creating the same experiment meanwhile.
        let query =
            sqlx::query_scalar("UPDATE counter SET value = value + 1 WHERE name = 'experiment' RETURNING value");
        let id: i64 = query.fetch_one(&mut **tx).await?;
        if let Some(found) = Self::find_home(tx, &new.project, name).await? {
            return found.active();
        }
        sqlx::query(
            "INSERT INTO experiment (id, project, name, lifecycle, created_at, updated_at)
             VALUES ($1, $2, $3, 'active', $4, $4)",
        )
        .bind(id)
        .bind(&new.project)
        .bind(name)
        .bind(new.now.as_micros())
        .execute(&mut **tx)
        .await?;
        Ok(Home {
            id,
            name: name.clone(),
            lifecycle: Lifecycle::Active.as_str().to_owned(),
            artifact_location: String::new(),
        })
    }

    async fn find_home(tx: &mut Transaction<<P as Pools>::Db>, project: &str, name: &str) -> Result<Option<Home>> {
        let found = sqlx::query_as(select_homes!("WHERE project = $1 AND name = $2"))
            .bind(project)
            .bind(name)
            .fetch_optional(&mut **tx)
            .await?;
        Ok(found)
    }

    async fn insert_run_details(tx: &mut Transaction<<P as Pools>::Db>, new: &NewRun) -> Result<()> {
        let tags = new.tags.iter();
        let tags = tags.map(|(key, value)| ((new.run_id.as_str(), key.as_str()), value.as_str()));
        Self::upsert_tags(tx, &tags.collect()).await?;
        for (position, input) in new.inputs.iter().enumerate() {
            sqlx::query(
                "INSERT INTO run_input (run_id, position, dataset, version, digest, context)
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&new.run_id)
            .bind(position as i64)
            .bind(&input.dataset)
            .bind(i64::from(input.version))
            .bind(&input.digest)
            .bind(&input.context)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// The run that was created with the key of `new`.
    async fn repeated_run(tx: &mut Transaction<<P as Pools>::Db>, new: &NewRun) -> Result<Option<Run>> {
        let row: Option<RunRow> = sqlx::query_as(select_runs!("WHERE r.project = $1 AND r.idempotency_key = $2"))
            .bind(&new.project)
            .bind(new.idempotency_key.as_deref())
            .fetch_optional(&mut **tx)
            .await?;
        match row {
            None => Ok(None),
            Some(row) if row.request_digest == new.request_digest => {
                Ok(Self::complete_runs(tx, vec![row]).await?.pop())
            }
            Some(_) => Err(Error::KeyReused {
                what: "run",
                key: new.idempotency_key.clone().unwrap_or_default(),
            }),
        }
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl RunStore for SqlStore<P> {
    async fn create_run(&self, new: &NewRun) -> Result<Run> {
        let mut tx = self.pools.begin().await?;
        if new.idempotency_key.is_some()
            && let Some(run) = Self::repeated_run(&mut tx, new).await?
        {
            return Ok(run);
        }
        let home = Self::experiment_of(&mut tx, new).await?;
        let inserted = sqlx::query(
            "INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, end_time,
                              idempotency_key, request_digest, user_id)
             VALUES ($1, $2, $3, $4, 'RUNNING', 'active', $5, NULL, $6, $7, $8)
             ON CONFLICT (project, idempotency_key) DO NOTHING",
        )
        .bind(&new.run_id)
        .bind(&new.project)
        .bind(home.id)
        .bind(&new.name)
        .bind(new.start_time.as_micros())
        .bind(new.idempotency_key.as_deref())
        .bind(&new.request_digest)
        .bind(&new.user_id)
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            // Somebody else created it between the look and the insertion.
            let run = Self::repeated_run(&mut tx, new).await?;
            return run.ok_or_else(|| Error::Contended {
                what: "run",
                name: new.name.clone(),
            });
        }
        Self::insert_run_details(&mut tx, new).await?;
        let created = created(new, home);
        Self::append_audit(&mut tx, &after(&new.event, &created)?).await?;
        tx.commit().await?;
        Ok(created)
    }

    async fn create_runs(&self, runs: &[NewRun]) -> Result<Vec<Run>> {
        let mut tx = self.pools.begin().await?;
        let mut homes: BTreeMap<(&str, &ExperimentChoice), Home> = BTreeMap::new();
        let (mut made, mut events) = (Vec::with_capacity(runs.len()), Vec::with_capacity(runs.len()));
        for new in runs {
            let key = (new.project.as_str(), &new.experiment);
            let home = match homes.get(&key) {
                Some(home) => home.clone(),
                None => Self::experiment_of(&mut tx, new).await?,
            };
            homes.insert(key, home.clone());
            let run = created(new, home);
            events.push(after(&new.event, &run)?);
            made.push(run);
        }
        for chunk in runs.chunks(INSERTED_RUNS) {
            let mut query = QueryBuilder::new(
                "INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, request_digest, user_id) ",
            );
            query.push_values(chunk, |mut row, new| {
                let home = homes.get(&(new.project.as_str(), &new.experiment));
                row.push_bind(new.run_id.clone())
                    .push_bind(new.project.clone())
                    .push_bind(home.map(|home| home.id))
                    .push_bind(new.name.clone())
                    .push_bind("RUNNING")
                    .push_bind("active")
                    .push_bind(new.start_time.as_micros())
                    .push_bind(new.request_digest.clone())
                    .push_bind(new.user_id.clone());
            });
            query.build().execute(&mut *tx).await?;
        }
        let tags = runs.iter().flat_map(|new| {
            let tags = new.tags.iter();
            tags.map(|(key, value)| ((new.run_id.as_str(), key.as_str()), value.as_str()))
        });
        Self::upsert_tags(&mut tx, &tags.collect()).await?;
        Self::append_audits(&mut tx, &events).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn finish_run(&self, project: &str, run_id: &str, status: RunStatus, event: &NewEvent) -> Result<Run> {
        let mut tx = self.pools.begin().await?;
        Self::hold_run(&mut tx, project, run_id).await?;
        Self::active_run(&mut tx, project, run_id).await?;
        let before = Self::run_in(&mut tx, project, run_id).await?;
        let before = before.ok_or_else(|| no_run(run_id))?;
        if before.status == status {
            return Ok(before);
        }
        sqlx::query(
            "UPDATE run SET end_time = $4, status = $3
             WHERE project = $1 AND id = $2 AND lifecycle = 'active'",
        )
        .bind(project)
        .bind(run_id)
        .bind(status.as_str())
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        let run = Self::run_in(&mut tx, project, run_id).await?;
        let run = run.ok_or_else(|| no_run(run_id))?;
        Self::append_audit(&mut tx, &change(event, &before, &run)?).await?;
        tx.commit().await?;
        Ok(run)
    }

    async fn find_run(&self, project: &str, run_id: &str) -> Result<Option<Run>> {
        // The run is read before what it recorded, and that with one statement: a run that has ended has all of it.
        let mut connection = self.pools.reader().acquire().await?;
        Self::run_in(&mut connection, project, run_id).await
    }

    async fn list_runs(
        &self,
        project: &str,
        experiment: Option<&str>,
        page: &PageRequest<RunPlace>,
    ) -> Result<Page<Run>> {
        let mut tx = self.pools.snapshot().await?;
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(select_runs!("WHERE r.project = "));
        query.push_bind(project.to_owned());
        query.push(" AND r.lifecycle = 'active'");
        if let Some(experiment) = experiment {
            query.push(" AND r.experiment_id = (SELECT id FROM experiment WHERE project = ");
            query.push_bind(project.to_owned()).push(" AND name = ");
            query.push_bind(experiment.to_owned()).push(")");
        }
        if let Some(after) = &page.after {
            query.push(" AND (r.start_time, r.id) < (");
            query.push_bind(after.start_time.as_micros()).push(", ");
            query.push_bind(after.run_id.clone()).push(")");
        }
        query.push(" ORDER BY r.start_time DESC, r.id DESC LIMIT ");
        query.push_bind(page.rows());
        let rows: Vec<RunRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let runs = Self::complete_runs(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(page.cut(runs, |run| RunPlace {
            start_time: run.start_time,
            run_id: run.run_id.clone(),
        }))
    }

    async fn metric_history(
        &self,
        project: &str,
        run_id: &str,
        key: &str,
        page: &PageRequest<MetricPlace>,
    ) -> Result<Option<Page<MetricPoint>>> {
        let mut tx = self.pools.snapshot().await?;
        let Some(series) = Self::metric_series(&mut tx, project, run_id, key).await? else {
            return Ok(None);
        };
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(
            "SELECT timestamp, step, value, is_nan FROM run_metric_point WHERE series_id = ",
        );
        query.push_bind(series);
        if let Some(MetricPlace(after)) = &page.after {
            let (value, is_nan) = stored_value(after);
            query.push(" AND (step, timestamp, value, is_nan) > (");
            query.push_bind(after.step).push(", ");
            query.push_bind(after.timestamp.as_micros()).push(", ");
            query.push_bind(value).push(", ");
            query.push_bind(is_nan).push(")");
        }
        query
            .push(" ORDER BY step, timestamp, value, is_nan LIMIT ")
            .push_bind(page.rows());
        let rows: Vec<PointRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        let points = rows.into_iter().map(PointRow::into_point).collect();
        Ok(Some(page.cut(points, |point| MetricPlace(*point))))
    }

    async fn list_experiments(&self, project: &str, page: &PageRequest<u64>) -> Result<Page<Experiment>> {
        let after = page.after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<ExperimentRow> = sqlx::query_as(select_experiments!(
            "WHERE e.project = $1 AND e.id > $2 AND e.lifecycle = 'active' ORDER BY e.id LIMIT $3"
        ))
        .bind(project)
        .bind(after)
        .bind(page.rows())
        .fetch_all(&mut *tx)
        .await?;
        let experiments = Self::complete_experiments(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(page.cut(experiments, |experiment| experiment.experiment_id.parse().unwrap_or(0)))
    }
}
