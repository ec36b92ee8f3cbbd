//! Whether a column's values have moved away from a reference.
//!
//! [`profile_drift`] compares two profiles: it is what monitoring does with every window, in time and memory that do not
//! depend on the number of rows. [`exact_drift`] compares raw columns value by value and gives the numbers that Evidently 0.7
//! gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod exact;
mod profiles;

pub use exact::{exact_column_drift, exact_drift};
pub use profiles::profile_drift;

/// References of at most this many rows are compared by tests of significance, larger ones by distances, which do not find
/// every trifle significant (Evidently 0.7's rule).
pub const SMALL_REFERENCE_ROWS: u64 = 1_000;
/// Numeric columns with at most this many different values are compared value by value in automatic mode.
pub const FEW_DISTINCT_VALUES: u64 = 5;
/// Numeric columns whose reference has at most this many different values are binned by value, not by range.
pub const VALUE_BINS: u64 = 20;
/// Windows with fewer values than this are not judged.
pub const DEFAULT_MIN_ROWS: u64 = 100;
/// The missing share of a column may change by this much before it is reported as drifted.
pub const DEFAULT_MISSING_THRESHOLD: f64 = 0.1;
/// Share of drifted columns from which a set of columns is commonly said to have drifted (Evidently 0.7's default).
pub const DATASET_DRIFT_SHARE: f64 = 0.5;
/// Threshold of the p-values: drift below it.
pub const P_VALUE_THRESHOLD: f64 = 0.05;
/// Threshold of the distances: drift from it on.
pub const DISTANCE_THRESHOLD: f64 = 0.1;
/// Threshold of the L-infinity distance: drift from it on.
pub const L_INFINITY_THRESHOLD: f64 = 0.3;
/// The Wasserstein distance is divided by the reference's standard deviation, but by no less than this.
pub const MIN_NORM: f64 = 0.001;

/// A way to compare two distributions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftTest {
    /// The test that fits the column and the size of the reference.
    #[default]
    Auto,
    /// Population stability index.
    Psi,
    /// Kolmogorov-Smirnov test, p-value; numeric columns.
    Ks,
    /// Wasserstein distance over the reference's standard deviation; numeric columns.
    Wasserstein,
    /// Jensen-Shannon distance, natural logarithm.
    JensenShannon,
    /// Hellinger distance.
    Hellinger,
    /// Chi-square test, p-value.
    ChiSquare,
    /// Largest difference of one value's (or bin's) share.
    Linf,
    /// z-test of the share of the first value, p-value; columns of two values.
    Z,
}

/// When a value of a test means drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Drift if the value is at the threshold or above: distances.
    AtLeast,
    /// Drift if the value is at the threshold or below.
    AtMost,
    /// Drift if the value is below the threshold.
    Below,
}

impl Compare {
    /// Whether `value` means drift.
    pub fn is_drift(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::AtLeast => value >= threshold,
            Self::AtMost => value <= threshold,
            Self::Below => value < threshold,
        }
    }
}

impl DriftTest {
    /// Every test that can be named.
    pub const ALL: [Self; 9] = [
        Self::Auto,
        Self::Psi,
        Self::Ks,
        Self::Wasserstein,
        Self::JensenShannon,
        Self::Hellinger,
        Self::ChiSquare,
        Self::Linf,
        Self::Z,
    ];

    /// The name used in configuration, results and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Psi => "psi",
            Self::Ks => "ks",
            Self::Wasserstein => "wasserstein",
            Self::JensenShannon => "jensenshannon",
            Self::Hellinger => "hellinger",
            Self::ChiSquare => "chisquare",
            Self::Linf => "linf",
            Self::Z => "z",
        }
    }

    /// When a value of this test means drift.
    pub fn compare(self) -> Compare {
        match self {
            Self::Ks => Compare::AtMost,
            Self::ChiSquare | Self::Z => Compare::Below,
            _ => Compare::AtLeast,
        }
    }

    /// The threshold where none is configured.
    pub fn default_threshold(self) -> f64 {
        match self {
            Self::Ks | Self::ChiSquare | Self::Z => P_VALUE_THRESHOLD,
            Self::Linf => L_INFINITY_THRESHOLD,
            _ => DISTANCE_THRESHOLD,
        }
    }

    /// Whether the test needs an order among the values.
    pub fn is_numeric_only(self) -> bool {
        matches!(self, Self::Ks | Self::Wasserstein)
    }
}

