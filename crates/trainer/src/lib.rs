//! Tabular training to one ONNX graph.
//!
//! A record batch and a [`TrainConfig`] go in; gradient-boosted trees come out as a [`TrainedModel`], whose
//! [`onnx`](TrainedModel::onnx) bytes hold everything that serving needs: the columns as they are (strings as strings),
//! their encoding, the trees, the calibration and the label. The model also predicts by itself, independently of the
//! graph, so that a caller can prove with [`largest_difference`] that serving answers what training measured.
//!
//! This crate owns the encoding, boosting, calibration and the graph. It refuses input and output, async code and a
//! runtime for ONNX: whoever calls reads the data, runs the graph and stores the bytes.
//!
//! Serving computes in float32, so every feature is rounded to float32 before the first split is searched, and every
//! split value is a float32. Missing values are null or NaN in numbers, and null or the empty string in strings.

mod boost;
mod calibrate;
mod config;
mod encode;
mod error;
mod forest;
mod metrics;
mod model;
mod onnx;
mod order;
mod predictions;
mod progress;
mod table;
mod target;
mod train;
mod workers;

pub use config::{Calibration, Encoding, Task, TrainConfig};
pub use error::{Error, Result};
pub use model::{Output, TrainedModel};
pub use order::split_by_time;
pub use predictions::{Difference, Predictions, largest_difference};
pub use progress::{Phase, Progress};
pub use table::{Feature, FeatureKind};
pub use target::Labels;
pub use train::train;
