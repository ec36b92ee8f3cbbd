//! A run of a pipeline as it is shown.

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The largest outputs of one step, as JSON. What is larger belongs into artifacts, and its digest into the outputs.
pub const MAX_OUTPUT_BYTES: usize = 256 << 10;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PipelineRunStatus)]
pub enum RunStatus {
    /// No step has begun.
    Queued,
    /// Steps are being worked on.
    Running,
    /// Every step succeeded or was skipped because of its condition.
    Succeeded,
    /// A step failed.
    Failed,
    /// It was called off.
    Cancelled,
}

impl RunStatus {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will happen to it any more.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The status of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Waits for other steps.
    Pending,
    /// Waits for a worker; shown as `pending`.
    #[serde(rename = "pending", skip_deserializing)]
    Queued,
    /// Is being worked on.
    Running,
    /// Has outputs.
    Succeeded,
    /// Was given up.
    Failed,
    /// Its condition did not hold, or a step that it needs did not succeed.
    Skipped,
    /// The run was called off before it ended.
    Cancelled,
}

impl StepStatus {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// The word for it in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will happen to it any more.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped | Self::Cancelled)
    }

    /// The status of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// How far a step is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = StepProgress)]
pub struct Progress {
    /// Parts that are done.
    pub done: u64,
    /// Parts in all; zero while unknown.
    pub total: u64,
    /// What is happening.
    pub message: String,
}

/// What started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TriggerRef {
    /// The trigger.
    pub name: String,
    /// The key that it was fired with.
    pub key: String,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepRun {
    /// Its name.
    pub name: String,
    /// What it does.
    pub op: String,
    /// Where it stands.
    pub status: StepStatus,
    /// Which attempt is the latest; 0 before the first.
    pub attempt: u32,
    /// How far it is, while it says so.
    pub progress: Option<Progress>,
    /// What it gave; null before it succeeded, and in lists.
    #[schema(value_type = Option<Object>)]
    pub outputs: Option<Value>,
    /// Why it failed or was skipped, or why its last attempt failed.
    pub error: Option<String>,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// One run of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PipelineRun {
    /// Its id: a UUID that sorts by age.
    pub id: String,
    /// The project that it belongs to.
    pub project: String,
    /// The pipeline that it runs, as it was when the run was created.
    pub pipeline: String,
    /// All parameters, defaults included.
    #[schema(value_type = Object)]
    pub parameters: Map<String, Value>,
    /// Where it stands.
    pub status: RunStatus,
    /// What started it; null where a person did.
    pub trigger: Option<TriggerRef>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
    /// Its steps, in the order of the pipeline.
    pub steps: Vec<StepRun>,
}

/// One page of runs, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PipelineRunPage {
    /// The runs; their steps without outputs.
    pub items: Vec<PipelineRun>,
    /// Where the next page begins; null at the end.
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::parse(status.as_str()), Some(status));
        }
        for status in StepStatus::ALL {
            assert_eq!(StepStatus::parse(status.as_str()), Some(status));
        }
        assert_eq!(serde_json::to_value(StepStatus::Queued).ok(), Some("pending".into()));
    }
}
