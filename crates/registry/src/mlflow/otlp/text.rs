//! Spans in JSON: ids in hexadecimal digits, whole numbers perhaps as texts, names in either spelling.

use super::{Brought, MAX_SPANS, Unread, id, nanos, parent_id};
use crate::model::{
    json::Json,
    span::{NewSpan, SpanEvent, SpanGroup, SpanLink, SpanStatus},
};

/// A field under its two names.
fn field<'a>(message: &'a Json, name: &str, other: &str) -> Option<&'a Json> {
    message
        .get(name)
        .or_else(|| message.get(other))
        .filter(|value| **value != Json::Null)
}

fn items<'a>(message: &'a Json, name: &str, other: &str) -> Option<&'a [Json]> {
    match field(message, name, other) {
        None => Some(&[]),
        Some(Json::List(items)) => Some(items),
        Some(_) => None,
    }
}

fn whole(value: &Json) -> Option<i64> {
    match value {
        Json::Integer(number) => Some(*number),
        Json::Text(text) => text.trim().parse().ok(),
        Json::Number(number) if number.fract() == 0.0 && number.abs() < 9.2e18 => Some(*number as i64),
        _ => None,
    }
}

fn time(message: &Json, name: &str, other: &str) -> Option<i64> {
    match field(message, name, other) {
        None => Some(0),
        Some(Json::Text(text)) => text.trim().parse().ok().map(nanos),
        Some(value) => whole(value).filter(|time| *time >= 0),
    }
}

fn text(message: &Json, name: &str) -> String {
    message.get(name).and_then(Json::as_text).unwrap_or_default().to_owned()
}

/// The bytes of an id; none: it is not there.
fn bytes(message: &Json, name: &str, other: &str) -> Option<Vec<u8>> {
    match field(message, name, other) {
        None => Some(Vec::new()),
        Some(value) => hex::decode(value.as_text()?).ok(),
    }
}

/// A value. JSON's reader bounds how deep it is.
fn value(any: &Json) -> Option<Json> {
    let Json::Object(fields) = any else { return None };
    let Some((name, told)) = fields.first() else {
        return Some(Json::Null);
    };
    Some(match (name.as_str(), told) {
        ("stringValue" | "string_value" | "bytesValue" | "bytes_value", Json::Text(_))
        | ("boolValue" | "bool_value", Json::Bool(_)) => told.clone(),
        ("intValue" | "int_value", told) => Json::Integer(whole(told)?),
        ("doubleValue" | "double_value", Json::Integer(number)) => Json::Number(*number as f64),
        ("doubleValue" | "double_value", Json::Number(number)) => Json::Number(*number),
        ("doubleValue" | "double_value", Json::Text(text)) => Json::Number(text.trim().parse().ok()?),
        ("arrayValue" | "array_value", told) => {
            let values = items(told, "values", "values")?.iter();
            Json::List(values.map(value).collect::<Option<_>>()?)
        }
        ("kvlistValue" | "kvlist_value", told) => Json::Object(pairs(told, "values")?),
        _ => return None,
    })
}

fn pairs(message: &Json, name: &str) -> Option<Vec<(String, Json)>> {
    let pairs = items(message, name, name)?.iter();
    pairs
        .map(|pair| {
            let told = pair.get("value").map_or(Some(Json::Null), value)?;
            Some((text(pair, "key"), told))
        })
        .collect()
}

fn status(message: &Json) -> SpanStatus {
    match message.get("status").and_then(|status| status.get("code")) {
        Some(Json::Integer(1)) => SpanStatus::Ok,
        Some(Json::Integer(2)) => SpanStatus::Error,
        Some(Json::Text(name)) if name == "STATUS_CODE_OK" => SpanStatus::Ok,
        Some(Json::Text(name)) if name == "STATUS_CODE_ERROR" => SpanStatus::Error,
        _ => SpanStatus::Unset,
    }
}

fn events(message: &Json) -> Option<Vec<SpanEvent>> {
    let events = items(message, "events", "events")?.iter();
    events
        .map(|event| {
            Some(SpanEvent {
                name: text(event, "name"),
                time_ns: time(event, "timeUnixNano", "time_unix_nano")?,
                attributes: pairs(event, "attributes")?,
            })
        })
        .collect()
}

fn links(message: &Json) -> Option<Vec<SpanLink>> {
    let links = items(message, "links", "links")?.iter().filter_map(|link| {
        Some(SpanLink {
            trace_id: id(&bytes(link, "traceId", "trace_id")?)?,
            span_id: id(&bytes(link, "spanId", "span_id")?)?,
            attributes: pairs(link, "attributes")?,
        })
    });
    Some(links.collect())
}

