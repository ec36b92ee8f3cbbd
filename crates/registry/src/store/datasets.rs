//! Datasets and their versions.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::{after, with_detail},
    json, number, stored, to_json, word,
};
use crate::{
    error::Result,
    model::{
        column::Column,
        dataset::{Dataset, DatasetFile, DatasetVersion, DatasetVersionSummary, FileFormat},
        event::EventKind,
        page::{Page, PageRequest},
        storage::NamedBlob,
    },
};

/// How many files are inserted with one statement.
const INSERTED_FILES: usize = 500;

/// A version to be created.
#[derive(Debug, Clone)]
pub struct NewDatasetVersion {
    /// The project.
    pub project: String,
    /// The dataset, which is created where it is missing.
    pub dataset: String,
    /// What its maker says about it.
    pub description: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// The blob with its profile.
    pub profile_digest: String,
    /// The size of its profile in bytes.
    pub profile_size_bytes: u64,
    /// Its files.
    pub files: Vec<DatasetFile>,
    /// What was counted of removals of blobs before its blobs were looked for.
    pub removals: i64,
    /// The newest version that it was made from; zero: there was none. Another newest one by now is no base.
    pub base: Option<u32>,
    /// What the audit chain is told.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// What inserting a version did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// The version is new.
    Created(DatasetVersion),
    /// The newest version has the same manifest.
    Unchanged(DatasetVersion),
    /// There is another newest version than the base.
    Moved,
}

/// Datasets and their versions.
#[async_trait]
pub trait DatasetStore: Send + Sync {
    /// Adds a version.
    async fn insert_dataset_version(&self, version: &NewDatasetVersion) -> Result<Inserted>;
    /// A version; None: the newest.
    async fn find_dataset_version(
        &self,
        project: &str,
        dataset: &str,
        version: Option<u32>,
    ) -> Result<Option<DatasetVersion>>;
    /// The datasets by name.
    async fn list_datasets(&self, project: &str, page: &PageRequest<String>) -> Result<Page<Dataset>>;
    /// The versions of a dataset, newest first; None: no such dataset.
    async fn list_dataset_versions(
        &self,
        project: &str,
        dataset: &str,
        page: &PageRequest<u64>,
    ) -> Result<Option<Page<DatasetVersionSummary>>>;
}

#[derive(sqlx::FromRow)]
struct DatasetRow {
    project: String,
    name: String,
    last_version: i64,
    created_at: i64,
    updated_at: i64,
}

