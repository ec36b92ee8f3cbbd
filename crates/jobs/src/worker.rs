//! Doing the work.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;
use modelyard_common::{Fault, Timestamp, clock::SharedClock, telemetry};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    backoff::Backoff,
    error::{Error, Result},
    measure,
    model::{Claim, ClaimRequest, Job, State},
    store::JobStore,
};

/// The longest time between two looks into the queue. What another process enqueues waits no longer than this.
pub const IDLE_POLL: Duration = Duration::from_millis(500);
/// The most jobs that one worker does at once.
pub const MAX_CONCURRENCY: usize = 256;
/// The time until the next look when another node was quicker.
const CONTENDED_POLL: Duration = Duration::from_millis(20);
/// The time until the next look after one that failed.
const ERROR_POLL: Duration = Duration::from_secs(1);
/// Heartbeats per lease: two may fail before it is lost.
const HEARTBEATS_PER_LEASE: u32 = 3;
/// How often the report of an attempt is tried while the database is away; then its lease runs out.
const REPORT_ATTEMPTS: u32 = 5;
/// The time between them.
const REPORT_PAUSE: Duration = Duration::from_millis(200);

/// What a worker does with a job.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Does the work. It must bear being done twice, or settle its job in the transaction of its effect. It is dropped
    /// at an `await` when the lease is lost, the job is cancelled, or the soft end takes too long; what runs apart from it
    /// (a blocking thread, a process) must watch [`Running::cancelled`]. A panic counts as an error of this attempt.
    async fn run(&self, job: &Job, running: &Running) -> Outcome;
}

/// What a handler knows beside its job.
#[derive(Debug, Clone)]
pub struct Running {
    /// The right to settle the job: for [`crate::complete_in`].
    pub claim: Claim,
    /// Cancelled when the handler is dropped before its end, and when it has ended.
    pub cancelled: CancellationToken,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done: the worker completes the job.
    Done,
    /// Done, and the handler has completed the job already, with [`crate::complete_in`].
    Settled,
    /// An error that may pass. Tried again after the worker's backoff, or after the time given, until `max_attempts`.
    Retry {
        /// The time until the next attempt, where the handler knows it.
        after: Option<Duration>,
        /// What went wrong.
        error: String,
    },
    /// An error that will not pass.
    Fail {
        /// What went wrong.
        error: String,
    },
}

impl Outcome {
    /// Retry with the worker's backoff.
    pub fn retry(error: impl std::fmt::Display) -> Self {
        Self::Retry {
            after: None,
            error: error.to_string(),
        }
    }

    /// Fail.
    pub fn fail(error: impl std::fmt::Display) -> Self {
        Self::Fail {
            error: error.to_string(),
        }
    }

    /// By the kind of the error: what is transient is tried again.
    pub fn from_fault(error: &(impl Fault + ?Sized)) -> Self {
        let text = modelyard_common::error::Chain(error).to_string();
        if error.kind().is_transient() {
            Self::retry(text)
        } else {
            Self::fail(text)
        }
    }

    const fn as_str(&self) -> &'static str {
        match self {
            Self::Done | Self::Settled => "done",
            Self::Retry { .. } => "retry",
            Self::Fail { .. } => "fail",
        }
    }
}

/// How a worker works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The queues. Each look begins with another of them, so that a full one does not starve the rest.
    pub queues: Vec<String>,
    /// How many jobs at once, 1 to [`MAX_CONCURRENCY`].
    pub concurrency: usize,
    /// How long a job is held without a heartbeat: what a crash of this node costs before another takes over.
    pub lease: Duration,
    /// The waits after errors.
    pub backoff: Backoff,
    /// How long a soft end waits for the handlers, before it drops them and gives their jobs back.
    pub drain: Duration,
}

impl WorkerConfig {
    /// Four at once, a lease of 30 s, 10 s to drain.
    pub fn new<Q: Into<String>>(queues: impl IntoIterator<Item = Q>) -> Self {
        Self {
            queues: queues.into_iter().map(Into::into).collect(),
            concurrency: 4,
            lease: Duration::from_secs(30),
            backoff: Backoff::default(),
            drain: Duration::from_secs(10),
        }
    }
}

