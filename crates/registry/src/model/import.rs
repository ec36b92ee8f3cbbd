//! What is brought here from another MLflow server: things that keep their ids, numbers and times.

use std::collections::BTreeMap;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    logged_model::LoggedModelStatus,
    mlflow_registry::{NewVersionEntry, Stage, VersionStatus},
    run::{MAX_INPUTS, MetricPoint, MetricValue, RunStatus, check_key, check_text},
    tracking::{Lifecycle, ModelRole, RunDataset, RunModel},
};
use crate::error::{Error, Result};

/// The most things of one batch.
pub const MAX_IMPORTED: usize = 100;
/// The most points of one batch.
pub const MAX_IMPORTED_POINTS: usize = 25_000;
/// The most params, and the most tags, of one thing.
pub const MAX_IMPORTED_TEXTS: usize = 10_000;
/// The fingerprint of what went on at the source when its files were copied: a file of it can have another content later, and
/// still the same size. It stays until the whole has arrived.
pub const GOING_ON: &str = "going on";
/// The longest name of a source, in bytes.
const MAX_SOURCE_BYTES: usize = 1024;
/// The longest id, in bytes.
const MAX_ID_BYTES: usize = 256;

/// The kinds of things that are imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportKind {
    /// An experiment.
    Experiment,
    /// A run.
    Run,
    /// A logged model.
    LoggedModel,
    /// A registered model or a prompt.
    Model,
    /// A version of one: `NAME/VERSION`.
    Version,
}

impl ImportKind {
    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Experiment => "experiment",
            Self::Run => "run",
            Self::LoggedModel => "logged_model",
            Self::Model => "model",
            Self::Version => "version",
        }
    }
}

/// Where things go to and come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportScope {
    /// The project.
    pub project: String,
    /// The server that they come from.
    pub source: String,
}

/// Something to be imported, and what the audit chain is told of it.
#[derive(Debug, Clone)]
pub struct Audited<T> {
    /// The thing.
    pub item: T,
    /// Used when it comes into being.
    pub event: NewEvent,
}

/// What came of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportOutcome {
    /// It is new here.
    Created,
    /// It took the place of one without content that had its name.
    Adopted,
    /// It was imported before.
    Present,
}

/// What something that was imported is called here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImportedAs {
    /// Its id at the source.
    pub source_id: String,
    /// Its id here.
    pub id: String,
    /// What came of it.
    pub outcome: ImportOutcome,
}

/// An experiment of another server.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedExperiment {
    /// Its id there.
    pub source_id: String,
    /// Its name here.
    pub name: String,
    /// Whether it is there or was deleted.
    pub lifecycle: Lifecycle,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: i64,
    /// When it was changed last.
    pub updated_ms: i64,
}

/// A run of another server, with all but its metrics and artifacts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedRun {
    /// Its id, there and here.
    pub run_id: String,
    /// Its name.
    pub name: String,
    /// Who made it.
    #[serde(default)]
    pub user_id: String,
    /// Where it is in its life.
    pub status: RunStatus,
    /// Whether it is there or was deleted.
    pub lifecycle: Lifecycle,
    /// When it started, in milliseconds since the epoch.
    pub start_ms: i64,
    /// When it ended.
    #[serde(default)]
    pub end_ms: Option<i64>,
    /// What it was started with.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The datasets that it has read.
    #[serde(default)]
    pub datasets: Vec<ImportedDataset>,
    /// The logged models that it has read or made.
    #[serde(default)]
    pub models: Vec<ImportedRunModel>,
}

/// A dataset that a run has read.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedDataset {
    /// Its name.
    pub name: String,
    /// What tells it from others with its name.
    pub digest: String,
    /// What it was read for.
    #[serde(default)]
    pub context: String,
    /// The kind of its source.
    #[serde(default)]
    pub source_type: String,
    /// Its source, as JSON.
    #[serde(default)]
    pub source: String,
    /// Its columns, as JSON.
    #[serde(default)]
    pub schema: Option<String>,
    /// Its profile, as JSON.
    #[serde(default)]
    pub profile: Option<String>,
    /// Notes, but the context.
    #[serde(default)]
    pub tags: Vec<(String, String)>,
}

/// What a logged model is to a run.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedRunModel {
    /// The logged model.
    pub model_id: String,
    /// What it is to the run.
    pub role: ModelRole,
    /// The step at which it was made.
    #[serde(default)]
    pub step: i64,
}

