//! Spans as they arrive by OpenTelemetry's protocol, and what is stored of them: MLflow's clients read attributes whose values are
//! JSON in texts.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    json::Json,
    run::check_key,
    span_preview::preview,
    span_translation::{Attributes, translate},
    trace::{Cost, SpansSummary, StoredSpan, TraceSpans, TraceState},
};

/// What the id of a trace begins with.
pub(crate) const TRACE_ID_PREFIX: &str = "tr-";
/// The longest value of a tag of a trace, in characters.
pub(crate) const MAX_TRACE_TAG_CHARS: usize = 8000;
/// The longest name of a session, in characters.
pub(crate) const MAX_SESSION_CHARS: usize = 250;
/// The longest name of a trace, in characters.
pub(crate) const MAX_TRACE_NAME_CHARS: usize = 4096;
/// The longest type of a span and name of a model, in characters.
const MAX_WORD_CHARS: usize = 500;

/// The most tags that a source and its root give a trace. Others stay attributes.
const MAX_TOLD_TAGS: usize = 200;
/// The most that the tags have which a source gives a trace, in bytes.
const MAX_TOLD_BYTES: usize = 16 << 10;

pub(crate) const INPUTS: &str = "mlflow.spanInputs";
pub(crate) const OUTPUTS: &str = "mlflow.spanOutputs";
pub(crate) const SPAN_TYPE: &str = "mlflow.spanType";
pub(crate) const CHAT_USAGE: &str = "mlflow.chat.tokenUsage";
pub(crate) const MODEL: &str = "mlflow.llm.model";
pub(crate) const MODEL_PROVIDER: &str = "mlflow.llm.provider";
/// The type of a span that has none.
pub(crate) const NO_TYPE: &str = "UNKNOWN";
const LLM_COST: &str = "mlflow.llm.cost";
const REQUEST_ID: &str = "mlflow.traceRequestId";
const TAG_PREFIX: &str = "mlflow.traceTag.";
const SESSIONS: [&str; 2] = ["session.id", "gen_ai.conversation.id"];
const USER: &str = "user.id";

/// How a span ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SpanStatus {
    /// That was not said.
    #[default]
    Unset,
    /// Well.
    Ok,
    /// With an error.
    Error,
}

impl SpanStatus {
    /// As it is stored and searched for.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "UNSET",
            Self::Ok => "OK",
            Self::Error => "ERROR",
        }
    }

    /// As OpenTelemetry has it.
    const fn message_name(self) -> &'static str {
        match self {
            Self::Unset => "STATUS_CODE_UNSET",
            Self::Ok => "STATUS_CODE_OK",
            Self::Error => "STATUS_CODE_ERROR",
        }
    }
}

/// Something that happened in a span.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SpanEvent {
    /// What.
    pub(crate) name: String,
    /// When, in nanoseconds since the epoch.
    pub(crate) time_ns: i64,
    /// More about it.
    pub(crate) attributes: Vec<(String, Json)>,
}

/// A span of another trace that has to do with this one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SpanLink {
    /// Its trace, 16 bytes.
    pub(crate) trace_id: [u8; 16],
    /// Its id, 8 bytes.
    pub(crate) span_id: [u8; 8],
    /// More about it.
    pub(crate) attributes: Vec<(String, Json)>,
}

/// A span as it arrives.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NewSpan {
    /// Its trace, 16 bytes.
    pub(crate) trace_id: [u8; 16],
    /// Its id, 8 bytes.
    pub(crate) span_id: [u8; 8],
    /// The span above.
    pub(crate) parent_id: Option<[u8; 8]>,
    /// Its name.
    pub(crate) name: String,
    /// When it began, in nanoseconds since the epoch.
    pub(crate) start_ns: i64,
    /// When it ended.
    pub(crate) end_ns: Option<i64>,
    /// How it ended.
    pub(crate) status: SpanStatus,
    /// More about how it ended.
    pub(crate) status_message: String,
    /// Attributes.
    pub(crate) attributes: Vec<(String, Json)>,
    /// What happened in it.
    pub(crate) events: Vec<SpanEvent>,
    /// What it has to do with.
    pub(crate) links: Vec<SpanLink>,
}

