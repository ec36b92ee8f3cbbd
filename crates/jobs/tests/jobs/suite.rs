//! What the store promises, one promise a test.

use std::{collections::BTreeSet, time::Duration};

use conditional_trait_gen::trait_gen;
use modelyard_common::error::{ErrorKind, Fault};
use modelyard_db::{Database, Pools, PostgresPools, SqlitePools};
use modelyard_jobs::{
    AttemptEvent, Claim, ClaimRequest, Error, Event, MAX_ERROR_BYTES, MAX_LOSSES, NewJob, State, cancel_in,
    complete_in, enqueue_in,
};

use crate::{LEASE, at, claim, claim_one, job, new_id, places};

fn events(log: &[AttemptEvent]) -> Vec<(i64, Event)> {
    log.iter().map(|line| (line.attempt, line.event)).collect()
}

#[tokio::test]
async fn a_job_is_enqueued_claimed_and_completed() {
    for place in places().await {
        let store = &*place.store;
        let new = NewJob {
            key: Some("flights".to_owned()),
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            priority: 7,
            ..job("step", at(5))
        };
        assert!(store.enqueue(&new, at(0)).await.unwrap().created);
        assert_eq!(store.next_run_at(&["step".to_owned()]).await.unwrap(), Some(at(5)));
        assert_eq!(claim_one(store, "step", "a", at(4)).await, None);
        assert_eq!(claim_one(store, "other", "a", at(9)).await, None);

        let claimed = claim_one(store, "step", "a", at(5)).await.unwrap();
        assert_eq!(claimed.id, new.id);
        assert_eq!(claimed.payload, new.payload);
        assert_eq!(claimed.trace, new.trace);
        assert_eq!((claimed.key, claimed.priority), (new.key, 7));
        assert_eq!((claimed.attempt, claimed.failures), (1, 0));
        assert_eq!((claimed.created_at, claimed.run_at), (at(0), at(5)));
        let record = store.get(new.id).await.unwrap();
        assert_eq!((record.state, record.node.as_deref()), (State::Running, Some("a")));
        assert_eq!(record.lease_until, Some(at(5) + LEASE));
        assert_eq!(claim_one(store, "step", "b", at(6)).await, None);

        store.complete(&record.job.claim(), at(7)).await.unwrap();
        let record = store.get(new.id).await.unwrap();
        assert_eq!((record.state, record.finished_at), (State::Done, Some(at(7))));
        assert_eq!((record.node, record.lease_until), (None, None));
        let counts = store.count(Some("step")).await.unwrap();
        assert_eq!((counts.unfinished(), counts.done), (0, 1));
        assert_eq!(store.count(Some("other")).await.unwrap().done, 0);
        assert_eq!(store.next_run_at(&["step".to_owned()]).await.unwrap(), None);
        let log = store.attempts(new.id).await.unwrap();
        assert_eq!(events(&log), [(1, Event::Claimed), (1, Event::Done)]);
        assert_eq!((log[0].at, log[0].node.as_deref()), (at(5), Some("a")));
    }
}

#[tokio::test]
async fn priority_then_time_then_age_decide() {
    for place in places().await {
        let store = &*place.store;
        let urgent = NewJob {
            priority: 1,
            ..job("step", at(3))
        };
        let early = job("step", at(1));
        let (older, newer) = (job("step", at(2)), job("step", at(2)));
        for new in [&newer, &early, &urgent, &older] {
            store.enqueue(new, at(0)).await.unwrap();
        }
        let order: Vec<_> = claim(store, "step", "a", 10, at(9))
            .await
            .iter()
            .map(|job| job.id)
            .collect();
        assert_eq!(order, [urgent.id, early.id, older.id, newer.id]);
    }
}

