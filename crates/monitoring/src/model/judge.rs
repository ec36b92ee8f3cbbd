//! What an alert rule makes of a window: a function of the rule, the window's score and the watermark.
//!
//! ```text
//!            watermark < end                           share of labels reached, or watermark >= end + within
//! (open) ------------------------> wait until end     (closed) ------------------------------> Fine | Fired
//!            closed, labels missing --> wait until end + within                                (once for each rule)
//! ```

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    alert::{Finding, FiredCondition},
    rule::{AlertRuleSpec, Bound, Condition},
    score::{GroupScore, Role, WindowScore},
    window::Span,
};

/// What a rule has found in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// No condition held.
    Fine,
    /// An alert was raised.
    Fired,
}

impl Outcome {
    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Fired => "fired",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        [Self::Fine, Self::Fired]
            .into_iter()
            .find(|outcome| outcome.as_str() == word)
    }
}

/// Where a rule stands with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has not judged the window.
    Waiting,
    /// It has, once and for all.
    Judged(Outcome),
    /// The window ended before the rule began to judge.
    Before,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Raise an alert, which fires the rule's trigger.
    Raise(Finding),
    /// Resolve the rule's alerts of earlier windows.
    ResolveEarlier,
}

/// What came of looking at a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Where the rule stands now.
    pub standing: Standing,
    /// The event time at which to look again.
    pub check_at: Option<Timestamp>,
    /// What is to be done, together with storing where the rule stands.
    pub commands: Vec<Command>,
}

/// A window as it was scored.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// The slice of time.
    pub span: Span,
    /// Its score.
    pub score: &'a WindowScore,
    /// Groups with fewer rows are not judged.
    pub min_rows: u64,
}

/// What a rule does about a window at a watermark. It judges once: whoever has judged does nothing any more.
#[must_use]
pub fn decide(standing: Standing, rule: &AlertRuleSpec, window: Scored<'_>, watermark: Option<Timestamp>) -> Decision {
    let wait = |check_at| Decision {
        standing,
        check_at: Some(check_at),
        commands: Vec::new(),
    };
    if standing != Standing::Waiting {
        return Decision {
            standing,
            check_at: None,
            commands: Vec::new(),
        };
    }
    let Some(watermark) = watermark.filter(|watermark| *watermark >= window.span.end) else {
        return wait(window.span.end);
    };
    if let Some(labels) = rule.labels {
        let deadline = window.span.end + labels.within;
        let enough = window.score.label_share().is_none_or(|share| share >= labels.share);
        if !enough && watermark < deadline {
            return wait(deadline);
        }
    }
    let (outcome, command) = match find(rule, window) {
        Some(finding) => (Outcome::Fired, Command::Raise(finding)),
        None => (Outcome::Fine, Command::ResolveEarlier),
    };
    Decision {
        standing: Standing::Judged(outcome),
        check_at: None,
        commands: vec![command],
    }
}

/// What breaks the rule: the first version by rows for which a condition holds.
fn find(rule: &AlertRuleSpec, window: Scored<'_>) -> Option<Finding> {
    let mut groups: Vec<&GroupScore> = window
        .score
        .groups
        .iter()
        .filter(|group| group.role == Role::Live && group.rows >= window.min_rows)
        .collect();
    groups.sort_by(|a, b| {
        b.rows
            .cmp(&a.rows)
            .then_with(|| (&a.model, a.version).cmp(&(&b.model, b.version)))
    });
    groups.into_iter().find_map(|group| {
        let held = rule
            .any
            .iter()
            .filter_map(|condition| holds(condition, group, window.min_rows));
        let conditions: Vec<FiredCondition> = held.collect();
        (!conditions.is_empty()).then(|| Finding {
            model: group.model.clone(),
            version: group.version,
            conditions,
        })
    })
}

