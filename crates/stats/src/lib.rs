//! Statistics of Modelyard: what a set of rows looks like, whether it has moved away from another, and how good predictions
//! were.
//!
//! [`profile`] summarizes record batches in bounded memory, mergeable and storable; [`drift`] compares two profiles, or two
//! sets of raw columns exactly; [`performance`] computes metrics from labels and scores. Everything is a pure function of its
//! input: no I/O, no async, no clock, no randomness. Where a number is not defined the result says so with `None`; no
//! result is NaN.

pub mod difference;
pub mod distance;
mod distinct;
pub mod drift;
mod error;
pub mod kolmogorov;
pub mod performance;
pub mod profile;
mod profiler;
mod sketch;
mod values;

pub use crate::{
    distinct::DistinctSketch,
    drift::{
        ColumnDrift, Compare, DatasetDrift, DriftOptions, DriftTest, Outcome, exact_column_drift, exact_drift,
        profile_drift,
    },
    error::{Error, Result},
    performance::{BinaryMetrics, Confusion, MulticlassMetrics, RegressionMetrics},
    profile::{
        Binning, ColumnKind, ColumnProfile, Histogram, Moments, NumericProfile, Profile, ProfileOptions, Profiler,
    },
    sketch::QuantileSketch,
    values::TopValues,
};
