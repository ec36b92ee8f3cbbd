//! The bounded queue before a model's workers, and the batches that they take from it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::{
    batcher::Prediction,
    error::{Error, Result},
    model::ModelFacts,
    statistics::Counters,
    tensor::{MAX_ELEMENTS, Tensor},
};

/// The most rows, requests or elements that any option may ask for.
const MAX_OPTION: usize = 1 << 30;

/// The longest that a request may be held back for others to join it.
const MAX_QUEUE_DELAY: Duration = Duration::from_secs(10);

/// How a predictor queues and merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatcherOptions {
    /// The most rows in one merged run. A single request may have more and runs alone.
    pub max_batch_rows: usize,
    /// The most elements, over all inputs, in one merged run.
    pub max_batch_elements: usize,
    /// The most requests that wait.
    pub max_queued_requests: usize,
    /// The most elements, over all inputs, that wait.
    pub max_queued_elements: usize,
    /// How long a worker holds a batch that is not full for more to come. Zero, the default, adds no delay: batches
    /// grow by themselves while workers are busy.
    pub max_queue_delay: Duration,
}

impl Default for BatcherOptions {
    fn default() -> Self {
        Self {
            max_batch_rows: 64,
            max_batch_elements: 1 << 22,
            max_queued_requests: 1024,
            max_queued_elements: 1 << 26,
            max_queue_delay: Duration::ZERO,
        }
    }
}

impl BatcherOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// `InvalidOptions` naming the first one out of range.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("max_batch_rows", self.max_batch_rows, MAX_OPTION),
            // A merged input is one tensor, so it is bound by a tensor's limit.
            ("max_batch_elements", self.max_batch_elements, MAX_ELEMENTS),
            ("max_queued_requests", self.max_queued_requests, MAX_OPTION),
            ("max_queued_elements", self.max_queued_elements, MAX_OPTION),
        ];
        for (what, value, most) in counts {
            if !(1..=most).contains(&value) {
                return Err(Error::InvalidOptions {
                    detail: format!("{what} is {value}: choose 1 to {most}"),
                });
            }
        }
        if self.max_queue_delay > MAX_QUEUE_DELAY {
            return Err(Error::InvalidOptions {
                detail: format!(
                    "max_queue_delay is {:?}: choose at most {MAX_QUEUE_DELAY:?}",
                    self.max_queue_delay
                ),
            });
        }
        Ok(())
    }
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Job {
    /// Arranged by the signature.
    pub inputs: Vec<Tensor>,
    /// Its rows, where the model's requests can be merged.
    pub rows: Option<usize>,
    pub elements: usize,
    pub deadline: Option<Instant>,
    pub enqueued: Instant,
    pub reply: oneshot::Sender<Result<Prediction>>,
}

impl Job {
    fn fits_with(&self, other: &Self, facts: &ModelFacts) -> bool {
        facts.rows_are_fixed
            || self
                .inputs
                .iter()
                .zip(&other.inputs)
                .all(|(one, other)| one.shape().get(1..) == other.shape().get(1..))
    }
}

/// Requests that run together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub jobs: Vec<Job>,
    rows: usize,
    elements: usize,
}

/// The queue: filled by callers, emptied by workers.
#[derive(Debug)]
pub(crate) struct Queue {
    options: BatcherOptions,
    state: Mutex<State>,
    /// Wakes a worker without work.
    work: Condvar,
    /// Wakes a worker that holds a batch for more to join.
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    elements: usize,
    idle_workers: usize,
    holding_workers: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(options: BatcherOptions) -> Self {
        Self {
            options,
            state: Mutex::default(),
            work: Condvar::new(),
            more: Condvar::new(),
        }
    }

