//! Metrics of traces: what can be counted and measured of traces, spans and assessments, and by what it is grouped.

use crate::error::{Error, Result};

/// The longest interval, in seconds: about a hundred years.
pub const MAX_INTERVAL_SECONDS: i64 = 100 * 366 * 86_400;
/// The most aggregations of a question.
pub const MAX_AGGREGATIONS: usize = 32;
/// Intervals lie between the years 1 and 9999, which have names.
pub const NAMED_MS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Traces.
    Traces,
    /// Their spans.
    Spans,
    /// What is said of them.
    Assessments,
}

/// How values become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregation {
    /// How many there are.
    Count,
    /// Their sum.
    Sum,
    /// Their mean.
    Avg,
    /// The value below which so many percent of them are, between two of them in proportion.
    Percentile(f64),
    /// The least.
    Min,
    /// The greatest.
    Max,
}

/// What to measure, over which time, and by what it is grouped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricSpan {
    /// The first millisecond, where there is one.
    pub start_ms: Option<i64>,
    /// The last millisecond, where there is one.
    pub end_ms: Option<i64>,
    /// How long the intervals are by which the values are grouped, in seconds; none: they are not.
    pub interval_seconds: Option<i64>,
}

/// A metric: its name, which aggregations it takes, and by what it can be grouped.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    aggregations: &'static [&'static str],
    dimensions: &'static [&'static str],
}

const COUNTED: &[&str] = &["COUNT"];
const MEASURED: &[&str] = &["AVG", "MAX", "MIN", "PERCENTILE"];
const SUMMED: &[&str] = &["AVG", "MAX", "MIN", "PERCENTILE", "SUM"];
const OF_TRACE: &[&str] = &["trace_name"];
const OF_COST: &[&str] = &["span_model_name", "span_model_provider"];

const fn metric(
    name: &'static str,
    aggregations: &'static [&'static str],
    dimensions: &'static [&'static str],
) -> Metric {
    Metric {
        name,
        aggregations,
        dimensions,
    }
}

const TRACES: [Metric; 8] = [
    metric("trace_count", COUNTED, &["trace_name", "trace_status"]),
    metric("session_count", COUNTED, &[]),
    metric("latency", MEASURED, OF_TRACE),
    metric("input_tokens", SUMMED, OF_TRACE),
    metric("output_tokens", SUMMED, OF_TRACE),
    metric("total_tokens", SUMMED, OF_TRACE),
    metric("cache_read_input_tokens", SUMMED, OF_TRACE),
    metric("cache_creation_input_tokens", SUMMED, OF_TRACE),
];
const SPANS: [Metric; 5] = [
    metric(
        "span_count",
        COUNTED,
        &[
            "span_model_name",
            "span_model_provider",
            "span_name",
            "span_status",
            "span_type",
        ],
    ),
    metric("latency", MEASURED, &["span_name", "span_status"]),
    metric("input_cost", SUMMED, OF_COST),
    metric("output_cost", SUMMED, OF_COST),
    metric("total_cost", SUMMED, OF_COST),
];
const ASSESSMENTS: [Metric; 2] = [
    metric("assessment_count", COUNTED, &["assessment_name", "assessment_value"]),
    metric("assessment_value", MEASURED, &["assessment_name"]),
];

/// A list as MLflow writes it.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", names.join(", "))
}

impl View {
    /// The view of this name, or of its number in MLflow's protocol.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "TRACES" | "1" => Some(Self::Traces),
            "SPANS" | "2" => Some(Self::Spans),
            "ASSESSMENTS" | "3" => Some(Self::Assessments),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Spans => "SPANS",
            Self::Assessments => "ASSESSMENTS",
        }
    }

    const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Traces => &TRACES,
            Self::Spans => &SPANS,
            Self::Assessments => &ASSESSMENTS,
        }
    }

    /// The metric of this name.
    pub fn metric(self, name: &str) -> Result<&'static Metric> {
        let found = self.metrics().iter().find(|metric| metric.name == name);
        found.ok_or_else(|| {
            let known = listed(self.metrics().iter().map(|metric| metric.name));
            Error::request(format!("metric_name must be one of {known}, got '{name}'"))
        })
    }
}

impl Aggregation {
    /// The aggregation of this name, or of its number in MLflow's protocol.
    pub fn of(name: &str, percentile: Option<f64>) -> Result<Self> {
        let is_percentile = matches!(name, "PERCENTILE" | "4");
        let known = match (name, percentile) {
            ("PERCENTILE" | "4", None) => {
                return Err(Error::request(
                    "Percentile value is required for PERCENTILE aggregation",
                ));
            }
            ("PERCENTILE" | "4", Some(value)) if !(0.0..=100.0).contains(&value) => {
                return Err(Error::request(format!(
                    "Percentile value must be between 0 and 100, got {value:?}"
                )));
            }
            ("PERCENTILE" | "4", Some(value)) => Self::Percentile(value),
            ("COUNT" | "1", _) => Self::Count,
            ("SUM" | "2", _) => Self::Sum,
            ("AVG" | "3", _) => Self::Avg,
            ("MIN" | "5", _) => Self::Min,
            ("MAX" | "6", _) => Self::Max,
            _ => {
                return Err(Error::request(format!(
                    "aggregation_type must be one of ['COUNT', 'SUM', 'AVG', 'PERCENTILE', 'MIN', 'MAX'], got '{name}'"
                )));
            }
        };
        if percentile.is_some() && !is_percentile {
            return Err(Error::request(format!(
                "Percentile value is only allowed for PERCENTILE aggregation type, got {}",
                known.kind()
            )));
        }
        Ok(known)
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Count => "COUNT",
            Self::Sum => "SUM",
            Self::Avg => "AVG",
            Self::Percentile(_) => "PERCENTILE",
            Self::Min => "MIN",
            Self::Max => "MAX",
        }
    }

    /// The name of its values, such as `AVG` or `P99.0`.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Percentile(value) => format!("P{value:?}"),
            other => other.kind().to_owned(),
        }
    }
}