impl DatasetRow {
    fn into_dataset(self) -> Result<Dataset> {
        Ok(Dataset {
            project: self.project,
            name: self.name,
            latest_version: number("version", self.last_version)?,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct VersionRow {
    project: String,
    dataset: String,
    version: i64,
    description: String,
    digest: String,
    rows: i64,
    size_bytes: i64,
    columns: String,
    profile_digest: String,
    created_at: i64,
}

impl VersionRow {
    fn into_summary(self) -> Result<DatasetVersionSummary> {
        Ok(DatasetVersionSummary {
            project: self.project,
            dataset: self.dataset,
            version: number("version", self.version)?,
            description: self.description,
            digest: self.digest,
            rows: number("rows", self.rows)?,
            size_bytes: number("size", self.size_bytes)?,
            columns: json("list of columns", &self.columns)?,
            profile_digest: self.profile_digest,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct FileRow {
    name: String,
    digest: String,
    size_bytes: i64,
    rows: i64,
    format: String,
}

impl FileRow {
    fn into_file(self) -> Result<DatasetFile> {
        Ok(DatasetFile {
            name: self.name,
            digest: self.digest,
            size_bytes: number("size", self.size_bytes)?,
            rows: number("rows", self.rows)?,
            format: word("format of a file", &self.format, FileFormat::parse)?,
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// A version with its files; None: the newest.
    async fn dataset_version_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        dataset: &str,
        version: Option<u32>,
    ) -> Result<Option<DatasetVersion>> {
        let row: Option<VersionRow> = sqlx::query_as(
            "SELECT project, dataset, version, description, digest, rows, size_bytes, columns, profile_digest, created_at
             FROM dataset_version
             WHERE project = $1 AND dataset = $2 AND version = COALESCE($3, (
                 SELECT last_version FROM dataset WHERE project = $1 AND name = $2
             ))",
        )
        .bind(project)
        .bind(dataset)
        .bind(version.map(i64::from))
        .fetch_optional(&mut **tx)
        .await?;
        let summary = match row {
            Some(row) => row.into_summary()?,
            None => return Ok(None),
        };
        let files: Vec<FileRow> = sqlx::query_as(
            "SELECT name, digest, size_bytes, rows, format FROM dataset_file
             WHERE project = $1 AND dataset = $2 AND version = $3 ORDER BY position",
        )
        .bind(project)
        .bind(dataset)
        .bind(i64::from(summary.version))
        .fetch_all(&mut **tx)
        .await?;
        let files = files.into_iter().map(FileRow::into_file).collect::<Result<_>>()?;
        Ok(Some(DatasetVersion { summary, files }))
    }

    async fn insert_files(tx: &mut Transaction<<P as Pools>::Db>, new: &NewDatasetVersion, version: i64) -> Result<()> {
        let files: Vec<(usize, &DatasetFile)> = new.files.iter().enumerate().collect();
        for chunk in files.chunks(INSERTED_FILES) {
            let mut query = QueryBuilder::new(
                "INSERT INTO dataset_file (project, dataset, version, position, name, digest, size_bytes, rows, format) ",
            );
            query.push_values(chunk, |mut row, (position, file)| {
                row.push_bind(new.project.clone())
                    .push_bind(new.dataset.clone())
                    .push_bind(version)
                    .push_bind(*position as i64)
                    .push_bind(file.name.clone())
                    .push_bind(file.digest.clone())
                    .push_bind(file.size_bytes as i64)
                    .push_bind(file.rows as i64)
                    .push_bind(file.format.as_str());
            });
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl DatasetStore for SqlStore<P> {
    async fn insert_dataset_version(&self, new: &NewDatasetVersion) -> Result<Inserted> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let newest = Self::dataset_version_in(&mut tx, &new.project, &new.dataset, None).await?;
        let last = newest.as_ref().map_or(0, |newest| newest.summary.version);
        match newest {
            Some(newest) if newest.summary.digest == new.digest => return Ok(Inserted::Unchanged(newest)),
            _ => {}
        }
        if new.base.is_some_and(|base| base != last) {
            return Ok(Inserted::Moved);
        }
        let mut blobs = vec![NamedBlob {
            digest: new.profile_digest.clone(),
            size_bytes: new.profile_size_bytes,
        }];
        blobs.extend(new.files.iter().map(|file| NamedBlob {
            digest: file.digest.clone(),
            size_bytes: file.size_bytes,
        }));
        Self::name_blobs(&mut tx, &new.project, &blobs, new.removals, new.now).await?;
        let version: i64 = sqlx::query_scalar(
            "INSERT INTO dataset (project, name, last_version, created_at, updated_at) VALUES ($1, $2, 1, $3, $3)
             ON CONFLICT (project, name)
             DO UPDATE SET last_version = dataset.last_version + 1, updated_at = excluded.updated_at
             RETURNING last_version",
        )
        .bind(&new.project)
        .bind(&new.dataset)
        .bind(new.now.as_micros())
        .fetch_one(&mut *tx)
        .await?;
        let rows = new.files.iter().map(|file| file.rows).sum();
        let size_bytes = new.files.iter().map(|file| file.size_bytes).sum();
        sqlx::query(
            "INSERT INTO dataset_version (project, dataset, version, description, digest, rows, size_bytes, columns,
                                          profile_digest, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&new.project)
        .bind(&new.dataset)
        .bind(version)
        .bind(&new.description)
        .bind(&new.digest)
        .bind(stored("rows", rows)?)
        .bind(stored("size", size_bytes)?)
        .bind(to_json("list of columns", &new.columns)?)
        .bind(&new.profile_digest)
        .bind(new.now.as_micros())
        .execute(&mut *tx)
        .await?;
        Self::insert_files(&mut tx, new, version).await?;
        let subject = json!({"dataset": new.dataset, "version": version});
        let kind = EventKind::DatasetVersionCreated;
        Self::record_event(&mut tx, revision, &new.project, kind, &subject, new.now).await?;
        let created = Self::dataset_version_in(&mut tx, &new.project, &new.dataset, None).await?;
        let created = created.ok_or_else(|| modelyard_db::Error::value("version", &version.to_string()))?;
        let event = with_detail(&new.event, "version", version);
        Self::append_audit(&mut tx, &after(&event, &created)?).await?;
        tx.commit().await?;
        Ok(Inserted::Created(created))
    }

    async fn find_dataset_version(
        &self,
        project: &str,
        dataset: &str,
        version: Option<u32>,
    ) -> Result<Option<DatasetVersion>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::dataset_version_in(&mut tx, project, dataset, version).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_datasets(&self, project: &str, page: &PageRequest<String>) -> Result<Page<Dataset>> {
        let rows: Vec<DatasetRow> = sqlx::query_as(
            "SELECT project, name, last_version, created_at, updated_at FROM dataset
             WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let datasets = rows.into_iter().map(DatasetRow::into_dataset).collect::<Result<_>>()?;
        Ok(page.cut(datasets, |dataset| dataset.name.clone()))
    }

    async fn list_dataset_versions(
        &self,
        project: &str,
        dataset: &str,
        page: &PageRequest<u64>,
    ) -> Result<Option<Page<DatasetVersionSummary>>> {
        let rows: Vec<VersionRow> = sqlx::query_as(
            "SELECT project, dataset, version, description, digest, rows, size_bytes, columns, profile_digest, created_at
             FROM dataset_version WHERE project = $1 AND dataset = $2 AND version < $3
             ORDER BY version DESC LIMIT $4",
        )
        .bind(project)
        .bind(dataset)
        .bind(super::before(page))
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        if rows.is_empty() && page.after.is_none() {
            return Ok(None);
        }
        let versions = rows.into_iter().map(VersionRow::into_summary).collect::<Result<_>>()?;
        Ok(Some(page.cut(versions, |version| u64::from(version.version))))
    }
}
