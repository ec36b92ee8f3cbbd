//! What a job is. Pure: no database, no time of its own.

use std::{fmt, str::FromStr, time::Duration};

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::error::{Error, Result};

/// The longest name of a queue.
pub const MAX_QUEUE_BYTES: usize = 64;
/// The longest key.
pub const MAX_KEY_BYTES: usize = 512;
/// The largest payload, as JSON. What is larger belongs into artifacts, and its digest into the payload.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;
/// How much of an error's text is kept.
pub const MAX_ERROR_BYTES: usize = 8 << 10;
/// The longest W3C traceparent that is kept.
pub const MAX_TRACE_BYTES: usize = 128;
/// The most attempts that may be asked for.
pub const MAX_ATTEMPTS: u32 = 1_000;
/// How many attempts may end with an error where nothing else is asked for.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;
/// How many attempts may end without a word before the job is taken for the cause.
pub const MAX_LOSSES: u32 = 20;

/// The id of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl From<Uuid> for JobId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its time, or for a worker.
    Ready,
    /// Is held by a node, for a lease.
    Running,
    /// Has done its work.
    Done,
    /// Was given up.
    Failed,
    /// Was called off.
    Cancelled,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will happen to the job any more.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| modelyard_db::Error::value("state of a job", text).into())
    }
}

/// What happened to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A node took the job.
    Claimed,
    /// The work is done.
    Done,
    /// The attempt ended with an error, and another will follow.
    Retried,
    /// The attempt ended with an error, and the job with it.
    Failed,
    /// The lease ran out.
    Expired,
    /// The node gave the job back.
    Released,
    /// The job was called off.
    Cancelled,
}

impl Event {
    const ALL: [Self; 7] = [
        Self::Claimed,
        Self::Done,
        Self::Retried,
        Self::Failed,
        Self::Expired,
        Self::Released,
        Self::Cancelled,
    ];

    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|event| event.as_str() == text);
        found.ok_or_else(|| modelyard_db::Error::value("event of an attempt", text).into())
    }
}

/// Work to be done. Set what [`NewJob::new`] leaves at its default with `..`.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Made by the caller, of version 7, so that ids sort by age.
    pub id: JobId,
    /// Whose work it is: 1 to [`MAX_QUEUE_BYTES`] bytes.
    pub queue: String,
    /// Unique among the unfinished jobs of the queue.
    pub key: Option<String>,
    /// What the handler needs to know; at most [`MAX_PAYLOAD_BYTES`] as JSON.
    pub payload: Value,
    /// Not before this time.
    pub run_at: Timestamp,
    /// How many attempts may end with an error, 1 to [`MAX_ATTEMPTS`].
    pub max_attempts: u32,
    /// Greater first.
    pub priority: i64,
    /// The W3C traceparent that the handler's span continues.
    pub trace: Option<String>,
}

impl NewJob {
    /// A job without key, with [`DEFAULT_MAX_ATTEMPTS`], priority 0, in the present trace.
    pub fn new(id: impl Into<JobId>, queue: impl Into<String>, payload: Value, run_at: Timestamp) -> Self {
        Self {
            id: id.into(),
            queue: queue.into(),
            key: None,
            payload,
            run_at,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            priority: 0,
            trace: modelyard_common::telemetry::current_trace(),
        }
    }

    /// Checks the limits; the answer is the payload as text.
    pub(crate) fn check(&self) -> Result<String> {
        let invalid = |message: String| Error::Invalid {
            queue: self.queue.chars().take(MAX_QUEUE_BYTES).collect(),
            message,
        };
        if self.queue.is_empty() || self.queue.len() > MAX_QUEUE_BYTES {
            return Err(invalid(format!(
                "the queue's name must have 1 to {MAX_QUEUE_BYTES} bytes"
            )));
        }
        if self
            .key
            .as_ref()
            .is_some_and(|key| key.is_empty() || key.len() > MAX_KEY_BYTES)
        {
            return Err(invalid(format!("the key must have 1 to {MAX_KEY_BYTES} bytes")));
        }
        if !(1..=MAX_ATTEMPTS).contains(&self.max_attempts) {
            return Err(invalid(format!("max_attempts must be 1 to {MAX_ATTEMPTS}")));
        }
        if self.trace.as_ref().is_some_and(|trace| trace.len() > MAX_TRACE_BYTES) {
            return Err(invalid(format!("the trace must have at most {MAX_TRACE_BYTES} bytes")));
        }
        let payload = self.payload.to_string();
        if payload.len() > MAX_PAYLOAD_BYTES {
            let size = payload.len();
            return Err(invalid(format!(
                "the payload has {size} bytes, and may have {MAX_PAYLOAD_BYTES}: store it as an artifact and name its digest"
            )));
        }
        Ok(payload)
    }
}

/// What came of enqueuing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The job: the new one, or the unfinished one that has the key already.
    pub id: JobId,
    /// Whether it is the new one.
    pub created: bool,
}

