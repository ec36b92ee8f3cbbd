//! Spans by OpenTelemetry's protocol over HTTP, which MLflow's clients and every other tracer speak.

#![expect(
    clippy::result_large_err,
    reason = "a refusal is the answer itself, in this protocol's own form"
)]

mod binary;
mod parts;
mod text;

use std::{
    io::{self, Read},
    sync::Arc,
};

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    response::{IntoResponse, Response},
};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use modelyard_auth::{Action, Resource};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message as _;
use serde_json::json;

use super::{error::Refusal, read::Tenant};
use crate::{model::span::SpanGroup, service::Registry};

/// The experiment of the spans.
const EXPERIMENT: &str = "x-mlflow-experiment-id";
/// The run to which their traces belong.
const RUN: &str = "x-mlflow-run-id";
/// The kind of content in protobuf.
const PROTOBUF: &str = "application/x-protobuf";
/// The kind of content in JSON.
const JSON: &str = "application/json";
/// The largest request when it is no longer compressed, in bytes.
const CONTENT_LIMIT_BYTES: usize = 64 << 20;
/// Content up to this size, in bytes, is read on the thread that answers.
const INLINE_BYTES: usize = 64 << 10;
/// The most spans of a request.
const MAX_SPANS: usize = 10_000;
/// The most messages of all kinds in a request: its spans, their attributes and all in these.
const MAX_MESSAGES: usize = 1_000_000;
/// How many traces are linked to a run at once.
const LINKED_AT_ONCE: usize = 100;

/// Why a request is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unread {
    /// It is no such request.
    Invalid,
    /// There is too much in it.
    TooMuch,
}

/// What a request brings.
#[derive(Debug, Default)]
struct Brought {
    groups: Vec<SpanGroup>,
    /// How many spans cannot be stored.
    refused: i64,
    /// What is wrong with the first of them.
    problem: &'static str,
}

impl Brought {
    fn refuse(&mut self, problem: &'static str) {
        if self.refused == 0 {
            self.problem = problem;
        }
        self.refused += 1;
    }
}

/// A refusal in the words of MLflow's newer server, which answers here.
fn detail(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "detail": message }))).into_response()
}

fn bad(message: &str) -> Response {
    detail(StatusCode::BAD_REQUEST, message)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

/// The id of an OpenTelemetry object; shorter ones are filled up in front. One of zeros is taken, as MLflow takes it.
fn id<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let start = N.checked_sub(bytes.len()).filter(|start| *start < N)?;
    let mut id = [0; N];
    id.get_mut(start..)?.copy_from_slice(bytes);
    Some(id)
}

/// The id of a parent; one of zeros is none.
fn parent_id<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    id(bytes).filter(|id| *id != [0; N])
}

/// A time in nanoseconds as it is stored.
fn nanos(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn read_all(decoder: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    let limit = CONTENT_LIMIT_BYTES as u64 + 1;
    decoder.take(limit).read_to_end(&mut content)?;
    Ok((content.len() <= CONTENT_LIMIT_BYTES).then_some(content))
}

/// The content as it was before it was compressed.
fn decompress(content: Bytes, encoding: &str) -> Result<Bytes, Response> {
    let decompressed = match encoding {
        "" | "identity" => return Ok(content),
        "gzip" => read_all(MultiGzDecoder::new(content.as_ref())),
        // Some clients leave the header of zlib away.
        "deflate" => {
            read_all(ZlibDecoder::new(content.as_ref())).or_else(|_| read_all(DeflateDecoder::new(content.as_ref())))
        }
        _ => return Err(bad(&format!("Unsupported Content-Encoding: {encoding}"))),
    };
    match decompressed {
        Ok(Some(content)) => Ok(content.into()),
        Ok(None) => Err(detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the spans have more than {CONTENT_LIMIT_BYTES} bytes: send fewer at once"),
        )),
        Err(_) => Err(bad(&format!("Failed to decompress {encoding} payload"))),
    }
}

fn read(content: Bytes, encoding: &str, is_json: bool) -> Result<Brought, Response> {
    let content = decompress(content, encoding)?;
    let brought = if is_json {
        text::read(&content)
    } else {
        binary::read(&content)
    };
    match brought {
        Ok(brought) if brought.groups.is_empty() => Err(bad("Invalid OpenTelemetry format - no spans found")),
        Ok(brought) => Ok(brought),
        Err(Unread::Invalid) => Err(bad("Invalid OpenTelemetry format")),
        Err(Unread::TooMuch) => Err(detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("more than {MAX_SPANS} spans, or {MAX_MESSAGES} attributes and other parts, at once: send fewer"),
        )),
    }
}

async fn read_somewhere(content: Bytes, encoding: String, is_json: bool) -> Result<Brought, Response> {
    if content.len() <= INLINE_BYTES && encoding.is_empty() {
        return read(content, &encoding, is_json);
    }
    let reading = tokio::task::spawn_blocking(move || read(content, &encoding, is_json));
    let read = reading.await;
    read.map_err(|error| Refusal::from(crate::Error::from(error)).into_response())?
}

