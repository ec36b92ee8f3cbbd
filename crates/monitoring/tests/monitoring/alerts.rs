//! Alert rules and alerts.

use std::sync::atomic::Ordering;

use http::{Method, StatusCode};
use modelyard_testkit::{postgres::test_databases, wait::until};
use serde_json::{Value, json};

use crate::world::{PATIENCE, Row, World, rows};

const MARCH: &str = "2013-03-01T00:00:00Z";
const APRIL: &str = "2013-04-01T00:00:00Z";
const MAY: &str = "2013-05-01T00:00:00Z";

/// Rows whose probabilities say the opposite.
fn bad_rows(count: usize, start: &str) -> Vec<Row> {
    let mut rows = rows(count, start);
    for row in &mut rows {
        row.probability = 1.0 - row.probability;
    }
    rows
}

async fn evaluated(world: &World, month: &str) -> Value {
    world
        .wait_window(month, "the judgement", |window| window["evaluated"] == true)
        .await
}

#[tokio::test]
async fn a_bad_window_fires_one_alert_and_a_good_one_resolves_it() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        world.rule(json!([{"metric": "auc", "drop": 0.02}])).await;
        let march = bad_rows(300, MARCH);
        world.log("march", &march).await;
        // Not closed, and too few labels: nothing is judged.
        world.label(&march[..100], "2013-03-30T00:00:00Z").await;
        let window = world
            .wait_window("2013-03", "some labels", |window| window["labels"] == 100)
            .await;
        assert_eq!(
            (&window["closed"], &window["evaluated"]),
            (&json!(false), &json!(false))
        );
        world.label(&march[100..200], APRIL).await;
        let window = world
            .wait_window("2013-03", "more labels", |window| window["labels"] == 200)
            .await;
        assert_eq!((&window["closed"], &window["evaluated"]), (&json!(true), &json!(false)));
        world.label(&march[200..], APRIL).await;
        let window = evaluated(&world, "2013-03").await;
        let id = window["alert"].as_str().unwrap().to_owned();

        let path = format!("alerts/{id}");
        let fired = async || {
            let alert = world.get(&path).await;
            alert["pipeline_run_id"].is_string().then_some(alert)
        };
        let alert = until("the trigger", PATIENCE, fired).await;
        assert_eq!(
            (&alert["state"], &alert["version"], &alert["rule"]),
            (&json!("firing"), &json!(1), &json!("decay"))
        );
        assert_eq!(alert["window"], json!({"start": MARCH, "end": APRIL}));
        assert_eq!(alert["pipeline_run_id"], format!("run of alert:{id}"));
        // Rollouts that the rule guards are told of it as well.
        let told = world.orchestrator.told.lock().get(&id).cloned().unwrap();
        assert_eq!((told.rule.as_str(), told.version), ("decay", 1));
        assert!(told.reason.starts_with("auc is "), "{}", told.reason);
        let condition = &alert["conditions"][0];
        assert_eq!(
            (&condition["metric"], &condition["reference"], &condition["threshold"]),
            (&json!("auc"), &json!(0.7), &json!(0.02))
        );

        // The same window is scored again and again: its alert stays the only one.
        for part in 0..3 {
            world
                .log(&format!("again-{part}"), &march[part * 50..part * 50 + 50])
                .await;
            world
                .label(&march[part..=part], &format!("2013-04-0{}T00:00:00Z", part + 2))
                .await;
        }
        let good = rows(300, APRIL);
        world.log("april", &good).await;
        world.label(&good, MAY).await;
        let window = evaluated(&world, "2013-04").await;
        assert_eq!(window["alert"], Value::Null);
        let resolved = world.get("alerts?state=resolved&rule=decay").await;
        assert_eq!(resolved["items"].as_array().unwrap().len(), 1);
        assert_eq!(resolved["items"][0]["id"], id.as_str());
        assert!(resolved["items"][0]["resolved_at"].is_string());
        assert_eq!(world.get("alerts?state=firing").await["items"], json!([]));
        assert_eq!(world.orchestrator.calls.load(Ordering::SeqCst), 1);
        let event: Value =
            serde_json::from_str(&world.orchestrator.fired.lock()[&format!("alert:{id}")].event_json).unwrap();
        assert_eq!(
            (&event["alert"], &event["version"], &event["window"]["start"]),
            (&json!(id), &json!(1), &json!(MARCH))
        );
    }
}

