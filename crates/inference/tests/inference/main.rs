//! Models built here, run by the real ONNX Runtime, which these tests need: they fail with the remedy where it is
//! missing.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod batcher;
mod graphs;
mod model;
mod onnx;
