//! What happened, as it is written down.

use modelyard_common::Timestamp;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{canonical::MAX_INTEGER, chain::Hash};

/// The longest name of a project, in bytes; longer texts are cut and end with `…`. The same holds for all of these.
const MAX_PROJECT: usize = 128;
/// The longest actor: a kind and a name.
const MAX_ACTOR: usize = 320;
/// The longest name of an action or of a kind of resources.
const MAX_WORD: usize = 64;
/// The longest name of a resource.
const MAX_RESOURCE: usize = 512;
/// The longest reason.
const MAX_REASON: usize = 1024;
/// The longest digest: `sha256:` and 64 hex digits, with room for longer ones.
const MAX_DIGEST: usize = 160;
/// The longest id of a request.
const MAX_REQUEST_ID: usize = 128;
/// The longest address: IPv6 with a scope.
const MAX_ADDRESS: usize = 64;
/// The most details; of more, the first ones are kept and [`LEFT_OUT`] counts the others.
pub const MAX_DETAILS: usize = 32;
/// The longest name of a detail.
const MAX_DETAIL_KEY: usize = 64;
/// The longest value of a detail.
const MAX_DETAIL: usize = 1024;
/// The detail that counts those that were left out.
const LEFT_OUT: &str = "left_out";
/// What a text ends with that was cut.
const CUT: &str = "…";

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was not permitted.
    Denied,
    /// It was permitted and went wrong.
    Failed,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 3] = [Self::Success, Self::Denied, Self::Failed];

    /// The name in events and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }

    /// The outcome of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// Something that happened and has no place in the chain yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// Its id; the chain takes an event once.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// In which project; empty: in the installation.
    pub project: String,
    /// Who: `user:alice`, `service-account:ci`, `service:orchestrator` or `anonymous`.
    pub actor: String,
    /// For whom a service did it.
    pub on_behalf_of: Option<String>,
    /// Which permission it took: `alias.write`; `sign-in`, `sign-out` and `token.exchange` take none. What was done with it
    /// is the detail `operation`.
    pub action: String,
    /// The kind of the resource.
    pub resource_kind: String,
    /// The resource.
    pub resource: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not succeed, or why it was done.
    pub reason: Option<String>,
    /// The digest of what was before.
    pub before_digest: Option<String>,
    /// The digest of what is now.
    pub after_digest: Option<String>,
    /// The id of the request.
    pub request_id: Option<String>,
    /// Where the request came from.
    pub source_address: Option<String>,
    /// More: an object of texts, integers and booleans.
    pub details: Value,
}

/// Something that happened, at its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// Its number: one more than that of the event before; the first is 1.
    pub seq: u64,
    /// Its id.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// In which project; empty: in the installation.
    pub project: String,
    /// Who: `user:alice`, `service-account:ci`, `service:orchestrator` or `anonymous`.
    pub actor: String,
    /// For whom a service did it.
    pub on_behalf_of: Option<String>,
    /// Which permission it took: `alias.write`; `sign-in`, `sign-out` and `token.exchange` take none. What was done with it
    /// is the detail `operation`.
    pub action: String,
    /// The kind of the resource.
    pub resource_kind: String,
    /// The resource.
    pub resource: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not succeed, or why it was done.
    pub reason: Option<String>,
    /// The digest of what was before.
    pub before_digest: Option<String>,
    /// The digest of what is now.
    pub after_digest: Option<String>,
    /// The id of the request.
    pub request_id: Option<String>,
    /// Where the request came from.
    pub source_address: Option<String>,
    /// More: an object of texts, integers and booleans.
    #[schema(value_type = Object)]
    pub details: Value,
    /// The hash of the event before.
    pub prev_hash: Hash,
    /// The hash of this event.
    pub hash: Hash,
}

impl NewEvent {
    /// Adds a detail: a text, an integer or a boolean.
    pub fn add_detail(&mut self, name: &str, value: impl Into<Value>) {
        if let Some(details) = self.details.as_object_mut() {
            details.insert(name.to_owned(), value.into());
        }
    }

    /// The event with the digests of what was before and of what is now, both as they are stored.
    #[must_use]
    pub fn with_digests(&self, before: Option<&str>, after: Option<&str>) -> Self {
        let digest = |text: &str| format!("sha256:{}", hex::encode(digest(&SHA256, text.as_bytes())));
        Self {
            before_digest: before.map(digest),
            after_digest: after.map(digest),
            ..self.clone()
        }
    }

    /// The event as it is written down: texts of a bounded length without characters that could forge a line or turn the
    /// reading direction, and flat details. Cleaning again changes nothing.
    #[must_use]
    pub fn clean(mut self) -> Self {
        for (text, limit) in [
            (&mut self.project, MAX_PROJECT),
            (&mut self.actor, MAX_ACTOR),
            (&mut self.action, MAX_WORD),
            (&mut self.resource_kind, MAX_WORD),
            (&mut self.resource, MAX_RESOURCE),
        ] {
            clean_in_place(text, limit);
        }
        for (text, limit) in [
            (&mut self.on_behalf_of, MAX_ACTOR),
            (&mut self.reason, MAX_REASON),
            (&mut self.before_digest, MAX_DIGEST),
            (&mut self.after_digest, MAX_DIGEST),
            (&mut self.request_id, MAX_REQUEST_ID),
            (&mut self.source_address, MAX_ADDRESS),
        ] {
            if let Some(text) = text {
                clean_in_place(text, limit);
            }
        }
        self.details = Value::Object(clean_details(self.details));
        self
    }
}