/// The condition in numbers and words, if it holds. A metric or reference that is not there breaks nothing.
fn holds(condition: &Condition, group: &GroupScore, min_rows: u64) -> Option<FiredCondition> {
    if condition.needs_labels() && group.labels < min_rows {
        return None;
    }
    let metric = &condition.metric;
    let value = group.metric(metric)?;
    let version = format!("{}/{}", group.model, group.version);
    let (held, threshold, reference, text) = match condition.bound()? {
        Bound::Drop(by) => {
            let reference = group.reference_of(metric)?;
            let drop = reference - value;
            let text = format!(
                "{metric} {value:.4} of {version} is {drop:.4} below its {reference:.4} on held-out data (limit {by})"
            );
            (drop >= by, by, Some(reference), text)
        }
        Bound::Rise(by) => {
            let reference = group.reference_of(metric)?;
            let rise = value - reference;
            let text = format!(
                "{metric} {value:.4} of {version} is {rise:.4} above its {reference:.4} on held-out data (limit {by})"
            );
            (rise >= by, by, Some(reference), text)
        }
        Bound::Above(limit) => (
            value > limit,
            limit,
            None,
            format!("{metric} {value:.4} of {version} is above {limit}"),
        ),
        Bound::Below(limit) => (
            value < limit,
            limit,
            None,
            format!("{metric} {value:.4} of {version} is below {limit}"),
        ),
    };
    held.then(|| FiredCondition {
        metric: metric.clone(),
        value,
        reference,
        threshold,
        text,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::{score::DriftScore, window::Length};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn march() -> Span {
        Length::Month.span_of(at("2013-03-01T00:00:00Z"))
    }

    fn rule(any: &serde_json::Value) -> AlertRuleSpec {
        let value = json!({"monitor": "m", "labels": {"share": 0.95, "within": "14d"}, "any": any, "trigger": null});
        AlertRuleSpec::read("r", value).unwrap()
    }

    fn group(version: u32, rows: u64, labels: u64, auc: Option<f64>, drift: Option<f64>) -> GroupScore {
        GroupScore {
            role: Role::Live,
            model: "flight-delay".to_owned(),
            version,
            rows,
            labels,
            drift: drift.map(|share| DriftScore {
                share: Some(share),
                drifted: vec![],
                columns: vec![],
            }),
            prediction_drift: None,
            performance: auc.map(|auc| BTreeMap::from([("auc".to_owned(), auc)])),
            reference: Some(BTreeMap::from([("auc".to_owned(), 0.70)])),
            notes: vec![],
        }
    }

    fn score(groups: Vec<GroupScore>) -> WindowScore {
        let live = groups.iter().filter(|group| group.role == Role::Live);
        let (requests, labels) = live.fold((0, 0), |sum, group| (sum.0 + group.rows, sum.1 + group.labels));
        WindowScore {
            requests,
            labels,
            groups,
        }
    }

    fn look(rule: &AlertRuleSpec, score: &WindowScore, watermark: &str) -> Decision {
        let window = Scored {
            span: march(),
            score,
            min_rows: 200,
        };
        decide(Standing::Waiting, rule, window, Some(at(watermark)))
    }

    fn fired(decision: &Decision) -> Option<&Finding> {
        decision.commands.iter().find_map(|command| match command {
            Command::Raise(finding) => Some(finding),
            Command::ResolveEarlier => None,
        })
    }

    #[test]
    fn a_rule_waits_for_the_end_then_for_labels_then_judges() {
        let rule = rule(&json!([{"metric": "auc", "drop": 0.02}]));
        let few = score(vec![group(1, 1000, 500, Some(0.60), None)]);
        let open = look(&rule, &few, "2013-03-31T23:00:00Z");
        assert_eq!((open.standing, open.check_at), (Standing::Waiting, Some(march().end)));
        let unlabelled = look(&rule, &few, "2013-04-02T00:00:00Z");
        assert_eq!(
            (unlabelled.standing, unlabelled.check_at),
            (Standing::Waiting, Some(at("2013-04-15T00:00:00Z")))
        );
        let late = look(&rule, &few, "2013-04-15T00:00:00Z");
        assert_eq!((late.standing, late.check_at), (Standing::Judged(Outcome::Fired), None));
        let enough = score(vec![group(1, 1000, 950, Some(0.69), None)]);
        let fine = look(&rule, &enough, "2013-04-01T00:00:00Z");
        assert_eq!(fine.standing, Standing::Judged(Outcome::Fine));
        assert_eq!(fine.commands, [Command::ResolveEarlier]);
    }

    #[test]
    fn without_labels_asked_for_a_window_is_judged_when_it_closes() {
        let value = json!({"monitor": "m", "any": [{"metric": "drift_share", "above": 0.5}]});
        let rule = AlertRuleSpec::read("r", value).unwrap();
        for (share, breaks) in [(0.5, false), (0.6, true)] {
            let decision = look(
                &rule,
                &score(vec![group(1, 1000, 0, None, Some(share))]),
                "2013-04-01T00:00:00Z",
            );
            assert_eq!(fired(&decision).is_some(), breaks, "{share}");
        }
    }

    #[test]
    fn drops_are_measured_against_held_out_data_and_named() {
        let rule = rule(&json!([{"metric": "auc", "drop": 0.02}, {"metric": "drift_share", "above": 0.5}]));
        let decision = look(
            &rule,
            &score(vec![group(3, 1000, 1000, Some(0.65), Some(0.4))]),
            "2013-04-01T00:00:00Z",
        );
        let finding = fired(&decision).unwrap();
        assert_eq!((finding.version, finding.conditions.len()), (3, 1));
        let condition = &finding.conditions[0];
        assert_eq!(
            (condition.value, condition.reference, condition.threshold),
            (0.65, Some(0.70), 0.02)
        );
        assert_eq!(
            condition.text,
            "auc 0.6500 of flight-delay/3 is 0.0500 below its 0.7000 on held-out data (limit 0.02)"
        );
    }

    #[test]
    fn shadows_small_groups_and_unknown_metrics_break_nothing() {
        let rule = rule(&json!([{"metric": "auc", "drop": 0.02}, {"metric": "log_loss", "above": 0.1}]));
        let mut shadow = group(1, 1000, 1000, Some(0.1), None);
        shadow.role = Role::Shadow;
        let good = group(2, 1000, 1000, Some(0.7), None);
        let small = group(4, 199, 199, Some(0.1), None);
        let few_labels = group(5, 400, 199, Some(0.1), None);
        let mut bare = group(6, 300, 300, Some(0.1), None);
        bare.reference = None;
        let mixed = score(vec![shadow, good, small, few_labels, bare]);
        let decision = look(&rule, &mixed, "2013-05-01T00:00:00Z");
        assert_eq!(decision.standing, Standing::Judged(Outcome::Fine));
    }

    #[test]
    fn the_largest_version_that_breaks_the_rule_is_named() {
        let rule = rule(&json!([{"metric": "auc", "drop": 0.02}]));
        let groups = vec![
            group(1, 300, 300, Some(0.5), None),
            group(2, 900, 900, Some(0.6), None),
            group(3, 5000, 5000, Some(0.7), None),
        ];
        let decision = look(&rule, &score(groups), "2013-04-01T00:00:00Z");
        assert_eq!(fired(&decision).unwrap().version, 2);
    }

    proptest! {
        #[test]
        fn a_window_is_judged_once_and_only_when_closed(
            looks in prop::collection::vec((0_i64..60, 0_u64..1000, 0.5_f64..0.8), 1..20)
        ) {
            let rule = rule(&json!([{"metric": "auc", "drop": 0.02}]));
            let mut standing = Standing::Waiting;
            let mut raised = 0;
            for (day, labels, auc) in looks {
                let watermark = Timestamp::from_micros(march().start.as_micros() + day * 86_400_000_000);
                let score = score(vec![group(1, 1000, labels, Some(auc), None)]);
                let window = Scored { span: march(), score: &score, min_rows: 200 };
                let decision = decide(standing, &rule, window, Some(watermark));
                raised += usize::from(fired(&decision).is_some());
                match decision.standing {
                    Standing::Waiting => {
                        prop_assert!(decision.check_at.is_some_and(|check| check > watermark));
                        prop_assert!(decision.commands.is_empty());
                    }
                    Standing::Judged(_) => {
                        prop_assert!(decision.check_at.is_none());
                        prop_assert!(standing != Standing::Waiting || watermark >= march().end);
                        prop_assert!(standing == Standing::Waiting || decision.commands.is_empty());
                    }
                    Standing::Before => prop_assert!(false),
                }
                standing = decision.standing;
            }
            prop_assert!(raised <= 1);
        }
    }
}
