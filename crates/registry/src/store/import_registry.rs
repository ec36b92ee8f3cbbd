//! Registered models and versions that come from other servers.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;

use super::{
    SqlStore,
    audit::{after, with_detail},
};
use crate::{
    error::{Error, Result},
    model::{
        event::EventKind,
        import::{Audited, ImportKind, ImportOutcome, ImportScope, ImportedAs, ImportedModel, ReadyVersion},
        mlflow_registry::{no_model, no_version},
    },
};

/// Registered models and versions that come from other servers.
#[async_trait]
pub trait ImportRegistryStore: Send + Sync {
    /// Makes models, or changes those that were imported before. Nothing is written when it is only `tried`.
    async fn import_models(
        &self,
        scope: &ImportScope,
        models: &[Audited<ImportedModel>],
        tried: bool,
    ) -> Result<Vec<ImportedAs>>;
    /// Makes versions of a model that was imported, with their numbers, or changes those that were imported before: all of
    /// them, or none.
    async fn import_versions(
        &self,
        scope: &ImportScope,
        source_name: &str,
        versions: &[ReadyVersion],
    ) -> Result<Vec<ImportedAs>>;
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn import_model(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        new: &Audited<ImportedModel>,
    ) -> Result<ImportedAs> {
        let (kind, model) = (ImportKind::Model, &new.item);
        let imported = Self::imported_as(tx, scope, kind, &model.source_id).await?;
        let found = Self::model_entry_in(tx, &scope.project, &model.name).await?;
        let is_imported = imported.as_deref() == Some(model.name.as_str());
        let outcome = match &found {
            None => ImportOutcome::Created,
            Some(_) if is_imported => ImportOutcome::Present,
            Some(found) if found.latest.is_empty() && found.tags.is_empty() => ImportOutcome::Adopted,
            Some(_) => {
                return Err(Error::Exists(format!(
                    "model `{}` cannot be imported: there is one with this name that was not imported from {}; import it \
                     under another name",
                    model.name, scope.source
                )));
            }
        };
        sqlx::query(
            "INSERT INTO registered_model (project, name, description, last_version, created_at, updated_at)
             VALUES ($1, $2, $3, 0, $4, $5)
             ON CONFLICT (project, name)
             DO UPDATE SET description = excluded.description, created_at = excluded.created_at,
                           updated_at = excluded.updated_at",
        )
        .bind(&scope.project)
        .bind(&model.name)
        .bind(&model.description)
        .bind(modelyard_common::Timestamp::from_millis(model.created_ms).as_micros())
        .bind(modelyard_common::Timestamp::from_millis(model.updated_ms).as_micros())
        .execute(&mut **tx)
        .await?;
        for (key, value) in &model.tags {
            sqlx::query(
                "INSERT INTO registered_model_tag (project, model, key, value) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (project, model, key) DO UPDATE SET value = excluded.value",
            )
            .bind(&scope.project)
            .bind(&model.name)
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
        }
        Self::remember_import(tx, scope, kind, &model.source_id, &model.name).await?;
        if outcome != ImportOutcome::Present {
            let made = Self::model_entry_in(tx, &scope.project, &model.name).await?;
            let made = made.ok_or_else(|| no_model(&model.name))?;
            Self::append_audit(tx, &after(&new.event, &made)?).await?;
        }
        Ok(ImportedAs {
            source_id: model.source_id.clone(),
            id: model.name.clone(),
            outcome,
        })
    }