#[tokio::test]
async fn a_trigger_is_fired_until_that_succeeds_also_after_a_crash() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        world.rule(json!([{"metric": "auc", "drop": 0.02}])).await;
        world.orchestrator.away.store(true, Ordering::SeqCst);
        let march = bad_rows(300, MARCH);
        world.log("march", &march).await;
        world.label(&march, APRIL).await;
        let alert = evaluated(&world, "2013-03").await["alert"].as_str().unwrap().to_owned();
        let path = format!("alerts/{alert}");
        let refused = async || world.get(&path).await["trigger_error"].is_string().then_some(());
        until("a first failure", PATIENCE, refused).await;
        let world = world.crash_and_restart().await;
        assert_eq!(world.get(&path).await["pipeline_run_id"], Value::Null);
        world.orchestrator.away.store(false, Ordering::SeqCst);
        let alert = until("the trigger", PATIENCE, async || {
            let alert = world.get(&path).await;
            alert["pipeline_run_id"].is_string().then_some(alert)
        })
        .await;
        assert_eq!(alert["trigger_error"], Value::Null);
        assert_eq!(world.orchestrator.fired.lock().len(), 1);
    }
}

#[tokio::test]
async fn labels_are_waited_for_no_longer_than_the_rule_says() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        world.rule(json!([{"metric": "auc", "drop": 0.02}])).await;
        let march = bad_rows(300, MARCH);
        world.log("march", &march).await;
        world.label(&march[..150], APRIL).await;
        let window = world
            .wait_window("2013-03", "half of the labels", |window| window["labels"] == 150)
            .await;
        assert_eq!(window["evaluated"], false);
        // Event time goes on: fourteen days after the end the rule judges what is there.
        let later: Vec<Row> = rows(450, APRIL);
        world.log("april", &later).await;
        let window = evaluated(&world, "2013-03").await;
        assert!(window["alert"].is_string());
    }
}

#[tokio::test]
async fn drift_alone_fires_and_a_rule_judges_only_what_ends_after_it_was_declared() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        let drifted = |start| {
            let mut rows = rows(600, start);
            for row in &mut rows {
                row.distance += 5000.0;
                row.carrier = "ZZ";
            }
            rows
        };
        world.log("march", &drifted(MARCH)).await;
        world.log("april-begins", &drifted(APRIL)[..5]).await;
        world
            .wait_window("2013-03", "march", |window| window["closed"] == true)
            .await;
        let spec = json!({"monitor": "m", "any": [{"metric": "drift_share", "above": 0.5}]});
        world.put("alert-rules/drift", spec).await;
        world.log("april", &drifted(APRIL)).await;
        world.log("may-begins", &drifted(MAY)[..5]).await;
        let window = evaluated(&world, "2013-04").await;
        let alert = world
            .get(&format!("alerts/{}", window["alert"].as_str().unwrap()))
            .await;
        assert_eq!(
            (&alert["trigger"], &alert["conditions"][0]["value"]),
            (&Value::Null, &json!(1.0))
        );
        assert_eq!(world.window("2013-03").await.unwrap()["evaluated"], false);

        // A rule that is deleted leaves no alert firing, and lets its monitor go.
        let (status, problem) = world.call(Method::DELETE, "monitors/m", None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        assert_eq!(
            world.call(Method::DELETE, "alert-rules/drift", None).await.0,
            StatusCode::NO_CONTENT
        );
        assert_eq!(world.get("alerts").await["items"][0]["state"], "resolved");
        assert_eq!(
            world.call(Method::DELETE, "monitors/m", None).await.0,
            StatusCode::NO_CONTENT
        );
        assert_eq!(
            world.call(Method::GET, "monitors/m/windows", None).await.0,
            StatusCode::NOT_FOUND
        );
    }
}
