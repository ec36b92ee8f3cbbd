//! The records of evaluation datasets.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, maybe, number, stored};
use crate::{
    error::{Error, Result},
    model::{
        evaluation_dataset::digest,
        evaluation_record::{
            EvaluationRecord, MAX_RECORDS, Merged, NewRecord, RECORD_PAGE_BYTES, RecordBatch, RecordPage, Upserted,
            merged_schema,
        },
        json::Json,
    },
};

/// How many records are written, or looked up, with one statement.
const RECORDS_AT_ONCE: usize = 200;

/// The records of evaluation datasets.
#[async_trait]
pub trait EvaluationRecordStore: Send + Sync {
    /// Adds records to a dataset, and merges those that it has with what comes.
    async fn upsert_evaluation_records(&self, project: &str, dataset_id: &str, batch: &RecordBatch)
    -> Result<Upserted>;
    /// A page of records after a position, `limit` at most.
    async fn list_evaluation_records(
        &self,
        project: &str,
        dataset_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<RecordPage>;
    /// Removes records; how many there were.
    async fn delete_evaluation_records(&self, project: &str, dataset_id: &str, ids: &[String]) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct RecordRow {
    id: String,
    inputs: String,
    outputs: Option<String>,
    expectations: Option<String>,
    tags: String,
    source: Option<String>,
    source_id: Option<String>,
    source_type: Option<String>,
    created_at: i64,
    updated_at: i64,
    created_by: Option<String>,
    updated_by: Option<String>,
}

impl RecordRow {
    fn into_record(self, dataset_id: &str) -> EvaluationRecord {
        EvaluationRecord {
            record_id: self.id,
            dataset_id: dataset_id.to_owned(),
            inputs: self.inputs,
            outputs: self.outputs,
            expectations: self.expectations,
            tags: self.tags,
            source: self.source,
            source_id: self.source_id,
            source_type: self.source_type,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
            created_by: self.created_by,
            updated_by: self.updated_by,
        }
    }
}

/// What of a record that is there may change.
#[derive(sqlx::FromRow)]
struct KnownRow {
    input_hash: String,
    outputs: Option<String>,
    expectations: Option<String>,
    tags: String,
    updated_by: Option<String>,
}

fn read(stored: &str) -> Result<Json> {
    let read = Json::parse(stored);
    read.ok_or_else(|| modelyard_db::Error::value("part of an evaluation record", stored).into())
}

impl KnownRow {
    fn into_merged(self) -> Result<Merged> {
        Ok(Merged {
            outputs: self.outputs.as_deref().map(read).transpose()?,
            expectations: self.expectations.as_deref().map(read).transpose()?,
            tags: read(&self.tags)?,
            user: self.updated_by,
        })
    }
}

/// What is written of a record.
struct Written<'a> {
    position: i64,
    record: &'a NewRecord,
    merged: Merged,
}

/// Merges the records of a part of a batch with each other and with those that are there.
fn merge<'a>(
    records: &'a [NewRecord],
    mut known: BTreeMap<String, Merged>,
    next_position: &mut i64,
    done: &mut Upserted,
) -> Vec<Written<'a>> {
    let mut written: Vec<Written<'a>> = Vec::with_capacity(records.len());
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        let hash = record.input_hash.as_str();
        if let Some(earlier) = places.get(hash).and_then(|place| written.get_mut(*place)) {
            record.merge_into(&mut earlier.merged);
            done.updated += 1;
            continue;
        }
        let merged = if let Some(mut merged) = known.remove(hash) {
            record.merge_into(&mut merged);
            done.updated += 1;
            merged
        } else {
            done.inserted += 1;
            record.first()
        };
        places.insert(hash, written.len());
        written.push(Written {
            position: *next_position,
            record,
            merged,
        });
        *next_position += 1;
    }
    written
}

