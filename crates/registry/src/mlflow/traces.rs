//! Traces: what their clients tell of them, and reading them with their spans.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Serialize;

use super::{
    answers::Empty,
    artifacts::send,
    assessments,
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
    trace_answers::{TraceAnswer, TraceInfoAnswer},
    trace_search::experiments,
};
use crate::{
    model::{
        artifact_file::ArtifactFolder,
        trace::{ARTIFACT_LOCATION_TAG, NewTrace, Promoted, TRACE_NAME_TAG, Trace, TraceInfo, TraceState},
        tracking::PROXY_SCHEME,
    },
    service::{Registry, TraceDeletionForm},
};

/// How often, and after which times, a trace is looked for again whose spans are still on their way.
const PATIENCE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];
/// The file in which the older clients keep the spans of a trace.
const TRACE_FILE: &str = "traces.json";
/// The longest duration of `google.protobuf.Duration`, in seconds.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;
/// The folder of what is attached to a trace.
const ATTACHMENTS: &str = "attachments";

#[derive(Serialize)]
struct One<T> {
    trace: T,
}

#[derive(Serialize)]
struct Traces {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    traces: Vec<TraceAnswer>,
}

#[derive(Serialize)]
struct Infos {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trace_infos: Vec<TraceInfoAnswer>,
}

#[derive(Serialize)]
pub(super) struct Deleted {
    traces_deleted: u64,
}

/// A state of a message: its name or its number.
pub(super) fn state(message: &Fields, name: &str) -> Result<TraceState, Refusal> {
    let told = match message.integer(name) {
        Ok(Some(number)) => number.to_string(),
        _ => message.text(name)?.unwrap_or_default(),
    };
    // The older protocol's name.
    let told = if told == "TRACE_STATUS_UNSPECIFIED" { "0" } else { &told };
    if told.is_empty() {
        return Ok(TraceState::Unspecified);
    }
    TraceState::parse(told)
        .ok_or_else(|| Refusal::invalid(format!("Invalid value '{told}' for parameter '{name}' supplied.")))
}

/// A duration such as `1.5s` in milliseconds.
fn duration(text: &str) -> Option<i64> {
    let text = text.strip_suffix('s')?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !(-MAX_DURATION_SECONDS..=MAX_DURATION_SECONDS).contains(&seconds) {
        return None;
    }
    if part.len() > 9 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{part:0<9}").parse().ok()?;
    let millis = nanos / 1_000_000;
    let millis = if whole.starts_with('-') { -millis } else { millis };
    seconds.checked_mul(1000)?.checked_add(millis)
}

/// What a client tells of a trace, but its experiment.
fn info(message: &Fields) -> Result<TraceInfo, Refusal> {
    let trace_id = message.required_text("trace_id")?;
    let told = message.text("execution_duration")?;
    let execution_time_ms = told.map(|text| {
        duration(&text)
            .ok_or_else(|| Refusal::invalid(format!("Invalid value '{text}' for parameter 'execution_duration'")))
    });
    let mut tags = message.map("tags")?;
    let mut metadata = message.map("trace_metadata")?;
    let promoted = Promoted::take(&mut metadata);
    let assessments = message.objects("assessments")?;
    let assessments = assessments
        .iter()
        .map(|assessment| assessments::read(assessment, &trace_id));
    Ok(TraceInfo {
        project: String::new(),
        experiment_id: 0,
        timestamp_ms: assessments::time(message, "request_time")?,
        execution_time_ms: execution_time_ms.transpose()?,
        state: state(message, "state")?,
        client_request_id: message.text("client_request_id")?,
        request_preview: message.text("request_preview")?,
        response_preview: message.text("response_preview")?,
        name: tags.remove(TRACE_NAME_TAG),
        session_id: promoted.session_id,
        usage: promoted.usage,
        cost: promoted.cost,
        tags,
        metadata,
        assessments: assessments.collect::<Result<_, _>>()?,
        trace_id,
    })
}

