//! How an endpoint treats its requests, beside the routes that answer them.

use std::time::Duration;

use modelyard_common::config::{duration, maybe_duration, maybe_size};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest name of a header, parameter, tensor or column, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The longest value that a condition compares with, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
/// The most conditions of one route.
const MAX_CONDITIONS: usize = 16;
/// The most axes that are filled up, and the most names that are redacted.
const MAX_RAGGED: usize = 64;
const MAX_REDACTED: usize = 1000;
/// The greatest axis of a tensor.
const MAX_AXIS: u32 = 7;
/// The most rows of a batch, and the most requests that may wait.
const MAX_COUNT: u32 = 1 << 20;
/// The longest that a batch may be held for more to come.
const MAX_BATCH_DELAY: Duration = Duration::from_secs(10);
/// The longest that a request may take or wait, and that an answer may be kept.
const MAX_TIME: Duration = Duration::from_hours(24);
/// The shortest time after which idle models are let go of.
const MIN_UNLOAD_AFTER: Duration = Duration::from_secs(1);

/// Where a request carries a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    /// A header over HTTP, or metadata over gRPC.
    Header(String),
    /// A parameter of the Open Inference Protocol's request.
    Parameter(String),
}

/// What a request must carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// In this header, or in metadata over gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// In this parameter of the Open Inference Protocol's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The value; numbers and booleans as JSON writes them.
    pub equals: String,
}

/// Answers that are kept, and given again to the same inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheSpec {
    /// How long, such as `1m`.
    #[serde(with = "duration")]
    #[schema(value_type = String)]
    pub time_to_live: Duration,
}

/// How concurrent requests are merged into one run of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchingSpec {
    /// The most rows of a run. None: the gateway's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u32>,
    /// How long a run that is not full waits for more requests, such as `2ms`. None: not at all.
    #[serde(with = "maybe_duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub max_delay: Option<Duration>,
    /// Axes along which requests may differ: they are filled up to the longest of the run, and outputs cut back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ragged: Vec<RaggedAxis>,
}

/// An axis along which requests may differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RaggedAxis {
    /// An input or output of the model.
    pub tensor: String,
    /// Which axis: 1 or more, because 0 is the batch.
    pub axis: u32,
    /// What an input's gap is filled with.
    #[serde(default)]
    pub fill: f64,
}

/// What an endpoint may take of a gateway. What is not said is as the gateway is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    /// How long a request without a deadline of its own may take.
    #[serde(with = "maybe_duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub timeout: Option<Duration>,
    /// The most requests that wait for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queued_requests: Option<u32>,
    /// Requests that would wait longer than this are refused at once.
    #[serde(with = "maybe_duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub max_queue_time: Option<Duration>,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSpec {
    /// Whether predictions go to the inference log.
    pub predictions: bool,
    /// The share of them that does, by their ids: above 0, at most 1.
    #[serde(skip_serializing_if = "is_all")]
    pub sample: f64,
    /// Inputs and outputs, or columns of them, whose values are left out of the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Predictions of more bytes than this are not logged, such as `64KiB`. None: as many as the log takes.
    #[serde(with = "maybe_size", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub max_record_bytes: Option<u64>,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            predictions: true,
            sample: 1.0,
            redact: Vec::new(),
            max_record_bytes: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_all(sample: &f64) -> bool {
    *sample >= 1.0
}

impl Attribute {
    pub(super) fn check(&self, what: &str, problems: &mut Vec<String>) {
        let (kind, name) = match self {
            Self::Header(name) => ("header", name),
            Self::Parameter(name) => ("parameter", name),
        };
        check_name(&format!("{what}: the {kind}"), name, problems);
    }
}

impl Condition {
    /// Where the value is looked for. A valid condition names one place.
    #[must_use]
    pub fn attribute(&self) -> Option<Attribute> {
        match (&self.header, &self.parameter) {
            (Some(header), None) => Some(Attribute::Header(header.clone())),
            (None, Some(parameter)) => Some(Attribute::Parameter(parameter.clone())),
            _ => None,
        }
    }
}

