//! The store beside a model of it, under random sequences of what several nodes do.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use modelyard_common::Timestamp;
use modelyard_jobs::{Claim, Error, Job, JobId, JobStore, MAX_LOSSES, NewJob, State};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{LEASE, at, claim, job, new_id, places};

/// How many sequences are tried on each database, and how long they are.
const SEQUENCES: u32 = 60;
const STEPS: usize = 50;

#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        key: Option<u8>,
        priority: i64,
        delay: u64,
        max_attempts: u32,
    },
    Claim {
        node: u8,
        limit: usize,
    },
    Heartbeat(prop::sample::Index),
    Complete(prop::sample::Index),
    Retry(prop::sample::Index, u64),
    Fail(prop::sample::Index),
    Release(prop::sample::Index),
    ReleaseNode(u8),
    Cancel(prop::sample::Index),
    RemoveFinished,
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        5 => (prop::option::of(0..3_u8), 0..3_i64, 0..4_u64, 1..4_u32).prop_map(
            |(key, priority, delay, max_attempts)| Step::Enqueue { key, priority, delay, max_attempts }
        ),
        6 => (0..3_u8, 1..4_usize).prop_map(|(node, limit)| Step::Claim { node, limit }),
        2 => index().prop_map(Step::Heartbeat),
        2 => index().prop_map(Step::Complete),
        3 => (index(), 0..4_u64).prop_map(|(claim, delay)| Step::Retry(claim, delay)),
        1 => index().prop_map(Step::Fail),
        1 => index().prop_map(Step::Release),
        1 => (0..3_u8).prop_map(Step::ReleaseNode),
        1 => index().prop_map(Step::Cancel),
        1 => Just(Step::RemoveFinished),
        3 => (1..LEASE.as_secs() + 2).prop_map(Step::Advance),
    ]
}

#[derive(Debug, Clone)]
struct ModelJob {
    new: NewJob,
    state: State,
    run_at: Timestamp,
    attempt: i64,
    failures: u32,
    losses: u32,
    node: String,
    lease_until: Timestamp,
    finished_at: Timestamp,
}

impl ModelJob {
    fn lose(&mut self, now: Timestamp) {
        self.losses += 1;
        if self.losses > MAX_LOSSES {
            self.finish(State::Failed, now);
        } else {
            self.state = State::Ready;
        }
    }

    fn finish(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.finished_at = now;
    }
}

/// What the queue should be.
struct Model {
    queue: String,
    now: Timestamp,
    jobs: BTreeMap<JobId, ModelJob>,
    /// Every job and every claim that there ever was.
    ids: Vec<JobId>,
    claims: Vec<Claim>,
}

impl Model {
    fn held(&mut self, claim: &Claim) -> Option<&mut ModelJob> {
        let job = self.jobs.get_mut(&claim.job)?;
        (job.state == State::Running && job.attempt == claim.attempt).then_some(job)
    }

    fn pick(&self, index: prop::sample::Index) -> Option<Claim> {
        (!self.claims.is_empty()).then(|| *index.get(&self.claims))
    }

    fn expected_claims(&mut self, node: &str, limit: usize) -> Vec<JobId> {
        let now = self.now;
        for job in self.jobs.values_mut() {
            if job.state == State::Running && job.lease_until <= now {
                job.lose(now);
            }
        }
        let due = |job: &&ModelJob| job.state == State::Ready && job.run_at <= now;
        let mut order: Vec<_> = self.jobs.values().filter(due).collect();
        order.sort_by_key(|job| (Reverse(job.new.priority), job.run_at, job.new.id));
        let ids: Vec<JobId> = order.iter().take(limit).map(|job| job.new.id).collect();
        for id in &ids {
            if let Some(job) = self.jobs.get_mut(id) {
                job.state = State::Running;
                job.attempt += 1;
                node.clone_into(&mut job.node);
                job.lease_until = now + LEASE;
            }
        }
        ids
    }

