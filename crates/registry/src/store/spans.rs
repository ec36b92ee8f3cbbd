//! Spans: of many callers in one transaction, and what they tell of their traces.

use std::collections::{BTreeMap, BTreeSet};

use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    trace_rows::{CostRow, no_trace},
    traces::artifact_location,
    word,
};
use crate::{
    error::Result,
    model::{
        run::Experiment,
        span_totals::{SpanNode, total_cost, total_usage},
        trace::{
            ARTIFACT_LOCATION_TAG, Cost, FINALIZED_KEY, IN_STORE, SPANS_LOCATION_TAG, SpanBatch, StoredSpan,
            TokenUsage, TraceSpans, TraceState, USER_KEY,
        },
    },
};

/// How many spans are inserted with one statement.
const INSERTED_SPANS: usize = 200;

#[derive(sqlx::FromRow)]
struct NodeRow {
    span_id: String,
    parent_id: Option<String>,
    token_usage: Option<String>,
    #[sqlx(flatten)]
    cost: CostRow,
}

impl NodeRow {
    fn into_node(self) -> SpanNode {
        SpanNode {
            span_id: self.span_id,
            parent_id: self.parent_id,
            token_usage: self.token_usage,
            cost: self.cost.into_cost(),
        }
    }
}

/// What is known of a trace before spans are added.
#[derive(sqlx::FromRow)]
struct Before {
    experiment_id: i64,
    timestamp_ms: i64,
    execution_time_ms: Option<i64>,
    state: String,
    has_usage: i64,
    has_cost: i64,
    is_final: i64,
}

/// What spans make of a trace.
struct After {
    timestamp_ms: i64,
    execution_time_ms: Option<i64>,
    state: TraceState,
    usage: TokenUsage,
    cost: Cost,
}

impl Before {
    /// What becomes of the trace; tokens and cost of all its spans where they are to be written.
    fn after(&self, spans: &TraceSpans, usage: Option<TokenUsage>, cost: Option<Cost>) -> Result<After> {
        let summary = &spans.summary;
        let state = word("state of a trace", &self.state, TraceState::parse)?;
        let is_open = matches!(state, TraceState::InProgress | TraceState::Unspecified);
        let mut after = After {
            timestamp_ms: self.timestamp_ms,
            execution_time_ms: self.execution_time_ms,
            state: summary.root_state.filter(|_| is_open).unwrap_or(state),
            usage: usage.unwrap_or_default(),
            cost: cost.unwrap_or_default(),
        };
        // What the client told of the whole counts more than what some spans tell.
        if self.is_final == 0 {
            after.timestamp_ms = self.timestamp_ms.min(summary.start_ms);
            if let Some(end) = summary.end_ms {
                let known = self
                    .execution_time_ms
                    .map(|time| self.timestamp_ms.saturating_add(time));
                let end = known.map_or(end, |known| known.max(end));
                after.execution_time_ms = Some(end.saturating_sub(after.timestamp_ms));
            }
        }
        Ok(after)
    }
}

/// Spans of a trace, with the project and the experiment of their batch.
struct Part<'a> {
    project: &'a str,
    experiment_id: i64,
    spans: &'a TraceSpans,
}

/// By project and trace: the order in which every transaction takes its locks.
fn parts(batches: &[SpanBatch]) -> Vec<Part<'_>> {
    let mut parts: Vec<_> = batches
        .iter()
        .flat_map(|batch| {
            batch.traces.iter().map(|spans| Part {
                project: &batch.project,
                experiment_id: batch.experiment_id,
                spans,
            })
        })
        .collect();
    parts.sort_by_key(|part| (part.project, part.spans.trace_id.as_str()));
    parts
}

const INSERT_TRACE: &str = "
    INSERT INTO trace (project, id, experiment_id, timestamp_ms, execution_time_ms, state)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (project, id) DO NOTHING";

