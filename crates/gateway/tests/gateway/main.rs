//! A whole gateway between a registry and a monitoring service that are made up here, with the real ONNX Runtime.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod echo;
mod extensions;
mod grpc;
mod harness;
mod life;
mod log;
mod meters;
mod nonsense;
mod onnx;
mod overload;
mod peers;
mod protocol;
mod scoring;
mod serving;
mod traffic;
mod upstream;
