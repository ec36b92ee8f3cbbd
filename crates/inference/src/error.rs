//! What can go wrong, and what to do about it.

use std::{io, path::PathBuf, time::Duration};

use modelyard_common::error::{ErrorKind, Fault};

use crate::datatype::DataType;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What every message about the library ends with.
pub(crate) const RUNTIME_REMEDY: &str =
    "run `cargo xtask setup` to fetch it, or set ORT_DYLIB_PATH to the library's path";

/// An error of tensors, models or predictions.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No library was found.
    #[error("the ONNX Runtime library was not found; looked for {}: {RUNTIME_REMEDY}", paths(.tried))]
    RuntimeMissing {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A library was found and cannot be used.
    #[error("the ONNX Runtime library {} cannot be used: {detail}: {RUNTIME_REMEDY}", path.display())]
    RuntimeUnusable {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        detail: String,
    },
    /// What shall run models cannot.
    #[error("{provider} cannot run the model with {} here: {detail}: see that its libraries and the device's driver are installed and that the device's memory has room, or set no accelerator", library.display())]
    AcceleratorUnusable {
        /// Its name in ONNX Runtime.
        provider: &'static str,
        /// ONNX Runtime's library.
        library: PathBuf,
        /// What ONNX Runtime said.
        detail: String,
    },
    /// The model's file cannot be read.
    #[error("cannot read the model file {}", path.display())]
    ModelUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("this is not an ONNX model ({detail}): export the model to ONNX and load that file")]
    NotOnnx {
        /// What ONNX Runtime or the check said.
        detail: String,
    },
    /// The graph is ONNX, and ONNX Runtime cannot run it.
    #[error("ONNX Runtime refuses the model: {detail}")]
    ModelRefused {
        /// What ONNX Runtime said.
        detail: String,
    },
    /// An input or output has a type that no tensor of the protocol can carry.
    #[error("the model's {direction} `{name}` is {found}, which cannot be served: {remedy}")]
    UnsupportedType {
        /// `input` or `output`.
        direction: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Options that make no sense.
    #[error("{detail}")]
    InvalidOptions {
        /// Which, and what is allowed.
        detail: String,
    },
    /// A datatype that does not exist.
    #[error("unknown datatype `{name}`: use one of {}", DataType::names())]
    UnknownDataType {
        /// What was given.
        name: String,
    },
    /// A tensor that contradicts itself or the signature.
    #[error("tensor `{tensor}`: {detail}")]
    InvalidTensor {
        /// The tensor's name.
        tensor: String,
        /// Expected and got.
        detail: String,
    },
    /// The set of inputs does not fit the signature.
    #[error("{detail}")]
    InvalidInputs {
        /// Missing, unknown or repeated names, and what is expected.
        detail: String,
    },
    /// Columns that the model needs are not in the table.
    #[error("the table lacks the columns {}, which the model takes as inputs", .missing.join(", "))]
    MissingColumns {
        /// Their names.
        missing: Vec<String>,
    },
    /// A column whose values the model cannot take.
    #[error("column `{column}`: {detail}")]
    InvalidColumn {
        /// Its name.
        column: String,
        /// Expected and got.
        detail: String,
    },
    /// The model failed on these inputs.
    #[error("the model failed on these inputs: {detail}")]
    RunFailed {
        /// What ONNX Runtime said.
        detail: String,
        /// Whether ONNX Runtime blames the inputs' values.
        inputs_at_fault: bool,
    },
    /// The model answered with something that is no valid output.
    #[error("output `{output}`: {detail}")]
    InvalidOutput {
        /// Its name.
        output: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A merged run gave outputs that cannot be told apart by rows.
    #[error("output `{output}` has {found} rows for {expected} rows of input, so its rows belong to no caller")]
    NotSplittable {
        /// The output.
        output: String,
        /// Its first dimension, in words.
        found: String,
        /// The rows that went in.
        expected: usize,
    },
    /// The queue is full.
    #[error("the model's queue is full ({limit}): send less at once, or add instances or replicas")]
    QueueFull {
        /// The limit that was met, in words.
        limit: String,
    },
    /// The wait would be longer than anybody allows.
    #[error(
        "the model has more work than it gets done: this request would wait about {expected:.1?}, and {allowed:.1?} are allowed: send less at once, or add instances or replicas"
    )]
    Overloaded {
        /// How long the request would wait.
        expected: Duration,
        /// How long it may.
        allowed: Duration,
    },
    /// The deadline passed before there was an answer.
    #[error("the deadline passed before the prediction was made: allow more time, or send less at once")]
    DeadlineExceeded,
    /// The model is being unloaded.
    #[error("the model is being unloaded: ask again, and the version that replaces it will answer")]
    Closed,
    /// A thread could not be started.
    #[error("cannot start a worker thread for the model")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// What runs the model is not there.
    #[error("{detail}")]
    BackendAway {
        /// What is away, and why.
        detail: String,
    },
    /// What ran the model ended while it was at this run, which may be the cause.
    #[error("{detail}")]
    BackendLost {
        /// What ended, and how.
        detail: String,
    },
    /// A fault inside the runtime's binding.
    #[error("inference broke: {detail}")]
    Broken {
        /// What is known.
        detail: String,
    },
}

