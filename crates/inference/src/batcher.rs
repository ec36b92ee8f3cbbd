//! Worker threads behind a queue: concurrent requests in, each caller's own rows out.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::{
    sync::{
        oneshot::{self, error::TryRecvError},
        watch,
    },
    task::{coop::unconstrained, yield_now},
    time::timeout_at,
};

use crate::{
    backend::{Backend, Run, Source},
    batch::Job,
    error::{Error, Result},
    model::{InputShapes, Model, ModelFacts, Parts, warm},
    options::{BatcherOptions, Terms},
    probe::Batching,
    queue::{Led, Next, Part, Queue, Ran},
    ragged::Ragged,
    signature::Signature,
    statistics::{Counters, Statistics},
    tensor::Tensor,
    threads,
};

/// How often one who leads looks whether the model is free.
const LOOKS: u32 = 4;

/// What one request got.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The outputs in the signature's order, with this request's rows only.
    pub outputs: Vec<Tensor>,
    /// How long it waited for a worker.
    pub queue_time: Duration,
    /// How long the run took that it was part of.
    pub compute_time: Duration,
    /// The rows in that run, its own and others'; its own where the model's requests are not merged.
    pub batch_rows: usize,
}

/// A model at work: a bounded queue, and a thread for each of the model's backends. A worker that becomes free takes
/// what waits, as one batch where rows can be merged, so batches grow with the load and an idle model adds no delay.
/// While workers have no rest another one is added, up to as many as the model may have; one that has nothing to do for a
/// minute ends.
pub struct Predictor {
    shared: Arc<Shared>,
}

struct Shared {
    facts: Arc<ModelFacts>,
    queue: Queue,
    /// Cleared when a merged run could not be taken apart, which the trial at load did not show.
    merge: AtomicBool,
    counters: Arc<Counters>,
    workers: watch::Sender<usize>,
    /// Where further backends come from, and what they are warmed with.
    source: Arc<dyn Source>,
    recorded: Vec<InputShapes>,
}

impl fmt::Debug for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Predictor")
            .field("facts", &self.shared.facts)
            .field("workers", &self.workers())
            .finish_non_exhaustive()
    }
}

impl Predictor {
    /// Starts a worker thread for each of the model's backends.
    ///
    /// # Errors
    /// `InvalidOptions`, or `Thread` if the system refuses a thread.
    pub fn start(model: Model, options: BatcherOptions) -> Result<Self> {
        Self::start_counting(model, options, Arc::default())
    }

    /// As [`Predictor::start`], counting on where another one stopped.
    ///
    /// # Errors
    /// As [`Predictor::start`].
    pub fn start_counting(model: Model, options: BatcherOptions, counters: Arc<Counters>) -> Result<Self> {
        options.validate()?;
        let Parts {
            facts,
            backends,
            source,
            most,
            recorded,
        } = model.into_parts();
        let ragged = Ragged::new(&facts.signature, &options.ragged)?;
        let predictor = Self {
            shared: Arc::new(Shared {
                merge: AtomicBool::new(facts.batching == Batching::Rows),
                facts,
                queue: Queue::new(options, ragged, backends.len(), most),
                counters,
                workers: watch::Sender::new(0),
                source,
                recorded,
            }),
        };
        for backend in backends {
            // On failure the predictor is dropped, which ends the workers that did start.
            predictor.shared.employ(move |_| Some(backend))?;
        }
        Ok(predictor)
    }

