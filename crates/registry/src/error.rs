//! What can go wrong in the registry.

use std::{io, time::Duration};

use modelyard_common::{
    error::{ErrorKind, Fault},
    name::InvalidName,
};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that does not exist, in the words of the protocol in which it was asked for.
    #[error("{0}")]
    NotThere(String),
    /// The server stops.
    #[error("the server is stopping: try again")]
    Stopping,
    /// A name that is taken.
    #[error("{0}")]
    Exists(String),
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] InvalidName),
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
        remedy: &'static str,
    },
    /// A signature that is none of what it shall be of.
    #[error(transparent)]
    Signing(#[from] modelyard_artifacts::signing::SigningError),
    /// A file that cannot be part of a dataset.
    #[error("`{file}` {problem}")]
    DatasetFile {
        /// The file's name in the dataset.
        file: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A file whose columns are not those of the dataset.
    #[error("`{file}` does not fit `{other}`: {problem}")]
    Columns {
        /// The file's name in the dataset.
        file: String,
        /// The file, or version, that it was compared with.
        other: String,
        /// Which column differs, and what to do.
        problem: String,
    },
    /// A file that is no ONNX model.
    #[error("artifact {digest} is not an ONNX model: {problem}; export the model to ONNX and upload that file")]
    NotOnnx {
        /// The file.
        digest: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// A project that was to be removed only if nothing is in it.
    #[error("project `{project}` has {what}: delete them first")]
    NotEmpty {
        /// The project.
        project: String,
        /// What is in it.
        what: String,
    },
    /// An idempotency key that belongs to another request.
    #[error("the idempotency key `{key}` was used for another {what}: use a new key for a new request")]
    KeyReused {
        /// What is created.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// A param that has another value already.
    #[error(
        "Changing param values is not allowed. Param `{key}` of run `{run}` is `{old}` and cannot become `{new}`: log it under another name"
    )]
    ParamChanged {
        /// The run.
        run: String,
        /// The param.
        key: String,
        /// Its value.
        old: String,
        /// The refused value.
        new: String,
    },
    /// The thing is in a state that forbids this.
    #[error("{0}")]
    State(String),
    /// Others changed the same thing all the time.
    #[error("{what} `{name}` is being changed by others: try again")]
    Contended {
        /// The kind of the thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A project that would store more than it may.
    #[error(
        "project `{project}` may store {limit_bytes} bytes, and this would be more: delete what is not needed and run `modelyard gc`, or ask an admin for a larger quota"
    )]
    Quota {
        /// The project.
        project: String,
        /// How much it may store.
        limit_bytes: u64,
    },
    /// Content that is being removed, or was since it was stored.
    #[error("content {digest} was removed as unused at the very moment at which it was needed: send it again")]
    Removed {
        /// The content.
        digest: String,
    },
    /// The working folder failed.
    #[error("the registry's working folder failed: {0}: check the disk of the data folder")]
    Folder(#[from] io::Error),
    /// The file of keys.
    #[error("the keys `{}` cannot be used: {problem}; name a readable file with `registry.key_file`", path.display())]
    Keys {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A working thread panicked.
    #[error("reading a file was cut off: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// The statistics failed on what was read.
    #[error("the profile of `{file}` cannot be made: {source}")]
    Profile {
        /// The file, or dataset.
        file: String,
        /// Why not.
        source: modelyard_stats::Error,
    },
    /// The blobs.
    #[error(transparent)]
    Artifacts(#[from] modelyard_artifacts::Error),
    /// Who calls, and what they may.
    #[error(transparent)]
    Access(#[from] modelyard_auth::Error),
    /// Signing in elsewhere.
    #[error(transparent)]
    OpenId(#[from] crate::openid::Error),
    /// The queue of what webhooks are told.
    #[error(transparent)]
    Jobs(#[from] modelyard_jobs::Error),
    /// The database.
    #[error(transparent)]
    Database(#[from] modelyard_db::Error),
}

impl Error {
    /// A request that can never be right.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }

    /// A thing that is not there.
    pub(crate) fn not_found(what: &'static str, name: impl Into<String>, remedy: &'static str) -> Self {
        Self::NotFound {
            what,
            name: name.into(),
            remedy,
        }
    }
}

/// PostgreSQL's code for a regular expression that it cannot read.
const INVALID_EXPRESSION: &str = "2201B";

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_expression = error
            .as_database_error()
            .is_some_and(|error| error.code().as_deref() == Some(INVALID_EXPRESSION));
        if is_expression {
            // Searches alone pass on expressions, and what the two databases read is not quite the same.
            return Self::request(
                "The regular expression of RLIKE cannot be used: the database does not read it; write flags such as (?i) at \
                 its beginning only, and no escapes but those for characters and classes",
            );
        }
        Self::Database(error.into())
    }
}

impl From<modelyard_artifacts::InvalidDigest> for Error {
    fn from(error: modelyard_artifacts::InvalidDigest) -> Self {
        Self::Artifacts(error.into())
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(error) => error.kind(),
            Self::Request(_)
            | Self::Spec { .. }
            | Self::DatasetFile { .. }
            | Self::Columns { .. }
            | Self::NotOnnx { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } | Self::NotThere(_) => ErrorKind::NotFound,
            Self::KeyReused { .. } | Self::ParamChanged { .. } | Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::State(_) | Self::NotEmpty { .. } => ErrorKind::FailedPrecondition,
            Self::Stopping | Self::Removed { .. } => ErrorKind::Unavailable,
            Self::Quota { .. } => ErrorKind::TooLarge,
            Self::Contended { .. } => ErrorKind::Aborted,
            Self::Folder(error) if error.kind() == io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
            Self::Folder(_) | Self::Keys { .. } | Self::Thread(_) | Self::Profile { .. } => ErrorKind::Internal,
            Self::Artifacts(error) => error.kind(),
            Self::Signing(error) => error.kind(),
            Self::Access(error) => error.kind(),
            Self::OpenId(error) => error.kind(),
            Self::Jobs(error) => error.kind(),
            Self::Database(error) => error.kind(),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Name(error) => error.reason(),
            Self::Request(_) => "INVALID_REQUEST",
            Self::Spec { .. } => "INVALID_SPEC",
            Self::NotFound { .. } | Self::NotThere(_) => "NOT_FOUND",
            Self::DatasetFile { .. } => "INVALID_DATASET_FILE",
            Self::Columns { .. } => "COLUMNS_DIFFER",
            Self::NotOnnx { .. } => "NOT_ONNX",
            Self::KeyReused { .. } => "IDEMPOTENCY_KEY_REUSED",
            Self::Stopping => "STOPPING",
            Self::Exists(_) => "ALREADY_EXISTS",
            Self::ParamChanged { .. } => "PARAM_CHANGED",
            Self::State(_) => "WRONG_STATE",
            Self::NotEmpty { .. } => "NOT_EMPTY",
            Self::Contended { .. } => "CONTENDED",
            Self::Quota { .. } => "QUOTA_EXCEEDED",
            Self::Removed { .. } => "REMOVED",
            Self::Folder(_) => "WORKING_FOLDER",
            Self::Keys { .. } => "KEYS",
            Self::Thread(_) => "THREAD",
            Self::Profile { .. } => "PROFILE",
            Self::Artifacts(error) => error.reason(),
            Self::Signing(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::OpenId(error) => error.reason(),
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
