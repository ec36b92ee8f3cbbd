//! Alert rules: when a window is bad enough to tell somebody, or to start something.

use std::time::Duration;

use modelyard_common::{config::duration, name::check_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{fields::Fields, resource::Resource};
use crate::error::{Error, Result};

/// The kind of the resource.
pub const KIND: &str = "AlertRule";
/// The most conditions of a rule.
pub const MAX_CONDITIONS: usize = 32;
/// The longest time that a rule waits for labels.
pub const MAX_LABEL_WAIT: Duration = Duration::from_hours(10 * 366 * 24);
/// The share of drifted features (0 to 1).
pub const DRIFT_SHARE: &str = "drift_share";
/// The drift of the predictions.
pub const PREDICTION_DRIFT: &str = "prediction_drift";
/// Metrics that need labels. A version's value on held-out data is their reference.
pub const PERFORMANCE_METRICS: [&str; 12] = [
    "auc",
    "log_loss",
    "brier",
    "calibration_error",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "rmse",
    "mae",
    "r2",
    "bias",
];

/// The mean of the labels, where they are numbers or booleans: what came of it, a conversion or a revenue.
pub const LABEL: &str = "label";

/// How many labels a rule waits for before it judges a closed window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRequirement {
    /// The share of the live rows that must have a label (over 0, at most 1).
    pub share: f64,
    /// How long after the window's end, in event time, it waits for them: `14d`. Then it judges what is there.
    #[serde(with = "duration")]
    #[schema(value_type = String)]
    pub within: Duration,
}

/// A condition on one metric, with exactly one bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AlertCondition)]
pub struct Condition {
    /// The metric: `drift_share`, `prediction_drift`, or one that needs labels: `label`, which is their mean, or one of the
    /// predictions' quality, such as `auc`.
    pub metric: String,
    /// At least so much less than the version had on held-out data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<f64>,
    /// At least so much more than the version had on held-out data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<f64>,
    /// More than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// Less than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
}

/// The bound of a condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At least so much less than the reference.
    Drop(f64),
    /// At least so much more than the reference.
    Rise(f64),
    /// More than this.
    Above(f64),
    /// Less than this.
    Below(f64),
}

impl Condition {
    /// The bound, if there is exactly one.
    #[must_use]
    pub fn bound(&self) -> Option<Bound> {
        match (self.drop, self.rise, self.above, self.below) {
            (Some(value), None, None, None) => Some(Bound::Drop(value)),
            (None, Some(value), None, None) => Some(Bound::Rise(value)),
            (None, None, Some(value), None) => Some(Bound::Above(value)),
            (None, None, None, Some(value)) => Some(Bound::Below(value)),
            _ => None,
        }
    }

    /// Whether the metric needs labels.
    #[must_use]
    pub fn needs_labels(&self) -> bool {
        self.metric == LABEL || self.is_of_performance()
    }

    fn is_of_performance(&self) -> bool {
        PERFORMANCE_METRICS.contains(&self.metric.as_str())
    }

    fn problem(&self) -> Option<String> {
        let metric = &self.metric;
        if !self.needs_labels() && metric != DRIFT_SHARE && metric != PREDICTION_DRIFT {
            let shown: String = metric.chars().take(64).flat_map(char::escape_default).collect();
            return Some(format!(
                "`{shown}` is not a metric: known are {DRIFT_SHARE}, {PREDICTION_DRIFT}, {LABEL}, {}",
                PERFORMANCE_METRICS.join(", ")
            ));
        }
        let Some(Bound::Drop(value) | Bound::Rise(value) | Bound::Above(value) | Bound::Below(value)) = self.bound()
        else {
            return Some(format!(
                "of `{metric}` must have exactly one of drop, rise, above, below"
            ));
        };
        let against_reference = self.drop.is_some() || self.rise.is_some();
        if against_reference && !self.is_of_performance() {
            return Some(format!(
                "of `{metric}` has no value on held-out data to compare with: use above or below"
            ));
        }
        if !value.is_finite() || (against_reference && value < 0.0) {
            return Some(format!(
                "of `{metric}` has the bound {value}: it must be a finite number, of a drop or rise from 0"
            ));
        }
        None
    }
}

