//! JSON whose objects keep their order, written as Python writes it: what MLflow stores of spans is such text, and people see it.

use std::fmt::{self, Write as _};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// What a text begins with that stands for a number that JSON does not have: a letter for private use.
const MARK: &str = "\u{f8ff}";

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    /// Nothing.
    Null,
    /// Whether.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number; also NaN and the infinities, which Python writes and JSON does not have.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// An object.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// A text that is JSON.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(value) = serde_json::from_str(text) {
            return Some(value);
        }
        // Python's numbers that JSON does not have.
        let quoted = quote_bare_numbers(text.as_bytes(), MARK);
        let mut value: Self = serde_json::from_slice(&quoted).ok()?;
        value.unmark();
        Some(value)
    }

    /// Turns marked texts into the numbers that they stand for.
    fn unmark(&mut self) {
        match self {
            Self::Text(text) => {
                if let Some(word) = text.strip_prefix(MARK) {
                    let number = match word {
                        "NaN" => f64::NAN,
                        "Infinity" => f64::INFINITY,
                        "-Infinity" => f64::NEG_INFINITY,
                        _ => return,
                    };
                    *self = Self::Number(number);
                }
            }
            Self::List(items) => items.iter_mut().for_each(Self::unmark),
            Self::Object(fields) => fields.iter_mut().for_each(|(_, value)| value.unmark()),
            Self::Null | Self::Bool(_) | Self::Integer(_) | Self::Number(_) => {}
        }
    }

    /// The field of an object.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether Python takes it for something.
    pub(crate) fn is_something(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Integer(value) => *value != 0,
            Self::Number(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(fields) => !fields.is_empty(),
        }
    }

    /// As Python's `json.dumps` writes it, with letters as they are.
    pub(crate) fn dump(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Integer(value) => drop(write!(out, "{value}")),
            Self::Number(value) => write_number(*value, out),
            Self::Text(text) => push_text(text, out),
            Self::List(items) => {
                let mut separator = "";
                out.push('[');
                for item in items {
                    out.push_str(separator);
                    item.write(out);
                    separator = ", ";
                }
                out.push(']');
            }
            Self::Object(fields) => {
                let mut separator = "";
                out.push('{');
                for (key, value) in fields {
                    out.push_str(separator);
                    push_text(key, out);
                    out.push_str(": ");
                    value.write(out);
                    separator = ", ";
                }
                out.push('}');
            }
        }
    }
}

/// Puts `NaN`, `Infinity` and `-Infinity` outside of texts in quotes, after a mark.
pub(crate) fn quote_bare_numbers(body: &[u8], mark: &str) -> Vec<u8> {
    const BARE: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(body.len() + 16);
    let (mut rest, mut in_text) = (body, false);
    while let [byte, tail @ ..] = rest {
        if in_text && *byte == b'\\' {
            let (escape, tail) = rest.split_at(rest.len().min(2));
            out.extend_from_slice(escape);
            rest = tail;
            continue;
        }
        in_text ^= *byte == b'"';
        if !in_text && let Some(word) = BARE.iter().find(|word| rest.starts_with(word)) {
            out.push(b'"');
            out.extend_from_slice(mark.as_bytes());
            out.extend_from_slice(word);
            out.push(b'"');
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        out.push(*byte);
        rest = tail;
    }
    out
}

fn write_number(value: f64, out: &mut String) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        let _ = write!(out, "{value:?}");
    }
}

/// Writes a text with its quotes.
pub(crate) fn push_text(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if (control as u32) < 0x20 => drop(write!(out, "\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number(value as f64), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Json::Object(object))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_python_writes_it() {
        let text = r#"{"b": [1, 2.5, 1.0, null], "a": {"x": "é\n\"\u0001"}, "c": true, "d": {}}"#;
        let value = Json::parse(text).unwrap();
        assert_eq!(value.dump(), text);
        assert_eq!(value.get("c"), Some(&Json::Bool(true)));
        assert!(!value.get("d").unwrap().is_something());
        assert_eq!(Json::parse("NaN").unwrap().dump(), "NaN");
        assert_eq!(Json::List(vec![Json::Number(f64::NEG_INFINITY)]).dump(), "[-Infinity]");
        assert_eq!(Json::parse("{"), None);
    }

    #[test]
    fn numbers_that_json_lacks_are_read_and_written() {
        let text = r#"{"a": [NaN, -Infinity], "NaN": "NaN", "b": Infinity}"#;
        let value = Json::parse(text).unwrap();
        assert_eq!(value.dump(), text);
        assert_eq!(value.get("b"), Some(&Json::Number(f64::INFINITY)));
    }
}