impl Error {
    /// A tensor that contradicts itself or the signature.
    pub(crate) fn tensor(tensor: &str, detail: impl Into<String>) -> Self {
        Self::InvalidTensor {
            tensor: tensor.to_owned(),
            detail: detail.into(),
        }
    }

    /// A column whose values the model cannot take.
    pub(crate) fn column(column: &str, detail: impl Into<String>) -> Self {
        Self::InvalidColumn {
            column: column.to_owned(),
            detail: detail.into(),
        }
    }

    /// An output that is not valid.
    pub(crate) fn output(output: &str, detail: impl Into<String>) -> Self {
        Self::InvalidOutput {
            output: output.to_owned(),
            detail: detail.into(),
        }
    }

    /// Outputs of a merged run whose first dimension is not the row.
    pub(crate) fn not_splittable(output: &str, shape: &[i64], expected: usize) -> Self {
        Self::NotSplittable {
            output: output.to_owned(),
            found: shape
                .first()
                .map_or_else(|| "no dimension".to_owned(), |rows| format!("{rows} rows")),
            expected,
        }
    }

    /// Whether it is about what runs the model, and would be the same for each request alone.
    pub(crate) const fn is_of_backend(&self) -> bool {
        matches!(
            self,
            Self::BackendAway { .. } | Self::QueueFull { .. } | Self::DeadlineExceeded
        )
    }

    /// The same once more, for another request of the run.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::BackendAway { detail } => Self::BackendAway { detail: detail.clone() },
            Self::QueueFull { limit } => Self::QueueFull { limit: limit.clone() },
            Self::DeadlineExceeded => Self::DeadlineExceeded,
            other => Self::Broken {
                detail: other.to_string(),
            },
        }
    }

    /// A failed run, as ONNX Runtime reports it.
    pub(crate) fn run(error: &ort::Error) -> Self {
        Self::RunFailed {
            detail: error.message().to_owned(),
            inputs_at_fault: error.code() == ort::ErrorCode::InvalidArgument,
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::RuntimeMissing { .. } | Self::RuntimeUnusable { .. } => ErrorKind::FailedPrecondition,
            Self::ModelUnreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::NotOnnx { .. }
            | Self::ModelRefused { .. }
            | Self::UnsupportedType { .. }
            | Self::InvalidOptions { .. }
            | Self::UnknownDataType { .. }
            | Self::InvalidTensor { .. }
            | Self::InvalidInputs { .. }
            | Self::MissingColumns { .. }
            | Self::InvalidColumn { .. }
            | Self::RunFailed {
                inputs_at_fault: true, ..
            } => ErrorKind::InvalidArgument,
            Self::QueueFull { .. } | Self::Overloaded { .. } => ErrorKind::ResourceExhausted,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::Closed | Self::BackendAway { .. } | Self::BackendLost { .. } => ErrorKind::Unavailable,
            Self::AcceleratorUnusable { .. }
            | Self::ModelUnreadable { .. }
            | Self::RunFailed { .. }
            | Self::InvalidOutput { .. }
            | Self::NotSplittable { .. }
            | Self::Thread { .. }
            | Self::Broken { .. } => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::RuntimeMissing { .. } => "ONNX_RUNTIME_MISSING",
            Self::RuntimeUnusable { .. } => "ONNX_RUNTIME_UNUSABLE",
            Self::AcceleratorUnusable { .. } => "ACCELERATOR_UNUSABLE",
            Self::ModelUnreadable { .. } => "MODEL_UNREADABLE",
            Self::NotOnnx { .. } => "MODEL_NOT_ONNX",
            Self::ModelRefused { .. } => "MODEL_REFUSED",
            Self::UnsupportedType { .. } => "MODEL_TYPE_UNSUPPORTED",
            Self::InvalidOptions { .. } => "INVALID_OPTIONS",
            Self::UnknownDataType { .. } => "UNKNOWN_DATATYPE",
            Self::InvalidTensor { .. } => "INVALID_TENSOR",
            Self::InvalidInputs { .. } => "INVALID_INPUTS",
            Self::MissingColumns { .. } => "MISSING_COLUMNS",
            Self::InvalidColumn { .. } => "INVALID_COLUMN",
            Self::RunFailed { .. } => "MODEL_RUN_FAILED",
            Self::InvalidOutput { .. } | Self::NotSplittable { .. } => "MODEL_OUTPUT_INVALID",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Closed => "MODEL_UNLOADING",
            Self::Thread { .. } => "THREAD_START_FAILED",
            Self::BackendAway { .. } => "BACKEND_AWAY",
            Self::BackendLost { .. } => "BACKEND_LOST",
            Self::Broken { .. } => "INFERENCE_BROKEN",
        }
    }
}

fn paths(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}
