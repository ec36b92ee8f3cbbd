//! Registered models and their versions.

use std::collections::BTreeMap;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::{alias::Alias, run::MAX_KEY_BYTES, storage::NamedBlob},
};

/// The format of ONNX files.
pub const ONNX: &str = "onnx";
/// The format of descriptions (JSON) of models that another server runs.
pub const UPSTREAM: &str = "upstream";
/// The format of descriptions (JSON) of folders that MLflow saved models in, which Python runs.
pub const MLFLOW: &str = "mlflow";
/// The format of versions without a file that can be served, which clients of MLflow register.
pub const NO_FILE: &str = "";
/// The longest value of a tag of a version, in bytes.
pub const MAX_TAG_BYTES: usize = 100_000;
/// The most tags of a version.
pub const MAX_TAGS: usize = 100;
/// The most metrics of a version.
pub const MAX_METRICS: usize = 1000;
/// The largest signature, in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 1 << 20;
/// The longest idempotency key, in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RegisteredModel {
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Its newest version.
    pub latest_version: u32,
    /// Its aliases, by name.
    pub aliases: Vec<Alias>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// A version of a model. All but its aliases, tags and bundle never changes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelVersion {
    /// The project.
    pub project: String,
    /// The model.
    pub model: String,
    /// 1, 2, 3 and so on.
    pub version: u32,
    /// What its maker said about it.
    pub description: String,
    /// The format of its file: `onnx`; `upstream`, which says where another server runs it; `mlflow`, which lists the files
    /// of a folder that MLflow saved it in; empty: it has no file that can be served.
    pub format: String,
    /// Its file: `sha256:` and 64 hexadecimal digits; empty: it has none.
    pub artifact_digest: String,
    /// The size of its file in bytes.
    pub artifact_size_bytes: u64,
    /// What it takes and gives, as MLflow writes it.
    pub signature: serde_json::Value,
    /// The blob with the Sigstore bundle (JSON) that has the signature of its files; null: it is not signed.
    pub bundle_digest: Option<String>,
    /// The blob with the profile of its training data (JSON).
    pub reference_profile_digest: Option<String>,
    /// Its metrics, measured on held-out data.
    pub metrics: BTreeMap<String, f64>,
    /// The run that trained it; null when it was imported.
    pub run_id: Option<String>,
    /// The dataset that it was trained on.
    pub dataset: Option<String>,
    /// The version of that dataset.
    pub dataset_version: Option<u32>,
    /// The digest of that dataset version.
    pub dataset_digest: Option<String>,
    /// Rows of the training data; zero when unknown.
    pub training_rows: u64,
    /// The aliases that point at it.
    pub aliases: Vec<String>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A version to be created.
