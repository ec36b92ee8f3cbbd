//! What was read and what arrived, counted, and what went wrong.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// The most problems that are told one by one.
const MAX_PROBLEMS: usize = 1000;

/// The kinds that are counted, in the order in which they are told.
pub const KINDS: [&str; 13] = [
    "experiments",
    "runs",
    "params",
    "tags",
    "points",
    "links",
    "logged_models",
    "files",
    "bytes",
    "models",
    "model_tags",
    "versions",
    "aliases",
];

/// One kind: how many there are at the source, and how many are here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Read at the source.
    pub read: u64,
    /// Here now.
    pub here: u64,
}

/// The whole import.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    counts: BTreeMap<&'static str, Count>,
    problems: Vec<String>,
    problem_count: u64,
}

impl Report {
    /// Counts what was read.
    pub fn read(&mut self, kind: &'static str, count: u64) {
        self.counts.entry(kind).or_default().read += count;
    }

    /// Counts what is here.
    pub fn here(&mut self, kind: &'static str, count: u64) {
        self.counts.entry(kind).or_default().here += count;
    }

    /// Counts what is here, from an answer with a number for each kind.
    pub fn add_totals(&mut self, totals: &Value) {
        for kind in KINDS {
            if let Some(count) = totals.get(kind).and_then(Value::as_u64) {
                self.here(kind, count);
            }
        }
    }

    /// Something that did not arrive, and why.
    pub fn problem(&mut self, what: &str, error: &anyhow::Error) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(format!("{what}: {error:#}"));
        }
    }

    /// What went wrong.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// How much went wrong.
    pub const fn problem_count(&self) -> u64 {
        self.problem_count
    }

    /// A count.
    pub fn count(&self, kind: &str) -> Count {
        self.counts.get(kind).copied().unwrap_or_default()
    }

    /// The kinds of which more or fewer are here than were read.
    pub fn differences(&self) -> Vec<&'static str> {
        let differs = |kind: &&'static str| {
            let count = self.count(kind);
            count.read != count.here
        };
        KINDS.into_iter().filter(differs).collect()
    }
}

/// A kind as people say it.
pub fn words(kind: &str) -> String {
    match kind {
        "points" => "metric points".to_owned(),
        "links" => "inputs and outputs".to_owned(),
        "files" => "artifact files".to_owned(),
        "bytes" => "artifact bytes".to_owned(),
        "models" => "registered models and prompts".to_owned(),
        other => other.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let mut report = Report::default();
        report.read("runs", 2);
        report.read("params", 5);
        report.add_totals(&json!({"runs": 2, "params": 4, "unknown": 9}));
        assert_eq!(report.differences(), ["params"]);
        assert_eq!(report.count("params"), Count { read: 5, here: 4 });
        assert_eq!(words("logged_models"), "logged models");
    }
}
