//! Works on steps: takes a job, gives the op what it needs, and reports how it ended.

use std::{
    collections::HashMap,
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use modelyard_auth::audit::NewEvent;
use modelyard_common::{Fault, Timestamp, clock::SharedClock, id::SharedIds};
use modelyard_jobs::{Claim, Handler, Job, Outcome, Running};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    measure,
    model::{Event, MAX_OUTPUT_BYTES, PlannedStep, Progress, RunState, Scope, render},
    ops::{Op, Ops, StepContext, StepError, Tools},
    store::{StepInput, Stores, Transition},
};

/// A step that takes longer than this is shown as running; a quicker one is stored once, when it ends.
const SHOWN_AFTER: Duration = Duration::from_millis(50);
/// How often progress is stored at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long the end of a step is kept in memory while the database is away, before the step is done again.
const REPORT_PATIENCE: Duration = Duration::from_mins(1);
/// The time between two tries.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// How long an op that was called off has for saying so to others.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often steps are looked for whose jobs the queue has given up.
const LOST_INTERVAL: Duration = Duration::from_secs(5);
/// How many of them at once.
const LOST_BATCH: u32 = 100;
/// How often old runs are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_hours(1);
/// How many are removed in one transaction: writers wait for it.
const RETENTION_BATCH: u32 = 100;

/// The steps that this process works on, so that a cancelled run stops at once here; elsewhere it does at the next
/// heartbeat.
#[derive(Clone, Default)]
pub(crate) struct Cancellations {
    inner: Arc<CancellationsInner>,
}

#[derive(Default)]
struct CancellationsInner {
    next: AtomicU64,
    running: Mutex<HashMap<u64, (String, CancellationToken)>>,
}

/// A step's place among the running ones, until it is dropped.
struct Registered {
    cancellations: Cancellations,
    key: u64,
    token: CancellationToken,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.cancellations.inner.running.lock().remove(&self.key);
    }
}

impl Cancellations {
    fn register(&self, run_id: &str) -> Registered {
        let key = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let token = CancellationToken::new();
        self.inner
            .running
            .lock()
            .insert(key, (run_id.to_owned(), token.clone()));
        Registered {
            cancellations: self.clone(),
            key,
            token,
        }
    }

    /// Stops the steps of a run that this process works on.
    pub(crate) fn cancel(&self, run_id: &str) {
        for (of, token) in self.inner.running.lock().values() {
            if of == run_id {
                token.cancel();
            }
        }
    }
}

/// What a job says.
#[derive(Debug, Clone, Deserialize)]
struct StepJob {
    run: String,
    step: usize,
    attempt: u32,
}

/// Moves runs, and works on their steps.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) stores: Stores,
    pub(crate) ops: Ops,
    pub(crate) tools: Arc<Tools>,
    pub(crate) clock: SharedClock,
    pub(crate) ids: SharedIds,
    pub(crate) cancellations: Cancellations,
}

/// How an attempt ended.
enum Ended {
    Succeeded(Value),
    Skipped,
    Failed(String),
    /// Another service is away.
    Later(String),
    /// The run was called off: its job has ended with it.
    Stopped,
}

struct StepScope<'a> {
    input: &'a StepInput,
}

impl Scope for StepScope<'_> {
    fn parameter(&self, name: &str) -> Option<&Value> {
        self.input.parameters.get(name)
    }

    fn outputs(&self, step: &str) -> Option<&Value> {
        self.input.outputs.get(step)
    }

    fn event(&self) -> Option<&Value> {
        None
    }
}

#[async_trait]
impl Handler for Engine {
    async fn run(&self, job: &Job, running: &Running) -> Outcome {
        match self.attempt(job, running).await {
            Ok(outcome) => outcome,
            Err(Error::Stale) => {
                tracing::debug!("the attempt is over: another holds the step, or the run has ended");
                Outcome::Settled
            }
            Err(error) => Outcome::from_fault(&error),
        }
    }
}

impl Engine {
    async fn attempt(&self, job: &Job, running: &Running) -> Result<Outcome> {
        let Ok(step_job) = serde_json::from_value::<StepJob>(job.payload.clone()) else {
            return Ok(Outcome::fail(
                "the job is not one of this version's: run the version that enqueued it",
            ));
        };
        let input = self
            .stores
            .runs
            .step_input(&step_job.run, step_job.step, step_job.attempt)
            .await?;
        let Some(input) = input.filter(|input| input.is_live) else {
            return Ok(Outcome::Done);
        };
        let Some(planned) = input.plan.steps.get(step_job.step) else {
            return Ok(Outcome::Done);
        };
        let (since, began) = (self.clock.now(), Instant::now());
        let Some(op) = self.ops.find(&planned.op) else {
            let error = format!(
                "there is no op `{}` in this version: run the one that created the run",
                planned.op
            );
            return self
                .report(&step_job, since, Ended::Failed(error), job, running.claim)
                .await;
        };
        let ended = self.perform(&step_job, &input, planned, &**op, since, running).await?;
        let outcome = match &ended {
            Ended::Succeeded(_) => "succeeded",
            Ended::Skipped => "skipped",
            Ended::Failed(_) => "failed",
            Ended::Later(_) => "retried",
            Ended::Stopped => "stopped",
        };
        measure::step_finished(op.name(), outcome, began.elapsed());
        self.report(&step_job, since, ended, job, running.claim).await
    }