#[tokio::test]
async fn queues_are_served_in_the_order_asked_for_and_up_to_the_limit() {
    for place in places().await {
        let store = &*place.store;
        for queue in ["second", "first", "second", "third"] {
            store.enqueue(&job(queue, at(0)), at(0)).await.unwrap();
        }
        let queues = ["first", "second", "third"].map(str::to_owned);
        let request = ClaimRequest {
            queues: &queues,
            node: "a",
            lease: LEASE,
            limit: 3,
        };
        let claimed = store.claim(&request, at(1)).await.unwrap();
        let queues: Vec<_> = claimed.iter().map(|job| job.queue.as_str()).collect();
        assert_eq!(queues, ["first", "second", "second"]);
    }
}

#[tokio::test]
async fn a_key_is_unique_until_its_job_has_ended() {
    for place in places().await {
        let store = &*place.store;
        let keyed = |queue: &str| NewJob {
            key: Some("nightly".to_owned()),
            ..job(queue, at(0))
        };
        let first = store.enqueue(&keyed("step"), at(0)).await.unwrap();
        let again = store.enqueue(&keyed("step"), at(0)).await.unwrap();
        assert_eq!((again.id, again.created), (first.id, false));
        assert!(store.enqueue(&keyed("other"), at(0)).await.unwrap().created);

        let running = claim_one(store, "step", "a", at(0)).await.unwrap();
        assert!(!store.enqueue(&keyed("step"), at(1)).await.unwrap().created);
        store.complete(&running.claim(), at(2)).await.unwrap();
        let next = store.enqueue(&keyed("step"), at(3)).await.unwrap();
        assert!(next.created && next.id != first.id);
    }
}

#[tokio::test]
async fn one_key_enqueued_by_many_at_once_is_one_job() {
    for place in places().await {
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let store = place.store.clone();
            callers.spawn(async move {
                let new = NewJob {
                    key: Some("nightly".to_owned()),
                    ..job("step", at(0))
                };
                store.enqueue(&new, at(0)).await.unwrap()
            });
        }
        let all = callers.join_all().await;
        assert_eq!(all.iter().filter(|enqueued| enqueued.created).count(), 1);
        assert_eq!(all.iter().map(|enqueued| enqueued.id).collect::<BTreeSet<_>>().len(), 1);
        assert_eq!(place.store.count(None).await.unwrap().ready, 1);
    }
}

#[tokio::test]
async fn many_nodes_claim_each_job_once() {
    const JOBS: usize = 60;
    for place in places().await {
        for _ in 0..JOBS {
            place.store.enqueue(&job("step", at(0)), at(0)).await.unwrap();
        }
        let mut nodes = tokio::task::JoinSet::new();
        for node in 0..6 {
            let store = place.store.clone();
            nodes.spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let claimed = claim(&*store, "step", &format!("node-{node}"), 3, at(1)).await;
                    if claimed.is_empty() && store.count(None).await.unwrap().ready == 0 {
                        return mine;
                    }
                    mine.extend(claimed.iter().map(|job| (job.id, job.attempt)));
                }
            });
        }
        let all: Vec<_> = nodes.join_all().await.into_iter().flatten().collect();
        assert_eq!(all.len(), JOBS);
        assert!(all.iter().all(|(_, attempt)| *attempt == 1));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), JOBS);
    }
}

#[tokio::test]
async fn an_attempt_that_is_over_can_report_nothing() {
    for place in places().await {
        let store = &*place.store;
        let id = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
        let old = claim_one(store, "step", "a", at(0)).await.unwrap().claim();
        let late = at(0) + LEASE;
        let new = claim_one(store, "step", "b", late).await.unwrap();
        assert_eq!(new.attempt, 2);
        let before = store.get(id).await.unwrap();
        let never = Claim { job: id, attempt: 3 };
        for stale in [old, never] {
            for error in [
                store.heartbeat(&stale, LEASE, late).await.unwrap_err(),
                store.complete(&stale, late).await.unwrap_err(),
                store.retry(&stale, late, "late", late).await.unwrap_err(),
                store.fail(&stale, "late", late).await.unwrap_err(),
                store.release(&stale, late).await.unwrap_err(),
            ] {
                assert!(matches!(error, Error::Stale(claim) if claim == stale), "{error}");
                assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            }
        }
        assert_eq!(store.get(id).await.unwrap(), before);
        store.complete(&new.claim(), late).await.unwrap();
        assert!(store.complete(&new.claim(), late).await.is_err(), "completed twice");
        let log = store.attempts(id).await.unwrap();
        let expected = [
            (1, Event::Claimed),
            (1, Event::Expired),
            (2, Event::Claimed),
            (2, Event::Done),
        ];
        assert_eq!(events(&log), expected);
    }
}

