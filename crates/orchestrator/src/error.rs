//! What can go wrong in the orchestrator.

use std::time::Duration;

use modelyard_common::{
    error::{ErrorKind, Fault},
    name::InvalidName,
};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the orchestrator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Who calls, and what they may.
    #[error(transparent)]
    Access(#[from] modelyard_auth::Error),
    /// A request that can never be right.
    #[error("{0}")]
    Request(String),
    /// A definition with something wrong in it.
    #[error("{what} `{name}` is not valid: {}", problems.join("; "))]
    Spec {
        /// The kind of the resource.
        what: &'static str,
        /// Its name.
        name: String,
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// Parameters that a pipeline does not take.
    #[error("pipeline `{pipeline}` cannot run with these parameters: {}", problems.join("; "))]
    Parameters {
        /// The pipeline.
        pipeline: String,
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// Something that is not there.
    #[error("{what} `{name}` does not exist: {remedy}")]
    NotFound {
        /// The kind of the thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A trigger whose pipeline is not there.
    #[error(
        "trigger `{trigger}` starts the pipeline `{pipeline}`, which does not exist: apply the pipeline, then fire again"
    )]
    NoPipeline {
        /// The trigger.
        trigger: String,
        /// The pipeline.
        pipeline: String,
    },
    /// An idempotency key that belongs to another request.
    #[error("the idempotency key `{0}` was used for another run: use a new key for a new run")]
    KeyReused(String),
    /// A run that has ended cannot be called off.
    #[error("pipeline run {id} has {status} already: there is nothing to cancel")]
    Finished {
        /// The run.
        id: String,
        /// How it ended.
        status: &'static str,
    },
    /// The attempt or the run that a report is about is over.
    #[error("the attempt is over: another holds the step, or the run has ended; drop what this attempt did")]
    Stale,
    /// A rollout that is over cannot be changed.
    #[error("rollout {id} is {state}: there is nothing to {change}")]
    RolloutOver {
        /// The rollout.
        id: String,
        /// How it stands.
        state: &'static str,
        /// What was wanted.
        change: &'static str,
    },
    /// The registry failed, or refuses.
    #[error("the registry: {0}")]
    Registry(#[from] modelyard_common::error::RemoteError),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The queue failed.
    #[error(transparent)]
    Jobs(modelyard_jobs::Error),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] modelyard_db::Error),
}

impl Error {
    /// A request that can never be right.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<modelyard_jobs::Error> for Error {
    fn from(error: modelyard_jobs::Error) -> Self {
        match error {
            modelyard_jobs::Error::Stale(_) => Self::Stale,
            modelyard_jobs::Error::Database(error) => Self::Database(error),
            error => Self::Jobs(error),
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Request(_) | Self::Spec { .. } | Self::Parameters { .. } | Self::Config(_) => {
                ErrorKind::InvalidArgument
            }
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NoPipeline { .. } | Self::Finished { .. } | Self::RolloutOver { .. } | Self::Stale => {
                ErrorKind::FailedPrecondition
            }
            Self::Registry(error) => error.kind(),
            Self::KeyReused(_) => ErrorKind::AlreadyExists,
            Self::Access(error) => error.kind(),
            Self::Jobs(error) => error.kind(),
            Self::Database(error) => error.kind(),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Name(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Request(_) => "INVALID_REQUEST",
            Self::Spec { .. } => "INVALID_SPEC",
            Self::Parameters { .. } => "INVALID_PARAMETERS",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::NoPipeline { .. } => "PIPELINE_MISSING",
            Self::KeyReused(_) => "IDEMPOTENCY_KEY_REUSED",
            Self::Finished { .. } => "PIPELINE_RUN_FINISHED",
            Self::RolloutOver { .. } => "ROLLOUT_OVER",
            Self::Registry(error) => error.reason(),
            Self::Stale => "ATTEMPT_STALE",
            Self::Config(_) => "INVALID_CONFIG",
            Self::Jobs(error) => error.reason(),
            Self::Database(error) => error.reason(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Access(error) => error.retry_after(),
            _ => None,
        }
    }
}