impl fmt::Display for DriftTest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for DriftTest {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|test| test.as_str() == name)
            .ok_or_else(|| Error::InvalidOption {
                option: "test",
                value: name.to_owned(),
                must_be: "auto, psi, ks, wasserstein, jensenshannon, hellinger, chisquare, linf or z",
            })
    }
}

/// How columns are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftOptions {
    /// The test for columns that have none of their own.
    pub test: DriftTest,
    /// Tests of single columns.
    pub tests: BTreeMap<String, DriftTest>,
    /// Threshold of `test`; its default when `None`. Not used with `auto` or for columns in `tests`.
    pub threshold: Option<f64>,
    /// Thresholds of single columns, in the meaning of the test that is applied to them.
    pub thresholds: BTreeMap<String, f64>,
    /// Only these columns; all of both sides when `None`.
    pub columns: Option<BTreeSet<String>>,
    /// Numeric columns that are names rather than quantities: compared value by value.
    pub categorical: BTreeSet<String>,
    /// Windows with fewer values of a column are not judged for it. Not used by exact drift.
    pub min_rows: u64,
    /// Largest change of a column's missing share that is not drift of it (0 to 1).
    pub missing_threshold: f64,
}

impl Default for DriftOptions {
    fn default() -> Self {
        Self {
            test: DriftTest::Auto,
            tests: BTreeMap::new(),
            threshold: None,
            thresholds: BTreeMap::new(),
            columns: None,
            categorical: BTreeSet::new(),
            min_rows: DEFAULT_MIN_ROWS,
            missing_threshold: DEFAULT_MISSING_THRESHOLD,
        }
    }
}

impl DriftOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A threshold that is negative or not finite, a missing threshold outside 0 to 1.
    pub fn validate(&self) -> Result<()> {
        for &threshold in self.threshold.iter().chain(self.thresholds.values()) {
            if !threshold.is_finite() || threshold < 0.0 {
                return Err(Error::InvalidOption {
                    option: "threshold",
                    value: threshold.to_string(),
                    must_be: "a finite number from 0",
                });
            }
        }
        if !(0.0..=1.0).contains(&self.missing_threshold) {
            return Err(Error::InvalidOption {
                option: "missing_threshold",
                value: self.missing_threshold.to_string(),
                must_be: "from 0 to 1",
            });
        }
        Ok(())
    }

    fn wants(&self, column: &str) -> bool {
        self.columns.as_ref().is_none_or(|columns| columns.contains(column))
    }

    fn test_of(&self, column: &str) -> DriftTest {
        self.tests.get(column).copied().unwrap_or(self.test)
    }

    /// The threshold of `applied`, which is the test asked for or what `auto` chose.
    fn threshold_of(&self, column: &str, applied: DriftTest) -> f64 {
        let own = self.thresholds.get(column).copied();
        let general = self
            .threshold
            .filter(|_| self.test_of(column) == applied && !self.tests.contains_key(column));
        own.or(general).unwrap_or_else(|| applied.default_threshold())
    }
}

/// What came of comparing a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The test gave a verdict.
    Tested,
    /// One side has fewer values than the configured minimum, or none at all.
    TooFewRows,
    /// The reference has more different values than a profile lists, so that it is free text or an identifier; name a test
    /// to compare it all the same.
    TooManyValues,
    /// Time moves by nature; name a test to compare it all the same.
    Timestamp,
    /// The type has no test.
    NotComparable,
    /// The two sides hold values of different kinds.
    KindChanged,
    /// The column is missing from the current data.
    OnlyInReference,
    /// The column is missing from the reference.
    OnlyInCurrent,
}

/// Drift of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnDrift {
    /// The column's name.
    pub column: String,
    /// The test that was applied; the one asked for if none was.
    pub test: DriftTest,
    /// What the test gave: a distance or a p-value; `None` if it was not applied.
    pub value: Option<f64>,
    /// The threshold it was compared with.
    pub threshold: f64,
    /// What chance alone may add to the value at this number of rows: a distance drifts from `threshold + allowance` on. 0 for
    /// p-values, which account for chance themselves, and for exact drift.
    pub allowance: f64,
    /// Whether drift lies above or below the threshold.
    pub compare: Compare,
    /// The verdict; false unless `outcome` is `tested`.
    pub drifted: bool,
    /// Whether there is a verdict, and why not.
    pub outcome: Outcome,
    /// Share of rows without a value in the current data minus that in the reference (-1 to 1); `None` where a side has no
    /// rows.
    pub missing_change: Option<f64>,
    /// Whether the missing share changed by more than is allowed. It is no part of `drifted`.
    pub missing_drifted: bool,
}

