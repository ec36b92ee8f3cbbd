//! The registry's configuration.

use std::path::PathBuf;

use modelyard_auth::password::check_password;
use modelyard_common::config::Secret;
use modelyard_db::DatabaseConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    openid::{self, SignIn},
    service::FIRST_ADMIN,
    webhooks::WebhookConfig,
};

/// Configuration of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where projects, runs, datasets, models and endpoints are kept.
    pub database: DatabaseConfig,
    /// File with the keys that secrets are sealed with, one in a line, the first one seals. By default a file in the data
    /// folder, which is made at the first start; processes that share a database share the keys.
    pub key_file: Option<PathBuf>,
    /// The password of the user `admin`, who is made at the first start with `auth.sign_in` where the installation has no
    /// admin. Without it the admin comes in with the token that is printed then.
    pub admin_password: Option<Secret>,
    /// Where people and workloads sign in, beside names with passwords. The same in all processes of the registry.
    pub sign_in: SignIn,
    /// Where webhooks may go, and how hard they are tried.
    pub webhooks: WebhookConfig,
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<()> {
        self.database.validate()?;
        self.webhooks.validate()?;
        if let Some(password) = &self.admin_password {
            check_password(password.reveal(), FIRST_ADMIN)
                .map_err(|error| Error::request(format!("`registry.admin_password` cannot be used: {error}")))?;
        }
        let problems = self.sign_in.problems();
        if problems.is_empty() {
            return Ok(());
        }
        Err(openid::Error::Config(problems.join("; ")).into())
    }
}
