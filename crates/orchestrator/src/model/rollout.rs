//! Rollouts: how new routes of an endpoint get more and more of its traffic, as long as nothing speaks against them. Pure.

use std::{collections::BTreeMap, time::Duration};

use modelyard_common::{Timestamp, config::duration};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The latencies that the first bucket of the gateways' counts holds, in microseconds, and the buckets of each doubling.
const FIRST_BUCKET_US: f64 = 100.0;
const BUCKETS_PER_DOUBLING: f64 = 4.0;

/// The rules of a rollout, as the endpoint's spec has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutRules {
    /// Shares of the traffic in percent, one after the other.
    pub steps: Vec<f64>,
    /// How long each step takes at least.
    #[serde(with = "duration")]
    #[schema(value_type = String)]
    pub interval: Duration,
    /// How many requests the new routes must have answered in a step before it can end or break a guard.
    pub min_requests: u64,
    /// What must hold of the new routes all the time.
    #[serde(default)]
    pub guards: Vec<RolloutGuard>,
}

/// What must hold of the new routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutGuard {
    /// `error_rate`, or `p50_latency`, `p90_latency`, `p95_latency`, `p99_latency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The limit: a share, or a time such as `50ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<serde_json::Value>,
    /// An alert rule of the project that must not fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
}

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// The new routes get the share of the step.
    Running,
    /// They keep it, until somebody goes on.
    Paused,
    /// They serve.
    Promoted,
    /// They were refused, and what served before serves.
    RolledBack,
    /// Something else was declared meanwhile, or went back by hand.
    Superseded,
}

impl RolloutState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Running,
        Self::Paused,
        Self::Promoted,
        Self::RolledBack,
        Self::Superseded,
    ];

    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Superseded => "superseded",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Paused)
    }
}

/// What was counted of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed by our fault.
    pub failed: u64,
    /// Answers by their latency, in the contract's buckets.
    pub buckets: Vec<u64>,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }

    fn since(&self, before: &Self) -> Self {
        let before_bucket = |index: usize| before.buckets.get(index).copied().unwrap_or(0);
        let buckets = self.buckets.iter().enumerate();
        Self {
            answered: self.answered.saturating_sub(before.answered),
            failed: self.failed.saturating_sub(before.failed),
            buckets: buckets
                .map(|(index, count)| count.saturating_sub(before_bucket(index)))
                .collect(),
        }
    }

    fn requests(&self) -> u64 {
        self.answered + self.failed
    }

    /// The latency that this share of the answers took at most, within the width of a bucket (a fifth): linear between its
    /// bounds.
    fn quantile(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.buckets.iter().sum();
        if total == 0 {
            return None;
        }
        let rank = share * total as f64;
        let mut below = 0.0;
        for (index, &count) in self.buckets.iter().enumerate() {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                let upper = FIRST_BUCKET_US * (index as f64 / BUCKETS_PER_DOUBLING).exp2();
                let lower = if index == 0 {
                    0.0
                } else {
                    FIRST_BUCKET_US * ((index as f64 - 1.0) / BUCKETS_PER_DOUBLING).exp2()
                };
                let within = ((rank - below) / count).clamp(0.0, 1.0);
                return Some(Duration::from_secs_f64((lower + (upper - lower) * within) / 1e6));
            }
            below += count;
        }
        None
    }
}

/// What all gateways have counted: by process and version (`model/version`).
pub type Traffic = BTreeMap<String, BTreeMap<String, Counts>>;

/// What was counted of some versions since `before`.
fn counted(now: &Traffic, before: &Traffic, versions: &[String]) -> Counts {
    let mut sum = Counts::default();
    for (process, counts) in now {
        for version in versions {
            let Some(count) = counts.get(version) else { continue };
            let earlier = before.get(process).and_then(|counts| counts.get(version));
            sum.add(&count.since(earlier.unwrap_or(&Counts::default())));
        }
    }
    sum
}

