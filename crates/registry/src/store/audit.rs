//! The audit chain. Whoever changes something appends its event inside the same transaction: the row of the chain's head
//! is held from then to the commit, so that events stand in the order of their numbers, without gaps.

use std::collections::HashSet;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::{AuditEvent, Checkpoint, Hash, NewEvent, Outcome, link};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::QueryBuilder;

use super::{SqlStore, json, number, stored, to_json, word};
use crate::{
    error::{Error, Result},
    model::{
        audit::{AuditFilter, AuditKey},
        page::{Page, PageRequest},
    },
};

/// How many events are looked up in one statement.
const KNOWN_BATCH: usize = 500;
/// How many events are inserted by one statement: 18 values each, and SQLite takes 32,766.
const INSERT_BATCH: usize = 100;

/// The audit chain.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Adds events to the chain; those that are in it already are passed over. How many were added.
    async fn append_events(&self, events: &[NewEvent]) -> Result<usize>;
    /// The events that a filter lets through, the newest first.
    async fn list_audit_events(&self, filter: &AuditFilter, page: &PageRequest<u64>) -> Result<Page<AuditEvent>>;
    /// The numbers after a number, in their order, and their events, or what is wrong with those that were made unreadable;
    /// `limit` at most.
    async fn chain_after(&self, seq: u64, limit: u32) -> Result<Vec<(u64, Result<AuditEvent>)>>;
    /// The number and the hash of the last event.
    async fn chain_head(&self) -> Result<(u64, Hash)>;
    /// Keeps a signature.
    async fn add_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()>;
    /// The signatures over the chain from one event to another, in their order.
    async fn checkpoints(&self, first_seq: u64, last_seq: u64) -> Result<Vec<Checkpoint>>;
    /// The newest signature.
    async fn newest_checkpoint(&self) -> Result<Option<Checkpoint>>;
    /// The keys that sign or have signed, the newest first.
    async fn audit_keys(&self) -> Result<Vec<AuditKey>>;
    /// Adds a key, which signs from now on.
    async fn add_audit_key(&self, key: &AuditKey) -> Result<()>;
    /// Replaces the sealed private half of a key by the same, sealed with another key.
    async fn reseal_audit_key(&self, id: &str, resealed: &str) -> Result<()>;
}

/// A row of the chain, from the database's columns or from a JSON array of them in this order.
#[derive(sqlx::FromRow, Deserialize)]
struct EventRow {
    seq: i64,
    id: String,
    at: i64,
    project: String,
    actor: String,
    on_behalf_of: Option<String>,
    action: String,
    resource_kind: String,
    resource: String,
    outcome: String,
    reason: Option<String>,
    before_digest: Option<String>,
    after_digest: Option<String>,
    request_id: Option<String>,
    source_address: Option<String>,
    details: String,
    prev_hash: String,
    hash: String,
}

macro_rules! columns {
    () => {
        "seq, id, at, project, actor, on_behalf_of, action, resource_kind, resource, outcome, reason, before_digest, \
         after_digest, request_id, source_address, details, prev_hash, hash"
    };
}

const COLUMNS: &str = columns!();

fn hash(text: &str) -> Result<Hash> {
    text.parse()
        .map_err(|_| modelyard_db::Error::value("hash of an audit event", text).into())
}

impl EventRow {
    fn into_event(self) -> Result<AuditEvent> {
        let id = self.id.parse();
        Ok(AuditEvent {
            seq: number("number of an audit event", self.seq)?,
            id: id.map_err(|_| modelyard_db::Error::value("id of an audit event", &self.id))?,
            at: Timestamp::from_micros(self.at),
            project: self.project,
            actor: self.actor,
            on_behalf_of: self.on_behalf_of,
            action: self.action,
            resource_kind: self.resource_kind,
            resource: self.resource,
            outcome: word("outcome of an audit event", &self.outcome, Outcome::parse)?,
            reason: self.reason,
            before_digest: self.before_digest,
            after_digest: self.after_digest,
            request_id: self.request_id,
            source_address: self.source_address,
            details: json("details of an audit event", &self.details)?,
            prev_hash: hash(&self.prev_hash)?,
            hash: hash(&self.hash)?,
        })
    }
}

