//! The settings of one training run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Rounds of boosting at most: more only overfits, and float32 sums of that many trees lose digits.
pub(crate) const MAX_TREES: u32 = 5_000;
/// Depth of a tree at most: 2^12 leaves a tree.
pub(crate) const MAX_DEPTH: u32 = 12;
/// Share of the rows in the last time slice at most.
pub(crate) const MAX_VALIDATION_SHARE: f64 = 0.5;
/// Bins a feature at most.
pub(crate) const MAX_BINS: u16 = 1_024;
/// Bins a feature at least.
pub(crate) const MIN_BINS: u16 = 4;
/// Worker threads at most.
pub(crate) const MAX_THREADS: usize = 256;
/// Smoothing of target means, minimal leaf weight and regularisation at most.
pub(crate) const MAX_WEIGHT: f64 = 1e6;

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Decided by the target: two distinct values are binary; strings and integers with few distinct values are
    /// multiclass; all other numbers are regression.
    #[default]
    Auto,
    /// One of two classes.
    Binary,
    /// One of several classes, each against the rest.
    Multiclass,
    /// A number.
    Regression,
}

/// How a string feature becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Encoding {
    /// Its rank among the sorted categories; missing and unseen ones are NaN, which the trees route by themselves.
    Ordinal,
    /// The mean of the target over its category, drawn towards the overall mean: (sum + smoothing * mean) /
    /// (count + smoothing). Unseen categories get the overall mean; missing is a category of its own. A training row is
    /// encoded with the means of the rows before it, in time where there is a time column, else in an order shuffled by
    /// the seed. In multiclass there is one such number per class.
    TargetMean {
        /// Weight of the overall mean, in rows.
        smoothing: f64,
    },
}

impl Encoding {
    /// The smoothing of the default encoding, in rows.
    pub const DEFAULT_SMOOTHING: f64 = 20.0;
}

/// How scores become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// The logistic function of the score, as it was boosted.
    None,
    /// A line through the log odds, fitted on the last time slice.
    Platt,
    /// A monotone curve through the log odds, fitted on the last time slice: isotonic regression, interpolated between
    /// the centres of its blocks, so that the ranking of rows is kept.
    Isotonic,
}

/// The settings of one training run. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Column to predict.
    pub target: String,
    /// What is predicted.
    pub task: Task,
    /// Column with the time of each row: RFC 3339 strings, timestamps or dates. With it the last slice is the latest in
    /// time and the order of the rows does not matter; without it the rows count as sorted by time.
    pub time_column: Option<String>,
    /// Columns to learn from; default: all but the target, the time column and `exclude`.
    pub features: Option<Vec<String>>,
    /// Columns not to learn from.
    pub exclude: Vec<String>,
    /// Rounds of boosting at most (1 to 5,000).
    pub trees: u32,
    /// Depth of each tree at most (1 to 12).
    pub max_depth: u32,
    /// Share of each tree's correction that is applied (above 0, at most 1).
    pub learning_rate: f64,
    /// Stop when the last time slice has not improved for that many rounds; null boosts all rounds.
    pub early_stopping_rounds: Option<u32>,
    /// Share of the rows in the last time slice, which stops early, measures and calibrates (0 to 0.5; 0 switches all
    /// three off).
    pub validation_share: f64,
    /// Encoding of string features; default: target mean, in multiclass ordinal.
    pub encoding: Option<Encoding>,
    /// Calibration of probabilities; default: isotonic where the last time slice is large enough, else Platt.
    pub calibration: Option<Calibration>,
    /// Sum of hessians in a leaf at least (0 to 1,000,000); in regression that is rows.
    pub min_leaf_weight: f64,
    /// L2 regularisation of leaf values (0 to 1,000,000).
    pub l2: f64,
    /// Bins that split values are searched among, per feature (4 to 1,024).
    pub bins: u16,
    /// Seed of the order in which target means are learned without a time column.
    pub seed: u64,
    /// Worker threads (1 to 256); default: as many as the machine lets this process use.
    pub threads: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            target: String::new(),
            task: Task::Auto,
            time_column: None,
            features: None,
            exclude: Vec::new(),
            trees: 150,
            max_depth: 6,
            learning_rate: 0.1,
            early_stopping_rounds: None,
            validation_share: 0.1,
            encoding: None,
            calibration: None,
            min_leaf_weight: 1.0,
            l2: 1.0,
            bins: 256,
            seed: 0,
            threads: None,
        }
    }
}

