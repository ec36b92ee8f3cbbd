//! Experiments and runs.

use std::collections::BTreeMap;

use modelyard_artifacts::Digest;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::{
        page::Cursor,
        tracking::{Lifecycle, ModelMetric, PROXY_SCHEME, RunDataset, RunModel},
    },
};

/// The longest name of an experiment or run, in bytes.
pub const MAX_TITLE_BYTES: usize = 500;
/// The longest key of a param, metric or tag, in bytes.
pub const MAX_KEY_BYTES: usize = 250;
/// The longest value of a param, in bytes.
pub const MAX_PARAM_BYTES: usize = 6000;
/// The longest value of a tag of a run, in bytes.
pub const MAX_TAG_BYTES: usize = 8000;
/// The most params, and the most tags, of one batch.
pub const MAX_BATCH_TEXTS: usize = 100;
/// The most metrics of one batch, and the most entries in all.
pub const MAX_BATCH: usize = 1000;
/// The most dataset inputs of a run.
pub const MAX_INPUTS: usize = 100;

/// Where a run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunStatus {
    /// It goes on.
    Running,
    /// It waits for its start.
    Scheduled,
    /// It ended well.
    Finished,
    /// It ended with an error.
    Failed,
    /// It was stopped.
    Killed,
}

impl RunStatus {
    const ALL: [Self; 5] = [
        Self::Running,
        Self::Scheduled,
        Self::Finished,
        Self::Failed,
        Self::Killed,
    ];

    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Scheduled => "SCHEDULED",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the run is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }
}

/// A group of runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Experiment {
    /// A decimal number as text; `0` is `Default`.
    pub experiment_id: String,
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub lifecycle: Lifecycle,
    /// Where clients put its artifacts; empty: the server's own store.
    pub artifact_location: String,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl Experiment {
    /// Where clients put artifacts of the experiment.
    #[must_use]
    pub fn artifact_root(&self) -> String {
        if self.artifact_location.is_empty() {
            format!("{PROXY_SCHEME}{}", self.experiment_id)
        } else {
            self.artifact_location.trim_end_matches('/').to_owned()
        }
    }

    /// About how many bytes of names and texts it has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.name.len() + self.artifact_location.len() + pair_bytes(&self.tags)
    }
}

/// The bytes of names and their values.
pub(super) fn pair_bytes(pairs: &BTreeMap<String, String>) -> usize {
    pairs.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The value of a metric; NaN is written as the text `NaN`.
#[derive(Debug, Clone, Copy, PartialEq, ToSchema)]
pub struct MetricValue(pub f64);

impl Serialize for MetricValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_nan() {
            serializer.serialize_str("NaN")
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

/// One value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct MetricPoint {
    /// The value.
    #[schema(value_type = f64)]
    pub value: MetricValue,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// The step of the run that it belongs to.
    pub step: i64,
}

impl MetricPoint {
    /// Whether this is to be shown as the latest rather than `other`: by step, then time, then value. NaN counts as 0.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        let key = |point: &Self| (point.step, point.timestamp);
        match key(self).cmp(&key(other)) {
            std::cmp::Ordering::Equal => {
                let number = |value: f64| if value.is_nan() { 0.0 } else { value };
                number(self.value.0) > number(other.value.0)
            }
            order => order.is_gt(),
        }
    }
}

/// A point's place in the history: by step, then time, then value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricPlace(pub MetricPoint);

impl Cursor for MetricPlace {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let timestamp = Timestamp::from_micros(parts.next()?.parse().ok()?);
        let step = parts.next()?.parse().ok()?;
        let value = f64::from_bits(u64::from_str_radix(parts.next()?, 16).ok()?);
        Some(Self(MetricPoint {
            value: MetricValue(value),
            timestamp,
            step,
        }))
    }

    fn write(&self) -> String {
        let Self(point) = self;
        let bits = point.value.0.to_bits();
        format!("{}.{}.{bits:x}", point.timestamp.as_micros(), point.step)
    }
}

/// A dataset version that a run has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunInput {
    /// The dataset.
    pub dataset: String,
    /// Its version.
    pub version: u32,
    /// The version's digest.
    pub digest: String,
    /// What it was read for, such as `training`.
    pub context: String,
}

/// A run with what it recorded.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Run {
    /// 32 hexadecimal digits.
    pub run_id: String,
    /// The project.
    pub project: String,
    /// The id of its experiment.
    pub experiment_id: String,
    /// The name of its experiment.
    pub experiment: String,
    /// Its name.
    pub name: String,
    /// Who made it, as its client says; empty: that was not said.
    pub user_id: String,
    /// Where it is in its life.
    pub status: RunStatus,
    /// Whether it is there.
    pub lifecycle: Lifecycle,
    /// When it started.
    pub start_time: Timestamp,
    /// When it ended; null while it goes on.
    pub end_time: Option<Timestamp>,
    /// Where clients put its artifacts.
    pub artifact_uri: String,
    /// What it was started with.
    pub params: BTreeMap<String, String>,
    /// The latest value of every metric.
    pub metrics: BTreeMap<String, MetricPoint>,
    /// Notes that can change.
    pub tags: BTreeMap<String, String>,
    /// The dataset versions that it has read.
    pub inputs: Vec<RunInput>,
    /// The datasets that it has read and that are not on this server.
    pub datasets: Vec<RunDataset>,
    /// The logged models that it has read or made.
    pub models: Vec<RunModel>,
}

impl Run {
    /// About how many bytes of names and texts it has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let metrics: usize = self.metrics.keys().map(String::len).sum();
        let datasets: usize = self.datasets.iter().map(RunDataset::text_bytes).sum();
        pair_bytes(&self.params) + metrics + pair_bytes(&self.tags) + datasets
    }
}