    async fn enqueue(&mut self, store: &dyn JobStore, new: NewJob) {
        let holder = self
            .jobs
            .values()
            .find(|job| !job.state.is_finished() && new.key.is_some() && job.new.key == new.key);
        let enqueued = store.enqueue(&new, self.now).await.unwrap();
        if let Some(holder) = holder {
            assert_eq!((enqueued.id, enqueued.created), (holder.new.id, false));
        } else {
            assert_eq!((enqueued.id, enqueued.created), (new.id, true));
            self.ids.push(new.id);
            let job = ModelJob {
                state: State::Ready,
                run_at: new.run_at,
                attempt: 0,
                failures: 0,
                losses: 0,
                node: String::new(),
                lease_until: self.now,
                finished_at: self.now,
                new,
            };
            self.jobs.insert(job.new.id, job);
        }
    }

    fn note_claims(&mut self, claimed: &[Job]) {
        let mut ever: HashSet<Claim> = self.claims.iter().copied().collect();
        for job in claimed {
            assert!(
                ever.insert(job.claim()),
                "attempt {} of {} was given out twice",
                job.attempt,
                job.id
            );
            self.claims.push(job.claim());
        }
    }

    /// Does a step to both, and compares what they answer.
    async fn apply(&mut self, store: &dyn JobStore, step: &Step) {
        let now = self.now;
        match step {
            Step::Enqueue {
                key,
                priority,
                delay,
                max_attempts,
            } => {
                let new = NewJob {
                    key: key.map(|key| format!("key-{key}")),
                    priority: *priority,
                    max_attempts: *max_attempts,
                    ..job(&self.queue, now + Duration::from_secs(*delay))
                };
                self.enqueue(store, new).await;
            }
            Step::Claim { node, limit } => {
                let node = self.node(*node);
                let claimed = claim(store, &self.queue, &node, *limit, now).await;
                let ids: Vec<JobId> = claimed.iter().map(|job| job.id).collect();
                assert_eq!(ids, self.expected_claims(&node, *limit));
                self.note_claims(&claimed);
            }
            Step::Heartbeat(index) => {
                let Some(claim) = self.pick(*index) else { return };
                let result = store.heartbeat(&claim, LEASE, now).await;
                self.settle(&claim, result, |job, now| job.lease_until = now + LEASE);
            }
            Step::Complete(index) => {
                let Some(claim) = self.pick(*index) else { return };
                let result = store.complete(&claim, now).await;
                self.settle(&claim, result, |job, now| job.finish(State::Done, now));
            }
            Step::Retry(index, delay) => {
                let Some(claim) = self.pick(*index) else { return };
                let run_at = now + Duration::from_secs(*delay);
                let result = store.retry(&claim, run_at, "broken", now).await;
                let state = result.as_ref().ok().copied();
                self.settle(&claim, result.map(drop), |job, now| {
                    job.failures += 1;
                    if job.failures >= job.new.max_attempts {
                        job.finish(State::Failed, now);
                    } else {
                        (job.state, job.run_at) = (State::Ready, run_at);
                    }
                    assert_eq!(state, Some(job.state));
                });
            }
            Step::Fail(index) => {
                let Some(claim) = self.pick(*index) else { return };
                let result = store.fail(&claim, "broken", now).await;
                self.settle(&claim, result, |job, now| {
                    job.failures += 1;
                    job.finish(State::Failed, now);
                });
            }
            Step::Release(index) => {
                let Some(claim) = self.pick(*index) else { return };
                let result = store.release(&claim, now).await;
                self.settle(&claim, result, |job, _| job.state = State::Ready);
            }
            Step::ReleaseNode(node) => {
                let node = self.node(*node);
                let released = store.release_node(&node, now).await.unwrap();
                let running = |job: &&mut ModelJob| job.state == State::Running && job.node == node;
                let mut expected = 0;
                for job in self.jobs.values_mut().filter(running) {
                    job.lose(now);
                    expected += 1;
                }
                assert_eq!(released, expected);
            }
            Step::Cancel(index) => {
                if self.ids.is_empty() {
                    return;
                }
                let id = *index.get(&self.ids);
                let cancelled = store.cancel(id, now).await.unwrap();
                let job = self.jobs.get_mut(&id).filter(|job| !job.state.is_finished());
                assert_eq!(cancelled, job.is_some());
                if let Some(job) = job {
                    job.finish(State::Cancelled, now);
                }
            }
            Step::RemoveFinished => {
                // Other sequences have left finished jobs in the database, so the number is not compared.
                store.remove_finished(now, u32::MAX).await.unwrap();
                self.jobs
                    .retain(|_, job| !job.state.is_finished() || job.finished_at >= now);
            }
            Step::Advance(seconds) => self.now = now + Duration::from_secs(*seconds),
        }
    }

