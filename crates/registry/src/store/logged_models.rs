//! Logged models.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    run_rows::PointRow,
    search::{Bind, Dialect, Speaks, Sql, push_filter, push_number, push_text},
    stored, word,
};
use crate::{
    error::{Error, Result},
    model::{
        logged_model::{
            LoggedMetric, LoggedModel, LoggedModelChange, LoggedModelOrder, LoggedModelSearch, LoggedModelStatus,
            NewLoggedModel,
        },
        tracking::Lifecycle,
    },
    search::{Clause, Entity, Operator},
};

/// Logged models.
#[async_trait]
pub trait LoggedModelStore: Send + Sync {
    /// Makes a logged model.
    async fn create_logged_model(&self, new: &NewLoggedModel) -> Result<LoggedModel>;
    /// A logged model, deleted or not.
    async fn find_logged_model(&self, project: &str, model_id: &str) -> Result<Option<LoggedModel>>;
    /// Changes a logged model that is there.
    async fn change_logged_model(
        &self,
        project: &str,
        model_id: &str,
        change: &LoggedModelChange,
        now: Timestamp,
    ) -> Result<LoggedModel>;
    /// Removes a tag; whether there was one.
    async fn delete_logged_model_tag(&self, project: &str, model_id: &str, key: &str) -> Result<bool>;
    /// The logged models that are found, and one more if there is one.
    async fn search_logged_models(&self, project: &str, search: &LoggedModelSearch) -> Result<Vec<LoggedModel>>;
}

/// What a logged model that is not there is answered with.
pub(crate) fn no_logged_model(model_id: &str) -> Error {
    let shown: String = model_id.chars().take(64).flat_map(char::escape_default).collect();
    Error::NotThere(format!("Logged model with ID '{shown}' not found."))
}

#[derive(sqlx::FromRow)]
struct LoggedModelRow {
    id: String,
    project: String,
    experiment_id: i64,
    artifact_location: String,
    name: String,
    model_type: String,
    status: String,
    source_run_id: Option<String>,
    lifecycle: String,
    created_at: i64,
    updated_at: i64,
}

/// The columns of [`LoggedModelRow`]; the table is `l`.
macro_rules! select_logged_models {
    ($rest:literal) => {
        concat!(
            "SELECT l.id, l.project, l.experiment_id, e.artifact_location, l.name, l.model_type, l.status, l.source_run_id, \
             l.lifecycle, l.created_at, l.updated_at FROM logged_model l JOIN experiment e ON e.id = l.experiment_id ",
            $rest
        )
    };
}