/// A span; none: the message is none, an error: it cannot be stored.
fn span(message: &Json) -> Option<Result<NewSpan, &'static str>> {
    let trace_id = id(&bytes(message, "traceId", "trace_id")?);
    let span_id = id(&bytes(message, "spanId", "span_id")?);
    let end_ns = time(message, "endTimeUnixNano", "end_time_unix_nano")?;
    let status_message = message.get("status").map(|status| text(status, "message"));
    let read = NewSpan {
        trace_id: trace_id.unwrap_or_default(),
        span_id: span_id.unwrap_or_default(),
        parent_id: parent_id(&bytes(message, "parentSpanId", "parent_span_id")?),
        name: text(message, "name"),
        start_ns: time(message, "startTimeUnixNano", "start_time_unix_nano")?,
        end_ns: (end_ns > 0).then_some(end_ns),
        status: status(message),
        status_message: status_message.unwrap_or_default(),
        attributes: pairs(message, "attributes")?,
        events: events(message)?,
        links: links(message)?,
    };
    Some(match (trace_id, span_id) {
        (None, _) => Err("traceId must have 1 to 32 hexadecimal digits"),
        (_, None) => Err("spanId must have 1 to 16 hexadecimal digits"),
        _ => Ok(read),
    })
}

/// What a request brings.
pub(super) fn read(content: &[u8]) -> Result<Brought, Unread> {
    let request: Json = serde_json::from_slice(content).map_err(|_| Unread::Invalid)?;
    if !matches!(request, Json::Object(_)) {
        return Err(Unread::Invalid);
    }
    let spans = count(&request).ok_or(Unread::Invalid)?;
    if spans > MAX_SPANS {
        return Err(Unread::TooMuch);
    }
    brought(&request).ok_or(Unread::Invalid)
}

fn count(request: &Json) -> Option<usize> {
    let mut spans = 0;
    for source in items(request, "resourceSpans", "resource_spans")? {
        for scope in items(source, "scopeSpans", "scope_spans")? {
            spans += items(scope, "spans", "spans")?.len();
        }
    }
    Some(spans)
}

/// What a message brings; none: it is no such request.
fn brought(request: &Json) -> Option<Brought> {
    let mut brought = Brought::default();
    for source in items(request, "resourceSpans", "resource_spans")? {
        let resource = source.get("resource");
        let mut group = SpanGroup {
            resource: resource.map_or(Some(Vec::new()), |resource| pairs(resource, "attributes"))?,
            spans: Vec::new(),
        };
        for scope in items(source, "scopeSpans", "scope_spans")? {
            for told in items(scope, "spans", "spans")? {
                match span(told)? {
                    Ok(span) => group.spans.push(span),
                    Err(problem) => brought.refuse(problem),
                }
            }
        }
        brought.groups.push(group);
    }
    Some(brought)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        let content = r#"{"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
            "scopeSpans": [{"spans": [
                {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174", "name": "a",
                 "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": 1544712661000000000,
                 "attributes": [{"key": "n", "value": {"intValue": "5"}},
                                {"key": "l", "value": {"arrayValue": {"values": [{"doubleValue": 1}]}}},
                                {"key": "none"}],
                 "status": {"code": 2, "message": "bad"}, "unknown": 1},
                {"traceId": "", "spanId": "eee19b7ec3c1b174"}
            ]}]
        }]}"#;
        let brought = read(content.as_bytes()).unwrap();
        assert_eq!(brought.refused, 1);
        let group = &brought.groups[0];
        assert_eq!(
            group.resource,
            [("service.name".to_owned(), Json::Text("shop".to_owned()))]
        );
        let span = &group.spans[0];
        assert_eq!(hex::encode(span.trace_id), "5b8efff798038103d269b633813fc60c");
        assert_eq!(
            (span.start_ns, span.end_ns),
            (1_544_712_660_000_000_000, Some(1_544_712_661_000_000_000))
        );
        assert_eq!((span.status, span.status_message.as_str()), (SpanStatus::Error, "bad"));
        let expected = [
            ("n".to_owned(), Json::Integer(5)),
            ("l".to_owned(), Json::List(vec![Json::Number(1.0)])),
            ("none".to_owned(), Json::Null),
        ];
        assert_eq!(span.attributes, expected);
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for content in [
            "[]",
            "{",
            r#"{"resourceSpans": 1}"#,
            r#"{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz", "spanId": "01"}]}]}]}"#,
        ] {
            assert_eq!(read(content.as_bytes()).unwrap_err(), Unread::Invalid, "{content}");
        }
        assert!(read(b"{}").unwrap().groups.is_empty());
        let many = format!(
            r#"{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{}{{}}]}}]}}]}}"#,
            "{},".repeat(MAX_SPANS)
        );
        assert_eq!(read(many.as_bytes()).unwrap_err(), Unread::TooMuch);
    }
}