    /// Evaluates the condition and what the op is given, and runs it.
    async fn perform(
        &self,
        job: &StepJob,
        input: &StepInput,
        planned: &PlannedStep,
        op: &dyn Op,
        since: Timestamp,
        running: &Running,
    ) -> Result<Ended> {
        let scope = StepScope { input };
        match planned.when.as_ref().map(|when| render(when, &scope)) {
            None | Some(Ok(Value::Bool(true))) => {}
            Some(Ok(Value::Bool(false))) => return Ok(Ended::Skipped),
            Some(Ok(other)) => return Ok(Ended::Failed(format!("when: is {other}, and must be true or false"))),
            Some(Err(error)) => return Ok(Ended::Failed(format!("when: {error}"))),
        }
        let mut with = Map::new();
        for (key, value) in &planned.with {
            match render(value, &scope) {
                Ok(value) => {
                    with.insert(key.clone(), value);
                }
                Err(error) => return Ok(Ended::Failed(format!("with.{key}: {error}"))),
            }
        }
        // Ends with this function, however it ends: threads of the op see it.
        let cancelled = running.cancelled.child_token();
        let _cancels_when_dropped = cancelled.clone().drop_guard();
        let registered = self.cancellations.register(&job.run);
        let context = StepContext {
            project: input.project.clone(),
            run_id: job.run.clone(),
            pipeline: input.pipeline.clone(),
            step: planned.name.clone(),
            attempt: job.attempt,
            with,
            progress: watch::Sender::default(),
            cancelled,
            called_off: registered.token.clone(),
            tools: Arc::new(self.tools.acting_for(&input.acting_for)),
        };
        self.watch(job, planned, op, &context, since).await
    }

    /// Runs the op, and meanwhile shows that it runs and how far it is.
    async fn watch(
        &self,
        job: &StepJob,
        planned: &PlannedStep,
        op: &dyn Op,
        context: &StepContext,
        since: Timestamp,
    ) -> Result<Ended> {
        let began = Instant::now();
        let deadline = planned.timeout().map(|timeout| began + timeout);
        let mut progress = context.progress.subscribe();
        let mut shown = false;
        let mut next_look = began + SHOWN_AFTER;
        let mut work = std::pin::pin!(AssertUnwindSafe(op.run(context)).catch_unwind());
        loop {
            tokio::select! {
                biased;
                ended = &mut work => return Ok(match ended {
                    Ok(ended) => sort(ended),
                    Err(panic) => Ended::Failed(format!("the op broke off: {}", panic_text(&*panic))),
                }),
                () = context.called_off.cancelled() => {
                    context.cancelled.cancel();
                    timeout(LAST_WORDS, &mut work).await.ok();
                    return Ok(Ended::Stopped);
                }
                () = sleep_until(deadline.unwrap_or(next_look)), if deadline.is_some() => {
                    context.called_off.cancel();
                    context.cancelled.cancel();
                    timeout(LAST_WORDS, &mut work).await.ok();
                    let text = humantime::format_duration(planned.timeout().unwrap_or_default());
                    return Ok(Ended::Failed(format!("it took longer than its timeout of {text}")));
                }
                () = sleep_until(next_look) => {
                    let stored = if shown {
                        self.show_progress(job, &mut progress).await
                    } else {
                        let started = Event::StepStarted { step: job.step, attempt: job.attempt, since };
                        self.advance(&job.run, started, None, None).await.map(drop)
                    };
                    match stored {
                        Ok(()) => shown = true,
                        Err(Error::Stale) => context.called_off.cancel(),
                        Err(error) => tracing::warn!(error = %error, "the progress of a step could not be stored"),
                    }
                    next_look = Instant::now() + PROGRESS_INTERVAL;
                }
            }
        }
    }

    async fn show_progress(&self, job: &StepJob, progress: &mut watch::Receiver<Progress>) -> Result<()> {
        if !progress.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let latest = progress.borrow_and_update().clone();
        self.stores
            .runs
            .record_progress(&job.run, job.step, job.attempt, &latest)
            .await
    }

