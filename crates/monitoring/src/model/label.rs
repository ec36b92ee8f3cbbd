//! Labels: the ground truth of predictions, which arrives later.

use std::time::Duration;

use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// The most labels of one request.
pub const MAX_LABELS: usize = 10_000;
/// The longest request id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 512;
/// The longest label that is a text, in bytes.
pub const MAX_LABEL_TEXT_BYTES: usize = 1024;
/// How far the clocks of those who send labels may be ahead.
pub const MAX_CLOCK_AHEAD: Duration = Duration::from_hours(24);
/// The most problems that a refusal names.
const MAX_PROBLEMS: usize = 20;

/// What turned out to be true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a label must be true or false, a number, a text, or null")]
pub enum LabelValue {
    /// Yes or no.
    Boolean(bool),
    /// A number: a measured value, or a class.
    Number(f64),
    /// The name of a class.
    Text(String),
}

impl LabelValue {
    /// What it is as a number: yes is 1, no is 0; none if it is a name, or not finite.
    #[must_use]
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number).filter(|number| number.is_finite()),
            Self::Boolean(boolean) => Some(f64::from(u8::from(*boolean))),
            Self::Text(_) => None,
        }
    }
}

/// The label of one row of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The request's id.
    pub request_id: String,
    /// The index of the instance in its request.
    #[serde(default)]
    pub row: i32,
    /// What turned out to be true; null takes an earlier label back.
    #[serde(deserialize_with = "Option::deserialize")]
    pub label: Option<LabelValue>,
    /// When it was known. Of several labels of a row the latest holds.
    pub observed_at: Timestamp,
}

/// Labels to be stored.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRequest {
    /// The endpoint that answered the requests.
    pub endpoint: String,
    /// At most 10,000 labels.
    pub labels: Vec<Label>,
}

/// The answer: the labels are stored and will be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct LabelsAccepted {
    /// How many.
    pub accepted: u64,
}

/// A checked set of labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelBatch {
    /// The digest of the labels: the same request again is the same batch.
    pub id: String,
    /// The labels.
    pub labels: Vec<Label>,
    /// The latest time at which one was known.
    pub max_observed_at: Timestamp,
}

impl LabelRequest {
    /// Checks everything, and makes a batch of it.
    ///
    /// # Errors
    /// What is wrong with which labels.
    pub fn check(self, now: Timestamp) -> Result<(String, LabelBatch)> {
        check_name("an endpoint", &self.endpoint)?;
        if self.labels.is_empty() || self.labels.len() > MAX_LABELS {
            return Err(Error::request(format!(
                "{} labels arrived, and 1 to {MAX_LABELS} can be sent at once: split them",
                self.labels.len()
            )));
        }
        let latest = now + MAX_CLOCK_AHEAD;
        let wrong = self.labels.iter().enumerate();
        let mut problems =
            wrong.filter_map(|(index, label)| Some(format!("labels[{index}] {}", label.problem(latest)?)));
        let named: Vec<String> = problems.by_ref().take(MAX_PROBLEMS).collect();
        if !named.is_empty() {
            let rest = problems.count();
            let more = if rest > 0 {
                format!("; and {rest} more")
            } else {
                String::new()
            };
            return Err(Error::request(format!(
                "nothing was stored: {}{more}",
                named.join("; ")
            )));
        }
        let content = serde_json::to_vec(&self.labels).map_err(|error| Error::request(error.to_string()))?;
        let max_observed_at = self.labels.iter().map(|label| label.observed_at).max().unwrap_or(now);
        let id = hex::encode(Sha256::digest(content));
        Ok((
            self.endpoint,
            LabelBatch {
                id,
                labels: self.labels,
                max_observed_at,
            },
        ))
    }
}

impl Label {
    fn problem(&self, latest: Timestamp) -> Option<String> {
        if !is_request_id(&self.request_id) {
            return Some(format!("request_id must have 1 to {MAX_REQUEST_ID_BYTES} bytes"));
        }
        if self.row < 0 {
            return Some(format!("row is {}: rows count from 0", self.row));
        }
        if self.observed_at < Timestamp::default() || self.observed_at > latest {
            return Some(format!(
                "observed_at is {}: it must be a time of the past, after 1970",
                self.observed_at
            ));
        }
        match &self.label {
            Some(LabelValue::Text(text)) if text.len() > MAX_LABEL_TEXT_BYTES => Some(format!(
                "label has {} bytes, and may have {MAX_LABEL_TEXT_BYTES}",
                text.len()
            )),
            _ => None,
        }
    }
}

/// Whether a text can be the id of a request.
#[must_use]
pub fn is_request_id(text: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2014-01-01T00:00:00Z".parse().unwrap()
    }

    fn request(labels: &serde_json::Value) -> LabelRequest {
        serde_json::from_value(json!({"endpoint": "e", "labels": labels})).unwrap()
    }

    #[test]
    fn labels_of_every_type_are_read_and_the_same_ones_have_the_same_id() {
        let labels = json!([
            {"request_id": "a", "label": true, "observed_at": "2013-04-01T00:00:00Z"},
            {"request_id": "b", "row": 1, "label": 2.5, "observed_at": "2013-04-02T00:00:00Z"},
            {"request_id": "c", "label": "late", "observed_at": "2013-04-01T00:00:00Z"},
            {"request_id": "d", "label": null, "observed_at": "2013-04-01T00:00:00Z"}
        ]);
        let (_, batch) = request(&labels).check(now()).unwrap();
        let values: Vec<_> = batch.labels.iter().map(|label| label.label.clone()).collect();
        let text = LabelValue::Text("late".to_owned());
        assert_eq!(
            values,
            [
                Some(LabelValue::Boolean(true)),
                Some(LabelValue::Number(2.5)),
                Some(text),
                None
            ]
        );
        assert_eq!(batch.max_observed_at, "2013-04-02T00:00:00Z".parse().unwrap());
        assert_eq!(request(&labels).check(now()).unwrap().1.id, batch.id);
    }

    #[test]
    fn every_wrong_label_is_named() {
        let labels = json!([
            {"request_id": "", "label": 1, "observed_at": "2013-04-01T00:00:00Z"},
            {"request_id": "b", "row": -1, "label": 1, "observed_at": "2013-04-01T00:00:00Z"},
            {"request_id": "c", "label": 1, "observed_at": "2014-03-01T00:00:00Z"},
            {"request_id": "d", "label": "x".repeat(2000), "observed_at": "2013-04-01T00:00:00Z"},
            {"request_id": "e", "label": 1, "observed_at": "2013-04-01T00:00:00Z"}
        ]);
        let error = request(&labels).check(now()).unwrap_err().to_string();
        for index in 0..4 {
            assert!(error.contains(&format!("labels[{index}]")), "{error}");
        }
        assert!(!error.contains("labels[4]"), "{error}");
        assert!(request(&json!([])).check(now()).is_err());
        let wrong = json!({"endpoint": "e", "labels": [{"request_id": "a", "value": 1}]});
        assert!(serde_json::from_value::<LabelRequest>(wrong).is_err());
    }
}
