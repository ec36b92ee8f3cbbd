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
    accelerator::{Accelerator, Provider, said_by_device},
    backend::{Backend, Source},
    datatype::DataType,
    engines::Engines,
    error::{Error, Result},
    instance::Instance,
    model::{MAX_BACKENDS, Model},
    options::BatcherOptions,
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

/// How errors of TensorRT's provider begin.
const TENSOR_RT_SAYS: &str = "TensorRT EP";

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

    /// The same on an accelerator: one session, because each would hold the weights in the device's memory. What the device has no kernels
    /// for is run by all processors.
    #[must_use]
    pub fn on(self, accelerator: Option<Accelerator>) -> Self {
        Self {
            instances: if accelerator.is_some() { 1 } else { self.instances },
            intra_threads: if accelerator.is_some() {
                self.instances.max(self.intra_threads)
            } else {
                self.intra_threads
            },
            accelerator,
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
    /// What TensorRT builds, where that runs the model.
    engines: Option<Engines>,
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
            Origin::Bytes(Some(bytes)) => self.open_session(bytes)?,
            Origin::Bytes(None) => {
                return Err(Error::Broken {
                    detail: "a model of one session was asked for another".to_owned(),
                });
            }
            Origin::File(path) => self.open_session(&read(path)?)?,
        };
        Ok(Box::new(self.instance(session)?))
    }

    fn close(&self, backend: Box<dyn Backend>) {
        // That takes as long as opening it did, and nobody waits for it.
        self.runtime.gentle().spawn(move || drop(backend));
    }

    fn memory_bytes(&self) -> u64 {
        session_bytes(self.file_bytes)
    }

    fn rounds_coarsely(&self) -> bool {
        self.options.accelerator.is_some()
    }

    fn grows_slowly(&self) -> bool {
        self.options.accelerator.is_some()
    }

    fn waits(&self) -> bool {
        // For the device, and for what is built for it.
        self.options.accelerator.is_some()
    }

    fn warmed(&self) {
        if let Some(Err(error)) = self.engines.as_ref().map(Engines::keep) {
            tracing::warn!(%error, "the engines of a model cannot be kept: they are built again with the next load");
        }
    }
}

impl Sessions {
    fn new(runtime: &Runtime, bytes: &[u8], origin: Origin, options: ModelOptions) -> Self {
        let engines = match (&origin, options.accelerator.map(|accelerator| accelerator.provider)) {
            (Origin::File(path), Some(Provider::TensorRt)) => Some(Engines::open(path)),
            _ => None,
        };
        let engines = engines.and_then(|opened| {
            opened
                .inspect_err(
                    |error| tracing::warn!(%error, "the engines of a model are not kept: there is no folder for them"),
                )
                .ok()
        });
        Self {
            runtime: runtime.clone(),
            origin,
            options,
            file_bytes: bytes.len() as u64,
            engines,
        }
    }

    fn open_session(&self, bytes: &[u8]) -> Result<Session> {
        let engines = self.engines.as_ref().map(Engines::path);
        open_session(&self.runtime, bytes, self.options, engines)
    }

    fn instance(&self, session: Session) -> Result<Instance> {
        Instance::new(session, self.options.accelerator).map_err(|error| refused(&error))
    }

    fn open_first(&self, bytes: &[u8]) -> Result<(Signature, Instance)> {
        let session = self.open_session(bytes)?;
        Ok((read_signature(&session)?, self.instance(session)?))
    }

    /// The first session, tried with the largest batch, for which smaller ones need no engines of their own. Engines that were kept and
    /// cannot be used here are built again.
    fn open_tried(&self, bytes: &[u8]) -> Result<(Signature, Instance)> {
        let Some(engines) = &self.engines else {
            return self.open_first(bytes);
        };
        let is_of_engines = |error: &Error| error.to_string().contains(TENSOR_RT_SAYS);
        let tried = self.open_first(bytes).and_then(|(signature, mut instance)| {
            match run_largest(&signature, &mut instance) {
                Err(error) if is_of_engines(&error) => Err(error),
                // Whether zeros are taken is not asked here.
                _ => Ok((signature, instance)),
            }
        });
        match tried {
            Err(error) if is_of_engines(&error) && !engines.is_empty() => {
                tracing::warn!(%error, "a model does not run with the engines that were kept: they are built again");
                engines.clear().map_or(Err(error), |()| self.open_first(bytes))
            }
            tried => tried,
        }
    }
}

/// Runs the largest batch of made-up rows that there is where nothing else is said.
fn run_largest(signature: &Signature, instance: &mut Instance) -> Result<()> {
    let largest = signature.largest_batch(&signature.sample_shapes(1), &BatcherOptions::default());
    if let Some(inputs) = largest.and_then(|shapes| signature.zeros_of(&shapes)) {
        instance.run(signature, &[&inputs], None)?;
    }
    Ok(())
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
    /// file is not read. The engines that TensorRT builds of it are kept in a folder beside the file, called as it is with the
    /// extension `engines`.
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
    let sessions = Sessions::new(runtime, bytes, origin, options);
    let (signature, instance) = sessions.open_tried(bytes)?;
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

fn open_session(runtime: &Runtime, bytes: &[u8], options: ModelOptions, engines: Option<&Path>) -> Result<Session> {
    // The binding panics on types that it does not know; that is a property of the file, not of this process.
    catch_unwind(AssertUnwindSafe(|| {
        session_builder(runtime, options, engines)?
            .commit_from_memory(bytes)
            .map_err(|error| match options.accelerator {
                // Where the device does not complain, it is the model's fault unless the processors take it.
                Some(accelerator)
                    if said_by_device(error.message())
                        || open_session(runtime, bytes, options.on(None), None).is_ok() =>
                {
                    accelerator.unusable(runtime, error.message())
                }
                _ => refused(&error),
            })
    }))
    .unwrap_or_else(|_| {
        Err(Error::ModelRefused {
            detail: "it has an input or output of a type that is not supported: use tensors".to_owned(),
        })
    })
}

fn session_builder(runtime: &Runtime, options: ModelOptions, engines: Option<&Path>) -> Result<SessionBuilder> {
    let builder = plain_session_builder(runtime, options).map_err(|error| refused(&error))?;
    let Some(accelerator) = options.accelerator else {
        return Ok(builder);
    };
    builder
        .with_execution_providers(accelerator.providers(engines))
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
