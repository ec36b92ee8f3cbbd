//! The steps in which a collection frees what was deleted.
//!
//! A run or logged model is taken away in one step: its row goes to a project that nobody can name, so that it is not there any
//! more for anybody. What it logged, and the paths of its artifacts, go afterwards, some rows in each transaction. Which of them
//! stay because a model version refers to them is decided while the storage of the project is held, as whoever makes a
//! version holds it.
//!
//! Whoever adds things that belong to an experiment adds a step for them before that of the experiments, which only takes
//! experiments that nothing belongs to any more.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    collections::{FoundObject, Step},
    number,
    run_rows::artifact_uri,
};
use crate::{
    error::{Error, Result},
    model::{
        artifact_file::ArtifactFolder,
        collection::{CollectedOutcome, Freed, own_folder, words_of},
        tracking::PROXY_SCHEME,
    },
};

/// How many runs or logged models are taken away in one transaction.
pub const OBJECTS_AT_ONCE: u32 = 100;
/// How many rows of metrics or paths go in one transaction.
pub const ROWS_AT_ONCE: u32 = 5000;
/// How many versions are looked at with one statement.
const VERSIONS_AT_ONCE: usize = 2000;
/// Where taken runs and logged models are until their last row is gone. No project can have this name.
pub(super) const COLLECTED: &str = ".collected";

