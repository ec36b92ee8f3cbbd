//! Whether the exported graph answers what the trainer predicts: nothing is registered before it does.

use arrow::{array::RecordBatch, util::display::array_value_to_string};
use modelyard_inference::{Model, ModelOptions, Runtime, Tensor, tensors_from_batch, to_f32};
use modelyard_trainer::{Labels, Output, Predictions, TrainedModel, largest_difference};
use serde::{Deserialize, Serialize};

use super::{StepError, context::Reporter, held_out::SCORE_ROWS};

/// The largest difference that is allowed.
pub(super) const MAX_DIFFERENCE: f64 = 1e-5;

/// What the comparison found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Parity {
    /// The largest absolute difference of any output.
    pub(super) largest_difference: f64,
    /// How many rows were compared.
    pub(super) rows: u64,
}

/// Runs the exported graph in ONNX Runtime on the rows, and compares.
pub(super) fn check(
    model: &TrainedModel,
    onnx: &[u8],
    rows: &RecordBatch,
    reporter: &Reporter,
) -> Result<Parity, StepError> {
    let fail = |error: modelyard_inference::Error| StepError::Fail(format!("the graph cannot be checked: {error}"));
    let runtime = Runtime::load().map_err(fail)?;
    let graph = Model::from_bytes(&runtime, onnx, ModelOptions::single()).map_err(fail)?;
    let total = rows.num_rows();
    let mut parity = Parity {
        largest_difference: 0.0,
        rows: total as u64,
    };
    for begin in (0..total).step_by(SCORE_ROWS) {
        reporter.check()?;
        reporter.report(begin as u64, total as u64, "comparing the graph with the trainer");
        let part = rows.slice(begin, SCORE_ROWS.min(total - begin));
        let expected = model
            .predict(&part)
            .map_err(|error| StepError::Fail(error.to_string()))?;
        let inputs = tensors_from_batch(&part, graph.signature()).map_err(fail)?;
        let outputs = graph.run(inputs).map_err(fail)?;
        let actual = predictions(model, &outputs).map_err(fail)?;
        let difference = largest_difference(&expected, &actual).map_err(|error| StepError::Fail(error.to_string()))?;
        if difference.value > MAX_DIFFERENCE || difference.value.is_nan() {
            return Err(StepError::Fail(format!(
                "the exported graph does not answer what the trainer predicts: at row {} of the held-out slice ({}) `{}` is {} \
                 where {} was expected, a difference of {:e}, above {MAX_DIFFERENCE:e}; nothing was registered",
                begin + difference.row,
                values(model, &part, difference.row),
                difference.output,
                difference.actual,
                difference.expected,
                difference.value,
            )));
        }
        parity.largest_difference = parity.largest_difference.max(difference.value);
    }
    Ok(parity)
}

/// The features of a row, for a message.
fn values(model: &TrainedModel, rows: &RecordBatch, row: usize) -> String {
    let value = |name: &str| {
        let column = rows.column_by_name(name)?;
        let text = array_value_to_string(column, row).ok()?;
        Some(format!("{name}={text}"))
    };
    let all: Vec<String> = model
        .inputs()
        .iter()
        .filter_map(|feature| value(&feature.name))
        .collect();
    all.join(", ")
}

/// The graph's outputs as the trainer writes its own.
fn predictions(model: &TrainedModel, outputs: &[Tensor]) -> modelyard_inference::Result<Predictions> {
    let output = |output: &Output| {
        let found = outputs.iter().find(|tensor| tensor.name() == output.name());
        found.ok_or_else(|| modelyard_inference::Error::InvalidOutput {
            output: output.name().to_owned(),
            detail: "the graph does not give it".to_owned(),
        })
    };
    let Some(classes) = model.classes() else {
        return Ok(Predictions::Numbers(to_f32(output(&Output::Prediction)?)?));
    };
    let label = output(&Output::Label)?;
    let labels = match classes {
        Labels::Bool(_) => Labels::Bool(label.values()?.into_owned()),
        Labels::Int32(_) => Labels::Int32(label.values()?.into_owned()),
        Labels::Int64(_) => Labels::Int64(label.values()?.into_owned()),
        Labels::Float32(_) => Labels::Float32(label.values()?.into_owned()),
        Labels::Float64(_) => Labels::Float64(label.values()?.into_owned()),
        Labels::Text(_) => Labels::Text(label.strings()?.into_iter().map(str::to_owned).collect()),
    };
    let probabilities = output(&Output::Probabilities { classes: classes.len() })?;
    Ok(Predictions::Classes {
        labels,
        probabilities: to_f32(probabilities)?,
    })
}

#[cfg(test)]
mod tests {
    use std::{ops::ControlFlow, sync::Arc};

    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
    use modelyard_trainer::{TrainConfig, train};

    use super::*;

    const ROWS: usize = 600;

    /// Rows whose label depends on `x`, the other way round when `flipped`.
    fn rows(flipped: bool) -> RecordBatch {
        let x: Vec<f64> = (0..ROWS).map(|row| ((row * 37) % 100) as f64).collect();
        let names: Vec<&str> = (0..ROWS).map(|row| ["red", "green", "blue"][row % 3]).collect();
        let labels: Vec<i64> = x.iter().map(|x| i64::from((*x > 50.0) != flipped)).collect();
        let columns: [(&str, ArrayRef); 3] = [
            ("x", Arc::new(Float64Array::from(x))),
            ("colour", Arc::new(StringArray::from(names))),
            ("y", Arc::new(Int64Array::from(labels))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn trained(flipped: bool) -> TrainedModel {
        let config = TrainConfig {
            target: "y".to_owned(),
            trees: 5,
            ..TrainConfig::default()
        };
        train(&rows(flipped), &config, &|_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn a_graph_that_answers_something_else_is_refused_with_the_place() {
        let (model, other) = (trained(false), trained(true));
        let reporter = Reporter::detached();
        let parity = check(&model, model.onnx(), &rows(false), &reporter).unwrap();
        assert_eq!(parity.rows, ROWS as u64);
        assert!(parity.largest_difference <= MAX_DIFFERENCE);
        let refused = check(&model, other.onnx(), &rows(false), &reporter);
        let Err(StepError::Fail(error)) = refused else {
            panic!("it must fail: {refused:?}");
        };
        for part in [
            "at row ",
            "x=",
            "colour=",
            "`probabilities[",
            "was expected, a difference of",
            "nothing was registered",
        ] {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}
