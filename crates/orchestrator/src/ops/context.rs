//! What an op can use while it works.

use std::{future::Future, sync::Arc, time::Duration};

use modelyard_artifacts::{Artifacts, ProjectArtifacts};
use modelyard_common::{ErrorKind, Fault, error::Chain};
use modelyard_jobs::Backoff;
use serde_json::{Map, Value};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{model::Progress, registry::Registry};

/// How long a step waits within one attempt for another service or the storage: long enough that a restart of it does not
/// cost what the step has computed so far.
const PATIENCE: Duration = Duration::from_mins(3);
/// The waits between the calls.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
};

/// Why a step did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepError {
    /// Trying again would not help, unless the pipeline asks for it.
    Fail(String),
    /// Another service is away: the step is tried again without counting an attempt of the pipeline's.
    Retry(String),
}

impl StepError {
    /// By the kind of the error.
    pub(crate) fn of(error: &(impl Fault + ?Sized)) -> Self {
        let text = Chain(error).to_string();
        if is_transient(error) {
            Self::Retry(text)
        } else {
            Self::Fail(text)
        }
    }
}

/// Whether another call can succeed. An internal error without a reason of ours was not answered by the service but by the
/// connection to it, which breaks when the service is killed.
pub(crate) fn is_transient(error: &(impl Fault + ?Sized)) -> bool {
    error.kind().is_transient() || (error.kind() == ErrorKind::Internal && error.reason() == "REMOTE")
}

/// What ops share.
pub(crate) struct Tools {
    pub(crate) registry: Registry,
    pub(crate) artifacts: Artifacts,
}

impl Tools {
    /// The same, for somebody: what a run does elsewhere, it does with the rights of whoever started it.
    pub(crate) fn acting_for(&self, principal: &str) -> Self {
        Self {
            registry: self.registry.acting_for(principal),
            artifacts: self.artifacts.clone(),
        }
    }
}

/// Says how far a computation is, and whether it is still wanted.
#[derive(Clone)]
pub(crate) struct Reporter {
    progress: watch::Sender<Progress>,
    cancelled: CancellationToken,
}

impl Reporter {
    /// Says how far it is; `total` 0: unknown.
    pub(crate) fn report(&self, done: u64, total: u64, message: impl Into<String>) {
        let message = message.into();
        self.progress.send_replace(Progress { done, total, message });
    }

    /// One that nobody listens to.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self {
            progress: watch::Sender::default(),
            cancelled: CancellationToken::new(),
        }
    }

    /// An error when nobody wants the result any more.
    pub(crate) fn check(&self) -> Result<(), StepError> {
        if self.cancelled.is_cancelled() {
            return Err(StepError::Retry("the step was stopped".to_owned()));
        }
        Ok(())
    }
}

/// One attempt of one step.
pub(crate) struct StepContext {
    pub(crate) project: String,
    pub(crate) run_id: String,
    pub(crate) pipeline: String,
    pub(crate) step: String,
    pub(crate) attempt: u32,
    /// What the op is given, without expressions.
    pub(crate) with: Map<String, Value>,
    pub(crate) progress: watch::Sender<Progress>,
    /// Cancelled when this attempt shall stop, here at least: what runs on a thread of its own looks at it.
    pub(crate) cancelled: CancellationToken,
    /// Cancelled when the attempt shall not go on anywhere: the run was called off, or its time is over. The op then has a
    /// moment to say so to others.
    pub(crate) called_off: CancellationToken,
    pub(crate) tools: Arc<Tools>,
}

impl StepContext {
    /// The artifacts of the run's project.
    pub(crate) fn artifacts(&self) -> Result<ProjectArtifacts, StepError> {
        let artifacts = self.tools.artifacts.project(&self.project);
        artifacts.map_err(|error| StepError::of(&error))
    }

    /// Says how far the step is; `total` 0: unknown.
    pub(crate) fn report(&self, done: u64, total: u64, message: impl Into<String>) {
        self.reporter().report(done, total, message);
    }

    /// The part of this that goes to a thread of its own.
    pub(crate) fn reporter(&self) -> Reporter {
        Reporter {
            progress: self.progress.clone(),
            cancelled: self.cancelled.clone(),
        }
    }

    /// A key that is the same whenever this step does the same thing again, whatever the attempt.
    pub(crate) fn step_key(&self, what: &str) -> String {
        format!("{}/{}/{what}", self.run_id, self.step)
    }

    /// A key of this attempt.
    pub(crate) fn attempt_key(&self, what: &str) -> String {
        format!("{}/{}/{}/{what}", self.run_id, self.step, self.attempt)
    }

    /// Calls another service or the storage until it answers, a while at most. Only for calls that bear being repeated.
    pub(crate) async fn patiently<T, E, F>(&self, whom: &str, mut call: impl FnMut() -> F + Send) -> Result<T, E>
    where
        E: Fault,
        F: Future<Output = Result<T, E>> + Send,
    {
        let until = Instant::now() + PATIENCE;
        let mut failures = 0;
        loop {
            let error = match call().await {
                Err(error) if is_transient(&error) => error,
                result => return result,
            };
            // The steps of one run wait in a row or few beside each other: they need no jitter.
            let wait = BACKOFF.delay(failures, 0.0);
            if Instant::now() + wait >= until {
                return Err(error);
            }
            failures += 1;
            tracing::warn!(step = self.step, error = %Chain(&error), "waiting for {whom}");
            self.report(0, 0, format!("waiting for {whom}: {error}"));
            tokio::time::sleep(wait).await;
        }
    }

    /// Computes on a thread of its own. The work looks at [`Self::cancelled`] by itself.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
    ) -> Result<T, StepError> {
        let span = tracing::Span::current();
        match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
            Ok(result) => result,
            Err(error) => Err(StepError::Fail(format!("the work broke off: {error}"))),
        }
    }
}
