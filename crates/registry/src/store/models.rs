//! Models and their versions.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;
use sqlx::QueryBuilder;

use super::{
    AliasRequest, SqlStore,
    aliases::AliasRow,
    audit::{after, change, with_detail},
    before, no_run, number, stored, to_json,
    versions::{VersionRow, select_versions},
};
use crate::{
    error::{Error, Result},
    model::{
        alias::{Alias, Selector},
        event::EventKind,
        page::{Page, PageRequest},
        registered_model::{ModelVersion, NewModelVersion, RegisteredModel},
        storage::NamedBlob,
    },
};

/// How many files of a version are written with one statement.
const FILES_AT_ONCE: usize = 200;

/// Models and their versions.
#[async_trait]
pub trait ModelStore: Send + Sync {
    /// Adds a version, or finds the one that was added with the same idempotency key. Whether it is new.
    async fn create_model_version(&self, version: &NewModelVersion) -> Result<(ModelVersion, bool)>;
    /// A version.
    async fn find_model_version(&self, project: &str, model: &str, selector: &Selector)
    -> Result<Option<ModelVersion>>;
    /// Names the bundle with a version's signature.
    async fn set_version_bundle(
        &self,
        project: &str,
        model: &str,
        version: u32,
        bundle: &NamedBlob,
        removals: i64,
        event: &NewEvent,
    ) -> Result<ModelVersion>;
    /// The files that a version's file lists, each content once.
    async fn list_version_files(&self, project: &str, model: &str, version: u32) -> Result<Vec<NamedBlob>>;
    /// The versions of a model, newest first; None: no such model.
    async fn list_model_versions(
        &self,
        project: &str,
        model: &str,
        page: &PageRequest<u64>,
    ) -> Result<Option<Page<ModelVersion>>>;
    /// A model.
    async fn find_model(&self, project: &str, model: &str) -> Result<Option<RegisteredModel>>;
    /// The models by name.
    async fn list_models(&self, project: &str, page: &PageRequest<String>) -> Result<Page<RegisteredModel>>;
}

#[derive(sqlx::FromRow)]
struct ModelRow {
    project: String,
    name: String,
    description: String,
    last_version: i64,
    created_at: i64,
    updated_at: i64,
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Versions of one model with their aliases and tags.
    async fn complete_versions(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<VersionRow>,
    ) -> Result<Vec<ModelVersion>> {
        let (project, model) = match rows.first() {
            Some(first) => (first.project.clone(), first.model.clone()),
            None => return Ok(Vec::new()),
        };
        let mut aliases: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        let found: Vec<(i64, String)> =
            sqlx::query_as("SELECT version, alias FROM model_alias WHERE project = $1 AND model = $2 ORDER BY alias")
                .bind(&project)
                .bind(&model)
                .fetch_all(&mut **tx)
                .await?;
        for (version, alias) in found {
            aliases.entry(version).or_default().push(alias);
        }
        let mut tags: BTreeMap<i64, BTreeMap<String, String>> = BTreeMap::new();
        let mut query = QueryBuilder::new("SELECT version, key, value FROM model_version_tag WHERE project = ");
        query.push_bind(project);
        query.push(" AND model = ").push_bind(model).push(" AND version IN (");
        let mut versions = query.separated(", ");
        for row in &rows {
            versions.push_bind(row.version);
        }
        query.push(")");
        let found: Vec<(i64, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
        for (version, key, value) in found {
            tags.entry(version).or_default().insert(key, value);
        }
        let complete = |row: VersionRow| {
            let (aliases, tags) = (aliases.remove(&row.version), tags.remove(&row.version));
            row.into_version(aliases.unwrap_or_default(), tags.unwrap_or_default())
        };
        rows.into_iter().map(complete).collect()
    }

    async fn model_version_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        version: i64,
    ) -> Result<Option<ModelVersion>> {
        let rows: Vec<VersionRow> = sqlx::query_as(select_versions!(
            "WHERE v.project = $1 AND v.model = $2 AND v.version = $3"
        ))
        .bind(project)
        .bind(model)
        .bind(version)
        .fetch_all(&mut **tx)
        .await?;
        Ok(Self::complete_versions(tx, rows).await?.pop())
    }