/// A run's place in a list: newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlace {
    /// When it started.
    pub start_time: Timestamp,
    /// Its id.
    pub run_id: String,
}

impl Cursor for RunPlace {
    fn read(text: &str) -> Option<Self> {
        let (micros, run_id) = text.split_once('.')?;
        Some(Self {
            start_time: Timestamp::from_micros(micros.parse().ok()?),
            run_id: run_id.to_owned(),
        })
    }

    fn write(&self) -> String {
        format!("{}.{}", self.start_time.as_micros(), self.run_id)
    }
}

/// The experiment of a new run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExperimentChoice {
    /// The one with this name, which is created where it is missing.
    Named(String),
    /// The one with this number.
    Numbered(i64),
}

/// A run to be created.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// 32 hexadecimal digits.
    pub run_id: String,
    /// The project.
    pub project: String,
    /// Its experiment.
    pub experiment: ExperimentChoice,
    /// Its name.
    pub name: String,
    /// Who makes it, as the client says.
    pub user_id: String,
    /// When it started.
    pub start_time: Timestamp,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// What it reads; digests filled.
    pub inputs: Vec<RunInput>,
    /// Repeating a creation with the same key finds the first one's run.
    pub idempotency_key: Option<String>,
    /// Digest of the request.
    pub request_digest: String,
    /// What the audit chain is told.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// What is added to a run at once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Params, which never change.
    pub params: BTreeMap<String, String>,
    /// Values of metrics.
    pub metrics: Vec<(String, MetricPoint)>,
    /// Tags, which replace those before them.
    pub tags: BTreeMap<String, String>,
    /// Which of the metrics were measured on logged models.
    pub model_metrics: Vec<ModelMetric>,
}

/// What is added to a run, and to which.
#[derive(Debug, Clone)]
pub struct RunBatch {
    /// The project.
    pub project: String,
    /// The run.
    pub run_id: String,
    /// What is added.
    pub batch: Batch,
}

/// A digest over the parts of a request, to tell a repeated one from a changed one.
pub fn request_digest(request: &impl Serialize) -> String {
    // Requests have text keys and finite numbers, so that they can always be written.
    Digest::of(&serde_json::to_vec(request).unwrap_or_default()).to_string()
}

/// Checks the name of an experiment or run, which may be any text on one line.
pub fn check_title(what: &str, title: &str) -> Result<()> {
    let good = !title.trim().is_empty() && title.len() <= MAX_TITLE_BYTES && !title.chars().any(char::is_control);
    if good {
        return Ok(());
    }
    let shown: String = title.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is not a name for {what}: use 1 to {MAX_TITLE_BYTES} bytes on one line"
    )))
}

/// Checks the key of a param, metric or tag.
pub fn check_key(what: &str, key: &str) -> Result<()> {
    if !key.is_empty() && key.len() <= MAX_KEY_BYTES && !key.chars().any(char::is_control) {
        return Ok(());
    }
    let shown: String = key.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is not a key for a {what}: use 1 to {MAX_KEY_BYTES} bytes on one line"
    )))
}

/// Checks the value of a param or tag.
pub fn check_text(what: &str, key: &str, value: &str, limit_bytes: usize) -> Result<()> {
    if value.len() <= limit_bytes && !value.contains('\0') {
        return Ok(());
    }
    Err(Error::request(format!(
        "the value of {what} `{key}` has {} bytes: use at most {limit_bytes}, without NUL",
        value.len()
    )))
}

/// Texts by key. A key that comes twice with different values is an error.
pub fn collect_texts(
    what: &str,
    texts: impl IntoIterator<Item = (String, String)>,
    limit_bytes: usize,
) -> Result<BTreeMap<String, String>> {
    let mut collected = BTreeMap::new();
    for (key, value) in texts {
        check_key(what, &key)?;
        check_text(what, &key, &value, limit_bytes)?;
        let before = collected.insert(key.clone(), value.clone());
        if before.is_some_and(|before| before != value) {
            return Err(Error::request(format!(
                "{what} `{key}` is given twice with different values: give it once"
            )));
        }
    }
    Ok(collected)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(step: i64, time: i64, value: f64) -> MetricPoint {
        MetricPoint {
            value: MetricValue(value),
            timestamp: Timestamp::from_micros(time),
            step,
        }
    }

    #[test]
    fn the_latest_is_by_step_then_time_then_value() {
        let ordered = [
            point(0, 9, 9.0),
            point(1, 1, 5.0),
            point(1, 2, -1.0),
            point(1, 2, f64::NAN),
            point(1, 2, 0.5),
        ];
        for (index, later) in ordered.iter().enumerate() {
            for earlier in &ordered[..index] {
                assert!(later.is_after(earlier), "{later:?} {earlier:?}");
                assert!(!earlier.is_after(later), "{later:?} {earlier:?}");
            }
            assert!(!later.is_after(later));
        }
    }

    #[test]
    fn a_key_with_two_values_is_refused() {
        let pair = |value: &str| ("k".to_owned(), value.to_owned());
        assert!(collect_texts("param", [pair("a"), pair("b")], 10).is_err());
        assert_eq!(collect_texts("param", [pair("a"), pair("a")], 10).unwrap().len(), 1);
        let error = collect_texts("param", [pair("too long a value")], 10).unwrap_err();
        assert!(error.to_string().contains("param `k` has 16 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn places_survive_being_text(time in -10_i64..10_000, step: i64, value in proptest::num::f64::NORMAL) {
            let place = MetricPlace(point(step, time, value));
            prop_assert_eq!(MetricPlace::read(&place.write()), Some(place));
        }
    }
}
