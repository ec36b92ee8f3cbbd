//! Webhooks on their way: where they may go, how they are signed and sent, and when they are tried again.

mod address;
mod config;
mod deliver;
mod send;

use std::sync::Arc;

use modelyard_auth::seal::KeyRing;
use modelyard_common::{Context, clock::SharedClock, error::Chain};
use modelyard_db::Database;
use modelyard_jobs::{Backoff, JobStore, KEEP_FINISHED, Worker, WorkerConfig, retain};
use tokio::sync::Semaphore;

pub use self::config::Webhooks as WebhookConfig;
use self::deliver::Delivering;
pub(crate) use self::send::{Answer, Message, SendError, Sender};
use crate::{
    error::{Error, Result},
    store::Stores,
};

/// The queue of what is on its way.
pub(crate) const QUEUE: &str = "webhook";
/// How many webhooks are tested at the same time; others wait.
const TRIALS: usize = 4;

/// What the operations need of it.
pub(crate) struct Webhooks {
    jobs: Arc<dyn JobStore>,
    /// Sends, and says where nothing is sent to.
    pub(crate) sender: Arc<Sender>,
    /// Held while a webhook is tested.
    pub(crate) trials: Semaphore,
}

impl Webhooks {
    /// What was enqueued is looked for at once. Forgetting this costs a moment: the queue is looked into anyway.
    pub(crate) fn wake(&self) {
        self.jobs.wake().notify();
    }
}

/// What a secret is sealed for: it opens as the one of this webhook only.
pub(crate) fn secret_context(project: &str, id: &str) -> String {
    format!("webhook/{project}/{id}")
}

/// The secret of a webhook, opened.
pub(crate) fn open_secret(keys: &KeyRing, project: &str, id: &str, secret: Option<&str>) -> Result<Option<Vec<u8>>> {
    let opened = secret.map(|secret| keys.open(&secret_context(project, id), secret));
    // The sealed value is not in the text.
    opened.transpose().map_err(|error| Error::State(error.to_string()))
}

/// Starts the workers that deliver.
pub(crate) async fn start(
    config: &WebhookConfig,
    context: &Context,
    database: &Database,
    stores: &Stores,
    keys: &Arc<KeyRing>,
) -> Result<Webhooks> {
    let sender = Arc::new(Sender::new(config)?);
    let jobs = modelyard_jobs::open(database);
    let released = jobs.release_node(&context.node, context.clock.now()).await?;
    if released > 0 {
        tracing::info!(
            released,
            "webhooks' deliveries of the process before are taken up again"
        );
    }
    let clock: SharedClock = Arc::clone(&context.clock);
    let handler = Arc::new(Delivering {
        store: Arc::clone(&stores.webhooks),
        sender: Arc::clone(&sender),
        keys: Arc::clone(keys),
        clock: Arc::clone(&clock),
        max_attempts: config.max_attempts,
    });
    let worker = WorkerConfig {
        concurrency: config.concurrency,
        backoff: Backoff {
            first: deliver::FIRST_WAIT,
            longest: deliver::LONGEST_WAIT,
        },
        ..WorkerConfig::new([QUEUE])
    };
    let worker = Worker::new(Arc::clone(&jobs), handler, Arc::clone(&clock), &context.node, worker);
    let lifecycle = &context.lifecycle;
    lifecycle.spawn("registry webhooks", worker.run(lifecycle.soft()));
    lifecycle.spawn(
        "registry job retention",
        retain(Arc::clone(&jobs), clock, KEEP_FINISHED, lifecycle.soft()),
    );
    Ok(Webhooks {
        jobs,
        sender,
        trials: Semaphore::new(TRIALS),
    })
}

/// The sources of an error of the client, without the address: that can carry a token.
fn sources(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    match std::error::Error::source(error) {
        Some(source) => Chain(source).to_string(),
        None => "the request failed".to_owned(),
    }
}
