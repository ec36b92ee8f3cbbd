//! Experiments, runs and metrics as MLflow writes them: times in milliseconds, empty lists left out.

use modelyard_common::Timestamp;
use serde::{Serialize, Serializer};

use crate::model::{
    run::{Experiment, MetricPoint, MetricValue, Run, RunInput},
    tracking::{CONTEXT_TAG, ModelRole, RUN_NAME_TAG, RunDataset},
};

/// An answer without content.
#[derive(Serialize)]
pub(super) struct Empty {}

/// A key with a value.
#[derive(Serialize)]
pub(super) struct Pair {
    key: String,
    value: String,
}

/// The pairs of a map.
pub(super) fn pairs(map: impl IntoIterator<Item = (String, String)>) -> Vec<Pair> {
    map.into_iter().map(|(key, value)| Pair { key, value }).collect()
}

/// Serializes a time as milliseconds.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) fn millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(time.as_millis())
}

/// Serializes a time that may be missing as milliseconds.
#[expect(clippy::ref_option, reason = "serde calls it with a reference")]
pub(super) fn maybe_millis<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// An experiment.
#[derive(Serialize)]
pub(super) struct ExperimentAnswer {
    experiment_id: String,
    name: String,
    artifact_location: String,
    lifecycle_stage: &'static str,
    #[serde(serialize_with = "millis")]
    creation_time: Timestamp,
    #[serde(serialize_with = "millis")]
    last_update_time: Timestamp,
    workspace: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
}

impl From<Experiment> for ExperimentAnswer {
    fn from(experiment: Experiment) -> Self {
        Self {
            artifact_location: experiment.artifact_root(),
            experiment_id: experiment.experiment_id,
            name: experiment.name,
            lifecycle_stage: experiment.lifecycle.as_str(),
            creation_time: experiment.created_at,
            last_update_time: experiment.updated_at,
            workspace: experiment.project,
            tags: pairs(experiment.tags),
        }
    }
}

/// A value of a metric.
#[derive(Serialize)]
pub(super) struct MetricAnswer {
    key: String,
    value: MetricValue,
    #[serde(serialize_with = "millis")]
    timestamp: Timestamp,
    step: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
}

impl MetricAnswer {
    pub(super) fn new(key: &str, point: &MetricPoint, run_id: Option<&str>) -> Self {
        Self {
            key: key.to_owned(),
            value: point.value,
            timestamp: point.timestamp,
            step: point.step,
            run_id: run_id.map(str::to_owned),
        }
    }
}

/// What a run is.
#[derive(Serialize)]
pub(super) struct RunInfo {
    run_uuid: String,
    experiment_id: String,
    run_name: String,
    user_id: String,
    status: &'static str,
    #[serde(serialize_with = "millis")]
    start_time: Timestamp,
    #[serde(serialize_with = "maybe_millis", skip_serializing_if = "Option::is_none")]
    end_time: Option<Timestamp>,
    artifact_uri: String,
    lifecycle_stage: &'static str,
    run_id: String,
}

impl RunInfo {
    pub(super) fn new(run: &Run) -> Self {
        Self {
            run_uuid: run.run_id.clone(),
            experiment_id: run.experiment_id.clone(),
            run_name: run.name.clone(),
            user_id: run.user_id.clone(),
            status: run.status.as_str(),
            start_time: run.start_time,
            end_time: run.end_time,
            artifact_uri: run.artifact_uri.clone(),
            lifecycle_stage: run.lifecycle.as_str(),
            run_id: run.run_id.clone(),
        }
    }
}

#[derive(Serialize)]
struct RunData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<MetricAnswer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    params: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
}

#[derive(Serialize)]
struct DatasetAnswer {
    name: String,
    digest: String,
    source_type: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

#[derive(Serialize)]
struct DatasetInput {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
    dataset: DatasetAnswer,
}

#[derive(Serialize)]
struct ModelInput {
    model_id: String,
}

#[derive(Serialize)]
struct ModelOutput {
    model_id: String,
    step: i64,
}

#[derive(Serialize)]
struct RunInputs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dataset_inputs: Vec<DatasetInput>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_inputs: Vec<ModelInput>,
}

#[derive(Serialize)]
struct RunOutputs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_outputs: Vec<ModelOutput>,
}

/// A run with what it recorded.
#[derive(Serialize)]
pub(super) struct RunAnswer {
    info: RunInfo,
    data: RunData,
    inputs: RunInputs,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<RunOutputs>,
}

fn dataset(dataset: RunDataset) -> DatasetInput {
    let context = (!dataset.context.is_empty()).then(|| (CONTEXT_TAG.to_owned(), dataset.context));
    DatasetInput {
        tags: pairs(dataset.tags.into_iter().chain(context)),
        dataset: DatasetAnswer {
            name: dataset.name,
            digest: dataset.digest,
            source_type: dataset.source_type,
            source: dataset.source,
            schema: dataset.schema,
            profile: dataset.profile,
        },
    }
}

/// A dataset version of this server.
fn own_dataset(input: RunInput) -> DatasetInput {
    DatasetInput {
        tags: pairs([(CONTEXT_TAG.to_owned(), input.context)]),
        dataset: DatasetAnswer {
            source: serde_json::json!({"dataset": input.dataset, "version": input.version}).to_string(),
            name: input.dataset,
            digest: input.digest,
            source_type: "modelyard".to_owned(),
            schema: None,
            profile: None,
        },
    }
}

impl From<Run> for RunAnswer {
    fn from(mut run: Run) -> Self {
        // Runs of pipelines have a name and no such tag.
        run.tags
            .entry(RUN_NAME_TAG.to_owned())
            .or_insert_with(|| run.name.clone());
        let metrics = run.metrics.iter();
        let (inputs, outputs): (Vec<_>, Vec<_>) = run
            .models
            .iter()
            .cloned()
            .partition(|model| model.role == ModelRole::Input);
        let outputs = outputs.into_iter().map(|model| ModelOutput {
            model_id: model.model_id,
            step: model.step,
        });
        Self {
            info: RunInfo::new(&run),
            data: RunData {
                metrics: metrics
                    .map(|(key, point)| MetricAnswer::new(key, point, None))
                    .collect(),
                params: pairs(run.params),
                tags: pairs(run.tags),
            },
            inputs: RunInputs {
                dataset_inputs: run
                    .datasets
                    .into_iter()
                    .map(dataset)
                    .chain(run.inputs.into_iter().map(own_dataset))
                    .collect(),
                model_inputs: inputs
                    .into_iter()
                    .map(|model| ModelInput {
                        model_id: model.model_id,
                    })
                    .collect(),
            },
            outputs: Some(RunOutputs {
                model_outputs: outputs.collect(),
            })
            .filter(|outputs| !outputs.model_outputs.is_empty()),
        }
    }
}
