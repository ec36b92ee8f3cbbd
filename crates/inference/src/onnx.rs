//! ONNX models: files, sessions, signatures.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use ort::{
    ErrorCode,
    logging::LogLevel,
    session::{Session, builder::SessionBuilder},
    value::{Outlet, ValueType},
};

use crate::{
    accelerator::Accelerator,
    backend::{Backend, Source},
    datatype::DataType,
    error::{Error, Result},
    instance::Instance,
    model::{MAX_BACKENDS, Model},
    runtime::Runtime,
    signature::{Signature, TensorSpec},
};

/// The largest model file: what protobuf can carry. Larger models need external data, which is not taken.
pub const MAX_MODEL_BYTES: usize = (1 << 31) - 1;

/// From this size on a model gets one session with all processors by default: a session each would hold its weights
/// several times, and one run keeps all processors busy.
pub const LARGE_MODEL_BYTES: usize = 64 << 20;

/// Where external data would be looked for: a folder that is not there.
const NO_EXTERNAL_DATA: &str = "external-data-is-not-read";

/// About what a session takes beside its weights, in bytes.
const SESSION_BYTES: u64 = 512 << 10;

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// The most sessions, each of which runs one batch at a time. Each holds the weights. One is opened at first; a
    /// [`Predictor`](crate::Predictor) opens more while it has more work than they get done.
    pub instances: usize,
    /// Threads within one run.
    pub intra_threads: usize,
    /// What runs it; none: the processors.
    pub accelerator: Option<Accelerator>,
}

impl ModelOptions {
    /// The best use of the processors for a model of this size: a session each for small models, one session on all
    /// of them from [`LARGE_MODEL_BYTES`] on.
    pub fn for_size(model_bytes: usize, processors: usize) -> Self {
        let processors = processors.clamp(1, MAX_BACKENDS);
        if model_bytes < LARGE_MODEL_BYTES {
            Self {
                instances: processors,
                intra_threads: 1,
                accelerator: None,
            }
        } else {
            Self {
                instances: 1,
                intra_threads: processors,
                accelerator: None,
            }
        }
    }

    /// The same on an accelerator: one session, because each would hold the weights in the device's memory.
    #[must_use]
    pub fn on(self, accelerator: Option<Accelerator>) -> Self {
        Self {
            instances: if accelerator.is_some() { 1 } else { self.instances },
            accelerator,
            ..self
        }
    }

    /// One session with one thread: for evaluation beside other work, and for tests.
    pub const fn single() -> Self {
        Self {
            instances: 1,
            intra_threads: 1,
            accelerator: None,
        }
    }

    fn validate(self) -> Result<()> {
        for (what, value) in [("instances", self.instances), ("intra_threads", self.intra_threads)] {
            if !(1..=MAX_BACKENDS).contains(&value) {
                return Err(Error::InvalidOptions {
                    detail: format!("{what} is {value}: choose 1 to {MAX_BACKENDS}"),
                });
            }
        }
        Ok(())
    }
}

/// About how much memory a session of a model file of this size takes, in bytes.
pub const fn session_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_add(SESSION_BYTES)
}

/// Where sessions of one model come from.
struct Sessions {
    runtime: Runtime,
    origin: Origin,
    options: ModelOptions,
    file_bytes: u64,
}

/// What further sessions are made of.
enum Origin {
    /// Kept in memory only where there may be further ones.
    Bytes(Option<Arc<[u8]>>),
    File(PathBuf),
}

impl Source for Sessions {
    fn open(&self) -> Result<Box<dyn Backend>> {
        let session = match &self.origin {
            Origin::Bytes(Some(bytes)) => open_session(&self.runtime, bytes, self.options)?,
            Origin::Bytes(None) => {
                return Err(Error::Broken {
                    detail: "a model of one session was asked for another".to_owned(),
                });
            }
            Origin::File(path) => open_session(&self.runtime, &read(path)?, self.options)?,
        };
        Ok(Box::new(Instance::new(session).map_err(|error| refused(&error))?))
    }

    fn close(&self, backend: Box<dyn Backend>) {
        // That takes as long as opening it did, and nobody waits for it.
        self.runtime.gentle().spawn(move || drop(backend));
    }

    fn memory_bytes(&self) -> u64 {
        session_bytes(self.file_bytes)
    }
}

impl Model {
    /// Loads a model from the bytes of its ONNX file, and finds out by a trial whether its requests may be merged.
    ///
    /// # Errors
    /// `NotOnnx` if the bytes are something else, `ModelRefused` if ONNX Runtime cannot run the graph,
    /// `UnsupportedType` if an input or output is no tensor of the protocol's datatypes (a `ZipMap`'s output, say),
    /// `InvalidOptions` for options out of range.
    pub fn from_bytes(runtime: &Runtime, bytes: &[u8], options: ModelOptions) -> Result<Self> {
        let kept = (options.instances > 1).then(|| Arc::from(bytes));
        load(runtime, bytes, Origin::Bytes(kept), options)
    }

