//! What happened, for those who follow.

use modelyard_common::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A model has a new version: `model`, `version`.
    ModelVersionCreated,
    /// A version of a model was signed: `model`, `version`.
    ModelVersionSigned,
    /// An alias points at another version: `model`, `alias`, `version`, `previous_version`.
    AliasSet,
    /// An alias is gone: `model`, `alias`, `previous_version`.
    AliasRemoved,
    /// A dataset has a new version: `dataset`, `version`.
    DatasetVersionCreated,
    /// An endpoint is new or has another spec: `endpoint`.
    EndpointChanged,
    /// An endpoint is gone: `endpoint`.
    EndpointDeleted,
}

impl EventKind {
    const ALL: [Self; 7] = [
        Self::ModelVersionCreated,
        Self::ModelVersionSigned,
        Self::AliasSet,
        Self::AliasRemoved,
        Self::DatasetVersionCreated,
        Self::EndpointChanged,
        Self::EndpointDeleted,
    ];

    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ModelVersionCreated => "model_version_created",
            Self::ModelVersionSigned => "model_version_signed",
            Self::AliasSet => "alias_set",
            Self::AliasRemoved => "alias_removed",
            Self::DatasetVersionCreated => "dataset_version_created",
            Self::EndpointChanged => "endpoint_changed",
            Self::EndpointDeleted => "endpoint_deleted",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// Its place in the order of all changes; the cursor of the feed.
    pub revision: u64,
    /// The project.
    pub project: String,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// What it happened to; see [`EventKind`].
    pub subject: serde_json::Value,
    /// When.
    pub at: Timestamp,
}
