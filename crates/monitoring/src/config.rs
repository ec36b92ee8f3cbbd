//! The configuration of monitoring.

use std::time::Duration;

use modelyard_common::config::{duration, size};
use modelyard_db::DatabaseConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most windows that are scored at once.
pub const MAX_SCORE_CONCURRENCY: usize = 64;
/// The least memory that queries can do anything with, in bytes.
pub const MIN_QUERY_MEMORY_BYTES: u64 = 16 << 20;
/// The most threads of queries.
pub const MAX_QUERY_THREADS: usize = 256;
/// The longest time between two scores of a window that still changes.
pub const MAX_SCORE_INTERVAL: Duration = Duration::from_hours(24);
/// The shortest time that windows and alerts are kept: the longest window's, or a label that comes as usual would find its
/// window forgotten.
pub const MIN_KEEP: Duration = Duration::from_hours(30 * 24);

/// Configuration of monitoring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where monitors, windows, scores and alerts are kept.
    pub database: DatabaseConfig,
    /// How many windows are scored at once.
    pub score_concurrency: usize,
    /// A window that still changes is scored again after this time at the earliest.
    #[serde(with = "duration")]
    pub score_interval: Duration,
    /// The memory of all queries over the inference log together. What needs more is written to the data folder.
    #[serde(with = "size")]
    pub query_memory: u64,
    /// How much queries may write to the data folder.
    #[serde(with = "size")]
    pub query_spill: u64,
    /// The threads of queries; 0: one for each core.
    pub query_threads: usize,
    /// How long windows with their scores and judgements are kept after their last change, and endpoints without a monitor
    /// after they were last heard of: 30 days at least.
    #[serde(with = "duration")]
    pub keep_windows: Duration,
    /// How long alerts are kept after they were resolved: 30 days at least. The last alert of a rule is kept as long as it
    /// fires.
    #[serde(with = "duration")]
    pub keep_alerts: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database: DatabaseConfig::default(),
            score_concurrency: 2,
            score_interval: Duration::from_secs(2),
            query_memory: 512 << 20,
            query_spill: 10 << 30,
            query_threads: 0,
            keep_windows: Duration::from_hours(2 * 365 * 24),
            keep_alerts: Duration::from_hours(2 * 365 * 24),
        }
    }
}

impl Config {
    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<()> {
        self.database.validate()?;
        if !(1..=MAX_SCORE_CONCURRENCY).contains(&self.score_concurrency) {
            return Err(Error::Config(format!(
                "monitoring.score_concurrency is {}: set it between 1 and {MAX_SCORE_CONCURRENCY}",
                self.score_concurrency
            )));
        }
        if self.score_interval > MAX_SCORE_INTERVAL {
            return Err(Error::Config(
                "monitoring.score_interval is too long: set at most 1day".to_owned(),
            ));
        }
        if self.query_memory < MIN_QUERY_MEMORY_BYTES {
            return Err(Error::Config(
                "monitoring.query_memory is too small: set at least 16MiB".to_owned(),
            ));
        }
        if self.query_threads > MAX_QUERY_THREADS {
            return Err(Error::Config(format!(
                "monitoring.query_threads is {}: set at most {MAX_QUERY_THREADS}, or 0 for one for each core",
                self.query_threads
            )));
        }
        for (key, keep) in [("keep_windows", self.keep_windows), ("keep_alerts", self.keep_alerts)] {
            if keep < MIN_KEEP {
                return Err(Error::Config(format!(
                    "monitoring.{key} is {keep:?}: set it to 30days or more"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_bad_values_are_named() {
        assert!(Config::default().validate().is_ok());
        let wrong = [
            (
                "score_concurrency",
                Config {
                    score_concurrency: 0,
                    ..Config::default()
                },
            ),
            (
                "score_interval",
                Config {
                    score_interval: MAX_SCORE_INTERVAL * 2,
                    ..Config::default()
                },
            ),
            (
                "query_memory",
                Config {
                    query_memory: 1,
                    ..Config::default()
                },
            ),
            (
                "query_threads",
                Config {
                    query_threads: 1000,
                    ..Config::default()
                },
            ),
            (
                "keep_windows",
                Config {
                    keep_windows: Duration::ZERO,
                    ..Config::default()
                },
            ),
            (
                "keep_alerts",
                Config {
                    keep_alerts: MIN_KEEP / 2,
                    ..Config::default()
                },
            ),
        ];
        for (key, config) in wrong {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(serde_json::from_str::<Config>(r#"{"score_interva": "2s"}"#).is_err());
    }
}
