//! Drift between two raw columns, value by value, with the definitions of Evidently 0.7, odd ones included:
//!
//! * NaN, null and infinite values are dropped first. No minimum number of rows: one value a side is judged.
//! * `psi`, `jensenshannon` of numbers: the pooled sample is cut into equal widths by Sturges' rule (NumPy's, where columns of
//!   whole numbers get no bin narrower than 1) if the reference has over 20 different values; else every value is a bin.
//! * `psi`: an empty bin gets 0.0001, or a millionth of the side's smallest share where that is at most 0.0001.
//! * `hellinger` of numbers: Sturges' rule over the different pooled values instead of all of them.
//! * `wasserstein`: divided by the reference's population standard deviation, by at least 0.001.
//! * `chisquare`: one-sample, with the reference's counts scaled to the current size; a value that is new gives 0. With one
//!   value on both sides SciPy gives NaN and Evidently no drift; here it is 1.
//! * `z`: share of the values other than the smallest.
//! * `ks`: drift at `p <= threshold`, the other p-values at `p < threshold`.
//!
//! Text is always compared by value (Evidently trains a domain classifier for columns declared as free text). `linf` is not
//! Evidently's; it takes the bins of `psi`. Numbers are compared as doubles: Evidently's results for columns of 32-bit floats
//! carry their rounding, these do not.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, RecordBatch};
use rayon::prelude::*;

use super::{
    ColumnDrift, DatasetDrift, DriftOptions, DriftTest, FEW_DISTINCT_VALUES, MIN_NORM, Outcome, VALUE_BINS, choose,
    unjudged, with_missing,
};
use crate::{
    distance,
    error::{Error, Result},
    kolmogorov,
    profile::{ColumnKind, Moments},
    profiler::{for_each_chunk_of_numbers, for_each_text, kind_of},
};

/// An empty bin's share where the side's smallest share is no larger: a millionth of that.
const SMALL_SHARE_DIVISOR: f64 = 1e6;

/// Compares two sets of rows column by column, columns in parallel. Memory: the values of one column of both sides for each
/// thread.
///
/// # Errors
/// Options out of range, or a test named for a column that it is not defined for.
pub fn exact_drift(reference: &[RecordBatch], current: &[RecordBatch], options: &DriftOptions) -> Result<DatasetDrift> {
    options.validate()?;
    let names: Vec<String> = names_of(reference)
        .union(&names_of(current))
        .filter(|name| options.wants(name))
        .cloned()
        .collect();
    let columns = names
        .par_iter()
        .map(|name| {
            let test = options.test_of(name);
            match (chunks_of(reference, name), chunks_of(current, name)) {
                (before, now) if !before.is_empty() && !now.is_empty() => {
                    exact_column_drift(name, &before, &now, options)
                }
                (before, _) if !before.is_empty() => Ok(unjudged(name, options, test, Outcome::OnlyInReference)),
                _ => Ok(unjudged(name, options, test, Outcome::OnlyInCurrent)),
            }
        })
        .collect::<Result<_>>()?;
    Ok(DatasetDrift::of(columns))
}

fn names_of(batches: &[RecordBatch]) -> BTreeSet<String> {
    let fields = batches.iter().flat_map(|batch| batch.schema_ref().fields());
    fields.map(|field| field.name().clone()).collect()
}

fn chunks_of(batches: &[RecordBatch], name: &str) -> Vec<ArrayRef> {
    let columns = batches.iter().filter_map(|batch| batch.column_by_name(name));
    columns.cloned().collect()
}

