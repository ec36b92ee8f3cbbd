//! The store alone, on both databases: what is accepted, touched, judged and found again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use modelyard_common::{ErrorKind, Fault as _, Timestamp, config::Secret, id::CountingIds};
use modelyard_db::{Database, DatabaseConfig};
use modelyard_jobs::{ClaimRequest, Job, JobStore};
use modelyard_monitoring::{
    model::{
        label::{Label, LabelBatch, LabelValue},
        monitor::MonitorSpec,
        page::PageRequest,
        rule::AlertRuleSpec,
        score::{DriftScore, GroupScore, Role, WindowScore},
        segment::{Segment, SegmentFile},
        window::Length,
    },
    store::{self, AlertFilter, Committed, EndpointJob, Labelled, ScoreJob, Scored, Store},
};
use modelyard_testkit::access::event;
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use serde_json::json;

pub const PROJECT: &str = "default";
pub const ENDPOINT: &str = "e";
pub const INTERVAL: Duration = Duration::from_secs(10);

pub struct Place {
    pub store: Arc<dyn Store>,
    pub jobs: Arc<dyn JobStore>,
    pub now: Timestamp,
    _database: TestDatabase,
}

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub async fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for place in test_databases().await.unwrap() {
        let config = DatabaseConfig {
            url: place.url.clone().map(Secret::new),
            ..DatabaseConfig::default()
        };
        let database = Database::open(&config, place.data_dir(), "monitoring").await.unwrap();
        database
            .migrate(&[modelyard_jobs::MIGRATIONS, store::MIGRATIONS])
            .await
            .unwrap();
        let jobs = modelyard_jobs::open(&database);
        let store = store::open(&database, jobs.clone(), CountingIds::new(), INTERVAL);
        places.push(Place {
            store,
            jobs,
            now: at("2014-01-01T00:00:00Z"),
            _database: place,
        });
    }
    places
}

impl Place {
    pub async fn claim(&self, queue: &str) -> Option<Job> {
        self.claim_at(queue, self.now).await
    }

    pub async fn claim_at(&self, queue: &str, now: Timestamp) -> Option<Job> {
        let queues = [queue.to_owned()];
        let request = ClaimRequest {
            queues: &queues,
            node: "test",
            lease: Duration::from_mins(1),
            limit: 1,
        };
        self.jobs.claim(&request, now).await.unwrap().pop()
    }

    pub async fn monitor(&self) {
        let spec = MonitorSpec::read("m", json!({"endpoint": ENDPOINT, "window": "month", "min_rows": 1})).unwrap();
        self.store
            .put_monitor(PROJECT, "m", &spec, &event(self.now))
            .await
            .unwrap();
        let job = self.claim(store::BACKFILL).await.unwrap();
        let payload = serde_json::from_value(job.payload.clone()).unwrap();
        self.store
            .finish_backfill(&job.claim(), &payload, &BTreeSet::new(), self.now)
            .await
            .unwrap();
    }

    pub async fn rule(&self) {
        let any = json!([{"metric": "drift_share", "above": 0.5}]);
        let spec = AlertRuleSpec::read("r", json!({"monitor": "m", "any": any, "trigger": "t"})).unwrap();
        self.store
            .put_rule(PROJECT, "r", &spec, &event(self.now))
            .await
            .unwrap();
    }

    pub async fn accept(&self, id: &str, day: &str) {
        self.store
            .accept_segment(PROJECT, ENDPOINT, &segment(id, day), self.now)
            .await
            .unwrap();
    }

    /// Does the job of committing what waits.
    pub async fn commit(&self) {
        let job = self.claim(store::COMMIT).await.unwrap();
        let segments = self.store.waiting_segments(PROJECT, ENDPOINT, 100).await.unwrap();
        let done = Committed {
            segments,
            refused: vec![],
        };
        self.store
            .finish_commit(&job.claim(), &endpoint_job(), &done, self.now)
            .await
            .unwrap();
    }

    /// Does the next job of scoring, with a drift share as the result.
    pub async fn score(&self, now: Timestamp, share: f64) -> Vec<store::Raised> {
        let job = self.claim_at(store::SCORE, now).await.unwrap();
        let payload: ScoreJob = serde_json::from_value(job.payload.clone()).unwrap();
        let task = self.store.begin_score(&payload).await.unwrap().unwrap();
        let scored = Scored {
            task,
            score: score(share),
            took: Duration::ZERO,
        };
        self.store.finish_score(&job.claim(), &scored, now).await.unwrap()
    }

