//! Reads a spec field by field, so that a refusal can name everything that is wrong with it at once.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a spec that were not read yet, and what was wrong so far.
pub struct Fields {
    place: String,
    fields: Map<String, Value>,
    problems: Vec<String>,
}

impl Fields {
    /// The fields of an object. `place` is put before the names of fields in problems; empty at the top.
    #[must_use]
    pub fn new(place: &str, value: Value) -> Self {
        let mut problems = Vec::new();
        let fields = match value {
            Value::Object(fields) => fields,
            _ => {
                let what = if place.is_empty() { "the spec" } else { place };
                problems.push(format!("{what} must be an object"));
                Map::new()
            }
        };
        Self { place: place.to_owned(), fields, problems }
    }

    fn path(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    /// Says what is wrong with a field.
    pub fn problem(&mut self, key: &str, problem: &str) {
        let path = self.path(key);
        self.problems.push(format!("{path} {problem}"));
    }

    /// Takes problems of a part over.
    pub fn absorb(&mut self, problems: Vec<String>) {
        self.problems.extend(problems);
    }

    /// A field that may be left out or null.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.fields.remove(key).filter(|value| !value.is_null())?;
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
        if self.fields.get(key).is_none_or(Value::is_null) {
            // An object that is none has said so already.
            if self.problems.is_empty() || !self.fields.is_empty() {
                self.problem(key, "is missing");
            }
            return None;
        }
        self.optional(key)
    }

    /// Everything that is wrong, the fields that nobody read included.
    #[must_use]
    pub fn finish(mut self, known: &str) -> Vec<String> {
        let unknown: Vec<String> = std::mem::take(&mut self.fields).into_iter().map(|(key, _)| key).collect();
        for key in unknown {
            let shown: String = key.chars().take(64).flat_map(char::escape_default).collect();
            self.problem(&shown, &format!("is not a field: known are {known}"));
        }
        self.problems
    }
}
