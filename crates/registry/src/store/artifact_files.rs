//! Artifacts by path, and uploads in parts.
//!
//! A folder is a range of the primary key. Its list jumps from one entry to the first path behind it, so that its time depends on
//! how many entries are wanted and not on how many files lie below them.

use async_trait::async_trait;
use conditional_trait_gen::{trait_gen, when};
use modelyard_artifacts::BlockDigests;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, number, stored, word};
use crate::{
    error::{Error, Result},
    model::{
        artifact_file::{
            ArtifactFile, ArtifactFolder, ArtifactPath, FilePlace, FolderEntry, FolderPlace, MAX_OPEN_UPLOADS, Upload,
            UploadPart,
        },
        page::{Page, PageRequest},
        storage::NamedBlob,
    },
};

/// Artifacts by path.
#[async_trait]
pub trait ArtifactFileStore: Send + Sync {
    /// Writes a file, in the place of the one that was there. Nothing is a file and a folder at once. `removals` were counted before
    /// its content was stored.
    async fn put_artifact_file(&self, file: &ArtifactFile, removals: i64) -> Result<()>;
    /// A file.
    async fn find_artifact_file(&self, project: &str, path: &ArtifactPath) -> Result<Option<ArtifactFile>>;
    /// What is in a folder, one level deep, in the order of paths. A folder that is not there is empty.
    async fn list_artifact_folder(
        &self,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FolderPlace>,
    ) -> Result<Page<FolderEntry>>;
    /// All files below a folder, however deep, in the order of paths.
    async fn list_artifact_files(
        &self,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FilePlace>,
    ) -> Result<Page<ArtifactFile>>;
    /// Forgets a file; whether there was one.
    async fn delete_artifact_file(&self, project: &str, path: &ArtifactPath) -> Result<bool>;
    /// Forgets the first `limit` files below a folder; how many.
    async fn delete_artifact_files(&self, project: &str, folder: &ArtifactFolder, limit: u32) -> Result<u64>;
}

/// When content was stored.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// What was counted of removals of blobs before.
    pub removals: i64,
    /// Now.
    pub now: Timestamp,
}

/// Files that arrive in parts.
#[async_trait]
pub trait ArtifactUploadStore: Send + Sync {
    /// Begins an upload.
    async fn create_upload(&self, upload: &Upload) -> Result<()>;
    /// An upload.
    async fn find_upload(&self, upload_id: &str) -> Result<Option<Upload>>;
    /// Adds a part to an upload that is not complete, in the place of the one with its number. The parts have `limit_bytes`
    /// together, at most.
    async fn put_part(&self, upload: &Upload, part: &UploadPart, limit_bytes: u64, arrival: Arrival) -> Result<()>;
    /// The parts that have arrived, by number.
    async fn list_parts(&self, upload_id: &str) -> Result<Vec<UploadPart>>;
    /// Writes the file of an upload and forgets its parts. One that is complete stays as it is.
    async fn complete_upload(&self, upload_id: &str, file: &ArtifactFile, removals: i64) -> Result<()>;
    /// Gives an upload up; whether there was one that was not complete.
    async fn abort_upload(&self, project: &str, upload_id: &str) -> Result<bool>;
    /// Forgets the uploads that began before a time; how many.
    async fn prune_uploads(&self, before: Timestamp) -> Result<u64>;
}

/// The entries of the project `$1` from `$2` to before `$3`: for each the first path that shows it. `$4` is where names begin in
/// the paths, counted from 1, and `$5` how many are wanted. What follows a file begins with its path and at least a space; what
/// follows a folder is behind all that begins with its path and `/`, and `0` is what follows `/`.
macro_rules! folder_entries {
    ($find:literal) => {
        concat!(
            "WITH RECURSIVE entry (position, path) AS (
                SELECT CAST(1 AS BIGINT), (
                    SELECT path FROM artifact_file WHERE project = $1 AND path >= $2 AND path < $3 ORDER BY path LIMIT 1
                )
                UNION ALL
                SELECT entry.position + 1, (
                    SELECT file.path FROM artifact_file AS file
                    WHERE file.project = $1 AND file.path < $3 AND file.path >=
                        CASE ",
            $find,
            "(substr(entry.path, $4), '/')
                        WHEN 0 THEN entry.path || ' '
                        ELSE substr(entry.path, 1, $4 + ",
            $find,
            "(substr(entry.path, $4), '/') - 2) || '0' END
                    ORDER BY file.path LIMIT 1
                ) FROM entry WHERE entry.path IS NOT NULL AND entry.position < $5
            )
            SELECT entry.path, file.size_bytes
            FROM entry JOIN artifact_file AS file ON file.project = $1 AND file.path = entry.path
            ORDER BY entry.position"
        )
    };
}

