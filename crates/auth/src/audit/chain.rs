//! Linking events.

use std::{fmt, str::FromStr};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::{
    Result,
    canonical::write_event,
    event::{AuditEvent, NewEvent},
};

/// What the first event follows.
pub const GENESIS: Hash = Hash([0; 32]);

/// The hash of an event, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

/// A text that is no hash.
#[derive(Debug, thiserror::Error)]
#[error("the hash of an event has 64 lowercase hex digits")]
pub struct InvalidHash;

impl Hash {
    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = GENESIS;
        hex::decode_to_slice(text, &mut hash.0).map_err(|_| InvalidHash)?;
        // One form only: what is compared as text is compared.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidHash);
        }
        Ok(hash)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Hash {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("64 hex digits"))
            .into()
    }
}

impl ToSchema for Hash {}

/// The hash that an event must have. The buffer is for the event's canonical form, and holds it afterwards.
pub(super) fn hash_of(event: &AuditEvent, buffer: &mut Vec<u8>) -> Result<Hash> {
    buffer.clear();
    let hash_member = write_event(event, buffer)?;
    let mut context = Context::new(&SHA256);
    context.update(event.prev_hash.as_bytes());
    context.update(&buffer[..hash_member.start]);
    context.update(&buffer[hash_member.end..]);
    let mut hash = GENESIS;
    hash.0.copy_from_slice(context.finish().as_ref());
    Ok(hash)
}

/// Gives an event its place after the one with the hash `prev`. The event is cleaned first, so that nothing harmful can be
/// in the chain, whoever made it.
///
/// # Errors
/// A number beyond 2^53: it cannot happen.
pub fn link(prev: &Hash, event: NewEvent, seq: u64) -> Result<AuditEvent> {
    let event = event.clean();
    let mut linked = AuditEvent {
        seq,
        id: event.id,
        at: event.at,
        project: event.project,
        actor: event.actor,
        on_behalf_of: event.on_behalf_of,
        action: event.action,
        resource_kind: event.resource_kind,
        resource: event.resource,
        outcome: event.outcome,
        reason: event.reason,
        before_digest: event.before_digest,
        after_digest: event.after_digest,
        request_id: event.request_id,
        source_address: event.source_address,
        details: event.details,
        prev_hash: *prev,
        hash: GENESIS,
    };
    linked.hash = hash_of(&linked, &mut Vec::with_capacity(1024))?;
    Ok(linked)
}

#[cfg(test)]
mod tests {
    use ring::digest::digest;
    use serde_json::json;

    use super::{super::fixture, *};

    #[test]
    fn the_hash_is_that_of_the_documented_bytes() {
        // Written down once: a chain that exists must verify in every later version.
        let event = link(&GENESIS, fixture::new_event(1), 1).unwrap();
        let body = concat!(
            r#"{"action":"alias.write","actor":"user:alice","after_digest":"sha256:01","at":"2026-01-02T03:04:06Z","#,
            r#""before_digest":null,"details":{"count":1,"via":"token"},"id":"00000000-0000-0000-0000-000000000001","#,
            r#""on_behalf_of":null,"outcome":"success","#,
            r#""prev_hash":"0000000000000000000000000000000000000000000000000000000000000000","project":"default","#,
            r#""reason":null,"request_id":"request-1","resource":"flight-delay@champion","resource_kind":"model","#,
            r#""seq":1,"source_address":"192.0.2.1"}"#
        );
        let mut hashed = vec![0; 32];
        hashed.extend_from_slice(body.as_bytes());
        assert_eq!(event.hash.to_string(), hex::encode(digest(&SHA256, &hashed)));
        assert_eq!(
            event.hash.to_string(),
            "402286c26b3d976a757378884f084f762b8ff7be1d8daaea5db965f3d9b132bd"
        );
    }

    #[test]
    fn events_follow_each_other() {
        let chain = fixture::chain(5);
        assert_eq!(chain[0].prev_hash, GENESIS);
        for pair in chain.windows(2) {
            assert_eq!(pair[1].prev_hash, pair[0].hash);
            assert_ne!(pair[1].hash, pair[0].hash);
        }
    }

    #[test]
    fn nothing_harmful_is_linked() {
        let event = NewEvent {
            resource: "a\nb".to_owned(),
            details: json!({"share": 0.5}),
            ..fixture::new_event(1)
        };
        let event = link(&GENESIS, event, 1).unwrap();
        assert_eq!(event.resource, "a\\nb");
        assert_eq!(event.details, json!({"share": "0.5"}));
    }

    #[test]
    fn hashes_have_one_form() {
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<Hash>().unwrap().to_string(), text);
        for bad in [
            "",
            "00",
            &text.to_uppercase(),
            &format!("{text}00"),
            &text.replace('0', "g"),
        ] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }
}
