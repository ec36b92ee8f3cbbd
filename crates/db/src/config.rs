//! Which database a service uses.

use modelyard_common::config::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most connections that one service opens to a server.
pub const MAX_CONNECTIONS: u32 = 200;

/// Which database a service uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Without it, a SQLite file in the data folder.
    pub url: Option<Secret>,
    /// The most connections open at once; for SQLite, those that read.
    pub max_connections: u32,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: None,
            max_connections: 8,
        }
    }
}

impl DatabaseConfig {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_CONNECTIONS).contains(&self.max_connections) {
            return Err(Error::Config {
                message: format!(
                    "database.max_connections is {}: set it between 1 and {MAX_CONNECTIONS}",
                    self.max_connections
                ),
            });
        }
        let schemes = ["postgres://", "postgresql://"];
        match &self.url {
            Some(url) if !schemes.iter().any(|scheme| url.reveal().starts_with(scheme)) => Err(Error::Config {
                message:
                    "database.url must begin with postgres://: leave it out to use a SQLite file in the data folder"
                        .to_owned(),
            }),
            _ => Ok(()),
        }
    }
}
