//! Canonical JSON, by the rules of RFC 8785 where they matter: members sorted by the UTF-16 code units of their names, no
//! space, the shortest escapes. It is written by hand into a buffer that is used again, because verifying a chain is this and
//! a hash, a million times.

use std::ops::Range;

use serde_json::{Map, Number, Value};

use super::{Error, Result, chain::Hash, event::AuditEvent};

/// The largest integer that every reader of JSON reads exactly: 2^53 - 1.
pub(super) const MAX_INTEGER: u64 = (1 << 53) - 1;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Which numbers there may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Only integers that every reader reads exactly: what is hashed must not depend on how somebody prints a double.
    Integers,
    /// All, as `serde_json` writes them.
    All,
}

/// Writes an event, and tells where its member `hash` stands, comma included: what is hashed is the rest.
pub(super) fn write_event(event: &AuditEvent, out: &mut Vec<u8>) -> Result<Range<usize>> {
    out.extend_from_slice(b"{\"action\":");
    write_text(&event.action, out);
    out.extend_from_slice(b",\"actor\":");
    write_text(&event.actor, out);
    out.extend_from_slice(b",\"after_digest\":");
    write_optional(event.after_digest.as_deref(), out);
    out.extend_from_slice(b",\"at\":\"");
    out.extend_from_slice(event.at.to_string().as_bytes());
    out.extend_from_slice(b"\",\"before_digest\":");
    write_optional(event.before_digest.as_deref(), out);
    out.extend_from_slice(b",\"details\":");
    write_value(&event.details, Numbers::Integers, out)?;
    let hash = out.len();
    out.extend_from_slice(b",\"hash\":");
    write_hash(&event.hash, out);
    let hash = hash..out.len();
    out.extend_from_slice(b",\"id\":\"");
    out.extend_from_slice(event.id.hyphenated().encode_lower(&mut [0; 36]).as_bytes());
    out.extend_from_slice(b"\",\"on_behalf_of\":");
    write_optional(event.on_behalf_of.as_deref(), out);
    out.extend_from_slice(b",\"outcome\":\"");
    out.extend_from_slice(event.outcome.as_str().as_bytes());
    out.extend_from_slice(b"\",\"prev_hash\":");
    write_hash(&event.prev_hash, out);
    out.extend_from_slice(b",\"project\":");
    write_text(&event.project, out);
    out.extend_from_slice(b",\"reason\":");
    write_optional(event.reason.as_deref(), out);
    out.extend_from_slice(b",\"request_id\":");
    write_optional(event.request_id.as_deref(), out);
    out.extend_from_slice(b",\"resource\":");
    write_text(&event.resource, out);
    out.extend_from_slice(b",\"resource_kind\":");
    write_text(&event.resource_kind, out);
    out.extend_from_slice(b",\"seq\":");
    if event.seq > MAX_INTEGER {
        return Err(Error::Number(event.seq.to_string()));
    }
    write_integer(event.seq, out);
    out.extend_from_slice(b",\"source_address\":");
    write_optional(event.source_address.as_deref(), out);
    out.push(b'}');
    Ok(hash)
}

/// Writes any JSON.
pub(super) fn write_value(value: &Value, numbers: Numbers, out: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(number, numbers, out)?,
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(item, numbers, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => write_object(members, numbers, out)?,
    }
    Ok(())
}

fn write_object(members: &Map<String, Value>, numbers: Numbers, out: &mut Vec<u8>) -> Result<()> {
    // The map's own order is that of bytes, or of insertion where some crate asked for it: the same in nearly all cases.
    if members.keys().is_sorted_by(|a, b| is_before(a, b)) {
        return write_members(members.iter(), numbers, out);
    }
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    write_members(sorted.into_iter(), numbers, out)
}

fn is_before(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        a <= b
    } else {
        a.encode_utf16().le(b.encode_utf16())
    }
}

