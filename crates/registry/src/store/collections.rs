//! Collections: what was asked for, how far they are, and the list of what they freed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, audit::with_detail, blobs::OldBlob, json, number, stored, to_json, word};
use crate::{
    error::{Error, Result},
    model::{
        collection::{
            Claim, CollectedObject, CollectedOutcome, Collection, CollectionCount, CollectionPlan, CollectionState,
            Freed, NewCollection, Phase,
        },
        page::{Page, PageRequest},
    },
};

/// How many objects are inserted with one statement.
const INSERTED_OBJECTS: usize = 100;

/// What one step of a collection works with.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The collection.
    pub claim: &'a Claim,
    /// What is meant.
    pub plan: &'a CollectionPlan,
    /// Now.
    pub now: Timestamp,
    /// Until when no other process takes it up.
    pub lease_until: Timestamp,
}

/// How a collection ends.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// With a list of this digest.
    Finished(&'a str),
    /// It gives up.
    Failed(&'a str),
}

/// An object of a collection, as a step finds it.
#[derive(Debug, Clone)]
pub struct FoundObject {
    /// What it is.
    pub kind: Freed,
    /// Its id.
    pub id: String,
    /// What becomes of it.
    pub outcome: CollectedOutcome,
    /// The bytes that it took.
    pub size_bytes: u64,
    /// Below which its files are.
    pub folder: Option<String>,
    /// Why it stays, or what is left of it.
    pub reason: Option<String>,
}

/// The records of collections.
#[async_trait]
pub trait CollectionStore: Send + Sync {
    /// Starts a collection, if none of the project is running.
    async fn start_collection(&self, new: &NewCollection) -> Result<Collection>;
    /// A collection.
    async fn find_collection(&self, project: &str, id: &str) -> Result<Option<Collection>>;
    /// The collections of a project, the newest first.
    async fn list_collections(&self, project: &str, page: &PageRequest<String>) -> Result<Page<Collection>>;
    /// The objects of a collection by kind and id: all, or those with an outcome. The place of an object is `KIND ID`.
    async fn list_collected(
        &self,
        project: &str,
        id: &str,
        outcome: Option<CollectedOutcome>,
        page: &PageRequest<String>,
    ) -> Result<Page<CollectedObject>>;
    /// Takes up a collection that runs and that nobody works at, or this node did.
    async fn claim_collection(&self, node: &str, now: Timestamp, lease_until: Timestamp) -> Result<Option<Claim>>;
    /// Goes on with a collection for a while, if no other process took it up.
    async fn extend_claim(&self, step: &Step<'_>) -> Result<()>;
    /// Forgets what a dry run found, so that it begins again.
    async fn restart_dry_run(&self, step: &Step<'_>) -> Result<()>;
    /// Writes down what was found, and counts it.
    async fn record_objects(&self, step: &Step<'_>, objects: &[FoundObject]) -> Result<()>;
    /// Takes blobs that are gone from the store out of the account, and writes them down.
    async fn record_removed(&self, step: &Step<'_>, blobs: &[OldBlob]) -> Result<()>;
    /// Goes on to a phase.
    async fn enter_phase(&self, step: &Step<'_>, phase: Phase) -> Result<()>;
    /// Leaves a collection for later.
    async fn postpone_collection(&self, step: &Step<'_>, error: &str, until: Timestamp) -> Result<()>;
    /// Ends a collection.
    async fn end_collection(&self, step: &Step<'_>, ending: Ending<'_>, event: &NewEvent) -> Result<()>;
    /// The folders whose files a dry run would forget.
    async fn planned_folders(&self, collection_id: &str) -> Result<Vec<String>>;
    /// Forgets collections that ended before a time.
    async fn prune_collections(&self, before: Timestamp) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct CollectionRow {
    id: String,
    project: String,
    state: String,
    phase: String,
    request: String,
    started_by: String,
    started_at: i64,
    updated_at: i64,
    finished_at: Option<i64>,
    error: Option<String>,
    list_digest: Option<String>,
    kept: i64,
}

/// The columns of [`CollectionRow`].
macro_rules! select_collections {
    ($rest:literal) => {
        concat!(
            "SELECT c.id, c.project, c.state, c.phase, c.request, c.started_by, c.started_at, c.updated_at, c.finished_at,
                    c.error, c.list_digest, (
                        SELECT COUNT(*) FROM collected_object o WHERE o.collection_id = c.id AND o.outcome = 'kept'
                    ) AS kept
             FROM collection c ",
            $rest
        )
    };
}

impl CollectionRow {
    fn into_collection(self) -> Result<Collection> {
        Ok(Collection {
            state: word("state of a collection", &self.state, CollectionState::parse)?,
            phase: self.phase,
            request: json("request of a collection", &self.request)?,
            started_by: self.started_by,
            started_at: Timestamp::from_micros(self.started_at),
            updated_at: Timestamp::from_micros(self.updated_at),
            finished_at: self.finished_at.map(Timestamp::from_micros),
            error: self.error,
            freed: Vec::new(),
            kept: number("number of objects", self.kept)?,
            list_digest: self.list_digest,
            id: self.id,
            project: self.project,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ClaimRow {
    id: String,
    project: String,
    phase: String,
    request: String,
    started_at: i64,
    event: String,
    attempt: i64,
}

#[derive(sqlx::FromRow)]
struct ObjectRow {
    kind: String,
    id: String,
    outcome: String,
    size_bytes: i64,
    reason: Option<String>,
}

impl ObjectRow {
    fn into_object(self) -> Result<CollectedObject> {
        Ok(CollectedObject {
            outcome: word("outcome", &self.outcome, CollectedOutcome::parse)?,
            size_bytes: number("size of an object", self.size_bytes)?,
            kind: self.kind,
            id: self.id,
            reason: self.reason,
        })
    }
}

/// The place of an object in its list.
pub(crate) fn object_place(object: &CollectedObject) -> String {
    format!("{} {}", object.kind, object.id)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Goes on with a collection, if no other process took it up.
    pub(super) async fn hold_claim(tx: &mut Transaction<<P as Pools>::Db>, step: &Step<'_>) -> Result<()> {
        let held = sqlx::query(
            "UPDATE collection SET updated_at = $3, lease_until = $4
             WHERE id = $1 AND attempt = $2 AND state = 'running'",
        )
        .bind(&step.claim.id)
        .bind(step.claim.attempt)
        .bind(step.now.as_micros())
        .bind(step.lease_until.as_micros())
        .execute(&mut **tx)
        .await?;
        if held.rows_affected() == 0 {
            return Err(Error::Contended {
                what: "collection",
                name: step.claim.id.clone(),
            });
        }
        Ok(())
    }

    /// Counts what was freed.
    pub(super) async fn add_count(
        tx: &mut Transaction<<P as Pools>::Db>,
        step: &Step<'_>,
        kind: Freed,
        amount: u64,
        size_bytes: u64,
    ) -> Result<()> {
        if amount == 0 {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO collection_count (collection_id, kind, amount, size_bytes) VALUES ($1, $2, $3, $4)
             ON CONFLICT (collection_id, kind) DO UPDATE
             SET amount = collection_count.amount + excluded.amount,
                 size_bytes = collection_count.size_bytes + excluded.size_bytes",
        )
        .bind(&step.claim.id)
        .bind(kind.as_str())
        .bind(stored("number of objects", amount)?)
        .bind(stored("size of objects", size_bytes)?)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Writes objects down, and counts those that do not stay.
    pub(super) async fn insert_objects(
        tx: &mut Transaction<<P as Pools>::Db>,
        step: &Step<'_>,
        objects: &[FoundObject],
    ) -> Result<()> {
        for chunk in objects.chunks(INSERTED_OBJECTS) {
            let mut sizes = Vec::with_capacity(chunk.len());
            for object in chunk {
                sizes.push((object, stored("size of an object", object.size_bytes)?));
            }
            let mut query = QueryBuilder::new(
                "INSERT INTO collected_object (collection_id, kind, id, outcome, size_bytes, folder, reason) ",
            );
            query.push_values(sizes, |mut row, (object, size)| {
                row.push_bind(step.claim.id.clone())
                    .push_bind(object.kind.as_str())
                    .push_bind(object.id.clone())
                    .push_bind(object.outcome.as_str())
                    .push_bind(size)
                    .push_bind(object.folder.clone())
                    .push_bind(object.reason.clone());
            });
            // What was kept when the collection was interrupted is met again.
            query.push(
                " ON CONFLICT (collection_id, kind, id) DO UPDATE
                  SET outcome = excluded.outcome, size_bytes = excluded.size_bytes, folder = excluded.folder,
                      reason = excluded.reason",
            );
            query.build().execute(&mut **tx).await?;
        }
        let mut counts: BTreeMap<Freed, (u64, u64)> = BTreeMap::new();
        for object in objects.iter().filter(|object| object.outcome != CollectedOutcome::Kept) {
            let count = counts.entry(object.kind).or_default();
            count.0 += 1;
            count.1 += object.size_bytes;
        }
        for (kind, (amount, size_bytes)) in counts {
            Self::add_count(tx, step, kind, amount, size_bytes).await?;
        }
        Ok(())
    }

    async fn complete_collections(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<CollectionRow>,
    ) -> Result<Vec<Collection>> {
        let mut collections = Vec::with_capacity(rows.len());
        for row in rows {
            let mut collection = row.into_collection()?;
            let counts: Vec<(String, i64, i64)> = sqlx::query_as(
                "SELECT kind, amount, size_bytes FROM collection_count WHERE collection_id = $1 ORDER BY kind",
            )
            .bind(&collection.id)
            .fetch_all(&mut **tx)
            .await?;
            for (kind, count, size_bytes) in counts {
                collection.freed.push(CollectionCount {
                    kind,
                    count: number("number of objects", count)?,
                    size_bytes: number("size of objects", size_bytes)?,
                });
            }
            collections.push(collection);
        }
        Ok(collections)
    }

    async fn collection_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
    ) -> Result<Option<Collection>> {
        let rows: Vec<CollectionRow> = sqlx::query_as(select_collections!("WHERE c.project = $1 AND c.id = $2"))
            .bind(project)
            .bind(id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_collections(tx, rows).await?.pop())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl CollectionStore for SqlStore<P> {
    async fn start_collection(&self, new: &NewCollection) -> Result<Collection> {
        let mut tx = self.pools.begin().await?;
        Self::hold_storage(&mut tx, &new.project).await?;
        let running: Option<String> =
            sqlx::query_scalar("SELECT id FROM collection WHERE project = $1 AND state = 'running'")
                .bind(&new.project)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(running) = running {
            return Err(Error::Exists(format!(
                "collection `{running}` of project `{}` is still running: wait until it has ended",
                new.project
            )));
        }
        sqlx::query(
            "INSERT INTO collection (id, project, state, phase, request, dry_run, started_by, started_at, updated_at,
                                     event, node, lease_until, attempt)
             VALUES ($1, $2, 'running', $3, $4, $5, $6, $7, $7, $8, '', 0, 0)",
        )
        .bind(&new.id)
        .bind(&new.project)
        .bind(Phase::FIRST.as_str())
        .bind(to_json("request of a collection", &new.request)?)
        .bind(i64::from(new.request.dry_run))
        .bind(&new.started_by)
        .bind(new.now.as_micros())
        .bind(to_json("audit event", &new.event)?)
        .execute(&mut *tx)
        .await?;
        let started = Self::collection_in(&mut tx, &new.project, &new.id).await?;
        let started = started.ok_or_else(|| modelyard_db::Error::value("collection", &new.id))?;
        if !new.request.dry_run {
            let event = with_detail(&new.event, "collection", new.id.as_str());
            Self::append_audit(&mut tx, &event).await?;
        }
        tx.commit().await?;
        Ok(started)
    }

    async fn find_collection(&self, project: &str, id: &str) -> Result<Option<Collection>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::collection_in(&mut tx, project, id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_collections(&self, project: &str, page: &PageRequest<String>) -> Result<Page<Collection>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<CollectionRow> = match &page.after {
            None => {
                sqlx::query_as(select_collections!("WHERE c.project = $1 ORDER BY c.id DESC LIMIT $2"))
                    .bind(project)
                    .bind(page.rows())
                    .fetch_all(&mut *tx)
                    .await?
            }
            Some(after) => {
                sqlx::query_as(select_collections!(
                    "WHERE c.project = $1 AND c.id < $3 ORDER BY c.id DESC LIMIT $2"
                ))
                .bind(project)
                .bind(page.rows())
                .bind(after)
                .fetch_all(&mut *tx)
                .await?
            }
        };
        let collections = Self::complete_collections(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(page.cut(collections, |collection| collection.id.clone()))
    }

    async fn list_collected(
        &self,
        project: &str,
        id: &str,
        outcome: Option<CollectedOutcome>,
        page: &PageRequest<String>,
    ) -> Result<Page<CollectedObject>> {
        let (kind, after) = page
            .after
            .as_deref()
            .and_then(|place| place.split_once(' '))
            .unwrap_or_default();
        let rows: Vec<ObjectRow> = sqlx::query_as(
            "SELECT o.kind, o.id, o.outcome, o.size_bytes, o.reason
             FROM collected_object o JOIN collection c ON c.id = o.collection_id
             WHERE c.project = $1 AND c.id = $2 AND (o.kind > $3 OR (o.kind = $3 AND o.id > $4))
               AND o.outcome = COALESCE($6, o.outcome)
             ORDER BY o.kind, o.id LIMIT $5",
        )
        .bind(project)
        .bind(id)
        .bind(kind)
        .bind(after)
        .bind(page.rows())
        .bind(outcome.map(CollectedOutcome::as_str))
        .fetch_all(self.pools.reader())
        .await?;
        let objects = rows.into_iter().map(ObjectRow::into_object).collect::<Result<_>>()?;
        Ok(page.cut(objects, object_place))
    }

    async fn claim_collection(&self, node: &str, now: Timestamp, lease_until: Timestamp) -> Result<Option<Claim>> {
        // A process works at one collection at a time: what it had when it was stopped, it takes up at once. Mostly there is
        // none, which is found out without writing.
        let waiting: Option<String> = sqlx::query_scalar(
            "SELECT id FROM collection WHERE state = 'running' AND (lease_until <= $1 OR node = $2) LIMIT 1",
        )
        .bind(now.as_micros())
        .bind(node)
        .fetch_optional(self.pools.reader())
        .await?;
        let Some(id) = waiting else {
            return Ok(None);
        };
        let mut tx = self.pools.begin().await?;
        let row: Option<ClaimRow> = sqlx::query_as(
            "UPDATE collection SET node = $2, lease_until = $3, attempt = attempt + 1
             WHERE id = $1 AND state = 'running' AND (lease_until <= $4 OR node = $2)
             RETURNING id, project, phase, request, started_at, event, attempt",
        )
        .bind(&id)
        .bind(node)
        .bind(lease_until.as_micros())
        .bind(now.as_micros())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        tx.commit().await?;
        Ok(Some(Claim {
            phase: word("phase of a collection", &row.phase, Phase::parse)?,
            request: json("request of a collection", &row.request)?,
            started_at: Timestamp::from_micros(row.started_at),
            event: json("audit event", &row.event)?,
            attempt: row.attempt,
            id: row.id,
            project: row.project,
        }))
    }

    async fn extend_claim(&self, step: &Step<'_>) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Ok(tx.commit().await?)
    }

    async fn restart_dry_run(&self, step: &Step<'_>) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        for statement in [
            "DELETE FROM collected_object WHERE collection_id = $1",
            "DELETE FROM collection_count WHERE collection_id = $1",
        ] {
            sqlx::query(statement).bind(&step.claim.id).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn record_objects(&self, step: &Step<'_>, objects: &[FoundObject]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        Self::insert_objects(&mut tx, step, objects).await?;
        Ok(tx.commit().await?)
    }

    async fn record_removed(&self, step: &Step<'_>, blobs: &[OldBlob]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        let ended = Self::end_removal_in(&mut tx, &step.claim.project, blobs, step.now).await?;
        let objects: Vec<_> = ended
            .into_iter()
            .map(|blob| FoundObject {
                kind: Freed::Blob,
                id: blob.digest.to_string(),
                outcome: CollectedOutcome::Freed,
                size_bytes: blob.size_bytes,
                folder: None,
                reason: None,
            })
            .collect();
        Self::insert_objects(&mut tx, step, &objects).await?;
        Ok(tx.commit().await?)
    }

    async fn enter_phase(&self, step: &Step<'_>, phase: Phase) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        sqlx::query("UPDATE collection SET phase = $2 WHERE id = $1")
            .bind(&step.claim.id)
            .bind(phase.as_str())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn postpone_collection(&self, step: &Step<'_>, error: &str, until: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        sqlx::query("UPDATE collection SET error = $2, lease_until = $3, node = '' WHERE id = $1")
            .bind(&step.claim.id)
            .bind(error)
            .bind(until.as_micros())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn end_collection(&self, step: &Step<'_>, ending: Ending<'_>, event: &NewEvent) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_claim(&mut tx, step).await?;
        let (state, error, list_digest) = match ending {
            Ending::Finished(digest) => (CollectionState::Finished, None, Some(digest)),
            Ending::Failed(error) => (CollectionState::Failed, Some(error), None),
        };
        sqlx::query("UPDATE collection SET state = $2, error = $3, list_digest = $4, finished_at = $5 WHERE id = $1")
            .bind(&step.claim.id)
            .bind(state.as_str())
            .bind(error)
            .bind(list_digest)
            .bind(step.now.as_micros())
            .execute(&mut *tx)
            .await?;
        if !step.plan.dry_run {
            let mut event = with_detail(event, "collection", step.claim.id.as_str());
            let counts: Vec<(String, i64, i64)> = sqlx::query_as(
                "SELECT kind, amount, size_bytes FROM collection_count WHERE collection_id = $1 ORDER BY kind",
            )
            .bind(&step.claim.id)
            .fetch_all(&mut *tx)
            .await?;
            for (kind, amount, size_bytes) in counts {
                event.add_detail(&format!("{kind}.count"), amount);
                if size_bytes > 0 {
                    event.add_detail(&format!("{kind}.size_bytes"), size_bytes);
                }
            }
            if let Some(digest) = list_digest {
                event.add_detail("list_digest", digest);
            }
            Self::append_audit(&mut tx, &event).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn planned_folders(&self, collection_id: &str) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "SELECT folder FROM collected_object
             WHERE collection_id = $1 AND outcome = 'would-be-freed' AND folder IS NOT NULL",
        );
        Ok(query.bind(collection_id).fetch_all(self.pools.reader()).await?)
    }

    async fn prune_collections(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let pruned = sqlx::query("DELETE FROM collection WHERE finished_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}