/// When an alert fires.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRuleSpec {
    /// The monitor whose windows are judged, each once.
    pub monitor: String,
    /// The labels that are waited for; null: windows are judged when they close.
    pub labels: Option<LabelRequirement>,
    /// The alert fires if any of these holds for a version that answered live.
    pub any: Vec<Condition>,
    /// The trigger that an alert fires; null for none.
    pub trigger: Option<String>,
}

/// An alert rule.
pub type AlertRule = Resource<AlertRuleSpec>;

impl AlertRuleSpec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong.
    pub fn read(name: &str, value: Value) -> Result<Self> {
        let mut fields = Fields::new(value);
        let monitor: Option<String> = fields.required("monitor");
        let labels: Option<LabelRequirement> = fields.optional("labels");
        let any: Option<Vec<Value>> = fields.required("any");
        let trigger: Option<String> = fields.optional("trigger");
        for (key, what, given) in [("monitor", "a monitor", &monitor), ("trigger", "a trigger", &trigger)] {
            if let Some(given) = given
                && let Err(error) = check_name(what, given)
            {
                fields.problem(key, &format!("is wrong: {error}"));
            }
        }
        if let Some(labels) = &labels {
            if !(labels.share > 0.0 && labels.share <= 1.0) {
                fields.problem(
                    "labels.share",
                    &format!("is {}: it must be over 0 and at most 1", labels.share),
                );
            }
            if labels.within > MAX_LABEL_WAIT {
                fields.problem("labels.within", "is too long: wait at most 10 years");
            }
        }
        if any
            .as_ref()
            .is_some_and(|any| any.is_empty() || any.len() > MAX_CONDITIONS)
        {
            fields.problem("any", &format!("must have 1 to {MAX_CONDITIONS} conditions"));
        }
        let mut conditions = Vec::new();
        for (index, value) in any.unwrap_or_default().into_iter().take(MAX_CONDITIONS).enumerate() {
            let place = format!("any[{index}]");
            match serde_json::from_value::<Condition>(value) {
                Ok(condition) => {
                    if let Some(problem) = condition.problem() {
                        fields.problem(&place, &problem);
                    }
                    conditions.push(condition);
                }
                Err(error) => fields.problem(&place, &format!("is wrong: {error}")),
            }
        }
        let problems = fields.finish("monitor, labels, any, trigger");
        match monitor {
            Some(monitor) if problems.is_empty() => Ok(Self {
                monitor,
                labels,
                any: conditions,
                trigger,
            }),
            _ => Err(Error::Spec {
                what: "alert rule",
                name: name.to_owned(),
                problems,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_reads_back() {
        let value = json!({
            "monitor": "flight-delay", "labels": {"share": 0.95, "within": "14d"},
            "any": [{"metric": "auc", "drop": 0.02}, {"metric": "drift_share", "above": 0.5}, {"metric": "label", "below": 0.1}],
            "trigger": "retrain-flight-delay"
        });
        let spec = AlertRuleSpec::read("r", value).unwrap();
        assert_eq!(spec.labels.unwrap().within, Duration::from_hours(14 * 24));
        assert_eq!(spec.any[0].bound(), Some(Bound::Drop(0.02)));
        assert_eq!(
            AlertRuleSpec::read("r", serde_json::to_value(&spec).unwrap()).unwrap(),
            spec
        );
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let value = json!({
            "monitor": "a b", "labels": {"share": 2, "within": "14d"}, "trigger": "/", "severity": 1,
            "any": [{"metric": "speed", "above": 1}, {"metric": "auc"}, {"metric": "auc", "drop": 1, "rise": 1},
                    {"metric": "drift_share", "drop": 0.1}, {"metric": "auc", "under": 1}, {"metric": "auc", "drop": -1},
                    {"metric": "label", "drop": 0.1}]
        });
        let error = AlertRuleSpec::read("r", value).unwrap_err().to_string();
        for named in [
            "`a b`",
            "labels.share",
            "`/`",
            "severity",
            "any[0]",
            "any[1]",
            "any[2]",
            "any[3]",
            "any[4]",
            "any[5]",
            "any[6]",
        ] {
            assert!(error.contains(named), "{named}: {error}");
        }
        assert!(AlertRuleSpec::read("r", json!({"monitor": "m", "any": []})).is_err());
    }
}
