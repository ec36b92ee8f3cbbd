//! Experiments, runs and logged models that come from other servers, and how far each has come.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use super::{SqlStore, audit::after, no_logged_model, no_run, to_json};
use crate::{
    error::{Error, Result},
    model::{
        import::{
            Audited, ImportKind, ImportOutcome, ImportScope, ImportState, ImportTotals, ImportedAs, ImportedExperiment,
            ImportedLoggedModel, ImportedRun,
        },
        run::MetricPoint,
        tracking::{Lifecycle, ModelMetric},
    },
};

/// A logged model, and what runs measured on it.
pub type MeasuredModel = (Audited<ImportedLoggedModel>, Vec<(String, ModelMetric)>);

/// Experiments, runs and logged models that come from other servers.
#[async_trait]
pub trait ImportStore: Send + Sync {
    /// Makes experiments, or finds what they are called here. Nothing is written when it is only `tried`.
    async fn import_experiments(
        &self,
        scope: &ImportScope,
        experiments: &[Audited<ImportedExperiment>],
        tried: bool,
    ) -> Result<Vec<ImportedAs>>;
    /// Makes runs of an experiment, or changes those that were imported before: all of them, or none. What was deleted here stays
    /// deleted.
    async fn import_runs(
        &self,
        scope: &ImportScope,
        experiment: i64,
        runs: &[Audited<ImportedRun>],
    ) -> Result<Vec<ImportedAs>>;
    /// Adds points to a metric of a run that was imported. Those that are there stay.
    async fn import_points(&self, scope: &ImportScope, run_id: &str, key: &str, points: &[MetricPoint]) -> Result<()>;
    /// Makes logged models of an experiment, or changes those that were imported before: all of them, or none.
    async fn import_logged_models(
        &self,
        scope: &ImportScope,
        experiment: i64,
        models: &[MeasuredModel],
    ) -> Result<Vec<ImportedAs>>;
    /// How far the import of some things is. What was not begun, or is not here any more, is left out.
    async fn import_states(&self, scope: &ImportScope, kind: ImportKind, ids: &[String]) -> Result<Vec<ImportState>>;
    /// Says that all of some things has arrived. What was not begun is an error.
    async fn set_import_states(&self, scope: &ImportScope, kind: ImportKind, states: &[ImportState]) -> Result<()>;
    /// What of a source is in an experiment.
    async fn count_imported(&self, scope: &ImportScope, experiment: i64) -> Result<ImportTotals>;
}

#[derive(sqlx::FromRow)]
struct FoundRun {
    project: String,
    experiment_id: i64,
}

