//! Searches of registered models and versions.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::{
    SqlStore,
    model_registry::{ModelEntryRow, select_models},
    search::{Dialect, Speaks, Sql, push_filter, push_number, push_text},
    stored,
    version_rows::{EntryRow, select_entries},
};
use crate::{
    error::Result,
    model::{
        entry_search::EntrySearch,
        mlflow_registry::{ModelEntry, VersionEntry},
    },
    search::{Clause, Entity, Operator, Order},
};

/// Searches of registered models and versions.
#[async_trait]
pub trait EntrySearchStore: Send + Sync {
    /// The models that are found, and one more if there is one.
    async fn search_model_entries(&self, project: &str, search: &EntrySearch) -> Result<Vec<ModelEntry>>;
    /// The versions that are found, and one more if there is one.
    async fn search_version_entries(&self, project: &str, search: &EntrySearch) -> Result<Vec<VersionEntry>>;
}

/// A comparison of a tag: of those that `tags` finds, which ends with the key.
fn push_tag(sql: &mut Sql, tags: &'static str, clause: &Clause) {
    if clause.operator == Operator::IsNull {
        sql.push("NOT ");
    }
    sql.push("EXISTS (").push(tags).text(&clause.key);
    if !matches!(clause.operator, Operator::IsNull | Operator::IsNotNull) {
        sql.push(" AND ");
        push_text(sql, "t.value", clause);
    }
    sql.push(")");
}

fn push_model_clause(sql: &mut Sql, clause: &Clause) {
    match clause.entity {
        Entity::Tag => push_tag(
            sql,
            "SELECT 1 FROM registered_model_tag t WHERE t.project = m.project AND t.model = m.name AND t.key = ",
            clause,
        ),
        _ => push_text(sql, "m.name", clause),
    }
}

fn push_version_clause(sql: &mut Sql, clause: &Clause) {
    match (clause.entity, clause.key.as_str()) {
        (Entity::Tag, _) => push_tag(
            sql,
            "SELECT 1 FROM model_version_tag t
             WHERE t.project = v.project AND t.model = v.model AND t.version = v.version AND t.key = ",
            clause,
        ),
        (_, "version_number") => push_number(sql, "v.version", clause),
        (_, "run_id") => {
            sql.push("COALESCE(v.source_run_id, v.run_id) IS NOT NULL AND ");
            push_text(sql, "COALESCE(v.source_run_id, v.run_id)", clause);
        }
        (_, "source_path") => {
            sql.push("v.source <> '' AND ");
            push_text(sql, "v.source", clause);
        }
        _ => push_text(sql, "v.model", clause),
    }
}

/// Adds what all searches end with.
fn push_end(
    sql: &mut Sql,
    search: &EntrySearch,
    column: fn(&str) -> (&'static str, bool),
    last: &[Order],
) -> Result<()> {
    let mut separator = " ORDER BY ";
    let more = last
        .iter()
        .filter(|term| !search.order.iter().any(|known| known.key == term.key));
    for term in search.order.iter().chain(more) {
        let (name, is_text) = column(&term.key);
        sql.push(separator).push(name);
        if is_text {
            sql.collate();
        }
        sql.push(if term.descending { " DESC" } else { " ASC" });
        separator = ", ";
    }
    // One more tells whether there is another page.
    sql.push(" LIMIT ").integer(i64::from(search.limit) + 1);
    sql.push(" OFFSET ").integer(stored("offset", search.offset)?);
    Ok(())
}

fn term(key: &str, descending: bool) -> Order {
    Order {
        entity: Entity::Attribute,
        key: key.to_owned(),
        descending,
    }
}

fn model_column(key: &str) -> (&'static str, bool) {
    match key {
        "last_updated_timestamp" => ("m.updated_at", false),
        _ => ("m.name", true),
    }
}

fn version_column(key: &str) -> (&'static str, bool) {
    match key {
        "version_number" => ("v.version", false),
        "creation_timestamp" => ("v.created_at", false),
        "last_updated_timestamp" => ("COALESCE(v.updated_at, v.created_at)", false),
        _ => ("v.model", true),
    }
}

fn model_statement(dialect: Dialect, project: &str, search: &EntrySearch) -> Result<Sql> {
    let mut sql = Sql::new(dialect);
    sql.push(select_models!("WHERE m.project = ")).text(project);
    if !search.prompts {
        sql.push(
            " AND NOT EXISTS (SELECT 1 FROM registered_model_tag p WHERE p.project = m.project AND p.model = m.name
              AND p.key = 'mlflow.prompt.is_prompt' AND p.value = 'true')",
        );
    }
    if let Some(filter) = &search.filter {
        sql.push(" AND ");
        push_filter(&mut sql, filter, &push_model_clause);
    }
    push_end(&mut sql, search, model_column, &[term("name", false)])?;
    Ok(sql)
}

fn version_statement(dialect: Dialect, project: &str, search: &EntrySearch) -> Result<Sql> {
    let mut sql = Sql::new(dialect);
    sql.push(select_entries!("WHERE v.project = ")).text(project);
    if !search.prompts {
        sql.push(" AND v.model NOT IN (SELECT p.model FROM model_version_tag p WHERE p.project = ")
            .text(project)
            .push(" AND p.key = 'mlflow.prompt.is_prompt' AND p.value = 'true')");
    }
    if let Some(filter) = &search.filter {
        sql.push(" AND ");
        push_filter(&mut sql, filter, &push_version_clause);
    }
    let mut last = vec![term("name", false), term("version_number", true)];
    if search.order.is_empty() {
        last.insert(0, term("last_updated_timestamp", true));
    }
    push_end(&mut sql, search, version_column, &last)?;
    Ok(sql)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl EntrySearchStore for SqlStore<P> {
    async fn search_model_entries(&self, project: &str, search: &EntrySearch) -> Result<Vec<ModelEntry>> {
        let mut query = Self::query(model_statement(<P as Speaks>::DIALECT, project, search)?);
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<ModelEntryRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let found = Self::complete_model_entries(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn search_version_entries(&self, project: &str, search: &EntrySearch) -> Result<Vec<VersionEntry>> {
        let mut query = Self::query(version_statement(<P as Speaks>::DIALECT, project, search)?);
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<EntryRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let found = Self::complete_entries(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(found)
    }
}
