//! Profiles: mergeable summaries of sets of columns, small enough to store with every model version and every window.

use std::{collections::BTreeMap, fmt};

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::{
    distinct::{DistinctSketch, hash_number},
    error::{Error, Result},
    sketch::{QuantileSketch, collapse, quantile},
    values::{TopValues, ValueTable},
};

pub use crate::{
    profiler::{ProfileOptions, Profiler, kind_of},
    sketch::{DEFAULT_SKETCH_SIZE, MAX_SKETCH_SIZE, MIN_SKETCH_SIZE},
    values::{MAX_VALUE_BYTES, MAX_VALUES},
};

/// Version of the stored form; it changes when an older build could not read it.
pub const PROFILE_VERSION: u32 = 1;
/// Number of bins that a reference's quantiles make for comparing windows with it.
pub const REFERENCE_BINS: usize = 10;

/// What a column holds, as far as statistics are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// Integers, floating point, decimals, times of day and durations (in their own unit).
    Numeric,
    /// Dates and timestamps, as seconds since 1970-01-01 UTC.
    Timestamp,
    /// Text, plain or dictionary-encoded.
    Text,
    /// Truth values; counted as `false` and `true`.
    Boolean,
    /// Anything else (lists, structures, bytes): only counted.
    Other,
}

impl fmt::Display for ColumnKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Numeric => "numeric",
            Self::Timestamp => "timestamp",
            Self::Text => "text",
            Self::Boolean => "boolean",
            Self::Other => "other",
        })
    }
}

/// Summary of one set of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of this form, [`PROFILE_VERSION`].
    pub version: u32,
    /// Number of rows.
    pub rows: u64,
    /// Summary of each column by name.
    pub columns: BTreeMap<String, ColumnProfile>,
}

/// Summary of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnProfile {
    /// What the column holds.
    pub kind: ColumnKind,
    /// Number of values: neither null nor NaN.
    pub count: u64,
    /// Number of rows that are null or NaN.
    pub missing: u64,
    /// For numeric and timestamp columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numeric: Option<NumericProfile>,
    /// For text and boolean columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_values: Option<TopValues>,
    /// Estimate of the number of different values, once there are more than [`MAX_VALUES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_sketch: Option<DistinctSketch>,
}

/// Summary of a column's numbers. Infinite ones are counted in `infinite` and are in nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumericProfile {
    /// Number of infinite values.
    pub infinite: u64,
    /// Mean, spread and range.
    pub moments: Moments,
    /// Sketch of the distribution.
    pub quantiles: QuantileSketch,
    /// Every value with its count, ascending, while there are at most [`MAX_VALUES`] different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<(f64, u64)>>,
    /// Counts over bins that were given beforehand, usually by a reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

/// Mean and spread of finite numbers, merged in a numerically stable way (Chan, Golub, LeVeque 1979).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// Number of finite values.
    pub count: u64,
    /// Arithmetic mean; 0 without values.
    pub mean: f64,
    /// Sum of the squared differences from the mean.
    pub m2: f64,
    /// Smallest value; `None` without values.
    pub min: Option<f64>,
    /// Largest value; `None` without values.
    pub max: Option<f64>,
}

impl Moments {
    /// Moments of finite values.
    pub fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let count = values.len() as f64;
        // Summing the differences from one value keeps large offsets (timestamps) from eating the digits.
        let origin = values[0];
        let mut mean = origin + values.iter().map(|value| value - origin).sum::<f64>() / count;
        if !mean.is_finite() {
            mean = values.iter().map(|value| value / count).sum();
        }
        let m2: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        Self {
            count: values.len() as u64,
            mean,
            // Only finite numbers survive JSON.
            m2: m2.min(f64::MAX),
            min: values.iter().copied().reduce(f64::min),
            max: values.iter().copied().reduce(f64::max),
        }
    }

    /// Adds what `other` saw.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let (mine, theirs) = (self.count as f64, other.count as f64);
        let share = theirs / (mine + theirs);
        let difference = (other.mean - self.mean).clamp(f64::MIN, f64::MAX);
        self.mean += difference * share;
        self.m2 = (self.m2 + other.m2 + difference * difference * mine * share).min(f64::MAX);
        self.count += other.count;
        self.min = self.min.into_iter().chain(other.min).reduce(f64::min);
        self.max = self.max.into_iter().chain(other.max).reduce(f64::max);
    }

    /// Standard deviation of the values as a whole population (divisor `count`); `None` without values.
    pub fn std_dev(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.m2.max(0.0) / self.count as f64).sqrt())
    }
}

/// Bins over the real line with open ends, closed on the right: bin `i` holds the values in `(edges[i - 1], edges[i]]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Binning {
    edges: Vec<f64>,
}

impl Binning {
    /// Bins between the given inner edges; `edges.len() + 1` of them.
    ///
    /// # Errors
    /// Edges that are not finite or not strictly ascending.
    pub fn new(edges: Vec<f64>) -> Result<Self> {
        let ascending = edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || !edges.iter().all(|edge| edge.is_finite()) {
            return Err(Error::InvalidOption {
                option: "edges",
                value: format!("{edges:?}"),
                must_be: "finite numbers in strictly ascending order",
            });
        }
        Ok(Self { edges })
    }

