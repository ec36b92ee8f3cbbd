//! What can go wrong with a job.

use modelyard_common::error::{ErrorKind, Fault};

use crate::model::{Claim, JobId};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the queue itself, not of the work in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reporter no longer holds the job: its lease ran out, the job was cancelled, or is finished.
    #[error(
        "attempt {} of job {} is over: another holds the job, or it has ended; drop what this attempt did", .0.attempt, .0.job
    )]
    Stale(Claim),
    /// There is no such job (any more).
    #[error("there is no job {0}: finished jobs are removed after a while")]
    NotFound(JobId),
    /// A job that cannot be enqueued.
    #[error("the job for queue `{queue}` cannot be enqueued: {message}")]
    Invalid {
        /// The queue, cut short.
        queue: String,
        /// What is wrong with the job.
        message: String,
    },
    /// Two enqueued the same key while its job was finishing.
    #[error("another transaction enqueued or finished the job with the key `{key}` at the same time: try again")]
    Contended {
        /// The key.
        key: String,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] modelyard_db::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stale(_) => ErrorKind::FailedPrecondition,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Contended { .. } => ErrorKind::Aborted,
            Self::Database(error) => error.kind(),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Stale(_) => "JOB_ATTEMPT_STALE",
            Self::NotFound(_) => "JOB_NOT_FOUND",
            Self::Invalid { .. } => "JOB_INVALID",
            Self::Contended { .. } => "JOB_KEY_CONTENDED",
            Self::Database(error) => error.reason(),
        }
    }
}