#[tokio::test]
async fn heartbeats_keep_a_lease() {
    for place in places().await {
        let store = &*place.store;
        store.enqueue(&job("step", at(0)), at(0)).await.unwrap();
        let held = claim_one(store, "step", "a", at(0)).await.unwrap().claim();
        store.heartbeat(&held, LEASE, at(9)).await.unwrap();
        assert_eq!(claim_one(store, "step", "b", at(18)).await, None);
        assert_eq!(
            store.next_run_at(&["step".to_owned()]).await.unwrap(),
            Some(at(9) + LEASE)
        );
        // Nobody took it yet: the holder may still report.
        store.complete(&held, at(60)).await.unwrap();
    }
}

#[tokio::test]
async fn errors_are_bounded_and_remembered() {
    for place in places().await {
        let store = &*place.store;
        let new = NewJob {
            max_attempts: 2,
            ..job("step", at(0))
        };
        let id = store.enqueue(&new, at(0)).await.unwrap().id;
        let first = claim_one(store, "step", "a", at(0)).await.unwrap();
        assert!(!first.is_last_attempt());
        let long = "x".repeat(MAX_ERROR_BYTES * 2);
        assert_eq!(
            store.retry(&first.claim(), at(5), &long, at(1)).await.unwrap(),
            State::Ready
        );
        assert_eq!(store.get(id).await.unwrap().error.unwrap().len(), MAX_ERROR_BYTES);
        assert_eq!(claim_one(store, "step", "a", at(4)).await, None);
        let second = claim_one(store, "step", "a", at(5)).await.unwrap();
        assert_eq!((second.attempt, second.failures), (2, 1));
        assert!(second.is_last_attempt());
        assert_eq!(
            store.retry(&second.claim(), at(9), "again", at(6)).await.unwrap(),
            State::Failed
        );
        let record = store.get(id).await.unwrap();
        assert_eq!((record.state, record.error.as_deref()), (State::Failed, Some("again")));
        assert_eq!((record.job.failures, record.finished_at), (2, Some(at(6))));
        assert_eq!(store.count(None).await.unwrap().failed, 1);
        let log = store.attempts(id).await.unwrap();
        let expected = [
            (1, Event::Claimed),
            (1, Event::Retried),
            (2, Event::Claimed),
            (2, Event::Failed),
        ];
        assert_eq!(events(&log), expected);
        assert_eq!(log[3].error.as_deref(), Some("again"));
    }
}

#[tokio::test]
async fn a_node_that_starts_anew_gives_back_only_its_own() {
    for place in places().await {
        let store = &*place.store;
        for _ in 0..3 {
            store.enqueue(&job("step", at(0)), at(0)).await.unwrap();
        }
        let mine = claim(store, "step", "a", 2, at(0)).await;
        let other = claim_one(store, "step", "b", at(0)).await.unwrap();
        assert_eq!(store.release_node("a", at(1)).await.unwrap(), 2);
        assert_eq!(store.release_node("a", at(1)).await.unwrap(), 0);
        store.complete(&other.claim(), at(1)).await.unwrap();
        let again = claim(store, "step", "a", 9, at(1)).await;
        assert_eq!(again.len(), 2);
        assert!(again.iter().all(|job| job.attempt == 2 && job.failures == 0));
        assert!(store.complete(&mine[0].claim(), at(2)).await.is_err());
    }
}

