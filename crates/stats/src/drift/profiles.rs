//! Drift between two profiles.
//!
//! Numeric columns are compared over the reference's deciles with open ends (value by value where the reference has few
//! different ones), text by value. Verdicts allow for chance: a distance of samples is over zero even when nothing changed,
//! and the smaller the window the more, so a window drifts only when its value is beyond the threshold by more than that.

use std::collections::BTreeSet;

use super::{
    ColumnDrift, DatasetDrift, DriftOptions, DriftTest, MIN_NORM, Outcome, VALUE_BINS, choose, unjudged, with_missing,
};
use crate::{
    distance,
    error::{Error, Result},
    kolmogorov,
    profile::{ColumnKind, ColumnProfile, NumericProfile, Profile},
};

/// How many times the expected square of an unchanged window's distance is allowed for on top of the threshold's: about
/// one unchanged window in a few hundred stays over it at the smallest window, practically none at larger ones.
const CHANCE_FACTOR: f64 = 2.0;
/// Upper bound of an unchanged window's normed Wasserstein distance times the square root of its size, for distributions
/// with tails like the normal one's: a shift of the mean of 2.5 standard errors.
const WASSERSTEIN_CHANCE: f64 = 2.5;
/// The same for the L-infinity distance: three standard deviations of a share of one half.
const L_INFINITY_CHANCE: f64 = 1.5;

/// Compares two profiles column by column. `current` should have been counted over the reference's
/// [`binnings`](Profile::binnings); where it was not, its quantile sketch stands in, with its rank error.
///
/// # Errors
/// Options out of range, or a test named for a column that it is not defined for.
pub fn profile_drift(reference: &Profile, current: &Profile, options: &DriftOptions) -> Result<DatasetDrift> {
    options.validate()?;
    let names: BTreeSet<&String> = reference
        .columns
        .keys()
        .chain(current.columns.keys())
        .filter(|name| options.wants(name))
        .collect();
    let columns = names
        .into_iter()
        .map(|name| {
            let test = options.test_of(name);
            match (reference.columns.get(name), current.columns.get(name)) {
                (Some(reference), Some(current)) => column_drift(name, reference, current, options),
                (Some(_), None) => Ok(unjudged(name, options, test, Outcome::OnlyInReference)),
                _ => Ok(unjudged(name, options, test, Outcome::OnlyInCurrent)),
            }
        })
        .collect::<Result<_>>()?;
    Ok(DatasetDrift::of(columns))
}

fn column_drift(
    name: &str,
    reference: &ColumnProfile,
    current: &ColumnProfile,
    options: &DriftOptions,
) -> Result<ColumnDrift> {
    let drift = compare(name, reference, current, options)?;
    let (before, now) = (reference.missing_share(), current.missing_share());
    let drift = with_missing(drift, options, before, now);
    // The share of missing values is a sample's as well.
    let small = current.count + current.missing < options.min_rows;
    Ok(ColumnDrift {
        missing_drifted: drift.missing_drifted && !small,
        ..drift
    })
}

fn compare(
    name: &str,
    reference: &ColumnProfile,
    current: &ColumnProfile,
    options: &DriftOptions,
) -> Result<ColumnDrift> {
    let asked = options.test_of(name);
    let sides = Sides::new(reference, current, options.categorical.contains(name));
    let (before, now) = sides.rows();
    if before.min(now) < options.min_rows.max(1) {
        return Ok(unjudged(name, options, asked, Outcome::TooFewRows));
    }
    if reference.kind != current.kind {
        return Ok(unjudged(name, options, asked, Outcome::KindChanged));
    }
    let test = match (asked, reference.kind) {
        (_, ColumnKind::Other) => {
            return Ok(unjudged(name, options, asked, Outcome::NotComparable));
        }
        (DriftTest::Auto, ColumnKind::Timestamp) => {
            return Ok(unjudged(name, options, asked, Outcome::Timestamp));
        }
        (DriftTest::Auto, _) if sides.has_too_many_values() => {
            return Ok(unjudged(name, options, asked, Outcome::TooManyValues));
        }
        (DriftTest::Auto, _) => choose(sides.numeric().is_some(), before, sides.distinct()),
        (test, _) => test,
    };
    let Some(found) = sides.apply(test) else {
        return Err(Error::TestNotApplicable {
            column: name.to_owned(),
            test,
            kind: reference.kind,
            remedy: "psi, jensenshannon, hellinger, chisquare, linf or auto",
        });
    };
    let threshold = options.threshold_of(name, test);
    let mut drift = unjudged(name, options, test, Outcome::Tested);
    drift.value = Some(found.value);
    drift.allowance = found.allowance(threshold);
    drift.drifted = drift.compare.is_drift(found.value, threshold + drift.allowance);
    Ok(drift)
}

