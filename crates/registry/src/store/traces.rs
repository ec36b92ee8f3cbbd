//! Traces: what their clients tell of them besides the spans, tags, links, and their end.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    experiments::no_experiment,
    trace_rows::{IDS_AT_ONCE, TraceRow, no_trace, select_traces},
    tracking::no_run,
};
use crate::{
    error::{Error, Result},
    model::{
        run::Experiment,
        trace::{
            ARTIFACT_LOCATION_TAG, FINALIZED_KEY, NewTrace, SpanBatch, TRACE_NAME_TAG, Trace, TraceChoice,
            TraceDeletion, TraceEnd, TraceInfo,
        },
        tracking::Lifecycle,
    },
};

/// Traces.
#[async_trait]
pub trait TraceStore: Send + Sync {
    /// Adds spans; traces that are not there are made. All of them, or none.
    async fn log_spans(&self, batches: &[SpanBatch]) -> Result<()>;
    /// Adds what a client tells of a trace, before or after its spans.
    async fn start_trace(&self, new: &NewTrace) -> Result<TraceInfo>;
    /// Ends a trace of the older protocol.
    async fn end_trace(&self, project: &str, trace_id: &str, end: &TraceEnd) -> Result<TraceInfo>;
    /// Those of the wanted traces that are there, in the order in which they are wanted.
    async fn find_trace_infos(&self, choice: &TraceChoice) -> Result<Vec<TraceInfo>>;
    /// The same with their spans.
    async fn find_traces(&self, choice: &TraceChoice) -> Result<Vec<Trace>>;
    /// Sets a tag of a trace that is there.
    async fn set_trace_tag(&self, project: &str, trace_id: &str, key: &str, value: &str) -> Result<()>;
    /// Removes a tag of a trace that is there; whether there was one.
    async fn delete_trace_tag(&self, project: &str, trace_id: &str, key: &str) -> Result<bool>;
    /// Deletes traces with all that belongs to them. How many.
    async fn delete_traces(&self, deletion: &TraceDeletion, event: Option<&NewEvent>) -> Result<u64>;
    /// Links traces to a run that is there.
    async fn link_traces_to_run(&self, project: &str, run_id: &str, trace_ids: &[String]) -> Result<()>;
    /// Links versions of prompts, each `NAME/VERSION`, to a trace that is there.
    async fn link_prompts(&self, project: &str, trace_id: &str, prompts: &[String]) -> Result<()>;
}

/// Where the artifacts of a trace are.
pub(super) fn artifact_location(experiment: &Experiment, trace_id: &str) -> String {
    let root = experiment.artifact_root();
    format!("{}/traces/{trace_id}/artifacts", root.trim_end_matches('/'))
}

const UPSERT_TRACE: &str = "
    INSERT INTO trace (project, id, experiment_id, timestamp_ms, execution_time_ms, state, client_request_id,
                       request_preview, response_preview, name, session_id, input_tokens, output_tokens, total_tokens,
                       cache_read_input_tokens, cache_creation_input_tokens, cache_creation_input_tokens_above_1hr,
                       input_cost, output_cost, total_cost)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
    ON CONFLICT (project, id) DO UPDATE SET
        experiment_id = excluded.experiment_id, timestamp_ms = excluded.timestamp_ms,
        execution_time_ms = excluded.execution_time_ms, state = excluded.state,
        client_request_id = excluded.client_request_id,
        request_preview = COALESCE(excluded.request_preview, trace.request_preview),
        response_preview = COALESCE(excluded.response_preview, trace.response_preview),
        name = COALESCE(excluded.name, trace.name), session_id = COALESCE(excluded.session_id, trace.session_id),
        input_tokens = COALESCE(excluded.input_tokens, trace.input_tokens),
        output_tokens = COALESCE(excluded.output_tokens, trace.output_tokens),
        total_tokens = COALESCE(excluded.total_tokens, trace.total_tokens),
        cache_read_input_tokens = COALESCE(excluded.cache_read_input_tokens, trace.cache_read_input_tokens),
        cache_creation_input_tokens =
            COALESCE(excluded.cache_creation_input_tokens, trace.cache_creation_input_tokens),
        cache_creation_input_tokens_above_1hr =
            COALESCE(excluded.cache_creation_input_tokens_above_1hr, trace.cache_creation_input_tokens_above_1hr),
        input_cost = COALESCE(excluded.input_cost, trace.input_cost),
        output_cost = COALESCE(excluded.output_cost, trace.output_cost),
        total_cost = COALESCE(excluded.total_cost, trace.total_cost)";