    /// Nodes of one sequence, so that another's do not release them.
    fn node(&self, number: u8) -> String {
        format!("{}-{number}", self.queue)
    }

    /// A report counts exactly when the claim holds.
    fn settle(&mut self, claim: &Claim, result: Result<(), Error>, change: impl FnOnce(&mut ModelJob, Timestamp)) {
        let now = self.now;
        match self.held(claim) {
            Some(job) => {
                result.unwrap();
                change(job, now);
            }
            None => assert!(matches!(result, Err(Error::Stale(stale)) if stale == *claim)),
        }
    }

    async fn compare(&self, store: &dyn JobStore) {
        for id in &self.ids {
            let stored = store.find(*id).await.unwrap();
            let Some(expected) = self.jobs.get(id) else {
                assert_eq!(stored, None);
                continue;
            };
            let stored = stored.unwrap();
            assert_eq!(stored.state, expected.state);
            let numbers = (stored.job.attempt, stored.job.failures, stored.losses);
            assert_eq!(numbers, (expected.attempt, expected.failures, expected.losses));
            let running = expected.state == State::Running;
            assert_eq!(stored.node, running.then(|| expected.node.clone()));
            assert_eq!(stored.lease_until, running.then_some(expected.lease_until));
            assert_eq!(
                stored.finished_at,
                expected.state.is_finished().then_some(expected.finished_at)
            );
        }
        let next = self.jobs.values().filter_map(|job| match job.state {
            State::Ready => Some(job.run_at),
            State::Running => Some(job.lease_until),
            State::Done | State::Failed | State::Cancelled => None,
        });
        let queues = std::slice::from_ref(&self.queue);
        assert_eq!(store.next_run_at(queues).await.unwrap(), next.min());
    }

    /// Time goes on, all nodes are gone, and one new one works: nothing may be left.
    async fn drain(&mut self, store: &dyn JobStore) {
        self.now = self.now + LEASE * 2;
        loop {
            let claimed = claim(store, &self.queue, "last", 100, self.now).await;
            let ids: Vec<JobId> = claimed.iter().map(|job| job.id).collect();
            assert_eq!(ids, self.expected_claims("last", 100));
            self.note_claims(&claimed);
            if claimed.is_empty() {
                break;
            }
            for job in &claimed {
                store.complete(&job.claim(), self.now).await.unwrap();
                if let Some(job) = self.held(&job.claim()) {
                    job.state = State::Done;
                }
            }
        }
        assert_eq!(store.count(Some(&self.queue)).await.unwrap().unfinished(), 0);
        assert!(self.jobs.values().all(|job| job.state.is_finished()));
    }
}

#[test]
fn the_store_does_what_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for place in runtime.block_on(places()) {
        let config = Config {
            cases: SEQUENCES,
            failure_persistence: None,
            ..Config::default()
        };
        let sequences = prop::collection::vec(step(), 1..STEPS);
        let result = TestRunner::new(config).run(&sequences, |steps| {
            runtime.block_on(async {
                let mut model = Model {
                    queue: new_id().to_string(),
                    now: at(0),
                    jobs: BTreeMap::new(),
                    ids: Vec::new(),
                    claims: Vec::new(),
                };
                for step in &steps {
                    model.apply(&*place.store, step).await;
                }
                model.compare(&*place.store).await;
                model.drain(&*place.store).await;
            });
            Ok(())
        });
        result.unwrap();
    }
}
