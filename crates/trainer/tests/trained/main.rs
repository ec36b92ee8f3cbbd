//! Trained models against ONNX Runtime: what the graph answers is what the trainer predicts.

mod data;
mod graph;
mod refusals;
mod serving;
mod training;
