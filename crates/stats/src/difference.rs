//! Whether the means of two samples differ, and by how much.

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::profile::Moments;

/// The difference of two means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanDifference {
    /// The second mean minus the first.
    pub difference: f64,
    /// Where its confidence interval begins and ends.
    pub interval: (f64, f64),
    /// Two-sided p-value of the test that there is none.
    pub p_value: f64,
}

/// Welch's t-test of two means, whose variances may differ (Welch 1947, with the degrees of freedom of Satterthwaite 1946), and
/// the interval that has the difference in it with the given confidence (0 to 1). `None` where one of them has less than two
/// values. Of values that are 0 or 1 the means are shares.
pub fn mean_difference(first: &Moments, second: &Moments, confidence: f64) -> Option<MeanDifference> {
    if first.count < 2 || second.count < 2 {
        return None;
    }
    let difference = second.mean - first.mean;
    let freedom = |moments: &Moments| (moments.count - 1) as f64;
    let error = |moments: &Moments| moments.m2.max(0.0) / freedom(moments) / moments.count as f64;
    let (one, other) = (error(first), error(second));
    let variance = one + other;
    if variance <= 0.0 {
        // All values of each are the same.
        return Some(MeanDifference {
            difference,
            interval: (difference, difference),
            p_value: if difference == 0.0 { 1.0 } else { 0.0 },
        });
    }
    let degrees = variance * variance / (one * one / freedom(first) + other * other / freedom(second));
    let distribution = StudentsT::new(0.0, 1.0, degrees).ok()?;
    let deviation = variance.sqrt();
    let reach = distribution.inverse_cdf(f64::midpoint(1.0, confidence)) * deviation;
    Some(MeanDifference {
        difference,
        interval: (difference - reach, difference + reach),
        p_value: (2.0 * distribution.sf(difference.abs() / deviation)).min(1.0),
    })
}

/// The p-values of several tests, each adjusted so that the chance of a false alarm among all of them stays what it is of
/// one (Holm 1979), in the same order.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&one, &other| p_values[one].total_cmp(&p_values[other]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        let factor = (p_values.len() - rank) as f64;
        largest = largest.max((p_values[index] * factor).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Quantiles are found step by step, to about eight digits.
    fn near(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() <= 1e-7 * expected.abs(),
            "{value:e} is not {expected:e}"
        );
    }

    /// `scipy.stats.ttest_ind(second, first, equal_var=False)` and its `confidence_interval`, of SciPy 1.17.1.
    #[test]
    fn differences_equal_scipy() {
        let first = Moments::of(&[2.1, 3.4, 1.9, 5.6, 4.4, 2.2]);
        let second = Moments::of(&[4.9, 6.1, 5.5, 3.8]);
        let found = mean_difference(&first, &second, 0.95).unwrap();
        near(found.difference, 1.808_333_333_333_334);
        near(found.p_value, 0.049_480_209_296_414_106);
        near(found.interval.0, 0.005_236_318_742_358_081_5);
        near(found.interval.1, 3.611_430_347_924_31);
        let shares = |hits: usize, rows: usize| {
            let values: Vec<f64> = (0..rows).map(|row| f64::from(u8::from(row < hits))).collect();
            Moments::of(&values)
        };
        let found = mean_difference(&shares(430, 1000), &shares(250, 480), 0.9).unwrap();
        near(found.difference, 0.090_833_333_333_333_38);
        near(found.p_value, 0.001_071_947_123_754_905_8);
        near(found.interval.0, 0.045_253_435_040_567_23);
        near(found.interval.1, 0.136_413_232_629_099_5);
    }

    #[test]
    fn what_does_not_vary_differs_for_sure_or_not_at_all() {
        let same = |value: f64| Moments::of(&[value; 3]);
        let equal = mean_difference(&same(1.0), &same(1.0), 0.95).unwrap();
        assert_eq!((equal.p_value, equal.interval), (1.0, (0.0, 0.0)));
        let other = mean_difference(&same(1.0), &same(2.0), 0.95).unwrap();
        assert_eq!((other.p_value, other.interval), (0.0, (1.0, 1.0)));
        assert_eq!(mean_difference(&Moments::of(&[1.0]), &same(1.0), 0.95), None);
    }

    #[test]
    fn p_values_are_adjusted_as_holm_does() {
        // By hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, then not less than the one before.
        assert_eq!(holm(&[0.03, 0.01, 0.02, 0.9]), [0.06, 0.04, 0.06, 0.9]);
        assert_eq!(holm(&[0.5, 0.6]), [1.0, 1.0]);
        assert_eq!(holm(&[]), [0.0; 0]);
    }

    proptest! {
        #[test]
        fn intervals_and_tests_agree(
            first in proptest::collection::vec(-100.0..100.0_f64, 2..50),
            second in proptest::collection::vec(-100.0..100.0_f64, 2..50),
        ) {
            let (first, second) = (Moments::of(&first), Moments::of(&second));
            let one = mean_difference(&first, &second, 0.95).unwrap();
            let other = mean_difference(&second, &first, 0.95).unwrap();
            prop_assert!((one.p_value - other.p_value).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&one.p_value));
            let excludes_zero = one.interval.0 > 0.0 || one.interval.1 < 0.0;
            // At the border itself the last digits decide.
            if (one.p_value - 0.05).abs() > 1e-6 {
                prop_assert_eq!(excludes_zero, one.p_value < 0.05);
            }
        }
    }
}