#[tokio::test]
async fn a_job_that_takes_its_node_down_every_time_is_given_up() {
    for place in places().await {
        let store = &*place.store;
        let mut ids = Vec::new();
        for queue in ["expires", "restarts"] {
            ids.push(
                store
                    .enqueue(
                        &NewJob {
                            max_attempts: 1,
                            ..job(queue, at(0))
                        },
                        at(0),
                    )
                    .await
                    .unwrap()
                    .id,
            );
        }
        let mut now = at(0);
        for loss in 0..=MAX_LOSSES {
            for queue in ["expires", "restarts"] {
                assert!(
                    claim_one(store, queue, queue, now).await.is_some(),
                    "{queue}: loss {loss}"
                );
            }
            store.release_node("restarts", now).await.unwrap();
            now = now + LEASE;
        }
        for (queue, id) in ["expires", "restarts"].into_iter().zip(ids) {
            assert_eq!(claim_one(store, queue, queue, now).await, None);
            let record = store.get(id).await.unwrap();
            assert_eq!((record.state, record.losses), (State::Failed, MAX_LOSSES + 1));
            assert!(record.error.unwrap().contains("without a word"));
        }
    }
}

#[tokio::test]
async fn a_released_job_has_nothing_held_against_it() {
    for place in places().await {
        let store = &*place.store;
        let id = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
        let held = claim_one(store, "step", "a", at(0)).await.unwrap();
        store.release(&held.claim(), at(1)).await.unwrap();
        let record = store.get(id).await.unwrap();
        assert_eq!((record.state, record.losses, record.job.failures), (State::Ready, 0, 0));
        assert_eq!(claim_one(store, "step", "b", at(1)).await.unwrap().attempt, 2);
    }
}

#[tokio::test]
async fn a_cancelled_job_does_not_run_and_its_holder_is_told() {
    for place in places().await {
        let store = &*place.store;
        let waiting = store.enqueue(&job("step", at(50)), at(0)).await.unwrap().id;
        let running = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
        let held = claim_one(store, "step", "a", at(0)).await.unwrap();
        assert!(store.cancel(waiting, at(1)).await.unwrap());
        assert!(store.cancel(running, at(1)).await.unwrap());
        assert!(!store.cancel(running, at(2)).await.unwrap());
        assert!(!store.cancel(new_id(), at(2)).await.unwrap());
        assert!(matches!(
            store.heartbeat(&held.claim(), LEASE, at(2)).await,
            Err(Error::Stale(_))
        ));
        assert_eq!(claim_one(store, "step", "a", at(99)).await, None);
        assert_eq!(store.count(None).await.unwrap().cancelled, 2);
    }
}

#[tokio::test]
async fn only_what_ended_long_ago_is_removed() {
    for place in places().await {
        let store = &*place.store;
        let mut ids = Vec::new();
        for second in 0..4 {
            let id = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
            let held = claim_one(store, "step", "a", at(0)).await.unwrap();
            store.complete(&held.claim(), at(second)).await.unwrap();
            ids.push(id);
        }
        let unfinished = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
        assert_eq!(store.remove_finished(at(3), 2).await.unwrap(), 2);
        assert_eq!(store.remove_finished(at(3), 2).await.unwrap(), 1);
        assert_eq!(store.remove_finished(at(3), 2).await.unwrap(), 0);
        assert!(matches!(store.get(ids[0]).await, Err(Error::NotFound(id)) if id == ids[0]));
        assert_eq!(store.attempts(ids[0]).await.unwrap(), []);
        assert!(store.find(ids[3]).await.unwrap().is_some());
        assert!(store.find(unfinished).await.unwrap().is_some());
    }
}

