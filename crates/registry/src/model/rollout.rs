//! The rules by which new routes of an endpoint come to serve, step by step.

use std::time::Duration;

use modelyard_common::{config::duration, name::check_name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most steps and guards of a rollout.
const MAX_STEPS: usize = 50;
const MAX_GUARDS: usize = 20;
/// The shortest and the longest step.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_hours(24 * 30);
/// How many requests a step needs that does not say.
const DEFAULT_MIN_REQUESTS: u64 = 20;
/// The most requests that a step may ask for.
const MAX_MIN_REQUESTS: u64 = 1_000_000_000;

/// How new routes come to serve: they get the share of each step for an interval, and serve after the last, unless a guard
/// is broken: then what served before goes on serving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutSpec {
    /// Shares of the traffic in percent, each more than the one before, above 0 and below 100.
    pub steps: Vec<f64>,
    /// How long each step takes at least, such as `10m`.
    #[serde(with = "duration")]
    #[schema(value_type = String)]
    pub interval: Duration,
    /// How many requests the new routes must have answered in a step before it can end or break a guard.
    #[serde(default = "default_min_requests")]
    pub min_requests: u64,
    /// What must hold of the new routes all the time.
    #[serde(default)]
    pub guards: Vec<Guard>,
}

/// What must hold of new routes: a measure of theirs that stays below its limit, or an alert rule that does not fire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// What the gateways measure of each new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<GuardMetric>,
    /// The limit: a share such as 0.01, or a time such as `50ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Limit>,
    /// The name of an alert rule of the project: drift, the performance of the model, a business metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
}

/// What the gateways measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardMetric {
    /// The share of the requests that failed by our fault: errors of the model, deadlines that passed.
    ErrorRate,
    /// The time that half of the answers took at most.
    P50Latency,
    /// The time that 90 of 100 answers took at most.
    P90Latency,
    /// The time that 95 of 100 answers took at most.
    P95Latency,
    /// The time that 99 of 100 answers took at most.
    P99Latency,
}

/// The limit of a guard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Limit {
    /// A share.
    Share(f64),
    /// A time, such as `50ms`.
    Time(String),
}

const fn default_min_requests() -> u64 {
    DEFAULT_MIN_REQUESTS
}

impl Guard {
    /// What is wrong with it, if something is.
    fn problem(&self) -> Option<String> {
        match (&self.metric, &self.max, &self.alert) {
            (None, None, Some(alert)) => check_name("an alert rule", alert).err().map(|error| error.to_string()),
            (Some(GuardMetric::ErrorRate), Some(max), None) => match max {
                Limit::Share(share) if (0.0..1.0).contains(share) => None,
                _ => Some("error_rate: write `max` as a number from 0 to below 1".to_owned()),
            },
            (Some(_), Some(Limit::Time(text)), None) => match humantime::parse_duration(text) {
                Ok(time) if !time.is_zero() => None,
                _ => Some(format!("`{text}` is no time: write `max` as in 50ms")),
            },
            (Some(_), Some(Limit::Share(_)), None) => Some("a latency: write `max` as a time, as in 50ms".to_owned()),
            _ => Some("write `metric` and `max`, or `alert`".to_owned()),
        }
    }
}

impl RolloutSpec {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        let increases = self
            .steps
            .iter()
            .zip(self.steps.iter().skip(1))
            .all(|(one, next)| one < next);
        let in_range = self.steps.iter().all(|share| *share > 0.0 && *share < 100.0);
        if self.steps.is_empty() || self.steps.len() > MAX_STEPS || !increases || !in_range {
            problems.push(format!(
                "rollout.steps: write 1 to {MAX_STEPS} percentages above 0 and below 100, each more than the one before"
            ));
        }
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&self.interval) {
            problems.push(format!(
                "rollout.interval is {:?}: write {MIN_INTERVAL:?} to {MAX_INTERVAL:?}",
                self.interval
            ));
        }
        if self.min_requests > MAX_MIN_REQUESTS {
            problems.push(format!(
                "rollout.min_requests is {}: write at most {MAX_MIN_REQUESTS}",
                self.min_requests
            ));
        }
        if self.guards.len() > MAX_GUARDS {
            problems.push(format!(
                "rollout.guards: {} guards: write at most {MAX_GUARDS}",
                self.guards.len()
            ));
        }
        for (index, guard) in self.guards.iter().enumerate() {
            if let Some(problem) = guard.problem() {
                problems.push(format!("rollout.guards[{index}]: {problem}"));
            }
        }
    }
}
