//! Scores: what came out for a window.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{rule, window::Span};

/// Whether callers got the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AnswerRole)]
pub enum Role {
    /// They did.
    Live,
    /// They did not: the version was tried beside the live one.
    Shadow,
}

impl Role {
    /// The word for it, in the log too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
        }
    }
}

/// Drift of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScoreColumnDrift)]
pub struct ColumnScore {
    /// The input's name.
    pub column: String,
    /// The test that was applied.
    pub test: String,
    /// What it gave, a distance or a p-value; null if there is no verdict.
    pub value: Option<f64>,
    /// The threshold.
    pub threshold: f64,
    /// What chance alone may add to a distance at this number of rows.
    pub allowance: f64,
    /// The verdict.
    pub drifted: bool,
    /// `tested`, or why there is no verdict.
    pub outcome: String,
    /// How much the share of missing values changed (-1 to 1).
    pub missing_change: Option<f64>,
}

/// Drift of the inputs of a version from its reference profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScoreDrift)]
pub struct DriftScore {
    /// The share of the columns with a verdict that drifted (0 to 1); null if none has a verdict.
    pub share: Option<f64>,
    /// The columns that drifted.
    pub drifted: Vec<String>,
    /// All columns, in the order of their names.
    pub columns: Vec<ColumnScore>,
}

/// What came out for the answers of one version in one role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScoreGroup)]
pub struct GroupScore {
    /// Live or shadow.
    pub role: Role,
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u32,
    /// Rows that it answered, each counted once.
    pub rows: u64,
    /// Those with a label.
    pub labels: u64,
    /// Drift of the inputs; only of live answers of versions with a reference profile.
    pub drift: Option<DriftScore>,
    /// Drift of the predictions, where the reference profile has them.
    pub prediction_drift: Option<ColumnScore>,
    /// Metrics over the rows with a label, by name, `label` among them: the mean of those that are numbers or booleans; null
    /// without labels.
    pub performance: Option<BTreeMap<String, f64>>,
    /// The metrics that the version was registered with, measured on held-out data.
    pub reference: Option<BTreeMap<String, f64>>,
    /// What could not be computed, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl GroupScore {
    /// The value of a metric that alert rules can name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name {
            rule::DRIFT_SHARE => self.drift.as_ref()?.share,
            rule::PREDICTION_DRIFT => self.prediction_drift.as_ref()?.value,
            name => self.performance.as_ref()?.get(name).copied(),
        }
    }

    /// The version's value of a metric on held-out data.
    #[must_use]
    pub fn reference_of(&self, name: &str) -> Option<f64> {
        self.reference.as_ref()?.get(name).copied()
    }
}

/// What came out for a window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct WindowScore {
    /// Rows that were answered live, each counted once.
    pub requests: u64,
    /// Those with a label.
    pub labels: u64,
    /// By role, model and version.
    pub groups: Vec<GroupScore>,
}

impl WindowScore {
    /// The share of the live rows that have a label (0 to 1); `None` without live rows.
    #[must_use]
    pub fn label_share(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.labels as f64 / self.requests as f64)
    }

    /// Rows of all groups.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.groups.iter().map(|group| group.rows).sum()
    }
}

/// A window of a monitor with its newest score.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MonitorWindow {
    /// Where it begins, in event time.
    pub start: Timestamp,
    /// Where it ends.
    pub end: Timestamp,
    /// Whether nothing is expected in it any more: the watermark passed its end.
    pub closed: bool,
    /// Rows that were answered live, each counted once.
    pub requests: u64,
    /// Those with a label.
    pub labels: u64,
    /// `labels / requests` (0 to 1); null without live rows.
    pub label_share: Option<f64>,
    /// When the score was computed; null if it never could be.
    pub scored_at: Option<Timestamp>,
    /// Whether what arrived since then is still to be scored.
    pub pending: bool,
    /// Whether the alert rules have judged it.
    pub evaluated: bool,
    /// The id of an alert that it raised; null for none.
    pub alert: Option<String>,
    /// Why the last scoring failed; null when it did not.
    pub error: Option<String>,
    /// By role, model and version.
    pub groups: Vec<GroupScore>,
}

impl MonitorWindow {
    /// The slice of time.
    #[must_use]
    pub const fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }
}
