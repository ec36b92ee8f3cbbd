//! Models as the rest of the platform sees them: tensors in, tensors out.
//!
//! This crate owns ONNX Runtime (finding its library, its threads and its sessions), the tensor types of the Open
//! Inference Protocol, and the batcher that merges concurrent requests. It knows no network, no database and no
//! protocol's wire form. It refuses what it cannot carry exactly: a wrong datatype or shape is an error that says what
//! was expected, never a silent conversion, and a model whose outputs are not tensors does not load.
//!
//! Three layers, each usable alone: [`Tensor`] is checked when it is made and stays consistent; [`Model`] checks
//! tensors against the graph's [`Signature`] and runs them on one of its sessions; [`Predictor`] puts a bounded queue
//! and worker threads before a model and answers each caller with the rows that are its own.

mod accelerator;
mod backend;
mod batch;
mod batcher;
mod best_size;
mod columns;
mod cost;
mod datatype;
mod element;
mod engines;
mod error;
mod gentle;
mod instance;
mod model;
mod onnx;
mod options;
mod probe;
mod queue;
mod ragged;
mod runtime;
mod signature;
mod statistics;
mod tensor;
mod threads;
mod watchdog;

pub use accelerator::{Accelerator, Provider};
pub use backend::{Backend, Run, RunTimes, Source, run_merged};
pub use batcher::{Prediction, Predictor};
pub use columns::{Probabilities, probabilities, tensors_from_batch, to_f32, to_f64};
pub use datatype::DataType;
pub use element::{Element, TensorData};
pub use error::{Error, Result};
pub use gentle::GentleThreads;
pub use half::{bf16, f16};
pub use model::{InputShapes, Model};
pub use onnx::{LARGE_MODEL_BYTES, MAX_MODEL_BYTES, ModelOptions, session_bytes};
pub use options::{BatcherOptions, Priority, Terms};
pub use probe::Batching;
pub use ragged::RaggedAxis;
pub use runtime::Runtime;
pub use signature::{Signature, TensorSpec};
pub use statistics::{BatchStatistics, Counters, Statistics};
pub use tensor::{MAX_ELEMENTS, MAX_RANK, Tensor};

// Received bytes are little endian and are read in place.
#[cfg(target_endian = "big")]
compile_error!("modelyard-inference reads tensors in place and needs a little-endian machine");
