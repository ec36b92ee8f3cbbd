//! Projects: what belongs to different ones never meets.

use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{access::MAX_DESCRIPTION_BYTES, run::check_text};
use crate::error::Result;

/// The project that is always there.
pub const DEFAULT_PROJECT: &str = "default";

/// What a project shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectSpec {
    /// What it is for.
    pub description: String,
}

impl ProjectSpec {
    /// Checks the spec of the project `name`.
    pub fn check(&self, name: &str) -> Result<()> {
        check_name("a project", name)?;
        check_text("description of project", name, &self.description, MAX_DESCRIPTION_BYTES)
    }
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Project {
    /// `Project`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it shall be.
    pub spec: ProjectSpec,
    /// When it was created.
    pub created_at: Timestamp,
}
