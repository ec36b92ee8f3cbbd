//! Monitors: what is watched, and how.

use std::collections::{BTreeMap, BTreeSet};

use modelyard_common::name::check_name;
use modelyard_stats::DriftTest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{fields::Fields, resource::Resource, window::Length};
use crate::error::{Error, Result};

/// The kind of the resource.
pub const KIND: &str = "Monitor";
/// The most features that a monitor can name.
pub const MAX_FEATURES: usize = 4096;
/// The longest name of a feature, in bytes.
pub const MAX_FEATURE_BYTES: usize = 256;
/// Groups with fewer rows are not judged where the monitor does not say otherwise.
pub const DEFAULT_MIN_ROWS: u64 = 200;

/// What a monitor watches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MonitorSpec {
    /// The endpoint.
    pub endpoint: String,
    /// How long its windows are: slices of event time along the calendar, in UTC.
    pub window: Length,
    /// The inputs whose drift is measured; null: all that the reference profile knows.
    pub features: Option<BTreeSet<String>>,
    /// The drift test: `auto`, `psi`, `ks`, `wasserstein`, `jensenshannon`, `hellinger`, `chisquare`, `linf` or `z`. An
    /// input that the test is not defined for is tested as with `auto`.
    #[schema(value_type = String)]
    pub tests: DriftTest,
    /// Thresholds of single tests, where they differ from the tests' own.
    #[schema(value_type = BTreeMap<String, f64>)]
    pub thresholds: BTreeMap<DriftTest, f64>,
    /// Groups with fewer rows are neither tested for drift nor judged by alert rules.
    pub min_rows: u64,
}

/// A monitor.
pub type Monitor = Resource<MonitorSpec>;

impl MonitorSpec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong.
    pub fn read(name: &str, value: Value) -> Result<Self> {
        let mut fields = Fields::new(value);
        let endpoint: Option<String> = fields.required("endpoint");
        let window = fields.required("window");
        let features: Option<BTreeSet<String>> = fields.optional("features");
        let tests = fields.optional("tests").unwrap_or_default();
        let thresholds: BTreeMap<DriftTest, f64> = fields.optional("thresholds").unwrap_or_default();
        let min_rows = fields.optional("min_rows").unwrap_or(DEFAULT_MIN_ROWS);
        if let Some(endpoint) = &endpoint
            && let Err(error) = check_name("an endpoint", endpoint)
        {
            fields.problem("endpoint", &format!("is wrong: {error}"));
        }
        if let Some(features) = &features {
            let usable = |feature: &String| (1..=MAX_FEATURE_BYTES).contains(&feature.len());
            if features.is_empty() || features.len() > MAX_FEATURES || !features.iter().all(usable) {
                let problem = format!(
                    "must name 1 to {MAX_FEATURES} inputs of 1 to {MAX_FEATURE_BYTES} bytes: leave it out to watch all"
                );
                fields.problem("features", &problem);
            }
        }
        for (test, threshold) in &thresholds {
            if *test == DriftTest::Auto {
                fields.problem(
                    "thresholds",
                    "cannot have one of `auto`: name the tests that it chooses",
                );
            }
            if !threshold.is_finite() || *threshold < 0.0 {
                fields.problem(
                    "thresholds",
                    &format!("of `{test}` is {threshold}: it must be a number from 0"),
                );
            }
        }
        if min_rows == 0 {
            fields.problem("min_rows", "is 0: it must be at least 1");
        }
        let problems = fields.finish("endpoint, window, features, tests, thresholds, min_rows");
        match (endpoint, window) {
            (Some(endpoint), Some(window)) if problems.is_empty() => Ok(Self {
                endpoint,
                window,
                features,
                tests,
                thresholds,
                min_rows,
            }),
            _ => Err(Error::Spec {
                what: "monitor",
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
    fn defaults_are_filled_in_and_the_spec_reads_back() {
        let spec = MonitorSpec::read("m", json!({"endpoint": "flight-delay", "window": "month"})).unwrap();
        assert_eq!((spec.tests, spec.min_rows), (DriftTest::Auto, DEFAULT_MIN_ROWS));
        assert_eq!(
            MonitorSpec::read("m", serde_json::to_value(&spec).unwrap()).unwrap(),
            spec
        );
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let value = json!({
            "endpoint": "../etc", "window": "year", "features": [], "tests": "guess",
            "thresholds": {"psi": -1}, "min_rows": 0, "colour": "red"
        });
        let error = MonitorSpec::read("m", value).unwrap_err().to_string();
        for named in [
            "`../etc`",
            "window",
            "features",
            "tests",
            "`psi` is -1",
            "min_rows",
            "colour",
        ] {
            assert!(error.contains(named), "{named}: {error}");
        }
        let error = MonitorSpec::read("m", json!({})).unwrap_err().to_string();
        assert!(
            error.contains("endpoint is missing") && error.contains("window is missing"),
            "{error}"
        );
        let error = MonitorSpec::read("m", json!([1])).unwrap_err().to_string();
        assert_eq!(error, "monitor `m` is not valid: the spec must be an object");
    }
}