    /// Loads a model from its ONNX file, which has to stay there as long as the model is in use. External data beside the
    /// file is not read.
    ///
    /// # Errors
    /// `ModelUnreadable` if the file cannot be read; otherwise as [`Model::from_bytes`].
    pub fn from_file(runtime: &Runtime, path: &Path, options: ModelOptions) -> Result<Self> {
        load(runtime, &read(path)?, Origin::File(path.to_owned()), options)
    }
}

fn load(runtime: &Runtime, bytes: &[u8], origin: Origin, options: ModelOptions) -> Result<Model> {
    options.validate()?;
    check_file(bytes)?;
    let session = open_session(runtime, bytes, options)?;
    let signature = read_signature(&session)?;
    let instance = Instance::new(session).map_err(|error| refused(&error))?;
    let sessions = Sessions {
        runtime: runtime.clone(),
        origin,
        options,
        file_bytes: bytes.len() as u64,
    };
    Ok(Model::with_first(
        signature,
        Box::new(instance),
        Arc::new(sessions),
        options.instances,
    ))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::ModelUnreadable {
        path: path.to_owned(),
        source,
    })
}

/// What can be said of a file before the runtime parses it.
fn check_file(bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Err(Error::NotOnnx {
            detail: "the file is empty".to_owned(),
        });
    }
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(Error::ModelRefused {
            detail: format!(
                "it has {} bytes, and an ONNX file can have {MAX_MODEL_BYTES}",
                bytes.len()
            ),
        });
    }
    Ok(())
}

fn open_session(runtime: &Runtime, bytes: &[u8], options: ModelOptions) -> Result<Session> {
    // The binding panics on types that it does not know; that is a property of the file, not of this process.
    catch_unwind(AssertUnwindSafe(|| {
        session_builder(runtime, options)?
            .commit_from_memory(bytes)
            .map_err(|error| refused(&error))
    }))
    .unwrap_or_else(|_| {
        Err(Error::ModelRefused {
            detail: "it has an input or output of a type that is not supported: use tensors".to_owned(),
        })
    })
}

fn session_builder(runtime: &Runtime, options: ModelOptions) -> Result<SessionBuilder> {
    let builder = plain_session_builder(runtime, options).map_err(|error| refused(&error))?;
    let Some(accelerator) = options.accelerator else {
        return Ok(builder);
    };
    builder
        .with_execution_providers(accelerator.providers())
        .map_err(|error| accelerator.unusable(runtime, error.message()))
}

fn plain_session_builder(runtime: &Runtime, options: ModelOptions) -> Result<SessionBuilder, ort::Error> {
    Ok(Session::builder(runtime.environment())?
        .with_intra_threads(options.intra_threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        // Spinning threads take the processors that the server's own threads need.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        // A model from memory would look for external data in the working folder, and read the server's files as weights.
        .with_config_entry("session.model_external_initializers_file_folder_path", NO_EXTERNAL_DATA)?
        // Patterns are planned for one shape, and batches vary.
        .with_memory_pattern(false)?
        .with_log_level(LogLevel::Warning)?)
}

fn refused(error: &ort::Error) -> Error {
    let detail = error.message().to_owned();
    match error.code() {
        ErrorCode::InvalidProtobuf | ErrorCode::NoModel => Error::NotOnnx { detail },
        _ => Error::ModelRefused { detail },
    }
}

fn read_signature(session: &Session) -> Result<Signature> {
    let read = |direction, outlets: &[Outlet]| {
        outlets
            .iter()
            .map(|outlet| read_spec(direction, outlet))
            .collect::<Result<Vec<_>>>()
    };
    Ok(Signature {
        inputs: read("input", session.inputs())?,
        outputs: read("output", session.outputs())?,
    })
}

fn read_spec(direction: &'static str, outlet: &Outlet) -> Result<TensorSpec> {
    let unsupported = |remedy| Error::UnsupportedType {
        direction,
        name: outlet.name().to_owned(),
        found: outlet.dtype().to_string(),
        remedy,
    };
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => Ok(TensorSpec {
            name: outlet.name().to_owned(),
            datatype: DataType::from_onnx(*ty)
                .ok_or_else(|| unsupported("cast it to one of the protocol's datatypes in the graph"))?,
            shape: shape.iter().map(|&dimension| dimension.max(-1)).collect(),
        }),
        ValueType::Sequence(_) | ValueType::Map { .. } => Err(unsupported(
            "export the model with tensors only (for scikit-learn: options={'zipmap': False})",
        )),
        ValueType::Optional(_) => Err(unsupported("export the model without optional inputs and outputs")),
    }
}
