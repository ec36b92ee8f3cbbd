//! Traces as they are read: rows, and what belongs to them.

use std::collections::BTreeMap;

use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, json, word};
use crate::{
    error::{Error, Result},
    model::trace::{Assessment, AssessmentKind, Cost, TokenUsage, TraceInfo, TraceState},
};

/// How many ids are in one statement.
pub(super) const IDS_AT_ONCE: usize = 400;

/// The columns of [`TraceRow`]; the table is `r`.
macro_rules! select_traces {
    ($rest:literal) => {
        concat!(
            "SELECT r.project, r.id, r.experiment_id, r.timestamp_ms, r.execution_time_ms, r.state, r.client_request_id, \
             r.request_preview, r.response_preview, r.name, r.session_id, r.input_tokens, r.output_tokens, r.total_tokens, \
             r.cache_read_input_tokens, r.cache_creation_input_tokens, r.cache_creation_input_tokens_above_1hr, \
             r.input_cost, r.output_cost, r.total_cost FROM trace r ",
            $rest
        )
    };
}
pub(super) use select_traces;

/// What a trace that is not there is answered with.
pub(crate) fn no_trace(trace_id: &str) -> Error {
    let shown: String = trace_id.chars().take(64).flat_map(char::escape_default).collect();
    Error::NotThere(format!("Trace with ID '{shown}' not found."))
}

#[derive(sqlx::FromRow)]
pub(super) struct TraceRow {
    project: String,
    id: String,
    experiment_id: i64,
    timestamp_ms: i64,
    execution_time_ms: Option<i64>,
    state: String,
    client_request_id: Option<String>,
    request_preview: Option<String>,
    response_preview: Option<String>,
    name: Option<String>,
    session_id: Option<String>,
    #[sqlx(flatten)]
    usage: UsageRow,
    #[sqlx(flatten)]
    cost: CostRow,
}

#[derive(sqlx::FromRow)]
struct UsageRow {
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    total_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    cache_creation_input_tokens_above_1hr: Option<i64>,
}

#[derive(sqlx::FromRow)]
#[expect(clippy::struct_field_names, reason = "the names of columns")]
pub(super) struct CostRow {
    input_cost: Option<f64>,
    output_cost: Option<f64>,
    total_cost: Option<f64>,
}

impl CostRow {
    pub(super) const fn into_cost(self) -> Cost {
        Cost::of([self.input_cost, self.output_cost, self.total_cost])
    }
}

