//! Metrics of a probability for one of two classes.

use arrow::array::ArrayRef;
use serde::{Deserialize, Serialize};

use super::{both_present, check_probabilities, log_loss_of, same_length};
use crate::error::{Error, Result};

/// Bins of equal width over 0 to 1 in the expected calibration error.
pub const CALIBRATION_BINS: usize = 10;
/// Scores from here on count as a prediction of the positive class.
pub const DECISION_THRESHOLD: f64 = 0.5;

/// Counts of predictions by truth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confusion {
    /// Positive, predicted positive.
    pub true_positive: u64,
    /// Negative, predicted positive.
    pub false_positive: u64,
    /// Negative, predicted negative.
    pub true_negative: u64,
    /// Positive, predicted negative.
    pub false_negative: u64,
}

/// Metrics of binary predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BinaryMetrics {
    /// Number of rows.
    pub rows: u64,
    /// Number of positive labels.
    pub positives: u64,
    /// Area under the ROC curve (0 to 1); `None` with one class only.
    pub auc: Option<f64>,
    /// Mean negative logarithm of the probability given to the truth, clipped by [`LOG_LOSS_EPSILON`](super::LOG_LOSS_EPSILON).
    pub log_loss: Option<f64>,
    /// Mean squared difference of score and label (0 to 1).
    pub brier: Option<f64>,
    /// Expected calibration error over [`CALIBRATION_BINS`] bins (0 to 1): the mean distance of a bin's mean score from its
    /// share of positives, weighted by the bin's rows.
    pub calibration_error: Option<f64>,
    /// Share of predictions that are right (0 to 1).
    pub accuracy: Option<f64>,
    /// Share of positive predictions that are right; `None` without positive predictions.
    pub precision: Option<f64>,
    /// Share of positives that were found; `None` without positives.
    pub recall: Option<f64>,
    /// Harmonic mean of precision and recall; `None` if there is no positive label and no positive prediction.
    pub f1: Option<f64>,
    /// Score from which on a prediction is positive.
    pub threshold: f64,
    /// Counts at the threshold.
    pub confusion: Confusion,
}

impl BinaryMetrics {
    /// Metrics of scores (probabilities of the positive class) against labels, row by row; O(n log n).
    ///
    /// # Errors
    /// Slices of different lengths, or a score or threshold that is no probability.
    pub fn compute(labels: &[bool], scores: &[f64], threshold: f64) -> Result<Self> {
        same_length(("labels", labels.len()), ("scores", scores.len()))?;
        check_probabilities(scores)?;
        if !(0.0..=1.0).contains(&threshold) {
            return Err(Error::InvalidOption {
                option: "threshold",
                value: threshold.to_string(),
                must_be: "from 0 to 1",
            });
        }
        let rows = labels.len();
        let mut confusion = Confusion::default();
        let (mut log_loss, mut brier) = (0.0, 0.0);
        for (&label, &score) in labels.iter().zip(scores) {
            log_loss += log_loss_of(if label { score } else { 1.0 - score });
            brier += (score - f64::from(u8::from(label))).powi(2);
            let cell = match (label, score >= threshold) {
                (true, true) => &mut confusion.true_positive,
                (true, false) => &mut confusion.false_negative,
                (false, true) => &mut confusion.false_positive,
                (false, false) => &mut confusion.true_negative,
            };
            *cell += 1;
        }
        let Confusion {
            true_positive: hits,
            false_positive: alarms,
            true_negative: rest,
            false_negative: misses,
        } = confusion;
        let mean = |sum: f64| (rows > 0).then(|| sum / rows as f64);
        Ok(Self {
            rows: rows as u64,
            positives: hits + misses,
            auc: auc(labels, scores),
            log_loss: mean(log_loss),
            brier: mean(brier),
            calibration_error: calibration_error(labels, scores),
            accuracy: ratio(hits + rest, rows as u64),
            precision: ratio(hits, hits + alarms),
            recall: ratio(hits, hits + misses),
            f1: ratio(2 * hits, 2 * hits + alarms + misses),
            threshold,
            confusion,
        })
    }