    /// The version that was created with the key of `new`.
    async fn repeated_version(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewModelVersion,
    ) -> Result<Option<ModelVersion>> {
        let Some(key) = &new.idempotency_key else {
            return Ok(None);
        };
        let row: Option<VersionRow> =
            sqlx::query_as(select_versions!("WHERE v.project = $1 AND v.idempotency_key = $2"))
                .bind(&new.project)
                .bind(key)
                .fetch_optional(&mut **tx)
                .await?;
        match row {
            None => Ok(None),
            Some(row) if row.request_digest == new.request_digest => {
                Ok(Self::complete_versions(tx, vec![row]).await?.pop())
            }
            Some(_) => Err(Error::KeyReused {
                what: "model version",
                key: key.clone(),
            }),
        }
    }

    /// The number of the next version of the model, which is created where it is missing.
    pub(super) async fn next_version(tx: &mut Transaction<<P as Pools>::Db>, new: &NewModelVersion) -> Result<i64> {
        let query = sqlx::query_scalar(
            "INSERT INTO registered_model (project, name, description, last_version, created_at, updated_at)
             VALUES ($1, $2, '', 1, $3, $3)
             ON CONFLICT (project, name)
             DO UPDATE SET last_version = registered_model.last_version + 1, updated_at = excluded.updated_at
             RETURNING last_version",
        );
        Ok(query
            .bind(&new.project)
            .bind(&new.model)
            .bind(new.now.as_micros())
            .fetch_one(&mut **tx)
            .await?)
    }

    /// Refuses a run that a collection took away since it was looked for. The storage is held, as who collects holds it.
    async fn check_run_stays(tx: &mut Transaction<<P as Pools>::Db>, project: &str, run_id: &str) -> Result<()> {
        let found: Option<String> = sqlx::query_scalar("SELECT id FROM run WHERE id = $1 AND project = $2")
            .bind(run_id)
            .bind(project)
            .fetch_optional(&mut **tx)
            .await?;
        found.map(|_| ()).ok_or_else(|| no_run(run_id))
    }