/// Compares the chunks of one column.
///
/// # Errors
/// As [`exact_drift`].
pub fn exact_column_drift(
    name: &str,
    reference: &[ArrayRef],
    current: &[ArrayRef],
    options: &DriftOptions,
) -> Result<ColumnDrift> {
    let asked = options.test_of(name);
    let categorical = options.categorical.contains(name);
    let before = Side::read(name, reference, categorical)?;
    let now = Side::read(name, current, categorical)?;
    let missing = (before.missing_share(), now.missing_share());
    let judge = |test: DriftTest, value: Option<f64>, outcome: Outcome| {
        let mut drift = unjudged(name, options, test, outcome);
        drift.value = value;
        drift.drifted = value.is_some_and(|v| drift.compare.is_drift(v, drift.threshold));
        with_missing(drift, options, missing.0, missing.1)
    };
    let outcome = match (before.kind, now.kind) {
        (None, _) | (_, None) => Some(Outcome::TooFewRows),
        (Some(a), Some(b)) if a != b => Some(Outcome::KindChanged),
        (Some(ColumnKind::Other), _) => Some(Outcome::NotComparable),
        (Some(ColumnKind::Timestamp), _) if asked == DriftTest::Auto => Some(Outcome::Timestamp),
        _ => None,
    };
    if let Some(outcome) = outcome {
        return Ok(judge(asked, None, outcome));
    }
    if before.values.len() == 0 || now.values.len() == 0 {
        return Ok(judge(asked, None, Outcome::TooFewRows));
    }
    let whole = before.whole && now.whole;
    let kind = before.kind.unwrap_or(ColumnKind::Other);
    let (test, value) = match (before.values, now.values) {
        (Values::Numbers(before), Values::Numbers(now)) => numbers_drift(asked, before, now, whole),
        (Values::Texts(before), Values::Texts(now)) => texts_drift(asked, &before, &now),
        _ => return Ok(judge(asked, None, Outcome::KindChanged)),
    };
    let value = value.ok_or_else(|| Error::TestNotApplicable {
        column: name.to_owned(),
        test,
        kind,
        remedy: "psi, jensenshannon, hellinger, chisquare, linf or auto",
    })?;
    Ok(judge(test, Some(value), Outcome::Tested))
}

enum Values {
    Numbers(Vec<f64>),
    Texts(BTreeMap<String, u64>),
}

impl Values {
    fn len(&self) -> u64 {
        match self {
            Self::Numbers(numbers) => numbers.len() as u64,
            Self::Texts(counts) => counts.values().sum(),
        }
    }
}

/// One side's column.
struct Side {
    /// `None` without any value.
    kind: Option<ColumnKind>,
    rows: u64,
    present: u64,
    /// Whether the column is of whole numbers without gaps (with gaps it is floating point in pandas).
    whole: bool,
    values: Values,
}

impl Side {
    fn read(name: &str, chunks: &[ArrayRef], categorical: bool) -> Result<Self> {
        let with_values = chunks.iter().find(|chunk| chunk.logical_null_count() < chunk.len());
        let kind = with_values.map(|chunk| kind_of(chunk.data_type()));
        let mut side = Self {
            kind,
            rows: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            present: 0,
            whole: true,
            values: Values::Numbers(Vec::new()),
        };
        let mut numbers = Vec::new();
        let mut texts: BTreeMap<String, u64> = BTreeMap::new();
        for chunk in chunks {
            let nulls = chunk.logical_null_count();
            side.whole &= nulls == 0 && chunk.data_type().is_integer();
            if nulls == chunk.len() {
                continue;
            }
            if kind != Some(kind_of(chunk.data_type())) {
                return Err(Error::KindMismatch {
                    column: name.to_owned(),
                    expected: kind.unwrap_or(ColumnKind::Other),
                    found: kind_of(chunk.data_type()),
                });
            }
            match kind {
                Some(ColumnKind::Numeric | ColumnKind::Timestamp) => {
                    for_each_chunk_of_numbers(chunk, &mut |values| {
                        for &value in values {
                            side.present += u64::from(!value.is_nan());
                            if value.is_finite() {
                                numbers.push(value + 0.0);
                            }
                        }
                    })?;
                }
                Some(ColumnKind::Text | ColumnKind::Boolean) => {
                    side.present += for_each_text(chunk, &mut |text, weight| {
                        if let Some(count) = texts.get_mut(text) {
                            *count += weight;
                        } else if weight > 0 {
                            texts.insert(text.to_owned(), weight);
                        }
                    })?;
                }
                _ => side.present += (chunk.len() - nulls) as u64,
            }
        }
        let is_text = matches!(kind, Some(ColumnKind::Text | ColumnKind::Boolean));
        side.values = if is_text {
            Values::Texts(texts)
        } else if categorical {
            // Names that sort as the numbers do, so that the z-test's smallest value stays the smallest.
            Values::Texts(runs(&sorted(numbers)).into_iter().map(name_of_number).collect())
        } else {
            Values::Numbers(numbers)
        };
        Ok(side)
    }

