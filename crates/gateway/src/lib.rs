//! The serving gateway: answers predictions over the Open Inference Protocol (HTTP and gRPC), MLflow's scoring protocol
//! and TensorFlow Serving's.
//!
//! It owns what a restart may forget or rebuild (loaded models, queues, the cache of model files) and one thing that it
//! must not lose: the spool of the inference log, until monitoring has taken it over. It has no database. What shall be
//! served is the registry's to say; the last good state is kept on disk, so that a gateway serves while the registry is
//! away, also after its own restart.
//!
//! Invariants:
//! - A change of an endpoint takes effect at once and whole, after its versions are loaded and warm; one that cannot be
//!   loaded is reported, and what served before goes on serving.
//! - A prediction is in the spool before its answer leaves: in a file as the system has it in memory, which a kill of the process
//!   leaves behind. Serving waits for no disk, and does not fail because of the log.
//! - Shadow routes see what live routes saw, never delay them, and are owed by the log: what a crash interrupts is
//!   computed after it.
//!
//! It refuses to know about anybody's labels, drift, rollouts or policies.

mod cache;
mod client;
mod config;
mod desired;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod grpc;
mod http;
mod loader;
mod memory;
mod meters;
mod model;
mod oip;
mod options;
mod persist;
mod predict;
mod predictions;
mod python;
mod queues;
mod reconcile;
mod repository;
mod routing;
mod scoring;
mod service;
mod shadow;
mod signatures;
mod spool;
mod status;
mod traffic;
mod upstream;
mod watch;

pub use client::MODEL_STREAM_INFER;
pub use config::{AcceleratorConfig, Config, ProviderConfig, PythonConfig};
pub use error::Error;
pub use http::in_shape;
pub use predictions::Predictions;
pub use service::{Service, start};