/// The id of a run or logged model is taken by one that did not come from the source; where that is, is not told.
fn taken(what: &str, id: &str, source: &str) -> Error {
    Error::Exists(format!(
        "{what} `{id}` cannot be imported: its id is taken here by one that was not imported from {source} into this \
         experiment; delete that one for good, or leave this one out"
    ))
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Whether an experiment has runs or logged models, or came from somewhere.
    async fn has_content(tx: &mut Transaction<<P as Pools>::Db>, project: &str, experiment: i64) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT CAST(1 AS BIGINT) WHERE EXISTS (SELECT 1 FROM run WHERE experiment_id = $1)
                OR EXISTS (SELECT 1 FROM logged_model WHERE experiment_id = $1)
                OR EXISTS (SELECT 1 FROM import_item WHERE project = $2 AND kind = 'experiment' AND local_id = $3)",
        )
        .bind(experiment)
        .bind(project)
        .bind(experiment.to_string())
        .fetch_optional(&mut **tx)
        .await?;
        Ok(found.is_some())
    }

    async fn set_experiment_texts(
        tx: &mut Transaction<<P as Pools>::Db>,
        id: i64,
        new: &ImportedExperiment,
    ) -> Result<()> {
        for (key, value) in &new.tags {
            sqlx::query(
                "INSERT INTO experiment_tag (experiment_id, key, value) VALUES ($1, $2, $3)
                 ON CONFLICT (experiment_id, key) DO UPDATE SET value = excluded.value",
            )
            .bind(id)
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
        }
        sqlx::query("UPDATE experiment SET lifecycle = $1, created_at = $2, updated_at = $3 WHERE id = $4")
            .bind(new.lifecycle.as_str())
            .bind(millis(new.created_ms))
            .bind(millis(new.updated_ms))
            .bind(id)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn import_experiment(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        new: &Audited<ImportedExperiment>,
    ) -> Result<ImportedAs> {
        let (kind, item) = (ImportKind::Experiment, &new.item);
        let answer = |id: i64, outcome| ImportedAs {
            source_id: item.source_id.clone(),
            id: id.to_string(),
            outcome,
        };
        if let Some(local) = Self::imported_as(tx, scope, kind, &item.source_id).await? {
            let id = local.parse().unwrap_or(-1);
            // One that was deleted for good is imported anew.
            if Self::experiment_in(tx, &scope.project, id).await?.is_some() {
                return Ok(answer(id, ImportOutcome::Present));
            }
        }
        let named = Self::named_experiment_in(tx, &scope.project, &item.name).await?;
        let (id, outcome) = if let Some(found) = named {
            let id = found.experiment_id.parse().unwrap_or(-1);
            if !found.artifact_location.is_empty() {
                return Err(Error::Exists(format!(
                    "experiment `{}` cannot be imported: there is one with this name that keeps its artifacts at {}, where \
                     none are brought; import it under another name",
                    item.name, found.artifact_location
                )));
            }
            if Self::has_content(tx, &scope.project, id).await? {
                return Err(Error::Exists(format!(
                    "experiment `{}` cannot be imported: there is one with this name and with content that was not \
                     imported from {}; import it under another name",
                    item.name, scope.source
                )));
            }
            (id, ImportOutcome::Adopted)
        } else {
            let query = "UPDATE counter SET value = value + 1 WHERE name = 'experiment' RETURNING value";
            let id: i64 = sqlx::query_scalar(query).fetch_one(&mut **tx).await?;
            sqlx::query(
                "INSERT INTO experiment (id, project, name, lifecycle, artifact_location, created_at, updated_at)
                 VALUES ($1, $2, $3, 'active', '', $4, $4)",
            )
            .bind(id)
            .bind(&scope.project)
            .bind(&item.name)
            .bind(millis(item.created_ms))
            .execute(&mut **tx)
            .await?;
            (id, ImportOutcome::Created)
        };
        Self::set_experiment_texts(tx, id, item).await?;
        Self::remember_import(tx, scope, kind, &item.source_id, &id.to_string()).await?;
        let made = Self::experiment_in(tx, &scope.project, id).await?;
        let made = made.ok_or_else(|| super::experiments::no_experiment(id))?;
        Self::append_audit(tx, &after(&new.event, &made)?).await?;
        Ok(answer(id, outcome))
    }

    /// When a run was deleted; the runs of a deleted experiment come back with it.
    async fn deletion_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        experiment: i64,
        run: &ImportedRun,
    ) -> Result<Option<i64>> {
        let home = Self::experiment_in(tx, &scope.project, experiment).await?;
        let home = home.ok_or_else(|| super::experiments::no_experiment(experiment))?;
        Ok(match (run.lifecycle, home.lifecycle) {
            (Lifecycle::Active, _) => None,
            (Lifecycle::Deleted, Lifecycle::Deleted) => Some(home.updated_at.as_micros()),
            (Lifecycle::Deleted, Lifecycle::Active) => Some(millis(run.end_ms.unwrap_or(run.start_ms))),
        })
    }

    async fn import_run(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        experiment: i64,
        new: &Audited<ImportedRun>,
    ) -> Result<ImportedAs> {
        let (kind, run) = (ImportKind::Run, &new.item);
        let deleted_at = Self::deletion_of(tx, scope, experiment, run).await?;
        let is_imported = Self::imported_as(tx, scope, kind, &run.run_id).await?.is_some();
        let found: Option<FoundRun> = sqlx::query_as("SELECT project, experiment_id FROM run WHERE id = $1")
            .bind(&run.run_id)
            .fetch_optional(&mut **tx)
            .await?;
        let is_known = found.is_some();
        let is_ours =
            |found: &FoundRun| is_imported && found.project == scope.project && found.experiment_id == experiment;
        if found.is_some_and(|found| !is_ours(&found)) {
            return Err(taken("run", &run.run_id, &scope.source));
        }
        sqlx::query(
            "INSERT INTO run (id, project, experiment_id, name, user_id, status, lifecycle, start_time, end_time,
                              deleted_at, request_digest)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, '')
             ON CONFLICT (id) DO UPDATE
             SET name = excluded.name, status = excluded.status, end_time = excluded.end_time,
                 lifecycle = CASE WHEN run.lifecycle = 'deleted' THEN run.lifecycle ELSE excluded.lifecycle END,
                 deleted_at = CASE WHEN run.lifecycle = 'deleted' THEN run.deleted_at ELSE excluded.deleted_at END",
        )
        .bind(&run.run_id)
        .bind(&scope.project)
        .bind(experiment)
        .bind(&run.name)
        .bind(&run.user_id)
        .bind(run.status.as_str())
        .bind(run.lifecycle.as_str())
        .bind(millis(run.start_ms))
        .bind(run.end_ms.map(millis))
        .bind(deleted_at)
        .execute(&mut **tx)
        .await?;
        let id = run.run_id.as_str();
        let params = run
            .params
            .iter()
            .map(|(key, value)| ((id, key.as_str()), value.as_str()));
        Self::insert_params(tx, &params.collect()).await?;
        let tags = run.tags.iter().map(|(key, value)| ((id, key.as_str()), value.as_str()));
        Self::upsert_tags(tx, &tags.collect()).await?;
        Self::insert_datasets(tx, id, &run.read_datasets()).await?;
        Self::insert_run_models(tx, id, &run.read_models()?).await?;
        Self::remember_import(tx, scope, kind, id, id).await?;
        if !is_known {
            let made = Self::run_in(tx, &scope.project, id).await?;
            Self::append_audit(tx, &after(&new.event, &made.ok_or_else(|| no_run(id))?)?).await?;
        }
        Ok(ImportedAs {
            source_id: run.run_id.clone(),
            id: run.run_id.clone(),
            outcome: outcome_of(is_known),
        })
    }

    async fn import_logged_model(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        experiment: i64,
        new: &Audited<ImportedLoggedModel>,
        metrics: &[(String, ModelMetric)],
    ) -> Result<ImportedAs> {
        let (kind, model) = (ImportKind::LoggedModel, &new.item);
        let is_imported = Self::imported_as(tx, scope, kind, &model.model_id).await?.is_some();
        let found: Option<FoundRun> = sqlx::query_as("SELECT project, experiment_id FROM logged_model WHERE id = $1")
            .bind(&model.model_id)
            .fetch_optional(&mut **tx)
            .await?;
        let is_known = found.is_some();
        let is_ours =
            |found: &FoundRun| is_imported && found.project == scope.project && found.experiment_id == experiment;
        if found.is_some_and(|found| !is_ours(&found)) {
            return Err(taken("logged model", &model.model_id, &scope.source));
        }
        sqlx::query(
            "INSERT INTO logged_model (id, project, experiment_id, name, model_type, status, source_run_id, lifecycle,
                                       created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'active', $8, $9)
             ON CONFLICT (id) DO UPDATE
             SET status = excluded.status,
                 updated_at = CASE WHEN logged_model.lifecycle = 'deleted' THEN logged_model.updated_at
                                   ELSE excluded.updated_at END",
        )
        .bind(&model.model_id)
        .bind(&scope.project)
        .bind(experiment)
        .bind(&model.name)
        .bind(&model.model_type)
        .bind(model.read_status()?.as_str())
        .bind(model.source_run_id.as_deref())
        .bind(millis(model.created_ms))
        .bind(millis(model.updated_ms))
        .execute(&mut **tx)
        .await?;
        Self::set_logged_model_texts(tx, &model.model_id, &model.params, &model.tags).await?;
        for (run_id, metric) in metrics {
            Self::insert_model_metrics(tx, &scope.project, run_id, std::slice::from_ref(metric)).await?;
        }
        Self::remember_import(tx, scope, kind, &model.model_id, &model.model_id).await?;
        if !is_known {
            let made = Self::logged_model_in(tx, &scope.project, &model.model_id).await?;
            let made = made.ok_or_else(|| no_logged_model(&model.model_id))?;
            Self::append_audit(
                tx,
                &after(&new.event, &(&made.model_id, &made.name, made.experiment_id))?,
            )
            .await?;
        }
        Ok(ImportedAs {
            source_id: model.model_id.clone(),
            id: model.model_id.clone(),
            outcome: outcome_of(is_known),
        })
    }
}