/// Claims jobs and gives them to a handler.
pub struct Worker {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn JobStore>,
    handler: Arc<dyn Handler>,
    clock: SharedClock,
    node: String,
    config: WorkerConfig,
}

impl Worker {
    /// A worker of `node`, whose old leases were given back with [`JobStore::release_node`].
    pub fn new(
        store: Arc<dyn JobStore>,
        handler: Arc<dyn Handler>,
        clock: SharedClock,
        node: &str,
        mut config: WorkerConfig,
    ) -> Self {
        config.concurrency = config.concurrency.clamp(1, MAX_CONCURRENCY);
        Self {
            inner: Arc::new(Inner {
                store,
                handler,
                clock,
                node: node.to_owned(),
                config,
            }),
        }
    }

    /// Works until `soft` is cancelled, then waits for the handlers, and gives back the jobs of those that take longer
    /// than [`WorkerConfig::drain`]. Errors of the queue are logged, and it is looked into again: it never ends with one.
    pub async fn run(self, soft: CancellationToken) -> Result<(), Infallible> {
        let inner = self.inner;
        let cut_off = CancellationToken::new();
        let mut wake = inner.store.wake().subscribe();
        let mut handlers = JoinSet::new();
        let mut queues = inner.config.queues.clone();
        while !soft.is_cancelled() {
            // Before the look: a hint during it is seen after it.
            wake.mark_unchanged();
            let free = inner.config.concurrency - handlers.len();
            let look = inner.look(&queues, free).await;
            for job in look.jobs {
                let (inner, cut_off) = (Arc::clone(&inner), cut_off.clone());
                handlers.spawn(async move { inner.attempt(job, cut_off).await });
            }
            if !queues.is_empty() {
                queues.rotate_left(1);
            }
            let busy = handlers.len() >= inner.config.concurrency;
            tokio::select! {
                () = soft.cancelled() => {}
                Some(ended) = handlers.join_next() => log_panic(ended),
                _ = wake.changed(), if !busy => {}
                () = sleep(look.pause), if !busy => {}
            }
        }
        let drained = timeout(inner.config.drain, join_all(&mut handlers)).await;
        if drained.is_err() {
            cut_off.cancel();
            join_all(&mut handlers).await;
        }
        Ok(())
    }
}

async fn join_all(handlers: &mut JoinSet<()>) {
    while let Some(ended) = handlers.join_next().await {
        log_panic(ended);
    }
}

/// Handlers' panics are caught before; this one is ours. The lease of its job runs out.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %error, "a worker's task broke");
    }
}

/// What a look into the queue found, and when to look again.
struct Look {
    jobs: Vec<Job>,
    pause: Duration,
}

/// How an attempt left the handler.
enum Left {
    Ended(Outcome),
    Lost,
    CutOff,
}

impl Inner {
    async fn look(&self, queues: &[String], free: usize) -> Look {
        if free == 0 {
            let jobs = Vec::new();
            return Look { jobs, pause: IDLE_POLL };
        }
        match self.try_look(queues, free).await {
            Ok(look) => look,
            Err(error) => {
                measure::poll_failed();
                tracing::warn!(error = %error, "the queue cannot be looked into: trying again");
                let jobs = Vec::new();
                Look {
                    jobs,
                    pause: ERROR_POLL,
                }
            }
        }
    }

    /// Reads first, and claims only what is due: an idle worker takes no lock.
    async fn try_look(&self, queues: &[String], free: usize) -> Result<Look> {
        let nothing = |pause| Look {
            jobs: Vec::new(),
            pause,
        };
        let Some(next) = self.store.next_run_at(queues).await? else {
            return Ok(nothing(IDLE_POLL));
        };
        let now = self.clock.now();
        if next > now {
            return Ok(nothing(next.since(now).min(IDLE_POLL)));
        }
        let request = ClaimRequest {
            queues,
            node: &self.node,
            lease: self.config.lease,
            limit: free,
        };
        let jobs = self.store.claim(&request, now).await?;
        let pause = if jobs.is_empty() {
            CONTENDED_POLL
        } else {
            Duration::ZERO
        };
        Ok(Look { jobs, pause })
    }