/// How many of the rows with these sizes belong to a page.
fn page_rows(sizes: impl Iterator<Item = u64>, limit: usize) -> usize {
    let mut bytes = 0_u64;
    let fits = |size: &u64| {
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(*size);
        is_first || bytes <= RECORD_PAGE_BYTES
    };
    sizes.take(limit).take_while(fits).count()
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// What is there of some records.
    async fn known_records(
        tx: &mut Transaction<<P as Pools>::Db>,
        dataset_id: &str,
        records: &[NewRecord],
    ) -> Result<BTreeMap<String, Merged>> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(
            "SELECT input_hash, outputs, expectations, tags, updated_by FROM evaluation_record WHERE input_hash IN (",
        );
        let mut hashes = query.separated(", ");
        for record in records {
            hashes.push_bind(record.input_hash.clone());
        }
        // Written so that no index serves it: a database that has no statistics yet would read the whole dataset by it,
        // while hashes find their records at once.
        query.push(") AND dataset_id || '' = ").push_bind(dataset_id.to_owned());
        let rows: Vec<KnownRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        let known = rows
            .into_iter()
            .map(|row| Ok((row.input_hash.clone(), row.into_merged()?)));
        known.collect()
    }

    async fn write_records(
        tx: &mut Transaction<<P as Pools>::Db>,
        dataset_id: &str,
        written: Vec<Written<'_>>,
        now: Timestamp,
    ) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(
            "INSERT INTO evaluation_record (dataset_id, position, id, input_hash, inputs, outputs, expectations, tags, \
             source, source_id, source_type, size_bytes, created_at, updated_at, created_by, updated_by) ",
        );
        query.push_values(
            written,
            |mut row,
             Written {
                 position,
                 record,
                 merged,
             }| {
                let inputs = record.inputs.dump();
                let outputs = merged.outputs.as_ref().map(Json::dump);
                let expectations = merged.expectations.as_ref().map(Json::dump);
                let tags = merged.tags.dump();
                let source = record.source.as_ref();
                let texts = [Some(&inputs), outputs.as_ref(), expectations.as_ref(), Some(&tags)];
                let texts = texts.into_iter().flatten().chain(source.map(|source| &source.json));
                let size: usize = texts.map(String::len).sum();
                row.push_bind(dataset_id.to_owned())
                    .push_bind(position)
                    .push_bind(record.record_id.clone())
                    .push_bind(record.input_hash.clone())
                    .push_bind(inputs)
                    .push_bind(outputs)
                    .push_bind(expectations)
                    .push_bind(tags)
                    .push_bind(source.map(|source| source.json.clone()))
                    .push_bind(source.and_then(|source| source.source_id.clone()))
                    .push_bind(source.map(|source| source.source_type))
                    .push_bind(i64::try_from(size).unwrap_or(i64::MAX))
                    .push_bind(now.as_micros())
                    .push_bind(now.as_micros())
                    .push_bind(merged.user.clone())
                    .push_bind(merged.user);
            },
        );
        query.push(
            " ON CONFLICT (dataset_id, input_hash) DO UPDATE
              SET outputs = excluded.outputs, expectations = excluded.expectations, tags = excluded.tags,
                  size_bytes = excluded.size_bytes, updated_at = excluded.updated_at, updated_by = excluded.updated_by",
        );
        query.build().execute(&mut **tx).await?;
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl EvaluationRecordStore for SqlStore<P> {
    async fn upsert_evaluation_records(
        &self,
        project: &str,
        dataset_id: &str,
        batch: &RecordBatch,
    ) -> Result<Upserted> {
        let mut tx = self.pools.begin().await?;
        Self::hold_evaluation_dataset(&mut tx, project, dataset_id).await?;
        let (name, fields, count, mut next_position): (String, Option<String>, Option<i64>, i64) = sqlx::query_as(
            "SELECT name, fields, record_count, next_position FROM evaluation_dataset WHERE project = $1 AND id = $2",
        )
        .bind(project)
        .bind(dataset_id)
        .fetch_one(&mut *tx)
        .await?;
        let mut done = Upserted::default();
        for chunk in batch.records.chunks(RECORDS_AT_ONCE) {
            let known = Self::known_records(&mut tx, dataset_id, chunk).await?;
            let written = merge(chunk, known, &mut next_position, &mut done);
            Self::write_records(&mut tx, dataset_id, written, batch.now).await?;
        }
        let before: Option<u64> = maybe("number of records", count)?;
        let total = before.unwrap_or_default() + done.inserted;
        if total > MAX_RECORDS {
            return Err(Error::State(format!(
                "evaluation dataset '{dataset_id}' would have {total} records: make another one for more than {MAX_RECORDS}"
            )));
        }
        let count = before.map(|_| total).or_else(|| (total > 0).then_some(total));
        sqlx::query(
            "UPDATE evaluation_dataset SET fields = $1, record_count = $2, next_position = $3, digest = $4, updated_at = $5,
                                           updated_by = $6
             WHERE project = $7 AND id = $8",
        )
        .bind(merged_schema(fields.as_deref(), &batch.records)?)
        .bind(count.map(|count| stored("number of records", count)).transpose()?)
        .bind(next_position)
        .bind(digest(&name, batch.now))
        .bind(batch.now.as_micros())
        .bind(batch.user())
        .bind(project)
        .bind(dataset_id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn list_evaluation_records(
        &self,
        project: &str,
        dataset_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<RecordPage> {
        if dataset_id.contains('\0') {
            return Err(super::no_evaluation_dataset(dataset_id));
        }
        let mut tx = self.pools.snapshot().await?;
        let known: Option<String> =
            sqlx::query_scalar("SELECT id FROM evaluation_dataset WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(dataset_id)
                .fetch_optional(&mut *tx)
                .await?;
        known.ok_or_else(|| super::no_evaluation_dataset(dataset_id))?;
        // One more tells whether there is another page.
        let sizes: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT position, size_bytes FROM evaluation_record WHERE dataset_id = $1 AND position > $2
             ORDER BY position LIMIT $3",
        )
        .bind(dataset_id)
        .bind(after)
        .bind(i64::from(limit) + 1)
        .fetch_all(&mut *tx)
        .await?;
        let taken = page_rows(
            sizes.iter().map(|(_, size)| size.unsigned_abs()),
            number("limit", i64::from(limit))?,
        );
        let Some((last, _)) = taken.checked_sub(1).and_then(|last| sizes.get(last)) else {
            return Ok(RecordPage::default());
        };
        let rows: Vec<RecordRow> = sqlx::query_as(
            "SELECT id, inputs, outputs, expectations, tags, source, source_id, source_type, created_at, updated_at,
                    created_by, updated_by
             FROM evaluation_record WHERE dataset_id = $1 AND position > $2 AND position <= $3 ORDER BY position",
        )
        .bind(dataset_id)
        .bind(after)
        .bind(*last)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(RecordPage {
            records: rows.into_iter().map(|row| row.into_record(dataset_id)).collect(),
            next: (taken < sizes.len()).then_some(*last),
        })
    }

    async fn delete_evaluation_records(&self, project: &str, dataset_id: &str, ids: &[String]) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        Self::hold_evaluation_dataset(&mut tx, project, dataset_id).await?;
        let mut deleted = 0;
        for chunk in ids.chunks(RECORDS_AT_ONCE) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new("DELETE FROM evaluation_record WHERE dataset_id = ");
            query.push_bind(dataset_id.to_owned()).push(" AND id IN (");
            let mut list = query.separated(", ");
            for id in chunk.iter().filter(|id| !id.contains('\0')) {
                list.push_bind(id.clone());
            }
            // Of ids with a NUL alone there would be an empty list.
            list.push("NULL");
            query.push(")");
            deleted += query.build().execute(&mut *tx).await?.rows_affected();
        }
        sqlx::query("UPDATE evaluation_dataset SET record_count = record_count - $1 WHERE project = $2 AND id = $3")
            .bind(stored("number of records", deleted)?)
            .bind(project)
            .bind(dataset_id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evaluation_record::read_records;

    #[test]
    fn a_page_ends_before_it_is_too_large() {
        assert_eq!(page_rows([RECORD_PAGE_BYTES * 2, 1].into_iter(), 10), 1);
        assert_eq!(page_rows([1, RECORD_PAGE_BYTES - 1, 1].into_iter(), 10), 2);
        assert_eq!(page_rows([1, 1, 1].into_iter(), 2), 2);
        assert_eq!(page_rows(std::iter::empty(), 2), 0);
    }

    #[test]
    fn what_comes_twice_in_a_batch_is_one_record() {
        let text =
            r#"[{"inputs": {"q": 1}, "tags": {"a": 1}}, {"inputs": {"q": 2}}, {"inputs": {"q": 1}, "tags": {"b": 2}}]"#;
        let records = read_records(text, String::new).unwrap();
        let (mut next, mut done) = (5, Upserted::default());
        let known = BTreeMap::from([(records[1].input_hash.clone(), records[1].first())]);
        let written = merge(&records, known, &mut next, &mut done);
        assert_eq!((written.len(), next), (2, 7));
        assert_eq!(written[0].merged.tags.dump(), r#"{"a": 1, "b": 2}"#);
        assert_eq!((done.inserted, done.updated), (1, 2));
    }
}
