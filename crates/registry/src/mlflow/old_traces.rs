//! Traces in the older protocol, part of which today's clients still speak.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;

use super::{
    answers::{Empty, Pair, pairs},
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
    trace_answers::{sent_metadata, sent_tags},
    trace_search::found,
    traces::{delete, delete_tag, get_artifact, set_tag, state, texts},
};
use crate::{
    model::trace::{NewTrace, Promoted, TRACE_NAME_TAG, TraceEnd, TraceInfo, TraceState},
    service::Registry,
};

#[derive(Serialize)]
struct Info {
    request_id: String,
    experiment_id: String,
    timestamp_ms: i64,
    execution_time_ms: i64,
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_metadata: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
}

impl From<TraceInfo> for Info {
    fn from(info: TraceInfo) -> Self {
        Self {
            request_metadata: pairs(sent_metadata(&info)),
            tags: pairs(sent_tags(&info)),
            request_id: info.trace_id,
            experiment_id: info.experiment_id.to_string(),
            timestamp_ms: info.timestamp_ms,
            execution_time_ms: info.execution_time_ms.unwrap_or_default(),
            status: match info.state {
                TraceState::Unspecified => "TRACE_STATUS_UNSPECIFIED",
                state => state.as_str(),
            },
        }
    }
}

#[derive(Serialize)]
struct One {
    trace_info: Info,
}

fn one(info: TraceInfo) -> Json<One> {
    Json(One {
        trace_info: info.into(),
    })
}

async fn start(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let experiment = fields.required_text("experiment_id")?;
    let experiment_id = registry
        .experiment_number(&tenant.caller, &tenant.project, &experiment)
        .await?;
    let mut tags = texts(&fields, "tags")?;
    let mut metadata = texts(&fields, "request_metadata")?;
    let promoted = Promoted::take(&mut metadata);
    let info = TraceInfo {
        trace_id: String::new(),
        project: String::new(),
        experiment_id,
        timestamp_ms: fields.integer("timestamp_ms")?.unwrap_or_default(),
        execution_time_ms: None,
        state: TraceState::InProgress,
        client_request_id: None,
        request_preview: None,
        response_preview: None,
        name: tags.remove(TRACE_NAME_TAG),
        session_id: promoted.session_id,
        usage: promoted.usage,
        cost: promoted.cost,
        tags,
        metadata,
        assessments: Vec::new(),
    };
    let new = NewTrace { info, is_final: false };
    let made = registry.start_old_trace(&tenant.caller, &tenant.project, new).await?;
    Ok(one(made))
}

async fn end(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let mut tags = texts(&fields, "tags")?;
    let mut metadata = texts(&fields, "request_metadata")?;
    let promoted = Promoted::take(&mut metadata);
    let end = TraceEnd {
        timestamp_ms: fields.integer("timestamp_ms")?.unwrap_or_default(),
        state: state(&fields, "status")?,
        name: tags.remove(TRACE_NAME_TAG),
        session_id: promoted.session_id,
        usage: promoted.usage,
        cost: promoted.cost,
        tags,
        metadata,
    };
    let ended = registry
        .end_trace(&tenant.caller, &tenant.project, &trace_id, end)
        .await?;
    Ok(one(ended))
}

async fn get_info(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
) -> Result<Json<One>, Refusal> {
    let found = registry
        .get_trace_info(&tenant.caller, &tenant.project, &trace_id)
        .await?;
    Ok(one(found))
}

async fn link_to_run(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let run_id = fields.required_text("run_id")?;
    let trace_ids = fields.texts("trace_ids")?;
    if trace_ids.is_empty() {
        return Err(missing("trace_ids"));
    }
    registry
        .link_traces_to_run(&tenant.caller, &tenant.project, &run_id, &trace_ids)
        .await?;
    Ok(Json(Empty {}))
}

fn prompt(message: &Fields) -> Result<(String, u64), Refusal> {
    let name = message.required_text("name")?;
    let version = message.required_text("version")?;
    let number = version.parse().map_err(|_| {
        let shown: String = version.chars().take(64).flat_map(char::escape_default).collect();
        Refusal::invalid(format!(
            "`{shown}` is no version of prompt `{name}`: versions are numbers"
        ))
    })?;
    Ok((name, number))
}

async fn link_prompts(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let trace_id = fields.required_text("trace_id")?;
    let messages = fields.objects("prompt_versions")?;
    if messages.is_empty() {
        return Err(missing("prompt_versions"));
    }
    let prompts = messages.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
    registry
        .link_prompts(&tenant.caller, &tenant.project, &trace_id, &prompts)
        .await?;
    Ok(Json(Empty {}))
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    traces: Vec<Info>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn search(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Found>, Refusal> {
    let named = fields.texts("experiment_ids")?;
    if named.is_empty() {
        return Err(missing("experiment_ids"));
    }
    let page = found(&registry, &tenant, &fields, named).await?;
    Ok(Json(Found {
        traces: page.traces.into_iter().map(Info::from).collect(),
        next_page_token: page.next_token,
    }))
}

routes! {
    post "/traces" => start,
    get "/traces" => search,
    patch "/traces/{trace_id}" => end,
    get "/traces/{trace_id}/info" => get_info,
    patch "/traces/{trace_id}/tags" => set_tag,
    delete "/traces/{trace_id}/tags" => delete_tag,
    post "/traces/delete-traces" => delete,
    post "/traces/link-to-run" => link_to_run,
    post "/traces/link-prompts" => link_prompts,
    get "/get-trace-artifact" => get_artifact,
}