impl TraceRow {
    fn into_info(self) -> Result<TraceInfo> {
        let usage = self.usage;
        Ok(TraceInfo {
            trace_id: self.id,
            project: self.project,
            experiment_id: self.experiment_id,
            timestamp_ms: self.timestamp_ms,
            execution_time_ms: self.execution_time_ms,
            state: word("state of a trace", &self.state, TraceState::parse)?,
            client_request_id: self.client_request_id,
            request_preview: self.request_preview,
            response_preview: self.response_preview,
            name: self.name,
            session_id: self.session_id,
            usage: TokenUsage::of([
                usage.input_tokens,
                usage.output_tokens,
                usage.total_tokens,
                usage.cache_read_input_tokens,
                usage.cache_creation_input_tokens,
                usage.cache_creation_input_tokens_above_1hr,
            ]),
            cost: self.cost.into_cost(),
            tags: BTreeMap::new(),
            metadata: BTreeMap::new(),
            assessments: Vec::new(),
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct AssessmentRow {
    id: String,
    trace_id: String,
    name: String,
    kind: String,
    value: String,
    error: Option<String>,
    created_ms: i64,
    updated_ms: i64,
    source_type: String,
    source_id: Option<String>,
    run_id: Option<String>,
    span_id: Option<String>,
    rationale: Option<String>,
    overrides: Option<String>,
    is_valid: i64,
    metadata: Option<String>,
}

/// The columns of [`AssessmentRow`].
macro_rules! select_assessments {
    ($rest:literal) => {
        concat!(
            "SELECT id, trace_id, name, kind, value, error, created_ms, updated_ms, source_type, source_id, run_id, span_id, \
             rationale, overrides, is_valid, metadata FROM assessment ",
            $rest
        )
    };
}
pub(super) use select_assessments;

impl AssessmentRow {
    pub(super) fn into_assessment(self) -> Result<Assessment> {
        let error = self.error.as_deref();
        let metadata = self.metadata.as_deref();
        Ok(Assessment {
            kind: word("kind of an assessment", &self.kind, AssessmentKind::parse)?,
            value: json("value of an assessment", &self.value)?,
            error: error.map(|error| json("error of an assessment", error)).transpose()?,
            metadata: metadata
                .map(|metadata| json("metadata of an assessment", metadata))
                .transpose()?
                .unwrap_or_default(),
            assessment_id: self.id,
            trace_id: self.trace_id,
            name: self.name,
            created_ms: self.created_ms,
            updated_ms: self.updated_ms,
            source_type: self.source_type,
            source_id: self.source_id,
            run_id: self.run_id,
            span_id: self.span_id,
            rationale: self.rationale,
            overrides: self.overrides,
            is_valid: self.is_valid != 0,
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// A statement about some traces of a project.
    fn of_traces(select: &str, project: &str, trace_ids: &[String], order: &str) -> QueryBuilder<<P as Pools>::Db> {
        let mut query = QueryBuilder::new(format!("{select} WHERE project = "));
        query.push_bind(project.to_owned());
        query.push(" AND trace_id IN (");
        let mut ids = query.separated(", ");
        for id in trace_ids {
            ids.push_bind(id.clone());
        }
        query.push(format!(") ORDER BY {order}"));
        query
    }

    /// Adds tags, metadata and assessments to traces of one project, in their order.
    pub(super) async fn complete_traces(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        rows: Vec<TraceRow>,
    ) -> Result<Vec<TraceInfo>> {
        let mut infos = Vec::with_capacity(rows.len());
        for row in rows {
            infos.push(row.into_info()?);
        }
        let places: BTreeMap<String, usize> = infos
            .iter()
            .enumerate()
            .map(|(place, info)| (info.trace_id.clone(), place))
            .collect();
        let trace_ids: Vec<String> = infos.iter().map(|info| info.trace_id.clone()).collect();
        for chunk in trace_ids.chunks(IDS_AT_ONCE) {
            let mut query = Self::of_traces(
                "SELECT trace_id, key, value FROM trace_tag",
                project,
                chunk,
                "trace_id, key",
            );
            let tags: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
            for (trace_id, key, value) in tags {
                infos[places[&trace_id]].tags.insert(key, value);
            }
            let mut query = Self::of_traces(
                "SELECT trace_id, key, value FROM trace_metadata",
                project,
                chunk,
                "trace_id, key",
            );
            let metadata: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
            for (trace_id, key, value) in metadata {
                infos[places[&trace_id]].metadata.insert(key, value);
            }
            let mut query = Self::of_traces(select_assessments!(""), project, chunk, "trace_id, created_ms, id");
            let assessments: Vec<AssessmentRow> = query.build_query_as().fetch_all(&mut **tx).await?;
            for row in assessments {
                let assessment = row.into_assessment()?;
                infos[places[&assessment.trace_id]].assessments.push(assessment);
            }
        }
        Ok(infos)
    }

    /// A trace.
    pub(super) async fn trace_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        trace_id: &str,
    ) -> Result<Option<TraceInfo>> {
        if trace_id.contains('\0') {
            return Ok(None);
        }
        let rows = sqlx::query_as(select_traces!("WHERE r.project = $1 AND r.id = $2"))
            .bind(project)
            .bind(trace_id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_traces(tx, project, rows).await?.pop())
    }

    /// Holds a trace that is there to the end of the transaction.
    pub(super) async fn hold_trace(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        trace_id: &str,
    ) -> Result<()> {
        let held = if trace_id.contains('\0') {
            0
        } else {
            sqlx::query("UPDATE trace SET state = state WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(trace_id)
                .execute(&mut **tx)
                .await?
                .rows_affected()
        };
        if held == 0 { Err(no_trace(trace_id)) } else { Ok(()) }
    }
}