/// A test's value, and what chance alone makes of it.
struct Found {
    value: f64,
    chance: Chance,
}

enum Chance {
    /// The test accounts for it.
    None,
    /// It adds to the value.
    Adds(f64),
    /// Its square adds to the square of the value.
    AddsSquare(f64),
}

impl Found {
    /// What to add to a threshold, so that an unchanged column does not reach it.
    fn allowance(&self, threshold: f64) -> f64 {
        match self.chance {
            Chance::None => 0.0,
            Chance::Adds(chance) => chance,
            Chance::AddsSquare(square) => threshold.hypot(square.sqrt()) - threshold,
        }
    }
}

/// The two sides of a comparison.
struct Sides<'a> {
    reference: &'a ColumnProfile,
    current: &'a ColumnProfile,
    categorical: bool,
}

impl<'a> Sides<'a> {
    fn new(reference: &'a ColumnProfile, current: &'a ColumnProfile, categorical: bool) -> Self {
        // Values can only be told apart where both sides list them all.
        let listed = |column: &ColumnProfile| column.numeric.as_ref().is_none_or(|numeric| numeric.values.is_some());
        Self {
            reference,
            current,
            categorical: categorical && listed(reference) && listed(current),
        }
    }

    /// Both sides as numbers, unless they are to be compared as names.
    fn numeric(&self) -> Option<(&'a NumericProfile, &'a NumericProfile)> {
        let both = self.reference.numeric.as_ref().zip(self.current.numeric.as_ref());
        both.filter(|_| !self.categorical)
    }

    /// Values that can be compared: infinite ones are left out.
    fn rows(&self) -> (u64, u64) {
        let rows = |column: &ColumnProfile| {
            column
                .numeric
                .as_ref()
                .map_or(column.count, |numeric| numeric.moments.count)
        };
        (rows(self.reference), rows(self.current))
    }

    fn has_too_many_values(&self) -> bool {
        self.reference.top_values.as_ref().is_some_and(|top| !top.is_exact())
    }

    /// Number of different values on both sides together; a lower bound where a side does not list its values.
    fn distinct(&self) -> u64 {
        match self.counts_by_value() {
            Some((reference, _)) => reference.len() as u64,
            None => self.reference.distinct().max(self.current.distinct()),
        }
    }

    /// Counts of each value of either side, where both list their values; of text, what is not listed is one more cell.
    fn counts_by_value(&self) -> Option<(Vec<u64>, Vec<u64>)> {
        if let Some((reference, current)) = self.reference.top_values.as_ref().zip(self.current.top_values.as_ref()) {
            let keys: BTreeSet<&String> = reference.values.keys().chain(current.values.keys()).collect();
            let mut cells: Vec<(u64, u64)> = keys
                .into_iter()
                .map(|key| {
                    let count = |top: &crate::values::TopValues| top.values.get(key).copied().unwrap_or(0);
                    (count(reference), count(current))
                })
                .collect();
            if reference.other + current.other > 0 {
                cells.push((reference.other, current.other));
            }
            return Some(cells.into_iter().unzip());
        }
        let (reference, current) = self.reference.numeric.as_ref().zip(self.current.numeric.as_ref())?;
        Some(align(reference.values.as_ref()?, current.values.as_ref()?))
    }

