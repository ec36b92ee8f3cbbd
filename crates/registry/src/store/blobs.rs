//! The blobs of each project: how much they are, how much they may be, and their removal.
//!
//! Rows come after the blobs that they name, and a blob is removed only when no row names it. Both hold the row of the project in
//! `project_storage` to the commit, so that they happen one after the other: who names a blob finds out whether its removal
//! has begun or ended since it was stored, and who begins a removal sees every row that names the blob. A removal is counted when
//! it begins, and again when it ends: a content that is stored while the removal goes on can be gone afterwards.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_artifacts::Digest;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, audit::change, maybe, number, stored};
use crate::{
    error::{Error, Result},
    model::storage::{NamedBlob, Quota, StorageView, over_quota},
};

/// How many blobs are looked for or written with one statement.
const BLOBS_AT_ONCE: usize = 200;

/// What names blobs: a table, its column and the condition of the project. Whoever adds a table with digests of blobs adds it here,
/// and calls `name_blobs` where rows are written.
const NAMES: [&str; 8] = [
    "SELECT digest FROM artifact_file WHERE project = $1 AND digest IN (",
    "SELECT digest FROM dataset_file WHERE project = $1 AND digest IN (",
    "SELECT profile_digest FROM dataset_version WHERE project = $1 AND profile_digest IN (",
    "SELECT artifact_digest FROM model_version WHERE project = $1 AND artifact_digest IN (",
    "SELECT digest FROM model_version_file WHERE project = $1 AND digest IN (",
    "SELECT bundle_digest FROM model_version WHERE project = $1 AND bundle_digest IN (",
    "SELECT reference_profile_digest FROM model_version WHERE project = $1 AND reference_profile_digest IN (",
    "SELECT p.digest FROM artifact_part p JOIN artifact_upload u ON u.id = p.upload_id
     WHERE u.project = $1 AND p.digest IN (",
];

/// A blob that may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// How blobs are removed.
#[derive(Debug, Clone, Copy)]
pub struct Removal<'a> {
    /// The collection that removes them, if one does.
    pub collection: Option<&'a str>,
    /// Whether their project was removed, so that nobody can reach what names them.
    pub is_of_removed_project: bool,
    /// What was stored after this time stays.
    pub stored_before: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// Blobs and quotas.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// What a project has stored and may store.
    async fn storage_view(&self, project: &str) -> Result<StorageView>;
    /// Sets how much a project may store; none: as much as there is room for.
    async fn set_quota(&self, project: &str, limit_bytes: Option<u64>, event: &NewEvent) -> Result<Quota>;
    /// Counts a blob that was stored and that no row names yet.
    async fn note_blob(&self, project: &str, blob: &NamedBlob, removals: i64, now: Timestamp) -> Result<()>;
    /// Counts blobs that are in the store, whether or not there is room for them. How many were not counted yet.
    async fn adopt_blobs(&self, project: &str, blobs: &[(NamedBlob, Timestamp)]) -> Result<u64>;
    /// Whether a blob is counted.
    async fn has_blob(&self, project: &str, digest: Digest) -> Result<bool>;
    /// The first blobs after a digest, in the order of digests, that were stored at or before a time and are not being removed.
    async fn list_old_blobs(
        &self,
        project: &str,
        after: Option<Digest>,
        stored_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<OldBlob>>;
    /// Those of the blobs that no row names.
    async fn unnamed_blobs(&self, project: &str, blobs: &[OldBlob]) -> Result<Vec<OldBlob>>;
    /// The first paths of artifacts after one that have a content.
    async fn paths_of_blob(&self, project: &str, digest: Digest, after: &str, limit: u32) -> Result<Vec<String>>;
    /// Whether something else than a path of an artifact names a blob.
    async fn is_named_otherwise(&self, project: &str, digest: Digest) -> Result<bool>;
    /// Begins to remove those of the blobs that no row names, and that were not stored again since. From now on no row can name them.
    async fn begin_removal(&self, project: &str, blobs: &[OldBlob], removal: &Removal<'_>) -> Result<Vec<OldBlob>>;
    /// The removals of a project that have not ended, and that began at or before a time or in a collection.
    async fn open_removals(
        &self,
        project: &str,
        begun_before: Timestamp,
        collection: Option<&str>,
        limit: u32,
    ) -> Result<Vec<OldBlob>>;
    /// The projects with removals that began at or before a time and have not ended.
    async fn projects_with_open_removals(&self, begun_before: Timestamp) -> Result<Vec<String>>;
    /// Says that blobs are gone from the store.
    async fn end_removal(&self, project: &str, blobs: &[OldBlob], now: Timestamp) -> Result<()>;
    /// Forgets removals that ended before a time.
    async fn prune_removals(&self, before: Timestamp) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct StorageRow {
    limit_bytes: Option<i64>,
    used_bytes: i64,
    blob_count: i64,
    removals: i64,
}

impl StorageRow {
    fn into_view(self) -> Result<StorageView> {
        Ok(StorageView {
            quota: Quota {
                limit_bytes: maybe("limit of a project", self.limit_bytes)?,
                used_bytes: number("size of a project", self.used_bytes)?,
                blob_count: number("number of blobs", self.blob_count)?,
            },
            removals: self.removals,
        })
    }
}

fn old_blob((digest, size): (String, i64)) -> Result<OldBlob> {
    Ok(OldBlob {
        digest: super::word("digest", &digest, |digest| digest.parse().ok())?,
        size_bytes: number("size of a blob", size)?,
    })
}

fn old_blobs(rows: Vec<(String, i64)>) -> Result<Vec<OldBlob>> {
    rows.into_iter().map(old_blob).collect()
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Holds what is stored of a project to the end of the transaction.
    pub(super) async fn hold_storage(tx: &mut Transaction<<P as Pools>::Db>, project: &str) -> Result<StorageView> {
        let held = "UPDATE project_storage SET removals = removals WHERE project = $1
                    RETURNING limit_bytes, used_bytes, blob_count, removals";
        let row: Option<StorageRow> = sqlx::query_as(held).bind(project).fetch_optional(&mut **tx).await?;
        if let Some(row) = row {
            return row.into_view();
        }
        sqlx::query(
            "INSERT INTO project_storage (project, limit_bytes, used_bytes, blob_count, removals)
             VALUES ($1, NULL, 0, 0, 0) ON CONFLICT (project) DO NOTHING",
        )
        .bind(project)
        .execute(&mut **tx)
        .await?;
        let row: StorageRow = sqlx::query_as(held).bind(project).fetch_one(&mut **tx).await?;
        row.into_view()
    }

    /// Counts the blobs that rows of this transaction name. Refused: one was removed since `removals` were counted, or the
    /// project would have more than it may.
    pub(super) async fn name_blobs(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        blobs: &[NamedBlob],
        removals: i64,
        now: Timestamp,
    ) -> Result<()> {
        Self::replace_blobs(tx, project, blobs, removals, 0, now).await
    }

    /// The same for blobs that come in the place of others, which are about to go and have so many bytes.
    pub(super) async fn replace_blobs(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        blobs: &[NamedBlob],
        removals: i64,
        spare_bytes: u64,
        now: Timestamp,
    ) -> Result<()> {
        let view = Self::hold_storage(tx, project).await?;
        for chunk in blobs.chunks(BLOBS_AT_ONCE) {
            let mut query = QueryBuilder::new("SELECT digest FROM blob_removal WHERE project = ");
            query.push_bind(project.to_owned());
            query.push(" AND (ended_at IS NULL OR removal > ");
            query.push_bind(removals).push(") AND digest IN (");
            let mut digests = query.separated(", ");
            for blob in chunk {
                digests.push_bind(blob.digest.clone());
            }
            query.push(") LIMIT 1");
            let removed: Option<String> = query.build_query_scalar().fetch_optional(&mut **tx).await?;
            if let Some(digest) = removed {
                return Err(Error::Removed { digest });
            }
        }
        let stored_at = blobs.iter().map(|blob| (blob.clone(), now)).collect::<Vec<_>>();
        let (_, added) = Self::count_blobs(tx, project, &stored_at).await?;
        match view.quota.limit_bytes {
            Some(limit)
                if added > 0 && view.quota.used_bytes.saturating_add(added).saturating_sub(spare_bytes) > limit =>
            {
                Err(over_quota(project, limit))
            }
            _ => Ok(()),
        }
    }

    /// Adds the blobs that are not counted yet: how many, and their bytes. The storage is held.
    async fn count_blobs(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        blobs: &[(NamedBlob, Timestamp)],
    ) -> Result<(u64, u64)> {
        let (mut count, mut bytes) = (0_u64, 0_u64);
        let mut unique = std::collections::BTreeMap::new();
        for (blob, stored_at) in blobs {
            unique.insert(blob.digest.as_str(), (blob.size_bytes, stored_at.as_micros()));
        }
        let unique: Vec<_> = unique.into_iter().collect();
        for chunk in unique.chunks(BLOBS_AT_ONCE) {
            let mut rows = Vec::with_capacity(chunk.len());
            for (digest, (size, stored_at)) in chunk {
                rows.push(((*digest).to_owned(), stored("size of a blob", *size)?, *stored_at));
            }
            let mut query = QueryBuilder::new("UPDATE blob SET stored_at = ");
            let newest = rows.iter().map(|row| row.2).max().unwrap_or_default();
            query
                .push_bind(newest)
                .push(" WHERE project = ")
                .push_bind(project.to_owned());
            query
                .push(" AND stored_at < ")
                .push_bind(newest)
                .push(" AND digest IN (");
            let mut digests = query.separated(", ");
            for row in &rows {
                digests.push_bind(row.0.clone());
            }
            query.push(")");
            query.build().execute(&mut **tx).await?;
            let mut query = QueryBuilder::new("INSERT INTO blob (project, digest, size_bytes, stored_at) ");
            query.push_values(&rows, |mut row, (digest, size, stored_at)| {
                row.push_bind(project.to_owned())
                    .push_bind(digest.clone())
                    .push_bind(*size)
                    .push_bind(*stored_at);
            });
            query.push(" ON CONFLICT (project, digest) DO NOTHING RETURNING size_bytes");
            let added: Vec<i64> = query.build_query_scalar().fetch_all(&mut **tx).await?;
            for size in added {
                count += 1;
                bytes += number::<u64>("size of a blob", size)?;
            }
        }
        if count > 0 {
            sqlx::query(
                "UPDATE project_storage SET used_bytes = used_bytes + $2, blob_count = blob_count + $3 WHERE project = $1",
            )
            .bind(project)
            .bind(stored("size of blobs", bytes)?)
            .bind(stored("number of blobs", count)?)
            .execute(&mut **tx)
            .await?;
        }
        Ok((count, bytes))
    }

    /// Those of the blobs that no row names.
    async fn unnamed_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        blobs: &[OldBlob],
    ) -> Result<Vec<OldBlob>> {
        let mut unnamed = blobs.to_vec();
        for names in NAMES {
            if unnamed.is_empty() {
                break;
            }
            let mut found: Vec<String> = Vec::new();
            for chunk in unnamed.chunks(BLOBS_AT_ONCE) {
                found.extend(Self::named_by(tx, names, project, chunk).await?);
            }
            unnamed.retain(|blob| !found.contains(&blob.digest.to_string()));
        }
        Ok(unnamed)
    }

    async fn named_by(
        tx: &mut Transaction<<P as Pools>::Db>,
        names: &str,
        project: &str,
        blobs: &[OldBlob],
    ) -> Result<Vec<String>> {
        // The project is `$1`, and the digests follow it.
        let places: Vec<String> = (2..blobs.len() + 2).map(|place| format!("${place}")).collect();
        let statement = sqlx::AssertSqlSafe(format!("{names}{})", places.join(", ")));
        let mut query = sqlx::query_scalar(statement).bind(project.to_owned());
        for blob in blobs {
            query = query.bind(blob.digest.to_string());
        }
        Ok(query.fetch_all(&mut **tx).await?)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl BlobStore for SqlStore<P> {
    async fn storage_view(&self, project: &str) -> Result<StorageView> {
        let row: Option<StorageRow> = sqlx::query_as(
            "SELECT limit_bytes, used_bytes, blob_count, removals FROM project_storage WHERE project = $1",
        )
        .bind(project)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map_or_else(|| Ok(StorageView::default()), StorageRow::into_view)
    }

    async fn set_quota(&self, project: &str, limit_bytes: Option<u64>, event: &NewEvent) -> Result<Quota> {
        let mut tx = self.pools.begin().await?;
        let before = Self::hold_storage(&mut tx, project).await?.quota;
        if before.limit_bytes == limit_bytes {
            return Ok(before);
        }
        sqlx::query("UPDATE project_storage SET limit_bytes = $2 WHERE project = $1")
            .bind(project)
            .bind(limit_bytes.map(|limit| stored("quota", limit)).transpose()?)
            .execute(&mut *tx)
            .await?;
        let now = Quota { limit_bytes, ..before };
        let mut event = change(event, &before.limit_bytes, &limit_bytes)?;
        if let Some(limit) = limit_bytes {
            event.add_detail("limit_bytes", stored("quota", limit)?);
        }
        Self::append_audit(&mut tx, &event).await?;
        tx.commit().await?;
        Ok(now)
    }

    async fn note_blob(&self, project: &str, blob: &NamedBlob, removals: i64, now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::name_blobs(&mut tx, project, std::slice::from_ref(blob), removals, now).await?;
        Ok(tx.commit().await?)
    }

    async fn adopt_blobs(&self, project: &str, blobs: &[(NamedBlob, Timestamp)]) -> Result<u64> {
        let mut known = std::collections::BTreeSet::new();
        for chunk in blobs.chunks(BLOBS_AT_ONCE) {
            let mut query = QueryBuilder::new("SELECT digest FROM blob WHERE project = ");
            query.push_bind(project.to_owned()).push(" AND digest IN (");
            let mut digests = query.separated(", ");
            for (blob, _) in chunk {
                digests.push_bind(blob.digest.clone());
            }
            query.push(")");
            let found: Vec<String> = query.build_query_scalar().fetch_all(self.pools.reader()).await?;
            known.extend(found);
        }
        let unknown: Vec<_> = blobs
            .iter()
            .filter(|(blob, _)| !known.contains(&blob.digest))
            .cloned()
            .collect();
        if unknown.is_empty() {
            return Ok(0);
        }
        let mut tx = self.pools.begin().await?;
        Self::hold_storage(&mut tx, project).await?;
        let (count, _) = Self::count_blobs(&mut tx, project, &unknown).await?;
        tx.commit().await?;
        Ok(count)
    }

    async fn has_blob(&self, project: &str, digest: Digest) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar("SELECT size_bytes FROM blob WHERE project = $1 AND digest = $2")
            .bind(project)
            .bind(digest.to_string())
            .fetch_optional(self.pools.reader())
            .await?;
        Ok(found.is_some())
    }

    async fn list_old_blobs(
        &self,
        project: &str,
        after: Option<Digest>,
        stored_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<OldBlob>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT b.digest, b.size_bytes FROM blob b
             WHERE b.project = $1 AND b.digest > $2 AND b.stored_at <= $3 AND NOT EXISTS (
                 SELECT 1 FROM blob_removal r WHERE r.project = b.project AND r.digest = b.digest AND r.ended_at IS NULL
             ) ORDER BY b.digest LIMIT $4",
        )
        .bind(project)
        .bind(after.map(|digest| digest.to_string()).unwrap_or_default())
        .bind(stored_before.as_micros())
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        old_blobs(rows)
    }

    async fn unnamed_blobs(&self, project: &str, blobs: &[OldBlob]) -> Result<Vec<OldBlob>> {
        let mut tx = self.pools.snapshot().await?;
        let unnamed = Self::unnamed_in(&mut tx, project, blobs).await?;
        tx.rollback().await?;
        Ok(unnamed)
    }

    async fn paths_of_blob(&self, project: &str, digest: Digest, after: &str, limit: u32) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "SELECT path FROM artifact_file WHERE project = $1 AND digest = $2 AND path > $3 ORDER BY path LIMIT $4",
        );
        Ok(query
            .bind(project)
            .bind(digest.to_string())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(self.pools.reader())
            .await?)
    }

    async fn is_named_otherwise(&self, project: &str, digest: Digest) -> Result<bool> {
        let mut tx = self.pools.snapshot().await?;
        let blob = [OldBlob { digest, size_bytes: 0 }];
        let mut is_named = false;
        for names in NAMES.into_iter().skip(1) {
            if !Self::named_by(&mut tx, names, project, &blob).await?.is_empty() {
                is_named = true;
                break;
            }
        }
        tx.rollback().await?;
        Ok(is_named)
    }

    async fn begin_removal(&self, project: &str, blobs: &[OldBlob], removal: &Removal<'_>) -> Result<Vec<OldBlob>> {
        let mut tx = self.pools.begin().await?;
        let view = Self::hold_storage(&mut tx, project).await?;
        let unnamed = if removal.is_of_removed_project {
            blobs.to_vec()
        } else {
            Self::unnamed_in(&mut tx, project, blobs).await?
        };
        let mut begun = Vec::with_capacity(unnamed.len());
        let mut number = view.removals;
        for blob in unnamed {
            let inserted = sqlx::query(
                "INSERT INTO blob_removal (project, removal, digest, size_bytes, begun_at, collection_id)
                 SELECT b.project, $3, b.digest, b.size_bytes, $4, $6 FROM blob b
                 WHERE b.project = $1 AND b.digest = $2 AND b.stored_at <= $5 AND NOT EXISTS (
                     SELECT 1 FROM blob_removal r WHERE r.project = $1 AND r.digest = $2 AND r.ended_at IS NULL
                 )",
            )
            .bind(project)
            .bind(blob.digest.to_string())
            .bind(number + 1)
            .bind(removal.now.as_micros())
            .bind(removal.stored_before.as_micros())
            .bind(removal.collection)
            .execute(&mut *tx)
            .await?;
            if inserted.rows_affected() > 0 {
                number += 1;
                begun.push(blob);
            }
        }
        sqlx::query("UPDATE project_storage SET removals = $2 WHERE project = $1")
            .bind(project)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(begun)
    }

    async fn open_removals(
        &self,
        project: &str,
        begun_before: Timestamp,
        collection: Option<&str>,
        limit: u32,
    ) -> Result<Vec<OldBlob>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size_bytes FROM blob_removal
             WHERE project = $1 AND ended_at IS NULL AND (begun_at <= $2 OR collection_id = $3) ORDER BY digest LIMIT $4",
        )
        .bind(project)
        .bind(begun_before.as_micros())
        .bind(collection)
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        old_blobs(rows)
    }

    async fn projects_with_open_removals(&self, begun_before: Timestamp) -> Result<Vec<String>> {
        let query =
            sqlx::query_scalar("SELECT DISTINCT project FROM blob_removal WHERE ended_at IS NULL AND begun_at <= $1");
        Ok(query
            .bind(begun_before.as_micros())
            .fetch_all(self.pools.reader())
            .await?)
    }

    async fn end_removal(&self, project: &str, blobs: &[OldBlob], now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::end_removal_in(&mut tx, project, blobs, now).await?;
        Ok(tx.commit().await?)
    }

    async fn prune_removals(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let pruned = sqlx::query("DELETE FROM blob_removal WHERE ended_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Takes blobs that are gone from the store out of the account, those whose removal had not ended. Each
    /// removal gets the next number, so that it is after all that was counted while it went on.
    pub(super) async fn end_removal_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        blobs: &[OldBlob],
        now: Timestamp,
    ) -> Result<Vec<OldBlob>> {
        let mut ended = Vec::with_capacity(blobs.len());
        let (mut count, mut bytes) = (0_i64, 0_i64);
        let mut removal = Self::hold_storage(tx, project).await?.removals;
        for blob in blobs {
            let digest = blob.digest.to_string();
            let closed = sqlx::query(
                "UPDATE blob_removal SET ended_at = $3, removal = $4
                 WHERE project = $1 AND digest = $2 AND ended_at IS NULL",
            )
            .bind(project)
            .bind(&digest)
            .bind(now.as_micros())
            .bind(removal + 1)
            .execute(&mut **tx)
            .await?;
            if closed.rows_affected() == 0 {
                continue;
            }
            removal += 1;
            let size: Option<i64> =
                sqlx::query_scalar("DELETE FROM blob WHERE project = $1 AND digest = $2 RETURNING size_bytes")
                    .bind(project)
                    .bind(&digest)
                    .fetch_optional(&mut **tx)
                    .await?;
            if let Some(size) = size {
                count += 1;
                bytes += size;
            }
            ended.push(*blob);
        }
        sqlx::query(
            "UPDATE project_storage SET used_bytes = used_bytes - $2, blob_count = blob_count - $3, removals = $4
             WHERE project = $1",
        )
        .bind(project)
        .bind(bytes)
        .bind(count)
        .bind(removal)
        .execute(&mut **tx)
        .await?;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests;
