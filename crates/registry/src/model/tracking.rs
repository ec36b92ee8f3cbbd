//! What MLflow's protocol tells of experiments and runs beyond what our own does.

use std::collections::BTreeMap;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::run::{MetricPoint, RunStatus};

/// The experiment that every project has.
pub const DEFAULT_EXPERIMENT: &str = "Default";
/// Where the server keeps artifacts itself.
pub const PROXY_SCHEME: &str = "mlflow-artifacts:/";
/// The tag that shows the name of a run.
pub const RUN_NAME_TAG: &str = "mlflow.runName";
/// The tag of a dataset input that says what the dataset was read for.
pub const CONTEXT_TAG: &str = "mlflow.data.context";
/// The longest value of a tag of an experiment, in bytes.
pub const MAX_EXPERIMENT_TAG_BYTES: usize = 20_000;

/// Whether something is there or was deleted; what was deleted can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// It is there.
    Active,
    /// It was deleted.
    Deleted,
}

impl Lifecycle {
    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deleted => "deleted",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Deleted]
            .into_iter()
            .find(|lifecycle| lifecycle.as_str() == text)
    }
}

/// An experiment to be created.
#[derive(Debug, Clone)]
pub struct NewExperiment {
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// Where clients put its artifacts; empty: the server's own store.
    pub artifact_location: String,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// What the audit chain is told.
    pub event: NewEvent,
}

/// What becomes of an experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExperimentChange {
    /// It gets another name.
    Rename(String),
    /// It is deleted with its runs.
    Delete,
    /// It comes back with its runs.
    Restore,
}

/// What becomes of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunChange {
    /// Where it is in its life.
    pub status: Option<RunStatus>,
    /// When it ended.
    pub end_time: Option<Timestamp>,
    /// Its name.
    pub name: Option<String>,
    /// Whether it is there.
    pub lifecycle: Option<Lifecycle>,
}

/// A dataset that a client describes and a run reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunDataset {
    /// Its name.
    pub name: String,
    /// What tells it from others with its name.
    pub digest: String,
    /// What it was read for, such as `training`; empty: that was not said.
    pub context: String,
    /// The kind of its source.
    pub source_type: String,
    /// Its source, as JSON.
    pub source: String,
    /// Its columns, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Its profile, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Notes, but the context.
    pub tags: Vec<(String, String)>,
}

impl RunDataset {
    /// About how many bytes of names and texts it has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let optional = [&self.schema, &self.profile].map(|text| text.as_ref().map_or(0, String::len));
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.name.len() + self.source.len() + optional.iter().sum::<usize>() + tags
    }
}

/// What a logged model is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelRole {
    /// The run read it.
    Input,
    /// The run made it.
    Output,
}

impl ModelRole {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Input, Self::Output]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// A logged model that a run read or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunModel {
    /// The logged model.
    pub model_id: String,
    /// What it is to the run.
    pub role: ModelRole,
    /// The step at which it was made.
    pub step: i64,
}

/// A value of a metric that was measured on a logged model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelMetric {
    /// The logged model.
    pub model_id: String,
    /// The dataset on which it was measured, by name and digest; empty: that was not said.
    pub dataset: (String, String),
    /// The metric.
    pub key: String,
    /// The value.
    pub point: MetricPoint,
}

/// Values of a metric at some steps of several runs, for a chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricSampling {
    /// The runs.
    pub run_ids: Vec<String>,
    /// The metric.
    pub key: String,
    /// The first and the last step.
    pub steps: Option<(i64, i64)>,
    /// The most steps of each run.
    pub limit: u32,
}
