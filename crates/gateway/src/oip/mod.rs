//! The Open Inference Protocol's wire forms over HTTP: JSON, and JSON with binary tensors behind it.

mod elements;
mod read;
mod write;

pub(crate) use elements::DataSeed;
pub(crate) use read::{RequestInputs, RequestedOutput, read, whole_body};
pub(crate) use write::{Body, write, write_elements};

/// The name of this server in its metadata.
pub(crate) const SERVER_NAME: &str = "modelyard";

/// The version of this server in its metadata.
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The extensions of the protocol that are here.
pub(crate) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "parameters"];

/// What the standard's own list calls the format of the models.
pub(crate) const PLATFORM: &str = "onnx_onnxv1";

/// The most bytes of a request, of a message and of a body that was compressed.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 20;

/// The most inputs or outputs of one request.
pub(crate) const MAX_TENSORS: usize = 4096;