    pub(super) async fn insert_version(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewModelVersion,
        version: i64,
    ) -> Result<()> {
        // A version that comes from elsewhere can be older than its blobs are here.
        Self::name_blobs(tx, &new.project, &new.blobs(), new.removals, new.event.at).await?;
        if let Some(run_id) = new.run_id.as_deref() {
            Self::check_run_stays(tx, &new.project, run_id).await?;
        }
        let dataset = new.dataset.as_ref();
        sqlx::query(
            "INSERT INTO model_version (project, model, version, description, format, artifact_digest,
                                        artifact_size_bytes, signature, reference_profile_digest, metrics, run_id,
                                        dataset, dataset_version, training_rows, idempotency_key, request_digest,
                                        created_at, bundle_digest)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
        )
        .bind(&new.project)
        .bind(&new.model)
        .bind(version)
        .bind(&new.description)
        .bind(&new.format)
        .bind(&new.artifact_digest)
        .bind(stored("size", new.artifact_size_bytes)?)
        .bind(&new.signature)
        .bind(new.reference_profile_digest.as_deref())
        .bind(to_json("list of metrics", &new.metrics)?)
        .bind(new.run_id.as_deref())
        .bind(dataset.map(|(name, _)| name.as_str()))
        .bind(dataset.map(|(_, version)| i64::from(*version)))
        .bind(stored("rows", new.training_rows)?)
        .bind(new.idempotency_key.as_deref())
        .bind(&new.request_digest)
        .bind(new.now.as_micros())
        .bind(new.bundle.as_ref().map(|bundle| bundle.digest.as_str()))
        .execute(&mut **tx)
        .await?;
        Self::insert_version_files(tx, new, version).await?;
        if new.tags.is_empty() {
            return Ok(());
        }
        let mut query = QueryBuilder::new("INSERT INTO model_version_tag (project, model, version, key, value) ");
        query.push_values(&new.tags, |mut row, (key, value)| {
            row.push_bind(new.project.clone())
                .push_bind(new.model.clone())
                .push_bind(version)
                .push_bind(key.clone())
                .push_bind(value.clone());
        });
        query.build().execute(&mut **tx).await?;
        Ok(())
    }

    async fn insert_version_files(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewModelVersion,
        version: i64,
    ) -> Result<()> {
        for chunk in new.files.chunks(FILES_AT_ONCE) {
            let mut rows = Vec::with_capacity(chunk.len());
            for file in chunk {
                rows.push((file.digest.clone(), stored("size of a file", file.size_bytes)?));
            }
            let mut query =
                QueryBuilder::new("INSERT INTO model_version_file (project, model, version, digest, size_bytes) ");
            query.push_values(rows, |mut row, (digest, size_bytes)| {
                row.push_bind(new.project.clone())
                    .push_bind(new.model.clone())
                    .push_bind(version)
                    .push_bind(digest)
                    .push_bind(size_bytes);
            });
            query.push(" ON CONFLICT DO NOTHING");
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Models with their aliases.
    async fn complete_models(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<ModelRow>,
    ) -> Result<Vec<RegisteredModel>> {
        let project = match rows.first() {
            Some(first) => first.project.clone(),
            None => return Ok(Vec::new()),
        };
        let mut query = QueryBuilder::new("SELECT model, alias, version, updated_at FROM model_alias WHERE project = ");
        query.push_bind(project).push(" AND model IN (");
        let mut names = query.separated(", ");
        for row in &rows {
            names.push_bind(row.name.clone());
        }
        query.push(") ORDER BY model, alias");
        let found: Vec<AliasRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut aliases: BTreeMap<String, Vec<Alias>> = BTreeMap::new();
        for row in found {
            let alias = row.into_alias()?;
            aliases.entry(alias.model.clone()).or_default().push(alias);
        }
        let mut models = Vec::with_capacity(rows.len());
        for row in rows {
            models.push(RegisteredModel {
                aliases: aliases.remove(&row.name).unwrap_or_default(),
                project: row.project,
                name: row.name,
                description: row.description,
                latest_version: number("version", row.last_version)?,
                created_at: Timestamp::from_micros(row.created_at),
                updated_at: Timestamp::from_micros(row.updated_at),
            });
        }
        Ok(models)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ModelStore for SqlStore<P> {
    async fn create_model_version(&self, new: &NewModelVersion) -> Result<(ModelVersion, bool)> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        if let Some(repeated) = Self::repeated_version(&mut tx, new).await? {
            return Ok((repeated, false));
        }
        let is_first = Self::is_new_model(&mut tx, new).await?;
        let version = Self::next_version(&mut tx, new).await?;
        Self::insert_version(&mut tx, new, version).await?;
        let subject = json!({"model": new.model, "version": version});
        let kind = EventKind::ModelVersionCreated;
        Self::record_event(&mut tx, revision, &new.project, kind, &subject, new.now).await?;
        for alias in &new.aliases {
            let request = AliasRequest {
                project: &new.project,
                model: &new.model,
                alias,
                changed_by: &new.changed_by,
                event: &new.event,
                now: new.now,
            };
            let revision = Self::next_revision(&mut tx).await?;
            Self::move_alias(&mut tx, &request, revision, version).await?;
        }
        let created = Self::model_version_in(&mut tx, &new.project, &new.model, version).await?;
        let created = created.ok_or_else(|| modelyard_db::Error::value("version", &version.to_string()))?;
        let event = with_detail(&new.event, "version", version);
        Self::append_audit(&mut tx, &after(&event, &created)?).await?;
        Self::tell_of_version(&mut tx, new, version, is_first).await?;
        tx.commit().await?;
        Ok((created, true))
    }

    async fn set_version_bundle(
        &self,
        project: &str,
        model: &str,
        version: u32,
        bundle: &NamedBlob,
        removals: i64,
        event: &NewEvent,
    ) -> Result<ModelVersion> {
        let number = i64::from(version);
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let missing = || Error::not_found("model version", format!("{model}/{version}"), "create it first");
        let before = Self::model_version_in(&mut tx, project, model, number).await?;
        let before = before.ok_or_else(missing)?;
        if before.bundle_digest.as_ref() == Some(&bundle.digest) {
            return Ok(before);
        }
        Self::name_blobs(&mut tx, project, std::slice::from_ref(bundle), removals, event.at).await?;
        sqlx::query(
            "UPDATE model_version SET bundle_digest = $4, updated_at = $5
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(project)
        .bind(model)
        .bind(number)
        .bind(&bundle.digest)
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        let after = Self::model_version_in(&mut tx, project, model, number).await?;
        let after = after.ok_or_else(missing)?;
        let subject = json!({"model": model, "version": version});
        let kind = EventKind::ModelVersionSigned;
        Self::record_event(&mut tx, revision, project, kind, &subject, event.at).await?;
        Self::follow_model(&mut tx, project, model, revision, event.at).await?;
        let event = with_detail(event, "version", number);
        Self::append_audit(&mut tx, &change(&event, &before, &after)?).await?;
        tx.commit().await?;
        Ok(after)
    }

    async fn list_version_files(&self, project: &str, model: &str, version: u32) -> Result<Vec<NamedBlob>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size_bytes FROM model_version_file WHERE project = $1 AND model = $2 AND version = $3
             ORDER BY digest",
        )
        .bind(project)
        .bind(model)
        .bind(i64::from(version))
        .fetch_all(self.pools.reader())
        .await?;
        let each = rows.into_iter().map(|(digest, size_bytes)| {
            Ok(NamedBlob {
                digest,
                size_bytes: number("size of a file", size_bytes)?,
            })
        });
        each.collect()
    }

    async fn find_model_version(
        &self,
        project: &str,
        model: &str,
        selector: &Selector,
    ) -> Result<Option<ModelVersion>> {
        let mut tx = self.pools.snapshot().await?;
        let version = match selector {
            Selector::Version(version) => Some(i64::from(*version)),
            Selector::Alias(alias) => {
                sqlx::query_scalar("SELECT version FROM model_alias WHERE project = $1 AND model = $2 AND alias = $3")
                    .bind(project)
                    .bind(model)
                    .bind(alias)
                    .fetch_optional(&mut *tx)
                    .await?
            }
        };
        let found = match version {
            Some(version) => Self::model_version_in(&mut tx, project, model, version).await?,
            None => None,
        };
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_model_versions(
        &self,
        project: &str,
        model: &str,
        page: &PageRequest<u64>,
    ) -> Result<Option<Page<ModelVersion>>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<VersionRow> = sqlx::query_as(select_versions!(
            "WHERE v.project = $1 AND v.model = $2 AND v.version < $3 ORDER BY v.version DESC LIMIT $4"
        ))
        .bind(project)
        .bind(model)
        .bind(before(page))
        .bind(page.rows())
        .fetch_all(&mut *tx)
        .await?;
        // A model may have no versions yet.
        let is_unknown = rows.is_empty() && Self::model_entry_in(&mut tx, project, model).await?.is_none();
        if is_unknown {
            return Ok(None);
        }
        let versions = Self::complete_versions(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(Some(page.cut(versions, |version| u64::from(version.version))))
    }

    async fn find_model(&self, project: &str, model: &str) -> Result<Option<RegisteredModel>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<ModelRow> = sqlx::query_as(
            "SELECT project, name, description, last_version, created_at, updated_at FROM registered_model
             WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(model)
        .fetch_all(&mut *tx)
        .await?;
        let found = Self::complete_models(&mut tx, rows).await?.pop();
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_models(&self, project: &str, page: &PageRequest<String>) -> Result<Page<RegisteredModel>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<ModelRow> = sqlx::query_as(
            "SELECT project, name, description, last_version, created_at, updated_at FROM registered_model
             WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(&mut *tx)
        .await?;
        let models = Self::complete_models(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(page.cut(models, |model| model.name.clone()))
    }
}