async fn start(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One<TraceAnswer>>, Refusal> {
    let trace = fields.object("trace")?.ok_or_else(|| missing("trace"))?;
    let message = trace.object("trace_info")?.ok_or_else(|| missing("trace_info"))?;
    let mut info = info(&message)?;
    let location = message.object("trace_location")?.unwrap_or_default();
    let experiment = location.object("mlflow_experiment")?.unwrap_or_default();
    let experiment = experiment.required_text("experiment_id")?;
    info.experiment_id = registry
        .experiment_number(&tenant.caller, &tenant.project, &experiment)
        .await?;
    let new = NewTrace { info, is_final: true };
    let made = registry.start_trace(&tenant.caller, &tenant.project, new).await?;
    Ok(Json(One { trace: made.into() }))
}

async fn get_info(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
) -> Result<Json<One<TraceAnswer>>, Refusal> {
    let found = registry
        .get_trace_info(&tenant.caller, &tenant.project, &trace_id)
        .await?;
    Ok(Json(One { trace: found.into() }))
}

/// Whether all spans are there of which the client told.
fn is_complete(trace: &Trace) -> bool {
    let expected = trace.info.expected_spans().unwrap_or(0);
    !trace.spans.is_empty() && trace.spans.len() as u64 >= expected
}

/// Traces may be large: they are written on a thread that may be busy.
async fn written<T: Serialize + Send + 'static>(
    answer: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, Refusal> {
    let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&answer())).await;
    let body = written
        .map_err(crate::Error::from)?
        .map_err(|error| crate::Error::State(format!("the trace cannot be written: {error}")))?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], body).into_response())
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Response, Refusal> {
    let trace_id = fields.required_text("trace_id")?;
    let allows_partial = fields.boolean("allow_partial")?.unwrap_or_default();
    let mut waits = PATIENCE.into_iter();
    loop {
        let trace = registry.get_trace(&tenant.caller, &tenant.project, &trace_id).await?;
        if !trace.info.has_spans_in_store() {
            return Err(Refusal::invalid("Trace data not stored in tracking store"));
        }
        if allows_partial || is_complete(&trace) {
            return written(move || One {
                trace: TraceAnswer::from(trace),
            })
            .await;
        }
        let Some(wait) = waits.next() else { break };
        tokio::time::sleep(wait).await;
    }
    Err(crate::Error::NotThere(format!(
        "Trace with ID {trace_id} is not fully exported yet, please try again later."
    ))
    .into())
}

/// The traces and experiments that a message names.
async fn choice(
    registry: &Registry,
    tenant: &Tenant,
    fields: &Fields,
) -> Result<(Vec<String>, Option<Vec<i64>>), Refusal> {
    let trace_ids = fields.texts("trace_ids")?;
    if trace_ids.is_empty() {
        return Err(missing("trace_ids"));
    }
    if fields.value("experiment_ids").is_none() {
        return Ok((trace_ids, None));
    }
    let experiments = experiments(registry, tenant, fields.texts("experiment_ids")?).await?;
    Ok((trace_ids, Some(experiments)))
}

async fn batch_get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Response, Refusal> {
    let (trace_ids, experiments) = choice(&registry, &tenant, &fields).await?;
    let found = registry
        .find_traces(&tenant.caller, &tenant.project, trace_ids, experiments)
        .await?;
    written(move || {
        let complete = |trace: &Trace| trace.info.has_spans_in_store() && is_complete(trace);
        let traces = found.into_iter().filter(complete);
        Traces {
            traces: traces.map(TraceAnswer::from).collect(),
        }
    })
    .await
}

async fn batch_get_infos(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Infos>, Refusal> {
    let (trace_ids, experiments) = choice(&registry, &tenant, &fields).await?;
    let found = registry
        .find_trace_infos(&tenant.caller, &tenant.project, trace_ids, experiments)
        .await?;
    Ok(Json(Infos {
        trace_infos: found.into_iter().map(TraceInfoAnswer::from).collect(),
    }))
}

/// Sets a tag of a trace.
pub(super) async fn set_tag(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let key = fields.required_text("key")?;
    let value = fields.text("value")?.unwrap_or_default();
    registry
        .set_trace_tag(&tenant.caller, &tenant.project, &trace_id, &key, &value)
        .await?;
    Ok(Json(Empty {}))
}

/// Removes a tag of a trace.
pub(super) async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let key = fields.required_text("key")?;
    registry
        .delete_trace_tag(&tenant.caller, &tenant.project, &trace_id, &key)
        .await?;
    Ok(Json(Empty {}))
}