    /// Metrics of two columns at [`DECISION_THRESHOLD`]. Labels are booleans or numbers 0 and 1; rows without a label or a
    /// score are left out.
    ///
    /// # Errors
    /// As [`compute`](Self::compute); a label other than 0 and 1; a column that is neither numeric nor boolean.
    pub fn from_arrays(labels: &ArrayRef, scores: &ArrayRef) -> Result<Self> {
        let (labels, scores) = both_present(("labels", labels), ("scores", scores))?;
        let truth = |(row, &label): (usize, &f64)| match label {
            0.0 => Ok(false),
            1.0 => Ok(true),
            value => Err(Error::InvalidValue {
                what: "label",
                row,
                value,
                must_be: "0 or 1",
            }),
        };
        let labels = labels.iter().enumerate().map(truth).collect::<Result<Vec<bool>>>()?;
        Self::compute(&labels, &scores, DECISION_THRESHOLD)
    }

    /// The metrics that are defined, by the names used all over the product.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        [
            ("auc", self.auc),
            ("log_loss", self.log_loss),
            ("brier", self.brier),
            ("calibration_error", self.calibration_error),
            ("accuracy", self.accuracy),
            ("precision", self.precision),
            ("recall", self.recall),
            ("f1", self.f1),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Area under the ROC curve: the probability that a positive scores above a negative, ties counting half. `None` with one
/// class only. Scores need not be probabilities but must not be NaN; O(n log n).
pub fn auc(labels: &[bool], scores: &[f64]) -> Option<f64> {
    let mut rows: Vec<(f64, bool)> = scores
        .iter()
        .zip(labels)
        // One zero: the total order below knows two.
        .map(|(&score, &label)| (score + 0.0, label))
        .collect();
    rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut positives, mut negatives) = (0_u64, 0_u64);
    // Counted in halves, so that ties stay whole numbers.
    let mut halves_won = 0_u128;
    for tie in rows.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let tied_positives = tie.iter().filter(|row| row.1).count() as u64;
        let tied_negatives = tie.len() as u64 - tied_positives;
        halves_won += u128::from(tied_positives) * u128::from(2 * negatives + tied_negatives);
        positives += tied_positives;
        negatives += tied_negatives;
    }
    let pairs = u128::from(positives) * u128::from(negatives);
    (pairs > 0).then(|| halves_won as f64 / (2.0 * pairs as f64))
}

