//! Traces and assessments as MLflow writes them: times as texts, spans as OpenTelemetry's protocol has them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use modelyard_common::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};

use crate::model::{
    json::Json,
    span::TRACE_ID_PREFIX,
    trace::{Assessment, AssessmentKind, Trace, TraceInfo},
};

/// The longest keys, and the longest metadata, that are sent, in characters.
const SENT_METADATA_CHARS: usize = 250;
/// The longest tags that are sent, in characters.
const SENT_TAG_CHARS: usize = 4096;

/// A time in milliseconds as a text.
fn time(millis: i64) -> String {
    Timestamp::from_millis(millis).to_string()
}

/// A duration in milliseconds as a text.
fn duration(millis: i64) -> String {
    let sign = if millis < 0 { "-" } else { "" };
    let (seconds, rest) = (millis.unsigned_abs() / 1000, millis.unsigned_abs() % 1000);
    match rest {
        0 => format!("{sign}{seconds}s"),
        rest => format!("{sign}{seconds}.{rest:03}s"),
    }
}

fn cut(texts: BTreeMap<String, String>, limit: usize) -> BTreeMap<String, String> {
    let first = |mut text: String, limit: usize| {
        if let Some((end, _)) = text.char_indices().nth(limit) {
            text.truncate(end);
        }
        text
    };
    texts
        .into_iter()
        .map(|(key, value)| (first(key, SENT_METADATA_CHARS), first(value, limit)))
        .collect()
}

/// Metadata as it is sent.
pub(super) fn sent_metadata(info: &TraceInfo) -> BTreeMap<String, String> {
    cut(info.all_metadata(), SENT_METADATA_CHARS)
}

/// Tags as they are sent.
pub(super) fn sent_tags(info: &TraceInfo) -> BTreeMap<String, String> {
    cut(info.all_tags(), SENT_TAG_CHARS)
}

#[derive(Serialize)]
struct Source {
    source_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_id: Option<String>,
}

/// What somebody says of a trace.
#[derive(Serialize)]
pub(super) struct AssessmentAnswer {
    assessment_id: String,
    assessment_name: String,
    trace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    source: Source,
    create_time: String,
    last_update_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    feedback: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expectation: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issue: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rationale: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overrides: Option<String>,
    valid: bool,
}

fn feedback(value: Value, error: Option<Value>) -> Value {
    let mut feedback = Value::Object(Map::from_iter([("value".to_owned(), value)]));
    if let (Some(Value::Object(error)), Some(fields)) = (error, feedback.as_object_mut()) {
        let told = error.into_iter().filter(|(_, text)| !text.is_null());
        fields.insert("error".to_owned(), Value::Object(told.collect()));
    }
    feedback
}

fn expectation(value: Value) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) => json!({
            "serialized_value": { "serialization_format": "JSON_FORMAT", "value": value.to_string() }
        }),
        value => json!({ "value": value }),
    }
}

impl From<Assessment> for AssessmentAnswer {
    fn from(assessment: Assessment) -> Self {
        let (value, error) = (assessment.value, assessment.error);
        let (told, expected, issue) = match assessment.kind {
            AssessmentKind::Feedback => (Some(feedback(value, error)), None, None),
            AssessmentKind::Expectation => (None, Some(expectation(value)), None),
            AssessmentKind::Issue => (None, None, Some(value)),
        };
        Self {
            assessment_id: assessment.assessment_id,
            assessment_name: assessment.name,
            trace_id: assessment.trace_id,
            span_id: assessment.span_id,
            source: Source {
                source_type: assessment.source_type,
                source_id: assessment.source_id,
            },
            create_time: time(assessment.created_ms),
            last_update_time: time(assessment.updated_ms),
            feedback: told,
            expectation: expected,
            issue,
            rationale: assessment.rationale,
            metadata: assessment.metadata,
            overrides: assessment.overrides,
            valid: assessment.is_valid,
        }
    }
}

#[derive(Serialize)]
struct Location {
    r#type: &'static str,
    mlflow_experiment: ExperimentLocation,
}

#[derive(Serialize)]
struct ExperimentLocation {
    experiment_id: String,
}

/// What is told of a trace besides its spans.
#[derive(Serialize)]
pub(super) struct TraceInfoAnswer {
    trace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_request_id: Option<String>,
    trace_location: Location,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_preview: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_preview: Option<String>,
    request_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_duration: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    trace_metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    assessments: Vec<AssessmentAnswer>,
}