    /// What the model takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.shared.facts.signature
    }

    /// Whether requests are merged, and if not, why.
    pub fn batching(&self) -> Batching {
        match &self.shared.facts.batching {
            Batching::Rows if !self.shared.merge.load(Ordering::Relaxed) => {
                Batching::Never("the outputs of a merged run were not by row".to_owned())
            }
            batching => batching.clone(),
        }
    }

    /// How requests are queued and merged.
    pub fn options(&self) -> &BatcherOptions {
        self.shared.queue.options()
    }

    /// The workers, each with a backend of its own.
    pub fn workers(&self) -> usize {
        *self.shared.workers.borrow()
    }

    /// The requests that wait for a worker.
    pub fn queued(&self) -> usize {
        self.shared.queue.len()
    }

    /// How long a request that comes now would wait, by what the runs before it took; zero where nothing waits or too
    /// little is known.
    pub fn expected_wait(&self) -> Duration {
        self.shared.queue.expected_wait()
    }

    /// About how much memory the model takes, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.shared.source.memory_bytes().saturating_mul(self.workers() as u64)
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.snapshot()
    }

    /// Predicts on the usual terms.
    ///
    /// # Errors
    /// As [`Predictor::predict_on`].
    pub async fn predict(&self, inputs: Vec<Tensor>, deadline: Option<Instant>) -> Result<Prediction> {
        let terms = Terms {
            deadline,
            ..Terms::default()
        };
        self.predict_on(terms, inputs).await
    }

    /// Predicts. Dropping the future withdraws the request; it costs no run unless one has begun. With a deadline this
    /// must be called within a tokio runtime that has its timer enabled.
    ///
    /// # Errors
    /// `InvalidInputs` or `InvalidTensor` if the inputs do not fit the signature; `QueueFull`, at once or when requests
    /// come whose turn is before this one's; `Overloaded` at once if it would wait for too long; `DeadlineExceeded` on
    /// time, `Closed` after [`Predictor::close`], `RunFailed` if the model fails on these inputs (never for another
    /// request's), `InvalidOutput` if what came out cannot be carried.
    pub async fn predict_on(&self, terms: Terms, inputs: Vec<Tensor>) -> Result<Prediction> {
        let shared = &self.shared;
        let (inputs, rows) = shared.facts.accept(inputs)?;
        let (mut reply, part) = self.submit(inputs, rows, terms, shared.may_lead(rows))?;
        match part {
            Part::Run => Leader(Some(shared)).lead(false).await,
            Part::Lead => Leader(Some(shared)).lead(true).await,
            Part::Follow => yield_now().await,
            Part::Wait => {}
        }
        // Mostly it is there by now, and a timer would cost more than what led to it.
        let reply = match (reply.try_recv(), terms.deadline) {
            (Ok(reply), _) => return reply,
            (Err(TryRecvError::Closed), _) => return Err(worker_gone()),
            (Err(TryRecvError::Empty), None) => reply.await,
            (Err(TryRecvError::Empty), Some(deadline)) => timeout_at(deadline.into(), reply)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
        };
        reply.unwrap_or_else(|_| Err(worker_gone()))
    }

    /// Predicts, blocking this thread until the answer or the deadline.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    pub fn predict_blocking(&self, inputs: Vec<Tensor>, deadline: Option<Instant>) -> Result<Prediction> {
        let terms = Terms {
            deadline,
            ..Terms::default()
        };
        let (inputs, rows) = self.shared.facts.accept(inputs)?;
        let (reply, _) = self.submit(inputs, rows, terms, false)?;
        block_on(reply, deadline)
            .ok_or(Error::DeadlineExceeded)?
            .unwrap_or_else(|_| Err(worker_gone()))
    }

    /// Takes no more requests. Those that wait are still answered; then the workers end and the sessions are freed.
    pub fn close(&self) {
        self.shared.queue.close();
    }

    /// Waits until the workers have ended, which they do after [`Predictor::close`].
    pub async fn drained(&self) {
        // The sender lives in `shared`, so this waits for the count alone.
        let _ = self.shared.workers.subscribe().wait_for(|&workers| workers == 0).await;
    }

    /// As [`Predictor::drained`], blocking this thread.
    pub fn drained_blocking(&self) {
        block_on(self.drained(), None);
    }

    /// Enqueues inputs that were accepted.
    fn submit(
        &self,
        inputs: Vec<Tensor>,
        rows: Option<usize>,
        terms: Terms,
        may_lead: bool,
    ) -> Result<(oneshot::Receiver<Result<Prediction>>, Part)> {
        let shared = &self.shared;
        let enqueued = Instant::now();
        if terms.deadline.is_some_and(|deadline| deadline <= enqueued) {
            shared.counters.expired.add(1);
            return Err(Error::DeadlineExceeded);
        }
        let (reply, receiver) = oneshot::channel();
        let ragged = shared.queue.ragged();
        let job = Job {
            elements: inputs.iter().map(Tensor::elements).sum(),
            length: if ragged.is_empty() {
                None
            } else {
                ragged.length(&inputs)
            },
            inputs,
            rows,
            terms,
            enqueued,
            reply,
        };
        let part = shared
            .queue
            .push(job, &shared.counters, may_lead)
            .inspect_err(|error| {
                if matches!(error, Error::QueueFull { .. } | Error::Overloaded { .. }) {
                    shared.counters.rejected.add(1);
                }
            })?;
        Ok((receiver, part))
    }
}

impl Drop for Predictor {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Whether whoever brings such a request may run it, where that is little work. Of other models the work is not known by the
    /// rows, or they wait for others, or a worker shall wait for more to join.
    fn may_lead(&self, rows: Option<usize>) -> bool {
        rows.is_some_and(|rows| rows > 0)
            && self.facts.rows_are_fixed
            && !self.source.waits()
            && self.queue.options().max_queue_delay.is_zero()
    }