fn calibration_error(labels: &[bool], scores: &[f64]) -> Option<f64> {
    let mut differences = [0.0; CALIBRATION_BINS];
    for (&label, &score) in labels.iter().zip(scores) {
        let bin = ((score * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1);
        differences[bin] += score - f64::from(u8::from(label));
    }
    let sum: f64 = differences.iter().map(|difference| difference.abs()).sum();
    (!labels.is_empty()).then(|| sum / labels.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::{cmp::Ordering, sync::Arc};

    use arrow::array::{BooleanArray, Float64Array, Int64Array, StringArray};
    use proptest::prelude::*;

    use super::*;

    /// The definition, pair by pair.
    fn auc_by_pairs(labels: &[bool], scores: &[f64]) -> Option<f64> {
        let of = |wanted: bool| {
            labels
                .iter()
                .zip(scores)
                .filter(move |row| *row.0 == wanted)
                .map(|row| *row.1)
        };
        let pairs = of(true).count() * of(false).count();
        let won: f64 = of(true)
            .flat_map(|positive| {
                of(false).map(move |negative| match positive.total_cmp(&negative) {
                    Ordering::Greater => 1.0,
                    Ordering::Equal => 0.5,
                    Ordering::Less => 0.0,
                })
            })
            .sum();
        (pairs > 0).then(|| won / pairs as f64)
    }

    proptest! {
        #[test]
        fn auc_equals_its_definition_by_pairs(
            rows in prop::collection::vec((any::<bool>(), 0_u8..20), 0..120)
        ) {
            let (labels, scores): (Vec<bool>, Vec<f64>) =
                rows.iter().map(|&(label, score)| (label, f64::from(score) / 20.0)).unzip();
            match (auc(&labels, &scores), auc_by_pairs(&labels, &scores)) {
                (Some(fast), Some(slow)) => prop_assert!((fast - slow).abs() < 1e-12),
                (fast, slow) => prop_assert_eq!(fast, slow),
            }
        }

        #[test]
        fn auc_depends_on_the_order_only_and_flips_with_the_labels(
            rows in prop::collection::vec((any::<bool>(), any::<u16>()), 2..120)
        ) {
            // Whole numbers, so that the move below rounds nothing.
            let (labels, scores): (Vec<bool>, Vec<f64>) =
                rows.into_iter().map(|(label, score)| (label, f64::from(score))).unzip();
            let moved: Vec<f64> = scores.iter().map(|score| 3.0 * score + 5.0).collect();
            let flipped: Vec<bool> = labels.iter().map(|label| !label).collect();
            if let Some(value) = auc(&labels, &scores) {
                prop_assert!((auc(&labels, &moved).unwrap() - value).abs() < 1e-12);
                prop_assert!((auc(&flipped, &scores).unwrap() + value - 1.0).abs() < 1e-12);
            }
        }

        #[test]
        fn the_order_of_the_rows_and_their_repetition_change_nothing(
            rows in prop::collection::vec((any::<bool>(), 0.0_f64..=1.0), 1..80)
        ) {
            let metrics = |rows: &[(bool, f64)]| {
                let (labels, scores): (Vec<bool>, Vec<f64>) = rows.iter().copied().unzip();
                BinaryMetrics::compute(&labels, &scores, 0.5).unwrap().values()
            };
            let twice_reversed: Vec<(bool, f64)> =
                rows.iter().rev().chain(&rows).copied().collect();
            let (once, twice) = (metrics(&rows), metrics(&twice_reversed));
            prop_assert_eq!(once.len(), twice.len());
            for ((name, a), (same_name, b)) in once.into_iter().zip(twice) {
                prop_assert_eq!(name, same_name);
                prop_assert!((a - b).abs() < 1e-9, "{}: {} {}", name, a, b);
            }
        }
    }

    /// `sklearn.metrics` of scikit-learn 1.9.1 on the same ten rows; the calibration error with NumPy from its definition.
    #[test]
    fn metrics_equal_scikit_learn() {
        let labels = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0].map(|label| label == 1);
        let scores = [0.15, 0.8, 0.4, 0.4, 0.95, 0.6, 0.05, 0.55, 0.3, 0.3];
        let metrics = BinaryMetrics::compute(&labels, &scores, DECISION_THRESHOLD).unwrap();
        let expected = [
            ("auc", 0.8),
            ("log_loss", 0.499_014_090_612_167_5),
            ("brier", 0.173),
            ("calibration_error", 0.21),
            ("accuracy", 0.7),
            ("precision", 0.75),
            ("recall", 0.6),
            ("f1", 0.666_666_666_666_666_6),
        ];
        let values = metrics.values();
        assert_eq!(values.len(), expected.len());
        for ((name, value), (expected_name, number)) in values.into_iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((value - number).abs() < 1e-12, "{name}: {value}");
        }
        let json = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<BinaryMetrics>(&json).unwrap(), metrics);
    }

    #[test]
    fn what_is_not_defined_is_none() {
        let none = BinaryMetrics::compute(&[], &[], 0.5).unwrap();
        assert_eq!(none.values(), []);
        let negatives = BinaryMetrics::compute(&[false, false], &[0.1, 0.2], 0.5).unwrap();
        assert_eq!((negatives.auc, negatives.precision), (None, None));
        assert_eq!((negatives.recall, negatives.f1), (None, None));
        assert_eq!(negatives.accuracy, Some(1.0));
    }

    #[test]
    fn a_confident_error_costs_a_finite_amount() {
        let metrics = BinaryMetrics::compute(&[true], &[0.0], 0.5).unwrap();
        assert!((metrics.log_loss.unwrap() - 1e15_f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        let error = BinaryMetrics::compute(&[true], &[], 0.5).unwrap_err();
        assert!(error.to_string().contains("labels has 1 values but scores has 0"));
        let error = BinaryMetrics::compute(&[true, true], &[0.5, f64::NAN], 0.5).unwrap_err();
        assert!(error.to_string().contains("score at row 1"));
        assert!(BinaryMetrics::compute(&[true], &[0.5], 2.0).is_err());
        let text: ArrayRef = Arc::new(StringArray::from(vec!["late"]));
        let scores: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
        let error = BinaryMetrics::from_arrays(&text, &scores).unwrap_err();
        assert!(error.to_string().contains("labels has type Utf8"));
        let twos: ArrayRef = Arc::new(Int64Array::from(vec![2]));
        assert!(BinaryMetrics::from_arrays(&twos, &scores).is_err());
    }

    #[test]
    fn rows_without_a_label_or_a_score_are_left_out() {
        let labels: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]));
        let scores: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.9), Some(0.1), Some(0.2), None]));
        let metrics = BinaryMetrics::from_arrays(&labels, &scores).unwrap();
        assert_eq!((metrics.rows, metrics.auc), (2, Some(1.0)));
    }
}