const FOLDER_ENTRIES_OF_SQLITE: &str = folder_entries!("instr");
const FOLDER_ENTRIES_OF_POSTGRES: &str = folder_entries!("strpos");

#[derive(sqlx::FromRow)]
struct FileRow {
    project: String,
    path: String,
    digest: String,
    size_bytes: i64,
    /// Lists do not read it.
    #[sqlx(default)]
    blocks: Option<Vec<u8>>,
    created_at: i64,
}

fn stored_path(path: &str) -> Result<ArtifactPath> {
    word("path of an artifact", path, |path| ArtifactPath::parse(path).ok())
}

impl FileRow {
    fn into_file(self) -> Result<ArtifactFile> {
        Ok(ArtifactFile {
            path: stored_path(&self.path)?,
            digest: word("digest", &self.digest, |digest| digest.parse().ok())?,
            size_bytes: number("size of a file", self.size_bytes)?,
            blocks: self.blocks.as_deref().and_then(BlockDigests::from_bytes),
            created_at: Timestamp::from_micros(self.created_at),
            project: self.project,
        })
    }
}

#[derive(sqlx::FromRow)]
struct UploadRow {
    id: String,
    project: String,
    path: String,
    part_count: i64,
    secret_hash: String,
    created_at: i64,
    completed_at: Option<i64>,
}

impl UploadRow {
    fn into_upload(self) -> Result<Upload> {
        Ok(Upload {
            path: stored_path(&self.path)?,
            part_count: number("number of parts", self.part_count)?,
            secret_hash: word("hash of a secret", &self.secret_hash, |hash| hash.parse().ok())?,
            created_at: Timestamp::from_micros(self.created_at),
            is_complete: self.completed_at.is_some(),
            upload_id: self.id,
            project: self.project,
        })
    }
}

/// An upload that is not there.
pub(crate) fn no_upload(upload_id: &str) -> Error {
    let shown: String = upload_id.chars().take(64).flat_map(char::escape_default).collect();
    Error::not_found("upload", shown, "it was given up or is too old, begin a new one")
}

fn entries(folder: &ArtifactFolder, rows: Vec<(String, i64)>) -> Result<Vec<FolderEntry>> {
    let prefix = folder.prefix();
    let entry = |(path, size): (String, i64)| -> Result<FolderEntry> {
        let size_bytes = number("size of a file", size)?;
        Ok(FolderEntry::of_path(&prefix, &path, size_bytes))
    };
    rows.into_iter().map(entry).collect()
}

