//! The threads of one model.

use crate::error::{Error, Result};

/// A pool of our own: its size is set explicitly and nothing leaks into the process's global pool.
#[derive(Debug)]
pub(crate) struct Workers {
    pool: rayon::ThreadPool,
}

impl Workers {
    /// `threads`: `None` takes as many as the operating system lets this process use.
    pub(crate) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("trainer-{index}"))
            .build()
            .map_err(|error| Error::Internal(format!("cannot start worker threads: {error}")))?;
        Ok(Self { pool })
    }

    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}
