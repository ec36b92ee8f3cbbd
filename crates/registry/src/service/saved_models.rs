//! Folders that MLflow saved models in: what of them can be served.

use std::collections::BTreeMap;

use modelyard_artifacts::signing::MAX_BUNDLE_BYTES;
use serde_json::{Value, json};

use super::Registry;
use crate::{
    error::{Error, Result},
    files::{
        mlmodel::{MAX_MLMODEL_BYTES, MLMODEL, SavedModel, read_mlmodel},
        onnx::read_description,
    },
    model::{
        artifact_file::{ArtifactFile, ArtifactFolder, ArtifactPath},
        mlflow_registry::shown,
        page::{MAX_PAGE, PageRequest},
        registered_model::{MLFLOW, ONNX},
        storage::NamedBlob,
    },
};

/// The file with the signature of the others, as `model_signing` writes it.
const BUNDLE: &str = "model.sig";

/// The most files of a model that Python runs.
const MAX_FILES: usize = 10_000;

/// What of a version is served.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub format: String,
    pub digest: String,
    pub size_bytes: u64,
    /// The files beside it, where it describes a folder.
    pub files: Vec<NamedBlob>,
    pub signature: Option<Value>,
    /// The Sigstore bundle with the signature of its files.
    pub bundle: Option<NamedBlob>,
    pub reference_profile_digest: Option<String>,
    pub reference_profile_size_bytes: u64,
    pub metrics: BTreeMap<String, f64>,
    pub dataset: Option<(String, u32)>,
    pub training_rows: u64,
    /// Why it cannot be served, though there is an ONNX model.
    pub problem: String,
}

impl Served {
    fn refused(problem: String) -> Self {
        Self {
            problem,
            ..Self::default()
        }
    }
}

/// The names of a signature's inputs, in their order.
fn inputs(signature: &Value) -> Vec<&str> {
    let entries = signature.get("inputs").and_then(Value::as_array);
    let names = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("name")?.as_str());
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names
}

/// The signature to go by: what was written down if it is about the inputs that the graph has, else the graph's.
fn choose_signature(saved: Option<Value>, graph: Value) -> Value {
    match saved {
        Some(saved) if inputs(&saved) == inputs(&graph) => saved,
        _ => graph,
    }
}

/// A file of a folder, whose path may be written with `./`.
pub(super) fn below(folder: &str, file: &str) -> String {
    let file = file.trim_start_matches("./");
    if folder.is_empty() {
        return file.to_owned();
    }
    format!("{}/{file}", folder.trim_end_matches('/'))
}

impl Registry {
    /// What of a folder that MLflow saved a model in can be served: its ONNX file, else all of it by Python.
    pub(super) async fn read_folder(&self, project: &str, folder: &str) -> Result<Served> {
        let files = &self.stores.artifact_files;
        let blobs = self.blobs.project(project)?;
        let path = ArtifactPath::parse(&below(folder, MLMODEL))?;
        let description = files.find_artifact_file(project, &path).await?;
        let Some(description) = description.filter(|file| file.size_bytes <= MAX_MLMODEL_BYTES) else {
            return Ok(Served::default());
        };
        let content = blobs.get_bytes(description.digest, MAX_MLMODEL_BYTES).await?;
        let Some(saved) = read_mlmodel(&content) else {
            return Ok(Served::default());
        };
        let served = match &saved.onnx_file {
            Some(onnx_file) => self.read_onnx(project, folder, onnx_file, saved.signature).await?,
            None if saved.is_python => self.read_python(project, folder, saved).await?,
            None => Served {
                signature: saved.signature,
                ..Served::default()
            },
        };
        // Signing tools leave it there.
        let path = ArtifactPath::parse(&below(folder, BUNDLE))?;
        let bundle = files.find_artifact_file(project, &path).await?;
        let bundle = bundle.filter(|file| file.size_bytes <= MAX_BUNDLE_BYTES);
        Ok(Served {
            bundle: bundle.map(|file| NamedBlob::new(file.digest, file.size_bytes)),
            ..served
        })
    }