fn write_members<'a>(
    members: impl Iterator<Item = (&'a String, &'a Value)>,
    numbers: Numbers,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.push(b'{');
    for (index, (key, value)) in members.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(key, out);
        out.push(b':');
        write_value(value, numbers, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_number(number: &Number, numbers: Numbers, out: &mut Vec<u8>) -> Result<()> {
    let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    match magnitude {
        Some(magnitude) if magnitude <= MAX_INTEGER => {
            if number.as_u64().is_none() {
                out.push(b'-');
            }
            write_integer(magnitude, out);
        }
        _ if numbers == Numbers::All => out.extend_from_slice(number.to_string().as_bytes()),
        _ => return Err(Error::Number(number.to_string())),
    }
    Ok(())
}

fn write_integer(mut rest: u64, out: &mut Vec<u8>) {
    // u64::MAX has 20 digits.
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

fn write_optional(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        Some(text) => write_text(text, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_hash(hash: &Hash, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in hash.as_bytes() {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
    out.push(b'"');
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[written..index]);
        written = index + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::fixture, *};

    fn canonical(value: &Value, numbers: Numbers) -> Result<String> {
        let mut out = Vec::new();
        write_value(value, numbers, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_have_one_form() {
        for (text, expected) in [
            ("{ }", "{}"),
            ("[ 1 , -2, 0 ]", "[1,-2,0]"),
            (
                " { \"b\" : [ true, false, null ], \"a\" : { \"d\": 1, \"c\": 2 } } ",
                r#"{"a":{"c":2,"d":1},"b":[true,false,null]}"#,
            ),
            ("9007199254740991", "9007199254740991"),
            ("-9007199254740991", "-9007199254740991"),
            // RFC 8785, section 3.2.2.2, without the numbers.
            (
                r#""\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/""#,
                "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"",
            ),
            (r#""\b\f\t\r\u007f\u2028""#, "\"\\b\\f\\t\\r\u{7f}\u{2028}\""),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(canonical(&value, Numbers::Integers).unwrap(), expected);
        }
    }

    #[test]
    fn members_are_sorted_by_utf16() {
        // RFC 8785, section 3.2.3.
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh", "1": "One",
            "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis",
        });
        let text = canonical(&value, Numbers::Integers).unwrap();
        let order = [
            "Carriage Return",
            "One",
            "Control",
            "Latin",
            "Euro Sign",
            "Emoji",
            "Hebrew",
        ];
        let places: Vec<_> = order.iter().map(|word| text.find(word).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn numbers_that_readers_differ_about_are_refused() {
        for number in [
            "0.5",
            "1.0",
            "1e3",
            "9007199254740992",
            "-9007199254740992",
            "18446744073709551615",
        ] {
            let value: Value = serde_json::from_str(number).unwrap();
            let error = canonical(&json!({ "n": value }), Numbers::Integers).unwrap_err();
            assert!(error.to_string().contains("as text"), "{error}");
            assert!(canonical(&value, Numbers::All).is_ok(), "{number}");
        }
    }

    #[test]
    fn the_place_of_the_hash_is_cut_out() {
        let event = fixture::chain(1).remove(0);
        let mut out = Vec::new();
        let hash = write_event(&event, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out[hash.clone()].to_vec()).unwrap(),
            format!(",\"hash\":\"{}\"", event.hash)
        );
        out.drain(hash);
        let mut value = serde_json::to_value(&event).unwrap();
        value.as_object_mut().unwrap().remove("hash");
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), value);
    }

    proptest! {
        #[test]
        fn an_event_written_by_hand_is_its_json_in_canonical_form(event in fixture::any_event(), seq in 0..MAX_INTEGER) {
            let event = super::super::link(&super::super::GENESIS, event, seq).unwrap();
            let mut out = Vec::new();
            write_event(&event, &mut out).unwrap();
            let value = serde_json::to_value(&event).unwrap();
            prop_assert_eq!(String::from_utf8(out.clone()).unwrap(), canonical(&value, Numbers::Integers).unwrap());
            prop_assert_eq!(serde_json::from_slice::<AuditEvent>(&out).unwrap(), event);
        }

        #[test]
        fn texts_are_written_as_serde_json_does(text in any::<String>()) {
            let value = Value::String(text);
            prop_assert_eq!(canonical(&value, Numbers::Integers).unwrap(), value.to_string());
        }
    }
}
