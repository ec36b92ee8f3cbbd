//! Model versions as rows.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;

use super::{json, maybe, number};
use crate::{error::Result, model::registered_model::ModelVersion};

/// The columns of [`VersionRow`], from `model_version v` and `dataset_version d`.
macro_rules! select_versions {
    ($rest:literal) => {
        concat!(
            "SELECT v.project, v.model, v.version, v.description, v.format, v.artifact_digest, v.artifact_size_bytes,
                    v.signature, v.bundle_digest, v.reference_profile_digest, v.metrics, v.run_id, v.dataset, v.dataset_version,
                    d.digest AS dataset_digest, v.training_rows, v.request_digest, v.created_at
             FROM model_version v
             LEFT JOIN dataset_version d
             ON d.project = v.project AND d.dataset = v.dataset AND d.version = v.dataset_version ",
            $rest
        )
    };
}
pub(super) use select_versions;

#[derive(sqlx::FromRow)]
pub(super) struct VersionRow {
    pub(super) project: String,
    pub(super) model: String,
    pub(super) version: i64,
    description: String,
    format: String,
    artifact_digest: String,
    artifact_size_bytes: i64,
    signature: String,
    bundle_digest: Option<String>,
    reference_profile_digest: Option<String>,
    metrics: String,
    run_id: Option<String>,
    dataset: Option<String>,
    dataset_version: Option<i64>,
    dataset_digest: Option<String>,
    training_rows: i64,
    pub(super) request_digest: String,
    created_at: i64,
}

impl VersionRow {
    pub(super) fn into_version(self, aliases: Vec<String>, tags: BTreeMap<String, String>) -> Result<ModelVersion> {
        Ok(ModelVersion {
            project: self.project,
            model: self.model,
            version: number("version", self.version)?,
            description: self.description,
            format: self.format,
            artifact_digest: self.artifact_digest,
            artifact_size_bytes: number("size", self.artifact_size_bytes)?,
            signature: json("signature", &self.signature)?,
            bundle_digest: self.bundle_digest,
            reference_profile_digest: self.reference_profile_digest,
            metrics: json("list of metrics", &self.metrics)?,
            run_id: self.run_id,
            dataset: self.dataset,
            dataset_version: maybe("version", self.dataset_version)?,
            dataset_digest: self.dataset_digest,
            training_rows: number("rows", self.training_rows)?,
            aliases,
            tags,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}