fn millis(millis: i64) -> i64 {
    modelyard_common::Timestamp::from_millis(millis).as_micros()
}

const fn outcome_of(is_known: bool) -> ImportOutcome {
    if is_known {
        ImportOutcome::Present
    } else {
        ImportOutcome::Created
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ImportStore for SqlStore<P> {
    async fn import_experiments(
        &self,
        scope: &ImportScope,
        experiments: &[Audited<ImportedExperiment>],
        tried: bool,
    ) -> Result<Vec<ImportedAs>> {
        let mut tx = self.pools.begin().await?;
        // Held to the end, so that nobody makes an experiment of the same name meanwhile.
        sqlx::query("UPDATE counter SET value = value WHERE name = 'experiment'")
            .execute(&mut *tx)
            .await?;
        let mut imported = Vec::with_capacity(experiments.len());
        for experiment in experiments {
            imported.push(Self::import_experiment(&mut tx, scope, experiment).await?);
        }
        if tried {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
        }
        Ok(imported)
    }

    async fn import_runs(
        &self,
        scope: &ImportScope,
        experiment: i64,
        runs: &[Audited<ImportedRun>],
    ) -> Result<Vec<ImportedAs>> {
        let mut tx = self.pools.begin().await?;
        let mut imported = Vec::with_capacity(runs.len());
        for run in runs {
            imported.push(Self::import_run(&mut tx, scope, experiment, run).await?);
        }
        tx.commit().await?;
        Ok(imported)
    }

    async fn import_points(&self, scope: &ImportScope, run_id: &str, key: &str, points: &[MetricPoint]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        if Self::imported_as(&mut tx, scope, ImportKind::Run, run_id)
            .await?
            .is_none()
        {
            return Err(no_run(run_id));
        }
        let experiment: Option<i64> =
            sqlx::query_scalar("SELECT experiment_id FROM run WHERE project = $1 AND id = $2")
                .bind(&scope.project)
                .bind(run_id)
                .fetch_optional(&mut *tx)
                .await?;
        let experiment = experiment.ok_or_else(|| no_run(run_id))?;
        Self::insert_points(&mut tx, run_id, experiment, key, points).await?;
        Ok(tx.commit().await?)
    }

    async fn import_logged_models(
        &self,
        scope: &ImportScope,
        experiment: i64,
        models: &[MeasuredModel],
    ) -> Result<Vec<ImportedAs>> {
        let mut tx = self.pools.begin().await?;
        if Self::experiment_in(&mut tx, &scope.project, experiment)
            .await?
            .is_none()
        {
            return Err(super::experiments::no_experiment(experiment));
        }
        let mut imported = Vec::with_capacity(models.len());
        for (model, metrics) in models {
            imported.push(Self::import_logged_model(&mut tx, scope, experiment, model, metrics).await?);
        }
        tx.commit().await?;
        Ok(imported)
    }

    async fn import_states(&self, scope: &ImportScope, kind: ImportKind, ids: &[String]) -> Result<Vec<ImportState>> {
        let mut tx = self.pools.snapshot().await?;
        let states = Self::states_in(&mut tx, scope, kind, ids).await?;
        tx.rollback().await?;
        Ok(states)
    }

    async fn set_import_states(&self, scope: &ImportScope, kind: ImportKind, states: &[ImportState]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        for state in states {
            let set = sqlx::query(
                "UPDATE import_item SET fingerprint = $5, counts = $6
                 WHERE project = $1 AND source = $2 AND kind = $3 AND source_id = $4",
            )
            .bind(&scope.project)
            .bind(&scope.source)
            .bind(kind.as_str())
            .bind(&state.source_id)
            .bind(&state.fingerprint)
            .bind(to_json("counts of an import", &state.counts)?)
            .execute(&mut *tx)
            .await?;
            if set.rows_affected() == 0 {
                return Err(Error::not_found("imported item", &state.source_id, "import it first"));
            }
        }
        Ok(tx.commit().await?)
    }

    async fn count_imported(&self, scope: &ImportScope, experiment: i64) -> Result<ImportTotals> {
        let mut tx = self.pools.snapshot().await?;
        let totals = Self::totals_in(&mut tx, scope, experiment).await?;
        tx.rollback().await?;
        Ok(totals)
    }
}

#[cfg(test)]
mod tests;
