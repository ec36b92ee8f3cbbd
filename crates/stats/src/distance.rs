//! Distances and tests between two distributions, as plain functions of shares, counts and sorted points.
//!
//! Shares are counts over their sum, cell by cell in the same order on both sides. Points are `(value, weight)` in ascending
//! order of value. Nothing here returns NaN for inputs that have weight on both sides.

use statrs::{
    distribution::{ChiSquared, ContinuousCDF},
    function::erf::erfc,
};

/// What stands for an empty cell in the population stability index, so that the logarithm is finite.
pub const PSI_FLOOR: f64 = 1e-4;
/// Cells whose expected count is smaller are pooled in [`chi_square_homogeneity`]: the statistic's distribution is not known
/// there (Cochran's rule).
pub const MIN_EXPECTED_COUNT: f64 = 5.0;

/// Each count as a share of their sum; all 0 where the sum is 0.
pub fn shares(counts: &[u64]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    let scale = if total == 0 { 0.0 } else { 1.0 / total as f64 };
    counts.iter().map(|&count| count as f64 * scale).collect()
}

/// Population stability index: `sum (p - q) ln(p / q)`; 0 for equal shares, no upper bound. The caller has replaced zeros.
pub fn psi(reference: &[f64], current: &[f64]) -> f64 {
    pairs(reference, current).map(|(p, q)| (p - q) * (p / q).ln()).sum()
}

/// Jensen-Shannon distance (the square root of the divergence, natural logarithm): 0 to `sqrt(ln 2)` = 0.8326.
pub fn jensen_shannon(reference: &[f64], current: &[f64]) -> f64 {
    let part = |p: f64, middle: f64| {
        if p > 0.0 { p * (p / middle).ln() } else { 0.0 }
    };
    let divergence: f64 = pairs(reference, current)
        .map(|(p, q)| {
            let middle = f64::midpoint(p, q);
            part(p, middle) + part(q, middle)
        })
        .sum();
    (divergence.max(0.0) / 2.0).sqrt()
}

/// Hellinger distance: 0 to 1.
pub fn hellinger(reference: &[f64], current: &[f64]) -> f64 {
    let overlap: f64 = pairs(reference, current).map(|(p, q)| (p * q).sqrt()).sum();
    (1.0 - overlap.clamp(0.0, 1.0)).sqrt()
}

/// Largest difference of one share: 0 to 1.
pub fn l_infinity(reference: &[f64], current: &[f64]) -> f64 {
    pairs(reference, current)
        .map(|(p, q)| (p - q).abs())
        .fold(0.0, f64::max)
}

fn pairs<'a>(p: &'a [f64], q: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    p.iter().copied().zip(q.iter().copied())
}

/// p-value of the chi-square test that two rows of counts come from one distribution (2 x k contingency table), cells of
/// low expectation pooled. 1 where fewer than two cells remain.
pub fn chi_square_homogeneity(reference: &[u64], current: &[u64]) -> f64 {
    let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (reference_total, current_total) = (sum(reference), sum(current));
    let total = reference_total + current_total;
    if reference_total == 0.0 || current_total == 0.0 {
        return 1.0;
    }
    let smaller = reference_total.min(current_total);
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let mut pool = (0.0, 0.0);
    for (&r, &c) in reference.iter().zip(current) {
        let (r, c) = (r as f64, c as f64);
        if (r + c) * smaller / total < MIN_EXPECTED_COUNT {
            pool = (pool.0 + r, pool.1 + c);
        } else {
            cells.push((r, c));
        }
    }
    if pool.0 + pool.1 > 0.0 {
        cells.push(pool);
    }
    let statistic: f64 = cells
        .iter()
        .map(|&(r, c)| {
            let expected = (r + c) * current_total / total;
            let other = (r + c) * reference_total / total;
            (c - expected).powi(2) / expected + (r - other).powi(2) / other
        })
        .sum();
    chi_square_p_value(statistic, cells.len())
}