/// Where names begin in the paths of a folder, counted from 1, in characters.
fn names_begin(folder: &ArtifactFolder) -> i32 {
    i32::try_from(folder.prefix().chars().count()).map_or(i32::MAX, |count| count.saturating_add(1))
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Holds the files of a project to the end of the transaction, so that none comes between a look and a change.
    async fn hold_files(tx: &mut Transaction<<P as Pools>::Db>, project: &str) -> Result<()> {
        sqlx::query("UPDATE project SET removed_at = removed_at WHERE name = $1")
            .bind(project)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Nothing is a file and a folder at once: clients make files and folders of a disk from paths.
    async fn check_artifact_place(tx: &mut Transaction<<P as Pools>::Db>, file: &ArtifactFile) -> Result<()> {
        Self::hold_files(tx, &file.project).await?;
        let mut folders = file.path.folders().peekable();
        if folders.peek().is_some() {
            let mut query = QueryBuilder::new("SELECT path FROM artifact_file WHERE project = ");
            query.push_bind(file.project.clone()).push(" AND path IN (");
            let mut places = query.separated(", ");
            for folder in folders {
                places.push_bind(folder.to_owned());
            }
            query.push(") LIMIT 1");
            let found: Option<String> = query.build_query_scalar().fetch_optional(&mut **tx).await?;
            if let Some(found) = found {
                return Err(Error::State(format!(
                    "artifact `{}` cannot be written: `{found}` is a file and no folder, use another path or delete it first",
                    file.path
                )));
            }
        }
        let below = ArtifactFolder::from(file.path.clone());
        let found: Option<String> = sqlx::query_scalar(
            "SELECT path FROM artifact_file WHERE project = $1 AND path >= $2 AND path < $3 ORDER BY path LIMIT 1",
        )
        .bind(&file.project)
        .bind(below.prefix())
        .bind(below.end())
        .fetch_optional(&mut **tx)
        .await?;
        match found {
            None => Ok(()),
            Some(_) => Err(Error::State(format!(
                "artifact `{}` cannot be written: it is a folder, use another path or delete it first",
                file.path
            ))),
        }
    }

    async fn upsert_artifact_file(
        tx: &mut Transaction<<P as Pools>::Db>,
        file: &ArtifactFile,
        removals: i64,
        spare_bytes: u64,
    ) -> Result<()> {
        Self::check_artifact_place(tx, file).await?;
        let blob = [NamedBlob::new(file.digest, file.size_bytes)];
        Self::replace_blobs(tx, &file.project, &blob, removals, spare_bytes, file.created_at).await?;
        sqlx::query(
            "INSERT INTO artifact_file (project, path, digest, size_bytes, created_at, blocks)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (project, path) DO UPDATE
             SET digest = excluded.digest, size_bytes = excluded.size_bytes, created_at = excluded.created_at,
                 blocks = excluded.blocks",
        )
        .bind(&file.project)
        .bind(file.path.as_str())
        .bind(file.digest.to_string())
        .bind(stored("size of a file", file.size_bytes)?)
        .bind(file.created_at.as_micros())
        .bind(file.blocks.as_ref().map(BlockDigests::to_bytes))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ArtifactFileStore for SqlStore<P> {
    async fn put_artifact_file(&self, file: &ArtifactFile, removals: i64) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::upsert_artifact_file(&mut tx, file, removals, 0).await?;
        Ok(tx.commit().await?)
    }

    async fn find_artifact_file(&self, project: &str, path: &ArtifactPath) -> Result<Option<ArtifactFile>> {
        let row: Option<FileRow> = sqlx::query_as(
            "SELECT project, path, digest, size_bytes, blocks, created_at FROM artifact_file
             WHERE project = $1 AND path = $2",
        )
        .bind(project)
        .bind(path.as_str())
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(FileRow::into_file).transpose()
    }

    #[when(SqlitePools -> list_artifact_folder)]
    async fn list_artifact_folder_of_sqlite(
        &self,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FolderPlace>,
    ) -> Result<Page<FolderEntry>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(FOLDER_ENTRIES_OF_SQLITE)
            .bind(project)
            .bind(folder.start(page.after.as_ref()))
            .bind(folder.end())
            .bind(names_begin(folder))
            .bind(page.rows())
            .fetch_all(self.pools.reader())
            .await?;
        Ok(page.cut(entries(folder, rows)?, FolderEntry::place))
    }

    #[when(PostgresPools -> list_artifact_folder)]
    async fn list_artifact_folder_of_postgres(
        &self,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FolderPlace>,
    ) -> Result<Page<FolderEntry>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(FOLDER_ENTRIES_OF_POSTGRES)
            .bind(project)
            .bind(folder.start(page.after.as_ref()))
            .bind(folder.end())
            .bind(names_begin(folder))
            .bind(page.rows())
            .fetch_all(self.pools.reader())
            .await?;
        Ok(page.cut(entries(folder, rows)?, FolderEntry::place))
    }

    async fn list_artifact_files(
        &self,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FilePlace>,
    ) -> Result<Page<ArtifactFile>> {
        let prefix = folder.prefix();
        let start = page.after.as_ref().map(FilePlace::start);
        // A cursor of another folder must not lead out of this one.
        let start = start.filter(|start| *start > prefix).unwrap_or(prefix);
        let rows: Vec<FileRow> = sqlx::query_as(
            "SELECT project, path, digest, size_bytes, created_at FROM artifact_file
             WHERE project = $1 AND path >= $2 AND path < $3 ORDER BY path LIMIT $4",
        )
        .bind(project)
        .bind(start)
        .bind(folder.end())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let files = rows.into_iter().map(FileRow::into_file).collect::<Result<_>>()?;
        Ok(page.cut(files, ArtifactFile::place))
    }

    async fn delete_artifact_file(&self, project: &str, path: &ArtifactPath) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let deleted = sqlx::query("DELETE FROM artifact_file WHERE project = $1 AND path = $2")
            .bind(project)
            .bind(path.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    async fn delete_artifact_files(&self, project: &str, folder: &ArtifactFolder, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let deleted = sqlx::query(
            "DELETE FROM artifact_file WHERE project = $1 AND path >= $2 AND path < COALESCE((
                SELECT path FROM artifact_file WHERE project = $1 AND path >= $2 AND path < $3
                ORDER BY path LIMIT 1 OFFSET $4
             ), $3)",
        )
        .bind(project)
        .bind(folder.prefix())
        .bind(folder.end())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ArtifactUploadStore for SqlStore<P> {
    async fn create_upload(&self, upload: &Upload) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let open: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM artifact_upload WHERE project = $1 AND completed_at IS NULL")
                .bind(&upload.project)
                .fetch_one(&mut *tx)
                .await?;
        if open >= MAX_OPEN_UPLOADS {
            return Err(Error::State(format!(
                "project `{}` has {open} uploads in parts that are going on, as many as it may have: complete or abort some first",
                upload.project
            )));
        }
        sqlx::query(
            "INSERT INTO artifact_upload (id, project, path, part_count, secret_hash, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&upload.upload_id)
        .bind(&upload.project)
        .bind(upload.path.as_str())
        .bind(i64::from(upload.part_count))
        .bind(upload.secret_hash.to_string())
        .bind(upload.created_at.as_micros())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn find_upload(&self, upload_id: &str) -> Result<Option<Upload>> {
        let row: Option<UploadRow> = sqlx::query_as(
            "SELECT id, project, path, part_count, secret_hash, created_at, completed_at FROM artifact_upload WHERE id = $1",
        )
        .bind(upload_id)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(UploadRow::into_upload).transpose()
    }

    async fn put_part(&self, upload: &Upload, part: &UploadPart, limit_bytes: u64, arrival: Arrival) -> Result<()> {
        let upload_id = upload.upload_id.as_str();
        let mut tx = self.pools.begin().await?;
        let blob = [NamedBlob::new(part.digest, part.size_bytes)];
        Self::name_blobs(&mut tx, &upload.project, &blob, arrival.removals, arrival.now).await?;
        let others: i64 = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM artifact_part WHERE upload_id = $1 AND number <> $2",
        )
        .bind(upload_id)
        .bind(i64::from(part.number))
        .fetch_one(&mut *tx)
        .await?;
        let total: u64 = number("size of an upload", others)?;
        if total.saturating_add(part.size_bytes) > limit_bytes {
            return Err(modelyard_artifacts::Error::TooLarge { limit_bytes }.into());
        }
        let written = sqlx::query(
            "INSERT INTO artifact_part (upload_id, number, digest, size_bytes)
             SELECT id, $2, $3, $4 FROM artifact_upload WHERE id = $1 AND completed_at IS NULL
             ON CONFLICT (upload_id, number) DO UPDATE SET digest = excluded.digest, size_bytes = excluded.size_bytes",
        )
        .bind(upload_id)
        .bind(i64::from(part.number))
        .bind(part.digest.to_string())
        .bind(stored("size of a part", part.size_bytes)?)
        .execute(&mut *tx)
        .await?;
        if written.rows_affected() == 0 {
            return Err(no_upload(upload_id));
        }
        Ok(tx.commit().await?)
    }

    async fn list_parts(&self, upload_id: &str) -> Result<Vec<UploadPart>> {
        let rows: Vec<(i64, String, i64)> =
            sqlx::query_as("SELECT number, digest, size_bytes FROM artifact_part WHERE upload_id = $1 ORDER BY number")
                .bind(upload_id)
                .fetch_all(self.pools.reader())
                .await?;
        let part = |(part_number, digest, size): (i64, String, i64)| -> Result<UploadPart> {
            Ok(UploadPart {
                number: number("number of a part", part_number)?,
                digest: word("digest", &digest, |digest| digest.parse().ok())?,
                size_bytes: number("size of a part", size)?,
            })
        };
        rows.into_iter().map(part).collect()
    }

    async fn complete_upload(&self, upload_id: &str, file: &ArtifactFile, removals: i64) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        // In the order in which all others hold them: the project, what is stored of it, the upload.
        Self::hold_files(&mut tx, &file.project).await?;
        Self::hold_storage(&mut tx, &file.project).await?;
        let completed =
            sqlx::query("UPDATE artifact_upload SET completed_at = $2 WHERE id = $1 AND completed_at IS NULL")
                .bind(upload_id)
                .bind(file.created_at.as_micros())
                .execute(&mut *tx)
                .await?;
        if completed.rows_affected() == 0 {
            let found: Option<String> = sqlx::query_scalar("SELECT id FROM artifact_upload WHERE id = $1")
                .bind(upload_id)
                .fetch_optional(&mut *tx)
                .await?;
            return found.map(|_| ()).ok_or_else(|| no_upload(upload_id));
        }
        // The parts go when the file is there.
        let spare: i64 = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM artifact_part WHERE upload_id = $1",
        )
        .bind(upload_id)
        .fetch_one(&mut *tx)
        .await?;
        Self::upsert_artifact_file(&mut tx, file, removals, number("size of an upload", spare)?).await?;
        sqlx::query("DELETE FROM artifact_part WHERE upload_id = $1")
            .bind(upload_id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn abort_upload(&self, project: &str, upload_id: &str) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let deleted =
            sqlx::query("DELETE FROM artifact_upload WHERE project = $1 AND id = $2 AND completed_at IS NULL")
                .bind(project)
                .bind(upload_id)
                .execute(&mut *tx)
                .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    async fn prune_uploads(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let pruned = sqlx::query("DELETE FROM artifact_upload WHERE created_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}

#[cfg(test)]
mod tests;
