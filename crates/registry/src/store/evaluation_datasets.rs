//! Evaluation datasets.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::after,
    experiments::no_experiment,
    maybe,
    search::{Bind, Dialect, Speaks, Sql, push_filter, push_text, sql::push_time},
    stored, to_json,
};
use crate::{
    error::{Error, Result},
    model::{
        evaluation_dataset::{EvaluationDataset, EvaluationDatasetSearch, NewEvaluationDataset},
        mlflow_registry::shown,
    },
    search::{Clause, Entity, Operator},
};

/// How many datasets' tags are read with one statement.
const TAGS_AT_ONCE: usize = 500;

/// Evaluation datasets.
#[async_trait]
pub trait EvaluationDatasetStore: Send + Sync {
    /// Makes an evaluation dataset.
    async fn create_evaluation_dataset(&self, new: &NewEvaluationDataset) -> Result<()>;
    /// An evaluation dataset.
    async fn find_evaluation_dataset(&self, project: &str, id: &str) -> Result<Option<EvaluationDataset>>;
    /// Removes an evaluation dataset with its records. Whether there was one.
    async fn delete_evaluation_dataset(&self, project: &str, id: &str, event: &NewEvent) -> Result<bool>;
    /// The evaluation datasets that are found, and one more if there is one.
    async fn search_evaluation_datasets(
        &self,
        project: &str,
        search: &EvaluationDatasetSearch,
    ) -> Result<Vec<EvaluationDataset>>;
    /// Sets tags.
    async fn set_evaluation_dataset_tags(&self, project: &str, id: &str, tags: &BTreeMap<String, String>)
    -> Result<()>;
    /// Removes a tag, if it is there.
    async fn delete_evaluation_dataset_tag(&self, project: &str, id: &str, key: &str) -> Result<()>;
    /// The experiments that an evaluation dataset belongs to, in the order in which they were added.
    async fn evaluation_dataset_experiments(&self, project: &str, id: &str) -> Result<Vec<i64>>;
    /// Lets an evaluation dataset belong to experiments.
    async fn add_evaluation_dataset_experiments(
        &self,
        project: &str,
        id: &str,
        experiments: &[i64],
        now: Timestamp,
    ) -> Result<EvaluationDataset>;
    /// Lets an evaluation dataset belong to experiments no more.
    async fn remove_evaluation_dataset_experiments(
        &self,
        project: &str,
        id: &str,
        experiments: &[i64],
        now: Timestamp,
    ) -> Result<EvaluationDataset>;
}

/// What an evaluation dataset that is not there is answered with.
pub(crate) fn no_evaluation_dataset(id: &str) -> Error {
    Error::NotThere(format!("Dataset '{}' not found.", shown(id)))
}

#[derive(sqlx::FromRow)]
struct EvaluationDatasetRow {
    id: String,
    project: String,
    name: String,
    fields: Option<String>,
    record_count: Option<i64>,
    digest: String,
    created_at: i64,
    updated_at: i64,
    created_by: Option<String>,
    updated_by: Option<String>,
}

/// The columns of [`EvaluationDatasetRow`]; the table is `d`.
macro_rules! select_evaluation_datasets {
    ($rest:literal) => {
        concat!(
            "SELECT d.id, d.project, d.name, d.fields, d.record_count, d.digest, d.created_at, d.updated_at, d.created_by, \
             d.updated_by FROM evaluation_dataset d ",
            $rest
        )
    };
}

impl EvaluationDatasetRow {
    fn into_dataset(self) -> Result<EvaluationDataset> {
        Ok(EvaluationDataset {
            dataset_id: self.id,
            project: self.project,
            name: self.name,
            tags: BTreeMap::new(),
            schema: self.fields,
            record_count: maybe("number of records", self.record_count)?,
            digest: self.digest,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
            created_by: self.created_by,
            updated_by: self.updated_by,
        })
    }
}

fn push_tag(sql: &mut Sql, clause: &Clause) {
    if clause.operator == Operator::IsNull {
        sql.push("NOT ");
    }
    sql.push("EXISTS (SELECT 1 FROM evaluation_dataset_tag t WHERE t.dataset_id = d.id AND t.key = ")
        .text(&clause.key);
    if !matches!(clause.operator, Operator::IsNull | Operator::IsNotNull) {
        sql.push(" AND ");
        push_text(sql, "t.value", clause);
    }
    sql.push(")");
}

fn push_clause(sql: &mut Sql, clause: &Clause) {
    match (clause.entity, clause.key.as_str()) {
        (Entity::Tag, _) => push_tag(sql, clause),
        (_, "created_time") => push_time(sql, "d.created_at", clause),
        (_, "last_update_time") => push_time(sql, "d.updated_at", clause),
        (_, "created_by") => {
            sql.push("d.created_by IS NOT NULL AND ");
            push_text(sql, "d.created_by", clause);
        }
        (_, "last_updated_by") => {
            sql.push("d.updated_by IS NOT NULL AND ");
            push_text(sql, "d.updated_by", clause);
        }
        _ => push_text(sql, "d.name", clause),
    }
}