    /// Bins of equal weight, as far as ties allow: the inner [`REFERENCE_BINS`]-quantiles of sorted weighted points.
    pub fn deciles(points: &[(f64, u64)]) -> Self {
        let mut edges: Vec<f64> = (1..REFERENCE_BINS)
            .filter_map(|i| quantile(points, i as f64 / REFERENCE_BINS as f64))
            .collect();
        edges.dedup();
        // Nothing lies above an edge at the largest value: the bin there would be empty in every reference.
        if edges.last() == points.last().map(|point| &point.0) {
            edges.pop();
        }
        Self { edges }
    }

    /// The inner edges.
    pub fn edges(&self) -> &[f64] {
        &self.edges
    }

    /// Number of bins.
    pub fn bins(&self) -> usize {
        self.edges.len() + 1
    }

    /// Index of the bin that holds a value.
    pub fn bin(&self, value: f64) -> usize {
        self.edges.partition_point(|&edge| edge < value)
    }

    /// Weight in each bin of weighted points.
    pub fn count(&self, points: &[(f64, u64)]) -> Vec<u64> {
        let mut counts = vec![0; self.bins()];
        for &(value, weight) in points {
            counts[self.bin(value)] += weight;
        }
        counts
    }
}

impl TryFrom<Vec<f64>> for Binning {
    type Error = Error;

    fn try_from(edges: Vec<f64>) -> Result<Self> {
        Self::new(edges)
    }
}

impl From<Binning> for Vec<f64> {
    fn from(binning: Binning) -> Self {
        binning.edges
    }
}

/// Counts of finite values over a [`Binning`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// The bins' inner edges.
    pub binning: Binning,
    /// Count of each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Empty counts over bins.
    pub fn new(binning: Binning) -> Self {
        let counts = vec![0; binning.bins()];
        Self { binning, counts }
    }
}

impl NumericProfile {
    /// The distribution as ascending values with weights: exact where the values fit, else from the sketch.
    pub fn points(&self) -> Vec<(f64, u64)> {
        self.values.clone().unwrap_or_else(|| self.quantiles.points())
    }

    /// Rank error of [`points`](Self::points), as a share.
    pub fn rank_error(&self) -> f64 {
        if self.values.is_some() {
            0.0
        } else {
            self.quantiles.rank_error()
        }
    }

    fn merge(&mut self, other: &Self, column: &str) -> Result<()> {
        match (&mut self.histogram, &other.histogram) {
            (Some(mine), Some(theirs)) if mine.binning == theirs.binning => {
                for (count, more) in mine.counts.iter_mut().zip(&theirs.counts) {
                    *count += more;
                }
            }
            (None, None) => {}
            // A part without values has nothing to count.
            (Some(_), None) if other.moments.count == 0 => {}
            (None, Some(theirs)) if self.moments.count == 0 => {
                self.histogram = Some(theirs.clone());
            }
            _ => {
                return Err(Error::BinningMismatch {
                    column: column.to_owned(),
                });
            }
        }
        self.infinite += other.infinite;
        self.moments.merge(&other.moments);
        self.quantiles.merge(&other.quantiles);
        self.quantiles.seal();
        self.values = self
            .values
            .take()
            .zip(other.values.as_ref())
            .and_then(|(mine, theirs)| merge_counts(&mine, theirs));
        Ok(())
    }
}

/// The sum of two ascending tables of counts, or `None` where it has over [`MAX_VALUES`] entries.
fn merge_counts(left: &[(f64, u64)], right: &[(f64, u64)]) -> Option<Vec<(f64, u64)>> {
    let mut merged: Vec<(f64, u64)> = left.iter().chain(right).copied().collect();
    collapse(&mut merged);
    (merged.len() <= MAX_VALUES).then_some(merged)
}

impl ColumnProfile {
    /// Share of rows without a value (0 to 1); `None` without rows.
    pub fn missing_share(&self) -> Option<f64> {
        let rows = self.count + self.missing;
        (rows > 0).then(|| self.missing as f64 / rows as f64)
    }

    /// Number of different values: exact up to [`MAX_VALUES`], then within a standard error of 3.25 %; infinite ones and
    /// columns of kind other are not counted.
    pub fn distinct(&self) -> u64 {
        if let Some(sketch) = &self.distinct_sketch {
            return sketch.estimate();
        }
        let numbers = self.numeric.as_ref().and_then(|n| n.values.as_ref());
        let texts = self.top_values.as_ref().map(|top| top.values.len());
        numbers.map(Vec::len).or(texts).unwrap_or(0) as u64
    }

