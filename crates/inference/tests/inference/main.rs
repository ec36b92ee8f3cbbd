//! Models built here, run by the real ONNX Runtime, which these tests need: they fail with the remedy where it is
//! missing.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod backend;
mod batcher;
mod graphs;
mod model;
mod onnx;
mod overload;
