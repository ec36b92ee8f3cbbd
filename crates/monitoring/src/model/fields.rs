//! Reads a spec field by field, so that a refusal can name everything that is wrong with it at once.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a spec that were not read yet, and what was wrong so far.
pub struct Fields {
    unread: Map<String, Value>,
    is_object: bool,
    problems: Vec<String>,
}

impl Fields {
    /// The fields of an object.
    #[must_use]
    pub fn new(value: Value) -> Self {
        match value {
            Value::Object(fields) => Self {
                unread: fields,
                is_object: true,
                problems: Vec::new(),
            },
            _ => Self {
                unread: Map::new(),
                is_object: false,
                problems: vec!["the spec must be an object".to_owned()],
            },
        }
    }

    /// Says what is wrong with a field.
    pub fn problem(&mut self, key: &str, problem: &str) {
        self.problems.push(format!("{key} {problem}"));
    }

    /// A field that may be left out or null.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.unread.remove(key).filter(|value| !value.is_null())?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, &format!("is wrong: {error}"));
                None
            }
        }
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        if self.unread.get(key).is_none_or(Value::is_null) {
            // An object that is none has said so already.
            if self.is_object {
                self.problem(key, "is missing");
            }
            return None;
        }
        self.optional(key)
    }

    /// Everything that is wrong, the fields that nobody read included.
    #[must_use]
    pub fn finish(mut self, known: &str) -> Vec<String> {
        let unknown: Vec<String> = std::mem::take(&mut self.unread)
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        for key in unknown {
            let shown: String = key.chars().take(64).flat_map(char::escape_default).collect();
            self.problem(&shown, &format!("is not a field: known are {known}"));
        }
        self.problems
    }
}
