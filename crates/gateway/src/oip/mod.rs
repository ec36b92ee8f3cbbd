//! The Open Inference Protocol's wire forms over HTTP: JSON, and JSON with binary tensors behind it.

mod classification;
mod compress;
mod elements;
mod json;
mod model_config;
mod read;
mod statistics;
mod write;

pub(crate) use classification::classify;
pub(crate) use compress::{Encoding, compress, decompress};
pub(crate) use elements::DataSeed;
pub(crate) use model_config::{model_config, model_config_json};
pub(crate) use read::{RequestInputs, RequestedOutput, priority, read, refuse_sequence, whole_body};
pub(crate) use statistics::{all_statistics_of, statistics_json, statistics_of};
pub(crate) use write::{Body, select, write, write_elements};

/// The name of this server in its metadata.
pub(crate) const SERVER_NAME: &str = "modelyard";

/// The version of this server in its metadata.
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The extensions of the protocol that are here.
pub(crate) const EXTENSIONS: [&str; 8] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
];

/// The most bytes of a request, of a message and of a body that was compressed.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 20;

/// The most inputs or outputs of one request.
pub(crate) const MAX_TENSORS: usize = 4096;