    fn missing_share(&self) -> Option<f64> {
        (self.rows > 0).then(|| 1.0 - self.present as f64 / self.rows as f64)
    }
}

/// A text for each number; texts sort as the numbers do.
fn name_of_number((value, count): (f64, u64)) -> (String, u64) {
    let bits = value.to_bits();
    let ordered = if value.is_sign_negative() {
        !bits
    } else {
        bits | (1 << 63)
    };
    (format!("{ordered:016x}"), count)
}

fn texts_drift(
    asked: DriftTest,
    reference: &BTreeMap<String, u64>,
    current: &BTreeMap<String, u64>,
) -> (DriftTest, Option<f64>) {
    let keys: BTreeSet<&String> = reference.keys().chain(current.keys()).collect();
    let count = |side: &BTreeMap<String, u64>| -> Vec<u64> {
        keys.iter().map(|&key| side.get(key).copied().unwrap_or(0)).collect()
    };
    let (before, now) = (count(reference), count(current));
    let test = match asked {
        DriftTest::Auto => choose(false, before.iter().sum(), keys.len() as u64),
        test => test,
    };
    (test, counts_drift(test, &before, &now))
}

/// A test of counts, cells in ascending order of their values; `None` for tests of numbers.
fn counts_drift(test: DriftTest, before: &[u64], now: &[u64]) -> Option<f64> {
    let (p, q) = (distance::shares(before), distance::shares(now));
    Some(match test {
        DriftTest::Psi => distance::psi(&without_zeros(p), &without_zeros(q)),
        DriftTest::JensenShannon => distance::jensen_shannon(&p, &q),
        DriftTest::Hellinger => distance::hellinger(&p, &q),
        DriftTest::Linf => distance::l_infinity(&p, &q),
        DriftTest::ChiSquare => distance::chi_square_one_sample(before, now),
        DriftTest::Z => {
            let (n, m): (u64, u64) = (before.iter().sum(), now.iter().sum());
            distance::z_test(before[0], n, now[0], m)
        }
        DriftTest::Auto | DriftTest::Ks | DriftTest::Wasserstein => return None,
    })
}

fn without_zeros(mut shares: Vec<f64>) -> Vec<f64> {
    let smallest = shares
        .iter()
        .copied()
        .filter(|&share| share > 0.0)
        .fold(f64::INFINITY, f64::min);
    let stand_in = if smallest <= distance::PSI_FLOOR {
        smallest / SMALL_SHARE_DIVISOR
    } else {
        distance::PSI_FLOOR
    };
    shares
        .iter_mut()
        .filter(|share| **share == 0.0)
        .for_each(|share| *share = stand_in);
    shares
}

/// Both sides hold at least one finite number.
fn numbers_drift(asked: DriftTest, before: Vec<f64>, now: Vec<f64>, whole: bool) -> (DriftTest, Option<f64>) {
    let test = match asked {
        DriftTest::Auto => {
            let pooled = before.iter().chain(&now).copied();
            choose(
                true,
                before.len() as u64,
                distinct_up_to(pooled, FEW_DISTINCT_VALUES + 1),
            )
        }
        test => test,
    };
    let value = match test {
        DriftTest::Ks | DriftTest::Wasserstein => points_drift(test, before, now),
        DriftTest::Psi | DriftTest::JensenShannon | DriftTest::Linf
            if distinct_up_to(before.iter().copied(), VALUE_BINS + 1) > VALUE_BINS =>
        {
            let pooled = before.len() + now.len();
            let edges = sturges_edges(range_of(&before, &now), pooled, whole);
            let counts = (histogram(&before, &edges), histogram(&now, &edges));
            counts_drift(test, &counts.0, &counts.1)
        }
        DriftTest::Hellinger => Some(hellinger_of_numbers(before, now, whole)),
        _ => {
            let (before, now) = counts_by_value(before, now);
            counts_drift(test, &before, &now)
        }
    };
    (test, value)
}