/// The value of a metric: a number, or the text `NaN`, `Infinity` or `-Infinity`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ImportedValue {
    /// A number.
    Number(f64),
    /// A number that JSON has no form for.
    Text(String),
}

/// One value of a metric.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedPoint {
    /// When it was measured, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The step of the run that it belongs to.
    #[serde(default)]
    pub step: i64,
    /// The value.
    pub value: ImportedValue,
}

/// A value that was measured on a logged model.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedModelMetric {
    /// The metric.
    pub key: String,
    /// The run that measured it.
    pub run_id: String,
    /// The dataset on which it was measured.
    #[serde(default)]
    pub dataset_name: String,
    /// That dataset's digest.
    #[serde(default)]
    pub dataset_digest: String,
    /// The value.
    pub point: ImportedPoint,
}

/// A logged model of another server, with all but its files.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedLoggedModel {
    /// Its id, there and here.
    pub model_id: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub model_type: String,
    /// How far it is: `LOGGED_MODEL_READY` and so on, as MLflow writes it.
    pub status: String,
    /// The run that made it.
    #[serde(default)]
    pub source_run_id: Option<String>,
    /// What it was made with.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What was measured on it.
    #[serde(default)]
    pub metrics: Vec<ImportedModelMetric>,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: i64,
    /// When it was changed last.
    pub updated_ms: i64,
}

/// A registered model or a prompt of another server.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedModel {
    /// Its name there.
    pub source_id: String,
    /// Its name here.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: i64,
    /// When it was changed last.
    pub updated_ms: i64,
}

/// A version of a model of another server. Its files are here already, and `source` names them as they are called here.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportedVersion {
    /// Its number, there and here.
    pub version: u32,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Who made it.
    #[serde(default)]
    pub user_id: String,
    /// Where it stands.
    #[serde(default)]
    pub stage: String,
    /// `READY` and so on, as MLflow writes it.
    #[serde(default)]
    pub status: String,
    /// Why it cannot be used.
    #[serde(default)]
    pub status_message: String,
    /// Where its files are.
    #[serde(default)]
    pub source: String,
    /// The run that made it.
    #[serde(default)]
    pub run_id: Option<String>,
    /// A link to that run.
    #[serde(default)]
    pub run_link: String,
    /// The logged model that was registered.
    #[serde(default)]
    pub model_id: Option<String>,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: i64,
    /// When it was changed last.
    pub updated_ms: i64,
}

/// A version whose source was followed.
#[derive(Debug, Clone)]
pub struct ReadyVersion {
    /// What every version has.
    pub entry: NewVersionEntry,
    /// Its number.
    pub number: u32,
    /// Who made it.
    pub user_id: String,
    /// Where it stands.
    pub stage: Stage,
    /// Whether it can be used.
    pub status: VersionStatus,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// What was read of something at its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImportCounts {
    /// Points of metrics.
    pub points: u64,
    /// Files.
    pub files: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
}

/// How far the import of something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportState {
    /// Its id at the source.
    pub source_id: String,
    /// Its id here; it is not changed.
    #[serde(default)]
    pub id: String,
    /// What it looked like there when all of it had arrived; empty: some of it has not.
    pub fingerprint: String,
    /// What was read of it.
    #[serde(default)]
    pub counts: ImportCounts,
}

/// What of a source is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImportTotals {
    /// Runs.
    pub runs: u64,
    /// Params of runs.
    pub params: u64,
    /// Tags of runs.
    pub tags: u64,
    /// Points of metrics.
    pub points: u64,
    /// Datasets that runs have read, and logged models that they have read or made.
    pub links: u64,
    /// Logged models.
    pub logged_models: u64,
    /// Files of runs and logged models.
    pub files: u64,
    /// The size of these files, in bytes.
    pub bytes: u64,
}

/// Checks the name of a source.
pub fn check_import_source(source: &str) -> Result<()> {
    if !source.is_empty() && source.len() <= MAX_SOURCE_BYTES && !source.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::request(format!(
        "the source is not named well: use 1 to {MAX_SOURCE_BYTES} bytes on one line, such as its URL"
    )))
}

/// Checks the id of a run or logged model.
pub fn check_import_id(what: &str, id: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let begins = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && id.len() <= MAX_ID_BYTES && id.chars().all(is_good) {
        return Ok(());
    }
    let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is not an id of a {what}: use letters, digits, `_` and `-`, at most {MAX_ID_BYTES}"
    )))
}

