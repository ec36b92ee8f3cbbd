//! Experiments and runs as rows.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;

use super::{json, word};
use crate::{
    error::Result,
    model::{
        run::{MetricPoint, MetricValue, Run, RunStatus},
        tracking::{Lifecycle, ModelRole, PROXY_SCHEME, RunDataset, RunModel},
    },
};

#[derive(sqlx::FromRow)]
pub(super) struct RunRow {
    pub(super) id: String,
    pub(super) project: String,
    pub(super) experiment_id: i64,
    pub(super) experiment: String,
    pub(super) name: String,
    pub(super) user_id: String,
    pub(super) status: String,
    pub(super) lifecycle: String,
    pub(super) artifact_location: String,
    pub(super) start_time: i64,
    pub(super) end_time: Option<i64>,
    pub(super) request_digest: String,
}

/// The columns of [`RunRow`].
macro_rules! select_runs {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.project, r.experiment_id, e.name AS experiment, r.name, r.user_id, r.status, r.lifecycle,
                    e.artifact_location, r.start_time, r.end_time, r.request_digest
             FROM run r JOIN experiment e ON e.id = r.experiment_id ",
            $rest
        )
    };
}
pub(super) use select_runs;

/// Where clients put the artifacts of a run.
pub(super) fn artifact_uri(location: &str, experiment_id: i64, run_id: &str) -> String {
    if location.is_empty() {
        format!("{PROXY_SCHEME}{experiment_id}/{run_id}/artifacts")
    } else {
        format!("{}/{run_id}/artifacts", location.trim_end_matches('/'))
    }
}

impl RunRow {
    pub(super) fn into_run(self) -> Result<Run> {
        Ok(Run {
            artifact_uri: artifact_uri(&self.artifact_location, self.experiment_id, &self.id),
            user_id: self.user_id,
            lifecycle: word("lifecycle of a run", &self.lifecycle, Lifecycle::parse)?,
            datasets: Vec::new(),
            models: Vec::new(),
            run_id: self.id,
            project: self.project,
            experiment_id: self.experiment_id.to_string(),
            experiment: self.experiment,
            name: self.name,
            status: word("status of a run", &self.status, RunStatus::parse)?,
            start_time: Timestamp::from_micros(self.start_time),
            end_time: self.end_time.map(Timestamp::from_micros),
            params: BTreeMap::new(),
            metrics: BTreeMap::new(),
            tags: BTreeMap::new(),
            inputs: Vec::new(),
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct PointRow {
    pub(super) timestamp: i64,
    pub(super) step: i64,
    pub(super) value: f64,
    pub(super) is_nan: i64,
}

impl PointRow {
    pub(super) fn into_point(self) -> MetricPoint {
        let value = if self.is_nan == 0 { self.value } else { f64::NAN };
        MetricPoint {
            value: MetricValue(value),
            timestamp: Timestamp::from_micros(self.timestamp),
            step: self.step,
        }
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct LatestRow {
    pub(super) run_id: String,
    pub(super) key: String,
    #[sqlx(flatten)]
    pub(super) point: PointRow,
}

#[derive(sqlx::FromRow)]
pub(super) struct InputRow {
    pub(super) run_id: String,
    pub(super) dataset: String,
    pub(super) version: i64,
    pub(super) digest: String,
    pub(super) context: String,
}

#[derive(sqlx::FromRow)]
pub(super) struct DatasetRow {
    pub(super) run_id: String,
    name: String,
    digest: String,
    context: String,
    source_type: String,
    source: String,
    schema: Option<String>,
    profile: Option<String>,
    tags: String,
}

impl DatasetRow {
    pub(super) fn into_dataset(self) -> Result<RunDataset> {
        Ok(RunDataset {
            name: self.name,
            digest: self.digest,
            context: self.context,
            source_type: self.source_type,
            source: self.source,
            schema: self.schema,
            profile: self.profile,
            tags: json("tags of a dataset", &self.tags)?,
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct ModelRow {
    pub(super) run_id: String,
    role: String,
    model_id: String,
    step: i64,
}

impl ModelRow {
    pub(super) fn into_model(self) -> Result<RunModel> {
        Ok(RunModel {
            model_id: self.model_id,
            role: word("role of a model", &self.role, ModelRole::parse)?,
            step: self.step,
        })
    }
}

/// A point as it is stored: the value, and whether it is NaN.
pub(super) fn stored_value(point: &MetricPoint) -> (f64, i64) {
    if point.value.0.is_nan() {
        (0.0, 1)
    } else {
        // The two zeros are one value, and one row.
        (point.value.0 + 0.0, 0)
    }
}
