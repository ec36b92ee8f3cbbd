//! A loaded model: its signature and its sessions.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use ort::{
    ErrorCode,
    logging::LogLevel,
    session::{Session, builder::SessionBuilder},
    value::{Outlet, ValueType},
};
use parking_lot::{Condvar, Mutex};

use crate::{
    datatype::DataType,
    error::{Error, Result},
    instance::{Instance, check_strings},
    probe::{Batching, probe},
    runtime::Runtime,
    signature::{Signature, TensorSpec},
    tensor::Tensor,
};

/// The largest model file: what protobuf can carry. Larger models need external data, which is not taken.
pub const MAX_MODEL_BYTES: usize = (1 << 31) - 1;

/// From this size on a model gets one session with all processors by default: a session each would hold its weights
/// several times, and one run keeps all processors busy.
pub const LARGE_MODEL_BYTES: usize = 64 << 20;

/// Where external data would be looked for: a folder that is not there.
const NO_EXTERNAL_DATA: &str = "external-data-is-not-read";

/// The most sessions of one model, and the most threads of one session.
const MAX_THREADS: usize = 256;

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// Sessions, each of which runs one batch at a time. Each holds the weights.
    pub instances: usize,
    /// Threads within one run.
    pub intra_threads: usize,
}

impl ModelOptions {
    /// The best use of the processors for a model of this size: a session each for small models, one session on all
    /// of them from [`LARGE_MODEL_BYTES`] on.
    pub fn for_size(model_bytes: usize, processors: usize) -> Self {
        let processors = processors.clamp(1, MAX_THREADS);
        if model_bytes < LARGE_MODEL_BYTES {
            Self {
                instances: processors,
                intra_threads: 1,
            }
        } else {
            Self {
                instances: 1,
                intra_threads: processors,
            }
        }
    }

    /// One session with one thread: for evaluation beside other work, and for tests.
    pub const fn single() -> Self {
        Self {
            instances: 1,
            intra_threads: 1,
        }
    }

    fn validate(self) -> Result<()> {
        for (what, value) in [("instances", self.instances), ("intra_threads", self.intra_threads)] {
            if !(1..=MAX_THREADS).contains(&value) {
                return Err(Error::InvalidOptions {
                    detail: format!("{what} is {value}: choose 1 to {MAX_THREADS}"),
                });
            }
        }
        Ok(())
    }
}

/// What is known of a model, apart from its sessions.
#[derive(Debug)]
pub(crate) struct ModelFacts {
    pub signature: Signature,
    pub batching: Batching,
    /// Whether any two requests can be merged, whatever their shapes.
    pub rows_are_fixed: bool,
}

impl ModelFacts {
    /// The inputs in the graph's order, checked in every way that can be checked before a run; with the rows that a
    /// mergeable model finds in all of them.
    pub(crate) fn accept(&self, inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Option<usize>)> {
        let inputs = self.signature.arrange(inputs)?;
        for input in &inputs {
            check_strings(input)?;
        }
        if self.batching != Batching::Rows {
            return Ok((inputs, None));
        }
        let rows = inputs.first().and_then(Tensor::rows);
        if let (Some(first), Some(other)) = (inputs.first(), inputs.iter().find(|input| input.rows() != rows)) {
            return Err(Error::InvalidInputs {
                detail: format!(
                    "the inputs disagree on the number of rows: `{}` has {}, `{}` has {}",
                    first.name(),
                    first.rows().unwrap_or(0),
                    other.name(),
                    other.rows().unwrap_or(0)
                ),
            });
        }
        Ok((inputs, rows))
    }
}

/// A model with its sessions. Runs wait for a free session; for many concurrent callers put a
/// [`Predictor`](crate::Predictor) before it.
pub struct Model {
    facts: Arc<ModelFacts>,
    idle: Mutex<Vec<Instance>>,
    returned: Condvar,
    instances: usize,
}