impl LoggedModelRow {
    fn into_model(self) -> Result<LoggedModel> {
        Ok(LoggedModel {
            model_id: self.id,
            project: self.project,
            experiment_id: self.experiment_id,
            artifact_location: self.artifact_location,
            name: self.name,
            model_type: self.model_type,
            status: word("status of a logged model", &self.status, LoggedModelStatus::parse)?,
            source_run_id: self.source_run_id,
            lifecycle: word("lifecycle of a logged model", &self.lifecycle, Lifecycle::parse)?,
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            metrics: Vec::new(),
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct LoggedMetricRow {
    model_id: String,
    key: String,
    run_id: String,
    dataset_name: String,
    dataset_digest: String,
    #[sqlx(flatten)]
    point: PointRow,
}

/// Adds the latest value of a metric of the model `l`, of those on the wanted datasets.
fn push_metric(sql: &mut Sql, key: &str, datasets: &[(String, String)]) {
    sql.push("FROM logged_model_metric x WHERE x.model_id = l.id AND x.key = ")
        .text(key);
    push_datasets(sql, datasets);
}

/// Adds that a metric `x` is of one of the wanted datasets; none are named: of any.
fn push_datasets(sql: &mut Sql, datasets: &[(String, String)]) {
    if datasets.is_empty() {
        return;
    }
    let mut separator = " AND (";
    for (name, digest) in datasets {
        sql.push(separator).push("(x.dataset_name = ").text(name);
        if !digest.is_empty() {
            sql.push(" AND x.dataset_digest = ").text(digest);
        }
        sql.push(")");
        separator = " OR ";
    }
    sql.push(")");
}

fn push_keyed(sql: &mut Sql, texts: &'static str, clause: &Clause) {
    if clause.operator == Operator::IsNull {
        sql.push("NOT ");
    }
    sql.push("EXISTS (").push(texts).text(&clause.key);
    if !matches!(clause.operator, Operator::IsNull | Operator::IsNotNull) {
        sql.push(" AND ");
        push_text(sql, "t.value", clause);
    }
    sql.push(")");
}

fn push_clause(sql: &mut Sql, clause: &Clause, datasets: &[(String, String)]) {
    match (clause.entity, clause.key.as_str()) {
        (Entity::Metric, key) => {
            sql.push("EXISTS (SELECT 1 ");
            push_metric(sql, key, datasets);
            sql.push(" AND x.is_nan = 0 AND ");
            push_number(sql, "x.value", clause);
            sql.push(")");
        }
        (Entity::Param, _) => push_keyed(
            sql,
            "SELECT 1 FROM logged_model_param t WHERE t.model_id = l.id AND t.key = ",
            clause,
        ),
        (Entity::Tag, _) => push_keyed(
            sql,
            "SELECT 1 FROM logged_model_tag t WHERE t.model_id = l.id AND t.key = ",
            clause,
        ),
        (_, "creation_timestamp") => push_number(sql, "l.created_at / 1000", clause),
        (_, "last_updated_timestamp") => push_number(sql, "l.updated_at / 1000", clause),
        (_, "model_id") => push_text(sql, "l.id", clause),
        (_, "model_type") => push_text(sql, "l.model_type", clause),
        (_, "status") => push_text(sql, "l.status", clause),
        (_, "source_run_id") => push_text(sql, "COALESCE(l.source_run_id, '')", clause),
        _ => push_text(sql, "l.name", clause),
    }
}

fn push_order(sql: &mut Sql, term: &LoggedModelOrder) {
    let direction = if term.order.descending { " DESC" } else { " ASC" };
    if term.order.entity == Entity::Metric {
        let dataset: &[(String, String)] = if term.dataset.0.is_empty() {
            &[]
        } else {
            std::slice::from_ref(&term.dataset)
        };
        // What lacks the metric comes last, whatever the direction.
        sql.push("CASE WHEN EXISTS (SELECT 1 ");
        push_metric(sql, &term.order.key, dataset);
        sql.push(") THEN 0 ELSE 1 END, (SELECT x.value ");
        push_metric(sql, &term.order.key, dataset);
        sql.push(" ORDER BY x.step DESC, x.timestamp DESC, x.value DESC LIMIT 1)");
        sql.push(direction);
        return;
    }
    let (column, is_text) = match term.order.key.as_str() {
        "creation_timestamp" => ("l.created_at", false),
        "last_updated_timestamp" => ("l.updated_at", false),
        "model_id" => ("l.id", true),
        "model_type" => ("l.model_type", true),
        "status" => ("l.status", true),
        "source_run_id" => ("COALESCE(l.source_run_id, '')", true),
        _ => ("l.name", true),
    };
    sql.push(column);
    if is_text {
        sql.collate();
    }
    sql.push(direction);
}

fn statement(dialect: Dialect, project: &str, search: &LoggedModelSearch) -> Result<Sql> {
    let mut sql = Sql::new(dialect);
    sql.push(select_logged_models!("WHERE l.project = ")).text(project);
    sql.push(" AND l.lifecycle = 'active' AND l.experiment_id IN ");
    sql.list(search.experiment_ids.iter().map(|id| Bind::Integer(*id)));
    if let Some(filter) = &search.filter {
        sql.push(" AND ");
        push_filter(&mut sql, filter, &|sql, clause| {
            push_clause(sql, clause, &search.datasets);
        });
    }
    let asks_metric = search.filter.as_ref().is_some_and(|filter| filter.asks(Entity::Metric));
    if !search.datasets.is_empty() && !asks_metric {
        sql.push(" AND EXISTS (SELECT 1 FROM logged_model_metric x WHERE x.model_id = l.id");
        push_datasets(&mut sql, &search.datasets);
        sql.push(")");
    }
    sql.push(" ORDER BY ");
    for term in &search.order {
        push_order(&mut sql, term);
        sql.push(", ");
    }
    sql.push("l.created_at DESC, l.id");
    // One more tells whether there is another page.
    sql.push(" LIMIT ").integer(i64::from(search.limit) + 1);
    sql.push(" OFFSET ").integer(stored("offset", search.offset)?);
    Ok(sql)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn complete_logged_models(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<LoggedModelRow>,
    ) -> Result<Vec<LoggedModel>> {
        let mut models = Vec::with_capacity(rows.len());
        for row in rows {
            models.push(row.into_model()?);
        }
        if models.is_empty() {
            return Ok(models);
        }
        let chosen = |select: &str, order: &str| {
            let latest = if select.ends_with("AS latest") {
                "place = 1 AND "
            } else {
                ""
            };
            let mut query =
                QueryBuilder::<<P as Pools>::Db>::new(format!("SELECT {select} WHERE {latest}model_id IN ("));
            let mut ids = query.separated(", ");
            for model in &models {
                ids.push_bind(model.model_id.clone());
            }
            query.push(format!(") ORDER BY {order}"));
            query
        };
        let mut query = chosen("model_id, key, value FROM logged_model_param", "model_id, key");
        let params: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut query = chosen("model_id, key, value FROM logged_model_tag", "model_id, key");
        let tags: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut query = chosen(
            "model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value, is_nan FROM (
                SELECT model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value, is_nan,
                       ROW_NUMBER() OVER (PARTITION BY model_id, key, run_id, dataset_name, dataset_digest
                                          ORDER BY step DESC, timestamp DESC, value DESC) AS place
                FROM logged_model_metric
             ) AS latest",
            "model_id, key, run_id, dataset_name, dataset_digest",
        );
        let metrics: Vec<LoggedMetricRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        let places: BTreeMap<String, usize> = models
            .iter()
            .enumerate()
            .map(|(place, model)| (model.model_id.clone(), place))
            .collect();
        for (model_id, key, value) in params {
            models[places[&model_id]].params.insert(key, value);
        }
        for (model_id, key, value) in tags {
            models[places[&model_id]].tags.insert(key, value);
        }
        for row in metrics {
            let metric = LoggedMetric {
                key: row.key,
                point: row.point.into_point(),
                run_id: row.run_id,
                dataset: (row.dataset_name, row.dataset_digest),
            };
            models[places[&row.model_id]].metrics.push(metric);
        }
        Ok(models)
    }

    pub(super) async fn logged_model_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model_id: &str,
    ) -> Result<Option<LoggedModel>> {
        if model_id.contains('\0') {
            return Ok(None);
        }
        let rows = sqlx::query_as(select_logged_models!("WHERE l.project = $1 AND l.id = $2"))
            .bind(project)
            .bind(model_id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_logged_models(tx, rows).await?.pop())
    }

    /// Sets params and tags of a logged model.
    pub(super) async fn set_logged_model_texts(
        tx: &mut Transaction<<P as Pools>::Db>,
        model_id: &str,
        params: &BTreeMap<String, String>,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        Self::set_logged_texts(tx, SET_PARAM, model_id, params).await?;
        Self::set_logged_texts(tx, SET_TAG, model_id, tags).await
    }

    /// Sets params or tags of a logged model, whose statement is given.
    async fn set_logged_texts(
        tx: &mut Transaction<<P as Pools>::Db>,
        statement: &'static str,
        model_id: &str,
        texts: &BTreeMap<String, String>,
    ) -> Result<()> {
        for (key, value) in texts {
            sqlx::query(statement)
                .bind(model_id)
                .bind(key)
                .bind(value)
                .execute(&mut **tx)
                .await?;
        }
        Ok(())
    }
}

const SET_PARAM: &str = "INSERT INTO logged_model_param (model_id, key, value) VALUES ($1, $2, $3)
                         ON CONFLICT (model_id, key) DO UPDATE SET value = excluded.value";
const SET_TAG: &str = "INSERT INTO logged_model_tag (model_id, key, value) VALUES ($1, $2, $3)
                       ON CONFLICT (model_id, key) DO UPDATE SET value = excluded.value";

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl LoggedModelStore for SqlStore<P> {
    async fn create_logged_model(&self, new: &NewLoggedModel) -> Result<LoggedModel> {
        let mut tx = self.pools.begin().await?;
        let experiment = Self::experiment_in(&mut tx, &new.project, new.experiment_id).await?;
        match experiment.map(|experiment| experiment.lifecycle) {
            None => return Err(super::experiments::no_experiment(new.experiment_id)),
            Some(Lifecycle::Active) => {}
            Some(Lifecycle::Deleted) => {
                return Err(Error::State(format!(
                    "The experiment {} must be in the 'active' state. Current state is deleted.",
                    new.experiment_id
                )));
            }
        }
        sqlx::query(
            "INSERT INTO logged_model (id, project, experiment_id, name, model_type, status, source_run_id, lifecycle,
                                       created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'PENDING', $6, 'active', $7, $7)",
        )
        .bind(&new.model_id)
        .bind(&new.project)
        .bind(new.experiment_id)
        .bind(&new.name)
        .bind(&new.model_type)
        .bind(new.source_run_id.as_deref())
        .bind(new.now.as_micros())
        .execute(&mut *tx)
        .await?;
        Self::set_logged_texts(&mut tx, SET_PARAM, &new.model_id, &new.params).await?;
        Self::set_logged_texts(&mut tx, SET_TAG, &new.model_id, &new.tags).await?;
        let made = Self::logged_model_in(&mut tx, &new.project, &new.model_id).await?;
        let made = made.ok_or_else(|| no_logged_model(&new.model_id))?;
        tx.commit().await?;
        Ok(made)
    }

    async fn find_logged_model(&self, project: &str, model_id: &str) -> Result<Option<LoggedModel>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::logged_model_in(&mut tx, project, model_id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn change_logged_model(
        &self,
        project: &str,
        model_id: &str,
        change: &LoggedModelChange,
        now: Timestamp,
    ) -> Result<LoggedModel> {
        let mut tx = self.pools.begin().await?;
        // Held to the end, so that what is read is what is changed.
        sqlx::query("UPDATE logged_model SET status = status WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(model_id)
            .execute(&mut *tx)
            .await?;
        let before = Self::logged_model_in(&mut tx, project, model_id).await?;
        let before = before.filter(|model| model.lifecycle == Lifecycle::Active);
        let before = before.ok_or_else(|| no_logged_model(model_id))?;
        let lifecycle = if change.delete {
            Lifecycle::Deleted
        } else {
            before.lifecycle
        };
        sqlx::query("UPDATE logged_model SET status = $1, lifecycle = $2, updated_at = $3 WHERE id = $4")
            .bind(change.status.unwrap_or(before.status).as_str())
            .bind(lifecycle.as_str())
            .bind(now.as_micros())
            .bind(model_id)
            .execute(&mut *tx)
            .await?;
        Self::set_logged_texts(&mut tx, SET_PARAM, model_id, &change.params).await?;
        Self::set_logged_texts(&mut tx, SET_TAG, model_id, &change.tags).await?;
        let changed = Self::logged_model_in(&mut tx, project, model_id).await?;
        let changed = changed.ok_or_else(|| no_logged_model(model_id))?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn delete_logged_model_tag(&self, project: &str, model_id: &str, key: &str) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let found = Self::logged_model_in(&mut tx, project, model_id).await?;
        let found = found.filter(|model| model.lifecycle == Lifecycle::Active);
        found.ok_or_else(|| no_logged_model(model_id))?;
        let deleted = sqlx::query("DELETE FROM logged_model_tag WHERE model_id = $1 AND key = $2")
            .bind(model_id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    async fn search_logged_models(&self, project: &str, search: &LoggedModelSearch) -> Result<Vec<LoggedModel>> {
        let mut query = Self::query(statement(<P as Speaks>::DIALECT, project, search)?);
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<LoggedModelRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        let found = Self::complete_logged_models(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(found)
    }
}