    /// Starts a worker with a backend, which is made on the worker's own thread.
    fn employ(
        self: &Arc<Self>,
        backend: impl FnOnce(&Self) -> Option<Box<dyn Backend>> + Send + 'static,
    ) -> Result<()> {
        self.workers.send_modify(|workers| *workers += 1);
        let alive = Alive(Arc::clone(self));
        let work = move || {
            if let Some(backend) = backend(&alive.0) {
                let backend = Some(backend);
                Worker { backend, alive }.work();
            }
        };
        threads::run(work).map_err(|source| Error::Thread { source })
    }

    /// One more worker, if there can be.
    fn grow(self: &Arc<Self>) {
        let open = |shared: &Self| {
            let opened = shared.source.open().inspect(|_| shared.queue.grown(true));
            let mut backend = opened
                .inspect_err(|error| {
                    tracing::warn!(%error, "the model gets no further worker");
                    shared.queue.grown(false);
                })
                .ok()?;
            // Zeros may be no valid input; real ones will tell.
            let _ = warm(&mut *backend, &shared.facts, &shared.recorded);
            Some(backend)
        };
        if let Err(error) = self.employ(open) {
            tracing::warn!(%error, "the model gets no further worker");
            self.queue.grown(false);
        }
    }
}

/// One of those who ask, who runs what waits for all of them.
struct Leader<'a>(Option<&'a Shared>);

impl Leader<'_> {
    /// Lets others bring their requests, as far as they are about to, and runs them all. It is done on the thread of whoever polls
    /// this, because it is done within moments.
    async fn lead(mut self, with_others: bool) {
        let Some(shared) = self.0 else { return };
        for look in 0..LOOKS {
            if with_others || look > 0 {
                yield_now().await;
            }
            let merge = shared.merge.load(Ordering::Relaxed);
            match shared.queue.take_led(&shared.facts, merge, &shared.counters) {
                Led::Busy => {}
                Led::Nothing => {
                    self.0 = None;
                    return;
                }
                Led::Batch(batch, mut backend) => {
                    self.0 = None;
                    let ran = answer(shared, &mut *backend, batch.jobs);
                    shared.queue.give_back(backend, ran);
                    return;
                }
            }
        }
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // It was busy for too long, or who asked is gone: a worker does it.
        if let Some(shared) = self.0 {
            shared.queue.resign();
        }
    }
}

/// A thread's share: one backend.
struct Worker {
    // Before `alive`, so that the backend is freed when the worker is counted out. None: others use it while this one waits.
    backend: Option<Box<dyn Backend>>,
    alive: Alive,
}

/// Counts a worker out when it ends.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.workers.send_modify(|workers| *workers -= 1);
    }
}

impl Worker {
    fn work(mut self) {
        let shared = Arc::clone(&self.alive.0);
        let mut ran = None;
        loop {
            let merge = shared.merge.load(Ordering::Relaxed);
            let (queue, facts, counters) = (&shared.queue, &shared.facts, &shared.counters);
            let batch = match queue.next_batch(facts, merge, counters, ran.take(), &mut self.backend) {
                Next::Batch(batch) => batch,
                Next::BatchAndWorker(batch) => {
                    shared.grow();
                    batch
                }
                Next::End => {
                    if let Some(backend) = self.backend.take() {
                        shared.source.close(backend);
                    }
                    return;
                }
            };
            // A worker has one whenever it gets a batch.
            let Some(backend) = &mut self.backend else { return };
            ran = answer(&shared, &mut **backend, batch.jobs);
        }
    }
}

