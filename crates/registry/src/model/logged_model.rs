//! Logged models: what a run made and keeps as artifacts, before and beside its registration.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;

use super::{
    run::MetricPoint,
    tracking::{Lifecycle, PROXY_SCHEME},
};
use crate::search::{Filter, Order};

/// The most params, and the most tags, that are given at once.
pub const MAX_TEXTS: usize = 1000;

/// How far a logged model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoggedModelStatus {
    /// Its files are on their way.
    Pending,
    /// It can be loaded.
    Ready,
    /// Its files did not arrive.
    Failed,
}

impl LoggedModelStatus {
    const ALL: [Self; 3] = [Self::Pending, Self::Ready, Self::Failed];

    /// As it is stored and searched for.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
        }
    }

    /// As MLflow's messages have it.
    #[must_use]
    pub const fn message_name(self) -> &'static str {
        match self {
            Self::Pending => "LOGGED_MODEL_PENDING",
            Self::Ready => "LOGGED_MODEL_READY",
            Self::Failed => "LOGGED_MODEL_UPLOAD_FAILED",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// The status of a message: its name or its number.
    pub(crate) fn of_message(text: &str) -> Option<Self> {
        let by_name = Self::ALL.into_iter().find(|status| status.message_name() == text);
        by_name.or(match text {
            "1" => Some(Self::Pending),
            "2" => Some(Self::Ready),
            "3" => Some(Self::Failed),
            _ => None,
        })
    }
}

/// A metric that was measured on a logged model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedMetric {
    /// The metric.
    pub key: String,
    /// Its latest value.
    pub point: MetricPoint,
    /// The run that measured it.
    pub run_id: String,
    /// The dataset on which it was measured, by name and digest; empty: that was not said.
    pub dataset: (String, String),
}

/// A logged model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedModel {
    /// `m-` and 32 hexadecimal digits.
    pub model_id: String,
    /// The project.
    pub project: String,
    /// Its experiment.
    pub experiment_id: i64,
    /// Where the experiment keeps artifacts.
    pub artifact_location: String,
    /// Its name, which others may have, too.
    pub name: String,
    /// What it is for; empty: that was not said.
    pub model_type: String,
    /// How far it is.
    pub status: LoggedModelStatus,
    /// The run that made it.
    pub source_run_id: Option<String>,
    /// Whether it is there.
    pub lifecycle: Lifecycle,
    /// What it was made with.
    pub params: BTreeMap<String, String>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// The latest value of each metric on each dataset.
    pub metrics: Vec<LoggedMetric>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl LoggedModel {
    /// Where clients put its artifacts.
    #[must_use]
    pub fn artifact_uri(&self) -> String {
        let root = if self.artifact_location.is_empty() {
            format!("{PROXY_SCHEME}{}", self.experiment_id)
        } else {
            self.artifact_location.trim_end_matches('/').to_owned()
        };
        format!("{root}/models/{}/artifacts", self.model_id)
    }
}

/// A logged model to be made.
#[derive(Debug, Clone)]
pub struct NewLoggedModel {
    /// Its id.
    pub model_id: String,
    /// The project.
    pub project: String,
    /// Its experiment.
    pub experiment_id: i64,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub model_type: String,
    /// The run that makes it.
    pub source_run_id: Option<String>,
    /// What it is made with.
    pub params: BTreeMap<String, String>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// Now.
    pub now: Timestamp,
}

/// What becomes of a logged model.
#[derive(Debug, Clone, Default)]
pub struct LoggedModelChange {
    /// How far it is.
    pub status: Option<LoggedModelStatus>,
    /// Params that are added.
    pub params: BTreeMap<String, String>,
    /// Tags that are set.
    pub tags: BTreeMap<String, String>,
    /// It is deleted.
    pub delete: bool,
}

/// A term of an order: a metric may be one on a dataset.
#[derive(Debug, Clone)]
pub struct LoggedModelOrder {
    /// The field.
    pub order: Order,
    /// The dataset's name and digest; empty: any.
    pub dataset: (String, String),
}

/// Which logged models are wanted.
#[derive(Debug, Clone, Default)]
pub struct LoggedModelSearch {
    /// Those of these experiments.
    pub experiment_ids: Vec<i64>,
    /// Those that it lets through.
    pub filter: Option<Filter>,
    /// The datasets on which metrics count, by name and digest; empty digest: any; none: all datasets.
    pub datasets: Vec<(String, String)>,
    /// In which order.
    pub order: Vec<LoggedModelOrder>,
    /// The most of them.
    pub limit: u32,
    /// How many are passed over.
    pub offset: u64,
}