/// The events of rows that the database wrote as JSON arrays, one to a line, by their numbers.
fn parse_rows(lines: &[u8]) -> Result<Vec<(u64, Result<AuditEvent>)>> {
    // Bytes that are no text were not written by us: what stands in their place does not give the event's hash.
    let mut events = String::from_utf8_lossy(lines)
        .lines()
        .map(|line| {
            let row = json::<EventRow>("row of the audit chain", line);
            let seq = line
                .trim_start_matches('[')
                .split(',')
                .next()
                .and_then(|seq| seq.parse().ok());
            let seq = seq.ok_or_else(|| modelyard_db::Error::value("number of an audit event", line))?;
            Ok((seq, row.and_then(EventRow::into_event)))
        })
        .collect::<Result<Vec<_>>>()?;
    events.sort_by_key(|(seq, _)| *seq);
    Ok(events)
}

#[derive(sqlx::FromRow)]
struct CheckpointRow {
    seq: i64,
    hash: String,
    at: i64,
    key_id: String,
    signature: String,
}

impl CheckpointRow {
    fn into_checkpoint(self) -> Result<Checkpoint> {
        Ok(Checkpoint {
            seq: number("number of a checkpoint", self.seq)?,
            hash: hash(&self.hash)?,
            at: Timestamp::from_micros(self.at),
            key_id: self.key_id,
            signature: self.signature,
        })
    }
}

/// The event with one more detail.
pub(super) fn with_detail(event: &NewEvent, key: &str, value: impl Into<Value>) -> NewEvent {
    let mut event = event.clone();
    event.add_detail(key, value);
    event
}

/// The event with the digest of what has come into being.
pub(super) fn after(event: &NewEvent, after: &impl Serialize) -> Result<NewEvent> {
    let after = to_json("resource", after)?;
    Ok(event.with_digests(None, Some(&after)))
}

/// The event with the digests of what was before and what is now.
pub(super) fn change(event: &NewEvent, before: &impl Serialize, after: &impl Serialize) -> Result<NewEvent> {
    let (before, after) = (to_json("resource", before)?, to_json("resource", after)?);
    Ok(event.with_digests(Some(&before), Some(&after)))
}

fn linked(prev: &Hash, event: &NewEvent, seq: u64) -> Result<AuditEvent> {
    link(prev, event.clone(), seq).map_err(|error| Error::State(format!("the audit event cannot be written: {error}")))
}

/// How a database writes rows of the chain as lines.
trait RowsAsLines {
    /// The rows after the number `$1`, `$2` at most, as [`parse_rows`] reads them.
    const CHAIN_AFTER: &str;
}

macro_rules! chain_after {
    ($before:literal, $array:literal, $after:literal) => {
        concat!(
            "SELECT ",
            $before,
            "string_agg(",
            $array,
            "(",
            columns!(),
            ")",
            $after,
            " FROM (SELECT * FROM audit_event WHERE seq > $1 ORDER BY seq LIMIT $2) AS rows"
        )
    };
}

impl RowsAsLines for SqlitePools {
    const CHAIN_AFTER: &str = chain_after!("CAST(", "json_array", ", char(10)) AS BLOB)");
}

impl RowsAsLines for PostgresPools {
    const CHAIN_AFTER: &str = chain_after!("convert_to(", "json_build_array", "::text, chr(10)), 'UTF8')");
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Appends an event to the chain. From here to the commit nobody else appends.
    pub(super) async fn append_audit(tx: &mut Transaction<<P as Pools>::Db>, event: &NewEvent) -> Result<()> {
        Self::append_audits(tx, std::slice::from_ref(event)).await
    }

