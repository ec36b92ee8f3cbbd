//! Running a trained graph in ONNX Runtime.

use std::path::PathBuf;
use std::sync::OnceLock;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, Float64Type, Int8Type, Int32Type, Int64Type, UInt16Type};
use arrow::record_batch::RecordBatch;
use modelyard_trainer::{FeatureKind, Labels, Predictions, TrainedModel, largest_difference};
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensor, Tensor};

use crate::data::texts;

/// What the graph may differ from the trainer.
pub(crate) const MAX_DIFFERENCE: f64 = 1e-5;

pub(crate) fn runtime() -> &'static Environment {
    static RUNTIME: OnceLock<Environment> = OnceLock::new();
    RUNTIME.get_or_init(|| ort::init_from(library()).unwrap().build().unwrap())
}

/// `ORT_DYLIB_PATH`, or the library that set-up leaves in the target folder.
pub(crate) fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let executable = std::env::current_exe().unwrap();
    executable
        .ancestors()
        .filter_map(|folder| std::fs::read_dir(folder.join("onnxruntime")).ok())
        .flat_map(|entries| entries.map(|entry| entry.unwrap().path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        })
        .expect("ONNX Runtime's library is in the target folder: run `cargo xtask setup`")
}

pub(crate) fn session(model: &TrainedModel) -> Session {
    let mut builder = Session::builder(runtime()).unwrap().with_intra_threads(1).unwrap();
    builder.commit_from_memory(model.onnx()).unwrap()
}

/// The columns as the graph takes them: a missing string is empty, a missing number NaN.
pub(crate) fn inputs(model: &TrainedModel, data: &RecordBatch) -> Vec<(String, SessionInputValue<'static>)> {
    model
        .inputs()
        .iter()
        .map(|feature| {
            let array = data.column_by_name(&feature.name).unwrap();
            let shape = [array.len(), 1];
            let floats = |values: Vec<f32>| Tensor::from_array((shape, values)).unwrap().upcast();
            let tensor: DynTensor = match feature.kind {
                FeatureKind::Text => {
                    let texts: Vec<String> = texts(array)
                        .iter()
                        .map(|text| text.unwrap_or_default().to_owned())
                        .collect();
                    Tensor::from_string_array((shape, texts.as_slice())).unwrap().upcast()
                }
                FeatureKind::Float64 => {
                    let column = array.as_primitive::<Float64Type>();
                    let values: Vec<f64> = column.iter().map(|value| value.unwrap_or(f64::NAN)).collect();
                    Tensor::from_array((shape, values)).unwrap().upcast()
                }
                FeatureKind::Float32 => {
                    let column = array.as_primitive::<Float32Type>();
                    floats(column.iter().map(|value| value.unwrap_or(f32::NAN)).collect())
                }
                FeatureKind::Bool => {
                    let values: Vec<bool> = array.as_boolean().iter().map(Option::unwrap).collect();
                    Tensor::from_array((shape, values)).unwrap().upcast()
                }
                FeatureKind::Int8 => integers(array.as_primitive::<Int8Type>().values().to_vec()),
                FeatureKind::Int32 => integers(array.as_primitive::<Int32Type>().values().to_vec()),
                FeatureKind::Int64 => integers(array.as_primitive::<Int64Type>().values().to_vec()),
                FeatureKind::UInt16 => integers(array.as_primitive::<UInt16Type>().values().to_vec()),
                other => panic!("no test has {other:?}"),
            };
            (feature.name.clone(), tensor.into())
        })
        .collect()
}

pub(crate) fn integers<T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    values: Vec<T>,
) -> DynTensor {
    Tensor::from_array(([values.len(), 1], values)).unwrap().upcast()
}

pub(crate) fn serve(session: &mut Session, model: &TrainedModel, data: &RecordBatch) -> Predictions {
    let outputs = session.run(inputs(model, data)).unwrap();
    let rows = data.num_rows() as i64;
    let Some(classes) = model.classes() else {
        let (shape, numbers) = outputs["prediction"].try_extract_tensor::<f32>().unwrap();
        assert_eq!(shape[..], [rows, 1]);
        return Predictions::Numbers(numbers.to_vec());
    };
    let (shape, probabilities) = outputs["probabilities"].try_extract_tensor::<f32>().unwrap();
    assert_eq!(shape[..], [rows, classes.len() as i64]);
    let label = &outputs["label"];
    assert_eq!(label.shape()[..], [rows]);
    let labels = match classes {
        Labels::Bool(_) => Labels::Bool(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Int32(_) => Labels::Int32(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Int64(_) => Labels::Int64(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Float32(_) => Labels::Float32(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Float64(_) => Labels::Float64(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Text(_) => Labels::Text(label.try_extract_strings().unwrap().1),
    };
    Predictions::Classes {
        labels,
        probabilities: probabilities.to_vec(),
    }
}

pub(crate) fn assert_same(model: &TrainedModel, data: &RecordBatch) {
    let expected = model.predict(data).unwrap();
    let served = serve(&mut session(model), model, data);
    let difference = largest_difference(&expected, &served).unwrap();
    assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
}