/// p-value of the one-sample chi-square test of `current` against the reference's counts, scaled to its size. It takes the
/// reference for the truth and forgets that it is a sample too, so it finds drift too easily: kept because Evidently
/// computes it. A value that the reference never had makes it 0.
pub fn chi_square_one_sample(reference: &[u64], current: &[u64]) -> f64 {
    let scale = current.iter().sum::<u64>() as f64 / reference.iter().sum::<u64>() as f64;
    let statistic: f64 = reference
        .iter()
        .zip(current)
        .filter(|&(&r, &c)| r > 0 || c > 0)
        .map(|(&r, &c)| {
            let expected = r as f64 * scale;
            (c as f64 - expected).powi(2) / expected
        })
        .sum();
    chi_square_p_value(statistic, reference.len())
}

fn chi_square_p_value(statistic: f64, cells: usize) -> f64 {
    if cells < 2 {
        return 1.0;
    }
    if !statistic.is_finite() {
        return 0.0;
    }
    ChiSquared::new((cells - 1) as f64).map_or(1.0, |distribution| distribution.sf(statistic))
}

/// Two-sided p-value of the z-test that a value's share is the same on both sides, with pooled variance. 1 where the value
/// is all or nothing on both sides.
pub fn z_test(reference_hits: u64, reference_rows: u64, current_hits: u64, current_rows: u64) -> f64 {
    let (n, m) = (reference_rows as f64, current_rows as f64);
    let difference = reference_hits as f64 / n - current_hits as f64 / m;
    let pooled = (reference_hits + current_hits) as f64 / (n + m);
    let variance = pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m);
    if variance <= 0.0 || !variance.is_finite() {
        return 1.0;
    }
    erfc(difference.abs() / variance.sqrt() / std::f64::consts::SQRT_2)
}

/// Largest difference of the two cumulative distributions, and the area between them, of two ascending streams of points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CumulativeDifference {
    /// Kolmogorov-Smirnov statistic: 0 to 1.
    pub largest: f64,
    /// Wasserstein-1 (earth mover's) distance, in the values' own unit.
    pub area: f64,
}

