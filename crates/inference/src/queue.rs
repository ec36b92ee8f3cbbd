//! The bounded queue before a model's workers, and the batches that they take from it.
//!
//! Requests wait by priority, and within one by turns: each caller's requests are as far apart as if it were served alone
//! at an even share (start-time fair queueing, Goyal et al. 1996), so that who sends many waits for them, and who sends few
//! does not.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use ahash::RandomState;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    backend::Backend,
    batch::{Batch, Job},
    best_size::BestSize,
    cost::Cost,
    error::{Error, Result},
    model::ModelFacts,
    options::{BatcherOptions, Priority},
    ragged::Ragged,
    statistics::Counters,
};

/// When workers have had no rest for this long, there are too few of them.
const GROW_AFTER: Duration = Duration::from_millis(100);

/// When a worker has had nothing to do for this long, there are too many of them.
const RETIRE_AFTER: Duration = Duration::from_mins(1);

/// Runs that take at most this long are done by one of those who ask: handing them to a worker and back would take as long.
const LITTLE: Duration = Duration::from_micros(100);

/// When nobody brought such a request for this long, others are not waited for.
const ALONE_AFTER: Duration = Duration::from_micros(100);

/// For how long requests are left to the one who leads. One who does not come back within it is stuck behind something else.
const LEADER_PATIENCE: Duration = Duration::from_millis(2);

/// Above this many callers those that are long through are forgotten.
const MAX_CALLERS: usize = 4096;

/// A request in its place.
#[derive(Debug)]
struct Queued {
    turn: Turn,
    job: Job,
}

/// When a request's turn comes, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    priority: Priority,
    /// When it would be through if its caller had an even share, in rows.
    tag: u64,
}

/// What a worker gets.
pub(crate) enum Next {
    /// Work.
    Batch(Batch),
    /// Work, and there is too much of it: another worker is wanted.
    BatchAndWorker(Batch),
    /// Nothing, for good: the queue is closed and empty, or there are more workers than work.
    End,
}

/// What is left to do for whoever brought a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// To run it at once: nobody else brings any.
    Run,
    /// To run it, with those that others bring within moments.
    Lead,
    /// Nothing: somebody leads, and will have run it within moments.
    Follow,
    /// Nothing: a worker runs it.
    Wait,
}

/// What one who leads gets.
pub(crate) enum Led {
    /// Requests, and what runs them.
    Batch(Batch, Box<dyn Backend>),
    /// Nothing yet: others run the model.
    Busy,
    /// Nothing: it is done, or too much by now, and a worker does it.
    Nothing,
}

/// A batch that ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub work: usize,
    pub took: Duration,
}

/// The queue: filled by callers, emptied by workers.
pub(crate) struct Queue {
    options: BatcherOptions,
    ragged: Ragged,
    state: Mutex<State>,
    /// Wakes a worker without work.
    work: Condvar,
    /// Wakes a worker that holds a batch for more to join.
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// What runs the model, of workers without work.
    parked: Vec<Box<dyn Backend>>,
    /// By their turns.
    jobs: VecDeque<Queued>,
    elements: usize,
    work: usize,
    /// The tag of the last request that left, and the last tag of each caller.
    now: u64,
    callers: HashMap<u64, u64, RandomState>,
    cost: Cost,
    best_size: BestSize,
    workers: usize,
    most_workers: usize,
    idle_workers: usize,
    holding_workers: usize,
    /// Since when somebody leads: it runs what waits, once others have brought theirs.
    leader: Option<Instant>,
    /// When somebody began to do so last.
    led: Option<Instant>,
    /// Since when no worker had a rest.
    busy_since: Option<Instant>,
    /// Whether another worker is on its way.
    growing: bool,
    closed: bool,
}

impl Queue {
    /// A queue before so many workers, which may become `most_workers`.
    pub(crate) fn new(options: BatcherOptions, ragged: Ragged, workers: usize, most_workers: usize) -> Self {
        Self {
            options,
            ragged,
            state: Mutex::new(State {
                workers,
                most_workers,
                ..State::default()
            }),
            work: Condvar::new(),
            more: Condvar::new(),
        }
    }

    pub(crate) const fn options(&self) -> &BatcherOptions {
        &self.options
    }

    pub(crate) const fn ragged(&self) -> &Ragged {
        &self.ragged
    }

