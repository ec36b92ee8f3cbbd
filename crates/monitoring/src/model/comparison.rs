//! How the versions of an endpoint did beside each other.

use serde::Serialize;
use utoipa::ToSchema;

use super::window::Span;

/// The versions that answered live, compared with one of them.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Comparison {
    /// The endpoint.
    pub endpoint: String,
    /// The slice of event time.
    #[serde(flatten)]
    pub span: Span,
    /// The version that the others are compared with, as `MODEL/VERSION`; null if none answered.
    pub baseline: Option<String>,
    /// With how much confidence a difference lies in its interval, and what is significant is so: 0.95.
    pub confidence: f64,
    /// The versions, by name.
    pub versions: Vec<ComparedVersion>,
    /// For each other version and each metric that both have: the difference.
    pub differences: Vec<Difference>,
}

/// What a version answered.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ComparedVersion {
    /// `MODEL/VERSION`.
    pub version: String,
    /// Rows that it predicted for.
    pub rows: u64,
    /// Those of them with a label.
    pub labels: u64,
    /// The mean of each metric that is defined for it.
    pub metrics: Vec<MetricMean>,
}

/// The mean of a metric over rows.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MetricMean {
    /// `latency_us`; with labels `label` (its value, where it is a number or boolean: what came of it), and `accuracy` (the
    /// predicted class was right) or `absolute_error`.
    pub metric: String,
    /// Over how many rows.
    pub rows: u64,
    /// The mean.
    pub mean: f64,
}

/// By how much the mean of a metric is more for a version than for the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Difference {
    /// `MODEL/VERSION`.
    pub version: String,
    /// The metric.
    pub metric: String,
    /// The version's mean minus the baseline's.
    pub difference: f64,
    /// Where the confidence interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Two-sided p-value of Welch's t-test.
    pub p_value: f64,
    /// The same, adjusted for the number of differences (Holm).
    pub adjusted_p_value: f64,
    /// Whether the adjusted p-value is below one minus the confidence.
    pub significant: bool,
}
