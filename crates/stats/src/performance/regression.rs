//! Metrics of predicted numbers.

use arrow::array::ArrayRef;
use serde::{Deserialize, Serialize};

use super::{both_present, check_finite, same_length};
use crate::{error::Result, profile::Moments};

/// Metrics of predictions of a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionMetrics {
    /// Number of rows.
    pub rows: u64,
    /// Root of the mean squared error, in the label's unit.
    pub rmse: Option<f64>,
    /// Mean absolute error, in the label's unit.
    pub mae: Option<f64>,
    /// Share of the labels' variance that is explained (at most 1); `None` where the labels do not vary.
    pub r2: Option<f64>,
    /// Mean of prediction minus label, in the label's unit.
    pub bias: Option<f64>,
}

impl RegressionMetrics {
    /// Metrics of predictions against labels, row by row.
    ///
    /// # Errors
    /// Slices of different lengths, or a value that is not finite.
    pub fn compute(labels: &[f64], predictions: &[f64]) -> Result<Self> {
        same_length(("labels", labels.len()), ("predictions", predictions.len()))?;
        check_finite("label", labels)?;
        check_finite("prediction", predictions)?;
        let (mut squares, mut absolutes, mut sum) = (0.0, 0.0, 0.0);
        for (label, prediction) in labels.iter().zip(predictions) {
            let error = prediction - label;
            squares += error * error;
            absolutes += error.abs();
            sum += error;
        }
        let variation = Moments::of(labels).m2;
        let rows = labels.len() as f64;
        // Squares of the largest doubles overflow: then the metric is as undefined as for no rows.
        let mean = |sum: f64| Some(sum / rows).filter(|mean| mean.is_finite());
        let explained = (variation > 0.0).then(|| 1.0 - squares / variation);
        Ok(Self {
            rows: labels.len() as u64,
            rmse: mean(squares).map(f64::sqrt),
            mae: mean(absolutes),
            r2: explained.filter(|share| share.is_finite()),
            bias: mean(sum),
        })
    }

    /// Metrics of two numeric columns; rows without a label or a prediction are left out.
    ///
    /// # Errors
    /// As [`compute`](Self::compute); a column that is neither numeric nor boolean.
    pub fn from_arrays(labels: &ArrayRef, predictions: &ArrayRef) -> Result<Self> {
        let (labels, predictions) = both_present(("labels", labels), ("predictions", predictions))?;
        Self::compute(&labels, &predictions)
    }

    /// The metrics that are defined, by the names used all over the product.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        [
            ("rmse", self.rmse),
            ("mae", self.mae),
            ("r2", self.r2),
            ("bias", self.bias),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `sklearn.metrics` of scikit-learn 1.9.1 on the same four rows.
    #[test]
    fn metrics_equal_scikit_learn() {
        let metrics = RegressionMetrics::compute(&[3.0, -0.5, 2.0, 7.0], &[2.5, 0.0, 2.0, 8.0]).unwrap();
        let expected = [
            ("rmse", 0.612_372_435_695_794_5),
            ("mae", 0.5),
            ("r2", 0.948_608_137_044_967_9),
            ("bias", 0.25),
        ];
        for ((name, value), (expected_name, number)) in metrics.values().into_iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((value - number).abs() < 1e-12, "{name}: {value}");
        }
    }

    #[test]
    fn what_is_not_defined_is_none_and_bad_input_is_refused() {
        assert_eq!(RegressionMetrics::compute(&[], &[]).unwrap().values(), []);
        let constant = RegressionMetrics::compute(&[2.0, 2.0], &[1.0, 3.0]).unwrap();
        assert_eq!((constant.r2, constant.mae), (None, Some(1.0)));
        assert!(RegressionMetrics::compute(&[1.0], &[]).is_err());
        assert!(RegressionMetrics::compute(&[1.0], &[f64::INFINITY]).is_err());
        let huge = RegressionMetrics::compute(&[f64::MAX], &[f64::MIN]).unwrap();
        assert_eq!(huge.rmse, None);
    }

    proptest! {
        #[test]
        fn errors_scale_with_the_unit_and_ignore_a_common_shift(
            rows in prop::collection::vec((-100.0_f64..100.0, -100.0_f64..100.0), 2..60)
        ) {
            let compute = |scale: f64, shift: f64| {
                let (labels, predictions): (Vec<f64>, Vec<f64>) =
                    rows.iter().map(|&(a, b)| (a * scale + shift, b * scale + shift)).unzip();
                RegressionMetrics::compute(&labels, &predictions).unwrap()
            };
            let (plain, scaled) = (compute(1.0, 0.0), compute(4.0, 50.0));
            let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-6 * (1.0 + b.abs());
            prop_assert!(near(scaled.rmse, 4.0 * plain.rmse.unwrap()));
            prop_assert!(near(scaled.mae, 4.0 * plain.mae.unwrap()));
            prop_assert!(near(scaled.bias, 4.0 * plain.bias.unwrap()));
            if let Some(r2) = plain.r2 {
                prop_assert!(near(scaled.r2, r2));
            }
            prop_assert!(plain.mae <= plain.rmse.map(|rmse| rmse + 1e-12));
        }
    }
}
