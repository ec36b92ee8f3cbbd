//! The stores on both databases.

use std::{collections::BTreeSet, time::Duration};

use modelyard_common::{Timestamp, id::CountingIds};
use modelyard_db::Database;
use modelyard_jobs::{Claim, ClaimRequest, Job};
use modelyard_orchestrator::{
    Error, MIGRATIONS, NewRun, Page, RunFilter, Started, Stores, Transition,
    model::{Event, Plan, PlannedStep, Progress, RunStatus, StepStatus, TriggerRef},
    open_stores,
};
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use serde_json::{Map, json};

use crate::world::config;

struct Shelf {
    stores: Stores,
    ids: std::sync::Arc<CountingIds>,
    _place: TestDatabase,
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

async fn shelves() -> Vec<Shelf> {
    let mut shelves = Vec::new();
    for place in test_databases().await.unwrap() {
        let database = Database::open(&config(&place).database, place.data_dir(), "orchestrator")
            .await
            .unwrap();
        database
            .migrate(&[modelyard_jobs::MIGRATIONS, MIGRATIONS])
            .await
            .unwrap();
        shelves.push(Shelf {
            stores: open_stores(&database),
            ids: CountingIds::new(),
            _place: place,
        });
    }
    shelves
}

/// `a`, then `b`.
fn plan() -> Plan {
    let step = |name: &str, needs: Vec<usize>| PlannedStep {
        name: name.to_owned(),
        op: "value".to_owned(),
        with: Map::new(),
        when: None,
        needs,
        attempts: 1,
        backoff_ms: 0,
        timeout_ms: None,
        heavy: false,
    };
    Plan {
        steps: vec![step("a", vec![]), step("b", vec![0])],
    }
}

fn new_run(id: &str) -> NewRun {
    NewRun {
        id: id.to_owned(),
        project: "default".to_owned(),
        pipeline: "p".to_owned(),
        plan: plan(),
        requested: Map::new(),
        parameters: Map::new(),
        trigger: None,
        event: None,
        idempotency_key: None,
        acting_for: "user:local".to_owned(),
        audit: modelyard_testkit::access::event(time(1)),
        created_at: time(1),
    }
}

impl Shelf {
    async fn create(&self, run: &NewRun) -> Started {
        self.stores.runs.create_run(run, &*self.ids).await.unwrap()
    }

    async fn claim(&self, now: Timestamp) -> Vec<Job> {
        let queues = ["step.light".to_owned(), "step.heavy".to_owned()];
        let request = ClaimRequest {
            queues: &queues,
            node: "n",
            lease: Duration::from_secs(10),
            limit: 10,
        };
        self.stores.jobs.claim(&request, now).await.unwrap()
    }

