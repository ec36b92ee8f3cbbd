//! How the orchestrator works.

use std::time::Duration;

use modelyard_common::config::duration;
use modelyard_db::DatabaseConfig;
use modelyard_jobs::{KEEP_FINISHED, MAX_CONCURRENCY};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The shortest lease: heartbeats must be able to keep it on a busy machine.
const MIN_LEASE: Duration = Duration::from_secs(3);

/// How the orchestrator works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where pipelines and runs are stored.
    pub database: DatabaseConfig,
    /// How many steps that only call other services are worked on at once, 1 to 256.
    pub light_steps: usize,
    /// How many steps that compute (training, evaluation) are worked on at once, 1 to 256. Each takes all cores.
    pub heavy_steps: usize,
    /// How long another node waits before it takes over the steps of one that has vanished: 3 s at least.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// How long finished runs are kept: 7 days at least, as long as the attempts of their steps.
    #[serde(with = "duration")]
    pub keep_runs: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database: DatabaseConfig::default(),
            light_steps: 4,
            heavy_steps: 1,
            lease: Duration::from_secs(30),
            keep_runs: Duration::from_hours(365 * 24),
        }
    }
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<()> {
        self.database.validate()?;
        for (key, value) in [("light_steps", self.light_steps), ("heavy_steps", self.heavy_steps)] {
            if !(1..=MAX_CONCURRENCY).contains(&value) {
                return Err(Error::Config(format!(
                    "{key} is {value}: set it between 1 and {MAX_CONCURRENCY}"
                )));
            }
        }
        if self.lease < MIN_LEASE {
            return Err(Error::Config(format!(
                "lease is {:?}: set it to {MIN_LEASE:?} or more",
                self.lease
            )));
        }
        if self.keep_runs < KEEP_FINISHED {
            return Err(Error::Config(format!(
                "keep_runs is {:?}: set it to 7d or more",
                self.keep_runs
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bounds_are_named() {
        assert!(Config::default().validate().is_ok());
        let bad = [
            (
                Config {
                    light_steps: 0,
                    ..Config::default()
                },
                "light_steps",
            ),
            (
                Config {
                    heavy_steps: 1_000,
                    ..Config::default()
                },
                "heavy_steps",
            ),
            (
                Config {
                    lease: Duration::from_millis(1),
                    ..Config::default()
                },
                "lease",
            ),
            (
                Config {
                    keep_runs: Duration::ZERO,
                    ..Config::default()
                },
                "keep_runs",
            ),
        ];
        for (config, key) in bad {
            let error = config.validate().map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains(key)), "{key}");
        }
    }
}
