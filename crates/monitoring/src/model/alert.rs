//! Alerts: a rule that a window broke.

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::{Builder, Uuid};

use super::window::Span;

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// What it says still holds, as far as is known.
    Firing,
    /// A later window was fine, or the rule is gone.
    Resolved,
}

impl AlertState {
    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        [Self::Firing, Self::Resolved]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// A condition that held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FiredCondition {
    /// The metric.
    pub metric: String,
    /// Its value in the window.
    pub value: f64,
    /// The version's value on held-out data, where it was compared with it.
    pub reference: Option<f64>,
    /// The bound of the condition.
    pub threshold: f64,
    /// The condition in words.
    pub text: String,
}

/// What a rule found in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The model of the version that is to blame.
    pub model: String,
    /// The version.
    pub version: u32,
    /// The conditions that held.
    pub conditions: Vec<FiredCondition>,
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// Made of the rule and the window, so that a window raises one alert of a rule, however often it is judged.
    pub id: String,
    /// The project.
    pub project: String,
    /// The rule.
    pub rule: String,
    /// The monitor whose window broke the rule.
    pub monitor: String,
    /// The endpoint that it watches.
    pub endpoint: String,
    /// The window.
    pub window: Span,
    /// The model of the version that is to blame.
    pub model: String,
    /// The version.
    pub version: u32,
    /// Where it stands.
    pub state: AlertState,
    /// The conditions that held.
    pub conditions: Vec<FiredCondition>,
    /// When it was raised.
    pub fired_at: Timestamp,
    /// When it was resolved; null while it is firing.
    pub resolved_at: Option<Timestamp>,
    /// The trigger that it fires; null for none.
    pub trigger: Option<String>,
    /// Why the trigger could not be fired the last time; it is tried again.
    pub trigger_error: Option<String>,
    /// The pipeline run that the trigger started; null before that.
    pub pipeline_run_id: Option<String>,
}

/// The id of the alert of a rule for a window.
#[must_use]
pub fn alert_id(project: &str, rule: &str, start: Timestamp) -> Uuid {
    let mut hash = Sha256::new();
    for part in ["alert", project, rule, &start.as_micros().to_string()] {
        hash.update(part.as_bytes());
        // No name has this byte, so that no two lists of parts are the same text.
        hash.update([0]);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_and_a_window_make_one_id() {
        let start = |text: &str| text.parse::<Timestamp>().unwrap();
        let id = alert_id("default", "decay", start("2013-03-01T00:00:00Z"));
        assert_eq!(id, alert_id("default", "decay", start("2013-03-01T00:00:00Z")));
        assert_ne!(id, alert_id("default", "decay", start("2013-04-01T00:00:00Z")));
        assert_ne!(id, alert_id("default", "decay2", start("2013-03-01T00:00:00Z")));
    }
}