    /// Appends events in their order.
    pub(super) async fn append_audits(tx: &mut Transaction<<P as Pools>::Db>, events: &[NewEvent]) -> Result<()> {
        let count = i64::try_from(events.len()).map_err(|_| Error::request("too many audit events at once"))?;
        let (seq, prev): (i64, String) =
            sqlx::query_as("UPDATE audit_head SET seq = seq + $1 WHERE id = 1 RETURNING seq, hash")
                .bind(count)
                .fetch_one(&mut **tx)
                .await?;
        let mut seq: u64 = number("number of an audit event", seq - count)?;
        let mut prev = hash(&prev)?;
        for batch in events.chunks(INSERT_BATCH) {
            let mut rows = Vec::with_capacity(batch.len());
            for event in batch {
                seq += 1;
                let event = linked(&prev, event, seq)?;
                prev = event.hash;
                rows.push((stored("number of an audit event", seq)?, event));
            }
            let mut query = QueryBuilder::new("INSERT INTO audit_event (");
            query.push(COLUMNS).push(") ");
            query.push_values(rows, |mut row, (seq, event)| {
                row.push_bind(seq)
                    .push_bind(event.id.to_string())
                    .push_bind(event.at.as_micros())
                    .push_bind(event.project)
                    .push_bind(event.actor)
                    .push_bind(event.on_behalf_of)
                    .push_bind(event.action)
                    .push_bind(event.resource_kind)
                    .push_bind(event.resource)
                    .push_bind(event.outcome.as_str())
                    .push_bind(event.reason)
                    .push_bind(event.before_digest)
                    .push_bind(event.after_digest)
                    .push_bind(event.request_id)
                    .push_bind(event.source_address)
                    .push_bind(event.details.to_string())
                    .push_bind(event.prev_hash.to_string())
                    .push_bind(event.hash.to_string());
            });
            query.build().execute(&mut **tx).await?;
        }
        sqlx::query("UPDATE audit_head SET hash = $1 WHERE id = 1")
            .bind(prev.to_string())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Which of the ids are in the chain.
    async fn known_events(tx: &mut Transaction<<P as Pools>::Db>, events: &[NewEvent]) -> Result<Vec<String>> {
        let mut known = Vec::new();
        for batch in events.chunks(KNOWN_BATCH) {
            let mut query = QueryBuilder::new("SELECT id FROM audit_event WHERE id IN (");
            let mut ids = query.separated(", ");
            for event in batch {
                ids.push_bind(event.id.to_string());
            }
            query.push(")");
            let found: Vec<String> = query.build_query_scalar().fetch_all(&mut **tx).await?;
            known.extend(found);
        }
        Ok(known)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl AuditStore for SqlStore<P> {
    async fn append_events(&self, events: &[NewEvent]) -> Result<usize> {
        if events.is_empty() {
            return Ok(0);
        }
        let mut tx = self.pools.begin().await?;
        // The head first: whoever sends the same events at the same time waits here, and then finds them.
        sqlx::query("UPDATE audit_head SET seq = seq WHERE id = 1")
            .execute(&mut *tx)
            .await?;
        let known = Self::known_events(&mut tx, events).await?;
        let mut seen: HashSet<String> = known.into_iter().collect();
        let mut added = events.to_vec();
        added.retain(|event| seen.insert(event.id.to_string()));
        if added.is_empty() {
            return Ok(0);
        }
        Self::append_audits(&mut tx, &added).await?;
        tx.commit().await?;
        Ok(added.len())
    }

    async fn list_audit_events(&self, filter: &AuditFilter, page: &PageRequest<u64>) -> Result<Page<AuditEvent>> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS).push(" FROM audit_event WHERE seq < ");
        query.push_bind(super::before(page));
        if let Some(projects) = &filter.projects {
            query.push(" AND project IN (");
            let mut names = query.separated(", ");
            for project in projects {
                names.push_bind(project.clone());
            }
            query.push(")");
        }
        if let Some(actor) = &filter.actor {
            query.push(" AND (actor = ").push_bind(actor.clone());
            query.push(" OR on_behalf_of = ").push_bind(actor.clone()).push(")");
        }
        for (column, wanted) in [
            ("action", &filter.action),
            ("resource_kind", &filter.resource_kind),
            ("resource", &filter.resource),
            ("outcome", &filter.outcome),
            ("request_id", &filter.request_id),
        ] {
            if let Some(wanted) = wanted {
                query.push(" AND ").push(column).push(" = ").push_bind(wanted.clone());
            }
        }
        if let Some(since) = filter.since {
            query.push(" AND at >= ").push_bind(since.as_micros());
        }
        if let Some(until) = filter.until {
            query.push(" AND at < ").push_bind(until.as_micros());
        }
        query.push(" ORDER BY seq DESC LIMIT ").push_bind(page.rows());
        let rows: Vec<EventRow> = query.build_query_as().fetch_all(self.pools.reader()).await?;
        let events = rows.into_iter().map(EventRow::into_event).collect::<Result<Vec<_>>>()?;
        Ok(page.cut(events, |event| event.seq))
    }

    async fn chain_after(&self, seq: u64, limit: u32) -> Result<Vec<(u64, Result<AuditEvent>)>> {
        // One text for all rows: eighteen columns of a million rows take the driver several times as long as all the rest.
        let lines: Option<Vec<u8>> = sqlx::query_scalar(<P as RowsAsLines>::CHAIN_AFTER)
            .bind(stored("number of an audit event", seq)?)
            .bind(i64::from(limit))
            .fetch_one(self.pools.reader())
            .await?;
        parse_rows(&lines.unwrap_or_default())
    }

    async fn chain_head(&self) -> Result<(u64, Hash)> {
        let (seq, text): (i64, String) = sqlx::query_as("SELECT seq, hash FROM audit_head WHERE id = 1")
            .fetch_one(self.pools.reader())
            .await?;
        Ok((number("number of an audit event", seq)?, hash(&text)?))
    }

    async fn add_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "INSERT INTO audit_checkpoint (seq, hash, at, key_id, signature) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (seq) DO NOTHING",
        )
        .bind(stored("number of a checkpoint", checkpoint.seq)?)
        .bind(checkpoint.hash.to_string())
        .bind(checkpoint.at.as_micros())
        .bind(&checkpoint.key_id)
        .bind(&checkpoint.signature)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn checkpoints(&self, first_seq: u64, last_seq: u64) -> Result<Vec<Checkpoint>> {
        let rows: Vec<CheckpointRow> = sqlx::query_as(
            "SELECT seq, hash, at, key_id, signature FROM audit_checkpoint WHERE seq BETWEEN $1 AND $2 ORDER BY seq",
        )
        .bind(stored("number of an audit event", first_seq)?)
        .bind(stored("number of an audit event", last_seq.min(i64::MAX as u64))?)
        .fetch_all(self.pools.reader())
        .await?;
        rows.into_iter().map(CheckpointRow::into_checkpoint).collect()
    }

    async fn newest_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let row: Option<CheckpointRow> =
            sqlx::query_as("SELECT seq, hash, at, key_id, signature FROM audit_checkpoint ORDER BY seq DESC LIMIT 1")
                .fetch_optional(self.pools.reader())
                .await?;
        row.map(CheckpointRow::into_checkpoint).transpose()
    }

    async fn audit_keys(&self) -> Result<Vec<AuditKey>> {
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT id, public_key, sealed, created_at FROM audit_key ORDER BY created_at DESC, id DESC",
        )
        .fetch_all(self.pools.reader())
        .await?;
        let key = |(id, public_key, sealed, created_at): (String, String, String, i64)| AuditKey {
            id,
            public_key,
            sealed,
            created_at: Timestamp::from_micros(created_at),
        };
        Ok(rows.into_iter().map(key).collect())
    }

    async fn add_audit_key(&self, key: &AuditKey) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "INSERT INTO audit_key (id, public_key, sealed, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(&key.id)
        .bind(&key.public_key)
        .bind(&key.sealed)
        .bind(key.created_at.as_micros())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn reseal_audit_key(&self, id: &str, resealed: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE audit_key SET sealed = $1 WHERE id = $2")
            .bind(resealed)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
