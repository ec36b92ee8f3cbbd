//! Windows and their scores.

use std::{sync::atomic::Ordering, time::Duration};

use http::{Method, StatusCode};
use modelyard_testkit::postgres::test_databases;
use serde_json::{Value, json};

use crate::world::{Row, World, auc_by_pairs, rows};

const MARCH: &str = "2013-03-01T00:00:00Z";
const APRIL: &str = "2013-04-01T00:00:00Z";

fn group<'a>(window: &'a Value, role: &str, version: u32) -> &'a Value {
    let groups = window["groups"].as_array().unwrap();
    groups
        .iter()
        .find(|group| group["role"] == role && group["version"] == version)
        .unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[tokio::test]
async fn a_window_has_drift_and_performance_of_every_version() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        let march = rows(600, MARCH);
        let shadows: Vec<Row> = march
            .iter()
            .map(|row| Row {
                role: "shadow",
                probability: 0.5,
                ..row.clone()
            })
            .collect();
        world.log("march", &march).await;
        world.log("march-shadow", &shadows).await;
        let mut april = rows(600, APRIL);
        for row in &mut april {
            row.distance += 2000.0;
        }
        world.log("april", &april).await;

        let window = world
            .wait_window("2013-03", "march", |window| window["groups"][1]["rows"] == 600)
            .await;
        assert_eq!((&window["requests"], &window["labels"]), (&json!(600), &json!(0)));
        assert_eq!((&window["closed"], &window["evaluated"]), (&json!(true), &json!(false)));
        let live = group(&window, "live", 1);
        assert_eq!(live["drift"]["share"], 0.0, "{live}");
        let columns: Vec<_> = live["drift"]["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| &column["column"])
            .collect();
        assert_eq!(columns, ["carrier", "distance"]);
        assert_eq!(
            (&live["performance"], &live["reference"]["auc"]),
            (&Value::Null, &json!(0.7))
        );
        assert_eq!(group(&window, "shadow", 1)["drift"], Value::Null);

        world.label(&march, APRIL).await;
        let window = world
            .wait_window("2013-03", "labels", |window| window["labels"] == 600)
            .await;
        assert_eq!(window["label_share"], 1.0);
        let auc = number(&group(&window, "live", 1)["performance"]["auc"]);
        assert!(
            (auc - auc_by_pairs(&march)).abs() < 1e-12,
            "{auc} {}",
            auc_by_pairs(&march)
        );
        assert_eq!(group(&window, "shadow", 1)["performance"]["auc"], 0.5);

        let window = world
            .wait_window("2013-04", "april", |window| window["requests"] == 600)
            .await;
        let live = group(&window, "live", 1);
        assert_eq!(live["drift"]["share"], 0.5);
        assert_eq!(live["drift"]["drifted"], json!(["distance"]));
        // What happened on April 26 and later is not over: the log's last event is there.
        assert_eq!(window["closed"], false);

        let newest = world.get("monitors/m/windows?limit=1").await;
        assert_eq!(newest["items"][0]["start"], APRIL);
        let cursor = newest["next_cursor"].as_str().unwrap();
        let next = world.get(&format!("monitors/m/windows?limit=1&cursor={cursor}")).await;
        assert_eq!(
            (&next["items"][0]["start"], &next["next_cursor"]),
            (&json!(MARCH), &Value::Null)
        );
        let oldest = world.get("monitors/m/windows?order=asc").await;
        assert_eq!(oldest["items"][0]["start"], MARCH);
    }
}

#[tokio::test]
async fn an_answer_counts_once_however_often_it_is_repeated() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.register(2, 0.7).await;
        world.monitor().await;
        let march = rows(300, MARCH);
        let late = Duration::from_hours(1);
        // A client's repetitions: by the same version, and by a later one. They would turn every prediction around.
        let repeat = |version| -> Vec<Row> {
            let turned = |row: &Row| Row {
                version,
                received_at: row.received_at + late,
                probability: 1.0 - row.probability,
                ..row.clone()
            };
            march.iter().map(turned).collect()
        };
        // They arrive before what they repeat.
        world.log("repeated", &repeat(1)).await;
        world.log("repeated-by-2", &repeat(2)[..200]).await;
        world.label(&march, APRIL).await;
        world.log("first", &march).await;
        // A crash of the gateway's: the same rows in another segment. And the same segment handed over again.
        world.log("first-again", &march).await;
        world.log("first", &march).await;

        let window = world
            .wait_window("2013-03", "each answer once", |window| {
                window["requests"] == 300
                    && window["labels"] == 300
                    && window["groups"].as_array().unwrap().len() == 1
                    && number(&window["groups"][0]["performance"]["auc"]) > 0.5
            })
            .await;
        let auc = number(&group(&window, "live", 1)["performance"]["auc"]);
        assert!((auc - auc_by_pairs(&march)).abs() < 1e-12);
    }
}