    async fn succeed(&self, run_id: &str, step: usize, claim: Claim, now: Timestamp) -> Result<RunStatus, Error> {
        let transition = Transition {
            audit: None,
            run_id,
            event: Event::StepSucceeded {
                step,
                attempt: 1,
                since: now,
            },
            outputs: Some(&json!({"step": step, "attempt": claim.attempt})),
            completes: Some(claim),
            now,
            ids: &*self.ids,
        };
        self.stores.runs.transition(&transition).await.map(|state| state.status)
    }
}

#[tokio::test]
async fn a_transition_stores_completes_and_enqueues_together() {
    for shelf in shelves().await {
        shelf.create(&new_run("r")).await;
        let first = shelf.claim(time(2)).await;
        assert_eq!(first.len(), 1, "only the step without needs waits for a worker");
        assert_eq!(first[0].key.as_deref(), Some("r/a/1"));
        let input = shelf.stores.runs.step_input("r", 0, 1).await.unwrap().unwrap();
        assert!(input.is_live && input.outputs.is_empty());
        assert_eq!(
            shelf.succeed("r", 0, first[0].claim(), time(3)).await.unwrap(),
            RunStatus::Running
        );
        assert!(!shelf.stores.runs.step_input("r", 0, 1).await.unwrap().unwrap().is_live);
        let second = shelf.claim(time(3)).await;
        assert_eq!(second.len(), 1);
        let input = shelf.stores.runs.step_input("r", 1, 1).await.unwrap().unwrap();
        assert_eq!(input.outputs["a"], json!({"step": 0, "attempt": 1}));
        assert_eq!(
            shelf.succeed("r", 1, second[0].claim(), time(4)).await.unwrap(),
            RunStatus::Succeeded
        );
        let counts = shelf.stores.jobs.count(None).await.unwrap();
        let told = shelf.stores.jobs.count(Some("audit")).await.unwrap();
        assert_eq!(told.unfinished(), 1, "that it was started is told");
        assert_eq!((counts.unfinished() - told.unfinished(), counts.done), (0, 2));
        let run = shelf.stores.runs.find_run("default", "r").await.unwrap().unwrap();
        assert_eq!((run.started_at, run.finished_at), (Some(time(3)), Some(time(4))));
        assert!(shelf.stores.runs.find_run("other", "r").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn only_the_live_claim_can_store_outputs() {
    for shelf in shelves().await {
        shelf.create(&new_run("r")).await;
        let slow = shelf.claim(time(2)).await[0].claim();
        // Its lease runs out, and another takes over.
        let quick = shelf.claim(time(60)).await[0].claim();
        assert_eq!((quick.job, quick.attempt), (slow.job, slow.attempt + 1));
        let refused = shelf.succeed("r", 0, slow, time(61)).await;
        assert!(matches!(refused, Err(Error::Stale)), "{refused:?}");
        let run = shelf.stores.runs.find_run("default", "r").await.unwrap().unwrap();
        assert_eq!(
            (run.steps[0].status, &run.steps[0].outputs),
            (StepStatus::Queued, &None)
        );
        shelf.succeed("r", 0, quick, time(62)).await.unwrap();
        assert!(matches!(shelf.succeed("r", 0, slow, time(63)).await, Err(Error::Stale)));
        let run = shelf.stores.runs.find_run("default", "r").await.unwrap().unwrap();
        assert_eq!(run.steps[0].outputs, Some(json!({"step": 0, "attempt": 2})));
        let waiting = shelf.stores.jobs.count(Some("step.light")).await.unwrap();
        assert_eq!(waiting.ready, 1, "what follows was enqueued once");
    }
}

#[tokio::test]
async fn steps_whose_jobs_were_given_up_are_found() {
    for shelf in shelves().await {
        shelf.create(&new_run("r")).await;
        assert!(shelf.stores.runs.lost_steps(10).await.unwrap().is_empty());
        let job = shelf.claim(time(2)).await.remove(0);
        shelf
            .stores
            .jobs
            .fail(&job.claim(), "the node went down", time(3))
            .await
            .unwrap();
        let lost = shelf.stores.runs.lost_steps(10).await.unwrap();
        assert_eq!((lost[0].run_id.as_str(), lost[0].step, lost[0].attempt), ("r", 0, 1));
        assert_eq!(lost[0].error, "the node went down");
        let transition = Transition {
            audit: None,
            run_id: "r",
            event: Event::StepFailed {
                step: 0,
                attempt: 1,
                since: time(4),
                error: lost[0].error.clone(),
            },
            outputs: None,
            completes: None,
            now: time(4),
            ids: &*shelf.ids,
        };
        let state = shelf.stores.runs.transition(&transition).await.unwrap();
        assert_eq!(state.status, RunStatus::Failed);
        assert!(shelf.stores.runs.lost_steps(10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn one_trigger_key_and_one_idempotency_key_make_one_run_under_concurrency() {
    for shelf in shelves().await {
        let trigger = TriggerRef {
            name: "t".to_owned(),
            key: "k".to_owned(),
        };
        let runs: Vec<NewRun> = (0..12)
            .map(|place| NewRun {
                trigger: (place % 2 == 0).then(|| trigger.clone()),
                idempotency_key: (place % 2 == 1).then(|| "i".to_owned()),
                ..new_run(&format!("r{place:02}"))
            })
            .collect();
        let started = futures::future::join_all(runs.iter().map(|run| shelf.create(run))).await;
        let created = started
            .iter()
            .filter(|started| matches!(started, Started::Created(_)))
            .count();
        let ids: BTreeSet<&str> = started
            .iter()
            .map(|started| match started {
                Started::Created(run) | Started::Existing { run, .. } => run.id.as_str(),
            })
            .collect();
        assert_eq!((created, ids.len()), (2, 2));
        assert_eq!(
            shelf.claim(time(2)).await.len(),
            2,
            "no run that was not made has a job"
        );
        let fired = shelf.stores.runs.find_fired("default", &trigger).await.unwrap();
        assert!(fired.is_some_and(|id| ids.contains(id.as_str())));
    }
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_removed_when_old() {
    for shelf in shelves().await {
        for (place, pipeline) in ["p", "q", "p", "p"].into_iter().enumerate() {
            let run = NewRun {
                pipeline: pipeline.to_owned(),
                ..new_run(&format!("r{place}"))
            };
            shelf.create(&run).await;
        }
        let list = async |filter: RunFilter<'static>, after: Option<&'static str>| {
            let page = shelf
                .stores
                .runs
                .list_runs("default", filter, Page { after, limit: 2 })
                .await
                .unwrap();
            (
                page.items.into_iter().map(|run| run.id).collect::<Vec<_>>(),
                page.next_cursor,
            )
        };
        let of_p = RunFilter {
            pipeline: Some("p"),
            ..RunFilter::default()
        };
        assert_eq!(
            list(of_p, None).await,
            (vec!["r3".to_owned(), "r2".to_owned()], Some("r2".to_owned()))
        );
        assert_eq!(list(of_p, Some("r2")).await, (vec!["r0".to_owned()], None));
        let cancelled = RunFilter {
            status: Some(RunStatus::Cancelled),
            ..RunFilter::default()
        };
        assert_eq!(list(cancelled, None).await.0.len(), 0);
        for id in ["r0", "r1"] {
            let transition = Transition {
                audit: None,
                run_id: id,
                event: Event::Cancelled,
                outputs: None,
                completes: None,
                now: time(10),
                ids: &*shelf.ids,
            };
            shelf.stores.runs.transition(&transition).await.unwrap();
        }
        assert_eq!(list(cancelled, None).await.0, ["r1", "r0"]);
        assert_eq!(
            shelf.stores.jobs.count(None).await.unwrap().cancelled,
            2,
            "their steps were stopped"
        );
        assert_eq!(shelf.stores.runs.remove_finished(time(10), 10).await.unwrap(), 0);
        assert_eq!(shelf.stores.runs.remove_finished(time(11), 1).await.unwrap(), 1);
        assert_eq!(shelf.stores.runs.remove_finished(time(11), 10).await.unwrap(), 1);
        assert_eq!(list(RunFilter::default(), None).await.0, ["r3", "r2"]);
    }
}

#[tokio::test]
async fn progress_is_shown_while_the_attempt_runs_and_never_after() {
    for shelf in shelves().await {
        shelf.create(&new_run("r")).await;
        let claim = shelf.claim(time(2)).await[0].claim();
        let progress = |done| Progress {
            done,
            total: 10,
            message: "boosting".to_owned(),
        };
        let shown = async || {
            shelf.stores.runs.find_run("default", "r").await.unwrap().unwrap().steps[0]
                .progress
                .clone()
        };
        shelf
            .stores
            .runs
            .record_progress("r", 0, 1, &progress(1))
            .await
            .unwrap();
        assert_eq!(shown().await, None, "not before it has begun");
        let started = Transition {
            audit: None,
            run_id: "r",
            event: Event::StepStarted {
                step: 0,
                attempt: 1,
                since: time(2),
            },
            outputs: None,
            completes: None,
            now: time(2),
            ids: &*shelf.ids,
        };
        shelf.stores.runs.transition(&started).await.unwrap();
        shelf
            .stores
            .runs
            .record_progress("r", 0, 1, &progress(2))
            .await
            .unwrap();
        shelf
            .stores
            .runs
            .record_progress("r", 0, 2, &progress(9))
            .await
            .unwrap();
        assert_eq!(shown().await, Some(progress(2)), "of another attempt it is not shown");
        shelf.succeed("r", 0, claim, time(3)).await.unwrap();
        shelf
            .stores
            .runs
            .record_progress("r", 0, 1, &progress(3))
            .await
            .unwrap();
        assert_eq!(shown().await, None);
    }
}