    async fn read_onnx(
        &self,
        project: &str,
        folder: &str,
        onnx_file: &str,
        signature: Option<Value>,
    ) -> Result<Served> {
        let files = &self.stores.artifact_files;
        let path = ArtifactPath::parse(&below(folder, onnx_file))?;
        let Some(file) = files.find_artifact_file(project, &path).await? else {
            return Ok(Served::refused(format!(
                "cannot be served: its ONNX file `{}` is missing, log the model again",
                shown(onnx_file)
            )));
        };
        let digest = file.digest;
        let read = self
            .import("model", project, digest, move |path| {
                read_description(path, &digest.to_string())
            })
            .await;
        match read {
            // Its signature is told in any case.
            Ok(graph) if graph.is_external => Ok(Served {
                signature: Some(choose_signature(signature, graph.signature)),
                problem:
                    "cannot be served: the weights of its ONNX file are in other files (external data), save it as one \
                     file (`save_as_external_data=False` of mlflow.onnx)"
                        .to_owned(),
                ..Served::default()
            }),
            Ok(graph) => Ok(Served {
                format: ONNX.to_owned(),
                digest: digest.to_string(),
                size_bytes: file.size_bytes,
                signature: Some(choose_signature(signature, graph.signature)),
                ..Served::default()
            }),
            // Registering what cannot be served is allowed; why it cannot is said.
            Err(error @ Error::NotOnnx { .. }) => Ok(Served::refused(format!("cannot be served: {error}"))),
            Err(error) => Err(error),
        }
    }

    /// Describes the folder, so that a gateway can fetch all of it by one digest.
    async fn read_python(&self, project: &str, folder: &str, saved: SavedModel) -> Result<Served> {
        if !saved.has_inputs {
            return Ok(Served::refused(
                "cannot be served: it has no signature, log it with `input_example` or `signature=infer_signature(..)`"
                    .to_owned(),
            ));
        }
        let folder = ArtifactFolder::parse(folder)?;
        let prefix = folder.prefix();
        let mut page = PageRequest::up_to(MAX_PAGE, None)?;
        let mut files = Vec::new();
        loop {
            let found = self
                .stores
                .artifact_files
                .list_artifact_files(project, &folder, &page)
                .await?;
            files.extend(found.items);
            if files.len() > MAX_FILES {
                return Ok(Served::refused(format!(
                    "cannot be served: its folder has more than {MAX_FILES} files"
                )));
            }
            let Some(next) = found.next_cursor else { break };
            page = PageRequest::up_to(MAX_PAGE, Some(&next))?;
        }
        let described: Vec<Value> = files
            .iter()
            .map(|file| {
                let path = file.path.as_str();
                json!({
                    "path": path.strip_prefix(&prefix).unwrap_or(path),
                    "digest": file.digest.to_string(),
                    "size_bytes": file.size_bytes,
                })
            })
            .collect();
        let description = json!({"mlflow": {"files": described}}).to_string();
        let size_bytes = description.len() as u64;
        let described = self.blobs.project(project)?.put_bytes(description).await?;
        let named = |file: &ArtifactFile| NamedBlob {
            digest: file.digest.to_string(),
            size_bytes: file.size_bytes,
        };
        Ok(Served {
            format: MLFLOW.to_owned(),
            digest: described.digest.to_string(),
            size_bytes,
            files: files.iter().map(named).collect(),
            signature: saved.signature,
            ..Served::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_signature_is_about_the_graph() {
        let entry = |name: &str, kind: &str| json!({"inputs": [{"name": name, "type": kind}], "outputs": []});
        let graph = entry("x", "double");
        assert_eq!(
            choose_signature(Some(entry("x", "float")), graph.clone()),
            entry("x", "float")
        );
        assert_eq!(choose_signature(Some(entry("y", "float")), graph.clone()), graph);
        assert_eq!(choose_signature(None, graph.clone()), graph);
    }

    #[test]
    fn files_are_below_their_folder() {
        assert_eq!(below("0/run/artifacts", "model"), "0/run/artifacts/model");
        assert_eq!(below("0/run/artifacts/", "./model.onnx"), "0/run/artifacts/model.onnx");
        assert_eq!(below("", "MLmodel"), "MLmodel");
    }
}
