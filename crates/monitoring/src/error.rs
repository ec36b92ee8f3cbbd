//! What can go wrong in monitoring.

use std::time::Duration;

use modelyard_common::{
    error::{ErrorKind, Fault, RemoteError},
    name::InvalidName,
};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of monitoring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Who calls, and what they may.
    #[error(transparent)]
    Access(#[from] modelyard_auth::Error),
    /// A request that can never be right.
    #[error("{0}")]
    Request(String),
    /// A declared resource with something wrong in it.
    #[error("{what} `{name}` is not valid: {}", problems.join("; "))]
    Spec {
        /// The kind of the resource.
        what: &'static str,
        /// Its name.
        name: String,
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
        remedy: String,
    },
    /// The thing is in a state that forbids this.
    #[error("{0}")]
    State(String),
    /// A segment was handed over again with other files.
    #[error("segment `{0}` was handed over before with other files: give each segment its own id")]
    SegmentChanged(String),
    /// A window is larger than can be scored.
    #[error("the window has more than {limit} {what}: choose a shorter window for the monitor")]
    WindowTooLarge {
        /// The limit.
        limit: u64,
        /// What is counted.
        what: &'static str,
    },
    /// A folder of the data folder.
    #[error("the folder `{path}` cannot be created: {source}: check the data folder")]
    Folder {
        /// The folder.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A column of the inference log that is not as it is documented.
    #[error("the inference log cannot be read: {0}")]
    Log(String),
    /// Scoring was cut off.
    #[error("scoring was cut off: {0}")]
    Thread(String),
    /// A query broke off in its middle.
    #[error("the inference log cannot be read to its end: {0}")]
    Query(Box<dyn std::error::Error + Send + Sync>),
    /// The tables.
    #[error(transparent)]
    Analytics(#[from] modelyard_analytics::Error),
    /// The statistics.
    #[error("the scores cannot be computed: {0}")]
    Statistics(#[from] modelyard_stats::Error),
    /// The blobs.
    #[error(transparent)]
    Artifacts(#[from] modelyard_artifacts::Error),
    /// The queue.
    #[error(transparent)]
    Jobs(#[from] modelyard_jobs::Error),
    /// The database.
    #[error(transparent)]
    Database(#[from] modelyard_db::Error),
    /// Another service.
    #[error("{} ({answer}): {}", failure(*peer, answer), remedy(*peer, answer))]
    Peer {
        /// Which one.
        peer: Peer,
        /// What it answered. The message has it, so that it is no source of its own.
        answer: RemoteError,
    },
}

/// A service that monitoring calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Versions, their reference profiles, runs.
    Registry,
    /// Triggers.
    Orchestrator,
}

impl Peer {
    /// The service as the configuration names it.
    const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Orchestrator => "orchestrator",
        }
    }
}

/// What went wrong with a call: nobody answered as asked, or the answer was no.
fn failure(peer: Peer, answer: &RemoteError) -> String {
    let name = peer.name();
    if answer.kind().is_transient() {
        format!("the {name} cannot answer now")
    } else {
        format!("the {name} refuses a call")
    }
}

/// What to do about it.
fn remedy(peer: Peer, answer: &RemoteError) -> String {
    let name = peer.name();
    match answer.kind() {
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => {
            format!("let this process call the {name}, whose log says what it lacks")
        }
        ErrorKind::Internal => format!("the {name}'s log has the cause; update both to one version where they differ"),
        kind if kind.is_transient() => {
            format!(
                "it is tried again; check that the {name} runs, and `peers.{name}.internal` where it is another process"
            )
        }
        // Its own words say what to do; this names what can be done here.
        _ => match peer {
            Peer::Registry => "check the model version that the endpoint serves".to_owned(),
            Peer::Orchestrator => "check the trigger that the alert rule names, and its pipeline".to_owned(),
        },
    }
}

impl Error {
    /// A request that can never be right.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }

    /// A thing that is not there.
    pub(crate) fn not_found(what: &'static str, name: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::NotFound {
            what,
            name: name.into(),
            remedy: remedy.into(),
        }
    }

    /// Arrow refused something that the log's format promises.
    pub(crate) fn arrow(error: &arrow::error::ArrowError) -> Self {
        Self::Log(error.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(error) => error.kind(),
            Self::Access(error) => error.kind(),
            Self::Config(_) | Self::Request(_) | Self::Spec { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::State(_) | Self::Folder { .. } => ErrorKind::FailedPrecondition,
            Self::SegmentChanged(_) => ErrorKind::AlreadyExists,
            Self::WindowTooLarge { .. } => ErrorKind::ResourceExhausted,
            Self::Log(_) | Self::Query(_) | Self::Thread(_) | Self::Statistics(_) => ErrorKind::Internal,
            Self::Analytics(error) => error.kind(),
            Self::Artifacts(error) => error.kind(),
            Self::Jobs(error) => error.kind(),
            Self::Database(error) => error.kind(),
            Self::Peer { answer, .. } => answer.kind(),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Config(_) => "MONITORING_CONFIG",
            Self::Name(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Request(_) => "INVALID_REQUEST",
            Self::Spec { .. } => "INVALID_SPEC",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::State(_) => "WRONG_STATE",
            Self::SegmentChanged(_) => "SEGMENT_CHANGED",
            Self::WindowTooLarge { .. } => "WINDOW_TOO_LARGE",
            Self::Folder { .. } => "WORKING_FOLDER",
            Self::Log(_) | Self::Query(_) => "INFERENCE_LOG",
            Self::Thread(_) => "THREAD",
            Self::Analytics(error) => error.reason(),
            Self::Statistics(_) => "STATISTICS",
            Self::Artifacts(error) => error.reason(),
            Self::Jobs(error) => error.reason(),
            Self::Database(error) => error.reason(),
            Self::Peer { answer, .. } => answer.reason(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Access(error) => error.retry_after(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use modelyard_common::error::Chain;
    use tonic::Status;

    use super::*;

    fn message(peer: Peer, status: Status) -> String {
        let answer = RemoteError::from(status);
        let error = Error::Peer { peer, answer };
        let text = error.to_string();
        // Said once, also where the sources are printed.
        assert_eq!(Chain(&error).to_string(), text);
        text
    }

    #[test]
    fn a_peer_that_fails_is_named_with_the_remedy() {
        let away = message(Peer::Registry, Status::unavailable("connection refused"));
        assert!(
            away.starts_with("the registry cannot answer now (connection refused): "),
            "{away}"
        );
        assert!(away.contains("`peers.registry.internal`"), "{away}");
        let unknown = message(Peer::Orchestrator, Status::not_found("trigger `t` does not exist"));
        assert!(
            unknown.starts_with("the orchestrator refuses a call (trigger `t` does not exist): check the trigger"),
            "{unknown}"
        );
        let broken = message(Peer::Registry, Status::internal("internal error"));
        assert!(broken.contains("the registry's log"), "{broken}");
        let barred = message(Peer::Orchestrator, Status::permission_denied("no"));
        assert!(barred.contains("let this process call the orchestrator"), "{barred}");
    }
}
