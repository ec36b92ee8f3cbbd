//! What the store forgets, on both databases.

use modelyard_common::Timestamp;
use modelyard_monitoring::store::{self, EndpointJob, Labelled};

use crate::stores::{ENDPOINT, INTERVAL, PROJECT, labels, places};

#[tokio::test]
async fn windows_that_stay_as_they_are_are_forgotten_with_their_judgements() {
    for place in places().await {
        place.monitor().await;
        place.rule().await;
        let forget = async |older_than, limit| place.store.forget_windows(older_than, limit).await.unwrap();
        for (id, day) in [("jan", "2013-01-05"), ("feb", "2013-02-05"), ("march", "2013-03-05")] {
            place.accept(id, day).await;
            place.commit().await;
        }
        let now = place.now;
        let later = now + INTERVAL;
        // Nobody has scored them yet.
        assert_eq!(forget(later, 10).await, 0);
        while place.is_due(later).await {
            place.score(later, 0.1).await;
        }
        assert!(place.window("2013-01-01T00:00:00Z").await.unwrap().evaluated);
        assert_eq!(forget(now, 10).await, 0);
        // April closes March, which so has changed later than the others.
        let mut place = place;
        place.now = later;
        place.accept("april", "2013-04-05").await;
        place.commit().await;
        while place.is_due(later + INTERVAL).await {
            place.score(later + INTERVAL, 0.1).await;
        }
        let forget = async |older_than, limit| place.store.forget_windows(older_than, limit).await.unwrap();
        assert_eq!(forget(later, 1).await, 1);
        assert_eq!(forget(later, 10).await, 1);
        assert_eq!(forget(later, 10).await, 0);
        for (start, there) in [
            ("2013-01", false),
            ("2013-02", false),
            ("2013-03", true),
            ("2013-04", true),
        ] {
            let window = place.window(&format!("{start}-01T00:00:00Z")).await;
            assert_eq!(window.is_some(), there, "{start}");
        }
        // What comes later begins the window anew: it is scored and judged as if it never had been.
        place.accept("late", "2013-01-20").await;
        place.commit().await;
        let raised = place.score(later + INTERVAL, 0.9).await;
        assert_eq!(raised.len(), 1);
        assert!(place.window("2013-01-01T00:00:00Z").await.unwrap().evaluated);
        assert_eq!(place.store.sweep(later + INTERVAL).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn alerts_are_forgotten_after_their_end_and_a_rule_keeps_the_one_that_fires() {
    for place in places().await {
        place.monitor().await;
        place.rule().await;
        let mut now = place.now;
        let forget = async |older_than, limit| place.store.forget_alerts(older_than, limit).await.unwrap();
        let next = async |id: &str, day: &str, now: Timestamp, share: f64| {
            place.accept(id, day).await;
            place.commit().await;
            while place.is_due(now).await {
                place.score(now, share).await;
            }
        };
        next("march", "2013-03-01", now, 0.9).await;
        for (id, day) in [("april", "2013-04-02"), ("may", "2013-05-02"), ("june", "2013-06-02")] {
            now = now + INTERVAL;
            next(id, day, now, 0.9).await;
        }
        assert_eq!(place.store.count_firing().await.unwrap(), 3);
        let end = now + INTERVAL;
        assert_eq!(forget(place.now, 10).await, 0);
        assert_eq!(forget(end, 1).await, 1);
        // The last one fires still.
        assert_eq!(forget(end, 10).await, 1);
        assert_eq!(forget(end, 10).await, 0);
        assert_eq!(place.store.count_firing().await.unwrap(), 1);
        now = now + INTERVAL;
        next("july", "2013-07-02", now, 0.1).await;
        assert_eq!(place.store.count_firing().await.unwrap(), 0);
        assert_eq!(forget(now, 10).await, 0);
        assert_eq!(forget(now + INTERVAL, 10).await, 1);
    }
}

#[tokio::test]
async fn endpoints_that_only_ever_got_labels_are_forgotten() {
    for place in places().await {
        place.monitor().await;
        let orphan = EndpointJob {
            project: PROJECT.to_owned(),
            endpoint: "misspelled".to_owned(),
        };
        let batch = labels("x");
        let accepted = place.store.accept_labels(PROJECT, &orphan.endpoint, &batch, place.now);
        accepted.await.unwrap();
        let later = place.now + INTERVAL;
        let forget = async |older_than| place.store.forget_endpoints(older_than, 10).await.unwrap();
        // Its labels wait.
        assert_eq!(forget(later).await, 0);
        let job = place.claim(store::LABELS).await.unwrap();
        let done = Labelled {
            batches: vec![batch.id],
            ..Labelled::default()
        };
        let claim = job.claim();
        let finished = place.store.finish_labels(&claim, &orphan, &done, place.now);
        finished.await.unwrap();
        assert_eq!(forget(place.now).await, 0);
        assert_eq!(forget(later).await, 1);
        let left = place.store.endpoints(PROJECT, 10).await.unwrap();
        assert_eq!(left, [(ENDPOINT.to_owned(), None)]);
    }
}