    /// Adds a request. Where there is no room, the one whose turn is last has to go: this one, or one that waits already. What is
    /// left to do for whoever adds it, if it may lead.
    ///
    /// # Errors
    /// `Closed`; at once `QueueFull`, or `Overloaded` if it would wait for too long.
    pub(crate) fn push(&self, job: Job, counters: &Counters, may_lead: bool) -> Result<Part> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let now = job.enqueued;
        let turn = state.turn_of(&job);
        let place = state.jobs.partition_point(|queued| queued.turn <= turn);
        state.check_wait(&job, place, &self.options)?;
        state.make_room(&job, place, &self.options, counters)?;
        state.callers.insert(job.terms.caller, turn.tag);
        state.elements += job.elements;
        state.work += job.work();
        state.jobs.insert(place, Queued { turn, job });
        if may_lead && let Some(part) = state.part(now, &self.options) {
            return Ok(part);
        }
        let (idle, holding) = (state.idle_workers > 0, state.holding_workers > 0);
        drop(state);
        if holding {
            self.more.notify_all();
        } else if idle {
            self.work.notify_one();
        }
        Ok(Part::Wait)
    }

    /// The requests that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// How long a request that comes now would wait, by what the runs before it took; zero where nothing is known.
    pub(crate) fn expected_wait(&self) -> Duration {
        let state = self.state.lock();
        state.expected_wait(state.work, &self.options)
    }

    /// Takes no more requests; workers finish what waits.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
        self.more.notify_all();
    }

    /// The next batch: the request whose turn it is, and those that can be merged with it. Waits for one. `ran` is what
    /// the worker did before. `backend` is the worker's, which others may use while it waits; it has one whenever it
    /// gets a batch.
    pub(crate) fn next_batch(
        &self,
        facts: &ModelFacts,
        merge: bool,
        counters: &Counters,
        ran: Option<Ran>,
        backend: &mut Option<Box<dyn Backend>>,
    ) -> Next {
        let mut state = self.state.lock();
        state.observe(ran, &self.options);
        let first = loop {
            // One that somebody else uses for a moment is waited for.
            if backend.is_none() {
                *backend = state.parked.pop();
            }
            if backend.is_some()
                && let Some(job) = state.pop_live(Instant::now(), counters)
            {
                break job;
            }
            let is_over = state.closed && state.jobs.is_empty();
            if is_over || !self.rest(&mut state, backend) {
                state.workers -= 1;
                return Next::End;
            }
        };
        // A request without rows has nothing to merge by.
        let is_mergeable = merge && first.rows.is_some_and(|rows| rows > 0);
        let mut batch = Batch::of(first);
        if is_mergeable {
            let waiting = batch.rows + state.work;
            let most_rows = if self.options.max_queue_delay.is_zero() {
                state.best_size.next(waiting, self.options.max_batch_rows)
            } else {
                // Whoever lets batches wait until they are full has said which size is best.
                self.options.max_batch_rows
            };
            state.gather(&mut batch, most_rows, facts, self, counters);
            self.hold(&mut state, &mut batch, most_rows, facts, counters);
        }
        let grow = state.grow();
        let left_over = !state.jobs.is_empty() && state.idle_workers > 0;
        drop(state);
        if left_over {
            self.work.notify_one();
        }
        if grow {
            Next::BatchAndWorker(batch)
        } else {
            Next::Batch(batch)
        }
    }

    /// Waits for work. False if this worker has waited for so long that it is one too many.
    fn rest(&self, state: &mut MutexGuard<'_, State>, backend: &mut Option<Box<dyn Backend>>) -> bool {
        state.busy_since = None;
        state.parked.extend(backend.take());
        state.idle_workers += 1;
        let timed_out = if state.workers > 1 {
            self.work.wait_for(state, RETIRE_AFTER).timed_out()
        } else {
            self.work.wait(state);
            false
        };
        state.idle_workers -= 1;
        let is_too_many = timed_out && state.workers > 1 && state.jobs.is_empty();
        if is_too_many {
            // One backend goes with the worker.
            *backend = state.parked.pop();
        }
        !(is_too_many && backend.is_some())
    }

    /// The next batch for the one who leads, with what runs it; it has to be given back. Whoever comes after this leads anew.
    pub(crate) fn take_led(&self, facts: &ModelFacts, merge: bool, counters: &Counters) -> Led {
        let mut state = self.state.lock();
        let Some(backend) = state.parked.pop() else {
            return Led::Busy;
        };
        state.leader = None;
        let first = if state.is_little(&self.options) {
            state.pop_live(Instant::now(), counters)
        } else {
            None
        };
        let Some(first) = first else {
            state.parked.push(backend);
            self.wake_for_rest(&state);
            return Led::Nothing;
        };
        let is_mergeable = merge && first.rows.is_some_and(|rows| rows > 0);
        let mut batch = Batch::of(first);
        if is_mergeable {
            // What is little has no size that is too large, and what were left over would need a worker.
            state.gather(&mut batch, self.options.max_batch_rows, facts, self, counters);
        }
        Led::Batch(batch, backend)
    }

    /// The one who leads does so no more.
    pub(crate) fn resign(&self) {
        let mut state = self.state.lock();
        state.leader = None;
        self.wake_for_rest(&state);
    }

    /// Wakes a worker where requests wait and nobody leads.
    fn wake_for_rest(&self, state: &State) {
        if state.closed {
            // Each of them ends.
            self.work.notify_all();
        } else if state.idle_workers > 0 && state.leader.is_none() && !state.jobs.is_empty() {
            self.work.notify_one();
        }
    }

    /// Gives back what was borrowed, with what it did.
    pub(crate) fn give_back(&self, backend: Box<dyn Backend>, ran: Option<Ran>) {
        let mut state = self.state.lock();
        state.observe(ran, &self.options);
        state.parked.push(backend);
        self.wake_for_rest(&state);
    }

    /// The worker that was wanted is there, or there is none to be had: then none is asked for any more.
    pub(crate) fn grown(&self, worked: bool) {
        let mut state = self.state.lock();
        state.growing = false;
        if worked {
            state.workers += 1;
        } else {
            state.most_workers = state.workers;
        }
    }

    /// Waits for more to join, as long as the options allow.
    fn hold(
        &self,
        state: &mut MutexGuard<'_, State>,
        batch: &mut Batch,
        most_rows: usize,
        facts: &ModelFacts,
        counters: &Counters,
    ) {
        if self.options.max_queue_delay.is_zero() {
            return;
        }
        while batch.rows < most_rows && !state.closed {
            let Some(until) = batch.hold_until(self.options.max_queue_delay) else {
                return;
            };
            state.holding_workers += 1;
            let timed_out = self.more.wait_until(state, until).timed_out();
            state.holding_workers -= 1;
            state.gather(batch, most_rows, facts, self, counters);
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

impl State {
    fn turn_of(&mut self, job: &Job) -> Turn {
        if self.callers.len() >= MAX_CALLERS {
            let now = self.now;
            self.callers.retain(|_, tag| *tag > now);
        }
        let last = self.callers.get(&job.terms.caller).copied().unwrap_or(0);
        Turn {
            priority: job.terms.priority,
            tag: last.max(self.now).saturating_add(job.work() as u64),
        }
    }

    /// Learns from a run.
    fn observe(&mut self, ran: Option<Ran>, options: &BatcherOptions) {
        if let Some(ran) = ran {
            self.cost.observe(ran.work, ran.took);
            self.best_size.observe(ran.work, ran.took, options.max_batch_rows);
        }
    }

    /// Whether all that waits is done within moments.
    fn is_little(&self, options: &BatcherOptions) -> bool {
        let takes = self
            .cost
            .estimate(self.work, self.best_size.rows(options.max_batch_rows));
        takes.is_some_and(|takes| takes <= LITTLE)
    }

    /// What is left to do for whoever brought the newest request; none: a worker does it all.
    fn part(&mut self, now: Instant, options: &BatcherOptions) -> Option<Part> {
        if self.holding_workers > 0 || !self.is_little(options) {
            return None;
        }
        if let Some(since) = self.leader {
            let is_there = now.saturating_duration_since(since) < LEADER_PATIENCE;
            return is_there.then_some(Part::Follow);
        }
        self.leader = Some(now);
        let led = self.led.replace(now);
        let is_alone = led.is_none_or(|led| now.saturating_duration_since(led) >= ALONE_AFTER);
        Some(if is_alone { Part::Run } else { Part::Lead })
    }

    /// How long so much work takes all workers.
    fn expected_wait(&self, work: usize, options: &BatcherOptions) -> Duration {
        let rows = self.best_size.rows(options.max_batch_rows);
        let alone = self.cost.estimate(work, rows).unwrap_or_default();
        alone / u32::try_from(self.workers).unwrap_or(u32::MAX).max(1)
    }

    /// Refuses what would wait for too long behind those before its place.
    fn check_wait(&self, job: &Job, place: usize, options: &BatcherOptions) -> Result<()> {
        let before = if place == self.jobs.len() {
            self.work
        } else {
            self.jobs.iter().take(place).map(|queued| queued.job.work()).sum()
        };
        let left = job.terms.deadline.map_or(Duration::MAX, |deadline| {
            deadline.saturating_duration_since(job.enqueued)
        });
        let allowed = options.max_queue_time.min(left);
        let expected = self.expected_wait(before, options);
        if expected > allowed {
            return Err(Error::Overloaded { expected, allowed });
        }
        Ok(())
    }

    /// Makes room for a request, at the cost of those whose turns come after its place.
    fn make_room(&mut self, job: &Job, place: usize, options: &BatcherOptions, counters: &Counters) -> Result<()> {
        let fits = |jobs: usize, elements: usize| {
            jobs < options.max_queued_requests
                // An empty queue takes any request, or one above the limit could never run.
                && (jobs == 0 || elements.saturating_add(job.elements) <= options.max_queued_elements)
        };
        let (mut jobs, mut elements) = (self.jobs.len(), self.elements);
        for queued in self.jobs.iter().skip(place).rev() {
            if fits(jobs, elements) {
                break;
            }
            jobs -= 1;
            elements -= queued.job.elements;
        }
        if !fits(jobs, elements) {
            return Err(full(options));
        }
        while self.jobs.len() > jobs {
            let Some(last) = self.jobs.pop_back() else { break };
            self.took(&last.job);
            counters.rejected.add(1);
            // A caller that is gone needs no answer.
            let _ = last.job.reply.send(Err(full(options)));
        }
        Ok(())
    }

    fn took(&mut self, job: &Job) {
        self.elements -= job.elements;
        self.work -= job.work();
    }

    /// The request whose turn it is, of those that somebody still waits for and that are still in time. The others are
    /// answered here, so that they cost no run.
    fn pop_live(&mut self, now: Instant, counters: &Counters) -> Option<Job> {
        while let Some(queued) = self.jobs.pop_front() {
            self.took(&queued.job);
            if let Some(job) = live(queued.job, now, counters) {
                self.now = self.now.max(queued.turn.tag);
                return Some(job);
            }
        }
        None
    }

    fn gather(&mut self, batch: &mut Batch, most_rows: usize, facts: &ModelFacts, queue: &Queue, counters: &Counters) {
        let now = Instant::now();
        let mut index = 0;
        while batch.rows < most_rows {
            let Some(queued) = self.jobs.get(index) else { return };
            if !batch.takes(&queued.job, most_rows, facts, &queue.options, &queue.ragged) {
                index += 1;
                continue;
            }
            let Some(queued) = self.jobs.remove(index) else { return };
            self.took(&queued.job);
            if let Some(job) = live(queued.job, now, counters) {
                self.now = self.now.max(queued.turn.tag);
                batch.add(job);
            }
        }
    }

    /// Whether another worker is wanted now.
    fn grow(&mut self) -> bool {
        if !self.parked.is_empty() || self.growing || self.closed || self.workers >= self.most_workers {
            self.busy_since = None;
            return false;
        }
        let now = Instant::now();
        let since = *self.busy_since.get_or_insert(now);
        self.growing = now.saturating_duration_since(since) >= GROW_AFTER;
        self.growing
    }
}

fn full(options: &BatcherOptions) -> Error {
    Error::QueueFull {
        limit: format!(
            "{} requests, {} elements",
            options.max_queued_requests, options.max_queued_elements
        ),
    }
}

/// The job, unless its deadline has passed or its caller is gone.
fn live(job: Job, now: Instant, counters: &Counters) -> Option<Job> {
    if job.terms.deadline.is_some_and(|deadline| deadline <= now) {
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