/// Spans of one source.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SpanGroup {
    /// What is known of the source.
    pub(crate) resource: Vec<(String, Json)>,
    /// The spans.
    pub(crate) spans: Vec<NewSpan>,
}

/// The id of a trace as MLflow has it.
pub(crate) fn trace_name_of(id: [u8; 16]) -> String {
    format!("{TRACE_ID_PREFIX}{}", hex::encode(id))
}

/// A text that a database takes, and no longer than it may be.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|letter| if letter == '\0' { '\u{fffd}' } else { letter })
        .collect()
}

/// PostgreSQL reads no JSON whose texts have the character NUL.
fn without_nul(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

/// What JSON and every database has: numbers that it does not have become texts.
fn storable(value: Json) -> Json {
    match value {
        Json::Text(text) => Json::Text(without_nul(text)),
        Json::Number(number) if !number.is_finite() => Json::Text(Json::Number(number).dump()),
        Json::List(items) => Json::List(items.into_iter().map(storable).collect()),
        Json::Object(fields) => object(fields),
        other => other,
    }
}

fn object(fields: Vec<(String, Json)>) -> Json {
    let fields = fields.into_iter();
    Json::Object(fields.map(|(key, value)| (without_nul(key), storable(value))).collect())
}

/// The text of an attribute: a value as JSON. What MLflow's clients have made JSON already stays as it is.
fn dumped(value: &Json) -> String {
    if let Json::Text(text) = value
        && matches!(Json::parse(text), Some(Json::Text(_) | Json::List(_) | Json::Object(_)))
    {
        return text.clone();
    }
    value.dump()
}

fn field(name: &str, value: Json) -> (String, Json) {
    (name.to_owned(), value)
}

fn base64_of(id: &[u8]) -> Json {
    Json::Text(STANDARD.encode(id))
}

fn events_json(events: Vec<SpanEvent>) -> Json {
    let events = events.into_iter().map(|event| {
        Json::Object(vec![
            field("name", Json::Text(without_nul(event.name))),
            field("time_unix_nano", Json::Integer(event.time_ns)),
            field("attributes", object(event.attributes)),
        ])
    });
    Json::List(events.collect())
}

fn links_json(links: Vec<SpanLink>) -> Json {
    let links = links.into_iter().map(|link| {
        let attributes = match link.attributes {
            none if none.is_empty() => Json::Null,
            some => object(some),
        };
        Json::Object(vec![
            field("trace_id", Json::Text(trace_name_of(link.trace_id))),
            field("span_id", Json::Text(hex::encode(link.span_id))),
            field("attributes", attributes),
        ])
    });
    Json::List(links.collect())
}

/// A text in an attribute.
fn word(attributes: &Attributes, key: &str, limit: usize) -> Option<String> {
    let value = attributes.value(key)?;
    let text = value.as_text().map_or_else(|| value.dump(), str::to_owned);
    (!text.is_empty()).then(|| cut(&text, limit))
}

fn cost_of(attributes: &Attributes) -> Cost {
    let Some(Json::Object(fields)) = attributes.value(LLM_COST) else {
        return Cost::default();
    };
    let fields = Json::Object(fields);
    Cost::of(Cost::KEYS.map(|key| {
        let number = match fields.get(key)? {
            Json::Integer(number) => *number as f64,
            Json::Number(number) => *number,
            Json::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }))
}

/// What a span tells of its trace.
fn tell(summary: &mut SpansSummary, span: &StoredSpan, attributes: &Attributes) {
    let start_ms = span.start_ns.div_euclid(1_000_000);
    summary.start_ms = summary.start_ms.min(start_ms);
    let end_ms = span.end_ns.map(|end| end.div_euclid(1_000_000));
    summary.end_ms = summary.end_ms.max(end_ms);
    if summary.session_id.is_none() {
        let session = SESSIONS.into_iter().find_map(|key| word(attributes, key, usize::MAX));
        summary.session_id = session.filter(|session| session.chars().count() <= MAX_SESSION_CHARS);
    }
    if summary.user_id.is_none() {
        summary.user_id = word(attributes, USER, MAX_TRACE_TAG_CHARS);
    }
    if span.parent_id.is_some() {
        return;
    }
    summary
        .root_state
        .get_or_insert(if span.status == SpanStatus::Error.as_str() {
            TraceState::Error
        } else {
            TraceState::Ok
        });
    summary.request_preview = attributes.get(INPUTS).map(|inputs| preview(inputs, "user"));
    summary.response_preview = attributes.get(OUTPUTS).map(|outputs| preview(outputs, "assistant"));
    for (key, _) in attributes.iter() {
        let Some(tag) = key.strip_prefix(TAG_PREFIX).filter(|tag| check_key("tag", tag).is_ok()) else {
            continue;
        };
        let value = word(attributes, key, MAX_TRACE_TAG_CHARS).unwrap_or_default();
        if tag == super::trace::TRACE_NAME_TAG {
            summary.name = Some(cut(&value, MAX_TRACE_NAME_CHARS));
        } else if summary.tags.len() < MAX_TOLD_TAGS || summary.tags.contains_key(tag) {
            summary.tags.insert(tag.to_owned(), value);
        }
    }
}

fn stored(span: NewSpan) -> (StoredSpan, Attributes) {
    let trace_id = trace_name_of(span.trace_id);
    let mut attributes = Attributes::default();
    for (key, value) in &span.attributes {
        attributes.set(key, dumped(value));
    }
    // The client's own name of the trace is not believed.
    attributes.set(REQUEST_ID, Json::Text(trace_id.clone()).dump());
    translate(&mut attributes);
    let all = attributes
        .iter()
        .map(|(key, value)| (without_nul(key.to_owned()), Json::Text(value.to_owned())));
    let content = Json::Object(vec![
        field("trace_id", base64_of(&span.trace_id)),
        field("span_id", base64_of(&span.span_id)),
        field("parent_span_id", span.parent_id.map_or(Json::Null, |id| base64_of(&id))),
        field("name", Json::Text(without_nul(span.name.clone()))),
        field("start_time_unix_nano", Json::Integer(span.start_ns)),
        field("end_time_unix_nano", span.end_ns.map_or(Json::Null, Json::Integer)),
        field("events", events_json(span.events)),
        field(
            "status",
            Json::Object(vec![
                field("code", Json::Text(span.status.message_name().to_owned())),
                field("message", Json::Text(without_nul(span.status_message))),
            ]),
        ),
        field("attributes", Json::Object(all.collect())),
        field("links", links_json(span.links)),
    ]);
    let usage = attributes.get(CHAT_USAGE);
    let usage = usage.filter(|usage| matches!(serde_json::from_str(usage), Ok(Value::Object(_))));
    let stored = StoredSpan {
        trace_id,
        span_id: hex::encode(span.span_id),
        parent_id: span.parent_id.map(hex::encode),
        name: cut(&span.name, usize::MAX),
        span_type: word(&attributes, SPAN_TYPE, MAX_WORD_CHARS).unwrap_or_else(|| NO_TYPE.to_owned()),
        status: span.status.as_str(),
        start_ns: span.start_ns,
        end_ns: span.end_ns,
        content: content.dump(),
        token_usage: usage.map(str::to_owned),
        cost: cost_of(&attributes),
        model_name: word(&attributes, MODEL, MAX_WORD_CHARS),
        model_provider: word(&attributes, MODEL_PROVIDER, MAX_WORD_CHARS),
    };
    (stored, attributes)
}

/// The tags that the source of the spans gives a trace.
fn resource_tags(resource: &[(String, Json)]) -> BTreeMap<String, String> {
    let told = resource.iter().filter(|(key, _)| {
        // What OpenTelemetry says of itself, and what this server writes.
        !key.starts_with("telemetry.sdk.") && !key.starts_with("mlflow.") && check_key("tag", key).is_ok()
    });
    let mut room = MAX_TOLD_BYTES;
    let told = told.take(MAX_TOLD_TAGS / 2).map_while(|(key, value)| {
        let value = value.as_text().map_or_else(|| value.dump(), str::to_owned);
        let value = cut(&value, MAX_TRACE_TAG_CHARS);
        room = room.checked_sub(key.len() + value.len())?;
        Some((key.clone(), value))
    });
    told.collect()
}

/// The attribute of a resource with the name of the program.
const SERVICE_NAME: &str = "service.name";
/// The programs whose names their first spans carry, as MLflow's console shows them: assistants that write code.
const SHOWN_SERVICES: [&str; 5] = ["claude-code", "codex_cli_rs", "codex_vscode", "gemini-cli", "qwen-code"];

/// The name of the program that sent spans, if it is shown.
fn shown_service(resource: &[(String, Json)]) -> Option<Json> {
    let (_, name) = resource.iter().find(|(key, _)| key == SERVICE_NAME)?;
    let is_shown = name.as_text().is_some_and(|name| SHOWN_SERVICES.contains(&name));
    is_shown.then(|| name.clone())
}

/// What the spans of a trace tell of it, and the spans by their ids.
type Gathered = (SpansSummary, BTreeMap<[u8; 8], StoredSpan>);

/// What is stored of spans, by their traces.
pub(crate) fn store_spans(groups: Vec<SpanGroup>) -> Vec<TraceSpans> {
    let mut traces: BTreeMap<[u8; 16], Gathered> = BTreeMap::new();
    for group in groups {
        let tags = resource_tags(&group.resource);
        let service = shown_service(&group.resource);
        for mut span in group.spans {
            if let Some(service) = service.as_ref().filter(|_| span.parent_id.is_none()) {
                span.attributes.retain(|(key, _)| key != SERVICE_NAME);
                span.attributes.push((SERVICE_NAME.to_owned(), service.clone()));
            }
            let (trace_id, span_id) = (span.trace_id, span.span_id);
            let (summary, spans) = traces.entry(trace_id).or_insert_with(|| {
                let summary = SpansSummary {
                    start_ms: i64::MAX,
                    tags: tags.clone(),
                    ..SpansSummary::default()
                };
                (summary, BTreeMap::new())
            });
            let (stored, attributes) = stored(span);
            tell(summary, &stored, &attributes);
            // The last one of those with the same id.
            spans.insert(span_id, stored);
        }
    }
    let traces = traces.into_iter().map(|(trace_id, (summary, spans))| TraceSpans {
        trace_id: trace_name_of(trace_id),
        summary,
        spans: spans.into_values().collect(),
    });
    traces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u8, parent: Option<u8>, attributes: &[(&str, Json)]) -> NewSpan {
        NewSpan {
            trace_id: [7; 16],
            span_id: [id; 8],
            parent_id: parent.map(|parent| [parent; 8]),
            name: "step\0".to_owned(),
            start_ns: 1_500_000_000 + i64::from(id),
            end_ns: Some(2_500_000_000),
            status: SpanStatus::Ok,
            attributes: attributes
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            ..NewSpan::default()
        }
    }

    fn text(text: &str) -> Json {
        Json::Text(text.to_owned())
    }

    #[test]
    fn the_first_spans_of_known_programs_carry_their_names() {
        let shown = |name: &str| {
            let resource = vec![(SERVICE_NAME.to_owned(), Json::Text(name.to_owned()))];
            let spans = vec![span(1, None, &[]), span(2, Some(1), &[])];
            let traces = store_spans(vec![SpanGroup { resource, spans }]);
            let carries = |span: &StoredSpan| {
                let content: Value = serde_json::from_str(&span.content).unwrap();
                content["attributes"].get(SERVICE_NAME).cloned()
            };
            traces[0].spans.iter().map(carries).collect::<Vec<_>>()
        };
        assert_eq!(shown("gemini-cli"), [Some(Value::from("\"gemini-cli\"")), None]);
        assert_eq!(shown("my-own"), [None, None]);
    }

    #[test]
    fn a_request_becomes_traces() {
        let root = span(
            1,
            None,
            &[
                (INPUTS, Json::parse(r#"{"b": 1, "a": "x"}"#).unwrap()),
                (OUTPUTS, text("done")),
                ("mlflow.traceTag.color", text("red")),
                ("mlflow.traceTag.mlflow.traceName", text("walk")),
                ("session.id", text("s1")),
                ("mlflow.traceRequestId", text("tr-forged")),
                ("n", Json::Number(f64::NAN)),
            ],
        );
        let child = span(
            2,
            Some(1),
            &[
                (SPAN_TYPE, text("LLM")),
                (LLM_COST, Json::parse(r#"{"total_cost": 0.5}"#).unwrap()),
            ],
        );
        let group = SpanGroup {
            resource: vec![
                field("service.name", text("shop")),
                field("telemetry.sdk.name", text("x")),
            ],
            spans: vec![root.clone(), child, root],
        };
        let traces = store_spans(vec![group]);
        assert_eq!(traces.len(), 1);
        let trace = &traces[0];
        assert_eq!(trace.trace_id, format!("tr-{}", "07".repeat(16)));
        let summary = &trace.summary;
        assert_eq!((summary.start_ms, summary.end_ms), (1500, Some(2500)));
        assert_eq!(summary.root_state, Some(TraceState::Ok));
        assert_eq!(summary.request_preview.as_deref(), Some(r#"{"b": 1, "a": "x"}"#));
        assert_eq!(summary.response_preview.as_deref(), Some("\"done\""));
        assert_eq!(summary.name.as_deref(), Some("walk"));
        assert_eq!(summary.session_id.as_deref(), Some("s1"));
        let tags: Vec<_> = summary
            .tags
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(tags, [("color", "red"), ("service.name", "shop")]);
        assert_eq!(trace.spans.len(), 2);
        assert_eq!(trace.spans[0].name, "step\u{fffd}");
        assert_eq!(
            (trace.spans[0].span_type.as_str(), trace.spans[1].span_type.as_str()),
            (NO_TYPE, "LLM")
        );
        assert_eq!(trace.spans[1].cost.total, Some(0.5));
        let content: Value = serde_json::from_str(&trace.spans[0].content).unwrap();
        assert_eq!(content["attributes"]["mlflow.spanInputs"], r#"{"b": 1, "a": "x"}"#);
        assert_eq!(
            content["attributes"]["mlflow.traceRequestId"],
            format!("\"{}\"", trace.trace_id)
        );
        assert_eq!(content["attributes"]["n"], "NaN");
        assert_eq!(content["span_id"], "AQEBAQEBAQE=");
    }

    #[test]
    fn no_text_has_the_character_that_postgresql_cannot_read() {
        let nul = || text("a\0b");
        let told = || vec![("k\0".to_owned(), nul()), field("list", Json::List(vec![nul()]))];
        let mut span = span(1, None, &[("k\0", nul()), ("o", Json::Object(told()))]);
        span.status_message = "bad\0".to_owned();
        span.events = vec![SpanEvent {
            name: "exception\0".to_owned(),
            time_ns: 1,
            attributes: told(),
        }];
        span.links = vec![SpanLink {
            trace_id: [1; 16],
            span_id: [1; 8],
            attributes: told(),
        }];
        let resource = vec![];
        let spans = vec![span];
        let content = store_spans(vec![SpanGroup { resource, spans }])[0].spans[0]
            .content
            .clone();
        // In a text that is JSON itself it stands written out, which is a backslash more.
        let read: Value = serde_json::from_str(&content).unwrap();
        assert!(!format!("{read:?}").contains("\\0"), "{read:?}");
        assert_eq!(read["status"]["message"], "bad\u{fffd}");
    }

    #[test]
    fn a_source_gives_every_trace_a_bounded_number_of_tags() {
        let resource: Vec<_> = (0..300).map(|at| (format!("k{at}"), text(&"x".repeat(1000)))).collect();
        let tags = resource_tags(&resource);
        assert_eq!(tags.len(), MAX_TOLD_BYTES / 1004);
        let told: Vec<_> = (0..300).map(|at| (format!("{TAG_PREFIX}t{at}"), text("x"))).collect();
        let mut root = span(1, None, &[]);
        root.attributes = told;
        let spans = vec![root];
        let traces = store_spans(vec![SpanGroup { resource, spans }]);
        assert_eq!(traces[0].summary.tags.len(), MAX_TOLD_TAGS);
    }

    #[test]
    fn what_is_json_already_stays() {
        assert_eq!(dumped(&text("\"x\"")), "\"x\"");
        assert_eq!(dumped(&text("[1]")), "[1]");
        assert_eq!(dumped(&text("1")), "\"1\"");
        assert_eq!(dumped(&text("x")), "\"x\"");
        assert_eq!(dumped(&Json::Integer(1)), "1");
    }
}
