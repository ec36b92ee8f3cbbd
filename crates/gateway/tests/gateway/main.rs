//! A whole gateway between a registry and a monitoring service that are made up here, with the real ONNX Runtime.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod grpc;
mod harness;
mod log;
mod meters;
mod onnx;
mod peers;
mod protocol;
mod scoring;
mod serving;