    /// Whether a window is to be scored by then.
    pub async fn is_due(&self, now: Timestamp) -> bool {
        let due = self.jobs.next_run_at(&[store::SCORE.to_owned()]).await.unwrap();
        due.is_some_and(|due| due <= now)
    }

    pub async fn window(&self, start: &str) -> Option<modelyard_monitoring::model::score::MonitorWindow> {
        let monitor = self.store.find_monitor(PROJECT, "m").await.unwrap().unwrap();
        self.store.find_window(&monitor, at(start)).await.unwrap()
    }
}

fn endpoint_job() -> EndpointJob {
    EndpointJob {
        project: PROJECT.to_owned(),
        endpoint: ENDPOINT.to_owned(),
    }
}

fn segment(id: &str, day: &str) -> Segment {
    let file = SegmentFile {
        path: format!("event_date={day}/{id}-0.parquet"),
        size_bytes: 1,
        rows: 10,
        min_event_time: at(&format!("{day}T00:00:00Z")),
        max_event_time: at(&format!("{day}T12:00:00Z")),
    };
    Segment {
        id: id.to_owned(),
        files: vec![file],
    }
}

fn score(share: f64) -> WindowScore {
    let group = GroupScore {
        role: Role::Live,
        model: "m".to_owned(),
        version: 1,
        rows: 10,
        labels: 0,
        drift: Some(DriftScore {
            share: Some(share),
            drifted: vec![],
            columns: vec![],
        }),
        prediction_drift: None,
        performance: None,
        reference: None,
        notes: vec![],
    };
    WindowScore {
        requests: 10,
        labels: 0,
        groups: vec![group],
    }
}

pub fn labels(id: &str) -> LabelBatch {
    let label = Label {
        request_id: id.to_owned(),
        row: 0,
        label: Some(LabelValue::Number(1.0)),
        observed_at: at("2013-04-01T00:00:00Z"),
    };
    LabelBatch {
        id: id.to_owned(),
        labels: vec![label],
        max_observed_at: at("2013-04-01T00:00:00Z"),
    }
}

#[tokio::test]
async fn what_is_accepted_while_a_job_ends_gets_a_job_of_its_own() {
    for place in places().await {
        place.accept("a", "2013-03-01").await;
        let job = place.claim(store::COMMIT).await.unwrap();
        let segments = place.store.waiting_segments(PROJECT, ENDPOINT, 100).await.unwrap();
        assert_eq!(segments, [segment("a", "2013-03-01")]);
        // The job has read what waits, and another segment comes: it has no job, because one runs.
        place.accept("b", "2013-03-02").await;
        assert!(place.claim(store::COMMIT).await.is_none());
        let done = Committed {
            segments,
            refused: vec![],
        };
        place
            .store
            .finish_commit(&job.claim(), &endpoint_job(), &done, place.now)
            .await
            .unwrap();
        place.commit().await;
        assert!(place.claim(store::COMMIT).await.is_none());
        assert!(
            place
                .store
                .waiting_segments(PROJECT, ENDPOINT, 100)
                .await
                .unwrap()
                .is_empty()
        );

        for id in ["x", "y"] {
            place
                .store
                .accept_labels(PROJECT, ENDPOINT, &labels(id), place.now)
                .await
                .unwrap();
        }
        let job = place.claim(store::LABELS).await.unwrap();
        let done = Labelled {
            batches: vec!["x".to_owned()],
            ..Labelled::default()
        };
        place
            .store
            .finish_labels(&job.claim(), &endpoint_job(), &done, place.now)
            .await
            .unwrap();
        let waiting = place.store.waiting_labels(PROJECT, ENDPOINT, 100).await.unwrap();
        assert_eq!(waiting, [(labels("y"), place.now)]);
        assert!(place.claim(store::LABELS).await.is_some());
    }
}

#[tokio::test]
async fn nothing_is_left_behind_when_many_hand_over_while_jobs_end() {
    for place in places().await {
        let hand_over = async |part: usize| {
            for index in 0..20 {
                place.accept(&format!("s{part}-{index}"), "2013-03-01").await;
            }
        };
        let work = async || {
            for _ in 0..60 {
                let Some(job) = place.claim(store::COMMIT).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let segments = place.store.waiting_segments(PROJECT, ENDPOINT, 3).await.unwrap();
                let done = Committed {
                    segments,
                    refused: vec![],
                };
                place
                    .store
                    .finish_commit(&job.claim(), &endpoint_job(), &done, place.now)
                    .await
                    .unwrap();
            }
        };
        tokio::join!(hand_over(0), hand_over(1), hand_over(2), work());
        // As long as something waits, there is a job for it.
        while !place
            .store
            .waiting_segments(PROJECT, ENDPOINT, 1)
            .await
            .unwrap()
            .is_empty()
        {
            place.commit().await;
        }
        let left = place.jobs.count(Some(store::COMMIT)).await.unwrap();
        assert_eq!(left.unfinished(), 0);
    }
}

