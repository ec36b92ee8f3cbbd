//! What webhooks may do, as an operator says it.

use std::{path::PathBuf, time::Duration};

use modelyard_common::config::duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest time that a delivery may take.
const MAX_TIMEOUT: Duration = Duration::from_mins(5);
/// The most deliveries at the same time.
const MAX_CONCURRENCY: usize = 64;
/// The most attempts.
const MAX_ATTEMPTS: u32 = 100;

/// Where webhooks may go, and how hard they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Whether webhooks may go to `http` addresses, where others can read what is sent.
    pub allow_http: bool,
    /// Whether webhooks may go to this machine and to private networks. Link-local addresses and the metadata services of
    /// clouds are refused in any case.
    pub allow_private_addresses: bool,
    /// File with certificates to trust beside the system's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// How many deliveries one process of the registry sends at the same time, 1 to 64.
    pub concurrency: usize,
    /// The longest time that an attempt may take, up to 5 minutes.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How often a delivery is tried while nothing answers, or with 429 or 500 and above; the waits double from a second to
    /// ten minutes.
    pub max_attempts: u32,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_private_addresses: false,
            ca_file: None,
            concurrency: 10,
            timeout: Duration::from_secs(30),
            max_attempts: 12,
        }
    }
}

impl Webhooks {
    /// Checks the limits.
    pub fn validate(&self) -> Result<()> {
        let problem = if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            format!("`registry.webhooks.concurrency` must be 1 to {MAX_CONCURRENCY}")
        } else if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            format!("`registry.webhooks.timeout` must be up to {} s", MAX_TIMEOUT.as_secs())
        } else if !(1..=MAX_ATTEMPTS).contains(&self.max_attempts) {
            format!("`registry.webhooks.max_attempts` must be 1 to {MAX_ATTEMPTS}")
        } else {
            return Ok(());
        };
        Err(Error::Request(problem))
    }
}
