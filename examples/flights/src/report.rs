//! What came out, for people and for programs.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// The AUC that retraining must bring over never retraining, averaged over the months after the first.
pub const MIN_AUC_GAIN: f64 = 0.025;

/// The columns of the closing table.
const HEADER: [&str; 8] = [
    "MONTH",
    "REQUESTS",
    "CHAMPION",
    "AUC",
    "NEVER RETRAINED",
    "DRIFT SHARE",
    "ALERT",
    "RETRAINED TO",
];

/// The width of the table where there is no terminal to ask, in columns.
const PLAIN_WIDTH: u16 = 120;

/// One replayed month.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MonthRow {
    /// The month as `2013-03`.
    pub month: String,
    /// Predictions in the inference log, each counted once.
    pub requests: u64,
    /// The version that the endpoint served when the month began.
    pub version: u64,
    /// AUC of that version on the month's labels.
    pub auc: f64,
    /// AUC of version 1 on the same requests, answered by the shadow route.
    pub auc_never_retrained: f64,
    /// Share of the features that drifted against the version's reference.
    pub drift_share: f64,
    /// The conditions that fired, in words.
    pub alert: Option<String>,
    /// The version that the alert led to, when it became the champion.
    pub retrained_to: Option<u64>,
}

/// The job as a whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Mean over the months after the first of `auc - auc_never_retrained`.
    pub auc_gain: f64,
    /// How often a retrained model became the champion.
    pub retrainings: u64,
    /// Requests that ended without an answer or with a refusal.
    pub failed_requests: u64,
    /// How long the job took.
    pub seconds: f64,
}

/// What the main job found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One row a month.
    pub months: Vec<MonthRow>,
    /// The job as a whole.
    pub summary: Summary,
    /// What went otherwise than it should, though the job went on.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Requests that were sent again because the server was away.
    #[serde(skip)]
    pub retried_requests: u64,
    /// The answer of `modelyard describe prediction` for one request of the last month.
    #[serde(skip)]
    pub prediction: String,
    /// How long each kind of work took in all.
    #[serde(skip)]
    pub parts: Vec<(&'static str, Duration)>,
}

impl Report {
    /// Why the job did not reach what it must reach; empty when it did.
    #[must_use]
    pub fn shortfalls(&self) -> Vec<String> {
        let mut shortfalls = self.warnings.clone();
        let summary = &self.summary;
        if summary.auc_gain < MIN_AUC_GAIN {
            shortfalls.push(format!(
                "the retrained models gained {:.4} AUC, at least {MIN_AUC_GAIN} is expected",
                summary.auc_gain
            ));
        }
        if summary.failed_requests > 0 {
            shortfalls.push(format!("{} requests failed, none may", summary.failed_requests));
        }
        shortfalls
    }

    /// The closing table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(HEADER);
        if !table.is_tty() {
            table.set_width(PLAIN_WIDTH);
        }
        for row in &self.months {
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row(vec![
                Cell::new(&row.month),
                right(row.requests.to_string()),
                right(row.version.to_string()),
                right(format!("{:.4}", row.auc)),
                right(format!("{:.4}", row.auc_never_retrained)),
                right(format!("{:.2}", row.drift_share)),
                Cell::new(row.alert.as_deref().unwrap_or("-")),
                right(
                    row.retrained_to
                        .map_or_else(|| "-".to_owned(), |version| version.to_string()),
                ),
            ]);
        }
        table.trim_fmt()
    }

    /// The summary in one line.
    #[must_use]
    pub fn closing_line(&self) -> String {
        let summary = &self.summary;
        format!(
            "AUC gained by retraining: {:.4} - retrainings: {} - failed requests: {} - seconds: {:.0}",
            summary.auc_gain, summary.retrainings, summary.failed_requests, summary.seconds
        )
    }
}

/// Mean of what retraining gained in the months after the first, zero when there is none.
pub(crate) fn auc_gain(months: &[MonthRow]) -> f64 {
    let gains: Vec<f64> = months
        .iter()
        .skip(1)
        .map(|row| row.auc - row.auc_never_retrained)
        .collect();
    if gains.is_empty() {
        return 0.0;
    }
    gains.iter().sum::<f64>() / gains.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(month: &str, auc: f64, auc_never_retrained: f64) -> MonthRow {
        MonthRow {
            month: month.to_owned(),
            requests: 10,
            version: 1,
            auc,
            auc_never_retrained,
            drift_share: 0.25,
            alert: None,
            retrained_to: None,
        }
    }

    fn report(months: Vec<MonthRow>, failed_requests: u64) -> Report {
        Report {
            summary: Summary {
                auc_gain: auc_gain(&months),
                retrainings: 0,
                failed_requests,
                seconds: 1.0,
            },
            months,
            warnings: Vec::new(),
            retried_requests: 0,
            prediction: String::new(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn the_first_month_does_not_count_for_the_gain() {
        let months = vec![row("a", 0.9, 0.1), row("b", 0.75, 0.70), row("c", 0.72, 0.69)];
        assert!((auc_gain(&months) - 0.04).abs() < 1e-12);
        assert!(auc_gain(&months[..1]).abs() < 1e-12);
    }

    #[test]
    fn what_was_not_reached_is_said() {
        let months = vec![row("a", 0.7, 0.7), row("b", 0.75, 0.70)];
        assert!(report(months.clone(), 0).shortfalls().is_empty());
        let short = report(months[..1].to_vec(), 3).shortfalls();
        assert_eq!(short.len(), 2, "{short:?}");
        assert!(
            short[0].contains("0.025") && short[1].contains("3 requests failed"),
            "{short:?}"
        );
    }

    #[test]
    fn programs_get_the_table_and_nothing_else() {
        let json = serde_json::to_value(report(vec![row("2013-03", 0.7, 0.7)], 0)).unwrap();
        let keys = |value: &serde_json::Value| {
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&json), ["months", "summary"]);
        assert_eq!(
            keys(&json["summary"]),
            ["auc_gain", "failed_requests", "retrainings", "seconds"]
        );
        assert_eq!(
            keys(&json["months"][0]),
            [
                "alert",
                "auc",
                "auc_never_retrained",
                "drift_share",
                "month",
                "requests",
                "retrained_to",
                "version"
            ]
        );
    }
}