    async fn import_version(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        source_name: &str,
        new: &ReadyVersion,
    ) -> Result<ImportedAs> {
        let (kind, common) = (ImportKind::Version, &new.entry.version);
        let (model, version) = (common.model.as_str(), i64::from(new.number));
        let source_id = format!("{source_name}/{version}");
        let is_imported = Self::imported_as(tx, scope, kind, &source_id).await?.is_some();
        let known = Self::entry_in(tx, &scope.project, model, version).await?;
        if known.is_some() && !is_imported {
            return Err(Error::Exists(format!(
                "version {version} of model `{model}` cannot be imported: there is one with this number that was not \
                 imported from {}; import the model under another name",
                scope.source
            )));
        }
        let is_known = known.is_some();
        if !is_known {
            let revision = Self::next_revision(tx).await?;
            Self::insert_version(tx, common, version).await?;
            if let Some(model_id) = new.entry.model_id.as_deref() {
                Self::check_logged_model_stays(tx, model_id).await?;
            }
            let subject = json!({"model": model, "version": version});
            let kind = EventKind::ModelVersionCreated;
            Self::record_event(tx, revision, &scope.project, kind, &subject, common.event.at).await?;
        }
        Self::set_version(tx, new, version).await?;
        sqlx::query(
            "UPDATE registered_model SET last_version = CASE WHEN last_version < $3 THEN $3 ELSE last_version END
             WHERE project = $1 AND name = $2",
        )
        .bind(&scope.project)
        .bind(model)
        .bind(version)
        .execute(&mut **tx)
        .await?;
        Self::remember_import(tx, scope, kind, &source_id, &format!("{model}/{version}")).await?;
        if !is_known {
            let made = Self::entry_in(tx, &scope.project, model, version).await?;
            let made = made.ok_or_else(|| no_version(model, version))?;
            let event = with_detail(&common.event, "version", version);
            Self::append_audit(tx, &after(&event, &made)?).await?;
        }
        Ok(ImportedAs {
            source_id,
            id: format!("{model}/{version}"),
            outcome: if is_known {
                ImportOutcome::Present
            } else {
                ImportOutcome::Created
            },
        })
    }

    /// What of a version can change, and what it was made of.
    async fn set_version(tx: &mut Transaction<<P as Pools>::Db>, new: &ReadyVersion, version: i64) -> Result<()> {
        let (entry, common) = (&new.entry, &new.entry.version);
        sqlx::query(
            "UPDATE model_version
             SET source = $4, storage_location = $5, source_run_id = $6, run_link = $7, status_message = $8,
                 model_id = $9, updated_at = $10, user_id = $11, stage = $12, status = $13, description = $14
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(&common.project)
        .bind(&common.model)
        .bind(version)
        .bind(&entry.source)
        .bind(&entry.storage_location)
        .bind(entry.run_id.as_deref())
        .bind(&entry.run_link)
        .bind(&entry.status_message)
        .bind(entry.model_id.as_deref())
        .bind(new.updated_at.as_micros())
        .bind(&new.user_id)
        .bind(new.stage.as_str())
        .bind(new.status.as_str())
        .bind(&common.description)
        .execute(&mut **tx)
        .await?;
        for (key, value) in &common.tags {
            sqlx::query(
                "INSERT INTO model_version_tag (project, model, version, key, value) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (project, model, version, key) DO UPDATE SET value = excluded.value",
            )
            .bind(&common.project)
            .bind(&common.model)
            .bind(version)
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ImportRegistryStore for SqlStore<P> {
    async fn import_models(
        &self,
        scope: &ImportScope,
        models: &[Audited<ImportedModel>],
        tried: bool,
    ) -> Result<Vec<ImportedAs>> {
        let mut tx = self.pools.begin().await?;
        // No model comes or goes from here on; endpoints may have waited for one.
        Self::next_revision(&mut tx).await?;
        let mut imported = Vec::with_capacity(models.len());
        for model in models {
            imported.push(Self::import_model(&mut tx, scope, model).await?);
        }
        if tried {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
        }
        Ok(imported)
    }

    async fn import_versions(
        &self,
        scope: &ImportScope,
        source_name: &str,
        versions: &[ReadyVersion],
    ) -> Result<Vec<ImportedAs>> {
        let mut tx = self.pools.begin().await?;
        // First of all, as in every change that is followed.
        Self::next_revision(&mut tx).await?;
        let name = Self::imported_as(&mut tx, scope, ImportKind::Model, source_name).await?;
        let mut imported = Vec::with_capacity(versions.len());
        for version in versions {
            if name.as_deref() != Some(version.entry.version.model.as_str()) {
                return Err(Error::not_found("imported model", source_name, "import it first"));
            }
            imported.push(Self::import_version(&mut tx, scope, source_name, version).await?);
        }
        tx.commit().await?;
        Ok(imported)
    }
}
