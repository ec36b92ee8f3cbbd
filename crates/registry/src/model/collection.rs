//! The collection of what deletion left behind: what is asked for, how far it is, and what it freed.

use std::time::Duration;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{artifact_file::ArtifactFolder, model_source::Uri};
use crate::error::{Error, Result};

/// How long something must have been deleted before it is freed, unless another time is asked for.
pub const DEFAULT_OLDER_THAN: Duration = Duration::from_hours(24 * 30);
/// How long a blob must be stored before it is removed because nothing names it, unless another time is asked for: an upload whose
/// rows come later, or a step of a pipeline, is about to name it.
pub const DEFAULT_BLOB_GRACE: Duration = Duration::from_hours(48);
/// The most ids of one kind that a request names.
pub const MAX_NAMED: usize = 1000;
/// How long the records of collections are kept. Their totals and the digest of their lists stay in the audit chain.
pub const RECORD_RETENTION: Duration = Duration::from_hours(24 * 400);
/// How long is remembered that a blob was removed; no upload takes longer.
pub const REMOVAL_RETENTION: Duration = Duration::from_hours(24 * 30);
/// The experiment that every installation begins with, which clients use unasked.
pub const FIRST_EXPERIMENT: i64 = 0;

const SECONDS_PER_MINUTE: f64 = 60.0;
const SECONDS_PER_HOUR: f64 = 3600.0;
const SECONDS_PER_DAY: f64 = 86_400.0;

/// What shall be freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CollectionRequest {
    /// Only what was deleted longer ago, such as `30d` or `2d8h5m20s`. Left out, it is 30 days, or no time at all for what is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
    /// Only these runs, which must be deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub run_ids: Vec<String>,
    /// Only these experiments, which must be deleted, with all that is in them. Their names are free again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experiment_ids: Vec<String>,
    /// Only these logged models, which must be deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logged_model_ids: Vec<String>,
    /// How long content must be stored before it is removed because nothing names it; `48h` where it is left out. What is uploaded
    /// and not named yet must be younger, or be uploaded again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_grace: Option<String>,
    /// Tell what would be freed, and free nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A request whose texts were read, and which holds for the moment at which the collection began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionPlan {
    /// What was deleted after this time stays.
    pub deleted_before: Timestamp,
    /// Content that was stored after this time stays.
    pub stored_before: Timestamp,
    /// Only these, where some are named.
    pub run_ids: Vec<String>,
    /// Only these, where some are named.
    pub experiment_ids: Vec<i64>,
    /// Only these, where some are named.
    pub logged_model_ids: Vec<String>,
    /// Whether nothing is freed.
    pub dry_run: bool,
}

impl CollectionRequest {
    /// Whether it names what it is about.
    const fn names_something(&self) -> bool {
        !(self.run_ids.is_empty() && self.experiment_ids.is_empty() && self.logged_model_ids.is_empty())
    }

    /// Reads the texts.
    pub fn plan(&self, started_at: Timestamp) -> Result<CollectionPlan> {
        let named = [
            ("run_ids", self.run_ids.len()),
            ("experiment_ids", self.experiment_ids.len()),
            ("logged_model_ids", self.logged_model_ids.len()),
        ];
        if let Some((what, count)) = named.into_iter().find(|(_, count)| *count > MAX_NAMED) {
            return Err(Error::request(format!(
                "{what} has {count} entries: name at most {MAX_NAMED}"
            )));
        }
        let unset = if self.names_something() {
            Duration::ZERO
        } else {
            DEFAULT_OLDER_THAN
        };
        let age = |key, text: Option<&str>, unset| text.map_or(Ok(unset), |text| parse_age(key, text));
        let older_than = age("older_than", self.older_than.as_deref(), unset)?;
        let grace = age("blob_grace", self.blob_grace.as_deref(), DEFAULT_BLOB_GRACE)?;
        let experiment = |id: &String| -> Result<i64> {
            id.parse().map_err(|_| {
                Error::request(format!(
                    "`{}` is no id of an experiment: write a number",
                    id.escape_debug()
                ))
            })
        };
        Ok(CollectionPlan {
            deleted_before: started_at - older_than,
            stored_before: started_at - grace,
            run_ids: self.run_ids.clone(),
            experiment_ids: self.experiment_ids.iter().map(experiment).collect::<Result<_>>()?,
            logged_model_ids: self.logged_model_ids.clone(),
            dry_run: self.dry_run,
        })
    }
}

impl CollectionPlan {
    /// Whether all that was deleted is meant, and not what is named.
    #[must_use]
    pub const fn is_for_all(&self) -> bool {
        self.run_ids.is_empty() && self.experiment_ids.is_empty() && self.logged_model_ids.is_empty()
    }
}

