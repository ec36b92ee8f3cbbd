//! What is: projects, experiments, runs, datasets, models, versions, aliases, and endpoints as desired state.
//!
//! The registry is the only one that writes these, and it calls no other service. What others need to know arrives by
//! `EndpointService.Watch` and by the feed of events.
//!
//! - What is acknowledged is on the disk, and what failed left nothing behind: one operation is one transaction, blobs come
//!   before the rows that name them.
//! - Versions of models and datasets never change and count 1, 2, 3 without gaps, also when many are made at once.
//! - Every change that others follow has a revision, taken inside its transaction; whoever sees revision 7 can see all up to
//!   7.
//! - Creating with an idempotency key twice creates once.
//! - A model version can be served: its file is an ONNX model with a signature. A dataset version can be read: its files are
//!   Parquet or CSV with one set of columns.
//!
//! It refuses to train, to serve and to look at predictions, and to take a file by its name: content comes first, under its
//! digest.

mod config;
mod error;
mod files;
#[cfg(test)]
mod fixture;
mod grpc;
mod http;
pub mod metrics;
pub mod model;
mod service;
mod store;

use std::sync::Arc;

use modelyard_artifacts::{Artifacts, Storage};
use modelyard_common::Context;
use modelyard_db::Database;
use utoipa_axum::router::OpenApiRouter;

pub use self::{
    config::Config,
    error::{Error, Result},
    service::{ARTIFACT_LIMIT_BYTES, HEARTBEAT, MAX_PROFILE_BYTES, POLL, Registry},
    store::MIGRATIONS,
};
use self::{
    files::folder::ImportFolders,
    service::{Desired, Parts, run_retention},
    store::Stores,
};

/// A running registry.
pub struct Service {
    /// The routes below `/api/v1`.
    pub http: OpenApiRouter,
    /// The services of `modelyard.registry.v1`.
    pub grpc: tonic::service::Routes,
}

/// The name of the database: the SQLite file and the PostgreSQL schema.
const DATABASE: &str = "registry";

/// Opens the database, brings it up to date and starts what runs in the background.
pub async fn start(config: Config, context: &Context, storage: Storage) -> Result<Service> {
    config.validate()?;
    let gate = context.readiness.gate("registry.database");
    let database = Database::open(&config.database, &context.data_dir, DATABASE).await?;
    database.migrate(&[MIGRATIONS]).await?;
    let stores = Stores::open(&database);
    let desired = Desired::open(stores.clone()).await?;
    let data_dir = Arc::clone(&context.data_dir);
    let folders = tokio::task::spawn_blocking(move || ImportFolders::open(&data_dir)).await??;
    let blobs = Artifacts::new(storage);
    let soft = context.lifecycle.soft();
    gate.open();
    context
        .lifecycle
        .spawn("registry desired state", Arc::clone(&desired).run(gate, soft.clone()));
    let retention = run_retention(stores.clone(), blobs.clone(), Arc::clone(&context.clock), soft.clone());
    context.lifecycle.spawn("registry retention", retention);
    let registry = Arc::new(Registry::new(Parts {
        stores,
        blobs,
        clock: Arc::clone(&context.clock),
        ids: Arc::clone(&context.ids),
        folders,
        desired,
        soft,
    }));
    Ok(Service {
        http: http::router(Arc::clone(&registry)),
        grpc: grpc::routes(registry),
    })
}