impl Metric {
    /// Refuses aggregations and dimensions that this metric does not take.
    pub fn check(&self, aggregations: &[Aggregation], dimensions: &[String]) -> Result<()> {
        if aggregations.len() > MAX_AGGREGATIONS {
            return Err(Error::request(format!(
                "{} aggregations are too many at once: ask for at most {MAX_AGGREGATIONS}",
                aggregations.len()
            )));
        }
        let mut wrong: Vec<&str> = aggregations.iter().map(|aggregation| aggregation.kind()).collect();
        wrong.retain(|kind| !self.aggregations.contains(kind));
        wrong.sort_unstable();
        wrong.dedup();
        if !wrong.is_empty() {
            return Err(Error::request(format!(
                "Found invalid aggregation_type(s): {}. Supported aggregation types: {}",
                listed(wrong),
                listed(self.aggregations.iter().copied())
            )));
        }
        let mut wrong: Vec<&str> = dimensions.iter().map(String::as_str).collect();
        wrong.retain(|dimension| !self.dimensions.contains(dimension));
        wrong.sort_unstable();
        wrong.dedup();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::request(format!(
            "Found invalid dimension(s): {}. Supported dimensions: {}",
            listed(wrong),
            listed(self.dimensions.iter().copied())
        )))
    }
}

impl MetricSpan {
    /// Refuses intervals that have no beginning or no end, or that no date names.
    pub fn check(&self) -> Result<()> {
        let Some(interval) = self.interval_seconds else {
            return Ok(());
        };
        let (Some(start), Some(end)) = (self.start_ms, self.end_ms) else {
            return Err(Error::request(
                "start_time_ms and end_time_ms are required if time_interval_seconds is set",
            ));
        };
        if !(1..=MAX_INTERVAL_SECONDS).contains(&interval) {
            return Err(Error::request(format!(
                "time_interval_seconds must be between 1 and {MAX_INTERVAL_SECONDS}, got {interval}"
            )));
        }
        if !NAMED_MS.contains(&start) || !NAMED_MS.contains(&end) {
            return Err(Error::request(
                "start_time_ms and end_time_ms must be in the years 1 to 9999 if time_interval_seconds is set",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_metric_takes_what_fits() {
        let latency = View::Traces.metric("latency").unwrap();
        assert!(
            latency
                .check(
                    &[Aggregation::Avg, Aggregation::Percentile(50.0)],
                    &["trace_name".into()]
                )
                .is_ok()
        );
        let said = refusal(latency.check(&[Aggregation::Sum, Aggregation::Count], &[]));
        let expected = "Found invalid aggregation_type(s): ['COUNT', 'SUM']. \
                        Supported aggregation types: ['AVG', 'MAX', 'MIN', 'PERCENTILE']";
        assert!(said.contains(expected), "{said}");
        let said = refusal(latency.check(&[], &["trace_status".into()]));
        let expected = "Found invalid dimension(s): ['trace_status']. Supported dimensions: ['trace_name']";
        assert!(said.contains(expected), "{said}");
        let said = refusal(View::Assessments.metric("latency"));
        assert!(said.contains("metric_name must be one of ['assessment_count', 'assessment_value'], got 'latency'"));
    }

    #[test]
    fn percentiles_have_a_value_and_nothing_else_has() {
        assert_eq!(Aggregation::of("PERCENTILE", Some(99.9)).unwrap().label(), "P99.9");
        assert_eq!(Aggregation::of("4", Some(50.0)).unwrap().label(), "P50.0");
        assert!(Aggregation::of("PERCENTILE", None).is_err());
        assert!(Aggregation::of("PERCENTILE", Some(100.5)).is_err());
        assert!(Aggregation::of("PERCENTILE", Some(f64::NAN)).is_err());
        assert!(Aggregation::of("AVG", Some(1.0)).is_err());
        assert!(Aggregation::of("MEDIAN", None).is_err());
    }

    #[test]
    fn intervals_need_both_ends() {
        let span = |start_ms, end_ms, seconds| MetricSpan {
            start_ms,
            end_ms,
            interval_seconds: Some(seconds),
        };
        assert!(span(Some(0), Some(1), 60).check().is_ok());
        assert!(span(None, Some(1), 60).check().is_err());
        assert!(span(Some(0), Some(1), -1).check().is_err());
        assert!(span(Some(0), Some(i64::MAX), 60).check().is_err());
        assert!(MetricSpan::default().check().is_ok());
    }
}
