//! How good predictions were, from labels and scores.
//!
//! A metric that is not defined for the rows given (one class only, no rows) is `None`; no metric is NaN. Rows without a label
//! or a score are the caller's to leave out; the `from_arrays` constructors do it.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Float64Type},
};

use crate::error::{Error, Result};

mod binary;
mod multiclass;
mod regression;

pub use binary::{BinaryMetrics, CALIBRATION_BINS, Confusion, DECISION_THRESHOLD, auc};
pub use multiclass::MulticlassMetrics;
pub use regression::RegressionMetrics;

/// Probabilities are kept this far from 0 and 1 in the log loss, so that one confident error does not make it infinite.
pub const LOG_LOSS_EPSILON: f64 = 1e-15;

fn log_loss_of(probability_of_truth: f64) -> f64 {
    -probability_of_truth
        .clamp(LOG_LOSS_EPSILON, 1.0 - LOG_LOSS_EPSILON)
        .ln()
}

fn same_length(left: (&'static str, usize), right: (&'static str, usize)) -> Result<()> {
    if left.1 == right.1 {
        return Ok(());
    }
    Err(Error::LengthMismatch {
        left: left.0,
        left_len: left.1,
        right: right.0,
        right_len: right.1,
    })
}

fn check_probabilities(scores: &[f64]) -> Result<()> {
    match scores.iter().position(|score| !(0.0..=1.0).contains(score)) {
        None => Ok(()),
        Some(row) => Err(Error::InvalidValue {
            what: "score",
            row,
            value: scores[row],
            must_be: "a probability from 0 to 1",
        }),
    }
}

fn check_finite(what: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(row) => Err(Error::InvalidValue {
            what,
            row,
            value: values[row],
            must_be: "a finite number",
        }),
    }
}

/// A numeric or boolean column as doubles; null and NaN as `None`.
fn numbers(what: &str, array: &ArrayRef) -> Result<Vec<Option<f64>>> {
    let data_type = array.data_type();
    if !data_type.is_numeric() && *data_type != DataType::Boolean && *data_type != DataType::Null {
        return Err(Error::UnsupportedType {
            what: what.to_owned(),
            data_type: data_type.to_string(),
            must_be: "numeric or boolean",
        });
    }
    let floats = cast(array, &DataType::Float64)?;
    let floats = floats.as_primitive::<Float64Type>();
    Ok(floats
        .iter()
        .map(|value| value.filter(|number| !number.is_nan()))
        .collect())
}

/// The rows of two columns that have a value in both.
fn both_present(left: (&'static str, &ArrayRef), right: (&'static str, &ArrayRef)) -> Result<(Vec<f64>, Vec<f64>)> {
    same_length((left.0, left.1.len()), (right.0, right.1.len()))?;
    let (a, b) = (numbers(left.0, left.1)?, numbers(right.0, right.1)?);
    Ok(a.into_iter().zip(b).filter_map(|(a, b)| a.zip(b)).unzip())
}
