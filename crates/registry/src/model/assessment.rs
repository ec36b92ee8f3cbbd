//! What people and judges say of traces.

use std::collections::BTreeMap;

use serde_json::Value;

use super::run::pair_bytes;
use crate::error::{Error, Result};

/// What an assessment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssessmentKind {
    /// How good something was.
    Feedback,
    /// What should have come out.
    Expectation,
    /// A problem that was found.
    Issue,
}

impl AssessmentKind {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Feedback => "feedback",
            Self::Expectation => "expectation",
            Self::Issue => "issue",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Feedback, Self::Expectation, Self::Issue]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// What somebody says of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// Its id.
    pub assessment_id: String,
    /// The trace.
    pub trace_id: String,
    /// What is assessed; the id of the issue.
    pub name: String,
    /// What it is.
    pub kind: AssessmentKind,
    /// The value; of an issue an object with its name.
    pub value: Value,
    /// Why there is no feedback: an object with `error_code`, `error_message` and `stack_trace`.
    pub error: Option<Value>,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: i64,
    /// When it was changed last.
    pub updated_ms: i64,
    /// `HUMAN`, `LLM_JUDGE` or `CODE`.
    pub source_type: String,
    /// Who.
    pub source_id: Option<String>,
    /// The run that made it.
    pub run_id: Option<String>,
    /// The span that it is about.
    pub span_id: Option<String>,
    /// Why.
    pub rationale: Option<String>,
    /// The assessment that it replaces.
    pub overrides: Option<String>,
    /// Whether no other replaces it.
    pub is_valid: bool,
    /// Notes.
    pub metadata: BTreeMap<String, String>,
}

/// What becomes of an assessment. What is not given stays.
#[derive(Debug, Clone, Default)]
pub struct AssessmentChange {
    /// Its name.
    pub name: Option<String>,
    /// The value of an expectation.
    pub expectation: Option<Value>,
    /// The value of feedback, and why there is none.
    pub feedback: Option<(Value, Option<Value>)>,
    /// Why.
    pub rationale: Option<String>,
    /// Notes that are set beside those that are there.
    pub metadata: BTreeMap<String, String>,
    /// When, in milliseconds since the epoch.
    pub now_ms: i64,
}

impl Assessment {
    /// About how many bytes of names and texts it has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, |error| error.to_string().len());
        let rationale = self.rationale.as_ref().map_or(0, String::len);
        self.name.len() + self.value.to_string().len() + error + rationale + pair_bytes(&self.metadata)
    }

    /// What it becomes.
    pub(crate) fn changed(mut self, change: &AssessmentChange) -> Result<Self> {
        if change.expectation.is_some() && change.feedback.is_some() {
            return Err(Error::request(
                "Cannot specify both `expectation` and `feedback` parameters.",
            ));
        }
        if let Some(value) = &change.expectation {
            if self.kind != AssessmentKind::Expectation {
                return Err(Error::request(
                    "Cannot update expectation value on a Feedback assessment.",
                ));
            }
            self.value = value.clone();
        }
        if let Some((value, error)) = &change.feedback {
            if self.kind != AssessmentKind::Feedback {
                return Err(Error::request(
                    "Cannot update feedback value on an Expectation assessment.",
                ));
            }
            (self.value, self.error) = (value.clone(), error.clone());
        }
        if let Some(name) = &change.name {
            self.name.clone_from(name);
        }
        if change.rationale.is_some() && self.kind != AssessmentKind::Expectation {
            self.rationale.clone_from(&change.rationale);
        }
        self.metadata.extend(change.metadata.clone());
        self.updated_ms = change.now_ms;
        Ok(self)
    }
}

/// What a value counts in an aggregate, and whether it is a number itself.
#[must_use]
pub fn aggregate_of(value: &Value) -> (Option<f64>, bool) {
    match value {
        Value::Bool(value) => (Some(f64::from(u8::from(*value))), false),
        Value::Number(number) => match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => (Some(number), true),
            None => (None, false),
        },
        Value::String(text) => match text.trim().to_lowercase().as_str() {
            "yes" => (Some(1.0), false),
            "no" => (Some(0.0), false),
            _ => (None, false),
        },
        _ => (None, false),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_count_in_aggregates() {
        for (value, expected) in [
            (json!(true), (Some(1.0), false)),
            (json!(2.5), (Some(2.5), true)),
            (json!(" Yes"), (Some(1.0), false)),
            (json!("no"), (Some(0.0), false)),
            (json!("maybe"), (None, false)),
            (json!([1]), (None, false)),
        ] {
            assert_eq!(aggregate_of(&value), expected, "{value}");
        }
    }
}
