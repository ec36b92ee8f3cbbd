//! What is: projects, experiments, runs, datasets, models, versions, aliases, endpoints as desired state, identities and what
//! they may do, secrets, and the audit chain.
//!
//! The registry is the only one that writes these, and it calls no other service. What others need to know arrives by
//! `EndpointService.Watch` and by the feed of events.
//!
//! - What is acknowledged is on the disk, and what failed left nothing behind: one operation is one transaction, blobs come
//!   before the rows that name them.
//! - Versions of models and datasets never change and count 1, 2, 3, also when many are made at once. A number is not given
//!   again.
//! - Every change that others follow has a revision, taken inside its transaction; whoever sees revision 7 can see all up to
//!   7.
//! - Creating with an idempotency key twice creates once.
//! - What is done and its audit event are one transaction; the chain is only added to. So is what webhooks are told of it,
//!   which is delivered until it is taken or given up.
//! - A model version whose file is an ONNX model with a signature can be served; MLflow's clients register others, too. A
//!   dataset version can be read: its files are Parquet or CSV with one set of columns.
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
mod keys;
pub mod metrics;
pub mod mlflow;
pub mod model;
mod openid;
pub mod search;
mod service;
mod store;
mod webhooks;

use std::sync::Arc;

use modelyard_artifacts::{Artifacts, Storage};
use modelyard_auth::{Access, Mode, token::Token};
use modelyard_common::{Context, config::Secret};
use modelyard_db::Database;
use utoipa_axum::router::OpenApiRouter;

pub use self::{
    config::Config,
    error::{Error, Result},
    openid::{Provider, Rule, SignIn, Workload},
    service::{ARTIFACT_LIMIT_BYTES, HEARTBEAT, MAX_PROFILE_BYTES, POLL, Registry},
    store::MIGRATIONS,
    webhooks::WebhookConfig,
};
use self::{
    files::folder::ImportFolders,
    service::{
        Chain, Desired, Known, NewRuns, OpenId, Parts, RunLog, Spans, group, run_checkpoints, run_collections,
        run_retention, set_group_roles,
    },
    store::Stores,
};

/// A running registry.
pub struct Service {
    /// The routes below `/api/v1`, and those of MLflow's protocol.
    pub http: OpenApiRouter,
    /// The services of `modelyard.registry.v1`.
    pub grpc: tonic::service::Routes,
    /// The token of the admin that was made because there was none. It is told once.
    pub first_token: Option<Token>,
}

/// The name of the database: the SQLite file and the PostgreSQL schema.
const DATABASE: &str = "registry";

/// Opens the database, brings it up to date and starts what runs in the background.
pub async fn start(config: Config, context: &Context, storage: Storage, access: Access) -> Result<Service> {
    config.validate()?;
    let gate = context.readiness.gate("registry.database");
    let database = Database::open(&config.database, &context.data_dir, DATABASE).await?;
    database.migrate(&[modelyard_jobs::MIGRATIONS, MIGRATIONS]).await?;
    let stores = Stores::open(&database);
    stores.projects.date_defaults(context.clock.now()).await?;
    let desired = Desired::open(stores.clone()).await?;
    let data_dir = Arc::clone(&context.data_dir);
    let folders = tokio::task::spawn_blocking(move || ImportFolders::open(&data_dir)).await??;
    let is_sealed = stores.secrets.has_sealed().await?;
    let keys = keys::open(config.key_file.as_deref(), &context.data_dir, is_sealed)?;
    let keys = Arc::new(keys);
    let openid = OpenId::open(&config.sign_in, &keys, &context.clock)?;
    set_group_roles(&config.sign_in, &stores, &context.clock, &context.ids).await?;
    let blobs = Artifacts::new(storage);
    let soft = context.lifecycle.soft();
    let known = Known::open(stores.clone(), access.clone(), Arc::clone(&context.clock)).await?;
    let (appender, appending) = group(Chain(Arc::clone(&stores.audit)), soft.clone());
    let (run_log, logging) = group(RunLog(Arc::clone(&stores.run_log)), soft.clone());
    let (new_runs, creating) = group(NewRuns(Arc::clone(&stores.runs)), soft.clone());
    let (spans, tracing_in) = group(Spans(Arc::clone(&stores.traces)), soft.clone());
    let lifecycle = &context.lifecycle;
    gate.open();
    lifecycle.spawn("registry desired state", Arc::clone(&desired).run(gate, soft.clone()));
    let gate = context.readiness.gate("registry.access");
    gate.open();
    lifecycle.spawn("registry access", Arc::clone(&known).run(gate, soft.clone()));
    lifecycle.spawn("registry audit chain", appending);
    lifecycle.spawn("registry run log", logging);
    lifecycle.spawn("registry new runs", creating);
    lifecycle.spawn("registry spans", tracing_in);
    let retention = run_retention(stores.clone(), blobs.clone(), Arc::clone(&context.clock), soft.clone());
    lifecycle.spawn("registry retention", retention);
    let webhooks = webhooks::start(&config.webhooks, context, &database, &stores, &keys).await?;
    let is_open = access.mode() == Mode::Open;
    let registry = Arc::new(Registry::new(Parts {
        stores,
        blobs,
        clock: Arc::clone(&context.clock),
        ids: Arc::clone(&context.ids),
        folders,
        desired,
        access,
        keys,
        openid,
        known,
        appender,
        run_log,
        new_runs,
        spans,
        webhooks,
        soft: soft.clone(),
    }));
    registry.reseal().await;
    let collecting = run_collections(Arc::clone(&registry), Arc::clone(&context.node), soft.clone());
    lifecycle.spawn("registry collections", collecting);
    lifecycle.spawn("registry checkpoints", run_checkpoints(Arc::clone(&registry), soft));
    let admin_password = config.admin_password.as_ref().map(Secret::reveal);
    let first_token = if is_open {
        None
    } else {
        registry.make_first_admin(admin_password).await?
    };
    Ok(Service {
        http: http::router(Arc::clone(&registry)).merge(mlflow::router(Arc::clone(&registry)).into()),
        grpc: grpc::routes(registry),
        first_token,
    })
}
