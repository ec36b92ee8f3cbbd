//! What every crate of Modelyard shares: errors, time, ids, configuration, telemetry, lifecycle, readiness, listeners and the
//! RPC channel. It knows no word of the domain and no SQL; what is about models, runs or endpoints lives with its owner.

pub mod clock;
pub mod config;
pub mod context;
pub mod error;
pub mod extract;
pub mod http;
pub mod id;
pub mod lifecycle;
pub mod name;
pub mod readiness;
pub mod rpc;
pub mod serve;
pub mod telemetry;
pub mod time;
pub mod tls;

pub use context::Context;
pub use error::{ErrorKind, Fault};
pub use time::Timestamp;
