//! What was seen: the inference log, labels, scores, alert rules and alerts.
//!
//! Gateways hand over segments of the inference log; clients send labels. Both are durable before they are
//! answered, and jobs bring them into Delta Lake tables, of which monitoring is the only committer. Monitors slice the log
//! into windows of event time. A window is scored whenever something about it changed; the newest score replaces the one
//! before. When a window is closed (the endpoint's watermark passed its end) and its labels have come, every alert rule
//! judges it once. An alert, its window's judgement and the job that fires its trigger are stored in one transaction.
//!
//! Invariants: an answer counts once, however often a client or a crash repeated it; the same rows give the same score,
//! in whatever order they arrived; a rule raises at most one alert for a window; a trigger is fired until that succeeds,
//! under a key that makes repetitions harmless; what was accepted is scored after any crash. Monitoring never changes
//! what others own, and never serves predictions.

mod config;
mod error;
mod grpc;
mod http;
pub mod measure;
pub mod model;
mod peers;
mod scoring;
mod service;
pub mod store;
mod tables;

use std::{sync::Arc, time::Duration};

use modelyard_analytics::{Analytics, AnalyticsOptions};
use modelyard_artifacts::{Artifacts, Storage};
use modelyard_auth::Access;
use modelyard_common::{
    Context,
    rpc::{Channel, MAX_MESSAGE_BYTES},
};
use modelyard_db::Database;
use modelyard_jobs::{Backoff, JobStore, KEEP_FINISHED, Worker, WorkerConfig, audit, retain};
use modelyard_proto::monitoring::v1::segment_service_server::SegmentServiceServer;
use tonic::service::Routes;
use utoipa_axum::router::OpenApiRouter;

pub use config::{
    Config, MAX_QUERY_THREADS, MAX_SCORE_CONCURRENCY, MAX_SCORE_INTERVAL, MIN_KEEP, MIN_QUERY_MEMORY_BYTES,
};
pub use error::{Error, Result};

use peers::{Orchestrator, Registry};
use service::{JobHandler, Monitoring, Retention};

/// The name of the database, and of the folder in the data folder.
const NAME: &str = "monitoring";
/// How many endpoints' segments and labels are brought into their tables at once.
const LOG_CONCURRENCY: usize = 2;
/// How many triggers are fired at once.
const FIRE_CONCURRENCY: usize = 2;
/// The waits of jobs whose peers or storage are away: short at first, so that work goes on soon after they are back.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(10),
};

/// The faces of a running service.
pub struct Service {
    /// Routes below `/api/v1`.
    pub http: OpenApiRouter,
    /// The contract with gateways.
    pub grpc: Routes,
}

/// Starts monitoring: opens and migrates its database, and starts its work in the background. The registry and the
/// orchestrator need not be there yet.
///
/// # Errors
/// The configuration cannot work, or the database or the data folder cannot be opened.
pub async fn start(
    config: Config,
    context: &Context,
    storage: Storage,
    access: Access,
    registry: Channel,
    orchestrator: Channel,
) -> Result<Service> {
    config.validate()?;
    let gate = context.readiness.gate("monitoring.database");
    let database = Database::open(&config.database, &context.data_dir, NAME).await?;
    database
        .migrate(&[modelyard_jobs::MIGRATIONS, store::MIGRATIONS])
        .await?;
    let jobs = modelyard_jobs::open(&database);
    jobs.release_node(&context.node, context.clock.now()).await?;
    let store = store::open(
        &database,
        Arc::clone(&jobs),
        Arc::clone(&context.ids),
        config.score_interval,
    );
    let analytics = analytics(&config, context, &storage)?;
    let registry = Registry::new(registry, Artifacts::new(storage));
    let orchestrator = Orchestrator::new(orchestrator);
    let clock = Arc::clone(&context.clock);
    let monitoring = Arc::new(Monitoring::new(
        store,
        Arc::clone(&jobs),
        analytics,
        registry,
        orchestrator,
        clock,
        Retention {
            windows: config.keep_windows,
            alerts: config.keep_alerts,
        },
    ));
    spawn(&config, context, &jobs, &monitoring);
    deliver(context, &jobs, &access);
    gate.open();
    let segments = SegmentServiceServer::new(grpc::Segments {
        monitoring: Arc::clone(&monitoring),
        access: access.clone(),
    });
    Ok(Service {
        http: http::router(monitoring, access),
        grpc: Routes::new(segments.max_decoding_message_size(MAX_MESSAGE_BYTES)),
    })
}

fn analytics(config: &Config, context: &Context, storage: &Storage) -> Result<Analytics> {
    let spill_dir = context.data_dir.join(NAME).join("spill");
    std::fs::create_dir_all(&spill_dir).map_err(|source| Error::Folder {
        path: spill_dir.display().to_string(),
        source,
    })?;
    let defaults = AnalyticsOptions::default();
    let options = AnalyticsOptions {
        memory_limit_bytes: config.query_memory,
        threads: if config.query_threads == 0 {
            defaults.threads
        } else {
            config.query_threads
        },
        spill_dir: Some(spill_dir),
        spill_limit_bytes: config.query_spill,
    };
    Ok(Analytics::new(storage.store(), &options, Arc::clone(&context.clock))?)
}

/// Begins to deliver what the audit chain is told.
fn deliver(context: &Context, jobs: &Arc<dyn JobStore>, access: &Access) {
    let config = WorkerConfig {
        backoff: BACKOFF,
        ..WorkerConfig::new([audit::QUEUE])
    };
    let handler = Arc::new(audit::Delivery(access.clone()));
    let clock = Arc::clone(&context.clock);
    let worker = Worker::new(Arc::clone(jobs), handler, clock, &context.node, config);
    let lifecycle = &context.lifecycle;
    lifecycle.spawn("monitoring audit", worker.run(lifecycle.soft()));
}

fn spawn(config: &Config, context: &Context, jobs: &Arc<dyn JobStore>, monitoring: &Arc<Monitoring>) {
    let lifecycle = &context.lifecycle;
    let work = |name: &'static str, queues: &[&'static str], concurrency: usize| {
        let config = WorkerConfig {
            concurrency,
            backoff: BACKOFF,
            ..WorkerConfig::new(queues.iter().copied())
        };
        let handler = Arc::new(JobHandler(Arc::clone(monitoring)));
        let worker = Worker::new(
            Arc::clone(jobs),
            handler,
            Arc::clone(&context.clock),
            &context.node,
            config,
        );
        lifecycle.spawn(name, worker.run(lifecycle.soft()));
    };
    work(
        "monitoring log",
        &[store::COMMIT, store::LABELS, store::BACKFILL],
        LOG_CONCURRENCY,
    );
    work("monitoring scores", &[store::SCORE], config.score_concurrency);
    work("monitoring triggers", &[store::FIRE], FIRE_CONCURRENCY);
    lifecycle.spawn("monitoring upkeep", Arc::clone(monitoring).upkeep(lifecycle.soft()));
    let retention = retain(
        Arc::clone(jobs),
        Arc::clone(&context.clock),
        KEEP_FINISHED,
        lifecycle.soft(),
    );
    lifecycle.spawn("monitoring job retention", retention);
}