const HOLD_TRACE: &str = "
    UPDATE trace SET state = state WHERE project = $1 AND id = $2
    RETURNING experiment_id, timestamp_ms, execution_time_ms, state,
              CAST(CASE WHEN COALESCE(input_tokens, output_tokens, total_tokens, cache_read_input_tokens,
                                      cache_creation_input_tokens, cache_creation_input_tokens_above_1hr) IS NULL
                   THEN 0 ELSE 1 END AS BIGINT) AS has_usage,
              CAST(CASE WHEN COALESCE(input_cost, output_cost, total_cost) IS NULL
                   THEN 0 ELSE 1 END AS BIGINT) AS has_cost,
              (SELECT COUNT(*) FROM trace_metadata m
               WHERE m.project = trace.project AND m.trace_id = trace.id AND m.key = $3) AS is_final";

const UPDATE_TRACE: &str = "
    UPDATE trace SET timestamp_ms = $3, execution_time_ms = $4, state = $5,
        request_preview = COALESCE(request_preview, $6), response_preview = COALESCE(response_preview, $7),
        name = COALESCE($8, name), session_id = COALESCE(session_id, $9),
        input_tokens = COALESCE($10, input_tokens), output_tokens = COALESCE($11, output_tokens),
        total_tokens = COALESCE($12, total_tokens),
        cache_read_input_tokens = COALESCE($13, cache_read_input_tokens),
        cache_creation_input_tokens = COALESCE($14, cache_creation_input_tokens),
        cache_creation_input_tokens_above_1hr = COALESCE($15, cache_creation_input_tokens_above_1hr),
        input_cost = COALESCE($16, input_cost), output_cost = COALESCE($17, output_cost),
        total_cost = COALESCE($18, total_cost)
    WHERE project = $1 AND id = $2";

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Adds the spans of all batches.
    pub(super) async fn insert_batches(tx: &mut Transaction<<P as Pools>::Db>, batches: &[SpanBatch]) -> Result<()> {
        let parts = parts(batches);
        let wanted: BTreeSet<(&str, i64)> = parts.iter().map(|part| (part.project, part.experiment_id)).collect();
        let mut experiments = BTreeMap::new();
        for (project, id) in wanted {
            experiments.insert((project, id), Self::active_experiment(tx, project, id).await?);
        }
        for part in &parts {
            Self::insert_part(tx, part, &experiments[&(part.project, part.experiment_id)]).await?;
        }
        Ok(())
    }

    async fn insert_part(
        tx: &mut Transaction<<P as Pools>::Db>,
        part: &Part<'_>,
        experiment: &Experiment,
    ) -> Result<()> {
        let trace = (part.project, part.spans.trace_id.as_str());
        let summary = &part.spans.summary;
        let inserted = sqlx::query(INSERT_TRACE)
            .bind(trace.0)
            .bind(trace.1)
            .bind(part.experiment_id)
            .bind(summary.start_ms)
            .bind(summary.end_ms.map(|end| end.saturating_sub(summary.start_ms)))
            .bind(summary.root_state.unwrap_or(TraceState::InProgress).as_str())
            .execute(&mut **tx)
            .await?;
        let is_new = inserted.rows_affected() > 0;
        let before: Option<Before> = sqlx::query_as(HOLD_TRACE)
            .bind(trace.0)
            .bind(trace.1)
            .bind(FINALIZED_KEY)
            .fetch_optional(&mut **tx)
            .await?;
        let before = before.ok_or_else(|| no_trace(trace.1))?;
        Self::upsert_spans(tx, part, before.experiment_id).await?;
        Self::update_trace(tx, part, &before, is_new).await?;
        let mut tags = summary.tags.clone();
        tags.insert(SPANS_LOCATION_TAG.to_owned(), IN_STORE.to_owned());
        if is_new {
            tags.insert(ARTIFACT_LOCATION_TAG.to_owned(), artifact_location(experiment, trace.1));
        }
        Self::set_trace_tags(tx, trace, &tags).await?;
        if let Some(user) = &summary.user_id {
            sqlx::query(
                "INSERT INTO trace_metadata (project, trace_id, key, value) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (project, trace_id, key) DO NOTHING",
            )
            .bind(trace.0)
            .bind(trace.1)
            .bind(USER_KEY)
            .bind(user)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    async fn upsert_spans(tx: &mut Transaction<<P as Pools>::Db>, part: &Part<'_>, experiment_id: i64) -> Result<()> {
        for chunk in part.spans.spans.chunks(INSERTED_SPANS) {
            let mut query = QueryBuilder::new(
                "INSERT INTO span (project, trace_id, span_id, experiment_id, parent_id, name, type, status, start_ns, end_ns,
                                   duration_ns, content, token_usage, input_cost, output_cost, total_cost, model_name,
                                   model_provider) ",
            );
            query.push_values(chunk, |mut row, span| {
                row.push_bind(part.project.to_owned())
                    .push_bind(span.trace_id.clone())
                    .push_bind(span.span_id.clone())
                    .push_bind(experiment_id)
                    .push_bind(span.parent_id.clone())
                    .push_bind(span.name.clone())
                    .push_bind(span.span_type.clone())
                    .push_bind(span.status)
                    .push_bind(span.start_ns)
                    .push_bind(span.end_ns)
                    .push_bind(span.end_ns.map(|end| end.saturating_sub(span.start_ns)))
                    .push_bind(span.content.clone())
                    .push_bind(span.token_usage.clone())
                    .push_bind(span.cost.input)
                    .push_bind(span.cost.output)
                    .push_bind(span.cost.total)
                    .push_bind(span.model_name.clone())
                    .push_bind(span.model_provider.clone());
            });
            query.push(
                " ON CONFLICT (project, trace_id, span_id) DO UPDATE SET
                    parent_id = excluded.parent_id, name = excluded.name, type = excluded.type, status = excluded.status,
                    start_ns = excluded.start_ns, end_ns = excluded.end_ns, duration_ns = excluded.duration_ns,
                    content = excluded.content, token_usage = excluded.token_usage, input_cost = excluded.input_cost,
                    output_cost = excluded.output_cost, total_cost = excluded.total_cost,
                    model_name = excluded.model_name, model_provider = excluded.model_provider",
            );
            query.build().execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// What all spans of a trace used and cost, those that were just added among them.
    async fn nodes_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        (project, trace_id): (&str, &str),
    ) -> Result<Vec<SpanNode>> {
        let rows: Vec<NodeRow> = sqlx::query_as(
            "SELECT span_id, parent_id, token_usage, input_cost, output_cost, total_cost FROM span
             WHERE project = $1 AND trace_id = $2",
        )
        .bind(project)
        .bind(trace_id)
        .fetch_all(&mut **tx)
        .await?;
        Ok(rows.into_iter().map(NodeRow::into_node).collect())
    }

    async fn update_trace(
        tx: &mut Transaction<<P as Pools>::Db>,
        part: &Part<'_>,
        before: &Before,
        is_new: bool,
    ) -> Result<()> {
        let trace = (part.project, part.spans.trace_id.as_str());
        let spans = &part.spans.spans;
        // Only what the client has not told itself, and what these spans can change.
        let wants_usage =
            (before.is_final == 0 || before.has_usage == 0) && spans.iter().any(|span| span.token_usage.is_some());
        let wants_cost =
            (before.is_final == 0 || before.has_cost == 0) && spans.iter().any(|span| span.cost != Cost::default());
        let nodes = match (wants_usage || wants_cost, is_new) {
            (false, _) => Vec::new(),
            (true, true) => spans.iter().map(StoredSpan::node).collect(),
            (true, false) => Self::nodes_of(tx, trace).await?,
        };
        let usage = if wants_usage { total_usage(&nodes) } else { None };
        let cost = if wants_cost { total_cost(&nodes) } else { None };
        let after = before.after(part.spans, usage, cost)?;
        let summary = &part.spans.summary;
        let mut query = sqlx::query(UPDATE_TRACE)
            .bind(trace.0)
            .bind(trace.1)
            .bind(after.timestamp_ms)
            .bind(after.execution_time_ms)
            .bind(after.state.as_str())
            .bind(summary.request_preview.as_deref())
            .bind(summary.response_preview.as_deref())
            .bind(summary.name.as_deref())
            .bind(summary.session_id.as_deref());
        for count in after.usage.counts() {
            query = query.bind(count);
        }
        for amount in after.cost.amounts() {
            query = query.bind(amount);
        }
        query.execute(&mut **tx).await?;
        Ok(())
    }
}
