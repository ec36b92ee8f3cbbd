//! Trained models against ONNX Runtime: what the graph answers is what the trainer predicts.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod data;
mod graph;
mod refusals;
mod serving;
mod training;
