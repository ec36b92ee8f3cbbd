//! What the worker promises, with the machine's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use modelyard_common::clock::{Clock, SystemClock};
use modelyard_jobs::{
    Backoff, Event, Handler, IDLE_POLL, Job, JobId, JobStore, NewJob, Outcome, Running, State, Worker, WorkerConfig,
};
use modelyard_testkit::wait::until;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{PATIENCE, job, places};

/// A handler whose doing the payload names.
#[derive(Default)]
struct Script {
    started: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    go_on: Notify,
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Script {
    #[expect(clippy::panic, reason = "the test of a handler that panics")]
    async fn run(&self, job: &Job, running: &Running) -> Outcome {
        assert!(!running.cancelled.is_cancelled());
        assert_eq!(running.claim, job.claim());
        self.started.fetch_add(1, Ordering::SeqCst);
        match job.payload.as_str() {
            Some("fail") => Outcome::fail("no use"),
            Some("retry") => Outcome::retry("not yet"),
            Some("panic") => panic!("dropped the {}", "vase"),
            Some("wait") => {
                let _counts = CountsDrop(Arc::clone(&self.dropped));
                self.go_on.notified().await;
                Outcome::Done
            }
            Some("hang") => {
                let _counts = CountsDrop(Arc::clone(&self.dropped));
                std::future::pending().await
            }
            _ => Outcome::Done,
        }
    }
}

struct Workshop {
    store: Arc<dyn JobStore>,
    script: Arc<Script>,
    soft: CancellationToken,
    workers: JoinSet<Result<(), std::convert::Infallible>>,
}

impl Workshop {
    fn new(store: Arc<dyn JobStore>) -> Self {
        Self {
            store,
            script: Arc::default(),
            soft: CancellationToken::new(),
            workers: JoinSet::new(),
        }
    }

    fn open(store: &Arc<dyn JobStore>, change: impl FnOnce(&mut WorkerConfig)) -> Self {
        let mut workshop = Self::new(Arc::clone(store));
        workshop.start("a", change);
        workshop
    }

    fn start(&mut self, node: &str, change: impl FnOnce(&mut WorkerConfig)) {
        let mut config = WorkerConfig::new(["step"]);
        config.backoff = Backoff {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(2),
        };
        change(&mut config);
        let (store, handler) = (Arc::clone(&self.store), Arc::clone(&self.script));
        let worker = Worker::new(store, handler, Arc::new(SystemClock), node, config);
        self.workers.spawn(worker.run(self.soft.clone()));
    }

    async fn enqueue(&self, doing: &str, change: impl FnOnce(&mut NewJob)) -> JobId {
        let now = SystemClock.now();
        let mut new = NewJob {
            payload: doing.into(),
            ..job("step", now)
        };
        change(&mut new);
        self.store.enqueue(&new, now).await.unwrap().id
    }

    async fn reaches(&self, id: JobId, state: State) {
        until(state.as_str(), PATIENCE, || async {
            (self.store.get(id).await.unwrap().state == state).then_some(())
        })
        .await;
    }

    async fn started(&self, times: usize) {
        until("the handler starts", PATIENCE, || async {
            (self.script.started.load(Ordering::SeqCst) >= times).then_some(())
        })
        .await;
    }

    async fn close(self) {
        self.soft.cancel();
        self.workers.join_all().await;
    }
}

#[tokio::test]
async fn a_hint_starts_a_job_long_before_the_next_poll() {
    const JOBS: u32 = 20;
    for place in places().await {
        let workshop = Workshop::open(&place.store, |_| {});
        let begin = std::time::Instant::now();
        for _ in 0..JOBS {
            let id = workshop.enqueue("work", |_| {}).await;
            workshop.reaches(id, State::Done).await;
        }
        // Polling alone would need half a poll for each; this leaves room for a machine that is busy with other tests.
        let elapsed = begin.elapsed();
        assert!(elapsed < IDLE_POLL * JOBS / 3, "{elapsed:?}");
        workshop.close().await;
    }
}

#[tokio::test]
async fn what_another_process_enqueues_is_found_by_polling() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |_| {});
        // A store of its own has its own hints, as another process does.
        let elsewhere = modelyard_jobs::open(&place.database);
        let now = SystemClock.now();
        let id = elsewhere.enqueue(&job("step", now), now).await.unwrap().id;
        workshop.reaches(id, State::Done).await;
        workshop.close().await;
    }
}

