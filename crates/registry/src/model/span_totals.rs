//! What the spans of a trace used and cost together. Some libraries write on a span what all those below it used: what is above
//! counts, and what is below it does not count again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::trace::{Cost, TokenUsage};

/// How many of the counts are always there where there is one.
const COUNTS_ALWAYS: usize = 3;

/// What a span used and cost itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanNode {
    /// The span.
    pub(crate) span_id: String,
    /// The span above.
    pub(crate) parent_id: Option<String>,
    /// Its tokens: a JSON object.
    pub(crate) token_usage: Option<String>,
    /// Its cost.
    pub(crate) cost: Cost,
}

/// The spans to which `has` applies and that have none above them to which it applies, too.
fn uppermost(nodes: &[SpanNode], has: impl Fn(&SpanNode) -> bool) -> Vec<&SpanNode> {
    let ids: BTreeSet<&str> = nodes.iter().map(|node| node.span_id.as_str()).collect();
    let mut children: BTreeMap<&str, Vec<&SpanNode>> = BTreeMap::new();
    let mut waiting = Vec::new();
    for node in nodes {
        match node.parent_id.as_deref().filter(|parent| ids.contains(parent)) {
            Some(parent) => children.entry(parent).or_default().push(node),
            None => waiting.push(node),
        }
    }
    let mut found = Vec::new();
    // Spans that are above each other in a circle are never reached.
    while let Some(node) = waiting.pop() {
        if has(node) {
            found.push(node);
        } else {
            waiting.extend(children.remove(node.span_id.as_str()).unwrap_or_default());
        }
    }
    found
}

/// A whole number, also one that is written as a fraction.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && float.abs() < 9.2e18).then_some(float as i64)
    })
}

/// The tokens of all spans.
pub(crate) fn total_usage(nodes: &[SpanNode]) -> Option<TokenUsage> {
    let found = uppermost(nodes, |node| node.token_usage.is_some());
    let mut counts = [None; TokenUsage::KEYS.len()];
    for node in &found {
        let Some(usage) = node.token_usage.as_deref() else {
            continue;
        };
        let usage: Map<String, Value> = serde_json::from_str(usage).unwrap_or_default();
        for (place, (count, key)) in counts.iter_mut().zip(TokenUsage::KEYS).enumerate() {
            let own = usage.get(key).and_then(whole);
            if own.is_some() || place < COUNTS_ALWAYS {
                *count = Some(i64::saturating_add(count.unwrap_or(0), own.unwrap_or(0)));
            }
        }
    }
    (!found.is_empty()).then(|| TokenUsage::of(counts))
}

/// The cost of all spans.
pub(crate) fn total_cost(nodes: &[SpanNode]) -> Option<Cost> {
    let found = uppermost(nodes, |node| node.cost != Cost::default());
    let mut amounts = [0.0; Cost::KEYS.len()];
    for node in &found {
        for (amount, own) in amounts.iter_mut().zip(node.cost.amounts()) {
            *amount += own.unwrap_or(0.0);
        }
    }
    (!found.is_empty()).then(|| Cost::of(amounts.map(Some)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(span_id: &str, parent: &str, usage: &str, cost: f64) -> SpanNode {
        SpanNode {
            span_id: span_id.to_owned(),
            parent_id: (!parent.is_empty()).then(|| parent.to_owned()),
            token_usage: (!usage.is_empty()).then(|| usage.to_owned()),
            cost: Cost {
                total: (cost > 0.0).then_some(cost),
                ..Cost::default()
            },
        }
    }

    #[test]
    fn what_is_above_counts() {
        let nodes = [
            node("a", "", "", 0.0),
            node(
                "b",
                "a",
                r#"{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}"#,
                0.0,
            ),
            node("c", "b", r#"{"input_tokens": 3, "total_tokens": 3}"#, 0.5),
            node("d", "a", r#"{"input_tokens": 1.0, "cache_read_input_tokens": 2}"#, 0.25),
            node("e", "gone", r#"{"total_tokens": 1}"#, 0.0),
        ];
        let usage = total_usage(&nodes).unwrap();
        assert_eq!(usage.counts(), [Some(4), Some(4), Some(8), Some(2), None, None]);
        assert_eq!(
            total_cost(&nodes).unwrap().amounts(),
            [Some(0.0), Some(0.0), Some(0.75)]
        );
        assert_eq!((total_usage(&[]), total_cost(&[])), (None, None));
        let circle = [node("a", "b", "{}", 1.0), node("b", "a", "{}", 1.0)];
        assert_eq!(total_usage(&circle), None);
    }
}