    async fn attempt(&self, job: Job, cut_off: CancellationToken) {
        let span = tracing::info_span!(
            "jobs.run",
            job.id = %job.id,
            job.queue = %job.queue,
            job.attempt = job.attempt
        );
        telemetry::resume_trace(&span, job.trace.as_deref());
        measure::claimed(&job.queue, self.clock.now().since(job.run_at));
        let started = Instant::now();
        async {
            let label = match self.work(&job, &cut_off).await {
                Left::Ended(outcome) => {
                    let label = outcome.as_str();
                    self.report(&job, outcome).await;
                    label
                }
                Left::Lost => {
                    tracing::warn!("the lease was lost: the attempt is dropped");
                    "lost"
                }
                Left::CutOff => {
                    let given_back = self.store.release(&job.claim(), self.clock.now()).await;
                    log_report("released", given_back);
                    "released"
                }
            };
            measure::ended(&job.queue, label, started.elapsed());
        }
        .instrument(span)
        .await;
    }

    /// Runs the handler, as long as the lease can be kept.
    async fn work(&self, job: &Job, cut_off: &CancellationToken) -> Left {
        let cancelled = CancellationToken::new();
        let _cancels_when_dropped = cancelled.clone().drop_guard();
        let running = Running {
            claim: job.claim(),
            cancelled,
        };
        let handled = AssertUnwindSafe(self.handler.run(job, &running)).catch_unwind();
        tokio::select! {
            biased;
            ended = handled => Left::Ended(ended.unwrap_or_else(|panic| Outcome::Retry {
                after: None,
                error: format!("the handler panicked: {}", panic_text(&*panic)),
            })),
            () = self.keep_lease(job.claim()) => Left::Lost,
            () = cut_off.cancelled() => Left::CutOff,
        }
    }

    /// Renews the lease until it is lost, and only then returns.
    async fn keep_lease(&self, claim: Claim) {
        let lease = self.config.lease;
        let mut lost_at = Instant::now() + lease;
        loop {
            sleep(lease / HEARTBEATS_PER_LEASE).await;
            let sent = Instant::now();
            match self.store.heartbeat(&claim, lease, self.clock.now()).await {
                Ok(()) => lost_at = sent + lease,
                Err(Error::Stale(_)) => return,
                Err(error) => tracing::warn!(error = %error, "a heartbeat failed"),
            }
            if Instant::now() >= lost_at {
                return;
            }
        }
    }

    /// Tells the queue how the attempt ended, patiently, so that done work is not done again for a moment's failure.
    async fn report(&self, job: &Job, outcome: Outcome) {
        for left in (0..REPORT_ATTEMPTS).rev() {
            match self.try_report(job, &outcome).await {
                Err(error) if left > 0 && error.kind().is_transient() => {
                    tracing::warn!(error = %error, "the end of an attempt could not be stored: trying again");
                    sleep(REPORT_PAUSE).await;
                }
                result => return log_report(outcome.as_str(), result),
            }
        }
    }

    async fn try_report(&self, job: &Job, outcome: &Outcome) -> Result<()> {
        let (claim, now) = (job.claim(), self.clock.now());
        match outcome {
            Outcome::Done => self.store.complete(&claim, now).await,
            Outcome::Settled => Ok(()),
            Outcome::Retry { after, error } => {
                let run_at = self.next_attempt(job, *after, now);
                let state = self.store.retry(&claim, run_at, error, now).await?;
                let gave_up = state == State::Failed;
                tracing::warn!(error = %error, gave_up, "an attempt failed");
                Ok(())
            }
            Outcome::Fail { error } => {
                tracing::warn!(error = %error, gave_up = true, "an attempt failed");
                self.store.fail(&claim, error, now).await
            }
        }
    }

    fn next_attempt(&self, job: &Job, after: Option<Duration>, now: Timestamp) -> Timestamp {
        now + after.unwrap_or_else(|| self.config.backoff.delay(job.failures, rand::random()))
    }
}

fn log_report(what: &'static str, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(error = %error, outcome = what, "the end of an attempt was not stored");
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
