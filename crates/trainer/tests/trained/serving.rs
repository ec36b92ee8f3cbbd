//! Running a trained graph as the platform serves it.

use arrow::record_batch::RecordBatch;
use modelyard_inference::{Batching, Model, ModelOptions, Runtime, tensors_from_batch};
use modelyard_trainer::{Labels, Predictions, TrainedModel, largest_difference};

/// What the graph may differ from the trainer.
pub(crate) const MAX_DIFFERENCE: f64 = 1e-5;

pub(crate) fn load(model: &TrainedModel) -> Model {
    let loaded = Model::from_bytes(&Runtime::load().unwrap(), model.onnx(), ModelOptions::single()).unwrap();
    assert_eq!(*loaded.batching(), Batching::Rows, "concurrent requests can be merged");
    loaded
}

/// The graph's answer to the columns: a missing string is empty, a missing number NaN.
pub(crate) fn serve(loaded: &Model, model: &TrainedModel, data: &RecordBatch) -> Predictions {
    let outputs = loaded
        .run(tensors_from_batch(data, loaded.signature()).unwrap())
        .unwrap();
    let output = |name: &str| outputs.iter().find(|tensor| tensor.name() == name).unwrap();
    let rows = data.num_rows() as i64;
    let Some(classes) = model.classes() else {
        assert_eq!(output("prediction").shape(), [rows, 1]);
        return Predictions::Numbers(output("prediction").values::<f32>().unwrap().into_owned());
    };
    let (label, probabilities) = (output("label"), output("probabilities"));
    assert_eq!(label.shape(), [rows]);
    assert_eq!(probabilities.shape(), [rows, classes.len() as i64]);
    let labels = match classes {
        Labels::Bool(_) => Labels::Bool(label.values().unwrap().into_owned()),
        Labels::Int32(_) => Labels::Int32(label.values().unwrap().into_owned()),
        Labels::Int64(_) => Labels::Int64(label.values().unwrap().into_owned()),
        Labels::Float32(_) => Labels::Float32(label.values().unwrap().into_owned()),
        Labels::Float64(_) => Labels::Float64(label.values().unwrap().into_owned()),
        Labels::Text(_) => Labels::Text(label.strings().unwrap().into_iter().map(str::to_owned).collect()),
    };
    Predictions::Classes {
        labels,
        probabilities: probabilities.values::<f32>().unwrap().into_owned(),
    }
}

pub(crate) fn assert_same(model: &TrainedModel, data: &RecordBatch) {
    let expected = model.predict(data).unwrap();
    let served = serve(&load(model), model, data);
    let difference = largest_difference(&expected, &served).unwrap();
    assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
}