/// Walks two ascending streams of weighted points once.
pub fn cumulative_difference(
    reference: impl Iterator<Item = (f64, u64)> + Clone,
    current: impl Iterator<Item = (f64, u64)> + Clone,
) -> CumulativeDifference {
    let reference_total: u64 = reference.clone().map(|point| point.1).sum();
    let current_total: u64 = current.clone().map(|point| point.1).sum();
    let mut difference = CumulativeDifference {
        largest: 0.0,
        area: 0.0,
    };
    let (mut left, mut right) = (reference.peekable(), current.peekable());
    let (mut below_left, mut below_right) = (0_u64, 0_u64);
    let mut previous: Option<f64> = None;
    loop {
        let next = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) => a.0.min(b.0),
            (Some(point), None) | (None, Some(point)) => point.0,
            (None, None) => break,
        };
        let gap = (below_left as f64 / reference_total as f64 - below_right as f64 / current_total as f64).abs();
        if let Some(previous) = previous {
            difference.largest = difference.largest.max(gap);
            difference.area += gap * (next - previous);
        }
        while let Some(point) = left.next_if(|point| point.0 <= next) {
            below_left += point.1;
        }
        while let Some(point) = right.next_if(|point| point.0 <= next) {
            below_right += point.1;
        }
        previous = Some(next);
    }
    difference
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REFERENCE: [u64; 4] = [500, 300, 150, 50];
    const CURRENT: [u64; 4] = [180, 130, 70, 20];

    fn near(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() <= 1e-10 * expected.abs().max(1e-3),
            "{value:e} is not {expected:e}"
        );
    }

    /// Computed with NumPy 2.4.6 and SciPy 1.17.1 on the same counts: the formulas written out for PSI and Hellinger,
    /// `scipy.spatial.distance.jensenshannon`, `scipy.stats.chi2_contingency(correction=False)`, `scipy.stats.chisquare`
    /// with scaled reference counts, and the pooled z-test with `scipy.stats.norm`.
    #[test]
    fn distances_and_tests_of_counts_equal_scipy() {
        let (p, q) = (shares(&REFERENCE), shares(&CURRENT));
        near(psi(&p, &q), 0.011_122_860_470_411_184);
        near(jensen_shannon(&p, &q), 0.037_276_131_885_980_36);
        near(hellinger(&p, &q), 0.037_281_813_188_560_06);
        near(l_infinity(&p, &q), 0.05);
        near(chi_square_homogeneity(&REFERENCE, &CURRENT), 0.363_487_364_650_687_1);
        near(chi_square_one_sample(&REFERENCE, &CURRENT), 0.212_290_287_360_132_7);
        near(z_test(520, 1_000, 180, 400), 0.017_960_477_526_078_655);
    }

    /// `scipy.stats.ks_2samp` and `scipy.stats.wasserstein_distance` of SciPy 1.17.1 on the same values.
    #[test]
    fn cumulative_differences_equal_scipy() {
        let reference = [(1.0, 1), (2.0, 2), (3.5, 1), (9.0, 1)];
        let current = [(2.0, 1), (4.0, 1), (4.25, 1)];
        let difference = cumulative_difference(reference.into_iter(), current.into_iter());
        near(difference.largest, 0.466_666_666_666_666_7);
        near(difference.area, 1.816_666_666_666_666_4);
    }

    #[test]
    fn cells_of_low_expectation_are_pooled() {
        let (reference, current) = ([900, 90, 4, 3, 3], [450, 45, 2, 2, 1]);
        let pooled = chi_square_homogeneity(&[900, 90, 10], &[450, 45, 5]);
        near(chi_square_homogeneity(&reference, &current), pooled);
    }

    #[test]
    fn one_value_on_both_sides_is_no_evidence() {
        near(chi_square_homogeneity(&[10], &[20]), 1.0);
        near(chi_square_one_sample(&[10], &[20]), 1.0);
        near(z_test(10, 10, 20, 20), 1.0);
        near(z_test(0, 10, 0, 20), 1.0);
    }

    #[test]
    fn a_value_that_is_new_ends_the_one_sample_test() {
        assert!(chi_square_one_sample(&[10, 0], &[10, 1]) < f64::MIN_POSITIVE);
    }

    proptest! {
        #[test]
        fn distances_are_zero_on_equals_symmetric_and_bounded(
            counts in prop::collection::vec((1_u64..1000, 0_u64..1000), 2..12)
        ) {
            let left: Vec<u64> = counts.iter().map(|pair| pair.0).collect();
            let right: Vec<u64> = counts.iter().map(|pair| pair.1 + 1).collect();
            let (p, q) = (shares(&left), shares(&right));
            for distance in [jensen_shannon, hellinger, l_infinity, psi] {
                prop_assert!(distance(&p, &p).abs() < 1e-7);
                prop_assert!((distance(&p, &q) - distance(&q, &p)).abs() < 1e-9);
                prop_assert!(distance(&p, &q) >= 0.0);
            }
            prop_assert!(jensen_shannon(&p, &q) <= std::f64::consts::LN_2.sqrt());
            prop_assert!(hellinger(&p, &q) <= 1.0);
            let p_value = chi_square_homogeneity(&left, &right);
            prop_assert!((0.0..=1.0).contains(&p_value));
        }

        #[test]
        fn a_shift_moves_the_area_by_the_shift(
            mut values in prop::collection::vec(-1000_i32..1000, 1..200), shift in 0_i32..500
        ) {
            values.sort_unstable();
            let points = |by: i32| {
                let moved: Vec<(f64, u64)> = values.iter().map(|v| (f64::from(v + by), 1)).collect();
                moved
            };
            let (reference, current) = (points(0), points(shift));
            let difference =
                cumulative_difference(reference.iter().copied(), current.iter().copied());
            prop_assert!((difference.area - f64::from(shift)).abs() < 1e-6);
            prop_assert!((0.0..=1.0).contains(&difference.largest));
        }
    }
}
