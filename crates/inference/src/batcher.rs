//! Worker threads behind a queue: concurrent requests in, each caller's own rows out.

use std::{
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
    sync::{oneshot, watch},
    task::coop::unconstrained,
    time::timeout_at,
};

use crate::{
    error::{Error, Result},
    instance::{Instance, Run},
    model::{Model, ModelFacts},
    probe::Batching,
    queue::{BatcherOptions, Job, Queue},
    signature::Signature,
    statistics::{Counters, Statistics},
    tensor::Tensor,
};

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

/// A model at work: a bounded queue, and a thread for each of the model's sessions. A worker that becomes free takes
/// what waits, as one batch where rows can be merged, so batches grow with the load and an idle model adds no delay.
#[derive(Debug)]
pub struct Predictor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    facts: Arc<ModelFacts>,
    queue: Queue,
    /// Cleared when a merged run could not be taken apart, which the trial at load did not show.
    merge: AtomicBool,
    counters: Counters,
    workers: watch::Sender<usize>,
}

impl Predictor {
    /// Starts a worker thread for each of the model's sessions.
    ///
    /// # Errors
    /// `InvalidOptions`, or `Thread` if the system refuses a thread.
    pub fn start(model: Model, options: BatcherOptions) -> Result<Self> {
        options.validate()?;
        let (facts, instances) = model.into_parts();
        let predictor = Self {
            shared: Arc::new(Shared {
                merge: AtomicBool::new(facts.batching == Batching::Rows),
                facts,
                queue: Queue::new(options),
                counters: Counters::default(),
                workers: watch::Sender::new(instances.len()),
            }),
        };
        for (index, instance) in instances.into_iter().enumerate() {
            let worker = Worker {
                instance,
                alive: Alive(Arc::clone(&predictor.shared)),
            };
            // On failure the predictor is dropped, which ends the workers that did start.
            thread::Builder::new()
                .name(format!("predict-{index}"))
                .spawn(move || worker.work())
                .map_err(|source| Error::Thread { source })?;
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

    /// The requests that wait for a worker.
    pub fn queued(&self) -> usize {
        self.shared.queue.len()
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.snapshot()
    }

    /// Predicts. Dropping the future withdraws the request; it costs no run unless one has begun. With a deadline this
    /// must be called within a tokio runtime that has its timer enabled.
    ///
    /// # Errors
    /// `InvalidInputs` or `InvalidTensor` if the inputs do not fit the signature, `QueueFull` at once when it is,
    /// `DeadlineExceeded` on time, `Closed` after [`Predictor::close`], `RunFailed` if the model fails on these inputs
    /// (never for another request's), `InvalidOutput` if what came out cannot be carried.
    pub async fn predict(&self, inputs: Vec<Tensor>, deadline: Option<Instant>) -> Result<Prediction> {
        let reply = self.submit(inputs, deadline)?;
        let reply = match deadline {
            None => reply.await,
            Some(deadline) => timeout_at(deadline.into(), reply)
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
        let reply = self.submit(inputs, deadline)?;
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

    fn submit(&self, inputs: Vec<Tensor>, deadline: Option<Instant>) -> Result<oneshot::Receiver<Result<Prediction>>> {
        let (inputs, rows) = self.shared.facts.accept(inputs)?;
        let enqueued = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= enqueued) {
            self.shared.counters.expired.add(1);
            return Err(Error::DeadlineExceeded);
        }
        let (reply, receiver) = oneshot::channel();
        let job = Job {
            elements: inputs.iter().map(Tensor::elements).sum(),
            inputs,
            rows,
            deadline,
            enqueued,
            reply,
        };
        self.shared.queue.push(job).inspect_err(|error| {
            if matches!(error, Error::QueueFull { .. }) {
                self.shared.counters.rejected.add(1);
            }
        })?;
        Ok(receiver)
    }
}

impl Drop for Predictor {
    fn drop(&mut self) {
        self.close();
    }
}

/// A thread's share: one session.
struct Worker {
    // Before `alive`, so that the session is freed when the worker is counted out.
    instance: Instance,
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
        loop {
            let merge = shared.merge.load(Ordering::Relaxed);
            let Some(batch) = shared.queue.next_batch(&shared.facts, merge, &shared.counters) else {
                return;
            };
            self.answer(&shared, batch.jobs);
        }
    }

    /// Runs the jobs together. If that fails, halves of them, down to single ones: a request that the model cannot
    /// take fails alone.
    fn answer(&mut self, shared: &Shared, jobs: Vec<Job>) {
        let mut batches = vec![jobs];
        while let Some(mut jobs) = batches.pop() {
            let started = Instant::now();
            let requests: Vec<&[Tensor]> = jobs.iter().map(|job| job.inputs.as_slice()).collect();
            match self.instance.run(&shared.facts.signature, &requests) {
                Ok(run) => deliver(shared, jobs, run, started),
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
                    shared.counters.failed.add(1);
                    if let Some(job) = jobs.pop() {
                        // A caller that is gone needs no answer.
                        let _ = job.reply.send(Err(error));
                    }
                }
            }
        }
    }
}

fn deliver(shared: &Shared, jobs: Vec<Job>, run: Run, started: Instant) {
    let compute_time = run.total();
    let rows = |job: &Job| {
        job.rows
            .or_else(|| job.inputs.first().and_then(Tensor::rows))
            .unwrap_or(1)
    };
    let batch_rows: usize = jobs.iter().map(rows).sum();
    let counters = &shared.counters;
    counters.succeeded.add(jobs.len() as u64);
    counters.rows.add(batch_rows as u64);
    counters.executions.add(1);
    counters.input_time.add_time(run.input_time);
    counters.infer_time.add_time(run.infer_time);
    counters.output_time.add_time(run.output_time);
    for (job, outputs) in jobs.into_iter().zip(run.outputs) {
        let queue_time = started.saturating_duration_since(job.enqueued);
        counters.queue_time.add_time(queue_time);
        // A caller that is gone needs no answer.
        let _ = job.reply.send(Ok(Prediction {
            outputs,
            queue_time,
            compute_time,
            batch_rows,
        }));
    }
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
