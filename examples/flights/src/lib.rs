//! The main job of Modelyard on real data, driven from outside as any client would: through the public HTTP API, the
//! inference protocol over HTTP and gRPC, and the command line. The demo runs it once for people to watch; the tests run
//! it in every topology.
//!
//! The driver keeps no state of its own beside what it has sent, and everything that it sends can be sent again: it
//! survives a server that is killed and started anew at any moment.

mod answers;
mod api;
mod command;
mod data;
mod encode;
mod job;
mod progress;
mod report;
mod server;
mod traffic;

pub use api::{Api, Look, wait_for};
pub use job::{ENDPOINT, MONITOR, MainJob, PIPELINE, run_main_job, train_first_model};
pub use progress::{Progress, Quiet};
pub use report::{MIN_AUC_GAIN, MonthRow, Report, Summary};
pub use server::{Addresses, Server, ServerOptions};