/// Who wants work.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// The queues to look into, in this order.
    pub queues: &'a [String],
    /// The name of the node: stays the same over restarts.
    pub node: &'a str,
    /// For how long.
    pub lease: Duration,
    /// At most so many jobs.
    pub limit: usize,
}

/// The right to report on a job: valid until another attempt begins or the job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// The fencing token.
    pub attempt: i64,
}

/// A job in the hands of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its queue.
    pub queue: String,
    /// Its key, if it has one.
    pub key: Option<String>,
    /// What is to be done.
    pub payload: Value,
    /// The W3C traceparent of whoever asked.
    pub trace: Option<String>,
    /// Greater first.
    pub priority: i64,
    /// Counts the claims, this one included: 1 at first.
    pub attempt: i64,
    /// How many attempts ended with an error so far.
    pub failures: u32,
    /// How many may.
    pub max_attempts: u32,
    /// When it was due.
    pub run_at: Timestamp,
    /// When it was enqueued.
    pub created_at: Timestamp,
}

impl Job {
    /// The right to report on it.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim {
            job: self.id,
            attempt: self.attempt,
        }
    }

    /// Whether an error now would be the last one.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.failures + 1 >= self.max_attempts
    }
}

/// A job as it stands in the database.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// The job, with the number of its last attempt; 0 before the first.
    pub job: Job,
    /// Where it stands.
    pub state: State,
    /// How many attempts ended without a word.
    pub losses: u32,
    /// The node that holds it.
    pub node: Option<String>,
    /// Until when.
    pub lease_until: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The last error.
    pub error: Option<String>,
}

/// One line of the log of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEvent {
    /// Which attempt.
    pub attempt: i64,
    /// What happened.
    pub event: Event,
    /// When.
    pub at: Timestamp,
    /// On which node, where it is known.
    pub node: Option<String>,
    /// With which error.
    pub error: Option<String>,
}

/// How many jobs are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting.
    pub ready: u64,
    /// Held by a node.
    pub running: u64,
    /// Done, and not removed yet.
    pub done: u64,
    /// Given up, and not removed yet.
    pub failed: u64,
    /// Called off, and not removed yet.
    pub cancelled: u64,
}

impl Counts {
    /// What is still to be done.
    #[must_use]
    pub const fn unfinished(&self) -> u64 {
        self.ready + self.running
    }

    pub(crate) fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Ready => &mut self.ready,
            State::Running => &mut self.running,
            State::Done => &mut self.done,
            State::Failed => &mut self.failed,
            State::Cancelled => &mut self.cancelled,
        }
    }
}

/// The part of an error's text that is kept.
pub(crate) fn shorten(error: &str) -> &str {
    let end = error.floor_char_boundary(MAX_ERROR_BYTES);
    &error[..end]
}

#[cfg(test)]
mod tests {
    use modelyard_common::error::{ErrorKind, Fault};

    use super::*;

    fn job() -> NewJob {
        NewJob::new(Uuid::from_u128(1), "step", Value::Null, Timestamp::from_micros(0))
    }

    #[test]
    fn words_of_states_and_events_read_back() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()).unwrap(), state);
        }
        for event in Event::ALL {
            assert_eq!(Event::parse(event.as_str()).unwrap(), event);
        }
        assert_eq!(State::parse("lost").unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn every_limit_is_named() {
        let bad = [
            (
                NewJob {
                    queue: String::new(),
                    ..job()
                },
                "queue's name",
            ),
            (
                NewJob {
                    queue: "q".repeat(MAX_QUEUE_BYTES + 1),
                    ..job()
                },
                "queue's name",
            ),
            (
                NewJob {
                    key: Some(String::new()),
                    ..job()
                },
                "key",
            ),
            (
                NewJob {
                    key: Some("k".repeat(MAX_KEY_BYTES + 1)),
                    ..job()
                },
                "key",
            ),
            (
                NewJob {
                    max_attempts: 0,
                    ..job()
                },
                "max_attempts",
            ),
            (
                NewJob {
                    max_attempts: MAX_ATTEMPTS + 1,
                    ..job()
                },
                "max_attempts",
            ),
            (
                NewJob {
                    trace: Some("0".repeat(MAX_TRACE_BYTES + 1)),
                    ..job()
                },
                "trace",
            ),
            (
                NewJob {
                    payload: Value::String("p".repeat(MAX_PAYLOAD_BYTES)),
                    ..job()
                },
                "payload",
            ),
        ];
        for (job, named) in bad {
            let error = job.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(named), "{error}");
        }
        assert_eq!(job().check().unwrap(), "null");
    }

    #[test]
    fn long_errors_are_cut_at_a_character() {
        let text = "\u{e9}".repeat(MAX_ERROR_BYTES);
        assert!(shorten(&text).len() <= MAX_ERROR_BYTES);
        assert_eq!(shorten("short"), "short");
    }
}
