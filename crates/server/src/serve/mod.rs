//! `modelyard serve`: the roles of this process, their listeners and their end.

mod access;
mod api_docs;
pub mod config;
mod data_dir;
mod ending;
mod forward;
mod guard;
mod listen;
mod origin;
mod roles;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use modelyard_common::{
    Context,
    clock::SystemClock,
    id::RandomIds,
    lifecycle::Lifecycle,
    readiness::Readiness,
    rpc::PeerIdentity,
    telemetry,
    tls::{self, Tls},
};
use tokio::signal::unix::{SignalKind, signal};

pub use self::config::{Config, Role};
use self::data_dir::DataDir;

/// How long the tasks may take to finish after the first signal.
const GRACE_PERIOD: Duration = Duration::from_secs(20);

/// How often the histograms are tidied up between two scrapes.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Runs the server until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    config.validate()?;
    let _telemetry = telemetry::init(&config.telemetry, "modelyard")?;
    let clock = Arc::new(SystemClock);
    let ids = RandomIds::new(clock.clone());
    let data_dir = DataDir::open(&config.data_dir, &*ids)?;
    let context = Context {
        node: data_dir.node().into(),
        data_dir: Arc::new(data_dir.path().to_owned()),
        clock,
        ids,
        lifecycle: Lifecycle::default(),
        readiness: Readiness::default(),
    };
    let listeners = listen::bind(&config).await?;
    let lifecycle = context.lifecycle.clone();
    watch_signals(&lifecycle)?;
    spawn_metrics_upkeep(&lifecycle);
    let result = start(&config, &context, listeners, &data_dir).await;
    if result.is_err() {
        lifecycle.stop();
    }
    let finished = lifecycle.finish(GRACE_PERIOD).await;
    result?;
    match finished {
        Ok(left) if left.is_empty() => tracing::info!("stopped"),
        Ok(left) => tracing::warn!(?left, "stopped, though some tasks had not finished"),
        Err(failure) => anyhow::bail!("the server stopped because a part of it failed: {failure}"),
    }
    Ok(())
}

async fn start(
    config: &Config,
    context: &Context,
    listeners: listen::Listeners,
    data_dir: &DataDir,
) -> anyhow::Result<()> {
    tracing::info!(roles = ?config.roles, data_dir = %data_dir.path().display(), "starting");
    tracing::debug!(config = %serde_json::to_string(config).unwrap_or_default(), "configuration");
    let tls = Tls::open(&config.tls, config.peers.use_tls())?;
    tls.watch(&context.lifecycle, tls::RELOAD_INTERVAL);
    let identity = PeerIdentity::new(tls.calls.clone(), config.cluster_key()?);
    let services = roles::start(config, context, identity).await?;
    let addresses = listeners.serve(config, context, &tls, services)?;
    data_dir
        .announce(&addresses)
        .context("the addresses cannot be written to the data folder")?;
    tracing::info!(url = addresses.public, internal = addresses.internal, "listening");
    Ok(())
}

/// The first signal ends softly, the second at once.
fn watch_signals(lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be watched")?;
    let watched = lifecycle.clone();
    lifecycle.spawn("signals", async move {
        let soft = watched.soft();
        let is_asked = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            // A failed start or task stops the process without a signal.
            () = soft.cancelled() => false,
        };
        if is_asked {
            tracing::info!("stopping: another signal ends at once");
        }
        watched.stop();
        tokio::select! {
            _ = terminate.recv() => watched.abort(),
            _ = interrupt.recv() => watched.abort(),
            // This task must not keep the process from ending.
            () = only_this_task_left(&watched) => {}
        }
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(())
}

/// Waits until no other task runs.
async fn only_this_task_left(lifecycle: &Lifecycle) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(20);
    while lifecycle.running().len() > 1 {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn spawn_metrics_upkeep(lifecycle: &Lifecycle) {
    let soft = lifecycle.soft();
    lifecycle.spawn("metrics upkeep", async move {
        let mut interval = tokio::time::interval(METRICS_UPKEEP);
        loop {
            tokio::select! {
                _ = interval.tick() => telemetry::upkeep_metrics(),
                () = soft.cancelled() => return Ok::<_, std::convert::Infallible>(()),
            }
        }
    });
}
