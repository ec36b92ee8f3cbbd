//! The steps in which a collection removes experiments and their traces.

use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    collections::{FoundObject, Step},
    collector::kept,
};
use crate::{
    error::Result,
    model::{
        artifact_file::ArtifactFolder,
        collection::{CollectedOutcome, FIRST_EXPERIMENT, Freed, own_folder},
        tracking::PROXY_SCHEME,
    },
};

/// How many traces go in one transaction, each with all its spans.
const TRACES_AT_ONCE: u32 = 50;

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// What must hold of the experiments that may go.
    pub(super) fn push_deleted_experiments(query: &mut QueryBuilder<<P as Pools>::Db>, step: &Step<'_>) {
        let plan = step.plan;
        query
            .push("lifecycle = 'deleted' AND project = ")
            .push_bind(step.claim.project.clone());
        query
            .push(" AND updated_at <= ")
            .push_bind(plan.deleted_before.as_micros());
        if !plan.is_for_all() {
            query.push(" AND id IN (-1");
            for id in &plan.experiment_ids {
                query.push(", ").push_bind(*id);
            }
            query.push(")");
        }
    }

    fn push_doomed_traces(query: &mut QueryBuilder<<P as Pools>::Db>, step: &Step<'_>) {
        query.push("FROM trace WHERE experiment_id IN (SELECT id FROM experiment WHERE id <> ");
        query.push_bind(FIRST_EXPERIMENT).push(" AND ");
        Self::push_deleted_experiments(query, step);
        query.push(")");
    }

    /// Holds all experiments to the end of the transaction, as whoever restores or renames one does: what is found deleted stays so.
    pub(super) async fn hold_experiments(tx: &mut Transaction<<P as Pools>::Db>) -> Result<()> {
        sqlx::query("UPDATE counter SET value = value WHERE name = 'experiment'")
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Removes some traces of the experiments that may go; whether there may be more.
    pub(super) async fn take_traces(&self, step: &Step<'_>) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::hold_experiments(&mut tx).await?;
        if step.plan.dry_run {
            let mut query = QueryBuilder::new("SELECT COUNT(*) ");
            Self::push_doomed_traces(&mut query, step);
            let count: i64 = query.build_query_scalar().fetch_one(&mut *tx).await?;
            Self::add_count(&mut tx, step, Freed::Trace, count.unsigned_abs(), 0).await?;
            tx.commit().await?;
            return Ok(false);
        }
        let mut query = QueryBuilder::new("SELECT id ");
        Self::push_doomed_traces(&mut query, step);
        query.push(" LIMIT ").push_bind(i64::from(TRACES_AT_ONCE));
        let ids: Vec<String> = query.build_query_scalar().fetch_all(&mut *tx).await?;
        for id in &ids {
            for statement in [
                "DELETE FROM trace_run WHERE project = $1 AND trace_id = $2",
                "DELETE FROM trace WHERE project = $1 AND id = $2",
            ] {
                sqlx::query(statement)
                    .bind(&step.claim.project)
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        Self::add_count(&mut tx, step, Freed::Trace, ids.len() as u64, 0).await?;
        tx.commit().await?;
        Ok(!ids.is_empty())
    }

    /// Why an experiment stays; none: nothing belongs to it.
    async fn holders_of_experiment(
        tx: &mut Transaction<<P as Pools>::Db>,
        step: &Step<'_>,
        id: i64,
    ) -> Result<Option<String>> {
        if id == FIRST_EXPERIMENT {
            return Ok(Some(
                "clients use it where they name none: it cannot be removed for good".to_owned(),
            ));
        }
        // What a dry run would take away is still there.
        let statements = if step.plan.dry_run {
            [
                "SELECT COUNT(*) FROM run o WHERE o.experiment_id = $1 AND NOT EXISTS (
                     SELECT 1 FROM collected_object c
                     WHERE c.collection_id = $2 AND c.kind = 'run' AND c.id = o.id AND c.outcome = 'would-be-freed')",
                "SELECT COUNT(*) FROM logged_model o WHERE o.experiment_id = $1 AND NOT EXISTS (
                     SELECT 1 FROM collected_object c
                     WHERE c.collection_id = $2 AND c.kind = 'logged-model' AND c.id = o.id AND c.outcome = 'would-be-freed')",
            ]
        } else {
            [
                "SELECT COUNT(*) FROM run WHERE experiment_id = $1 AND id <> $2",
                "SELECT COUNT(*) FROM logged_model WHERE experiment_id = $1 AND id <> $2",
            ]
        };
        for (statement, what) in statements.into_iter().zip(["runs", "logged models"]) {
            let count: i64 = sqlx::query_scalar(statement)
                .bind(id)
                .bind(&step.claim.id)
                .fetch_one(&mut **tx)
                .await?;
            if count > 0 {
                return Ok(Some(format!("{count} of its {what} stay")));
            }
        }
        Ok(None)
    }

    /// The folder that belongs to an experiment alone, if nothing that stays is below it.
    async fn folder_of_experiment(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: i64,
        location: &str,
    ) -> Result<Option<ArtifactFolder>> {
        if !location.is_empty() {
            return Ok(None);
        }
        let folder = ArtifactFolder::parse(&id.to_string())?;
        let is_below = |uri: &str| own_folder(uri).is_some_and(|other| other.prefix().starts_with(&folder.prefix()));
        let mut uris: Vec<String> = sqlx::query_scalar(
            "SELECT artifact_location FROM experiment WHERE project = $1 AND artifact_location <> ''",
        )
        .bind(project)
        .fetch_all(&mut **tx)
        .await?;
        for statement in [
            "SELECT source FROM model_version WHERE project = $1 AND source LIKE '%' || $2 || '%'",
            "SELECT storage_location FROM model_version WHERE project = $1 AND storage_location LIKE '%' || $2 || '%'",
        ] {
            let found: Vec<String> = sqlx::query_scalar(statement)
                .bind(project)
                .bind(PROXY_SCHEME)
                .fetch_all(&mut **tx)
                .await?;
            uris.extend(found);
        }
        Ok(if uris.iter().any(|uri| is_below(uri)) {
            None
        } else {
            Some(folder)
        })
    }

    /// Removes an experiment that nothing belongs to, or says why it stays.
    pub(super) async fn remove_experiment(&self, step: &Step<'_>, id: i64, location: &str) -> Result<FoundObject> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::hold_storage(&mut tx, &step.claim.project).await?;
        Self::hold_experiments(&mut tx).await?;
        if let Some(reason) = Self::holders_of_experiment(&mut tx, step, id).await? {
            return Ok(kept(Freed::Experiment, id.to_string(), reason));
        }
        let folder = Self::folder_of_experiment(&mut tx, &step.claim.project, id, location).await?;
        let mut object = FoundObject {
            kind: Freed::Experiment,
            id: id.to_string(),
            outcome: CollectedOutcome::WouldBeFreed,
            size_bytes: 0,
            folder: folder.map(|folder| folder.name().to_owned()),
            reason: None,
        };
        if step.plan.dry_run {
            return Ok(object);
        }
        let removed = sqlx::query(
            "DELETE FROM experiment WHERE project = $1 AND id = $2 AND lifecycle = 'deleted' AND updated_at <= $3",
        )
        .bind(&step.claim.project)
        .bind(id)
        .bind(step.plan.deleted_before.as_micros())
        .execute(&mut *tx)
        .await?;
        if removed.rows_affected() == 0 {
            return Ok(kept(
                Freed::Experiment,
                id.to_string(),
                "it was restored meanwhile".to_owned(),
            ));
        }
        object.outcome = CollectedOutcome::Freeing;
        Self::insert_objects(&mut tx, step, std::slice::from_ref(&object)).await?;
        tx.commit().await?;
        Ok(object)
    }
}