/// The answer, in the encoding of the request.
fn answer(is_json: bool, refused: i64, problem: &str) -> Response {
    if is_json {
        let body = if refused == 0 {
            json!({})
        } else {
            json!({ "partialSuccess": { "rejectedSpans": refused.to_string(), "errorMessage": problem } })
        };
        return Json(body).into_response();
    }
    let told = ExportTraceServiceResponse {
        partial_success: (refused > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: refused,
            error_message: problem.to_owned(),
        }),
    };
    let kind = HeaderValue::from_static(PROTOBUF);
    ([(header::CONTENT_TYPE, kind)], told.encode_to_vec()).into_response()
}

/// What FastAPI says where a header is not there.
fn no_experiment() -> Response {
    let problem = json!({
        "type": "missing",
        "loc": ["header", EXPERIMENT],
        "msg": "Field required",
        "input": null,
    });
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": [problem] }))).into_response()
}

async fn link(registry: &Registry, tenant: &Tenant, run_id: &str, traces: &[String]) {
    for traces in traces.chunks(LINKED_AT_ONCE) {
        let linked = registry
            .link_traces_to_run(&tenant.caller, &tenant.project, run_id, traces)
            .await;
        // The spans are stored: the exporter must not send them again.
        if let Err(error) = linked {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "traces are not linked to their run"
            );
        }
    }
}

async fn take(
    registry: &Registry,
    tenant: &Tenant,
    headers: &HeaderMap,
    content: Result<Bytes, BytesRejection>,
) -> Result<Response, Response> {
    let refused = |error: crate::Error| Refusal::from(error).into_response();
    let resource = Resource::project(&tenant.project);
    let allowed = tenant.caller.authorize(Action::RunWrite, resource);
    allowed.map_err(|error| Refusal::from(error).into_response())?;
    let experiment = text(headers, EXPERIMENT).ok_or_else(no_experiment)?;
    let told = text(headers, "content-type").unwrap_or_default();
    let kind = told.split(';').next().unwrap_or_default().trim();
    let is_json = kind == JSON;
    if !is_json && kind != PROTOBUF {
        return Err(bad(&format!(
            "Invalid Content-Type: {told}. Expected: application/x-protobuf or application/json"
        )));
    }
    let encoding = text(headers, "content-encoding").unwrap_or_default().to_lowercase();
    let content = content.map_err(|rejection| detail(rejection.status(), &rejection.body_text()))?;
    // What is compressed is perhaps a thousand times as large.
    let is_large = content.len() > INLINE_BYTES || !encoding.is_empty();
    // To the end, so that only few are in memory.
    let _slot = if is_large { registry.large_request().await } else { None };
    let brought = read_somewhere(content, encoding, is_json).await?;
    if brought.groups.iter().all(|group| group.spans.is_empty()) {
        return match brought.refused {
            0 => Ok(answer(is_json, 0, "")),
            _ => Err(detail(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Cannot convert OpenTelemetry span to MLflow span",
            )),
        };
    }
    let experiment_id = registry
        .experiment_number(&tenant.caller, &tenant.project, experiment)
        .await
        .map_err(refused)?;
    let complete = registry
        .log_spans(&tenant.caller, &tenant.project, experiment_id, brought.groups)
        .await
        .map_err(refused)?;
    if let Some(run_id) = text(headers, RUN) {
        link(registry, tenant, run_id, &complete).await;
    }
    Ok(answer(is_json, brought.refused, brought.problem))
}

/// Takes spans: `POST /v1/traces`.
pub(super) async fn export(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    headers: HeaderMap,
    content: Result<Bytes, BytesRejection>,
) -> Response {
    let taken = take(&registry, &tenant, &headers, content).await;
    taken.unwrap_or_else(|refusal| refusal)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder},
    };

    use super::*;

    #[test]
    fn ids_are_filled_up() {
        assert_eq!(id::<8>(&[1, 2]), Some([0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!(id::<8>(&[0; 8]), Some([0; 8]));
        assert_eq!(parent_id::<8>(&[0; 8]), None);
        assert_eq!(id::<8>(&[]), None);
        assert_eq!(id::<8>(&[1; 9]), None);
    }

    #[test]
    fn compressed_content_is_bounded() {
        let gzip = |size: usize| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&vec![7; size]).unwrap();
            Bytes::from(encoder.finish().unwrap())
        };
        assert_eq!(decompress(gzip(1000), "gzip").unwrap().len(), 1000);
        let refused = decompress(gzip(CONTENT_LIMIT_BYTES + 1), "gzip").unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"spans").unwrap();
        let deflated = Bytes::from(encoder.finish().unwrap());
        assert_eq!(decompress(deflated, "deflate").unwrap(), Bytes::from_static(b"spans"));
        for encoding in ["gzip", "br"] {
            let refused = decompress(Bytes::from_static(b"x"), encoding).unwrap_err();
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        }
    }
}
