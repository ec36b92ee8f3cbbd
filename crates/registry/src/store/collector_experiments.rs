//! The step in which a collection removes an experiment.

use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

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

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
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
        // Held to the end, as whoever restores or renames one does.
        sqlx::query("UPDATE counter SET value = value WHERE name = 'experiment'")
            .execute(&mut *tx)
            .await?;
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