    /// Stores how an attempt ended, together with what follows from it and the end of its job.
    async fn report(
        &self,
        job: &StepJob,
        since: Timestamp,
        ended: Ended,
        queued: &Job,
        claim: Claim,
    ) -> Result<Outcome> {
        let (step, attempt) = (job.step, job.attempt);
        let failed = |error: String| Event::StepFailed {
            step,
            attempt,
            since,
            error,
        };
        let (event, outputs) = match ended {
            Ended::Stopped => return Ok(Outcome::Settled),
            Ended::Later(error) if !queued.is_last_attempt() => return Ok(Outcome::retry(error)),
            Ended::Later(error) | Ended::Failed(error) => {
                tracing::warn!(run = job.run, step, attempt, error, "a step failed");
                (failed(error), None)
            }
            Ended::Skipped => (Event::StepSkipped { step, attempt, since }, None),
            Ended::Succeeded(outputs) => (Event::StepSucceeded { step, attempt, since }, Some(outputs)),
        };
        self.advance_patiently(&job.run, event, outputs.as_ref(), claim).await?;
        Ok(Outcome::Settled)
    }

    async fn advance_patiently(&self, run_id: &str, event: Event, outputs: Option<&Value>, claim: Claim) -> Result<()> {
        let until = Instant::now() + REPORT_PATIENCE;
        loop {
            match self.advance(run_id, event.clone(), outputs, Some(claim)).await {
                Err(error) if error.kind().is_transient() && Instant::now() < until => {
                    tracing::warn!(error = %error, "the end of a step could not be stored: trying again");
                    sleep(REPORT_PAUSE).await;
                }
                result => return result.map(drop),
            }
        }
    }

    /// Calls a run off, and tells the audit chain.
    pub(crate) async fn call_off(&self, run_id: &str, audit: &NewEvent) -> Result<RunState> {
        self.move_on(run_id, Event::Cancelled, None, None, Some(audit)).await
    }

    /// Moves a run by one event.
    async fn advance(
        &self,
        run_id: &str,
        event: Event,
        outputs: Option<&Value>,
        completes: Option<Claim>,
    ) -> Result<RunState> {
        self.move_on(run_id, event, outputs, completes, None).await
    }

    async fn move_on(
        &self,
        run_id: &str,
        event: Event,
        outputs: Option<&Value>,
        completes: Option<Claim>,
        audit: Option<&NewEvent>,
    ) -> Result<RunState> {
        let transition = Transition {
            audit,
            run_id,
            event,
            outputs,
            completes,
            now: self.clock.now(),
            ids: &*self.ids,
        };
        let state = self.stores.runs.transition(&transition).await?;
        if state.status.is_finished() {
            measure::run_finished(state.status.as_str());
            tracing::info!(
                run = run_id,
                status = state.status.as_str(),
                error = state.error,
                "pipeline run ended"
            );
        }
        Ok(state)
    }

    /// Fails the steps whose jobs the queue has given up, until `soft` is cancelled, so that no run waits for ever.
    pub(crate) async fn fail_lost_steps(self, soft: CancellationToken) -> Result<(), Infallible> {
        loop {
            if let Err(error) = self.try_fail_lost_steps().await {
                tracing::warn!(error = %error, "lost steps could not be looked for");
            }
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = sleep(LOST_INTERVAL) => {}
            }
        }
    }

    async fn try_fail_lost_steps(&self) -> Result<()> {
        for lost in self.stores.runs.lost_steps(LOST_BATCH).await? {
            let failed = Event::StepFailed {
                step: lost.step,
                attempt: lost.attempt,
                since: self.clock.now(),
                error: lost.error,
            };
            match self.advance(&lost.run_id, failed, None, None).await {
                Ok(_) | Err(Error::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes runs that ended longer than `keep` ago, until `soft` is cancelled.
    pub(crate) async fn remove_old_runs(self, keep: Duration, soft: CancellationToken) -> Result<(), Infallible> {
        loop {
            loop {
                match self
                    .stores
                    .runs
                    .remove_finished(self.clock.now() - keep, RETENTION_BATCH)
                    .await
                {
                    Ok(removed) if removed < u64::from(RETENTION_BATCH) || soft.is_cancelled() => break,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error = %error, "old runs could not be removed");
                        break;
                    }
                }
            }
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = sleep(RETENTION_INTERVAL) => {}
            }
        }
    }
}

/// What the op gave, if it can be stored.
fn sort(ended: Result<Value, StepError>) -> Ended {
    match ended {
        Ok(outputs) => {
            let size = outputs.to_string().len();
            if size > MAX_OUTPUT_BYTES {
                return Ended::Failed(format!(
                    "its outputs have {size} bytes, and may have {MAX_OUTPUT_BYTES}: store what is large as an artifact"
                ));
            }
            Ended::Succeeded(outputs)
        }
        Err(StepError::Fail(error)) => Ended::Failed(error),
        Err(StepError::Retry(error)) => Ended::Later(error),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