impl TrainConfig {
    /// Checks every setting against its bounds.
    pub fn validate(&self) -> Result<()> {
        if self.target.is_empty() {
            return Err(refuse("target", "is empty: name the column to predict"));
        }
        self.validate_columns()?;
        within("trees", self.trees, 1, MAX_TREES)?;
        within("max_depth", self.max_depth, 1, MAX_DEPTH)?;
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            let reason = format!("is {}: it must be above 0 and at most 1", self.learning_rate);
            return Err(refuse("learning_rate", reason));
        }
        if let Some(rounds) = self.early_stopping_rounds {
            within("early_stopping_rounds", rounds, 1, MAX_TREES)?;
        }
        within("validation_share", self.validation_share, 0.0, MAX_VALIDATION_SHARE)?;
        within("min_leaf_weight", self.min_leaf_weight, 0.0, MAX_WEIGHT)?;
        within("l2", self.l2, 0.0, MAX_WEIGHT)?;
        within("bins", self.bins, MIN_BINS, MAX_BINS)?;
        if let Some(threads) = self.threads {
            within("threads", threads, 1, MAX_THREADS)?;
        }
        if let Some(Encoding::TargetMean { smoothing }) = self.encoding {
            within("encoding.target_mean.smoothing", smoothing, 0.0, MAX_WEIGHT)?;
        }
        self.validate_slice()
    }

    fn validate_columns(&self) -> Result<()> {
        let time = self.time_column.as_deref();
        if time == Some(self.target.as_str()) {
            let reason = "is the target as well: name another column".to_owned();
            return Err(refuse("time_column", reason));
        }
        let Some(features) = &self.features else {
            return Ok(());
        };
        if features.is_empty() {
            return Err(refuse("features", "is empty: name columns or leave it out"));
        }
        for name in features {
            let part = if *name == self.target {
                "the target"
            } else if time == Some(name.as_str()) {
                "the time column"
            } else {
                continue;
            };
            return Err(refuse("features", format!("has `{name}`, which is {part}: remove it")));
        }
        Ok(())
    }

    /// What needs the last time slice cannot be asked for without one.
    fn validate_slice(&self) -> Result<()> {
        if self.validation_share > 0.0 {
            return Ok(());
        }
        if self.early_stopping_rounds.is_some() {
            let reason = "needs a last time slice: set `validation_share` above 0";
            return Err(refuse("early_stopping_rounds", reason));
        }
        if matches!(self.calibration, Some(Calibration::Platt | Calibration::Isotonic)) {
            let reason = "needs a last time slice: set `validation_share` above 0";
            return Err(refuse("calibration", reason));
        }
        Ok(())
    }
}

pub(crate) fn refuse(field: &'static str, reason: impl Into<String>) -> Error {
    Error::Config {
        field,
        reason: reason.into(),
    }
}

fn within<T: PartialOrd + Copy + std::fmt::Display>(field: &'static str, value: T, least: T, most: T) -> Result<()> {
    // Written so that NaN is refused, too.
    if value >= least && value <= most {
        return Ok(());
    }
    Err(refuse(
        field,
        format!("is {value}: it must be between {least} and {most}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TrainConfig {
        TrainConfig {
            target: "late".to_owned(),
            ..TrainConfig::default()
        }
    }

    #[test]
    fn defaults_with_a_target_are_valid() {
        config().validate().unwrap();
    }

    #[test]
    fn every_bound_is_named() {
        let cases: Vec<(TrainConfig, &str)> = vec![
            (
                TrainConfig {
                    target: String::new(),
                    ..config()
                },
                "`target`",
            ),
            (TrainConfig { trees: 0, ..config() }, "`trees` is 0"),
            (
                TrainConfig {
                    trees: 5_001,
                    ..config()
                },
                "`trees` is 5001",
            ),
            (
                TrainConfig {
                    max_depth: 13,
                    ..config()
                },
                "`max_depth` is 13",
            ),
            (
                TrainConfig {
                    learning_rate: 0.0,
                    ..config()
                },
                "`learning_rate` is 0",
            ),
            (
                TrainConfig {
                    learning_rate: f64::NAN,
                    ..config()
                },
                "`learning_rate` is NaN",
            ),
            (
                TrainConfig {
                    early_stopping_rounds: Some(0),
                    ..config()
                },
                "`early_stopping_rounds` is 0",
            ),
            (
                TrainConfig {
                    validation_share: 0.6,
                    ..config()
                },
                "`validation_share` is 0.6",
            ),
            (
                TrainConfig {
                    validation_share: f64::NAN,
                    ..config()
                },
                "`validation_share` is NaN",
            ),
            (
                TrainConfig {
                    min_leaf_weight: -1.0,
                    ..config()
                },
                "`min_leaf_weight` is -1",
            ),
            (
                TrainConfig {
                    l2: f64::INFINITY,
                    ..config()
                },
                "`l2` is inf",
            ),
            (TrainConfig { bins: 3, ..config() }, "`bins` is 3"),
            (
                TrainConfig {
                    threads: Some(0),
                    ..config()
                },
                "`threads` is 0",
            ),
            (
                TrainConfig {
                    encoding: Some(Encoding::TargetMean { smoothing: -1.0 }),
                    ..config()
                },
                "smoothing` is -1",
            ),
            (
                TrainConfig {
                    time_column: Some("late".to_owned()),
                    ..config()
                },
                "`time_column` is the target",
            ),
            (
                TrainConfig {
                    features: Some(vec![]),
                    ..config()
                },
                "`features` is empty",
            ),
            (
                TrainConfig {
                    features: Some(vec!["late".to_owned()]),
                    ..config()
                },
                "which is the target",
            ),
            (
                TrainConfig {
                    validation_share: 0.0,
                    early_stopping_rounds: Some(5),
                    ..config()
                },
                "needs a last time slice",
            ),
            (
                TrainConfig {
                    validation_share: 0.0,
                    calibration: Some(Calibration::Platt),
                    ..config()
                },
                "`calibration` needs a last time slice",
            ),
        ];
        for (config, message) in cases {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(message), "{text} has no {message}");
        }
    }

    #[test]
    fn a_config_is_read_from_json_and_unknown_fields_are_refused() {
        let text = r#"{"target": "late", "task": "binary", "encoding": {"target_mean": {"smoothing": 5}},
            "calibration": "platt", "early_stopping_rounds": 10}"#;
        let read: TrainConfig = serde_json::from_str(text).unwrap();
        assert_eq!(read.encoding, Some(Encoding::TargetMean { smoothing: 5.0 }));
        assert_eq!(read.calibration, Some(Calibration::Platt));
        assert_eq!(read.trees, 150);
        let unknown = serde_json::from_str::<TrainConfig>(r#"{"target": "late", "tree": 3}"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `tree`"));
    }
}