/// Reads an age as MLflow's `gc` takes it: days, hours, minutes and seconds in this order, each with a fraction if need be.
fn parse_age(key: &str, text: &str) -> Result<Duration> {
    let refusal = || {
        Error::request(format!(
            "{key}: Could not parse any time information from '{}'. Examples of valid strings: '8h', '2d8h5m20s', '2m4s'",
            text.chars().take(64).flat_map(char::escape_debug).collect::<String>()
        ))
    };
    if text.is_empty() {
        return Err(refusal());
    }
    let mut seconds = 0.0;
    let mut rest = text;
    for (unit, length) in [
        ('d', SECONDS_PER_DAY),
        ('h', SECONDS_PER_HOUR),
        ('m', SECONDS_PER_MINUTE),
        ('s', 1.0),
    ] {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (amount, after) = rest.split_at(end);
        if let Some(after) = after.strip_prefix(unit) {
            let amount: f64 = amount.parse().map_err(|_| refusal())?;
            seconds += amount * length;
            rest = after;
        }
    }
    if !rest.is_empty() {
        return Err(refusal());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| refusal())
}

/// How a collection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CollectionState {
    /// It goes on, also after a restart of the server.
    Running,
    /// It has ended, and its list is whole.
    Finished,
    /// It gave up; what it freed until then is in its list.
    Failed,
}

impl CollectionState {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Finished, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// What a collection is at. They follow each other in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Runs that were deleted.
    Runs,
    /// Logged models that were deleted.
    LoggedModels,
    /// What runs and logged models logged.
    Remains,
    /// Traces of experiments that were deleted.
    Traces,
    /// Experiments that were deleted.
    Experiments,
    /// The paths of the artifacts of all these.
    Files,
    /// Uploads in parts that nobody went on with.
    Uploads,
    /// What is in the store and not counted yet.
    Inventory,
    /// Blobs that nothing names.
    Blobs,
    /// The digest of the list.
    Proof,
}

impl Phase {
    /// The first.
    pub const FIRST: Self = Self::Runs;

    const ORDER: [(Self, &'static str); 10] = [
        (Self::Runs, "runs"),
        (Self::LoggedModels, "logged-models"),
        (Self::Remains, "remains"),
        (Self::Traces, "traces"),
        (Self::Experiments, "experiments"),
        (Self::Files, "files"),
        (Self::Uploads, "uploads"),
        (Self::Inventory, "inventory"),
        (Self::Blobs, "blobs"),
        (Self::Proof, "proof"),
    ];

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let found = Self::ORDER.iter().find(|(phase, _)| *phase == self);
        found.map_or("", |(_, word)| word)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let found = Self::ORDER.iter().find(|(_, word)| *word == text);
        found.map(|(phase, _)| *phase)
    }

    /// What comes after it; none: it is the last.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        let place = Self::ORDER.iter().position(|(phase, _)| *phase == self)?;
        Self::ORDER.get(place + 1).map(|(phase, _)| *phase)
    }
}

/// What is counted, and listed in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freed {
    /// Runs.
    Run,
    /// Values of metrics of runs and logged models. They are counted and not listed.
    Metric,
    /// Logged models.
    LoggedModel,
    /// Traces. They are counted and not listed.
    Trace,
    /// Experiments.
    Experiment,
    /// Paths of artifacts, with the bytes that they named. They are counted and not listed.
    File,
    /// Uploads in parts, with the bytes of their parts.
    Upload,
    /// Blobs, with the bytes that they took.
    Blob,
}

impl Freed {
    /// As it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Metric => "metric",
            Self::LoggedModel => "logged-model",
            Self::Trace => "trace",
            Self::Experiment => "experiment",
            Self::File => "file",
            Self::Upload => "upload",
            Self::Blob => "blob",
        }
    }
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CollectedOutcome {
    /// It is gone.
    Freed,
    /// It is gone, and the paths of its artifacts go.
    Freeing,
    /// It would go.
    WouldBeFreed,
    /// It stays, for a reason.
    Kept,
}

impl CollectedOutcome {
    /// As it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Freed => "freed",
            Self::Freeing => "freeing",
            Self::WouldBeFreed => "would-be-freed",
            Self::Kept => "kept",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Freed, Self::Freeing, Self::WouldBeFreed, Self::Kept]
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

/// How many of a kind were freed, and how many bytes with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CollectionCount {
    /// `run`, `metric`, `logged-model`, `trace`, `experiment`, `file`, `upload` or `blob`.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// The bytes: for `blob` those that are free now, for `file` those that the paths named, equal content once for each path.
    pub size_bytes: u64,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Collection {
    /// Its id.
    pub id: String,
    /// The project.
    pub project: String,
    /// How it stands.
    pub state: CollectionState,
    /// What it is at: `runs`, `logged-models`, `remains`, `traces`, `experiments`, `files`, `uploads`, `inventory`, `blobs`, `proof`.
    pub phase: String,
    /// What was asked for.
    pub request: CollectionRequest,
    /// Who started it.
    pub started_by: String,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it got on last.
    pub updated_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Why it failed, or was held up last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was freed so far, or would be.
    pub freed: Vec<CollectionCount>,
    /// How many objects were to be freed and stay, because something refers to them.
    pub kept: u64,
    /// SHA-256 over the list of what was freed, a line `KIND ID BYTES` for each object in the order of the list. The audit chain has
    /// it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list_digest: Option<String>,
}

