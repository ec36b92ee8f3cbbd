//! What can go wrong, and what to do about it.

use std::{io, path::PathBuf, time::Duration};

use http::StatusCode;
use modelyard_common::error::{Chain, ErrorKind, Fault};

/// The result of this crate's functions.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// When to ask again where the gateway has no room, or is starting.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// An error of the gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{detail}")]
    Config {
        /// Which value, and what is allowed.
        detail: String,
    },
    /// The request is not one of the protocol.
    #[error("{detail}")]
    InvalidRequest {
        /// What is wrong, where, and what is expected.
        detail: String,
    },
    /// The body is in a form that is not read.
    #[error("{detail}")]
    UnsupportedMedia {
        /// What came and what is read.
        detail: String,
    },
    /// The body is larger than bodies may be.
    #[error("the body is larger than {limit_bytes} bytes: send less at once")]
    BodyTooLarge {
        /// The most bytes that are taken.
        limit_bytes: usize,
    },
    /// Requests under way have all the memory that they may.
    #[error(
        "the requests that are being answered take the {limit_bytes} bytes that they may take together: send less at once, or \
         ask again in a moment"
    )]
    MemoryFull {
        /// How much that is.
        limit_bytes: u64,
    },
    /// There is no such endpoint.
    #[error("there is no endpoint `{name}` in project `{project}`: create it with `modelyard apply`")]
    EndpointNotFound {
        /// The project.
        project: String,
        /// What was asked for.
        name: String,
    },
    /// The endpoint does not route to this version.
    #[error("endpoint `{endpoint}` does not serve version `{version}`: it serves {served}")]
    VersionNotServed {
        /// The endpoint.
        endpoint: String,
        /// What was asked for.
        version: String,
        /// The versions that it does serve.
        served: String,
    },
    /// The endpoint has nothing to answer with.
    #[error("endpoint {endpoint} has no version to serve: {reason}")]
    NotReady {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The desired state has not arrived yet.
    #[error("the gateway is starting: ask again in a moment")]
    Starting,
    /// A specification of the registry's that makes no sense.
    #[error("the endpoint's specification is refused: {detail}")]
    InvalidEndpoint {
        /// What is wrong with it.
        detail: String,
    },
    /// Who calls, and what they may.
    #[error(transparent)]
    Access(#[from] modelyard_auth::Error),
    /// The model or the tensors.
    #[error(transparent)]
    Inference(#[from] modelyard_inference::Error),
    /// A model's file could not be fetched.
    #[error("the model's file cannot be fetched")]
    Artifact {
        /// Why.
        #[from]
        source: modelyard_artifacts::Error,
    },
    /// A version without a signature, where one is wanted.
    #[error(
        "it is not signed, and this gateway serves only what one of its trusted keys has signed: sign it with `modelyard \
         models sign`"
    )]
    NotSigned,
    /// A signature that does not count.
    #[error("its signature is refused: {0}")]
    Signature(#[from] modelyard_artifacts::signing::SigningError),
    /// An artifact says in a way that is not understood how it is run.
    #[error("the artifact is neither an ONNX file nor a description of how it is run: {detail}")]
    Description {
        /// Why it is none.
        detail: String,
    },
    /// A model of another server cannot be used.
    #[error("{detail}")]
    Upstream {
        /// Which, and what is wrong with it.
        detail: String,
    },
    /// A version stands for a model of a server that this gateway may not call.
    #[error("the server `{server}` may not be called: add it to `gateway.upstreams` in the configuration")]
    UpstreamNotAllowed {
        /// `HOST:PORT`.
        server: String,
    },
    /// A model of Python cannot be run.
    #[error("{detail}")]
    Python {
        /// Why.
        detail: String,
    },
    /// A file or folder of the gateway's.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The contract cannot be described to clients.
    #[error("the contract of the inference service cannot be described")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A model that is not in memory cannot be loaded: never the fault of who asks for a prediction.
    #[error("the model cannot be loaded: {}", reason_for_clients(.error))]
    Load {
        /// Why; the same for all who wait.
        error: std::sync::Arc<Self>,
    },
    /// What went wrong for all who waited for the same.
    #[error(transparent)]
    Shared(std::sync::Arc<Self>),
    /// A background thread ended without an answer.
    #[error("{what} was interrupted")]
    Interrupted {
        /// What it did.
        what: &'static str,
    },
}

impl Error {
    /// A request that cannot be right.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::InvalidRequest { detail: detail.into() }
    }

    /// The HTTP status: the common table's, but where HTTP has a word that gRPC lacks.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::UnsupportedMedia { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => self.kind().status(),
        }
    }

    /// A file error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Why, as far as it is of use to clients; what is wrong with this machine is for the log.