/// Checks how many things a batch has.
pub fn check_import_batch(what: &str, count: usize, limit: usize) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Error::request(format!(
        "{count} {what} are too many at once: send at most {limit}"
    )))
}

/// Checks params or tags.
pub fn check_import_texts(what: &str, texts: &BTreeMap<String, String>, limit_bytes: usize) -> Result<()> {
    check_import_batch(&format!("{what}s"), texts.len(), MAX_IMPORTED_TEXTS)?;
    for (key, value) in texts {
        check_key(what, key)?;
        check_text(what, key, value, limit_bytes)?;
    }
    Ok(())
}

impl ImportedValue {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl ImportedPoint {
    /// The point, for the metric `key`.
    pub fn read(&self, key: &str) -> Result<MetricPoint> {
        let number = self.value.number().ok_or_else(|| {
            Error::request(format!(
                "a value of metric `{key}` is not a number: send a number, `NaN`, `Infinity` or `-Infinity`"
            ))
        })?;
        Ok(MetricPoint {
            // NaN stays and is told apart when it is stored.
            value: MetricValue(number.clamp(f64::MIN, f64::MAX)),
            timestamp: Timestamp::from_millis(self.timestamp_ms),
            step: self.step,
        })
    }
}

impl ImportedRun {
    /// The datasets that it has read.
    #[must_use]
    pub fn read_datasets(&self) -> Vec<RunDataset> {
        let datasets = self.datasets.iter().cloned().map(|dataset| RunDataset {
            name: dataset.name,
            digest: dataset.digest,
            context: dataset.context,
            source_type: dataset.source_type,
            source: dataset.source,
            schema: dataset.schema,
            profile: dataset.profile,
            tags: dataset.tags,
        });
        datasets.collect()
    }

    /// The logged models that it has read or made.
    pub fn read_models(&self) -> Result<Vec<RunModel>> {
        check_import_batch("models of a run", self.models.len(), 10 * MAX_INPUTS)?;
        let models = self.models.iter().map(|model| {
            check_import_id("logged model", &model.model_id)?;
            Ok(RunModel {
                model_id: model.model_id.clone(),
                role: model.role,
                step: model.step,
            })
        });
        models.collect()
    }
}

impl ImportedLoggedModel {
    /// How far it is.
    pub fn read_status(&self) -> Result<LoggedModelStatus> {
        LoggedModelStatus::of_message(&self.status).ok_or_else(|| {
            Error::request(format!(
                "logged model `{}` has no known status: send LOGGED_MODEL_PENDING, LOGGED_MODEL_READY or \
                 LOGGED_MODEL_UPLOAD_FAILED",
                self.model_id
            ))
        })
    }
}

impl ImportedVersion {
    /// Where it stands; nowhere, where that is not said.
    pub fn read_stage(&self) -> Result<Stage> {
        match self.stage.as_str() {
            "" => Ok(Stage::None),
            stage => Stage::read(stage),
        }
    }

    /// Whether it can be used.
    #[must_use]
    pub fn read_status(&self) -> VersionStatus {
        VersionStatus::parse(&self.status).unwrap_or(VersionStatus::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_json_lacks_come_as_texts() {
        let read = |text: &str| {
            let point: ImportedPoint = serde_json::from_str(text).unwrap();
            point.read("loss").map(|point| point.value.0)
        };
        assert!(read(r#"{"timestamp_ms": 1, "value": "NaN"}"#).unwrap().is_nan());
        let bits = |text: &str| read(text).unwrap().to_bits();
        assert_eq!(bits(r#"{"timestamp_ms": 1, "value": "-Infinity"}"#), f64::MIN.to_bits());
        assert_eq!(bits(r#"{"timestamp_ms": 1, "value": 2}"#), 2.0_f64.to_bits());
        let error = read(r#"{"timestamp_ms": 1, "value": "much"}"#).unwrap_err();
        assert!(error.to_string().contains("`loss`"), "{error}");
    }

    #[test]
    fn ids_are_those_of_mlflow() {
        for good in ["0a", "m-0a", "A_b-c"] {
            assert!(check_import_id("run", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a/b", "a b", "a\0", "ä", &"a".repeat(257)] {
            assert!(check_import_id("run", bad).is_err(), "{bad}");
        }
    }
}