/// An object of a collection's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CollectedObject {
    /// `run`, `logged-model`, `experiment`, `upload` or `blob`.
    pub kind: String,
    /// Its id; of a blob its digest.
    pub id: String,
    /// What became of it.
    pub outcome: CollectedOutcome,
    /// The bytes that it took.
    pub size_bytes: u64,
    /// Why it stays, or what is left of it elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl CollectedObject {
    /// The line that the digest of the list is made of.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {} {}\n", self.kind, self.id, self.size_bytes)
    }
}

/// A collection to be started.
#[derive(Debug, Clone)]
pub struct NewCollection {
    /// Its id.
    pub id: String,
    /// The project.
    pub project: String,
    /// What was asked for.
    pub request: CollectionRequest,
    /// Who asked.
    pub started_by: String,
    /// What the audit chain is told now.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// A collection that this process works at.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The collection.
    pub id: String,
    /// The project.
    pub project: String,
    /// How often it was taken up; a process that took it up before is refused.
    pub attempt: i64,
    /// What it is at.
    pub phase: Phase,
    /// What was asked for.
    pub request: CollectionRequest,
    /// When it was started.
    pub started_at: Timestamp,
    /// What the audit chain is told at the end.
    pub event: NewEvent,
}

/// The folder of this server's artifact store that a URI names; none: it is elsewhere.
#[must_use]
pub fn own_folder(uri: &str) -> Option<ArtifactFolder> {
    let path = Uri::split(uri).proxied_path()?;
    ArtifactFolder::parse(&path)
        .ok()
        .filter(|folder| *folder != ArtifactFolder::ROOT)
}

/// The ids that a URI may name: its words, as they are written and decoded. `_` can be in an id, and between it and something else.
pub(crate) fn words_of(uri: &str) -> Vec<String> {
    let mut words = Vec::new();
    for text in [uri.to_owned(), Uri::split(uri).decoded_path()] {
        for is_between in [
            |c: char| !c.is_ascii_alphanumeric() && c != '-',
            |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_',
        ] {
            words.extend(
                text.split(is_between)
                    .filter(|word| !word.is_empty())
                    .map(str::to_owned),
            );
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_in_mlflow() {
        for (text, seconds) in [
            ("7d4h", 7 * 86_400 + 4 * 3600),
            ("30d", 30 * 86_400),
            ("2d8h5m20s", 2 * 86_400 + 8 * 3600 + 5 * 60 + 20),
            ("8h", 8 * 3600),
            ("2m4s", 124),
            ("0s", 0),
            ("0d", 0),
            ("1.5h", 5400),
        ] {
            assert_eq!(
                parse_age("older_than", text).unwrap(),
                Duration::from_secs(seconds),
                "{text}"
            );
        }
        for text in [
            "",
            "d",
            "5",
            "4h7d",
            "1w",
            "-1d",
            "1d ",
            "1..2d",
            "1e3s",
            "99999999999999999999999999d",
        ] {
            assert!(parse_age("older_than", text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_named_need_not_be_old() {
        let now = Timestamp::from_micros(100 * 86_400 * 1_000_000);
        let all = CollectionRequest::default().plan(now).unwrap();
        assert_eq!(all.deleted_before, now - DEFAULT_OLDER_THAN);
        assert_eq!(all.stored_before, now - DEFAULT_BLOB_GRACE);
        assert!(all.is_for_all());
        let named = CollectionRequest {
            run_ids: vec!["a".to_owned()],
            ..CollectionRequest::default()
        };
        assert_eq!(named.plan(now).unwrap().deleted_before, now);
        let wrong = CollectionRequest {
            experiment_ids: vec!["x".to_owned()],
            ..CollectionRequest::default()
        };
        assert!(wrong.plan(now).is_err());
    }

    #[test]
    fn phases_follow_each_other() {
        let mut phase = Some(Phase::FIRST);
        let mut count = 0;
        while let Some(at) = phase {
            assert_eq!(Phase::parse(at.as_str()), Some(at));
            phase = at.next();
            count += 1;
        }
        assert_eq!(count, Phase::ORDER.len());
    }

    #[test]
    fn only_folders_of_this_server_are_own() {
        let own = |uri: &str| own_folder(uri).map(|folder| folder.name().to_owned());
        assert_eq!(own("mlflow-artifacts:/1/r/artifacts").as_deref(), Some("1/r/artifacts"));
        for elsewhere in [
            "s3://bucket/1/r",
            "mlflow-artifacts://other/1/r",
            "/tmp/1",
            "mlflow-artifacts:/",
            "",
        ] {
            assert_eq!(own(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn ids_are_found_however_they_are_written() {
        for uri in [
            "runs:/abc/model",
            "mlflow-artifacts:/1/abc/artifacts",
            "mlflow-artifacts:/1/a%62c/x",
            "models:/abc",
        ] {
            assert!(words_of(uri).iter().any(|word| word == "abc"), "{uri}");
        }
        assert!(words_of("models:/m-12f@x").iter().any(|word| word == "m-12f"));
        let words = words_of("mlflow-artifacts:/1/my_run/artifacts");
        assert!(words.iter().any(|word| word == "my_run") && words.iter().any(|word| word == "run"));
    }
}
