//! Putting the service together.

use std::{sync::Arc, time::Duration};

use modelyard_artifacts::{Artifacts, Storage};
use modelyard_auth::Access;
use modelyard_common::{Context, rpc::Channel};
use modelyard_db::Database;
use modelyard_jobs::{Backoff, Handler, KEEP_FINISHED, Worker, WorkerConfig, audit, retain};
use tonic::service::Routes;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    config::Config,
    engine::{Cancellations, Engine},
    error::Result,
    grpc, http,
    ops::{Ops, Tools},
    registry::Registry,
    rollouts,
    service::Orchestrator,
    store::{HEAVY_QUEUE, LIGHT_QUEUE, open_stores},
};

/// The name of the database.
const SERVICE: &str = "orchestrator";
/// How long a soft end waits for steps that call others; one that computes is stopped at once, and done again after the
/// start.
const DRAIN_LIGHT: Duration = Duration::from_secs(5);
const DRAIN_HEAVY: Duration = Duration::from_millis(200);
/// The waits of a step for a service that is away, beside those within the step.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(15),
};

/// The orchestrator, started.
pub struct Service {
    /// Its HTTP API, with its description.
    pub http: OpenApiRouter,
    /// Its gRPC services.
    pub grpc: Routes,
}

/// Opens the database, begins to work on steps, and gives out the two faces. What a process of the same node left behind
/// goes on at once. The registry may be away: steps wait for it.
///
/// # Errors
/// A configuration that cannot work, or a database that cannot be opened or brought up to date.
pub async fn start(
    config: Config,
    context: &Context,
    storage: Storage,
    access: Access,
    registry: Channel,
) -> Result<Service> {
    config.validate()?;
    let gate = context.readiness.gate("orchestrator.database");
    let database = Database::open(&config.database, &context.data_dir, SERVICE).await?;
    database
        .migrate(&[modelyard_jobs::MIGRATIONS, crate::MIGRATIONS])
        .await?;
    let stores = open_stores(&database);
    let released = stores.jobs.release_node(&context.node, context.clock.now()).await?;
    if released > 0 {
        tracing::info!(steps = released, "steps that were under way when this node ended go on");
    }
    let tools = Tools {
        registry: Registry::new(registry),
        artifacts: Artifacts::new(storage),
    };
    let engine = Engine {
        stores,
        ops: Ops::built_in(),
        tools: Arc::new(tools),
        clock: Arc::clone(&context.clock),
        ids: Arc::clone(&context.ids),
        cancellations: Cancellations::default(),
    };
    work(&engine, &config, context);
    deliver(&engine, &access, context);
    gate.open();
    let orchestrator = Orchestrator {
        engine: Arc::new(engine),
        access,
    };
    Ok(Service {
        http: http::router(orchestrator.clone()),
        grpc: grpc::routes(orchestrator),
    })
}

/// Begins to deliver what the audit chain is told.
fn deliver(engine: &Engine, access: &Access, context: &Context) {
    let config = WorkerConfig {
        backoff: BACKOFF,
        ..WorkerConfig::new([audit::QUEUE])
    };
    let handler = Arc::new(audit::Delivery(access.clone()));
    let jobs = Arc::clone(&engine.stores.jobs);
    let worker = Worker::new(jobs, handler, Arc::clone(&context.clock), &context.node, config);
    let lifecycle = &context.lifecycle;
    lifecycle.spawn("audit delivery", worker.run(lifecycle.soft()));
}

/// Begins the work in the background.
fn work(engine: &Engine, config: &Config, context: &Context) {
    let lifecycle = &context.lifecycle;
    let workers = [
        ("light steps", LIGHT_QUEUE, config.light_steps, DRAIN_LIGHT),
        ("heavy steps", HEAVY_QUEUE, config.heavy_steps, DRAIN_HEAVY),
    ];
    for (name, queue, concurrency, drain) in workers {
        let worker_config = WorkerConfig {
            concurrency,
            lease: config.lease,
            backoff: BACKOFF,
            drain,
            ..WorkerConfig::new([queue])
        };
        let handler: Arc<dyn Handler> = Arc::new(engine.clone());
        let jobs = Arc::clone(&engine.stores.jobs);
        let worker = Worker::new(jobs, handler, Arc::clone(&context.clock), &context.node, worker_config);
        lifecycle.spawn(name, worker.run(lifecycle.soft()));
    }
    lifecycle.spawn("lost steps", engine.clone().fail_lost_steps(lifecycle.soft()));
    lifecycle.spawn("rollouts", rollouts::run(engine.clone(), lifecycle.soft()));
    lifecycle.spawn(
        "old runs",
        engine.clone().remove_old_runs(config.keep_runs, lifecycle.soft()),
    );
    let jobs = Arc::clone(&engine.stores.jobs);
    let clock = Arc::clone(&context.clock);
    lifecycle.spawn("job retention", retain(jobs, clock, KEEP_FINISHED, lifecycle.soft()));
}