/// The part of a store of a service: its own change and the job's, together.
struct Effects<P> {
    pools: P,
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl Effects<P> {
    async fn enqueue(&self, job: &NewJob, commit: bool) {
        let mut tx = self.pools.begin().await.unwrap();
        assert!(enqueue_in(&mut tx, job, at(0)).await.unwrap().created);
        if commit {
            tx.commit().await.unwrap();
        }
    }

    async fn complete_and_follow(&self, claim: &Claim, next: &NewJob) -> modelyard_jobs::Result<bool> {
        let mut tx = self.pools.begin().await?;
        complete_in(&mut tx, claim, at(1)).await?;
        let created = enqueue_in(&mut tx, next, at(1)).await?.created;
        tx.commit().await?;
        Ok(created)
    }

    async fn cancel(&self, id: modelyard_jobs::JobId) -> bool {
        let mut tx = self.pools.begin().await.unwrap();
        let cancelled = cancel_in(&mut tx, id, at(1)).await.unwrap();
        tx.commit().await.unwrap();
        cancelled
    }
}

macro_rules! effects {
    ($database:expr, $effects:ident => $body:expr) => {
        match $database.clone() {
            Database::Sqlite(pools) => {
                let $effects = Effects { pools };
                $body
            }
            Database::Postgres(pools) => {
                let $effects = Effects { pools };
                $body
            }
        }
    };
}

#[tokio::test]
async fn a_job_lives_and_dies_with_the_transaction_of_the_store() {
    for place in places().await {
        let store = &*place.store;
        let (kept, dropped) = (job("step", at(0)), job("step", at(0)));
        effects!(place.database, effects => {
            effects.enqueue(&kept, true).await;
            effects.enqueue(&dropped, false).await;
        });
        assert!(store.find(kept.id).await.unwrap().is_some());
        assert!(store.find(dropped.id).await.unwrap().is_none());
        effects!(place.database, effects => {
            assert!(effects.cancel(kept.id).await);
            assert!(!effects.cancel(dropped.id).await);
        });
    }
}

#[tokio::test]
async fn a_successor_takes_over_the_key_in_the_transaction_that_completes() {
    for place in places().await {
        let store = &*place.store;
        let keyed = || NewJob {
            key: Some("tick".to_owned()),
            ..job("step", at(0))
        };
        store.enqueue(&keyed(), at(0)).await.unwrap();
        let held = claim_one(store, "step", "a", at(0)).await.unwrap().claim();
        let next = keyed();
        let followed = effects!(place.database, effects => effects.complete_and_follow(&held, &next).await);
        assert!(followed.unwrap());
        assert_eq!(store.get(next.id).await.unwrap().state, State::Ready);
        // A second report of the same attempt does nothing, the successor included.
        let third = keyed();
        let repeated = effects!(place.database, effects => effects.complete_and_follow(&held, &third).await);
        assert!(matches!(repeated, Err(Error::Stale(_))));
        assert!(store.find(third.id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_job_that_breaks_a_limit_is_refused() {
    for place in places().await {
        let new = NewJob {
            max_attempts: 0,
            ..job("step", at(0))
        };
        let error = place.store.enqueue(&new, at(0)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.reason()),
            (ErrorKind::InvalidArgument, "JOB_INVALID")
        );
        assert_eq!(place.store.count(None).await.unwrap().unfinished(), 0);
    }
}

#[tokio::test]
async fn old_jobs_are_removed_by_the_retention_task() {
    let keep = Duration::from_mins(1);
    for place in places().await {
        let store = place.store.clone();
        let id = store.enqueue(&job("step", at(0)), at(0)).await.unwrap().id;
        store.cancel(id, at(1)).await.unwrap();
        let clock = modelyard_common::clock::ManualClock::at(at(1) + keep * 2);
        let soft = tokio_util::sync::CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(modelyard_jobs::retain(store.clone(), clock, keep, soft.clone()));
        modelyard_testkit::wait::until("the job is removed", crate::PATIENCE, || async {
            store.find(id).await.unwrap().is_none().then_some(())
        })
        .await;
        soft.cancel();
        tasks.join_all().await;
    }
}