/// Drift of a set of columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetDrift {
    /// Every column of either side, in order of their names.
    pub columns: Vec<ColumnDrift>,
    /// Number of columns with a verdict.
    pub tested: u64,
    /// Number of columns that drifted.
    pub drifted: u64,
    /// `drifted / tested` (0 to 1); `None` without any verdict.
    pub drifted_share: Option<f64>,
}

impl DatasetDrift {
    fn of(columns: Vec<ColumnDrift>) -> Self {
        let count = |keep: fn(&ColumnDrift) -> bool| columns.iter().filter(|column| keep(column)).count() as u64;
        let tested = count(|column| column.outcome == Outcome::Tested);
        let drifted = count(|column| column.drifted);
        Self {
            columns,
            tested,
            drifted,
            drifted_share: (tested > 0).then(|| drifted as f64 / tested as f64),
        }
    }

    /// The drift of one column.
    pub fn find_column(&self, name: &str) -> Option<&ColumnDrift> {
        self.columns.iter().find(|column| column.column == name)
    }
}

/// A column that has no verdict.
fn unjudged(column: &str, options: &DriftOptions, test: DriftTest, outcome: Outcome) -> ColumnDrift {
    ColumnDrift {
        column: column.to_owned(),
        test,
        value: None,
        threshold: options.threshold_of(column, test),
        allowance: 0.0,
        compare: test.compare(),
        drifted: false,
        outcome,
        missing_change: None,
        missing_drifted: false,
    }
}

/// Fills in the change of the missing share.
fn with_missing(
    mut drift: ColumnDrift,
    options: &DriftOptions,
    reference: Option<f64>,
    current: Option<f64>,
) -> ColumnDrift {
    drift.missing_change = current.zip(reference).map(|(now, before)| now - before);
    drift.missing_drifted = drift
        .missing_change
        .is_some_and(|change| change.abs() > options.missing_threshold);
    drift
}

/// Evidently 0.7's choice for a reference of `rows` values and `distinct` different values on both sides.
fn choose(numeric: bool, rows: u64, distinct: u64) -> DriftTest {
    let by_value = !numeric || distinct <= FEW_DISTINCT_VALUES;
    match (rows <= SMALL_REFERENCE_ROWS, by_value) {
        (true, true) if distinct <= 2 => DriftTest::Z,
        (true, true) => DriftTest::ChiSquare,
        (true, false) => DriftTest::Ks,
        (false, true) => DriftTest::JensenShannon,
        (false, false) => DriftTest::Wasserstein,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for test in DriftTest::ALL {
            assert_eq!(test.as_str().parse::<DriftTest>().unwrap(), test);
            let json = serde_json::to_string(&test).unwrap();
            assert_eq!(json, format!("\"{test}\""));
        }
        assert!("kolmogorov".parse::<DriftTest>().is_err());
    }

    #[test]
    fn automatic_choice_follows_size_and_kind() {
        let expected = [
            (true, 1_000, 6, DriftTest::Ks),
            (true, 1_000, 5, DriftTest::ChiSquare),
            (true, 1_000, 2, DriftTest::Z),
            (false, 1_000, 40, DriftTest::ChiSquare),
            (true, 1_001, 6, DriftTest::Wasserstein),
            (true, 1_001, 5, DriftTest::JensenShannon),
            (false, 1_001, 2, DriftTest::JensenShannon),
        ];
        for (numeric, rows, distinct, test) in expected {
            assert_eq!(choose(numeric, rows, distinct), test);
        }
    }

    #[test]
    fn thresholds_of_a_column_go_before_the_general_one() {
        let options = DriftOptions {
            test: DriftTest::Psi,
            threshold: Some(0.2),
            tests: [("b".to_owned(), DriftTest::Ks)].into(),
            thresholds: [("c".to_owned(), 0.3)].into(),
            ..DriftOptions::default()
        };
        let threshold = |column| options.threshold_of(column, options.test_of(column));
        for (column, expected) in [("a", 0.2), ("b", 0.05), ("c", 0.3)] {
            assert!((threshold(column) - expected).abs() < f64::EPSILON, "{column}");
        }
    }

    #[test]
    fn options_refuse_unknown_fields_and_bad_numbers() {
        assert!(serde_json::from_str::<DriftOptions>(r#"{"tresholds": {}}"#).is_err());
        let options: DriftOptions = serde_json::from_str(r#"{"threshold": -1}"#).unwrap();
        assert!(options.validate().is_err());
        let options: DriftOptions = serde_json::from_str(r#"{"missing_threshold": 2}"#).unwrap();
        assert!(options.validate().is_err());
        assert!(DriftOptions::default().validate().is_ok());
    }
}