/// How many texts are written with one statement.
const TEXTS_AT_ONCE: usize = 500;

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// An experiment that can take traces.
    pub(super) async fn active_experiment(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: i64,
    ) -> Result<Experiment> {
        let found = Self::experiment_in(tx, project, id).await?;
        let experiment = found.ok_or_else(|| no_experiment(id))?;
        if experiment.lifecycle == Lifecycle::Active {
            return Ok(experiment);
        }
        Err(Error::State(format!(
            "The experiment {id} must be in the 'active' state. Current state is deleted."
        )))
    }

    async fn set_trace_texts(
        tx: &mut Transaction<<P as Pools>::Db>,
        table: &'static str,
        (project, trace_id): (&str, &str),
        texts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let rows: Vec<_> = texts.iter().collect();
        for chunk in rows.chunks(TEXTS_AT_ONCE) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new("INSERT INTO ");
            query.push(table).push(" (project, trace_id, key, value) ");
            query.push_values(chunk, |mut row, (key, value)| {
                row.push_bind(project.to_owned())
                    .push_bind(trace_id.to_owned())
                    .push_bind((*key).clone())
                    .push_bind((*value).clone());
            });
            query.push(" ON CONFLICT (project, trace_id, key) DO UPDATE SET value = excluded.value");
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    pub(super) async fn set_trace_tags(
        tx: &mut Transaction<<P as Pools>::Db>,
        trace: (&str, &str),
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        Self::set_trace_texts(tx, "trace_tag", trace, tags).await
    }

    pub(super) async fn set_trace_metadata(
        tx: &mut Transaction<<P as Pools>::Db>,
        trace: (&str, &str),
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        Self::set_trace_texts(tx, "trace_metadata", trace, metadata).await
    }

    async fn upsert_trace(tx: &mut Transaction<<P as Pools>::Db>, info: &TraceInfo) -> Result<()> {
        let mut query = sqlx::query(UPSERT_TRACE)
            .bind(&info.project)
            .bind(&info.trace_id)
            .bind(info.experiment_id)
            .bind(info.timestamp_ms)
            .bind(info.execution_time_ms)
            .bind(info.state.as_str())
            .bind(info.client_request_id.as_deref())
            .bind(info.request_preview.as_deref())
            .bind(info.response_preview.as_deref())
            .bind(info.name.as_deref())
            .bind(info.session_id.as_deref());
        for count in info.usage.counts() {
            query = query.bind(count);
        }
        for amount in info.cost.amounts() {
            query = query.bind(amount);
        }
        query.execute(&mut **tx).await?;
        Ok(())
    }

    async fn trace_rows(tx: &mut Transaction<<P as Pools>::Db>, choice: &TraceChoice) -> Result<Vec<TraceInfo>> {
        let mut found = BTreeMap::new();
        let wanted: Vec<&String> = choice.trace_ids.iter().filter(|id| !id.contains('\0')).collect();
        for chunk in wanted.chunks(IDS_AT_ONCE) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(select_traces!("WHERE r.project = "));
            query.push_bind(choice.project.clone());
            query.push(" AND r.id IN (");
            let mut ids = query.separated(", ");
            for id in chunk {
                ids.push_bind((*id).clone());
            }
            query.push(")");
            let rows: Vec<TraceRow> = query.build_query_as().fetch_all(&mut **tx).await?;
            for info in Self::complete_traces(tx, &choice.project, rows).await? {
                let experiments = choice.experiment_ids.as_ref();
                if experiments.is_none_or(|ids| ids.contains(&info.experiment_id)) {
                    found.insert(info.trace_id.clone(), info);
                }
            }
        }
        // Each once, also where it is asked for twice.
        Ok(choice.trace_ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// The spans of a trace, roots first.
    async fn spans_of(tx: &mut Transaction<<P as Pools>::Db>, project: &str, trace_id: &str) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "SELECT content FROM span WHERE project = $1 AND trace_id = $2
             ORDER BY CASE WHEN parent_id IS NULL THEN 0 ELSE 1 END, start_ns, span_id",
        );
        Ok(query.bind(project).bind(trace_id).fetch_all(&mut **tx).await?)
    }

    async fn doomed_traces(tx: &mut Transaction<<P as Pools>::Db>, deletion: &TraceDeletion) -> Result<Vec<String>> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new("SELECT id FROM trace WHERE project = ");
        query.push_bind(deletion.project.clone());
        query.push(" AND experiment_id = ").push_bind(deletion.experiment_id);
        if let Some(until) = deletion.until_ms {
            query.push(" AND timestamp_ms <= ").push_bind(until);
        }
        if !deletion.trace_ids.is_empty() {
            query.push(" AND id IN (");
            let mut ids = query.separated(", ");
            for id in deletion.trace_ids.iter().filter(|id| !id.contains('\0')) {
                ids.push_bind(id.clone());
            }
            ids.push("NULL");
            query.push(")");
        }
        query
            .push(" ORDER BY timestamp_ms, id LIMIT ")
            .push_bind(i64::from(deletion.limit));
        Ok(query.build_query_scalar().fetch_all(&mut **tx).await?)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TraceStore for SqlStore<P> {
    async fn log_spans(&self, batches: &[SpanBatch]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::insert_batches(&mut tx, batches).await?;
        Ok(tx.commit().await?)
    }

    async fn start_trace(&self, new: &NewTrace) -> Result<TraceInfo> {
        let info = &new.info;
        let trace = (info.project.as_str(), info.trace_id.as_str());
        let mut tx = self.pools.begin().await?;
        let experiment = Self::active_experiment(&mut tx, &info.project, info.experiment_id).await?;
        Self::upsert_trace(&mut tx, info).await?;
        Self::set_trace_tags(&mut tx, trace, &info.tags).await?;
        let location = artifact_location(&experiment, &info.trace_id);
        let location = BTreeMap::from([(ARTIFACT_LOCATION_TAG.to_owned(), location)]);
        Self::set_trace_tags(&mut tx, trace, &location).await?;
        Self::set_trace_metadata(&mut tx, trace, &info.metadata).await?;
        if new.is_final {
            let is_final = BTreeMap::from([(FINALIZED_KEY.to_owned(), "true".to_owned())]);
            Self::set_trace_metadata(&mut tx, trace, &is_final).await?;
        }
        for assessment in &info.assessments {
            Self::upsert_assessment(&mut tx, &info.project, assessment).await?;
        }
        sqlx::query("UPDATE span SET experiment_id = $1 WHERE project = $2 AND trace_id = $3 AND experiment_id <> $1")
            .bind(info.experiment_id)
            .bind(trace.0)
            .bind(trace.1)
            .execute(&mut *tx)
            .await?;
        let made = Self::trace_in(&mut tx, trace.0, trace.1).await?;
        let made = made.ok_or_else(|| no_trace(trace.1))?;
        tx.commit().await?;
        Ok(made)
    }

    async fn end_trace(&self, project: &str, trace_id: &str, end: &TraceEnd) -> Result<TraceInfo> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        let found = Self::trace_in(&mut tx, project, trace_id).await?;
        let mut info = found.ok_or_else(|| no_trace(trace_id))?;
        info.execution_time_ms = Some(end.timestamp_ms.saturating_sub(info.timestamp_ms));
        info.state = end.state;
        info.name.clone_from(&end.name);
        info.session_id.clone_from(&end.session_id);
        info.usage = end.usage;
        info.cost = end.cost;
        // What is not given stays as it is.
        Self::upsert_trace(&mut tx, &info).await?;
        Self::set_trace_tags(&mut tx, (project, trace_id), &end.tags).await?;
        Self::set_trace_metadata(&mut tx, (project, trace_id), &end.metadata).await?;
        let ended = Self::trace_in(&mut tx, project, trace_id).await?;
        let ended = ended.ok_or_else(|| no_trace(trace_id))?;
        tx.commit().await?;
        Ok(ended)
    }

    async fn find_trace_infos(&self, choice: &TraceChoice) -> Result<Vec<TraceInfo>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::trace_rows(&mut tx, choice).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn find_traces(&self, choice: &TraceChoice) -> Result<Vec<Trace>> {
        let mut tx = self.pools.snapshot().await?;
        let infos = Self::trace_rows(&mut tx, choice).await?;
        let mut found = Vec::with_capacity(infos.len());
        for info in infos {
            let spans = Self::spans_of(&mut tx, &choice.project, &info.trace_id).await?;
            found.push(Trace { info, spans });
        }
        tx.rollback().await?;
        Ok(found)
    }

    async fn set_trace_tag(&self, project: &str, trace_id: &str, key: &str, value: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        if key == TRACE_NAME_TAG {
            sqlx::query("UPDATE trace SET name = $1 WHERE project = $2 AND id = $3")
                .bind(value)
                .bind(project)
                .bind(trace_id)
                .execute(&mut *tx)
                .await?;
        } else {
            let tag = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            Self::set_trace_tags(&mut tx, (project, trace_id), &tag).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn delete_trace_tag(&self, project: &str, trace_id: &str, key: &str) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        let deleted = if key == TRACE_NAME_TAG {
            sqlx::query("UPDATE trace SET name = NULL WHERE project = $1 AND id = $2 AND name IS NOT NULL")
                .bind(project)
                .bind(trace_id)
        } else {
            sqlx::query("DELETE FROM trace_tag WHERE project = $1 AND trace_id = $2 AND key = $3")
                .bind(project)
                .bind(trace_id)
                .bind(key)
        };
        let deleted = deleted.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        Ok(deleted > 0)
    }

    async fn delete_traces(&self, deletion: &TraceDeletion, event: Option<&NewEvent>) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let doomed = Self::doomed_traces(&mut tx, deletion).await?;
        let mut deleted = 0;
        for chunk in doomed.chunks(IDS_AT_ONCE) {
            // Links have no foreign key, because one may come before its trace.
            for statement in [
                "DELETE FROM trace_run WHERE trace_id IN (",
                "DELETE FROM trace WHERE id IN (",
            ] {
                let mut query = QueryBuilder::<<P as Pools>::Db>::new(statement);
                let mut ids = query.separated(", ");
                for id in chunk {
                    ids.push_bind(id.clone());
                }
                query.push(") AND project = ").push_bind(deletion.project.clone());
                let gone = query.build().execute(&mut *tx).await?.rows_affected();
                if statement.contains("FROM trace WHERE") {
                    deleted += gone;
                }
            }
        }
        if deleted > 0
            && let Some(event) = event
        {
            Self::append_audit(&mut tx, event).await?;
        }
        tx.commit().await?;
        Ok(deleted)
    }

    async fn link_traces_to_run(&self, project: &str, run_id: &str, trace_ids: &[String]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let found: Option<i64> = sqlx::query_scalar("SELECT experiment_id FROM run WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(run_id)
            .fetch_optional(&mut *tx)
            .await?;
        found.ok_or_else(|| no_run(run_id))?;
        for trace_id in trace_ids {
            sqlx::query("INSERT INTO trace_run (project, run_id, trace_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(project)
                .bind(run_id)
                .bind(trace_id)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn link_prompts(&self, project: &str, trace_id: &str, prompts: &[String]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        for prompt in prompts {
            sqlx::query(
                "INSERT INTO trace_prompt (project, trace_id, prompt) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            )
            .bind(project)
            .bind(trace_id)
            .bind(prompt)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }
}
