//! Metrics of probabilities for one of several classes.

use serde::{Deserialize, Serialize};

use super::{auc, check_probabilities, log_loss_of, same_length};
use crate::error::{Error, Result};

/// Metrics of multiclass predictions; the predicted class is the first of the most probable ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MulticlassMetrics {
    /// Number of rows.
    pub rows: u64,
    /// Number of classes.
    pub classes: u32,
    /// Share of predictions that are right (0 to 1).
    pub accuracy: Option<f64>,
    /// Mean of the classes' F1, over the classes that occur among labels or predictions (0 to 1).
    pub f1: Option<f64>,
    /// Mean negative logarithm of the probability given to the truth, clipped by [`LOG_LOSS_EPSILON`](super::LOG_LOSS_EPSILON).
    pub log_loss: Option<f64>,
    /// Mean of the areas under the ROC curves of each class against the rest, over the classes that have rows on both sides.
    pub auc: Option<f64>,
}

impl MulticlassMetrics {
    /// Metrics of probabilities, `classes` a row (shape rows x classes, row by row), against labels from 0 to `classes - 1`.
    ///
    /// # Errors
    /// No classes, slices whose lengths do not fit, a label out of range, or a probability that is none.
    pub fn compute(labels: &[u32], probabilities: &[f64], classes: u32) -> Result<Self> {
        let width = classes as usize;
        if width == 0 {
            return Err(Error::InvalidOption {
                option: "classes",
                value: classes.to_string(),
                must_be: "at least 1",
            });
        }
        same_length(
            ("labels x classes", labels.len() * width),
            ("probabilities", probabilities.len()),
        )?;
        check_probabilities(probabilities)?;
        if let Some(row) = labels.iter().position(|&label| label >= classes) {
            return Err(Error::InvalidValue {
                what: "label",
                row,
                value: f64::from(labels[row]),
                must_be: "below the number of classes",
            });
        }
        let mut hits = vec![0_u64; width];
        let mut labelled = vec![0_u64; width];
        let mut predicted = vec![0_u64; width];
        let mut log_loss = 0.0;
        for (&label, row) in labels.iter().zip(probabilities.chunks_exact(width)) {
            let truth = label as usize;
            let guess = first_largest(row);
            log_loss += log_loss_of(row[truth]);
            labelled[truth] += 1;
            predicted[guess] += 1;
            hits[truth] += u64::from(guess == truth);
        }
        let rows = labels.len() as u64;
        let per_row = |sum: f64| (rows > 0).then(|| sum / rows as f64);
        let f1 = (0..width)
            .filter(|&class| labelled[class] + predicted[class] > 0)
            .map(|class| 2.0 * hits[class] as f64 / (labelled[class] + predicted[class]) as f64);
        let aucs = (0..classes).filter_map(|class| {
            let truths: Vec<bool> = labels.iter().map(|&label| label == class).collect();
            let column = probabilities.iter().skip(class as usize).step_by(width);
            auc(&truths, &column.copied().collect::<Vec<f64>>())
        });
        Ok(Self {
            rows,
            classes,
            accuracy: per_row(hits.iter().sum::<u64>() as f64),
            f1: mean(f1),
            log_loss: per_row(log_loss),
            auc: mean(aucs),
        })
    }

    /// The metrics that are defined, by the names used all over the product.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        [
            ("auc", self.auc),
            ("log_loss", self.log_loss),
            ("accuracy", self.accuracy),
            ("f1", self.f1),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn first_largest(row: &[f64]) -> usize {
    let mut best = 0;
    for (class, &probability) in row.iter().enumerate() {
        if probability > row[best] {
            best = class;
        }
    }
    best
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u64, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sklearn.metrics` of scikit-learn 1.9.1 on the same six rows (`average="macro"`, `multi_class="ovr"`).
    #[test]
    fn metrics_equal_scikit_learn() {
        let labels = [0, 1, 2, 2, 1, 0];
        let probabilities = [
            0.7, 0.2, 0.1, 0.1, 0.6, 0.3, 0.2, 0.2, 0.6, 0.5, 0.3, 0.2, 0.3, 0.4, 0.3, 0.4, 0.5, 0.1,
        ];
        let metrics = MulticlassMetrics::compute(&labels, &probabilities, 3).unwrap();
        let expected = [
            ("auc", 0.833_333_333_333_333_4),
            ("log_loss", 0.803_390_927_942_187_4),
            ("accuracy", 0.666_666_666_666_666_6),
            ("f1", 0.655_555_555_555_555_6),
        ];
        for ((name, value), (expected_name, number)) in metrics.values().into_iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((value - number).abs() < 1e-12, "{name}: {value}");
        }
    }

    #[test]
    fn what_is_not_defined_is_none_and_bad_input_is_refused() {
        assert_eq!(MulticlassMetrics::compute(&[], &[], 3).unwrap().values(), []);
        let one_class = MulticlassMetrics::compute(&[1, 1], &[0.2, 0.8, 0.9, 0.1], 2).unwrap();
        assert_eq!((one_class.auc, one_class.accuracy), (None, Some(0.5)));
        assert!(MulticlassMetrics::compute(&[2], &[0.5, 0.5], 2).is_err());
        assert!(MulticlassMetrics::compute(&[0], &[0.5], 2).is_err());
        assert!(MulticlassMetrics::compute(&[0], &[1.5, 0.5], 2).is_err());
        assert!(MulticlassMetrics::compute(&[], &[], 0).is_err());
    }

    #[test]
    fn two_classes_agree_with_the_binary_metrics() {
        let labels = [0, 1, 1, 0, 1, 0, 0];
        let scores = [0.2, 0.7, 0.4, 0.4, 0.9, 0.6, 0.1];
        let pairs: Vec<f64> = scores.iter().flat_map(|&score| [1.0 - score, score]).collect();
        let multiclass = MulticlassMetrics::compute(&labels, &pairs, 2).unwrap();
        let truths = labels.map(|label| label == 1);
        let binary = super::super::BinaryMetrics::compute(&truths, &scores, 0.5).unwrap();
        assert!((multiclass.auc.unwrap() - binary.auc.unwrap()).abs() < 1e-12);
        assert!((multiclass.log_loss.unwrap() - binary.log_loss.unwrap()).abs() < 1e-12);
        assert_eq!(multiclass.accuracy, binary.accuracy);
    }
}
