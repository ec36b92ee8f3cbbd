//! Experiments.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, audit::change, word};
use crate::{
    error::{Error, Result},
    model::{
        run::Experiment,
        tracking::{ExperimentChange, Lifecycle, NewExperiment},
    },
};

/// Experiments.
#[async_trait]
pub trait ExperimentStore: Send + Sync {
    /// Adds an experiment.
    async fn create_experiment(&self, new: &NewExperiment) -> Result<Experiment>;
    /// An experiment, deleted or not.
    async fn find_experiment(&self, project: &str, id: i64) -> Result<Option<Experiment>>;
    /// The experiment with a name, deleted or not.
    async fn find_experiment_by_name(&self, project: &str, name: &str) -> Result<Option<Experiment>>;
    /// Renames, deletes or restores an experiment.
    async fn change_experiment(
        &self,
        project: &str,
        id: i64,
        change: &ExperimentChange,
        event: &NewEvent,
    ) -> Result<()>;
    /// Sets a tag of an experiment, or removes it. Whether there was one.
    async fn tag_experiment(
        &self,
        project: &str,
        id: i64,
        key: &str,
        value: Option<&str>,
        now: Timestamp,
    ) -> Result<bool>;
}

/// What an experiment that is not there is answered with.
pub(super) fn no_experiment(id: i64) -> Error {
    Error::NotThere(format!("No Experiment with id={id} exists"))
}

#[derive(sqlx::FromRow)]
pub(super) struct ExperimentRow {
    pub(super) id: i64,
    pub(super) project: String,
    pub(super) name: String,
    pub(super) lifecycle: String,
    pub(super) artifact_location: String,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
}

/// The columns of [`ExperimentRow`]; the table is `e`.
macro_rules! select_experiments {
    ($rest:literal) => {
        concat!(
            "SELECT e.id, e.project, e.name, e.lifecycle, e.artifact_location, e.created_at, e.updated_at \
             FROM experiment e ",
            $rest
        )
    };
}
pub(super) use select_experiments;