/// Runs the jobs together. If that fails, halves of them, down to single ones: a request that the model cannot
/// take fails alone, and so does one that what runs the model does not survive. Tells what the whole run took, if it did not
/// fail.
fn answer(shared: &Shared, backend: &mut dyn Backend, jobs: Vec<Job>) -> Option<Ran> {
    let mut ran = None;
    let mut batches = vec![jobs];
    while let Some(mut jobs) = batches.pop() {
        let started = Instant::now();
        match run(shared, backend, &jobs) {
            Ok(run) => {
                let work = deliver(shared, jobs, run, started);
                ran = batches.is_empty().then(|| Ran {
                    work,
                    took: started.elapsed(),
                });
            }
            Err(Error::BackendLost { .. }) if jobs.len() > 1 => {
                // One by one, because each time that it is lost costs all who wait.
                batches.extend(jobs.into_iter().rev().map(|job| vec![job]));
            }
            Err(error) if error.is_of_backend() => {
                if matches!(error, Error::DeadlineExceeded) && batches.is_empty() {
                    // It takes at least so long, which those who come next are told.
                    ran = Some(Ran {
                        work: work_of(&jobs),
                        took: started.elapsed(),
                    });
                }
                for job in jobs.into_iter().chain(batches.drain(..).flatten()) {
                    fail(shared, job, error.again());
                }
            }
            Err(error) if jobs.len() > 1 => {
                if matches!(error, Error::NotSplittable { .. }) {
                    tracing::warn!(%error, "requests to this model run one by one from now on");
                    shared.merge.store(false, Ordering::Relaxed);
                }
                let second = jobs.split_off(jobs.len() / 2);
                batches.push(second);
                batches.push(jobs);
            }
            Err(error) => {
                if let Some(job) = jobs.pop() {
                    fail(shared, job, error);
                }
            }
        }
    }
    ran
}

/// Runs the jobs together, filled up to the longest where they differ.
fn run(shared: &Shared, backend: &mut dyn Backend, jobs: &[Job]) -> Result<Run> {
    let signature = &shared.facts.signature;
    // The last of them to be of no use any more.
    let deadline = jobs
        .iter()
        .map(|job| job.terms.deadline)
        .max_by_key(|deadline| (deadline.is_none(), *deadline));
    let deadline = deadline.flatten();
    let longest = jobs.iter().filter_map(|job| job.length).max();
    let Some(longest) = longest.filter(|longest| jobs.iter().any(|job| job.length != Some(*longest))) else {
        let requests: Vec<&[Tensor]> = jobs.iter().map(|job| job.inputs.as_slice()).collect();
        return backend.run(signature, &requests, deadline);
    };
    let ragged = shared.queue.ragged();
    let started = Instant::now();
    let filled = jobs
        .iter()
        .map(|job| ragged.fill(&job.inputs, longest))
        .collect::<Result<Vec<_>>>()?;
    let filling = started.elapsed();
    let requests: Vec<&[Tensor]> = filled.iter().map(Vec::as_slice).collect();
    let mut run = backend.run(signature, &requests, deadline)?;
    let ended = Instant::now();
    for (outputs, job) in run.outputs.iter_mut().zip(jobs) {
        ragged.cut(outputs, longest, job.length.unwrap_or(longest))?;
    }
    run.times.input += filling;
    run.times.output += ended.elapsed();
    Ok(run)
}

fn rows_of(jobs: &[Job]) -> usize {
    let rows = |job: &Job| {
        job.rows
            .or_else(|| job.inputs.first().and_then(Tensor::rows))
            .unwrap_or(1)
    };
    jobs.iter().map(rows).sum()
}

/// How much work a run is: its rows, where they are what it takes time by.
fn work_of(jobs: &[Job]) -> usize {
    if jobs.iter().any(|job| job.rows.is_none()) {
        1
    } else {
        rows_of(jobs)
    }
}

/// Answers the jobs of a run; how much work it was.
fn deliver(shared: &Shared, jobs: Vec<Job>, run: Run, started: Instant) -> usize {
    let compute_time = run.times.total();
    let batch_rows = rows_of(&jobs);
    let work = work_of(&jobs);
    let counters = &shared.counters;
    counters.ran(jobs.len(), batch_rows, run.times);
    let queue_time = |job: &Job| started.saturating_duration_since(job.enqueued);
    counters.queue_time.add_time(jobs.iter().map(queue_time).sum());
    for (job, outputs) in jobs.into_iter().zip(run.outputs) {
        let queue_time = queue_time(&job);
        // A caller that is gone needs no answer.
        let _ = job.reply.send(Ok(Prediction {
            outputs,
            queue_time,
            compute_time,
            batch_rows,
        }));
    }
    work
}

fn fail(shared: &Shared, job: Job, error: Error) {
    shared.counters.failed.add(1);
    shared.counters.failed_time.add_time(job.enqueued.elapsed());
    // A caller that is gone needs no answer.
    let _ = job.reply.send(Err(error));
}

fn worker_gone() -> Error {
    Error::Broken {
        detail: "the worker ended without an answer".to_owned(),
    }
}

/// Waits for a future on this thread, until a deadline; `None` if that passes first. Unlike a runtime's own, this may
/// be called anywhere.
fn block_on<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match deadline {
            None => thread::park(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                thread::park_timeout(left);
            }
        }
    }
}