/// A rollout of new routes of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Rollout {
    /// Its id.
    pub id: String,
    /// The project.
    pub project: String,
    /// The endpoint.
    pub endpoint: String,
    /// The revision at which the new routes came up.
    pub revision: u64,
    /// The rules as they were then.
    pub rules: RolloutRules,
    /// The versions that served, as `model/version`.
    pub from: Vec<String>,
    /// The versions that are to serve.
    pub to: Vec<String>,
    /// How it stands.
    pub state: RolloutState,
    /// The step, from 0.
    pub step: usize,
    /// What the new routes get of the traffic, in percent.
    pub share: f64,
    /// When the step began.
    pub step_started_at: Timestamp,
    /// What gateways had counted when the step began.
    #[serde(skip)]
    pub baseline: Traffic,
    /// Why it ended, or was paused.
    pub reason: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// Rollouts, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RolloutPage {
    /// The rollouts.
    pub items: Vec<Rollout>,
    /// Where the next page begins; null at the end.
    pub next_cursor: Option<String>,
}

/// What is to be done about a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing.
    Wait,
    /// The next step.
    Advance,
    /// The new routes serve from now on.
    Promote,
    /// They are refused, for this reason.
    RollBack(String),
}

impl Rollout {
    /// The share of the present step.
    #[must_use]
    pub fn step_share(&self) -> f64 {
        self.rules.steps.get(self.step).copied().unwrap_or(100.0)
    }

    /// The versions that are judged: those that are new, or all if none is.
    fn judged(&self) -> Vec<String> {
        let new: Vec<String> = self.to.iter().filter(|to| !self.from.contains(to)).cloned().collect();
        if new.is_empty() { self.to.clone() } else { new }
    }

    /// What is to be done now. A paused rollout waits, whatever is counted.
    #[must_use]
    pub fn decide(&self, now: Timestamp, traffic: &Traffic) -> Decision {
        if self.state != RolloutState::Running {
            return Decision::Wait;
        }
        let counts = counted(traffic, &self.baseline, &self.judged());
        if counts.requests() < self.rules.min_requests {
            return Decision::Wait;
        }
        if let Some(reason) = self.rules.guards.iter().find_map(|guard| broken(guard, &counts)) {
            return Decision::RollBack(reason);
        }
        if now.since(self.step_started_at) < self.rules.interval {
            return Decision::Wait;
        }
        if self.step + 1 < self.rules.steps.len() {
            Decision::Advance
        } else {
            Decision::Promote
        }
    }

    /// Whether an alert rule speaks against it.
    #[must_use]
    pub fn is_guarded_by(&self, alert: &str) -> bool {
        !self.state.is_over()
            && self
                .rules
                .guards
                .iter()
                .any(|guard| guard.alert.as_deref() == Some(alert))
    }
}