#[tokio::test]
async fn the_same_rows_give_the_same_score_in_whatever_order_they_arrive() {
    let mut scores = Vec::new();
    for order in [[0, 1, 2], [2, 0, 1]] {
        for place in test_databases().await.unwrap() {
            let world = World::start(&place).await;
            world.register(1, 0.7).await;
            world.monitor().await;
            let march = rows(900, MARCH);
            world.label(&march[400..], APRIL).await;
            for part in order {
                world
                    .log(&format!("s{part}"), &march[part * 300..(part + 1) * 300])
                    .await;
            }
            world.label(&march[..400], "2013-04-02T00:00:00Z").await;
            let window = world
                .wait_window("2013-03", "all", |window| {
                    window["requests"] == 900 && window["labels"] == 900
                })
                .await;
            scores.push(window["groups"].clone());
        }
    }
    assert!(scores.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn of_several_labels_the_latest_known_holds() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        let march = rows(120, MARCH);
        let turned = |row: &Row| Row {
            late: !row.late,
            ..row.clone()
        };
        let wrong: Vec<Row> = march.iter().map(turned).collect();
        world.log("march", &march).await;
        // The right labels are known later, and arrive first.
        world.label(&march, "2013-04-03T00:00:00Z").await;
        world.label(&wrong, APRIL).await;
        world.label(&march, "2013-04-03T00:00:00Z").await;
        let right = auc_by_pairs(&march);
        let is_right = |window: &Value| {
            window["labels"] == 120 && (number(&window["groups"][0]["performance"]["auc"]) - right).abs() < 1e-12
        };
        world.wait_window("2013-03", "the right labels", is_right).await;

        // One is taken back.
        let id = &march[7].request_id;
        world
            .send_labels(vec![
                json!({"request_id": id, "label": null, "observed_at": "2013-04-04T00:00:00Z"}),
            ])
            .await;
        world
            .wait_window("2013-03", "one label less", |window| window["labels"] == 119)
            .await;
        // A label of a request that nobody has seen changes nothing.
        world
            .send_labels(vec![
                json!({"request_id": "unknown", "label": 1, "observed_at": "2013-04-04T00:00:00Z"}),
            ])
            .await;
        world
            .wait_window("2013-03", "still", |window| {
                window["labels"] == 119 && window["requests"] == 120
            })
            .await;
    }
}

#[tokio::test]
async fn a_monitor_declared_late_finds_what_is_in_the_log() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        let march = rows(240, MARCH);
        world.log("march", &march).await;
        world.label(&march, APRIL).await;
        world
            .put(
                "monitors/days",
                json!({"endpoint": crate::world::ENDPOINT, "window": "day", "min_rows": 1}),
            )
            .await;
        world.monitor().await;
        world
            .wait_window("2013-03", "the month", |window| {
                window["requests"] == 240 && window["labels"] == 240
            })
            .await;
        let days = modelyard_testkit::wait::until("ten days", crate::world::PATIENCE, async || {
            let days = world.get("monitors/days/windows?order=asc").await;
            let items = days["items"].as_array().unwrap().clone();
            (items.len() == 10 && items.iter().all(|day| day["labels"] == 24)).then_some(items)
        })
        .await;
        assert_eq!(days[9]["start"], "2013-03-10T00:00:00Z");

        // Another threshold scores everything anew.
        let strict = json!({"endpoint": crate::world::ENDPOINT, "window": "month", "min_rows": 100,
                            "tests": "psi", "thresholds": {"psi": 0.0}});
        world.put("monitors/m", strict).await;
        let window = world.wait_window("2013-03", "psi", |window| {
            window["groups"][0]["drift"]["columns"][0]["test"] == "psi"
        });
        assert_eq!(window.await["groups"][0]["drift"]["columns"][0]["threshold"], 0.0);
        let (status, problem) = world
            .call(
                Method::PUT,
                "monitors/m",
                Some(json!({"endpoint": "other", "window": "month"})),
            )
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    }
}

#[tokio::test]
async fn what_was_accepted_is_scored_after_a_crash() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        world.registry.away.store(true, Ordering::SeqCst);
        let march = rows(300, MARCH);
        world.log("a", &march[..200]).await;
        let world = world.crash_and_restart().await;
        world.label(&march, APRIL).await;
        world.log("b", &march[200..]).await;
        let world = world.crash_and_restart().await;
        assert!(world.window("2013-03").await.is_none());
        world.registry.away.store(false, Ordering::SeqCst);
        world
            .wait_window("2013-03", "all rows", |window| {
                window["requests"] == 300 && window["labels"] == 300
            })
            .await;
    }
}