    /// Counts in cells that both sides share: single values, or bins of the reference.
    fn cells(&self) -> Option<(Vec<u64>, Vec<u64>)> {
        let few = self.reference.distinct() <= VALUE_BINS && self.current.distinct() <= VALUE_BINS;
        if (self.numeric().is_none() || few)
            && let Some(cells) = self.counts_by_value()
        {
            return Some(cells);
        }
        let (reference, current) = self.reference.numeric.as_ref().zip(self.current.numeric.as_ref())?;
        let binning = self.reference.binning()?;
        let counted = current
            .histogram
            .as_ref()
            .filter(|histogram| histogram.binning == binning);
        let now = counted.map_or_else(
            || binning.count(&current.points()),
            |histogram| histogram.counts.clone(),
        );
        Some((binning.count(&reference.points()), now))
    }

    /// `None` if the test is not defined for these columns.
    fn apply(&self, test: DriftTest) -> Option<Found> {
        let (before, now) = self.rows();
        // Both sides are samples: their variances add.
        let spread = 1.0 / before as f64 + 1.0 / now as f64;
        if test.is_numeric_only() {
            let (reference, current) = self.numeric()?;
            return Some(apply_to_points(test, reference, current, spread));
        }
        let (reference, current) = self.cells()?;
        let used = reference.iter().zip(&current).filter(|&(&r, &c)| r + c > 0).count();
        let freedom = (used as f64 - 1.0).max(0.0);
        let (p, q) = (distance::shares(&reference), distance::shares(&current));
        // For large samples n times the squared distances are chi-square distributed, hence the eighth.
        let square = Chance::AddsSquare(CHANCE_FACTOR * freedom * spread / 8.0);
        let (value, chance) = match test {
            DriftTest::Psi => {
                let floor = |shares: Vec<f64>| -> Vec<f64> {
                    shares.into_iter().map(|share| share.max(distance::PSI_FLOOR)).collect()
                };
                let value = distance::psi(&floor(p), &floor(q));
                (value, Chance::Adds(CHANCE_FACTOR * freedom * spread))
            }
            DriftTest::JensenShannon => (distance::jensen_shannon(&p, &q), square),
            DriftTest::Hellinger => (distance::hellinger(&p, &q), square),
            DriftTest::Linf => {
                let chance = L_INFINITY_CHANCE * L_INFINITY_CHANCE * spread;
                (distance::l_infinity(&p, &q), Chance::AddsSquare(chance))
            }
            DriftTest::ChiSquare => {
                let value = distance::chi_square_homogeneity(&reference, &current);
                (value, Chance::None)
            }
            DriftTest::Z if used <= 2 => {
                let value = distance::z_test(reference[0], before, current[0], now);
                (value, Chance::None)
            }
            _ => return None,
        };
        Some(Found { value, chance })
    }
}

fn apply_to_points(test: DriftTest, reference: &NumericProfile, current: &NumericProfile, spread: f64) -> Found {
    let (before, now) = (reference.points(), current.points());
    let difference = distance::cumulative_difference(before.iter().copied(), now.iter().copied());
    if test == DriftTest::Ks {
        // What the sketches may have added is taken off: significance must come from the data.
        let error = reference.rank_error() + current.rank_error();
        let statistic = (difference.largest - error).max(0.0);
        let (m, n) = (reference.moments.count, current.moments.count);
        return Found {
            value: kolmogorov::two_sample_p_value(statistic, m, n),
            chance: Chance::None,
        };
    }
    let norm = reference.moments.std_dev().unwrap_or(0.0).max(MIN_NORM);
    let chance = WASSERSTEIN_CHANCE * WASSERSTEIN_CHANCE * spread;
    Found {
        value: difference.area / norm,
        chance: Chance::AddsSquare(chance),
    }
}

/// Counts of two ascending tables, cell by cell over the values of both.
pub(super) fn align(reference: &[(f64, u64)], current: &[(f64, u64)]) -> (Vec<u64>, Vec<u64>) {
    let mut cells: Vec<(f64, u64, u64)> = reference.iter().map(|&(v, n)| (v, n, 0)).collect();
    cells.extend(current.iter().map(|&(v, n)| (v, 0, n)));
    cells.sort_by(|a, b| a.0.total_cmp(&b.0));
    cells.dedup_by(|next, kept| {
        let same = next.0.total_cmp(&kept.0).is_eq();
        if same {
            kept.1 += next.1;
            kept.2 += next.2;
        }
        same
    });
    cells.into_iter().map(|(_, r, c)| (r, c)).unzip()
}
