//! How much there is in a request in protobuf. An empty message of two bytes takes hundreds once it is read: what is too much is
//! known before.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The messages of a request that others are repeated in. The numbers of their fields are those of OpenTelemetry's
/// `trace_service.proto`, `trace.proto`, `resource.proto` and `common.proto`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

impl Message {
    /// The message in a field.
    const fn inner(self, field: u32) -> Option<Self> {
        Some(match (self, field) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Resource | Self::KeyValueList, 1)
            | (Self::Scope | Self::Event, 3)
            | (Self::Span, 9)
            | (Self::Link, 4) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::ArrayValue, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::ArrayValue,
            (Self::AnyValue, 6) => Self::KeyValueList,
            _ => return None,
        })
    }
}

/// Whether a request has at most so many spans, and so many messages of all kinds. One that is not whole has few enough: whoever
/// reads it finds out.
pub(super) fn are_few(content: &[u8], most_spans: usize, most_messages: usize) -> bool {
    let (mut spans, mut messages) = (0, 0);
    // What is still to be looked at. The content that waits is never more than the content.
    let mut waiting = vec![(Message::Request, content)];
    while let Some((message, mut content)) = waiting.pop() {
        while !content.is_empty() {
            let Some((field, inner)) = next_field(&mut content) else {
                break;
            };
            let Some((kind, inner)) = message.inner(field).zip(inner) else {
                continue;
            };
            messages += 1;
            spans += usize::from(kind == Message::Span);
            if messages > most_messages || spans > most_spans {
                return false;
            }
            if !inner.is_empty() {
                waiting.push((kind, inner));
            }
        }
    }
    true
}

/// The number of the next field, and its content where its length is told; none: it is not whole.
fn next_field<'a>(content: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let (field, kind) = decode_key(content).ok()?;
    if kind != WireType::LengthDelimited {
        skip_field(kind, field, content, DecodeContext::default()).ok()?;
        return Some((field, None));
    }
    let length = usize::try_from(decode_varint(content).ok()?).ok()?;
    let (inner, rest) = content.split_at_checked(length)?;
    *content = rest;
    Some((field, Some(inner)))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span, span::Event, span::Link},
    };
    use prost::Message as _;

    use super::*;

    fn value(value: Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    #[test]
    fn every_message_counts() {
        let list = value(Value::ArrayValue(ArrayValue {
            values: vec![AnyValue::default(); 3],
        }));
        let pair = KeyValue {
            key: "k".to_owned(),
            value: Some(value(Value::KvlistValue(KeyValueList {
                values: vec![KeyValue {
                    value: Some(list),
                    ..KeyValue::default()
                }],
            }))),
            ..KeyValue::default()
        };
        // The pair, its value, the list, a pair, its value, the array, three values.
        let of_pair = 9;
        let attributes = vec![pair];
        let span = Span {
            name: "a".to_owned(),
            start_time_unix_nano: 7,
            attributes: attributes.clone(),
            events: vec![Event {
                attributes: attributes.clone(),
                ..Event::default()
            }],
            links: vec![Link {
                attributes: attributes.clone(),
                ..Link::default()
            }],
            ..Span::default()
        };
        let of_span = 1 + of_pair + 2 * (1 + of_pair);
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: attributes.clone(),
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        attributes,
                        ..InstrumentationScope::default()
                    }),
                    spans: vec![span, Span::default(), Span::default()],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let content = request.encode_to_vec();
        let all = 1 + (1 + of_pair) + 1 + (1 + of_pair) + of_span + 2;
        assert!(are_few(&content, 3, all));
        assert!(!are_few(&content, 3, all - 1));
        assert!(!are_few(&content, 2, all));
        // What is not whole has what is there.
        assert!(are_few(&content[..content.len() - 1], 3, all));
        assert!(are_few(b"no protobuf", 0, 0));
    }
}