#[derive(Debug, Clone)]
pub struct NewModelVersion {
    /// The project.
    pub project: String,
    /// The model, which is created where it is missing.
    pub model: String,
    /// What its maker says about it.
    pub description: String,
    /// The format of its file; empty: it has none.
    pub format: String,
    /// Its file.
    pub artifact_digest: String,
    /// The size of its file in bytes.
    pub artifact_size_bytes: u64,
    /// The files that its file lists.
    pub files: Vec<NamedBlob>,
    /// What it takes and gives (JSON).
    pub signature: String,
    /// The Sigstore bundle with the signature of its files.
    pub bundle: Option<NamedBlob>,
    /// The profile of its training data.
    pub reference_profile_digest: Option<String>,
    /// The size of that profile in bytes.
    pub reference_profile_size_bytes: u64,
    /// What was counted of removals of blobs before its blobs were looked for.
    pub removals: i64,
    /// Its metrics.
    pub metrics: BTreeMap<String, f64>,
    /// The run that trained it.
    pub run_id: Option<String>,
    /// The dataset version that it was trained on.
    pub dataset: Option<(String, u32)>,
    /// Rows of the training data.
    pub training_rows: u64,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// Aliases that shall point at it.
    pub aliases: Vec<String>,
    /// Repeating a creation with the same key finds the first one's version.
    pub idempotency_key: Option<String>,
    /// Digest of the request.
    pub request_digest: String,
    /// Who asks.
    pub changed_by: String,
    /// What the audit chain is told.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

impl NewModelVersion {
    /// The blobs that it names.
    #[must_use]
    pub fn blobs(&self) -> Vec<NamedBlob> {
        let file = (!self.artifact_digest.is_empty()).then(|| NamedBlob {
            digest: self.artifact_digest.clone(),
            size_bytes: self.artifact_size_bytes,
        });
        let profile = self.reference_profile_digest.as_ref().map(|digest| NamedBlob {
            digest: digest.clone(),
            size_bytes: self.reference_profile_size_bytes,
        });
        file.into_iter()
            .chain(profile)
            .chain(self.bundle.clone())
            .chain(self.files.iter().cloned())
            .collect()
    }
}

/// The signature of a model of which nobody said what it takes and gives.
#[must_use]
pub fn no_signature() -> serde_json::Value {
    serde_json::json!({"inputs": [], "outputs": []})
}

/// Checks metrics: finite numbers.
pub fn check_metrics(metrics: &BTreeMap<String, f64>) -> Result<()> {
    if metrics.len() > MAX_METRICS {
        return Err(Error::request(format!(
            "{} metrics are too many: use at most {MAX_METRICS}",
            metrics.len()
        )));
    }
    let bad = metrics
        .iter()
        .find(|(name, value)| name.is_empty() || name.len() > MAX_KEY_BYTES || !value.is_finite());
    match bad {
        None => Ok(()),
        Some((name, value)) => Err(Error::request(format!(
            "metric `{name}` is {value}: give a finite number under a name of 1 to {MAX_KEY_BYTES} bytes"
        ))),
    }
}

/// Checks a signature: an object with the lists `inputs` and `outputs`, whose entries have a name and a type.
pub fn check_signature(signature: &serde_json::Value) -> Result<()> {
    for part in ["inputs", "outputs"] {
        let entries = signature.get(part).and_then(serde_json::Value::as_array);
        let whole = entries.is_some_and(|entries| {
            !entries.is_empty()
                && entries.iter().all(|entry| {
                    let text = |key: &str| entry.get(key).is_some_and(serde_json::Value::is_string);
                    text("name") && text("type")
                })
        });
        if !whole {
            return Err(Error::request(format!(
                "the signature has no `{part}` with `name` and `type` each: leave it out to have it read from the model"
            )));
        }
    }
    Ok(())
}

/// Checks an idempotency key; an empty one is none.
pub fn idempotency_key(key: &str) -> Result<Option<String>> {
    if key.len() > MAX_IDEMPOTENCY_KEY_BYTES || key.contains('\0') {
        return Err(Error::request(format!(
            "the idempotency key has {} bytes: use at most {MAX_IDEMPOTENCY_KEY_BYTES}, without NUL",
            key.len()
        )));
    }
    Ok(Some(key.to_owned()).filter(|key| !key.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn signatures_have_inputs_and_outputs() {
        let entry = json!([{"name": "x", "type": "double", "required": true}]);
        assert!(check_signature(&json!({"inputs": entry, "outputs": entry})).is_ok());
        for bad in [
            json!(null),
            json!([]),
            json!({"inputs": entry}),
            json!({"inputs": [], "outputs": entry}),
            json!({"inputs": [{"name": "x"}], "outputs": entry}),
            json!({"inputs": "[]", "outputs": entry}),
        ] {
            assert!(check_signature(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_finite_metrics_are_taken() {
        let metrics = |value| BTreeMap::from([("auc".to_owned(), value)]);
        assert!(check_metrics(&metrics(0.7)).is_ok());
        assert!(check_metrics(&metrics(f64::NAN)).is_err());
        assert!(check_metrics(&metrics(f64::INFINITY)).is_err());
    }
}