#[tokio::test]
async fn a_segment_is_one_however_often_it_is_handed_over() {
    for place in places().await {
        place.accept("a", "2013-03-01").await;
        place.commit().await;
        place.accept("a", "2013-03-01").await;
        assert!(place.claim(store::COMMIT).await.is_none());
        let other = segment("a", "2013-03-02");
        let error = place
            .store
            .accept_segment(PROJECT, ENDPOINT, &other, place.now)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(place.store.remove_ended_segments(place.now, 10).await.unwrap(), 0);
        let later = place.now + Duration::from_secs(1);
        assert_eq!(place.store.remove_ended_segments(later, 10).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn the_watermark_moves_forward_and_never_past_the_present() {
    for place in places().await {
        let watermark = async || place.store.watermark(PROJECT, ENDPOINT).await.unwrap();
        assert_eq!(watermark().await, None);
        place.accept("a", "2013-03-05").await;
        place.commit().await;
        assert_eq!(watermark().await, Some(at("2013-03-05T12:00:00Z")));
        place.accept("b", "2013-03-01").await;
        place.commit().await;
        assert_eq!(watermark().await, Some(at("2013-03-05T12:00:00Z")));
        place.accept("c", "2044-03-01").await;
        place.commit().await;
        assert_eq!(watermark().await, Some(place.now));
        let endpoints = place.store.endpoints(PROJECT, 10).await.unwrap();
        assert_eq!(endpoints, [(ENDPOINT.to_owned(), Some(place.now))]);
    }
}

#[tokio::test]
async fn a_window_is_scored_again_for_what_came_meanwhile_and_not_too_often() {
    for place in places().await {
        place.monitor().await;
        place.accept("a", "2013-03-01").await;
        place.commit().await;
        let job = place.claim(store::SCORE).await.unwrap();
        let payload: ScoreJob = serde_json::from_value(job.payload.clone()).unwrap();
        let task = place.store.begin_score(&payload).await.unwrap().unwrap();
        assert_eq!(task.span, Length::Month.span_of(at("2013-03-01T00:00:00Z")));
        place.accept("b", "2013-03-02").await;
        place.commit().await;
        assert!(place.claim(store::SCORE).await.is_none());
        let scored = Scored {
            task,
            score: score(0.1),
            took: Duration::ZERO,
        };
        place
            .store
            .finish_score(&job.claim(), &scored, place.now)
            .await
            .unwrap();
        let window = place.window("2013-03-01T00:00:00Z").await.unwrap();
        assert!(window.pending && window.requests == 10);
        assert!(place.claim(store::SCORE).await.is_none());
        let later = place.now + INTERVAL;
        place.score(later, 0.2).await;
        assert!(!place.window("2013-03-01T00:00:00Z").await.unwrap().pending);
        assert!(place.claim_at(store::SCORE, later + INTERVAL).await.is_none());
        // A score that failed says so until one succeeds.
        place.accept("c", "2013-03-03").await;
        place.commit().await;
        let job = place.claim_at(store::SCORE, later + INTERVAL).await.unwrap();
        let task = place.store.begin_score(&payload).await.unwrap().unwrap();
        place
            .store
            .give_up_score(&job.claim(), &task, "too large", later)
            .await
            .unwrap();
        let window = place.window("2013-03-01T00:00:00Z").await.unwrap();
        assert_eq!((window.error.as_deref(), window.pending), (Some("too large"), false));
        assert_eq!(place.store.sweep(later).await.unwrap(), 0);
        place.store.note_error(&payload, "the disk is full").await.unwrap();
        let noted = place.window("2013-03-01T00:00:00Z").await.unwrap().error;
        assert_eq!(noted.as_deref(), Some("the disk is full"));
    }
}

#[tokio::test]
async fn a_window_is_judged_once_and_raises_one_alert() {
    for place in places().await {
        place.monitor().await;
        place.rule().await;
        place.accept("march", "2013-03-01").await;
        place.commit().await;
        let mut now = place.now;
        assert_eq!(place.score(now, 0.9).await, []);
        let window = place.window("2013-03-01T00:00:00Z").await.unwrap();
        assert!(!window.closed && !window.evaluated);

        // Time goes on: the window closes, and is judged.
        place.accept("april", "2013-04-02").await;
        place.commit().await;
        now = now + INTERVAL;
        let mut raised = Vec::new();
        while place.is_due(now).await {
            raised.extend(place.score(now, 0.9).await);
        }
        assert_eq!(raised.len(), 1);
        assert_eq!(raised[0].rule, "r");
        let window = place.window("2013-03-01T00:00:00Z").await.unwrap();
        assert!(window.closed && window.evaluated);
        assert_eq!(window.alert.as_deref(), Some(raised[0].alert.as_str()));
        let job = place.claim_at(store::FIRE, now).await.unwrap();
        assert_eq!(job.key.as_deref(), Some(raised[0].alert.as_str()));

        // More rows of March change its score and nothing else.
        place.accept("more", "2013-03-20").await;
        place.commit().await;
        now = now + INTERVAL;
        assert_eq!(place.score(now, 0.95).await, []);
        assert!(place.window("2013-03-01T00:00:00Z").await.unwrap().evaluated);

        // A fine April resolves the alert.
        assert_eq!(place.store.count_firing().await.unwrap(), 1);
        place.accept("may", "2013-05-02").await;
        place.commit().await;
        now = now + INTERVAL;
        while place.is_due(now).await {
            place.score(now, 0.1).await;
        }
        assert_eq!(place.store.count_firing().await.unwrap(), 0);
        let page = PageRequest::new(None, None).unwrap();
        let alerts = place
            .store
            .list_alerts(PROJECT, &AlertFilter::default(), &page)
            .await
            .unwrap();
        assert_eq!(alerts.items.len(), 1);
        assert!(alerts.items[0].resolved_at.is_some());

        // The trigger's run is noted once.
        let alert = &alerts.items[0].id;
        assert!(place.store.alert_to_fire(alert).await.unwrap().is_some());
        place.store.alert_not_fired(alert, "away").await.unwrap();
        place.store.alert_fired(alert, "run").await.unwrap();
        place.store.alert_fired(alert, "another").await.unwrap();
        assert!(place.store.alert_to_fire(alert).await.unwrap().is_none());
        let found = place.store.find_alert(PROJECT, alert).await.unwrap().unwrap();
        assert_eq!(
            (found.pipeline_run_id.as_deref(), found.trigger_error),
            (Some("run"), None)
        );
    }
}

#[tokio::test]
async fn a_window_with_rows_on_their_way_is_not_judged() {
    for place in places().await {
        place.monitor().await;
        place.rule().await;
        place.accept("march", "2013-03-01").await;
        place.accept("april", "2013-04-02").await;
        place.commit().await;
        // Rows of March are known that are not in the log yet.
        place.accept("late", "2013-03-31").await;
        let window = async || place.window("2013-03-01T00:00:00Z").await.unwrap();
        assert_eq!(place.score(place.now, 0.9).await, []);
        assert!(!window().await.evaluated);
        place.score(place.now, 0.1).await;
        place.commit().await;
        let raised = place.score(place.now + INTERVAL, 0.9).await;
        assert_eq!(raised.len(), 1);
        assert!(window().await.evaluated);
    }
}

#[tokio::test]
async fn the_sweep_finds_what_has_no_job() {
    for place in places().await {
        place.monitor().await;
        place.accept("a", "2013-03-01").await;
        place.commit().await;
        place.accept("b", "2013-03-01").await;
        place
            .store
            .accept_labels(PROJECT, ENDPOINT, &labels("x"), place.now)
            .await
            .unwrap();
        assert_eq!(place.store.sweep(place.now).await.unwrap(), 0);
        // All jobs are given up, as after errors without end.
        for queue in [store::COMMIT, store::LABELS, store::SCORE] {
            let job = place.claim(queue).await.unwrap();
            place.jobs.fail(&job.claim(), "given up", place.now).await.unwrap();
        }
        assert_eq!(place.store.sweep(place.now).await.unwrap(), 3);
        assert_eq!(place.store.sweep(place.now).await.unwrap(), 0);
        for queue in [store::COMMIT, store::LABELS, store::SCORE] {
            assert!(place.claim(queue).await.is_some(), "{queue}");
        }
    }
}
