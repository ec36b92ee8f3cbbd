//! The registry's configuration.

use modelyard_db::DatabaseConfig;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Configuration of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where projects, runs, datasets, models and endpoints are kept.
    pub database: DatabaseConfig,
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<()> {
        Ok(self.database.validate()?)
    }
}
