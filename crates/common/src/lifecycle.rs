//! How a process ends: first softly, then hard, and never with a forgotten task.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Starts the tasks of a process and brings them to their end.
///
/// A task is told to stop by the soft token and finishes what it has begun; when that takes too long, the hard token
/// cuts it off. A task that fails brings the whole process down, so that nothing runs on half.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<u64, &'static str>>,
    next: std::sync::atomic::AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        let hard = CancellationToken::new();
        Self {
            inner: Arc::new(Inner {
                soft: hard.child_token(),
                hard,
                tracker: TaskTracker::new(),
                running: Mutex::default(),
                next: std::sync::atomic::AtomicU64::new(0),
                failure: Mutex::new(None),
            }),
        }
    }
}

/// Removes a task from the list of the running, also when it panics or is cut off.
struct Running {
    inner: Arc<Inner>,
    key: u64,
    name: &'static str,
    finished: bool,
}

impl Running {
    /// The task came to its own end. Takes the whole value, so that the task's future owns it.
    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.running.lock().remove(&self.key);
        if !self.finished && !self.inner.hard.is_cancelled() {
            self.inner.fail(format!("task `{}` panicked", self.name));
        }
    }
}

impl Inner {
    fn fail(&self, why: String) {
        tracing::error!(error = why, "a task failed: the process stops");
        self.failure.lock().get_or_insert(why);
        self.soft.cancel();
    }
}

impl Lifecycle {
    /// Starts a task. It must end soon after the soft token; an error that it returns stops the process.
    pub fn spawn<E: std::fmt::Display>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let inner = Arc::clone(&self.inner);
        let key = inner.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        inner.running.lock().insert(key, name);
        let running = Running {
            inner: Arc::clone(&inner),
            key,
            name,
            finished: false,
        };
        let work = async move {
            tokio::select! {
                result = task => {
                    if let Err(error) = result {
                        inner.fail(format!("task `{name}`: {error}"));
                    }
                }
                () = inner.hard.cancelled() => {}
            }
            running.finish();
        };
        self.inner.tracker.spawn(work);
    }

    /// Cancelled when the process shall finish what it has begun and take nothing new.
    #[must_use]
    pub fn soft(&self) -> CancellationToken {
        self.inner.soft.clone()
    }

    /// Cancelled when the process ends now.
    #[must_use]
    pub fn hard(&self) -> CancellationToken {
        self.inner.hard.clone()
    }

    /// Begins the soft end.
    pub fn stop(&self) {
        self.inner.soft.cancel();
    }

    /// Waits until all tasks have ended after a stop, for `patience` at most; then cuts off the rest, whose names are
    /// returned. The error is the failure that brought the process down, if one did.
    pub async fn finish(&self, patience: Duration) -> Result<Vec<&'static str>, String> {
        self.inner.soft.cancelled().await;
        self.inner.tracker.close();
        let drained = tokio::select! {
            result = tokio::time::timeout(patience, self.inner.tracker.wait()) => result.is_ok(),
            () = self.inner.hard.cancelled() => false,
        };
        let left = if drained { Vec::new() } else { self.running() };
        self.inner.hard.cancel();
        self.inner.tracker.wait().await;
        match self.inner.failure.lock().take() {
            Some(failure) => Err(failure),
            None => Ok(left),
        }
    }

    /// Cuts everything off at once: the second signal.
    pub fn abort(&self) {
        self.inner.hard.cancel();
    }

    /// The names of the tasks that run.
    #[must_use]
    pub fn running(&self) -> Vec<&'static str> {
        self.inner.running.lock().values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn tasks_finish_what_they_have_begun() {
        let lifecycle = Lifecycle::default();
        let (done, wait) = tokio::sync::oneshot::channel();
        let soft = lifecycle.soft();
        lifecycle.spawn("worker", async move {
            soft.cancelled().await;
            tokio::task::yield_now().await;
            done.send(()).ok();
            Ok::<_, Infallible>(())
        });
        lifecycle.stop();
        assert_eq!(lifecycle.finish(PATIENCE).await, Ok(vec![]));
        wait.await.unwrap();
    }

    #[tokio::test]
    async fn a_stuck_task_is_cut_off_and_named() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("stuck", std::future::pending::<Result<(), Infallible>>());
        lifecycle.stop();
        assert_eq!(lifecycle.finish(Duration::ZERO).await, Ok(vec!["stuck"]));
    }

    #[tokio::test]
    async fn a_failing_task_brings_the_process_down() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("broken", async { Err("the pipe burst") });
        let failure = lifecycle.finish(PATIENCE).await.unwrap_err();
        assert_eq!(failure, "task `broken`: the pipe burst");
    }

    #[tokio::test]
    async fn a_panicking_task_brings_the_process_down() {
        fn drop_it() -> Result<(), Infallible> {
            panic!("dropped it")
        }
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("clumsy", async { drop_it() });
        let failure = lifecycle.finish(PATIENCE).await.unwrap_err();
        assert!(failure.contains("clumsy"), "{failure}");
    }
}
