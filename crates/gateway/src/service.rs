//! Puts the gateway together and starts it.

use std::{
    convert::Infallible,
    fs,
    sync::{Arc, atomic::AtomicBool},
};

use arc_swap::ArcSwap;
use axum::{Router, middleware::from_fn_with_state};
use modelyard_artifacts::{Artifacts, Storage};
use modelyard_auth::Access;
use modelyard_common::{Context, rpc::Channel};
use modelyard_inference::{Accelerator, Runtime};
use modelyard_proto::inference::FILE_DESCRIPTOR_SET;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    cache::Cache,
    client::authenticate_calls,
    config::Config,
    error::{Error, Result},
    grpc::InferenceService,
    http,
    loader::Loader,
    memory::RequestMemory,
    persist::{Kept, StateFile},
    predict::Gateway,
    predictions::Predictions,
    queues,
    reconcile::{Before, Reconciler},
    repository,
    routing::Table,
    shadow::{self, ShadowQueue},
    spool::{Converter, DISK_CHECK_INTERVAL, Limits, Shipping, Spool},
    status, traffic, watch as desired_watch,
};

/// The gateway's folder below the data folder, and what is in it.
const FOLDER: &str = "gateway";
const SPOOL_FOLDER: &str = "spool";

/// The faces of a started gateway.
pub struct Service {
    /// The routes below `/api/v1`: none so far, because the registry tells what gateways serve.
    pub http: OpenApiRouter,
    /// The inference protocols over HTTP. Not to be wrapped in what observes each request of the API: these routes
    /// measure themselves.
    pub inference: Router,
    /// Answers `infer` and `ModelInfer`; to be asked before `inference` and `grpc`.
    pub predictions: Predictions,
    /// The inference protocol over gRPC and `grpc.health.v1`, for the public listener.
    pub grpc: Routes,
}

/// Starts a gateway: it serves what it served last at once, follows the registry, and hands its log to monitoring.
///
/// # Errors
/// A configuration that cannot be used, a missing ONNX Runtime library, or a data folder that cannot be written. A peer
/// that is away is no error.
pub async fn start(
    config: Config,
    context: &Context,
    storage: Storage,
    access: Access,
    registry: Channel,
    monitoring: Channel,
) -> Result<Service> {
    config.validate()?;
    let runtime = spawn_blocking(Runtime::load)
        .await
        .map_err(|_| interrupted("loading ONNX Runtime"))??;
    if let Some(accelerator) = config.accelerator {
        Accelerator::from(accelerator).check(&runtime)?;
    }
    let folder = context.data_dir.join(FOLDER);
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let (state, kept) = StateFile::open(&folder);
    let Kept {
        desired,
        serving,
        shapes,
    } = kept.unwrap_or_default();
    let limits = Limits::new(
        config.flush_interval,
        config.spool_max_bytes,
        config.spool_min_free_bytes,
    );
    let requests = TaskTracker::new();
    let loader = Arc::new(Loader::new(Artifacts::new(storage.clone()), runtime, &folder, &config)?);
    let shipping = Arc::new(Shipping {
        spool: Spool::open(folder.join(SPOOL_FOLDER), limits)?,
        converter: Converter::start()?,
        storage,
        monitoring,
        loader: Arc::clone(&loader),
        ids: context.ids.clone(),
        lifecycle: context.lifecycle.clone(),
        requests: requests.clone(),
    });
    let (shadows, shadow_jobs) = ShadowQueue::new();
    let (repository, commands) = repository::commands();
    let gateway = Arc::new(Gateway {
        table: ArcSwap::from_pointee(Table::default()),
        started: AtomicBool::new(false),
        clock: Arc::clone(&context.clock),
        ids: Arc::clone(&context.ids),
        shadows,
        repository,
        requests,
        soft: context.lifecycle.soft(),
        request_timeout: config.request_timeout,
        memory: RequestMemory::new(config.request_memory_bytes()),
        cache: Cache::new(config.answer_cache_bytes),
    });
    let (desired, changes) = watch::channel(Arc::new(desired));
    let (reports, report_changes) = watch::channel(None);
    let (health, health_service) = tonic_health::server::health_reporter();
    let reconciler = Reconciler::new(
        Arc::clone(&gateway),
        Arc::clone(&loader),
        Arc::clone(&shipping),
        changes,
        reports,
        state,
        health,
        context.readiness.gate("gateway.endpoints"),
        commands,
        Before { serving, shapes },
        config.ready_after,
    );
    let soft = context.lifecycle.soft();
    let node = Arc::clone(&context.node);
    shipping.start();
    context.lifecycle.spawn(
        "gateway.shadow",
        shadow::work(shadow_jobs, Arc::clone(&context.ids), soft.clone()),
    );
    context
        .lifecycle
        .spawn("gateway.disk", watch_disk(Arc::clone(&shipping), soft.clone()));
    context
        .lifecycle
        .spawn("gateway.reconcile", reconciler.run(soft.clone()));
    context.lifecycle.spawn(
        "gateway.queues",
        queues::watch(Arc::clone(&gateway), loader, soft.clone()),
    );
    context.lifecycle.spawn(
        "gateway.traffic",
        traffic::report(Arc::clone(&gateway), registry.clone(), Arc::clone(&node), soft.clone()),
    );
    context.lifecycle.spawn(
        "gateway.status",
        status::report(registry.clone(), Arc::clone(&node), report_changes, soft.clone()),
    );
    context
        .lifecycle
        .spawn("gateway.watch", desired_watch::follow(registry, node, desired, soft));
    let calls = InferenceService::new(Arc::clone(&gateway));
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Service {
        http: OpenApiRouter::new(),
        predictions: Predictions::new(Arc::clone(&gateway), access.clone(), calls.clone()),
        inference: http::router(gateway, access.clone()),
        grpc: Routes::from(
            Routes::new(calls.into_server())
                .into_axum_router()
                .layer(from_fn_with_state(access, authenticate_calls)),
        )
        .add_service(health_service)
        .add_service(described().build_v1()?)
        // What older tools ask for.
        .add_service(described().build_v1alpha()?)
        .prepare(),
    })
}

fn interrupted(what: &'static str) -> Error {
    Error::Interrupted { what }
}

/// Looks at the free disk space now and then.
async fn watch_disk(shipping: Arc<Shipping>, soft: CancellationToken) -> Result<(), Infallible> {
    let mut ticks = interval(DISK_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => shipping.spool.check_disk(),
            () = soft.cancelled() => return Ok(()),
        }
    }
}
