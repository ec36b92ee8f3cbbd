//! `gate`: whether a candidate is better than the champion.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Literals, Op, OpShape, StepContext, StepError, evaluate::Evaluation, keys, outputs, read};

/// Metrics of which more is better.
const HIGHER: &[&str] = &["auc", "accuracy", "precision", "recall", "f1", "r2"];
/// Metrics of which less is better.
const LOWER: &[&str] = &["log_loss", "brier", "calibration_error", "rmse", "mae"];

/// Takes `evaluation` (the outputs of a step of op `evaluate`), `metric`, and `min_gain`: by how much the candidate must be
/// better (default 0: at all). Without a champion the candidate passes.
pub(crate) struct Gate;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    evaluation: Evaluation,
    metric: String,
    #[serde(default)]
    min_gain: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Outputs {
    passed: bool,
    reason: String,
    metric: String,
    candidate: f64,
    champion: Option<f64>,
    /// By how much the candidate is better; negative when it is worse.
    gain: Option<f64>,
}

fn check_metric(metric: &str) -> Result<bool, String> {
    if HIGHER.contains(&metric) {
        return Ok(true);
    }
    if LOWER.contains(&metric) {
        return Ok(false);
    }
    let known = [HIGHER, LOWER].concat().join(", ");
    Err(format!(
        "`{metric}` is no metric that models can be compared by: use one of {known}"
    ))
}

fn check_gain(gain: f64) -> Result<(), String> {
    if gain >= 0.0 && gain.is_finite() {
        return Ok(());
    }
    Err(format!("is {gain}: it must be 0 or more"))
}

fn judge(with: &With) -> Result<Outputs, String> {
    let metric = &with.metric;
    let higher_is_better = check_metric(metric).map_err(|problem| format!("with.metric: {problem}"))?;
    check_gain(with.min_gain).map_err(|problem| format!("with.min_gain: {problem}"))?;
    let of = |whose: &str, metrics: &std::collections::BTreeMap<String, f64>| {
        metrics.get(metric).copied().ok_or_else(|| {
            let known: Vec<&str> = metrics.keys().map(String::as_str).collect();
            format!(
                "the {whose} has no `{metric}` on the held-out slice: it has {}",
                known.join(", ")
            )
        })
    };
    let candidate = of("candidate", &with.evaluation.candidate)?;
    let Some(champion) = &with.evaluation.champion else {
        return Ok(Outputs {
            passed: true,
            reason: format!("there is no champion yet: the candidate's {metric} is {candidate:.6}"),
            metric: metric.clone(),
            candidate,
            champion: None,
            gain: None,
        });
    };
    let champion = of("champion", champion)?;
    let gain = if higher_is_better {
        candidate - champion
    } else {
        champion - candidate
    };
    let passed = gain > 0.0 && gain >= with.min_gain;
    let verdict = match (passed, gain > 0.0) {
        (true, _) => "the candidate is better".to_owned(),
        (false, true) => format!("the candidate must be better by {}", with.min_gain),
        (false, false) => "the candidate is not better".to_owned(),
    };
    Ok(Outputs {
        passed,
        reason: format!("{metric}: candidate {candidate:.6}, champion {champion:.6}, gain {gain:+.6}: {verdict}"),
        metric: metric.clone(),
        candidate,
        champion: Some(champion),
        gain: Some(gain),
    })
}

#[async_trait]
impl Op for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn shape(&self) -> OpShape {
        OpShape {
            keys: Some(keys(&["evaluation", "metric"], &["min_gain"])),
            outputs: Some(&["passed", "reason", "metric", "candidate", "champion", "gain"]),
            heavy: false,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        Literals::new(literals)
            .of_step("evaluation", "evaluate")
            .each("metric", |metric: String| check_metric(&metric).map(drop))
            .each("min_gain", check_gain)
            .problems()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        outputs(&judge(&read(&step.with)?).map_err(StepError::Fail)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(with: Value) -> Result<(bool, String), String> {
        let with: With = serde_json::from_value(with).unwrap();
        judge(&with).map(|outputs| (outputs.passed, outputs.reason))
    }

    fn of(metric: &str, candidate: f64, champion: Option<f64>, min_gain: f64) -> Result<(bool, String), String> {
        let champion = champion.map(|value| json!({ metric: value }));
        verdict(json!({
            "evaluation": {"candidate": {metric: candidate}, "champion": champion},
            "metric": metric,
            "min_gain": min_gain,
        }))
    }

    #[test]
    fn the_better_one_passes_and_the_first() {
        assert!(of("auc", 0.6, None, 0.1).unwrap().0);
        assert!(of("auc", 0.71, Some(0.70), 0.0).unwrap().0);
        assert!(!of("auc", 0.70, Some(0.70), 0.0).unwrap().0);
        assert!(!of("auc", 0.71, Some(0.70), 0.02).unwrap().0);
        assert!(of("log_loss", 0.50, Some(0.55), 0.04).unwrap().0);
        assert!(!of("log_loss", 0.55, Some(0.50), 0.0).unwrap().0);
    }

    #[test]
    fn what_cannot_be_compared_is_named() {
        assert!(
            of("beauty", 1.0, None, 0.0)
                .unwrap_err()
                .contains("`beauty` is no metric")
        );
        assert!(of("auc", 1.0, None, -1.0).unwrap_err().contains("must be 0 or more"));
        let missing = verdict(json!({"evaluation": {"candidate": {"rmse": 1.0}}, "metric": "auc"}));
        assert!(
            missing
                .unwrap_err()
                .contains("has no `auc` on the held-out slice: it has rmse")
        );
    }
}