impl Model {
    /// Loads a model from the bytes of its ONNX file, and finds out by a trial whether its requests may be merged.
    ///
    /// # Errors
    /// `NotOnnx` if the bytes are something else, `ModelRefused` if ONNX Runtime cannot run the graph,
    /// `UnsupportedType` if an input or output is no tensor of the protocol's datatypes (a `ZipMap`'s output, say),
    /// `InvalidOptions` for options out of range.
    pub fn from_bytes(runtime: &Runtime, bytes: &[u8], options: ModelOptions) -> Result<Self> {
        options.validate()?;
        check_file(bytes)?;
        let mut sessions = Vec::with_capacity(options.instances);
        for _ in 0..options.instances {
            sessions.push(open_session(runtime, bytes, options)?);
        }
        let mut signature = match sessions.first() {
            Some(session) => read_signature(session)?,
            None => Signature {
                inputs: Vec::new(),
                outputs: Vec::new(),
            },
        };
        let mut instances = sessions
            .into_iter()
            .map(|session| Instance::new(session).map_err(|error| refused(&error)))
            .collect::<Result<Vec<_>>>()?;
        let batching = match instances.first_mut() {
            Some(instance) => {
                let finding = probe(instance, &signature);
                finding.complete(&mut signature.outputs);
                finding.batching
            }
            None => Batching::Never("the model has no session".to_owned()),
        };
        if let Batching::Never(reason) = &batching {
            tracing::info!(reason, "requests to this model run one by one");
        }
        Ok(Self {
            facts: Arc::new(ModelFacts {
                rows_are_fixed: signature.rows_are_fixed(),
                signature,
                batching,
            }),
            instances: instances.len(),
            idle: Mutex::new(instances),
            returned: Condvar::new(),
        })
    }

    /// Loads a model from its ONNX file. External data beside the file is not read.
    ///
    /// # Errors
    /// `ModelUnreadable` if the file cannot be read; otherwise as [`Model::from_bytes`].
    pub fn from_file(runtime: &Runtime, path: &Path, options: ModelOptions) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::ModelUnreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(runtime, &bytes, options)
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.facts.signature
    }

    /// Whether its requests may be merged, and if not, why.
    pub fn batching(&self) -> &Batching {
        &self.facts.batching
    }

    /// Its sessions.
    pub const fn instances(&self) -> usize {
        self.instances
    }

    /// Runs the model on the calling thread. The inputs may come in any order; nothing is converted.
    ///
    /// # Errors
    /// `InvalidInputs` or `InvalidTensor` if they do not fit the signature, `RunFailed` if the graph fails on them,
    /// `InvalidOutput` if what came out cannot be carried.
    pub fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let (inputs, _) = self.facts.accept(inputs)?;
        let mut lease = self.lease();
        let run = lease.instance()?.run(&self.facts.signature, &[&inputs])?;
        Ok(run.outputs.into_iter().next().unwrap_or_default())
    }

    /// Runs every session on zeros and empty strings of real shapes, one row and, where rows can be merged, two: the
    /// first runs of a session are slow, and no caller should wait for them.
    ///
    /// # Errors
    /// `RunFailed` if the model refuses zeros, which says nothing about real inputs.
    pub fn warm_up(&self) -> Result<()> {
        let mut idle = self.idle.lock();
        for rows in 1..=if self.facts.batching == Batching::Rows { 2 } else { 1 } {
            let inputs = self.facts.signature.zeros(rows)?;
            for instance in idle.iter_mut() {
                instance.run(&self.facts.signature, &[&inputs])?;
            }
        }
        Ok(())
    }

    /// The facts and all sessions, for worker threads that keep them.
    pub(crate) fn into_parts(self) -> (Arc<ModelFacts>, Vec<Instance>) {
        (self.facts, self.idle.into_inner())
    }

    /// A session, waited for if all are in use.
    fn lease(&self) -> Lease<'_> {
        let mut idle = self.idle.lock();
        loop {
            if let Some(instance) = idle.pop() {
                return Lease {
                    model: self,
                    instance: Some(instance),
                };
            }
            self.returned.wait(&mut idle);
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("facts", &self.facts)
            .field("instances", &self.instances)
            .finish_non_exhaustive()
    }
}

/// A session that goes back when it is dropped.
struct Lease<'a> {
    model: &'a Model,
    instance: Option<Instance>,
}

impl Lease<'_> {
    fn instance(&mut self) -> Result<&mut Instance> {
        self.instance.as_mut().ok_or_else(|| Error::Broken {
            detail: "a leased session is gone".to_owned(),
        })
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            self.model.idle.lock().push(instance);
            self.model.returned.notify_one();
        }
    }
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
        session_builder(runtime, options)
            .and_then(|mut builder| builder.commit_from_memory(bytes))
            .map_err(|error| refused(&error))
    }))
    .unwrap_or_else(|_| {
        Err(Error::ModelRefused {
            detail: "it has an input or output of a type that is not supported: use tensors".to_owned(),
        })
    })
}

fn session_builder(runtime: &Runtime, options: ModelOptions) -> Result<SessionBuilder, ort::Error> {
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