impl From<TraceInfo> for TraceInfoAnswer {
    fn from(info: TraceInfo) -> Self {
        Self {
            trace_metadata: sent_metadata(&info),
            tags: sent_tags(&info),
            trace_id: info.trace_id,
            client_request_id: info.client_request_id,
            trace_location: Location {
                r#type: "MLFLOW_EXPERIMENT",
                mlflow_experiment: ExperimentLocation {
                    experiment_id: info.experiment_id.to_string(),
                },
            },
            request_preview: info.request_preview,
            response_preview: info.response_preview,
            request_time: time(info.timestamp_ms),
            execution_duration: info.execution_time_ms.map(duration),
            state: info.state.as_str(),
            assessments: info.assessments.into_iter().map(AssessmentAnswer::from).collect(),
        }
    }
}

/// A value of an attribute.
struct AnyValue<'a>(&'a Json);

#[derive(Serialize)]
struct Values<T> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<T>,
}

#[derive(Serialize)]
struct KeyValue<'a> {
    key: &'a str,
    value: AnyValue<'a>,
}

fn key_values(fields: &[(String, Json)]) -> Vec<KeyValue<'_>> {
    let pairs = fields.iter().map(|(key, value)| KeyValue {
        key,
        value: AnyValue(value),
    });
    pairs.collect()
}

impl Serialize for AnyValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            Json::Null => {}
            Json::Bool(value) => map.serialize_entry("bool_value", value)?,
            Json::Integer(value) => map.serialize_entry("int_value", value)?,
            Json::Number(value) if value.is_finite() => map.serialize_entry("double_value", value)?,
            number @ Json::Number(_) => map.serialize_entry("double_value", &number.dump())?,
            Json::Text(text) => map.serialize_entry("string_value", text)?,
            Json::List(items) => {
                let values = items.iter().map(AnyValue).collect();
                map.serialize_entry("array_value", &Values { values })?;
            }
            Json::Object(fields) => {
                let values = key_values(fields);
                map.serialize_entry("kvlist_value", &Values { values })?;
            }
        }
        map.end()
    }
}

/// A span, from what is stored of it.
struct SpanAnswer(Json);

fn fields_of<'a>(object: &'a Json, key: &str) -> &'a [(String, Json)] {
    match object.get(key) {
        Some(Json::Object(fields)) => fields,
        _ => &[],
    }
}

fn items_of<'a>(object: &'a Json, key: &str) -> &'a [Json] {
    match object.get(key) {
        Some(Json::List(items)) => items,
        _ => &[],
    }
}

/// The attributes of a span, each of which is stored as JSON in a text.
fn attributes(content: &Json) -> Vec<(String, Json)> {
    let stored = fields_of(content, "attributes").iter();
    stored
        .map(|(key, value)| {
            let value = match value {
                Json::Text(text) => Json::parse(text).unwrap_or_else(|| value.clone()),
                other => other.clone(),
            };
            (key.clone(), value)
        })
        .collect()
}

/// An id in hexadecimal digits as bytes are sent.
fn sent_id(object: &Json, key: &str) -> Option<String> {
    let id = object.get(key)?.as_text()?;
    let id = hex::decode(id.strip_prefix(TRACE_ID_PREFIX).unwrap_or(id)).ok()?;
    Some(STANDARD.encode(id))
}

fn status(content: &Json) -> BTreeMap<&'static str, &str> {
    let told = content.get("status").into_iter().flat_map(|status| {
        ["code", "message"].map(|key| (key, status.get(key).and_then(Json::as_text).unwrap_or_default()))
    });
    told.filter(|(_, text)| !text.is_empty()).collect()
}

#[derive(Serialize)]
struct EventAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time_unix_nano: Option<i64>,
    name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<KeyValue<'a>>,
}

#[derive(Serialize)]
struct LinkAnswer<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<KeyValue<'a>>,
}

fn events(content: &Json) -> Vec<EventAnswer<'_>> {
    let events = items_of(content, "events").iter().map(|event| EventAnswer {
        time_unix_nano: match event.get("time_unix_nano") {
            Some(Json::Integer(time)) => Some(*time),
            _ => None,
        },
        name: event.get("name").and_then(Json::as_text).unwrap_or_default(),
        attributes: key_values(fields_of(event, "attributes")),
    });
    events.collect()
}