/// Why a guard is broken, if it is.
fn broken(guard: &RolloutGuard, counts: &Counts) -> Option<String> {
    let (metric, max) = (guard.metric.as_deref()?, guard.max.as_ref()?);
    if metric == "error_rate" {
        let rate = counts.failed as f64 / counts.requests() as f64;
        let max = max.as_f64()?;
        return (rate > max).then(|| {
            format!(
                "error_rate is {rate:.4}, and at most {max} is allowed: {} of {} requests failed",
                counts.failed,
                counts.requests()
            )
        });
    }
    let share = match metric {
        "p50_latency" => 0.5,
        "p90_latency" => 0.9,
        "p95_latency" => 0.95,
        "p99_latency" => 0.99,
        _ => return None,
    };
    let max = humantime::parse_duration(max.as_str()?).ok()?;
    let latency = counts.quantile(share)?;
    (latency > max).then(|| format!("{metric} is {latency:.1?}, and at most {max:?} is allowed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn rollout(guards: &serde_json::Value) -> Rollout {
        Rollout {
            id: "r".to_owned(),
            project: "default".to_owned(),
            endpoint: "e".to_owned(),
            revision: 7,
            rules: serde_json::from_value(json!({
                "steps": [5.0, 50.0], "interval": "10s", "min_requests": 20, "guards": guards
            }))
            .unwrap(),
            from: vec!["m/1".to_owned()],
            to: vec!["m/2".to_owned()],
            state: RolloutState::Running,
            step: 0,
            share: 5.0,
            step_started_at: Timestamp::from_micros(0),
            baseline: Traffic::new(),
            reason: None,
            created_at: Timestamp::from_micros(0),
            ended_at: None,
        }
    }

    /// `slow` of the answers took up to 51.2 ms, the others 100 us at most.
    fn traffic(version: &str, fast: u64, slow: u64, failed: u64) -> Traffic {
        let mut buckets = vec![0; 37];
        buckets[0] = fast;
        buckets[36] = slow;
        let counts = Counts {
            answered: fast + slow,
            failed,
            buckets,
        };
        Traffic::from([("p1".to_owned(), BTreeMap::from([(version.to_owned(), counts)]))])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * SECOND)
    }

    #[test]
    fn steps_follow_after_time_and_requests() {
        let mut rollout = rollout(&json!([]));
        let enough = traffic("m/2", 20, 0, 0);
        assert_eq!(rollout.decide(at(9), &enough), Decision::Wait, "too early");
        assert_eq!(
            rollout.decide(at(99), &traffic("m/2", 19, 0, 0)),
            Decision::Wait,
            "too few"
        );
        assert_eq!(
            rollout.decide(at(99), &traffic("m/1", 99, 0, 0)),
            Decision::Wait,
            "of the old"
        );
        assert_eq!(rollout.decide(at(10), &enough), Decision::Advance);
        rollout.step = 1;
        rollout.baseline = enough.clone();
        assert_eq!(rollout.decide(at(10), &enough), Decision::Wait, "nothing since");
        assert_eq!(rollout.decide(at(10), &traffic("m/2", 40, 0, 0)), Decision::Promote);
        rollout.state = RolloutState::Paused;
        assert_eq!(rollout.decide(at(99), &traffic("m/2", 40, 0, 99)), Decision::Wait);
    }

    #[test]
    fn a_broken_guard_ends_it_at_once() {
        let errors = rollout(&json!([{"metric": "error_rate", "max": 0.1}]));
        assert_eq!(
            errors.decide(at(1), &traffic("m/2", 18, 0, 1)),
            Decision::Wait,
            "too few to say"
        );
        assert_eq!(
            errors.decide(at(1), &traffic("m/2", 18, 0, 2)),
            Decision::Wait,
            "at the limit"
        );
        let Decision::RollBack(reason) = errors.decide(at(1), &traffic("m/2", 17, 0, 3)) else {
            panic!("it goes on")
        };
        assert_eq!(
            reason,
            "error_rate is 0.1500, and at most 0.1 is allowed: 3 of 20 requests failed"
        );
        let latency = rollout(&json!([{"metric": "p90_latency", "max": "10ms"}]));
        assert_eq!(latency.decide(at(10), &traffic("m/2", 95, 5, 0)), Decision::Advance);
        let Decision::RollBack(reason) = latency.decide(at(1), &traffic("m/2", 85, 15, 0)) else {
            panic!("it goes on")
        };
        assert!(
            reason.contains("p90_latency is 4") && reason.contains("10ms"),
            "{reason}"
        );
        assert!(rollout(&json!([{"alert": "drift"}])).is_guarded_by("drift"));
        assert!(!latency.is_guarded_by("drift"));
    }

    #[test]
    fn processes_that_began_anew_count_from_zero() {
        let mut rollout = rollout(&json!([{"metric": "error_rate", "max": 0.1}]));
        rollout.baseline = traffic("m/2", 1000, 0, 500);
        let mut after = traffic("m/2", 10, 0, 10);
        let counts = after.remove("p1").unwrap();
        after.insert("p2".to_owned(), counts);
        assert!(matches!(rollout.decide(at(1), &after), Decision::RollBack(_)));
    }

    proptest! {
        /// The quantile lies within the bucket that holds it.
        #[test]
        fn quantiles_are_right_within_a_bucket(
            latencies in proptest::collection::vec(1_u64..10_000_000, 1..200),
            share in 0.01..0.99_f64,
        ) {
            let mut counts = Counts { buckets: vec![0; 82], ..Counts::default() };
            for &micros in &latencies {
                let bucket = ((micros as f64 / FIRST_BUCKET_US).log2() * BUCKETS_PER_DOUBLING).ceil().max(0.0);
                counts.buckets[(bucket as usize).min(81)] += 1;
            }
            let mut sorted = latencies;
            sorted.sort_unstable();
            let rank = ((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[rank - 1] as f64;
            let found = counts.quantile(share).unwrap().as_secs_f64() * 1e6;
            prop_assert!(found <= exact * 1.2 + 100.0 && found >= exact / 1.2 - 100.0, "{} for {}", found, exact);
        }
    }
}
