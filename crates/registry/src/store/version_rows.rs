//! Model versions as MLflow's clients see them, read from their rows.

use std::collections::BTreeMap;

use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, number, word};
use crate::{
    error::Result,
    model::mlflow_registry::{Stage, VersionEntry, VersionStatus},
};

/// How many versions are completed by one statement.
const BATCH: usize = 500;

#[derive(sqlx::FromRow)]
pub(super) struct EntryRow {
    project: String,
    model: String,
    version: i64,
    description: String,
    user_id: String,
    stage: String,
    source: String,
    storage_location: String,
    artifact_digest: String,
    run_id: Option<String>,
    run_link: String,
    status: String,
    status_message: String,
    model_id: Option<String>,
    created_at: i64,
    updated_at: i64,
}

/// The columns of [`EntryRow`], from `model_version v`.
macro_rules! select_entries {
    ($rest:literal) => {
        concat!(
            "SELECT v.project, v.model, v.version, v.description, v.user_id, v.stage, v.source, v.storage_location,
                    v.artifact_digest, COALESCE(v.source_run_id, v.run_id) AS run_id, v.run_link, v.status,
                    v.status_message, v.model_id, v.created_at, COALESCE(v.updated_at, v.created_at) AS updated_at
             FROM model_version v ",
            $rest
        )
    };
}
pub(super) use select_entries;

/// A version's place: the model and the number.
type Place = (String, i64);

impl EntryRow {
    fn place(&self) -> Place {
        (self.model.clone(), self.version)
    }

    fn into_entry(self, aliases: Vec<String>, tags: BTreeMap<String, String>) -> Result<VersionEntry> {
        Ok(VersionEntry {
            project: self.project,
            model: self.model,
            version: number("version", self.version)?,
            description: self.description,
            user_id: self.user_id,
            stage: word("stage", &self.stage, Stage::parse)?,
            source: self.source,
            storage_location: self.storage_location,
            artifact_digest: self.artifact_digest,
            run_id: self.run_id,
            run_link: self.run_link,
            status: word("status of a version", &self.status, VersionStatus::parse)?,
            status_message: self.status_message,
            model_id: self.model_id,
            aliases,
            tags,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Versions of one project with their aliases and tags, in their order.
    pub(super) async fn complete_entries(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<EntryRow>,
    ) -> Result<Vec<VersionEntry>> {
        let mut entries = Vec::with_capacity(rows.len());
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let batch: Vec<EntryRow> = rows.by_ref().take(BATCH).collect();
            let mut aliases: BTreeMap<Place, Vec<String>> = BTreeMap::new();
            let query = "SELECT t.model, t.version, t.alias, '' AS value FROM wanted w CROSS JOIN model_alias";
            for (model, version, alias, _) in Self::texts_of(tx, query, &batch).await? {
                aliases.entry((model, version)).or_default().push(alias);
            }
            let mut tags: BTreeMap<Place, BTreeMap<String, String>> = BTreeMap::new();
            let query = "SELECT t.model, t.version, t.key, t.value FROM wanted w CROSS JOIN model_version_tag";
            for (model, version, key, value) in Self::texts_of(tx, query, &batch).await? {
                tags.entry((model, version)).or_default().insert(key, value);
            }
            for row in batch {
                let mut aliases = aliases.remove(&row.place()).unwrap_or_default();
                aliases.sort();
                let tags = tags.remove(&row.place()).unwrap_or_default();
                entries.push(row.into_entry(aliases, tags)?);
            }
        }
        Ok(entries)
    }

    /// What a table, which `select` names `t`, says of some versions.
    async fn texts_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        select: &'static str,
        rows: &[EntryRow],
    ) -> Result<Vec<(String, i64, String, String)>> {
        let project = match rows.first() {
            Some(first) => first.project.clone(),
            None => return Ok(Vec::new()),
        };
        // The cross join keeps SQLite from reading the table first, which has rows of all versions.
        let mut query = QueryBuilder::new("WITH wanted (model, version) AS (VALUES ");
        for (position, row) in rows.iter().enumerate() {
            query.push(if position == 0 { "(" } else { ", (" });
            query.push_bind(row.model.clone());
            query.push(", ").push_bind(row.version).push(")");
        }
        query.push(") ").push(select);
        query.push(" t WHERE t.model = w.model AND t.version = w.version AND t.project = ");
        query.push_bind(project);
        Ok(query.build_query_as().fetch_all(&mut **tx).await?)
    }
}