fn links(content: &Json) -> Vec<LinkAnswer<'_>> {
    let links = items_of(content, "links").iter().filter_map(|link| {
        Some(LinkAnswer {
            trace_id: sent_id(link, "trace_id")?,
            span_id: sent_id(link, "span_id")?,
            attributes: key_values(fields_of(link, "attributes")),
        })
    });
    links.collect()
}

impl Serialize for SpanAnswer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let content = &self.0;
        let mut map = serializer.serialize_map(None)?;
        for key in ["trace_id", "span_id", "parent_span_id", "name"] {
            if let Some(text) = content.get(key).and_then(Json::as_text) {
                map.serialize_entry(key, text)?;
            }
        }
        for key in ["start_time_unix_nano", "end_time_unix_nano"] {
            if let Some(Json::Integer(time)) = content.get(key) {
                map.serialize_entry(key, time)?;
            }
        }
        map.serialize_entry("attributes", &key_values(&attributes(content)))?;
        map.serialize_entry("events", &events(content))?;
        map.serialize_entry("links", &links(content))?;
        map.serialize_entry("status", &status(content))?;
        map.end()
    }
}

/// A trace with its spans.
#[derive(Serialize)]
pub(super) struct TraceAnswer {
    trace_info: TraceInfoAnswer,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spans: Vec<SpanAnswer>,
}

impl From<TraceInfo> for TraceAnswer {
    fn from(info: TraceInfo) -> Self {
        Self {
            trace_info: info.into(),
            spans: Vec::new(),
        }
    }
}

impl From<Trace> for TraceAnswer {
    fn from(trace: Trace) -> Self {
        // What is not JSON was not stored by this server.
        let spans = trace.spans.iter().filter_map(|content| Json::parse(content));
        Self {
            spans: spans.map(SpanAnswer).collect(),
            trace_info: trace.info.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_texts() {
        for (millis, text) in [(0, "0s"), (1500, "1.500s"), (-20, "-0.020s"), (60_000, "60s")] {
            assert_eq!(duration(millis), text);
        }
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn spans_are_opentelemetrys() {
        let content = r#"{"trace_id": "BwcHBwcHBwcHBwcHBwcHBw==", "span_id": "AQEBAQEBAQE=", "parent_span_id": null, "name": "a",
            "start_time_unix_nano": 5, "end_time_unix_nano": null,
            "events": [{"name": "e", "time_unix_nano": 6, "attributes": {"k": [1.5]}}],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {"x": "{\"b\": 1, \"a\": null}", "t": "plain", "n": "NaN"},
            "links": [{"trace_id": "tr-07070707070707070707070707070707", "span_id": "0101010101010101", "attributes": null}]}"#;
        let answer = serde_json::to_value(SpanAnswer(Json::parse(content).unwrap())).unwrap();
        let expected = json!({
            "trace_id": "BwcHBwcHBwcHBwcHBwcHBw==",
            "span_id": "AQEBAQEBAQE=",
            "name": "a",
            "start_time_unix_nano": 5,
            "attributes": [
                {"key": "x", "value": {"kvlist_value": {"values": [
                    {"key": "b", "value": {"int_value": 1}},
                    {"key": "a", "value": {}},
                ]}}},
                {"key": "t", "value": {"string_value": "plain"}},
                {"key": "n", "value": {"double_value": "NaN"}},
            ],
            "events": [{"time_unix_nano": 6, "name": "e", "attributes": [
                {"key": "k", "value": {"array_value": {"values": [{"double_value": 1.5}]}}},
            ]}],
            "links": [{"trace_id": "BwcHBwcHBwcHBwcHBwcHBw==", "span_id": "AQEBAQEBAQE="}],
            "status": {"code": "STATUS_CODE_OK"},
        });
        assert_eq!(answer, expected);
    }

    #[test]
    fn what_is_long_is_cut_where_it_is_sent() {
        let texts = BTreeMap::from([("k".repeat(300), "ü".repeat(5000)), ("a".to_owned(), "b".to_owned())]);
        let sent = cut(texts, SENT_TAG_CHARS);
        assert_eq!(sent["a"], "b");
        assert_eq!(sent[&"k".repeat(250)].chars().count(), SENT_TAG_CHARS);
    }
}
