//! Declared resources: what was asked for, and since when.

use modelyard_auth::{Action, Kind};
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// The kinds of resources that the orchestrator owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = OrchestratorResourceKind)]
pub enum ResourceKind {
    /// A DAG of steps.
    Pipeline,
    /// What starts a pipeline when something happened.
    Trigger,
}

impl ResourceKind {
    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pipeline => "Pipeline",
            Self::Trigger => "Trigger",
        }
    }

    /// What decisions and the audit chain know it as.
    #[must_use]
    pub const fn protected(self) -> Kind {
        match self {
            Self::Pipeline => Kind::Pipeline,
            Self::Trigger => Kind::Trigger,
        }
    }

    /// Looking at it.
    #[must_use]
    pub const fn read(self) -> Action {
        match self {
            Self::Pipeline => Action::PipelineRead,
            Self::Trigger => Action::TriggerRead,
        }
    }

    /// Changing it.
    #[must_use]
    pub const fn write(self) -> Action {
        match self {
            Self::Pipeline => Action::PipelineWrite,
            Self::Trigger => Action::TriggerWrite,
        }
    }

    /// With its article, for messages.
    #[must_use]
    pub const fn described(self) -> &'static str {
        match self {
            Self::Pipeline => "a pipeline",
            Self::Trigger => "a trigger",
        }
    }

    /// In lower case, for messages.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Trigger => "trigger",
        }
    }
}

/// A declared resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = OrchestratorResource)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Its name, unique within its kind and project.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// What was declared.
    #[schema(value_type = Object)]
    pub spec: Value,
    /// Who declared it as it is, with the scope of the token; what it starts works with these rights.
    pub applied_by: String,
    /// When it was first declared.
    pub created_at: Timestamp,
    /// When its spec last changed.
    pub updated_at: Timestamp,
}

/// What declaring a resource did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OrchestratorOutcome)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was different.
    Updated,
    /// It was the same.
    Unchanged,
}

/// The answer to a declaration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = OrchestratorApplied)]
pub struct AppliedResource {
    /// What happened.
    pub outcome: Outcome,
    /// The resource as it is now.
    pub resource: Resource,
}

/// One page of resources, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = OrchestratorResourcePage)]
pub struct ResourcePage {
    /// The resources.
    pub items: Vec<Resource>,
    /// Where the next page begins; null at the end.
    pub next_cursor: Option<String>,
}