/// Deletes traces.
pub(super) async fn delete(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Deleted>, Refusal> {
    let experiment = fields.required_text("experiment_id")?;
    let form = TraceDeletionForm {
        experiment_id: registry
            .experiment_number(&tenant.caller, &tenant.project, &experiment)
            .await?,
        until_ms: fields.integer("max_timestamp_millis")?,
        limit: fields.integer("max_traces")?,
        trace_ids: fields.texts("request_ids")?,
    };
    let traces_deleted = registry.delete_traces(&tenant.caller, &tenant.project, form).await?;
    Ok(Json(Deleted { traces_deleted }))
}

/// The spans of a trace as a file, for pages that show them.
pub(super) async fn get_artifact(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    method: Method,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, Refusal> {
    let trace_id = fields.text("request_id")?.filter(|id| !id.is_empty());
    let trace_id =
        trace_id.ok_or_else(|| Refusal::invalid("Request must include the \"request_id\" query parameter."))?;
    let attachment = fields.text("path")?.filter(|path| !path.is_empty());
    let info = registry
        .get_trace_info(&tenant.caller, &tenant.project, &trace_id)
        .await?;
    if attachment.is_none() && info.has_spans_in_store() {
        let trace = registry.get_trace(&tenant.caller, &tenant.project, &trace_id).await?;
        return Ok(file(&trace.spans));
    }
    let location = info.tags.get(ARTIFACT_LOCATION_TAG).map_or("", String::as_str);
    let Some(root) = location.strip_prefix(PROXY_SCHEME) else {
        return Err(Refusal::invalid(format!(
            "the artifacts of trace {trace_id} are not in this server's store: clients read them at {location}"
        )));
    };
    let below = attachment.map_or_else(|| TRACE_FILE.to_owned(), |path| format!("{ATTACHMENTS}/{path}"));
    let path = ArtifactFolder::parse(root.trim_start_matches('/'))?.file(&below)?;
    send(&registry, &tenant, &path, &method, &headers).await
}

/// A file with spans, each of which is JSON.
fn file(spans: &[String]) -> Response {
    let body = format!("{{\"spans\": [{}]}}", spans.join(", "));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=traces.json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, body).into_response()
}

/// Texts by key of a message of the older protocol.
pub(super) fn texts(fields: &Fields, name: &str) -> Result<BTreeMap<String, String>, Refusal> {
    Ok(fields.pairs(name)?.into_iter().collect())
}

routes! {
    post "/traces" => start,
    get "/traces/get" => get,
    get "/traces/batchGet" => batch_get,
    post "/traces/batchGetInfos" => batch_get_infos,
    post "/traces/delete-traces" => delete,
    get "/traces/{trace_id}" => get_info,
    patch "/traces/{trace_id}/tags" => set_tag,
    delete "/traces/{trace_id}/tags" => delete_tag,
    get "/get-trace-artifact" => get_artifact,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("1.5s", Some(1500)),
            ("0s", Some(0)),
            ("-0.020s", Some(-20)),
            ("60.123456789s", Some(60_123)),
            ("1.5", None),
            ("xs", None),
            ("1.0000000001s", None),
            ("315576000000s", Some(315_576_000_000_000)),
            ("315576000001s", None),
            ("9223372036854775.807s", None),
        ] {
            assert_eq!(duration(text), millis, "{text}");
        }
    }

    #[test]
    fn states_have_names_and_numbers() {
        let read = |value| state(&Fields::of(json!({ "state": value })), "state");
        assert_eq!(read(json!("OK")).unwrap(), TraceState::Ok);
        assert_eq!(read(json!(2)).unwrap(), TraceState::Error);
        assert_eq!(
            read(json!("TRACE_STATUS_UNSPECIFIED")).unwrap(),
            TraceState::Unspecified
        );
        assert_eq!(read(json!(null)).unwrap(), TraceState::Unspecified);
        assert!(read(json!("WELL")).is_err());
    }
}