/// Checks the conditions of a route.
pub(super) fn check_conditions(route: &str, conditions: &[Condition], problems: &mut Vec<String>) {
    if conditions.len() > MAX_CONDITIONS {
        problems.push(format!(
            "route `{route}` has {} conditions: write at most {MAX_CONDITIONS}",
            conditions.len()
        ));
    }
    for condition in conditions {
        match condition.attribute() {
            Some(attribute) => attribute.check(&format!("a condition of route `{route}`"), problems),
            None => problems.push(format!(
                "a condition of route `{route}` names {}: write one of `header` and `parameter`",
                if condition.header.is_some() { "both" } else { "neither" }
            )),
        }
        if condition.equals.len() > MAX_VALUE_BYTES {
            problems.push(format!(
                "a condition of route `{route}` compares with {} bytes: write at most {MAX_VALUE_BYTES}",
                condition.equals.len()
            ));
        }
    }
}

impl CacheSpec {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        check_time("cache.time_to_live", Some(self.time_to_live), MAX_TIME, problems);
    }
}

impl BatchingSpec {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        check_count("batching.max_rows", self.max_rows, problems);
        check_time("batching.max_delay", self.max_delay, MAX_BATCH_DELAY, problems);
        if self.ragged.len() > MAX_RAGGED {
            problems.push(format!(
                "batching.ragged has {} axes: write at most {MAX_RAGGED}",
                self.ragged.len()
            ));
        }
        for (index, ragged) in self.ragged.iter().enumerate() {
            check_name(
                &format!("batching.ragged[{index}]: the tensor"),
                &ragged.tensor,
                problems,
            );
            if !(1..=MAX_AXIS).contains(&ragged.axis) {
                problems.push(format!(
                    "batching.ragged[{index}]: axis {} of `{}`: write 1 to {MAX_AXIS}",
                    ragged.axis, ragged.tensor
                ));
            }
            let same = |other: &RaggedAxis| other.tensor == ragged.tensor && other.axis == ragged.axis;
            if self.ragged.iter().take(index).any(same) {
                problems.push(format!(
                    "batching.ragged: axis {} of `{}` is there twice",
                    ragged.axis, ragged.tensor
                ));
            }
        }
    }
}

impl LimitsSpec {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        check_time("limits.timeout", self.timeout, MAX_TIME, problems);
        check_time("limits.max_queue_time", self.max_queue_time, MAX_TIME, problems);
        check_count("limits.max_queued_requests", self.max_queued_requests, problems);
    }
}

impl LogSpec {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        if !(self.sample > 0.0 && self.sample <= 1.0) {
            problems.push(format!(
                "log.sample is {}: write a number above 0, at most 1, or `predictions: false`",
                self.sample
            ));
        }
        if self.redact.len() > MAX_REDACTED {
            problems.push(format!(
                "log.redact has {} names: write at most {MAX_REDACTED}",
                self.redact.len()
            ));
        }
        for name in self.redact.iter().take(MAX_REDACTED) {
            check_name("log.redact: a name", name, problems);
        }
        if self.max_record_bytes == Some(0) {
            problems.push("log.max_record_bytes is 0: write more, or `predictions: false`".to_owned());
        }
    }
}

/// Checks after what time idle models are let go of.
pub(super) fn check_unload_after(time: Option<Duration>, problems: &mut Vec<String>) {
    if time.is_some_and(|time| time < MIN_UNLOAD_AFTER) {
        problems.push(format!("unload_after is below {MIN_UNLOAD_AFTER:?}: write more"));
    }
}

fn check_name(what: &str, name: &str, problems: &mut Vec<String>) {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        problems.push(format!(
            "{what} has {} bytes: write 1 to {MAX_NAME_BYTES} on one line",
            name.len()
        ));
    }
}

fn check_count(what: &str, count: Option<u32>, problems: &mut Vec<String>) {
    if let Some(count) = count.filter(|count| !(1..=MAX_COUNT).contains(count)) {
        problems.push(format!("{what} is {count}: write 1 to {MAX_COUNT}"));
    }
}

fn check_time(what: &str, time: Option<Duration>, most: Duration, problems: &mut Vec<String>) {
    if let Some(time) = time.filter(|time| time.is_zero() || *time > most) {
        problems.push(format!("{what} is {time:?}: write more than zero and at most {most:?}"));
    }
}