pub(crate) fn reason_for_clients(error: &Error) -> String {
    if error.kind() == ErrorKind::Internal {
        "the server's log has the details".to_owned()
    } else {
        Chain(error).to_string()
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } | Self::InvalidRequest { .. } | Self::UnsupportedMedia { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::BodyTooLarge { .. } => ErrorKind::TooLarge,
            Self::MemoryFull { .. } => ErrorKind::ResourceExhausted,
            Self::EndpointNotFound { .. } | Self::VersionNotServed { .. } => ErrorKind::NotFound,
            // Of a model, when it is loaded: none of them is the fault of who asks for a prediction.
            Self::NotReady { .. }
            | Self::Starting
            | Self::Description { .. }
            | Self::Upstream { .. }
            | Self::UpstreamNotAllowed { .. }
            | Self::Python { .. }
            | Self::NotSigned
            | Self::Signature(_)
            | Self::Load { .. } => ErrorKind::Unavailable,
            Self::InvalidEndpoint { .. } => ErrorKind::FailedPrecondition,
            Self::Access(error) => error.kind(),
            Self::Inference(error) => error.kind(),
            Self::Artifact { source } => source.kind(),
            Self::Shared(error) => error.kind(),
            Self::Io { .. } | Self::Reflection(_) | Self::Interrupted { .. } => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Config { .. } => "INVALID_CONFIG",
            Self::InvalidRequest { .. } => "INVALID_REQUEST",
            Self::UnsupportedMedia { .. } => "UNSUPPORTED_MEDIA",
            Self::BodyTooLarge { .. } => "BODY_TOO_LARGE",
            Self::MemoryFull { .. } => "REQUEST_MEMORY_FULL",
            Self::EndpointNotFound { .. } => "ENDPOINT_NOT_FOUND",
            Self::VersionNotServed { .. } => "VERSION_NOT_SERVED",
            Self::NotReady { .. } => "ENDPOINT_NOT_READY",
            Self::Starting => "GATEWAY_STARTING",
            Self::InvalidEndpoint { .. } => "INVALID_ENDPOINT",
            Self::Access(error) => error.reason(),
            Self::Inference(error) => error.reason(),
            Self::Artifact { source } => source.reason(),
            Self::Shared(error) => error.reason(),
            Self::Load { .. } => "MODEL_NOT_LOADED",
            Self::Description { .. } => "ARTIFACT_NOT_UNDERSTOOD",
            Self::Upstream { .. } => "UPSTREAM_UNUSABLE",
            Self::UpstreamNotAllowed { .. } => "UPSTREAM_NOT_ALLOWED",
            Self::Python { .. } => "PYTHON_MODEL_UNUSABLE",
            Self::NotSigned => "MODEL_NOT_SIGNED",
            Self::Signature(_) => "MODEL_SIGNATURE_REFUSED",
            Self::Io { .. } => "GATEWAY_IO",
            Self::Reflection(_) => "REFLECTION",
            Self::Interrupted { .. } => "INTERRUPTED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Access(error) => error.retry_after(),
            Self::Shared(error) => error.retry_after(),
            Self::Inference(modelyard_inference::Error::Overloaded { expected, allowed }) => {
                Some(expected.saturating_sub(*allowed).max(RETRY_SOON))
            }
            // Queues are emptied within moments, or there are too few gateways.
            Self::Inference(error) if error.kind() == ErrorKind::ResourceExhausted => Some(RETRY_SOON),
            Self::Starting | Self::Load { .. } | Self::MemoryFull { .. } => Some(RETRY_SOON),
            _ => None,
        }
    }
}
