//! Declared resources: what was asked for, and since when.

use modelyard_common::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// A declared resource with its spec.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = MonitoringResource)]
pub struct Resource<S> {
    /// What it is.
    pub kind: &'static str,
    /// Its name, unique within its kind and project.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// What was declared.
    pub spec: S,
    /// When it was first declared.
    pub created_at: Timestamp,
    /// When its spec last changed.
    pub updated_at: Timestamp,
}

/// What declaring a resource did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MonitoringOutcome)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was different.
    Updated,
    /// It was the same.
    Unchanged,
}

/// The answer to a declaration.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = MonitoringApplied)]
pub struct Applied<S> {
    /// What happened.
    pub outcome: Outcome,
    /// The resource as it is now.
    pub resource: Resource<S>,
}
