//! The file `MLmodel` of a folder that MLflow saved a model in.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use serde_norway::Value as Yaml;

use crate::model::registered_model::{MAX_SIGNATURE_BYTES, check_signature};

/// The name of the file.
pub const MLMODEL: &str = "MLmodel";
/// The largest one that is read, in bytes.
pub const MAX_MLMODEL_BYTES: u64 = 1 << 20;
/// The file of an ONNX model that does not say.
const ONNX_FILE: &str = "model.onnx";

/// What the file says, as far as serving needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedModel {
    /// The ONNX file, relative to the folder.
    pub onnx_file: Option<String>,
    /// Whether MLflow can run it by Python, whatever it is.
    pub is_python: bool,
    /// Whether it says what it takes, in full or not.
    pub has_inputs: bool,
    /// What the model takes and gives, where that is said in full.
    pub signature: Option<Value>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    flavors: BTreeMap<String, Yaml>,
    #[serde(default)]
    signature: Option<Texts>,
}

/// The signature: JSON texts inside of YAML.
#[derive(Deserialize)]
struct Texts {
    inputs: Option<String>,
    outputs: Option<String>,
}

/// Reads the file; None: it is no such file.
#[must_use]
pub fn read_mlmodel(content: &[u8]) -> Option<SavedModel> {
    let content: Content = serde_norway::from_slice(content).ok()?;
    let onnx_file = content.flavors.get("onnx").map(|flavor| {
        let file = flavor.get("data").and_then(Yaml::as_str).unwrap_or(ONNX_FILE);
        file.to_owned()
    });
    let is_python = content.flavors.contains_key("python_function");
    let has_inputs = content.signature.as_ref().is_some_and(|texts| texts.inputs.is_some());
    let signature = content.signature.and_then(|texts| {
        let part = |text: Option<String>| serde_json::from_str::<Value>(&text?).ok();
        let signature = json!({"inputs": part(texts.inputs)?, "outputs": part(texts.outputs)?});
        let is_short = signature.to_string().len() <= MAX_SIGNATURE_BYTES;
        (is_short && check_signature(&signature).is_ok()).then_some(signature)
    });
    Some(SavedModel {
        onnx_file,
        is_python,
        has_inputs,
        signature,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_onnx_model_is_found() {
        let content = br#"
artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.16.0
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
model_uuid: 0a
signature:
  inputs: '[{"type": "double", "name": "distance", "required": true}]'
  outputs: '[{"type": "tensor", "name": "p", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]'
  params: null
"#;
        let saved = read_mlmodel(content).unwrap();
        assert_eq!(saved.onnx_file.as_deref(), Some("model.onnx"));
        let signature = saved.signature.unwrap();
        assert_eq!(signature.pointer("/inputs/0/name").unwrap(), "distance");
        assert_eq!(signature.pointer("/outputs/0/tensor-spec/shape/1").unwrap(), 2);
    }

    #[test]
    fn other_models_have_no_onnx_file() {
        let saved = read_mlmodel(b"flavors:\n  sklearn:\n    pickled_model: model.pkl\n").unwrap();
        assert_eq!(
            saved,
            SavedModel {
                onnx_file: None,
                is_python: false,
                has_inputs: false,
                signature: None
            }
        );
        let python =
            read_mlmodel(b"{flavors: {sklearn: {}, python_function: {}}, signature: {inputs: '[]', outputs: null}}");
        let python = python.unwrap();
        assert!(python.is_python && python.has_inputs);
        // Tensors without names say less than the graph.
        let unnamed = br#"{flavors: {onnx: {}}, signature: {inputs: '[{"type": "tensor"}]', outputs: null}}"#;
        let saved = read_mlmodel(unnamed).unwrap();
        assert_eq!(
            (saved.onnx_file.as_deref(), saved.signature),
            (Some("model.onnx"), None)
        );
        for bad in [&b"- a\n- b"[..], b"\xff\xfe", b"flavors: 3", b"{"] {
            assert!(read_mlmodel(bad).is_none());
        }
    }
}