fn statement(dialect: Dialect, project: &str, search: &EvaluationDatasetSearch) -> Result<Sql> {
    let mut sql = Sql::new(dialect);
    sql.push(select_evaluation_datasets!("WHERE d.project = "))
        .text(project);
    if !search.experiment_ids.is_empty() {
        sql.push(
            " AND EXISTS (SELECT 1 FROM evaluation_dataset_experiment x JOIN experiment e ON e.id = x.experiment_id \
             WHERE x.dataset_id = d.id AND e.project = d.project AND x.experiment_id IN ",
        );
        sql.list(search.experiment_ids.iter().map(|id| Bind::Integer(*id)))
            .push(")");
    }
    if let Some(filter) = &search.filter {
        sql.push(" AND ");
        push_filter(&mut sql, filter, &push_clause);
    }
    sql.push(" ORDER BY ");
    for term in &search.order {
        match term.key.as_str() {
            "created_time" => sql.push("d.created_at"),
            "last_update_time" => sql.push("d.updated_at"),
            _ => sql.push("d.name").collate(),
        };
        sql.push(if term.descending { " DESC, " } else { " ASC, " });
    }
    if search.order.is_empty() {
        sql.push("d.created_at DESC, ");
    }
    // One more tells whether there is another page.
    sql.push("d.id DESC LIMIT ").integer(i64::from(search.limit) + 1);
    sql.push(" OFFSET ").integer(stored("offset", search.offset)?);
    Ok(sql)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn complete_evaluation_datasets(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<EvaluationDatasetRow>,
    ) -> Result<Vec<EvaluationDataset>> {
        let mut datasets = Vec::with_capacity(rows.len());
        for row in rows {
            datasets.push(row.into_dataset()?);
        }
        for chunk in datasets.chunks_mut(TAGS_AT_ONCE) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(
                "SELECT dataset_id, key, value FROM evaluation_dataset_tag WHERE dataset_id IN (",
            );
            let mut ids = query.separated(", ");
            for dataset in &*chunk {
                ids.push_bind(dataset.dataset_id.clone());
            }
            query.push(")");
            let tags: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
            let mut by_dataset: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for (dataset_id, key, value) in tags {
                by_dataset.entry(dataset_id).or_default().insert(key, value);
            }
            for dataset in chunk {
                dataset.tags = by_dataset.remove(&dataset.dataset_id).unwrap_or_default();
            }
        }
        Ok(datasets)
    }

    async fn evaluation_dataset_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
    ) -> Result<Option<EvaluationDataset>> {
        if id.contains('\0') {
            return Ok(None);
        }
        let rows = sqlx::query_as(select_evaluation_datasets!("WHERE d.project = $1 AND d.id = $2"))
            .bind(project)
            .bind(id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_evaluation_datasets(tx, rows).await?.pop())
    }

    /// Holds an evaluation dataset to the end, so that what is read of it is what is changed. Whether it is there.
    async fn holds_evaluation_dataset(tx: &mut Transaction<<P as Pools>::Db>, project: &str, id: &str) -> Result<bool> {
        if id.contains('\0') {
            return Ok(false);
        }
        let held = sqlx::query("UPDATE evaluation_dataset SET digest = digest WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(id)
            .execute(&mut **tx)
            .await?;
        Ok(held.rows_affected() > 0)
    }

    /// Holds an evaluation dataset that must be there.
    pub(super) async fn hold_evaluation_dataset(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
    ) -> Result<()> {
        if Self::holds_evaluation_dataset(tx, project, id).await? {
            return Ok(());
        }
        Err(no_evaluation_dataset(id))
    }

    async fn write_evaluation_tags(
        tx: &mut Transaction<<P as Pools>::Db>,
        id: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        for (key, value) in tags {
            sqlx::query(
                "INSERT INTO evaluation_dataset_tag (dataset_id, key, value) VALUES ($1, $2, $3)
                 ON CONFLICT (dataset_id, key) DO UPDATE SET value = excluded.value",
            )
            .bind(id)
            .bind(key)
            .bind(value)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// Lets an evaluation dataset belong to experiments, all of which must be in its project.
    async fn write_evaluation_experiments(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
        experiments: &[i64],
        now: Timestamp,
    ) -> Result<()> {
        for experiment in experiments {
            let known: Option<i64> = sqlx::query_scalar("SELECT id FROM experiment WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(*experiment)
                .fetch_optional(&mut **tx)
                .await?;
            known.ok_or_else(|| no_experiment(*experiment))?;
            sqlx::query(
                "INSERT INTO evaluation_dataset_experiment (dataset_id, experiment_id, added_at) VALUES ($1, $2, $3)
                 ON CONFLICT (dataset_id, experiment_id) DO NOTHING",
            )
            .bind(id)
            .bind(*experiment)
            .bind(now.as_micros())
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// Writes down that an evaluation dataset was changed, and reads it.
    async fn touch_evaluation_dataset(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
        now: Option<Timestamp>,
    ) -> Result<EvaluationDataset> {
        if let Some(now) = now {
            sqlx::query("UPDATE evaluation_dataset SET updated_at = $1 WHERE project = $2 AND id = $3")
                .bind(now.as_micros())
                .bind(project)
                .bind(id)
                .execute(&mut **tx)
                .await?;
        }
        let changed = Self::evaluation_dataset_in(tx, project, id).await?;
        changed.ok_or_else(|| no_evaluation_dataset(id))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl EvaluationDatasetStore for SqlStore<P> {
    async fn create_evaluation_dataset(&self, new: &NewEvaluationDataset) -> Result<()> {
        let dataset = &new.dataset;
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "INSERT INTO evaluation_dataset (id, project, name, next_position, digest, created_at, updated_at, created_by,
                                             updated_by)
             VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8)",
        )
        .bind(&dataset.dataset_id)
        .bind(&dataset.project)
        .bind(&dataset.name)
        .bind(&dataset.digest)
        .bind(dataset.created_at.as_micros())
        .bind(dataset.updated_at.as_micros())
        .bind(dataset.created_by.as_deref())
        .bind(dataset.updated_by.as_deref())
        .execute(&mut *tx)
        .await?;
        let (project, id) = (dataset.project.as_str(), dataset.dataset_id.as_str());
        Self::write_evaluation_tags(&mut tx, id, &dataset.tags).await?;
        Self::write_evaluation_experiments(&mut tx, project, id, &new.experiment_ids, dataset.created_at).await?;
        Self::append_audit(&mut tx, &after(&new.event, dataset)?).await?;
        Ok(tx.commit().await?)
    }

    async fn find_evaluation_dataset(&self, project: &str, id: &str) -> Result<Option<EvaluationDataset>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::evaluation_dataset_in(&mut tx, project, id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn delete_evaluation_dataset(&self, project: &str, id: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        if !Self::holds_evaluation_dataset(&mut tx, project, id).await? {
            return Ok(false);
        }
        let before = Self::evaluation_dataset_in(&mut tx, project, id).await?;
        let before = before.ok_or_else(|| no_evaluation_dataset(id))?;
        sqlx::query("DELETE FROM evaluation_dataset WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        let before = to_json("evaluation dataset", &before)?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&before), None)).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn search_evaluation_datasets(
        &self,
        project: &str,
        search: &EvaluationDatasetSearch,
    ) -> Result<Vec<EvaluationDataset>> {
        let mut query = Self::query(statement(<P as Speaks>::DIALECT, project, search)?);
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<EvaluationDatasetRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let found = Self::complete_evaluation_datasets(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn set_evaluation_dataset_tags(
        &self,
        project: &str,
        id: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        if !Self::holds_evaluation_dataset(&mut tx, project, id).await? {
            return Err(Error::NotThere(format!(
                "Could not find evaluation dataset with ID {}",
                shown(id)
            )));
        }
        Self::write_evaluation_tags(&mut tx, id, tags).await?;
        Ok(tx.commit().await?)
    }

    async fn delete_evaluation_dataset_tag(&self, project: &str, id: &str, key: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        if key.contains('\0') || !Self::holds_evaluation_dataset(&mut tx, project, id).await? {
            return Ok(());
        }
        sqlx::query("DELETE FROM evaluation_dataset_tag WHERE dataset_id = $1 AND key = $2")
            .bind(id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn evaluation_dataset_experiments(&self, project: &str, id: &str) -> Result<Vec<i64>> {
        if id.contains('\0') {
            return Ok(Vec::new());
        }
        let mut tx = self.pools.snapshot().await?;
        let ids = sqlx::query_scalar(
            "SELECT x.experiment_id
             FROM evaluation_dataset d JOIN evaluation_dataset_experiment x ON x.dataset_id = d.id
             JOIN experiment e ON e.id = x.experiment_id
             WHERE d.project = $1 AND d.id = $2 AND e.project = d.project
             ORDER BY x.added_at, x.experiment_id",
        )
        .bind(project)
        .bind(id)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(ids)
    }

    async fn add_evaluation_dataset_experiments(
        &self,
        project: &str,
        id: &str,
        experiments: &[i64],
        now: Timestamp,
    ) -> Result<EvaluationDataset> {
        let mut tx = self.pools.begin().await?;
        Self::hold_evaluation_dataset(&mut tx, project, id).await?;
        Self::write_evaluation_experiments(&mut tx, project, id, experiments, now).await?;
        let changed = Self::touch_evaluation_dataset(&mut tx, project, id, Some(now)).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn remove_evaluation_dataset_experiments(
        &self,
        project: &str,
        id: &str,
        experiments: &[i64],
        now: Timestamp,
    ) -> Result<EvaluationDataset> {
        let mut tx = self.pools.begin().await?;
        Self::hold_evaluation_dataset(&mut tx, project, id).await?;
        let mut removed = 0;
        for experiment in experiments {
            let query = "DELETE FROM evaluation_dataset_experiment WHERE dataset_id = $1 AND experiment_id = $2";
            let deleted = sqlx::query(query).bind(id).bind(*experiment).execute(&mut *tx).await?;
            removed += deleted.rows_affected();
        }
        let changed = Self::touch_evaluation_dataset(&mut tx, project, id, (removed > 0).then_some(now)).await?;
        tx.commit().await?;
        Ok(changed)
    }
}
