//! Evaluation datasets: examples that models and agents are judged by. Versioned [datasets](super::dataset) are another thing.

use std::collections::BTreeMap;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    json::Json,
    run::{check_key, check_text},
};
use crate::{
    error::{Error, Result},
    search::{Filter, Order},
};

/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 255;
/// The longest value of a tag, in bytes.
pub const MAX_TAG_BYTES: usize = 20_000;
/// The most tags that are set at once.
pub const MAX_TAGS: usize = 1000;
/// The most experiments that are named at once.
pub const MAX_EXPERIMENTS: usize = 1000;
/// The tag with who says that they made or changed something.
pub const USER_TAG: &str = "mlflow.user";
/// How many digits a digest has.
const DIGEST_DIGITS: usize = 8;

/// An evaluation dataset without its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvaluationDataset {
    /// Its id.
    pub dataset_id: String,
    /// Its project.
    pub project: String,
    /// Its name, which others may have too.
    pub name: String,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// The types of the fields of its records, as JSON; none: there were no records.
    pub schema: Option<String>,
    /// How many records it has; none: there never were any.
    pub record_count: Option<u64>,
    /// Another one after each change of the records.
    pub digest: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// Who made it, as the client said.
    pub created_by: Option<String>,
    /// Who changed its records last, as the client said.
    pub updated_by: Option<String>,
}

impl EvaluationDataset {
    /// What is known of its records, as JSON as MLflow writes it.
    #[must_use]
    pub fn profile(&self) -> Option<String> {
        self.record_count.map(|count| match count {
            0 => "null".to_owned(),
            count => format!("{{\"num_records\": {count}}}"),
        })
    }
}

/// The digest of an evaluation dataset that was changed at a time.
#[must_use]
pub fn digest(name: &str, updated_at: Timestamp) -> String {
    let mut digits = hex::encode(Sha256::digest(format!("{name}:{}", updated_at.as_millis())));
    digits.truncate(DIGEST_DIGITS);
    digits
}

/// An evaluation dataset that is to be made.
#[derive(Debug, Clone)]
pub struct NewEvaluationDataset {
    /// What it is.
    pub dataset: EvaluationDataset,
    /// The experiments that it belongs to.
    pub experiment_ids: Vec<i64>,
    /// What the audit chain is told.
    pub event: NewEvent,
}

/// Which evaluation datasets are wanted, and how.
#[derive(Debug, Clone, Default)]
pub struct EvaluationDatasetSearch {
    /// Those that belong to one of these experiments; none named: all.
    pub experiment_ids: Vec<i64>,
    /// What must hold.
    pub filter: Option<Filter>,
    /// What comes first.
    pub order: Vec<Order>,
    /// How many are passed over.
    pub offset: u64,
    /// The most that are wanted.
    pub limit: u32,
}

/// Checks a name.
pub fn check_name(name: &str) -> Result<()> {
    let chars = name.chars().count();
    if !name.trim().is_empty() && chars <= MAX_NAME_CHARS && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is not a name for an evaluation dataset: use 1 to {MAX_NAME_CHARS} characters on one line"
    )))
}

/// A value of a tag as a text, as Python's `str` has it; none: there is no value.
fn text_of(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::Bool(true) => Some("True".to_owned()),
        Json::Bool(false) => Some("False".to_owned()),
        Json::Text(text) => Some(text.clone()),
        other => Some(other.dump()),
    }
}

/// Reads tags from a text with a JSON object. Those without a value are left out, as MLflow does.
pub fn read_tags(text: &str) -> Result<BTreeMap<String, String>> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let Some(Json::Object(fields)) = Json::parse(text) else {
        return Err(Error::request(
            "Invalid value for parameter 'tags' supplied: it is a text with a JSON object of texts.",
        ));
    };
    if fields.len() > MAX_TAGS {
        return Err(Error::request(format!(
            "{} tags are too many at once: send at most {MAX_TAGS}",
            fields.len()
        )));
    }
    let mut tags = BTreeMap::new();
    for (key, value) in fields {
        check_key("tag", &key)?;
        if let Some(value) = text_of(&value) {
            check_text("tag", &key, &value, MAX_TAG_BYTES)?;
            tags.insert(key, value);
        }
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_texts() {
        let read = read_tags(r#"{"a": "x", "b": 1, "c": true, "d": null, "e": 1.5, "f": ["y"]}"#).unwrap();
        let expected = [("a", "x"), ("b", "1"), ("c", "True"), ("e", "1.5"), ("f", r#"["y"]"#)];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(read, expected.into());
        assert!(read_tags("").unwrap().is_empty());
        for wrong in ["[]", "{", "1", r#"{"": "x"}"#, r#"{"a": "\u0000"}"#] {
            assert!(read_tags(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn digests_are_those_of_mlflow() {
        // hashlib.sha256(b"qa:1700000000123").hexdigest()[:8]
        assert_eq!(digest("qa", Timestamp::from_micros(1_700_000_000_123_456)), "1b6441f7");
    }

    #[test]
    fn names_are_on_one_line() {
        assert!(check_name("flights of May: \"all\"").is_ok() && check_name(&"é".repeat(255)).is_ok());
        for wrong in ["", " ", "a\nb", &"x".repeat(256)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
