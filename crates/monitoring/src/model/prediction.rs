//! The story of one prediction.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::label::LabelValue;

/// The label of a row.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct KnownLabel {
    /// What turned out to be true.
    pub value: LabelValue,
    /// When it was known.
    pub observed_at: Timestamp,
}

/// One answer to one row of the request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PredictionRow {
    /// The index of the instance in its request.
    pub row: i32,
    /// When what is predicted about happened, or the request was made.
    pub event_time: Timestamp,
    /// When the request arrived.
    pub received_at: Timestamp,
    /// `live` or `shadow`.
    pub role: String,
    /// The model.
    pub model: String,
    /// The version that answered.
    pub version: u32,
    /// `http` or `grpc`.
    pub protocol: String,
    /// How long the answer took, in microseconds.
    pub latency_us: i64,
    /// The inputs by name; missing ones are left out.
    #[schema(value_type = Object)]
    pub inputs: Map<String, Value>,
    /// The outputs by name.
    #[schema(value_type = Object)]
    pub outputs: Map<String, Value>,
    /// How it turned out; null while that is not known.
    pub label: Option<KnownLabel>,
}

/// The version that answered, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ServedModelVersion)]
pub struct ServedVersion {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u32,
    /// The aliases that point at it now.
    pub aliases: Vec<String>,
    /// The metrics that it was registered with, measured on held-out data.
    pub metrics: BTreeMap<String, f64>,
    /// Content address of the model file.
    pub digest: String,
    /// The run that trained it; null when it was imported.
    pub run_id: Option<String>,
    /// The dataset that it was trained on; null when it was imported.
    pub dataset: Option<String>,
    /// The dataset's version.
    pub dataset_version: Option<u32>,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// A dataset version that a run has read.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = TrainingInput)]
pub struct RunInput {
    /// The dataset.
    pub dataset: String,
    /// Its version.
    pub version: u32,
    /// Content address of its manifest.
    pub digest: String,
    /// What it was read for.
    pub context: String,
}

/// The run that trained the version.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrainingRun {
    /// Its id.
    pub run_id: String,
    /// Its name.
    pub name: String,
    /// Its experiment.
    pub experiment: String,
    /// `running`, `scheduled`, `finished`, `failed` or `killed`.
    pub status: &'static str,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; null while it goes on.
    pub ended_at: Option<Timestamp>,
    /// Its params.
    pub params: BTreeMap<String, String>,
    /// The latest value of every metric.
    pub metrics: BTreeMap<String, f64>,
    /// The dataset versions that it read.
    pub inputs: Vec<RunInput>,
}

/// Everything about one request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Prediction {
    /// The request's id.
    pub request_id: String,
    /// The endpoint that answered.
    pub endpoint: String,
    /// The answers, live ones first.
    pub rows: Vec<PredictionRow>,
    /// The version whose answer the caller got; null if the registry does not know it.
    pub model_version: Option<ServedVersion>,
    /// The run that trained it; null when it was imported.
    pub run: Option<TrainingRun>,
}