fn clean_details(details: Value) -> Map<String, Value> {
    let details = match details {
        Value::Object(details) => details,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    let count = details.len();
    // One place is for the count.
    let kept = if count > MAX_DETAILS { MAX_DETAILS - 1 } else { count };
    let mut clean = Map::new();
    for (key, value) in details.into_iter().take(kept) {
        clean.insert(clean_text(&key, MAX_DETAIL_KEY), clean_detail(value));
    }
    if kept < count {
        clean.insert(LEFT_OUT.to_owned(), Value::from(count - kept));
    }
    clean
}

fn clean_detail(value: Value) -> Value {
    match value {
        Value::String(mut text) => {
            clean_in_place(&mut text, MAX_DETAIL);
            Value::String(text)
        }
        Value::Number(number) if is_safe(&number) => Value::Number(number),
        Value::Null | Value::Bool(_) => value,
        // Other numbers have no canonical form here, and nesting has no bounds: both become text.
        other => Value::String(clean_text(&other.to_string(), MAX_DETAIL)),
    }
}

fn is_safe(number: &serde_json::Number) -> bool {
    let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    magnitude.is_some_and(|magnitude| magnitude <= MAX_INTEGER)
}

fn clean_in_place(text: &mut String, limit: usize) {
    if text.len() > limit || text.contains(is_harmful) {
        *text = clean_text(text, limit);
    }
}

/// The text without characters that could forge a line or turn the reading direction: they are written as `\n` or
/// `\u{202e}`. More than `limit` bytes are cut and end with `…`.
#[must_use]
pub fn clean_text(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        if is_harmful(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        if clean.len() > limit {
            let room = limit.saturating_sub(CUT.len());
            clean.truncate(clean.floor_char_boundary(room));
            clean.push_str(CUT);
            break;
        }
    }
    clean
}

fn is_harmful(c: char) -> bool {
    // Control characters; line and paragraph separators; invisible marks and those that turn the reading direction.
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::fixture, *};

    #[test]
    fn outcomes_are_read_as_they_are_written() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::parse(outcome.as_str()), Some(outcome));
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
        assert_eq!(Outcome::parse("Success"), None);
    }

    #[test]
    fn harmful_characters_are_written_out() {
        for (text, clean) in [
            ("plain, ü and 漢字 stay", "plain, ü and 漢字 stay"),
            (
                "bob\n2026-01-01 user:alice did it",
                "bob\\n2026-01-01 user:alice did it",
            ),
            ("\r\t\0\u{1b}[31m\u{7f}\u{9b}", "\\r\\t\\u{0}\\u{1b}[31m\\u{7f}\\u{9b}"),
            ("\u{202e}evil\u{2066}\u{2028}", "\\u{202e}evil\\u{2066}\\u{2028}"),
            ("a \"quote\" and \\", "a \"quote\" and \\"),
        ] {
            assert_eq!(clean_text(text, 100), clean);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(clean_text("12345678", 8), "12345678");
        assert_eq!(clean_text("123456789", 8), "12345…");
        assert_eq!(clean_text("ééééé", 8), "éé…");
    }

    #[test]
    fn details_become_flat_and_bounded() {
        let details = json!({
            "text": "a\nb", "count": 3, "yes": true, "none": null,
            "share": 0.5, "huge": u64::MAX, "list": ["a", "b"], "nested": {"a": {"b": 1}},
        });
        let event = NewEvent {
            details,
            ..fixture::new_event(1)
        }
        .clean();
        let expected = json!({
            "text": "a\\nb", "count": 3, "yes": true, "none": null,
            "share": "0.5", "huge": "18446744073709551615", "list": "[\"a\",\"b\"]", "nested": "{\"a\":{\"b\":1}}",
        });
        assert_eq!(event.details, expected);

        let many: Map<String, Value> = (0..100).map(|n| (format!("key{n}"), Value::from(n))).collect();
        let event = NewEvent {
            details: Value::Object(many),
            ..fixture::new_event(1)
        }
        .clean();
        let details = event.details.as_object().unwrap();
        assert_eq!(details.len(), MAX_DETAILS);
        assert_eq!(details[LEFT_OUT], 69);

        for (odd, expected) in [(json!(null), json!({})), (json!("x"), json!({"value": "x"}))] {
            let event = NewEvent {
                details: odd,
                ..fixture::new_event(1)
            };
            assert_eq!(event.clean().details, expected);
        }
    }

    #[test]
    fn a_new_event_survives_being_delivered() {
        let event = fixture::new_event(7);
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<NewEvent>(&text).unwrap(), event);
    }

    proptest! {
        #[test]
        fn cleaning_is_complete_bounded_and_done_once(event in fixture::any_event()) {
            let clean = event.clean();
            let limit = MAX_DETAIL.max(MAX_RESOURCE).max(MAX_REASON);
            let mut texts = vec![&clean.project, &clean.actor, &clean.action, &clean.resource_kind, &clean.resource];
            texts.extend([&clean.on_behalf_of, &clean.reason, &clean.request_id, &clean.source_address].into_iter().flatten());
            for (key, value) in clean.details.as_object().unwrap() {
                texts.push(key);
                if let Value::String(text) = value {
                    texts.push(text);
                }
            }
            for text in texts {
                prop_assert!(!text.contains(is_harmful) && text.len() <= limit, "{text:?}");
            }
            prop_assert_eq!(clean.clone().clean(), clean);
        }
    }
}