    /// Smallest value with at least the share `q` (0 to 1) at or below it; `None` for columns without numbers.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        quantile(&self.numeric.as_ref()?.points(), q)
    }

    /// The bins that windows are compared over; `None` for columns without numbers.
    pub fn binning(&self) -> Option<Binning> {
        let numeric = self.numeric.as_ref()?;
        (numeric.moments.count > 0).then(|| Binning::deciles(&numeric.points()))
    }

    /// Adds the summary of further rows of the same column.
    ///
    /// # Errors
    /// Different kinds or binnings, where both have values.
    pub fn merge(&mut self, other: &Self, column: &str) -> Result<()> {
        // A column that had no value so far may have been of any kind.
        if self.kind != other.kind && other.count == 0 {
            self.missing += other.missing;
            return Ok(());
        }
        if self.kind != other.kind && self.count == 0 {
            let missing = self.missing;
            *self = other.clone();
            self.missing += missing;
            return Ok(());
        }
        if self.kind != other.kind {
            return Err(Error::KindMismatch {
                column: column.to_owned(),
                expected: self.kind,
                found: other.kind,
            });
        }
        if let (Some(mine), Some(theirs)) = (&mut self.numeric, &other.numeric) {
            let counted = [mine.values.clone(), theirs.values.clone()];
            mine.merge(theirs, column)?;
            if mine.values.is_none() {
                self.merge_distinct(other, &counted);
            }
        }
        if let (Some(mine), Some(theirs)) = (&mut self.top_values, &other.top_values) {
            let mut table = ValueTable::default();
            table.absorb(mine, self.distinct_sketch.as_ref());
            table.absorb(theirs, other.distinct_sketch.as_ref());
            (*mine, self.distinct_sketch) = table.finish();
        }
        self.count += other.count;
        self.missing += other.missing;
        Ok(())
    }

    fn merge_distinct(&mut self, other: &Self, counted: &[Option<Vec<(f64, u64)>>]) {
        let mine = self.distinct_sketch.get_or_insert_default();
        if let Some(theirs) = &other.distinct_sketch {
            mine.merge(theirs);
        }
        for &(value, _) in counted.iter().flatten().flatten() {
            mine.insert(hash_number(value));
        }
    }

    fn damage(&self) -> Option<&'static str> {
        if let Some(numeric) = &self.numeric {
            let finite = numeric.moments.count;
            if numeric.infinite.checked_add(finite) != Some(self.count) {
                return Some("counts do not add up");
            }
            if !numeric.quantiles.is_consistent() || numeric.quantiles.count() != finite {
                return Some("quantile sketch does not add up");
            }
            let listed = numeric.values.as_ref();
            if listed.is_some_and(|v| v.iter().map(|pair| pair.1).sum::<u64>() != finite) {
                return Some("values do not add up");
            }
            let histogram = numeric.histogram.as_ref();
            if histogram.is_some_and(|h| h.counts.len() != h.binning.bins()) {
                return Some("histogram has a wrong number of bins");
            }
        }
        let top = self.top_values.as_ref();
        if top.is_some_and(|top| top.total() != self.count || top.values.len() > MAX_VALUES) {
            return Some("top values do not add up");
        }
        None
    }
}

impl Profile {
    /// A profile of no rows.
    pub fn empty() -> Self {
        Self {
            version: PROFILE_VERSION,
            rows: 0,
            columns: BTreeMap::new(),
        }
    }

    /// Profile of rows that are in memory.
    ///
    /// # Errors
    /// As [`Profiler::new`] and [`Profiler::update`].
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>, options: &ProfileOptions) -> Result<Self> {
        let mut profiler = Profiler::new(options)?;
        for batch in batches {
            profiler.update(batch)?;
        }
        Ok(profiler.finish())
    }

    /// Adds the profile of further rows. Columns that only one side has are kept as they are.
    ///
    /// # Errors
    /// A column with two kinds or two binnings; `self` is then as before.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let mut columns = self.columns.clone();
        for (name, theirs) in &other.columns {
            if let Some(mine) = columns.get_mut(name) {
                mine.merge(theirs, name)?;
            } else {
                columns.insert(name.clone(), theirs.clone());
            }
        }
        self.columns = columns;
        self.rows += other.rows;
        Ok(())
    }

    /// The bins of every numeric column, for [`ProfileOptions::binnings`] of the windows to compare with this profile.
    pub fn binnings(&self) -> BTreeMap<String, Binning> {
        self.columns
            .iter()
            .filter_map(|(name, column)| Some((name.clone(), column.binning()?)))
            .collect()
    }

    /// The stored form.
    ///
    /// # Errors
    /// None in practice: the form has only text keys and finite numbers.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Text that is not a profile, a profile of another version, or one whose counts contradict each other.
    pub fn from_json(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(json)?;
        if version != PROFILE_VERSION {
            return Err(Error::ProfileVersion {
                found: version,
                supported: PROFILE_VERSION,
            });
        }
        let profile: Self = serde_json::from_str(json)?;
        for (name, column) in &profile.columns {
            if let Some(reason) = column.damage() {
                return Err(Error::DamagedProfile {
                    column: name.clone(),
                    reason,
                });
            }
        }
        Ok(profile)
    }
}