fn points_drift(test: DriftTest, before: Vec<f64>, now: Vec<f64>) -> Option<f64> {
    let norm = Moments::of(&before).std_dev()?.max(MIN_NORM);
    let (before, now) = (sorted(before), sorted(now));
    let difference = distance::cumulative_difference(
        before.iter().map(|&value| (value, 1)),
        now.iter().map(|&value| (value, 1)),
    );
    Some(if test == DriftTest::Ks {
        let (m, n) = (before.len() as u64, now.len() as u64);
        kolmogorov::two_sample_p_value(difference.largest, m, n)
    } else {
        difference.area / norm
    })
}

fn hellinger_of_numbers(before: Vec<f64>, now: Vec<f64>, whole: bool) -> f64 {
    let range = range_of(&before, &now);
    let (before, now) = (sorted(before), sorted(now));
    let mut distinct = [before.as_slice(), now.as_slice()].concat();
    distinct.sort_unstable_by(f64::total_cmp);
    distinct.dedup();
    if distinct.len() < 2 {
        return 0.0;
    }
    let edges = sturges_edges(range, distinct.len(), whole);
    let (p, q) = (histogram(&before, &edges), histogram(&now, &edges));
    distance::hellinger(&distance::shares(&p), &distance::shares(&q))
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Each value of an ascending list with its count.
fn runs(sorted: &[f64]) -> Vec<(f64, u64)> {
    sorted
        .chunk_by(|a, b| a.total_cmp(b).is_eq())
        .map(|run| (run[0], run.len() as u64))
        .collect()
}

fn counts_by_value(before: Vec<f64>, now: Vec<f64>) -> (Vec<u64>, Vec<u64>) {
    super::profiles::align(&runs(&sorted(before)), &runs(&sorted(now)))
}

/// Number of different values, counted up to `limit`.
fn distinct_up_to(values: impl Iterator<Item = f64>, limit: u64) -> u64 {
    let mut seen: Vec<f64> = Vec::with_capacity(limit as usize);
    for value in values {
        if let Err(place) = seen.binary_search_by(|known| known.total_cmp(&value)) {
            seen.insert(place, value);
            if seen.len() as u64 >= limit {
                break;
            }
        }
    }
    seen.len() as u64
}

fn range_of(before: &[f64], now: &[f64]) -> (f64, f64) {
    before
        .iter()
        .chain(now)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (low.min(value), high.max(value))
        })
}

/// Edges of equal widths by Sturges' rule, as NumPy's `histogram_bin_edges` computes them, in the same order of operations so
/// that values on an edge fall on the same side.
fn sturges_edges((low, high): (f64, f64), rows: usize, whole: bool) -> Vec<f64> {
    let range = high - low;
    let mut width = range / ((rows as f64).log2() + 1.0);
    if whole && width < 1.0 {
        width = 1.0;
    }
    let bins = ((range / width).ceil() as usize).max(1);
    let step = range / bins as f64;
    let mut edges: Vec<f64> = (0..bins).map(|i| i as f64 * step + low).collect();
    edges.push(high);
    edges
}

/// Counts over ascending edges of about equal distance; a bin holds its left edge, the last one its right edge too.
fn histogram(values: &[f64], edges: &[f64]) -> Vec<u64> {
    let bins = edges.len() - 1;
    let low = edges[0];
    let per_width = bins as f64 / (edges[bins] - low);
    let mut counts = vec![0; bins];
    for &value in values {
        // The quotient may be off by one beside an edge: the edges decide.
        let mut bin = (((value - low) * per_width) as usize).min(bins - 1);
        while bin > 0 && value < edges[bin] {
            bin -= 1;
        }
        while bin + 1 < bins && value >= edges[bin + 1] {
            bin += 1;
        }
        counts[bin] += 1;
    }
    counts
}
