//! Ends runs of ONNX Runtime that nobody waits for any more: else a model that takes too long, or for ever, keeps its worker.

use std::{
    sync::{Arc, LazyLock, Weak},
    thread,
    time::{Duration, Instant},
};

use ort::session::RunOptions;
use parking_lot::{Condvar, Mutex};

/// How often it is looked whether a run has become useless.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The options of one session's runs, by which they are ended.
pub(crate) struct Watched {
    /// For runs that keep their memory.
    pub keep: RunOptions,
    /// For runs that give it back.
    pub shrink: RunOptions,
    run: Mutex<Run>,
}

#[derive(Default)]
struct Run {
    /// When nobody waits for it any more; none: there is no run, or somebody waits for as long as it takes.
    deadline: Option<Instant>,
    is_ended: bool,
}

/// All that are watched.
#[derive(Default)]
struct Watchdog {
    watched: Mutex<Vec<Weak<Watched>>>,
    /// There is something to watch.
    some: Condvar,
}

static WATCHDOG: LazyLock<Arc<Watchdog>> = LazyLock::new(|| {
    let watchdog = Arc::<Watchdog>::default();
    let watching = Arc::clone(&watchdog);
    let thread = thread::Builder::new().name("watchdog".to_owned());
    if let Err(error) = thread.spawn(move || watching.watch()) {
        tracing::warn!(%error, "runs that nobody waits for are not ended");
    }
    watchdog
});

impl Watchdog {
    fn watch(&self) {
        loop {
            let mut watched = self.watched.lock();
            while watched.is_empty() {
                self.some.wait(&mut watched);
            }
            let now = Instant::now();
            watched.retain(|watched| {
                let watched = watched.upgrade();
                watched.inspect(|watched| watched.look(now)).is_some()
            });
            drop(watched);
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Watched {
    /// `arenas` are those that memory is given back from, as ONNX Runtime lists them.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub(crate) fn new(arenas: &str) -> Result<Arc<Self>, ort::Error> {
        let mut shrink = RunOptions::new()?;
        shrink.set("memory.enable_memory_arena_shrinkage", arenas)?;
        let watched = Arc::new(Self {
            keep: RunOptions::new()?,
            shrink,
            run: Mutex::default(),
        });
        WATCHDOG.watched.lock().push(Arc::downgrade(&watched));
        WATCHDOG.some.notify_one();
        Ok(watched)
    }

    /// A run begins, which is of no use after the deadline.
    pub(crate) fn begin(&self, deadline: Option<Instant>) {
        self.run.lock().deadline = deadline;
    }

    /// The run is over. Whether it was ended.
    pub(crate) fn end(&self) -> bool {
        let run = std::mem::take(&mut *self.run.lock());
        if run.is_ended {
            for options in [&self.keep, &self.shrink] {
                // Without it the next runs would be ended as well.
                if let Err(error) = options.unterminate() {
                    tracing::error!(%error, "the session's runs cannot be allowed again");
                }
            }
        }
        run.is_ended
    }

    fn look(&self, now: Instant) {
        let mut run = self.run.lock();
        if run.is_ended || run.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        run.is_ended = true;
        for options in [&self.keep, &self.shrink] {
            if let Err(error) = options.terminate() {
                tracing::warn!(%error, "a run that nobody waits for cannot be ended");
            }
        }
    }
}
