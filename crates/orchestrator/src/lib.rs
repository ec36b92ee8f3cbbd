//! Everything that takes time: pipelines, their runs, steps and attempts, the triggers that start them, and rollouts of
//! new routes at endpoints. The orchestrator owns these and nothing else; datasets, runs of training, model versions and aliases belong to the
//! registry, which its steps call.
//!
//! - A run freezes its plan and parameters when it is created. Later changes of the pipeline do not touch it.
//! - A run moves only through [`model::decide`], a pure function. Storing what it decided, enqueuing the steps that follow
//!   and completing the job that caused it is one transaction, so that a crash leaves a run between two steps, never
//!   within one.
//! - A step can be worked on twice (a crash, a lost lease) but it ends once: only the live claim of its job can store
//!   outputs. What a step does elsewhere carries an idempotency key made of the run, the step and the attempt.
//! - One key of a trigger starts one run, however often it is fired.
//! - A rollout moves only through [`model::Rollout::decide`], a pure function; what was decided is stored before the registry,
//!   which holds the routes, is told.
//! - It refuses pipelines that cannot run: all problems of a definition are named at once, before anything is stored.

mod config;
mod engine;
mod error;
mod grpc;
mod http;
mod measure;
pub mod model;
mod ops;
mod registry;
mod rollouts;
mod service;
mod start;
mod store;

use modelyard_db::{Migrations, migrations};

pub use config::Config;
pub use error::{Error, Result};
pub use start::{Service, start};
pub use store::{
    NewRun, Page, ResourceStore, RolloutStore, RunFilter, RunStore, Started, StepInput, Stores, Transition, open_stores,
};

/// The tables of the orchestrator, beside those of the job queue.
pub const MIGRATIONS: Migrations = migrations!("orchestrator", ["0001_pipeline", "0002_access", "0003_rollout"]);
