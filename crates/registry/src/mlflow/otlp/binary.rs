//! Spans in protobuf.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::Event, span::Link, status::StatusCode},
};
use prost::Message as _;

use super::{Brought, MAX_MESSAGES, MAX_SPANS, Unread, id, nanos, parent_id, parts};
use crate::model::{
    json::Json,
    span::{NewSpan, SpanEvent, SpanGroup, SpanLink, SpanStatus},
};

/// A value. Protobuf's reader bounds how deep it is.
fn value(any: Option<AnyValue>) -> Json {
    match any.and_then(|any| any.value) {
        None | Some(Value::StringValueStrindex(_)) => Json::Null,
        Some(Value::StringValue(text)) => Json::Text(text),
        Some(Value::BoolValue(value)) => Json::Bool(value),
        Some(Value::IntValue(number)) => Json::Integer(number),
        Some(Value::DoubleValue(number)) => Json::Number(number),
        Some(Value::ArrayValue(list)) => Json::List(list.values.into_iter().map(|item| value(Some(item))).collect()),
        Some(Value::KvlistValue(list)) => Json::Object(fields(list.values)),
        Some(Value::BytesValue(bytes)) => Json::Text(STANDARD.encode(bytes)),
    }
}

fn fields(pairs: Vec<KeyValue>) -> Vec<(String, Json)> {
    pairs.into_iter().map(|pair| (pair.key, value(pair.value))).collect()
}

fn event(event: Event) -> SpanEvent {
    SpanEvent {
        name: event.name,
        time_ns: nanos(event.time_unix_nano),
        attributes: fields(event.attributes),
    }
}

/// A link; one whose ids are none is left out.
fn link(link: Link) -> Option<SpanLink> {
    Some(SpanLink {
        trace_id: id(&link.trace_id)?,
        span_id: id(&link.span_id)?,
        attributes: fields(link.attributes),
    })
}

fn span(span: Span) -> Result<NewSpan, &'static str> {
    let status = span.status.unwrap_or_default();
    Ok(NewSpan {
        trace_id: id(&span.trace_id).ok_or("trace_id must have 1 to 16 bytes")?,
        span_id: id(&span.span_id).ok_or("span_id must have 1 to 8 bytes")?,
        parent_id: parent_id(&span.parent_span_id),
        name: span.name,
        start_ns: nanos(span.start_time_unix_nano),
        end_ns: (span.end_time_unix_nano > 0).then(|| nanos(span.end_time_unix_nano)),
        status: match StatusCode::try_from(status.code) {
            Ok(StatusCode::Ok) => SpanStatus::Ok,
            Ok(StatusCode::Error) => SpanStatus::Error,
            _ => SpanStatus::Unset,
        },
        status_message: status.message,
        attributes: fields(span.attributes),
        events: span.events.into_iter().map(event).collect(),
        links: span.links.into_iter().filter_map(link).collect(),
    })
}

/// What a request brings.
pub(super) fn read(content: &[u8]) -> Result<Brought, Unread> {
    if !parts::are_few(content, MAX_SPANS, MAX_MESSAGES) {
        return Err(Unread::TooMuch);
    }
    let request = ExportTraceServiceRequest::decode(content).map_err(|_| Unread::Invalid)?;
    let mut brought = Brought::default();
    for source in request.resource_spans {
        let mut group = SpanGroup {
            resource: fields(source.resource.unwrap_or_default().attributes),
            spans: Vec::new(),
        };
        for told in source.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            match span(told) {
                Ok(span) => group.spans.push(span),
                Err(problem) => brought.refuse(problem),
            }
        }
        brought.groups.push(group);
    }
    Ok(brought)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    use super::*;

    #[test]
    fn spans_without_ids_are_refused_alone() {
        let good = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "good".to_owned(),
            start_time_unix_nano: 5,
            attributes: vec![KeyValue {
                key: "k".to_owned(),
                value: Some(AnyValue {
                    value: Some(Value::DoubleValue(1.0)),
                }),
                ..KeyValue::default()
            }],
            ..Span::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: vec![good, Span::default()],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let brought = read(&request.encode_to_vec()).unwrap();
        assert_eq!(brought.refused, 1);
        assert!(brought.problem.starts_with("trace_id"));
        let span = &brought.groups[0].spans[0];
        assert_eq!((span.name.as_str(), span.start_ns, span.end_ns), ("good", 5, None));
        assert_eq!(span.attributes, [("k".to_owned(), Json::Number(1.0))]);
        assert_eq!(read(b"no protobuf").unwrap_err(), Unread::Invalid);
        let many = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: vec![Span::default(); MAX_SPANS + 1],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        assert_eq!(read(&many.encode_to_vec()).unwrap_err(), Unread::TooMuch);
    }
}