    /// Adds a request.
    ///
    /// # Errors
    /// `Closed`, or `QueueFull` at once.
    pub(crate) fn push(&self, job: Job) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        if state.jobs.len() >= self.options.max_queued_requests {
            return Err(Error::QueueFull {
                limit: format!("{} requests", self.options.max_queued_requests),
            });
        }
        // An empty queue takes any request, or one above the limit could never run.
        if !state.jobs.is_empty() && state.elements.saturating_add(job.elements) > self.options.max_queued_elements {
            return Err(Error::QueueFull {
                limit: format!("{} elements", self.options.max_queued_elements),
            });
        }
        state.elements += job.elements;
        state.jobs.push_back(job);
        let (idle, holding) = (state.idle_workers > 0, state.holding_workers > 0);
        drop(state);
        if holding {
            self.more.notify_all();
        } else if idle {
            self.work.notify_one();
        }
        Ok(())
    }

    /// The requests that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Takes no more requests; workers finish what waits.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
        self.more.notify_all();
    }

    /// The next batch: the first request that waits, and those that can be merged with it, oldest first. Waits for
    /// one; `None` when the queue is closed and empty.
    pub(crate) fn next_batch(&self, facts: &ModelFacts, merge: bool, counters: &Counters) -> Option<Batch> {
        let mut state = self.state.lock();
        let first = loop {
            if let Some(job) = state.pop_live(counters) {
                break job;
            }
            if state.closed {
                return None;
            }
            state.idle_workers += 1;
            self.work.wait(&mut state);
            state.idle_workers -= 1;
        };
        let mut batch = Batch {
            rows: first.rows.unwrap_or(usize::MAX),
            elements: first.elements,
            jobs: vec![first],
        };
        // A request without rows has nothing to merge by.
        if merge && batch.rows > 0 {
            state.gather(&mut batch, facts, &self.options, counters);
            self.hold(&mut state, &mut batch, facts, counters);
        }
        let left_over = !state.jobs.is_empty() && state.idle_workers > 0;
        drop(state);
        if left_over {
            self.work.notify_one();
        }
        Some(batch)
    }

    /// Waits for more to join, as long as the options allow.
    fn hold(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        batch: &mut Batch,
        facts: &ModelFacts,
        counters: &Counters,
    ) {
        if self.options.max_queue_delay.is_zero() {
            return;
        }
        while batch.rows < self.options.max_batch_rows && !state.closed {
            let Some(until) = batch.hold_until(self.options.max_queue_delay) else {
                return;
            };
            state.holding_workers += 1;
            let timed_out = self.more.wait_until(state, until).timed_out();
            state.holding_workers -= 1;
            state.gather(batch, facts, &self.options, counters);
            // What cannot join this batch must not wait for it.
            if !state.jobs.is_empty() && state.idle_workers > 0 {
                self.work.notify_one();
            }
            if timed_out {
                return;
            }
        }
    }
}

impl Batch {
    /// Until when the batch may be held: its oldest request's delay, cut short by the nearest deadline.
    fn hold_until(&self, delay: Duration) -> Option<Instant> {
        let oldest = self.jobs.iter().map(|job| job.enqueued).min()?;
        self.jobs
            .iter()
            .filter_map(|job| job.deadline)
            .chain([oldest + delay])
            .min()
    }
}

impl State {
    /// The oldest request that somebody still waits for and that is still in time. The others are answered here, so
    /// that they cost no run.
    fn pop_live(&mut self, counters: &Counters) -> Option<Job> {
        while let Some(job) = self.jobs.pop_front() {
            self.elements -= job.elements;
            if let Some(job) = live(job, counters) {
                return Some(job);
            }
        }
        None
    }

    fn gather(&mut self, batch: &mut Batch, facts: &ModelFacts, options: &BatcherOptions, counters: &Counters) {
        let mut index = 0;
        while batch.rows < options.max_batch_rows {
            let (Some(job), Some(first)) = (self.jobs.get(index), batch.jobs.first()) else {
                return;
            };
            let rows = job.rows.unwrap_or(0);
            let joins = rows > 0
                && batch.rows + rows <= options.max_batch_rows
                && batch.elements.saturating_add(job.elements) <= options.max_batch_elements
                && job.fits_with(first, facts);
            if !joins {
                index += 1;
                continue;
            }
            let Some(job) = self.jobs.remove(index) else { return };
            self.elements -= job.elements;
            if let Some(job) = live(job, counters) {
                batch.rows += rows;
                batch.elements += job.elements;
                batch.jobs.push(job);
            }
        }
    }
}

/// The job, unless its deadline has passed or its caller is gone.
fn live(job: Job, counters: &Counters) -> Option<Job> {
    if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        counters.expired.add(1);
        // The caller may be gone as well; either way nobody is owed more.
        let _ = job.reply.send(Err(Error::DeadlineExceeded));
        return None;
    }
    if job.reply.is_closed() {
        counters.cancelled.add(1);
        return None;
    }
    Some(job)
}