/// The steps of a collection.
#[async_trait]
pub trait CollectorStore: Send + Sync {
    /// Takes away deleted runs after one, in the order of ids; the last that was looked at, or none at the end.
    async fn take_runs(&self, step: &Step<'_>, after: &str) -> Result<Option<String>>;
    /// Takes away deleted logged models after one, in the order of ids; the last that was looked at, or none at the end.
    async fn take_logged_models(&self, step: &Step<'_>, after: &str) -> Result<Option<String>>;
    /// Removes some of what taken runs and logged models logged; whether there may be more.
    async fn remove_remains(&self, step: &Step<'_>) -> Result<bool>;
    /// Forgets some paths of artifacts of what was taken; whether there may be more.
    async fn remove_files(&self, step: &Step<'_>) -> Result<bool>;
    /// Removes some traces of the deleted experiments; whether there may be more. A dry run counts them.
    async fn remove_traces(&self, step: &Step<'_>) -> Result<bool>;
    /// Looks at the first deleted experiment after one, and removes it if nothing belongs to it. It, or none at the end.
    async fn take_experiment(&self, step: &Step<'_>, after: i64) -> Result<Option<i64>>;
    /// Gives up some uploads in parts that began before the time from which content is kept; whether there may be more.
    async fn remove_uploads(&self, step: &Step<'_>, after: &str) -> Result<Option<String>>;
}

/// A run or logged model that may go.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Candidate {
    id: String,
    experiment_id: i64,
    artifact_location: String,
}

/// What a version says of where it comes from.
#[derive(sqlx::FromRow)]
struct OriginRow {
    model: String,
    version: i64,
    run_id: Option<String>,
    source_run_id: Option<String>,
    model_id: Option<String>,
    source: String,
    storage_location: String,
}

/// The URI of the artifacts of a run or logged model.
fn uri_of(kind: Freed, candidate: &Candidate) -> String {
    if kind == Freed::Run {
        return artifact_uri(&candidate.artifact_location, candidate.experiment_id, &candidate.id);
    }
    let root = if candidate.artifact_location.is_empty() {
        format!("{PROXY_SCHEME}{}", candidate.experiment_id)
    } else {
        candidate.artifact_location.trim_end_matches('/').to_owned()
    };
    format!("{root}/models/{}/artifacts", candidate.id)
}

pub(super) fn kept(kind: Freed, id: String, reason: String) -> FoundObject {
    FoundObject {
        kind,
        id,
        outcome: CollectedOutcome::Kept,
        size_bytes: 0,
        folder: None,
        reason: Some(reason),
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Who refers to which of these: model versions by id or by where their files are, and experiments whose artifacts are below
    /// theirs. The storage of the project is held.
    async fn references_to(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        candidates: &[Candidate],
    ) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        if candidates.is_empty() {
            return Ok(found);
        }
        let is_candidate = |id: &str| candidates.iter().any(|candidate| candidate.id == id);
        let mut after = (String::new(), 0_i64);
        loop {
            let rows: Vec<OriginRow> = sqlx::query_as(
                "SELECT model, version, run_id, source_run_id, model_id, source, storage_location FROM model_version
                 WHERE project = $1 AND (model > $2 OR (model = $2 AND version > $3)) ORDER BY model, version LIMIT $4",
            )
            .bind(project)
            .bind(&after.0)
            .bind(after.1)
            .bind(VERSIONS_AT_ONCE as i64)
            .fetch_all(&mut **tx)
            .await?;
            let count = rows.len();
            if let Some(last) = rows.last() {
                after = (last.model.clone(), last.version);
            }
            for row in rows {
                let mut words = words_of(&row.source);
                words.extend(words_of(&row.storage_location));
                words.extend([row.run_id, row.source_run_id, row.model_id].into_iter().flatten());
                for id in words.into_iter().filter(|id| is_candidate(id)) {
                    let by = format!("model version {}/{} was made from it", row.model, row.version);
                    found.entry(id).or_insert(by);
                }
            }
            if count < VERSIONS_AT_ONCE {
                break;
            }
        }
        let locations: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, artifact_location FROM experiment WHERE project = $1 AND artifact_location <> ''",
        )
        .bind(project)
        .fetch_all(&mut **tx)
        .await?;
        for (experiment, location) in locations {
            for id in words_of(&location).into_iter().filter(|id| is_candidate(id)) {
                let by = format!("experiment {experiment} keeps its artifacts below it");
                found.entry(id).or_insert(by);
            }
        }
        Ok(found)
    }

    /// The deleted runs or logged models that are meant, after one.
    async fn candidates(
        tx: &mut Transaction<<P as Pools>::Db>,
        kind: Freed,
        step: &Step<'_>,
        after: &str,
    ) -> Result<Vec<Candidate>> {
        let plan = step.plan;
        let before = plan.deleted_before.as_micros();
        let (select, named) = if kind == Freed::Run {
            (
                "SELECT o.id, o.experiment_id, e.artifact_location FROM run o JOIN experiment e ON e.id = o.experiment_id
                 WHERE o.lifecycle = 'deleted' AND COALESCE(o.deleted_at, 0) <= ",
                &plan.run_ids,
            )
        } else {
            (
                "SELECT o.id, o.experiment_id, e.artifact_location FROM logged_model o
                 JOIN experiment e ON e.id = o.experiment_id
                 WHERE CASE WHEN o.lifecycle = 'deleted' THEN o.updated_at
                            WHEN e.lifecycle = 'deleted' THEN e.updated_at END <= ",
                &plan.logged_model_ids,
            )
        };
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(select);
        query
            .push_bind(before)
            .push(" AND o.project = ")
            .push_bind(step.claim.project.clone());
        query.push(" AND o.id > ").push_bind(after.to_owned());
        if !plan.is_for_all() {
            // Nothing has an empty id.
            query.push(" AND (o.id IN (''");
            for id in named {
                query.push(", ").push_bind(id.clone());
            }
            query.push(") OR (e.lifecycle = 'deleted' AND o.experiment_id IN (-1");
            for id in &plan.experiment_ids {
                query.push(", ").push_bind(*id);
            }
            query.push(")))");
        }
        query
            .push(" ORDER BY o.id LIMIT ")
            .push_bind(i64::from(OBJECTS_AT_ONCE));
        Ok(query.build_query_as().fetch_all(&mut **tx).await?)
    }

    /// How many files are in a folder, and their bytes: all of them, or the first ones.
    async fn measure_files(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        folder: &ArtifactFolder,
        end: &str,
    ) -> Result<(u64, u64)> {
        let (count, bytes): (i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM artifact_file
             WHERE project = $1 AND path >= $2 AND path < $3",
        )
        .bind(project)
        .bind(folder.prefix())
        .bind(end)
        .fetch_one(&mut **tx)
        .await?;
        Ok((number("number of files", count)?, number("size of files", bytes)?))
    }

    /// Forgets the first files of a folder; how many. They are counted.
    async fn take_files(
        tx: &mut Transaction<<P as Pools>::Db>,
        step: &Step<'_>,
        folder: &ArtifactFolder,
    ) -> Result<u64> {
        let project = step.claim.project.as_str();
        let next: Option<String> = sqlx::query_scalar(
            "SELECT path FROM artifact_file WHERE project = $1 AND path >= $2 AND path < $3 ORDER BY path LIMIT 1 OFFSET $4",
        )
        .bind(project)
        .bind(folder.prefix())
        .bind(folder.end())
        .bind(i64::from(ROWS_AT_ONCE))
        .fetch_optional(&mut **tx)
        .await?;
        let end = next.unwrap_or_else(|| folder.end());
        let (count, bytes) = Self::measure_files(tx, project, folder, &end).await?;
        sqlx::query("DELETE FROM artifact_file WHERE project = $1 AND path >= $2 AND path < $3")
            .bind(project)
            .bind(folder.prefix())
            .bind(&end)
            .execute(&mut **tx)
            .await?;
        Self::add_count(tx, step, Freed::File, count, bytes).await?;
        Ok(count)
    }

    /// Takes away what nothing refers to, and writes down what becomes of each.
    async fn take(
        tx: &mut Transaction<<P as Pools>::Db>,
        kind: Freed,
        step: &Step<'_>,
        candidates: &[Candidate],
    ) -> Result<()> {
        let project = step.claim.project.as_str();
        let references = Self::references_to(tx, project, candidates).await?;
        let mut objects = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            if let Some(reason) = references.get(&candidate.id) {
                objects.push(kept(kind, candidate.id.clone(), reason.clone()));
                continue;
            }
            let uri = uri_of(kind, candidate);
            let folder = own_folder(&uri);
            let reason = match folder {
                None => Some(format!(
                    "its artifacts are at {uri}, which is not in this server's store: remove them there"
                )),
                Some(_) => None,
            };
            let outcome = if step.plan.dry_run {
                CollectedOutcome::WouldBeFreed
            } else {
                if !Self::move_away(tx, kind, step, candidate).await? {
                    continue;
                }
                CollectedOutcome::Freeing
            };
            if step.plan.dry_run {
                Self::count_contents(tx, kind, step, candidate, folder.as_ref()).await?;
            }
            objects.push(FoundObject {
                kind,
                id: candidate.id.clone(),
                outcome,
                size_bytes: 0,
                folder: folder.map(|folder| folder.name().to_owned()),
                reason,
            });
        }
        Self::insert_objects(tx, step, &objects).await
    }

    /// Takes a run or logged model away, unless it was restored meanwhile.
    async fn move_away(
        tx: &mut Transaction<<P as Pools>::Db>,
        kind: Freed,
        step: &Step<'_>,
        candidate: &Candidate,
    ) -> Result<bool> {
        let statement = if kind == Freed::Run {
            "UPDATE run SET project = $3, idempotency_key = NULL
             WHERE id = $1 AND project = $2 AND lifecycle = 'deleted' AND COALESCE(deleted_at, 0) <= $4"
        } else {
            "UPDATE logged_model SET project = $3
             WHERE id = $1 AND project = $2 AND CASE WHEN lifecycle = 'deleted' THEN updated_at ELSE (
                 SELECT e.updated_at FROM experiment e WHERE e.id = logged_model.experiment_id AND e.lifecycle = 'deleted'
             ) END <= $4"
        };
        let moved = sqlx::query(statement)
            .bind(&candidate.id)
            .bind(&step.claim.project)
            .bind(COLLECTED)
            .bind(step.plan.deleted_before.as_micros())
            .execute(&mut **tx)
            .await?;
        Ok(moved.rows_affected() > 0)
    }

    /// Counts what would go with a run or logged model.
    async fn count_contents(
        tx: &mut Transaction<<P as Pools>::Db>,
        kind: Freed,
        step: &Step<'_>,
        candidate: &Candidate,
        folder: Option<&ArtifactFolder>,
    ) -> Result<()> {
        let statement = if kind == Freed::Run {
            "SELECT COUNT(*) FROM run_metric m JOIN run_metric_point p ON p.series_id = m.id WHERE m.run_id = $1"
        } else {
            "SELECT COUNT(*) FROM logged_model_metric WHERE model_id = $1"
        };
        let metrics: i64 = sqlx::query_scalar(statement)
            .bind(&candidate.id)
            .fetch_one(&mut **tx)
            .await?;
        Self::add_count(tx, step, Freed::Metric, number("number of metrics", metrics)?, 0).await?;
        if let Some(folder) = folder {
            let (count, bytes) = Self::measure_files(tx, &step.claim.project, folder, &folder.end()).await?;
            Self::add_count(tx, step, Freed::File, count, bytes).await?;
        }
        Ok(())
    }

    async fn take_some(&self, kind: Freed, step: &Step<'_>, after: &str) -> Result<Option<String>> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::hold_storage(&mut tx, &step.claim.project).await?;
        Self::hold_experiments(&mut tx).await?;
        let candidates = Self::candidates(&mut tx, kind, step, after).await?;
        Self::take(&mut tx, kind, step, &candidates).await?;
        tx.commit().await?;
        Ok(candidates.last().map(|last| last.id.clone()))
    }

    /// Removes some metrics of something that was taken; whether there may be more.
    async fn remove_metrics(
        tx: &mut Transaction<<P as Pools>::Db>,
        step: &Step<'_>,
        kind: Freed,
        id: &str,
    ) -> Result<bool> {
        let statement = if kind == Freed::Run {
            "DELETE FROM run_metric_point WHERE (series_id, step, timestamp, value, is_nan) IN (
                 SELECT p.series_id, p.step, p.timestamp, p.value, p.is_nan
                 FROM run_metric m JOIN run_metric_point p ON p.series_id = m.id WHERE m.run_id = $1 LIMIT $2)"
        } else {
            "DELETE FROM logged_model_metric WHERE model_id = $1
             AND (model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value, is_nan) IN (
                 SELECT model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value, is_nan
                 FROM logged_model_metric WHERE model_id = $1 LIMIT $2)"
        };
        let removed = sqlx::query(statement)
            .bind(id)
            .bind(i64::from(ROWS_AT_ONCE))
            .execute(&mut **tx)
            .await?
            .rows_affected();
        Self::add_count(tx, step, Freed::Metric, removed, 0).await?;
        Ok(removed >= u64::from(ROWS_AT_ONCE))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl CollectorStore for SqlStore<P> {
    async fn take_runs(&self, step: &Step<'_>, after: &str) -> Result<Option<String>> {
        self.take_some(Freed::Run, step, after).await
    }

    async fn take_logged_models(&self, step: &Step<'_>, after: &str) -> Result<Option<String>> {
        self.take_some(Freed::LoggedModel, step, after).await
    }

    async fn remove_remains(&self, step: &Step<'_>) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        // A run that a version names stays as long as the version does, and holds up nothing else.
        for (kind, find, remove) in [
            (
                Freed::Run,
                "SELECT id FROM run WHERE project = $1 AND NOT EXISTS (
                     SELECT 1 FROM model_version v WHERE v.run_id = run.id
                 ) ORDER BY id LIMIT 1",
                "DELETE FROM run WHERE project = $1 AND id = $2",
            ),
            (
                Freed::LoggedModel,
                "SELECT id FROM logged_model WHERE project = $1 ORDER BY id LIMIT 1",
                "DELETE FROM logged_model WHERE project = $1 AND id = $2",
            ),
        ] {
            for _ in 0..OBJECTS_AT_ONCE {
                let id: Option<String> = sqlx::query_scalar(find)
                    .bind(COLLECTED)
                    .fetch_optional(&mut *tx)
                    .await?;
                let Some(id) = id else {
                    break;
                };
                if Self::remove_metrics(&mut tx, step, kind, &id).await? {
                    tx.commit().await?;
                    return Ok(true);
                }
                sqlx::query(remove).bind(COLLECTED).bind(&id).execute(&mut *tx).await?;
            }
        }
        let left: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM run WHERE project = $1 AND NOT EXISTS (
                         SELECT 1 FROM model_version v WHERE v.run_id = run.id
                     )) + (SELECT COUNT(*) FROM logged_model WHERE project = $1)",
        )
        .bind(COLLECTED)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(left > 0)
    }

    async fn remove_files(&self, step: &Step<'_>) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::hold_storage(&mut tx, &step.claim.project).await?;
        let freeing: Vec<(String, String, Option<String>)> = sqlx::query_as(
            "SELECT kind, id, folder FROM collected_object WHERE collection_id = $1 AND outcome = 'freeing' LIMIT $2",
        )
        .bind(&step.claim.id)
        .bind(i64::from(OBJECTS_AT_ONCE))
        .fetch_all(&mut *tx)
        .await?;
        let mut rows = 0;
        for (kind, id, folder) in &freeing {
            let is_done = match folder {
                None => true,
                Some(folder) => {
                    let taken = Self::take_files(&mut tx, step, &ArtifactFolder::parse(folder)?).await?;
                    rows += taken;
                    taken < u64::from(ROWS_AT_ONCE)
                }
            };
            if is_done {
                sqlx::query(
                    "UPDATE collected_object SET outcome = 'freed' WHERE collection_id = $1 AND kind = $2 AND id = $3",
                )
                .bind(&step.claim.id)
                .bind(kind)
                .bind(id)
                .execute(&mut *tx)
                .await?;
            }
            if rows >= u64::from(ROWS_AT_ONCE) {
                break;
            }
        }
        tx.commit().await?;
        Ok(!freeing.is_empty())
    }

    async fn remove_traces(&self, step: &Step<'_>) -> Result<bool> {
        self.take_traces(step).await
    }

    async fn take_experiment(&self, step: &Step<'_>, after: i64) -> Result<Option<i64>> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new("SELECT id, artifact_location FROM experiment WHERE ");
        Self::push_deleted_experiments(&mut query, step);
        query.push(" AND id > ").push_bind(after).push(" ORDER BY id LIMIT 1");
        let found: Option<(i64, String)> = query.build_query_as().fetch_optional(self.pools.reader()).await?;
        let Some((id, location)) = found else {
            return Ok(None);
        };
        let object = match self.remove_experiment(step, id, &location).await {
            Ok(object) => object,
            // Something belongs to it that no step takes away.
            Err(Error::Database(modelyard_db::Error::Reference { .. })) => kept(
                Freed::Experiment,
                id.to_string(),
                "something that belongs to it stays".to_owned(),
            ),
            Err(error) => return Err(error),
        };
        if object.outcome != CollectedOutcome::Freeing {
            let mut tx = self.pools.begin().await?;
            Self::hold_claim(&mut tx, step).await?;
            Self::insert_objects(&mut tx, step, &[object]).await?;
            tx.commit().await?;
        }
        Ok(Some(id))
    }

    async fn remove_uploads(&self, step: &Step<'_>, after: &str) -> Result<Option<String>> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::hold_storage(&mut tx, &step.claim.project).await?;
        let old: Vec<(String, i64)> = sqlx::query_as(
            "SELECT u.id, CAST(COALESCE((SELECT SUM(p.size_bytes) FROM artifact_part p WHERE p.upload_id = u.id), 0) AS BIGINT)
             FROM artifact_upload u
             WHERE u.project = $1 AND u.id > $2 AND u.completed_at IS NULL AND u.created_at <= $3 ORDER BY u.id LIMIT $4",
        )
        .bind(&step.claim.project)
        .bind(after)
        .bind(step.plan.stored_before.as_micros())
        .bind(i64::from(OBJECTS_AT_ONCE))
        .fetch_all(&mut *tx)
        .await?;
        let mut objects = Vec::with_capacity(old.len());
        for (id, size) in &old {
            let outcome = if step.plan.dry_run {
                CollectedOutcome::WouldBeFreed
            } else {
                sqlx::query("DELETE FROM artifact_upload WHERE project = $1 AND id = $2 AND completed_at IS NULL")
                    .bind(&step.claim.project)
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
                CollectedOutcome::Freed
            };
            objects.push(FoundObject {
                kind: Freed::Upload,
                id: id.clone(),
                outcome,
                size_bytes: number("size of an upload", *size)?,
                folder: None,
                reason: None,
            });
        }
        Self::insert_objects(&mut tx, step, &objects).await?;
        tx.commit().await?;
        Ok(old.last().map(|(id, _)| id.clone()))
    }
}

#[cfg(test)]
mod tests;