#[tokio::test]
async fn errors_and_panics_are_tried_again_and_then_given_up() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |_| {});
        for (doing, error) in [
            ("retry", "not yet"),
            ("panic", "the handler panicked: dropped the vase"),
        ] {
            let id = workshop.enqueue(doing, |job| job.max_attempts = 3).await;
            workshop.reaches(id, State::Failed).await;
            let record = place.store.get(id).await.unwrap();
            assert_eq!((record.job.attempt, record.job.failures), (3, 3));
            assert_eq!(record.error.as_deref(), Some(error));
        }
        let id = workshop.enqueue("fail", |job| job.max_attempts = 3).await;
        workshop.reaches(id, State::Failed).await;
        let record = place.store.get(id).await.unwrap();
        assert_eq!((record.job.attempt, record.error.as_deref()), (1, Some("no use")));
        workshop.close().await;
    }
}

#[tokio::test]
async fn heartbeats_keep_a_long_job_from_other_nodes() {
    let lease = Duration::from_millis(600);
    for place in places().await {
        let mut workshop = Workshop::open(&place.store, |config| config.lease = lease);
        let id = workshop.enqueue("wait", |_| {}).await;
        workshop.started(1).await;
        let first = place.store.get(id).await.unwrap().lease_until.unwrap();
        workshop.start("b", |config| config.lease = lease);
        until("the first lease is long over", PATIENCE, || async {
            (SystemClock.now() > first + lease).then_some(())
        })
        .await;
        workshop.script.go_on.notify_one();
        workshop.reaches(id, State::Done).await;
        assert_eq!(place.store.get(id).await.unwrap().job.attempt, 1);
        assert_eq!(workshop.script.started.load(Ordering::SeqCst), 1);
        workshop.close().await;
    }
}

#[tokio::test]
async fn a_cancelled_job_stops_its_handler() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |config| config.lease = Duration::from_millis(300));
        let id = workshop.enqueue("hang", |_| {}).await;
        workshop.started(1).await;
        assert!(place.store.cancel(id, SystemClock.now()).await.unwrap());
        until("the handler is dropped", PATIENCE, || async {
            (workshop.script.dropped.load(Ordering::SeqCst) == 1).then_some(())
        })
        .await;
        assert_eq!(place.store.get(id).await.unwrap().state, State::Cancelled);
        workshop.close().await;
    }
}

#[tokio::test]
async fn a_soft_end_finishes_what_was_begun_and_takes_nothing_new() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |config| config.concurrency = 1);
        let begun = workshop.enqueue("wait", |_| {}).await;
        workshop.started(1).await;
        let waiting = workshop.enqueue("work", |_| {}).await;
        workshop.soft.cancel();
        workshop.script.go_on.notify_one();
        workshop.close().await;
        assert_eq!(place.store.get(begun).await.unwrap().state, State::Done);
        assert_eq!(place.store.get(waiting).await.unwrap().state, State::Ready);
    }
}

#[tokio::test]
async fn a_soft_end_that_takes_too_long_gives_jobs_back() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |config| config.drain = Duration::ZERO);
        let id = workshop.enqueue("hang", |_| {}).await;
        workshop.started(1).await;
        let dropped = Arc::clone(&workshop.script.dropped);
        workshop.close().await;
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        let record = place.store.get(id).await.unwrap();
        assert_eq!((record.state, record.losses, record.job.failures), (State::Ready, 0, 0));
        assert_eq!(place.store.attempts(id).await.unwrap()[1].event, Event::Released);
    }
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_may() {
    for place in places().await {
        let workshop = Workshop::open(&place.store, |config| config.concurrency = 2);
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(workshop.enqueue("wait", |_| {}).await);
        }
        for done in 0..5 {
            workshop.started((done + 2).min(5)).await;
            assert!(place.store.count(None).await.unwrap().running <= 2);
            workshop.script.go_on.notify_one();
            until("one more is done", PATIENCE, || async {
                (place.store.count(None).await.unwrap().done == done as u64 + 1).then_some(())
            })
            .await;
        }
        workshop.close().await;
        assert_eq!(place.store.count(None).await.unwrap().unfinished(), 0);
    }
}

#[tokio::test]
async fn a_node_that_was_killed_goes_on_with_its_jobs_at_once() {
    for place in places().await {
        let mut workshop = Workshop::open(&place.store, |_| {});
        let id = workshop.enqueue("wait", |_| {}).await;
        workshop.started(1).await;
        workshop.workers.shutdown().await;
        assert_eq!(place.store.get(id).await.unwrap().state, State::Running);

        assert_eq!(place.store.release_node("a", SystemClock.now()).await.unwrap(), 1);
        workshop.start("a", |_| {});
        workshop.started(2).await;
        workshop.script.go_on.notify_one();
        workshop.reaches(id, State::Done).await;
        assert_eq!(place.store.get(id).await.unwrap().job.attempt, 2);
        workshop.close().await;
    }
}
