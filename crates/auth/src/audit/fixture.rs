//! Events for the tests of this module.

use std::time::Duration;

use modelyard_common::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{AuditEvent, Checkpoint, GENESIS, NewEvent, Outcome, PublicKey, SigningKey, link, sign};

/// 2026-01-02T03:04:05Z.
pub(crate) const START: i64 = 1_767_323_045_000;

/// An event like those that there are most of.
pub(crate) fn new_event(number: u64) -> NewEvent {
    NewEvent {
        id: Uuid::from_u128(u128::from(number)),
        at: Timestamp::from_millis(START) + Duration::from_secs(number),
        project: "default".to_owned(),
        actor: "user:alice".to_owned(),
        on_behalf_of: None,
        action: "alias.write".to_owned(),
        resource_kind: "model".to_owned(),
        resource: "flight-delay@champion".to_owned(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: Some("sha256:01".to_owned()),
        request_id: Some(format!("request-{number}")),
        source_address: Some("192.0.2.1".to_owned()),
        details: json!({"via": "token", "count": number}),
    }
}

/// The chain of these events.
pub(crate) fn link_all(events: Vec<NewEvent>) -> Vec<AuditEvent> {
    let mut chain: Vec<AuditEvent> = Vec::new();
    for event in events {
        let prev = chain.last().map_or(GENESIS, |event| event.hash);
        chain.push(link(&prev, event, chain.len() as u64 + 1).unwrap());
    }
    chain
}

/// A chain of the given length.
pub(crate) fn chain(length: u64) -> Vec<AuditEvent> {
    link_all((1..=length).map(new_event).collect())
}

/// The signature over an event.
pub(crate) fn checkpoint(key: &SigningKey, event: &AuditEvent) -> Checkpoint {
    sign(key, &key.public_key().id(), event.seq, event.hash, event.at)
}

/// A key and its public half.
pub(crate) fn key() -> (SigningKey, PublicKey) {
    let (key, _) = SigningKey::generate().unwrap();
    let public = key.public_key();
    (key, public)
}

fn any_detail() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..3).prop_map(Value::from),
    ]
}

/// Any event, however odd.
pub(crate) fn any_event() -> impl Strategy<Value = NewEvent> {
    let text = || {
        prop_oneof![
            any::<String>(),
            "[a-z@/]{0,20}",
            "[\\x00-\\x1f\u{202e}\"\\\\é]{0,12}",
            "x{0,2000}"
        ]
    };
    let maybe = move || proptest::option::of(text());
    let details = proptest::collection::btree_map(text(), any_detail(), 0..40);
    (
        (any::<u128>(), any::<i64>()),
        (text(), text(), text(), text(), text()),
        (maybe(), maybe(), maybe(), maybe(), maybe(), maybe()),
        (proptest::sample::select(&Outcome::ALL[..]), details),
    )
        .prop_map(|((id, at), texts, optional, (outcome, details))| NewEvent {
            id: Uuid::from_u128(id),
            at: Timestamp::from_micros(at),
            project: texts.0,
            actor: texts.1,
            action: texts.2,
            resource_kind: texts.3,
            resource: texts.4,
            outcome,
            on_behalf_of: optional.0,
            reason: optional.1,
            before_digest: optional.2,
            after_digest: optional.3,
            request_id: optional.4,
            source_address: optional.5,
            details: Value::Object(details.into_iter().collect()),
        })
}
