//! Threads that leave the processors to those that serve.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How gentle they are, as `nice` counts it: a tenth of the weight of others.
const NICENESS: i32 = 10;

/// From now on this thread leaves the processors to others, as will the threads that it starts. There is no way back.
fn be_gentle() {
    // Linux sets it for the thread alone. Where it is refused, the thread stays as urgent as those that serve.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "a thread that can wait has full priority");
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Gentle threads for work that takes a processor whole and can wait, such as opening models and freeing them.
#[derive(Debug, Clone)]
pub struct GentleThreads {
    jobs: mpsc::Sender<Job>,
}

impl GentleThreads {
    /// Starts so many. They end with the last clone of this.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let (jobs, taken) = mpsc::channel::<Job>();
        let taken = Arc::new(Mutex::new(taken));
        for _ in 0..threads {
            let taken = Arc::clone(&taken);
            thread::Builder::new().name("gentle".to_owned()).spawn(move || {
                be_gentle();
                loop {
                    let Ok(job) = taken.lock().recv() else { return };
                    // Whoever waits for it is told by the answer that does not come.
                    drop(catch_unwind(AssertUnwindSafe(job)));
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Has some work done, once a thread is free for it.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(mpsc::SendError(work)) = self.jobs.send(Box::new(work)) {
            // There is no thread any more.
            work();
        }
    }

    /// What some work gives, once a thread was free for it; none if it panicked. It is done even if nobody waits for it any more.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.spawn(move || {
            // Whoever wanted it may have gone.
            drop(done.send(work()));
        });
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_gently_and_survives_a_panic() {
        let threads = GentleThreads::start(1).unwrap();
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        assert_eq!(threads.run(|| panic!("as wanted")).await, None::<()>);
        assert_eq!(threads.run(niceness).await, Some((own + NICENESS).min(19)));
        assert_eq!(niceness(), own, "others are as they were");
    }
}