impl ExperimentRow {
    fn into_experiment(self) -> Result<Experiment> {
        Ok(Experiment {
            experiment_id: self.id.to_string(),
            project: self.project,
            name: self.name,
            lifecycle: word("lifecycle of an experiment", &self.lifecycle, Lifecycle::parse)?,
            artifact_location: self.artifact_location,
            tags: BTreeMap::new(),
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Experiments with their tags.
    pub(super) async fn complete_experiments(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<ExperimentRow>,
    ) -> Result<Vec<Experiment>> {
        let places: BTreeMap<i64, usize> = rows.iter().enumerate().map(|(place, row)| (row.id, place)).collect();
        let mut experiments = Vec::with_capacity(rows.len());
        for row in rows {
            experiments.push(row.into_experiment()?);
        }
        if experiments.is_empty() {
            return Ok(experiments);
        }
        let mut query =
            QueryBuilder::new("SELECT experiment_id, key, value FROM experiment_tag WHERE experiment_id IN (");
        let mut ids = query.separated(", ");
        for id in places.keys() {
            ids.push_bind(*id);
        }
        query.push(")");
        let tags: Vec<(i64, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
        for (id, key, value) in tags {
            experiments[places[&id]].tags.insert(key, value);
        }
        Ok(experiments)
    }

    pub(super) async fn experiment_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: i64,
    ) -> Result<Option<Experiment>> {
        let rows = sqlx::query_as(select_experiments!("WHERE e.project = $1 AND e.id = $2"))
            .bind(project)
            .bind(id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_experiments(tx, rows).await?.pop())
    }

    pub(super) async fn named_experiment_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        name: &str,
    ) -> Result<Option<Experiment>> {
        let rows = sqlx::query_as(select_experiments!("WHERE e.project = $1 AND e.name = $2"))
            .bind(project)
            .bind(name)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_experiments(tx, rows).await?.pop())
    }

    /// Refuses a name that is taken, also by an experiment that was deleted.
    async fn check_experiment_name(tx: &mut Transaction<<P as Pools>::Db>, project: &str, name: &str) -> Result<()> {
        let Some(taken) = Self::named_experiment_in(tx, project, name).await? else {
            return Ok(());
        };
        Err(Error::Exists(match taken.lifecycle {
            Lifecycle::Active => format!("Experiment(name={name}) already exists."),
            Lifecycle::Deleted => format!(
                "Experiment(name={name}) already exists: experiment {} has this name and is deleted. Restore it, or use \
                 another name.",
                taken.experiment_id
            ),
        }))
    }

    /// The runs of an experiment go and come with it; what was deleted by itself stays deleted.
    async fn change_lifecycle(
        tx: &mut Transaction<<P as Pools>::Db>,
        before: &Experiment,
        id: i64,
        lifecycle: Lifecycle,
        now: Timestamp,
    ) -> Result<()> {
        if before.lifecycle == lifecycle {
            // As MLflow has it: an experiment in the other state is not found.
            let state = match lifecycle {
                Lifecycle::Active => "deleted",
                Lifecycle::Deleted => "active",
            };
            return Err(Error::NotThere(format!("No {state} Experiment with id={id} exists")));
        }
        sqlx::query("UPDATE experiment SET lifecycle = $1, updated_at = $2 WHERE id = $3")
            .bind(lifecycle.as_str())
            .bind(now.as_micros())
            .bind(id)
            .execute(&mut **tx)
            .await?;
        let runs = match lifecycle {
            Lifecycle::Deleted => {
                "UPDATE run SET lifecycle = 'deleted', deleted_at = $1
                 WHERE experiment_id = $2 AND lifecycle = 'active'"
            }
            Lifecycle::Active => {
                "UPDATE run SET lifecycle = 'active', deleted_at = NULL WHERE experiment_id = $2 AND deleted_at = $1"
            }
        };
        let at = match lifecycle {
            Lifecycle::Deleted => now,
            // They carry the time at which the experiment was deleted.
            Lifecycle::Active => before.updated_at,
        };
        sqlx::query(runs)
            .bind(at.as_micros())
            .bind(id)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ExperimentStore for SqlStore<P> {
    async fn create_experiment(&self, new: &NewExperiment) -> Result<Experiment> {
        let mut tx = self.pools.begin().await?;
        // Raising the counter keeps others from creating the same experiment meanwhile.
        let id: i64 =
            sqlx::query_scalar("UPDATE counter SET value = value + 1 WHERE name = 'experiment' RETURNING value")
                .fetch_one(&mut *tx)
                .await?;
        Self::check_experiment_name(&mut tx, &new.project, &new.name).await?;
        sqlx::query(
            "INSERT INTO experiment (id, project, name, lifecycle, artifact_location, created_at, updated_at)
             VALUES ($1, $2, $3, 'active', $4, $5, $5)",
        )
        .bind(id)
        .bind(&new.project)
        .bind(&new.name)
        .bind(&new.artifact_location)
        .bind(new.event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        for (key, value) in &new.tags {
            sqlx::query("INSERT INTO experiment_tag (experiment_id, key, value) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(key)
                .bind(value)
                .execute(&mut *tx)
                .await?;
        }
        let created = Self::experiment_in(&mut tx, &new.project, id).await?;
        let created = created.ok_or_else(|| no_experiment(id))?;
        Self::append_audit(&mut tx, &super::audit::after(&new.event, &created)?).await?;
        tx.commit().await?;
        Ok(created)
    }

    async fn find_experiment(&self, project: &str, id: i64) -> Result<Option<Experiment>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::experiment_in(&mut tx, project, id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn find_experiment_by_name(&self, project: &str, name: &str) -> Result<Option<Experiment>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::named_experiment_in(&mut tx, project, name).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn change_experiment(
        &self,
        project: &str,
        id: i64,
        changing: &ExperimentChange,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        // Held to the end, so that no two rename at once.
        sqlx::query("UPDATE counter SET value = value WHERE name = 'experiment'")
            .execute(&mut *tx)
            .await?;
        let before = Self::experiment_in(&mut tx, project, id).await?;
        let before = before.ok_or_else(|| no_experiment(id))?;
        match changing {
            ExperimentChange::Rename(name) => {
                if before.lifecycle == Lifecycle::Deleted {
                    return Err(Error::State("Cannot rename a non-active experiment.".to_owned()));
                }
                if before.name != *name {
                    Self::check_experiment_name(&mut tx, project, name).await?;
                }
                sqlx::query("UPDATE experiment SET name = $1, updated_at = $2 WHERE id = $3")
                    .bind(name)
                    .bind(event.at.as_micros())
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
            }
            ExperimentChange::Delete => {
                Self::change_lifecycle(&mut tx, &before, id, Lifecycle::Deleted, event.at).await?;
            }
            ExperimentChange::Restore => {
                Self::change_lifecycle(&mut tx, &before, id, Lifecycle::Active, event.at).await?;
            }
        }
        let now = Self::experiment_in(&mut tx, project, id).await?;
        let now = now.ok_or_else(|| no_experiment(id))?;
        Self::append_audit(&mut tx, &change(event, &before, &now)?).await?;
        Ok(tx.commit().await?)
    }

    async fn tag_experiment(
        &self,
        project: &str,
        id: i64,
        key: &str,
        value: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        // As in a deletion, which remembers by the time of the last change which runs it took along.
        sqlx::query("UPDATE counter SET value = value WHERE name = 'experiment'")
            .execute(&mut *tx)
            .await?;
        let found = Self::experiment_in(&mut tx, project, id).await?;
        let found = found.ok_or_else(|| no_experiment(id))?;
        if found.lifecycle == Lifecycle::Deleted {
            return Err(Error::State(format!(
                "The experiment {id} must be in the 'active' state. Current state is deleted."
            )));
        }
        match value {
            Some(value) => {
                sqlx::query(
                    "INSERT INTO experiment_tag (experiment_id, key, value) VALUES ($1, $2, $3)
                     ON CONFLICT (experiment_id, key) DO UPDATE SET value = excluded.value",
                )
                .bind(id)
                .bind(key)
                .bind(value)
                .execute(&mut *tx)
                .await?;
            }
            None => {
                sqlx::query("DELETE FROM experiment_tag WHERE experiment_id = $1 AND key = $2")
                    .bind(id)
                    .bind(key)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        sqlx::query("UPDATE experiment SET updated_at = $1 WHERE id = $2")
            .bind(now.as_micros())
            .bind(id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(found.tags.contains_key(key))
    }
}
