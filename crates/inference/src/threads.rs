//! The threads of workers, kept for the next ones. Where few of many models fit into memory, workers come and go by the hundred a second,
//! and to make or end a thread takes locks for which all others of the process wait.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

/// How many are kept, and for how long each.
const MAX_KEPT: usize = 64;
const KEPT_FOR: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// Those of this process.
static THREADS: LazyLock<Arc<Threads>> = LazyLock::new(Arc::default);

/// Threads, as many as there are jobs.
#[derive(Default)]
struct Threads {
    /// Those that have nothing to do, the one that had something last at the end.
    idle: Mutex<Vec<Idle>>,
}

/// A thread without work: it takes what is sent here.
struct Idle {
    thread: thread::ThreadId,
    jobs: mpsc::Sender<Job>,
}

/// Runs it on a thread of its own: one that is kept, else a new one.
///
/// # Errors
/// The system refuses a thread.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    THREADS.run(Box::new(job))
}

impl Threads {
    fn run(self: &Arc<Self>, mut job: Job) -> io::Result<()> {
        let idle = self.idle.lock().pop();
        if let Some(idle) = idle {
            match idle.jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(back)) => job = back,
            }
        }
        let threads = Arc::clone(self);
        let work = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                // What a panic leaves undone is told by what the job has dropped.
                drop(catch_unwind(AssertUnwindSafe(job)));
                next = threads.wait();
            }
        };
        let thread = thread::Builder::new().name("predict".to_owned());
        thread.spawn(work).map(drop)
    }

    /// The next job of this thread; none: it is not needed any more.
    fn wait(&self) -> Option<Job> {
        let (jobs, taken) = mpsc::channel();
        let this = thread::current().id();
        {
            let mut idle = self.idle.lock();
            if idle.len() >= MAX_KEPT {
                return None;
            }
            idle.push(Idle { thread: this, jobs });
        }
        if let Ok(job) = taken.recv_timeout(KEPT_FOR) {
            return Some(job);
        }
        let is_kept = {
            let mut idle = self.idle.lock();
            let before = idle.len();
            idle.retain(|idle| idle.thread != this);
            idle.len() < before
        };
        // Else somebody has just found it there, and sends something.
        if is_kept { None } else { taken.recv().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_for_the_next_job_also_after_a_panic() {
        let (told, ids) = mpsc::channel();
        let threads = Arc::<Threads>::default();
        let tell = |panics: bool| {
            let told = told.clone();
            let job = move || {
                told.send(thread::current().id()).unwrap();
                assert!(!panics, "as wanted");
            };
            threads.run(Box::new(job)).unwrap();
            let thread = ids.recv().unwrap();
            // It is kept a moment after it has told.
            while !threads.idle.lock().iter().any(|idle| idle.thread == thread) {
                thread::yield_now();
            }
            thread
        };
        let first = tell(true);
        assert_eq!(tell(false), first);
        // Who is busy is not asked.
        let (end, ended) = mpsc::channel::<()>();
        let busy = move || {
            // It ends with the test.
            let _ = ended.recv();
        };
        threads.run(Box::new(busy)).unwrap();
        assert_ne!(tell(false), first);
        drop(end);
    }
}
