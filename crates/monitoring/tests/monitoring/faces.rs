//! The HTTP face: resources, refusals, the story of a prediction, the description.

use http::{Method, StatusCode};
use modelyard_testkit::{
    postgres::{TestDatabase, test_databases},
    wait::until,
};
use serde_json::{Value, json};

use crate::world::{ENDPOINT, PATIENCE, Row, World, rows};

const MARCH: &str = "2013-03-01T00:00:00Z";

async fn world() -> (TestDatabase, World) {
    let place = TestDatabase::sqlite().unwrap();
    let world = World::start(&place).await;
    (place, world)
}

#[tokio::test]
async fn the_story_of_a_prediction_names_version_run_dataset_and_label() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(3, 0.7).await;
        let mut march: Vec<Row> = rows(20, MARCH);
        for row in &mut march {
            row.version = 3;
        }
        let shadow = Row {
            role: "shadow",
            version: 1,
            probability: 0.5,
            ..march[4].clone()
        };
        world.log("march", &march).await;
        world.log("shadow", std::slice::from_ref(&shadow)).await;
        world.label(&march[4..5], "2013-04-01T00:00:00Z").await;
        let path = format!("predictions/{}", shadow.request_id);
        let complete = async || {
            let (status, story) = world.call(Method::GET, &path, None).await;
            let rows = story["rows"].as_array().map_or(0, Vec::len);
            (status == StatusCode::OK && rows == 2 && story["rows"][0]["label"].is_object()).then_some(story)
        };
        let story = until("both answers and the label", PATIENCE, complete).await;
        assert_eq!(story["endpoint"], ENDPOINT);
        let live = &story["rows"][0];
        assert_eq!(
            (&live["role"], &live["version"], &live["protocol"]),
            (&json!("live"), &json!(3), &json!("http"))
        );
        assert_eq!(live["inputs"], json!({"distance": 148.0, "carrier": "UA"}));
        assert_eq!(
            live["label"],
            json!({"value": false, "observed_at": "2013-04-01T00:00:00Z"})
        );
        assert_eq!(story["rows"][1]["role"], "shadow");
        assert_eq!(story["model_version"]["version"], 3);
        assert_eq!(story["model_version"]["dataset_version"], 3);
        assert_eq!(story["run"]["run_id"], "run-3");
        assert_eq!(story["run"]["inputs"][0]["dataset"], "flights");
        let named = world.get(&format!("{path}?endpoint={ENDPOINT}")).await;
        assert_eq!(named["request_id"], shadow.request_id);

        let (status, problem) = world.call(Method::GET, "predictions/nobody", None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("`nobody`") && detail.contains("flush interval"),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn resources_are_declared_listed_and_removed() {
    let (_place, world) = world().await;
    let spec = json!({"endpoint": ENDPOINT, "window": "month"});
    let created = world.put("monitors/m", spec.clone()).await;
    assert_eq!(
        (&created["outcome"], &created["resource"]["kind"]),
        (&json!("created"), &json!("Monitor"))
    );
    assert_eq!(created["resource"]["spec"]["min_rows"], 200);
    assert_eq!(world.put("monitors/m", spec.clone()).await["outcome"], "unchanged");
    let changed = json!({"endpoint": ENDPOINT, "window": "month", "min_rows": 50});
    assert_eq!(world.put("monitors/m", changed).await["outcome"], "updated");
    world.put("monitors/n", spec).await;
    let page = world.get("monitors?limit=1").await;
    assert_eq!(
        (&page["items"][0]["name"], &page["next_cursor"]),
        (&json!("m"), &json!("m"))
    );
    let page = world.get("monitors?limit=1&cursor=m").await;
    assert_eq!(
        (&page["items"][0]["name"], &page["next_cursor"]),
        (&json!("n"), &Value::Null)
    );
    assert_eq!(world.get("monitors/m").await["spec"]["min_rows"], 50);

    let rule = json!({"monitor": "m", "any": [{"metric": "drift_share", "above": 0.5}]});
    assert_eq!(
        world.put("alert-rules/r", rule.clone()).await["resource"]["kind"],
        "AlertRule"
    );
    assert_eq!(world.put("alert-rules/r", rule).await["outcome"], "unchanged");
    assert_eq!(world.get("alert-rules").await["items"][0]["name"], "r");
    assert_eq!(world.get("alert-rules/r").await["spec"]["labels"], Value::Null);
    for path in ["alert-rules/r", "monitors/m", "monitors/n"] {
        assert_eq!(world.call(Method::DELETE, path, None).await.0, StatusCode::NO_CONTENT);
        assert_eq!(world.call(Method::DELETE, path, None).await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn the_examples_of_the_flights_are_valid() {
    let (_place, world) = world().await;
    // As the command line hands them over: the `spec` of each file.
    world
        .put(
            "monitors/flight-delay",
            json!({"endpoint": ENDPOINT, "window": "month", "tests": "auto"}),
        )
        .await;
    let any = json!([{"metric": "auc", "drop": 0.02}, {"metric": "drift_share", "above": 0.5}]);
    let rule = json!({"monitor": "flight-delay", "labels": {"share": 0.95, "within": "14d"}, "any": any,
                      "trigger": "retrain-flight-delay"});
    world.put("alert-rules/flight-delay-decay", rule).await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong_and_store_nothing() {
    let (_place, world) = world().await;
    world
        .put("monitors/m", json!({"endpoint": ENDPOINT, "window": "month"}))
        .await;
    let label = |change: fn(&mut Value)| {
        let mut body = json!({"endpoint": ENDPOINT, "labels":
            [{"request_id": "a", "label": 1, "observed_at": "2013-04-01T00:00:00Z"}]});
        change(&mut body);
        Some(body)
    };
    let many: Vec<Value> = (0..10_001)
        .map(|index| json!({"request_id": index.to_string(), "label": 1, "observed_at": "2013-04-01T00:00:00Z"}))
        .collect();
    let cases: Vec<(Method, &str, Option<Value>, u16, &str)> = vec![
        (Method::PUT, "monitors/m%20m", Some(json!({})), 400, "`m m`"),
        (
            Method::PUT,
            "monitors/x",
            Some(json!({"endpoint": "e", "window": "year", "colour": 1})),
            400,
            "colour",
        ),
        (Method::PUT, "monitors/x", None, 400, "not marked as JSON"),
        (Method::GET, "monitors/x", None, 404, "`x`"),
        (Method::GET, "monitors/x/windows", None, 404, "`x`"),
        (Method::GET, "monitors/m/windows/2013-03", None, 404, "2013-03-01"),
        (Method::GET, "monitors/m/windows/march", None, 400, "`march`"),
        (Method::GET, "monitors?limit=0", None, 400, "limit is 0"),
        (Method::GET, "monitors?page=2", None, 400, "page"),
        (Method::GET, "monitors/m/windows?cursor=x", None, 400, "cursor"),
        (Method::GET, "monitors/m/windows?order=random", None, 400, "order"),
        (
            Method::PUT,
            "alert-rules/r",
            Some(json!({"monitor": "x", "any": [{"metric": "auc", "drop": 1}]})),
            400,
            "`x`",
        ),
        (
            Method::PUT,
            "alert-rules/r",
            Some(json!({"monitor": "m", "any": []})),
            400,
            "any",
        ),
        (Method::GET, "alert-rules/r", None, 404, "`r`"),
        (Method::GET, "alerts/none", None, 404, "`none`"),
        (Method::GET, "alerts?state=loud", None, 400, "loud"),
        (Method::GET, "alerts?cursor=x", None, 400, "cursor"),
        (
            Method::POST,
            "labels",
            label(|body| body["endpoint"] = json!("../e")),
            400,
            "../e",
        ),
        (
            Method::POST,
            "labels",
            label(|body| body["labels"] = json!([])),
            400,
            "0 labels",
        ),
        (
            Method::POST,
            "labels",
            label(|body| body["labels"][0]["label"] = json!([1])),
            400,
            "label",
        ),
        (
            Method::POST,
            "labels",
            label(|body| body["labels"][0]["observed_at"] = json!("soon")),
            400,
            "`soon`",
        ),
        (
            Method::POST,
            "labels",
            label(|body| body["labels"][0]["observed_at"] = json!("9000-01-01T00:00:00Z")),
            400,
            "past",
        ),
        (
            Method::POST,
            "labels",
            Some(json!({"endpoint": ENDPOINT, "labels": many})),
            400,
            "10001 labels",
        ),
        (Method::GET, "predictions/a?endpoint=..", None, 400, "`..`"),
    ];
    for (method, path, body, status, named) in cases {
        let (found, problem) = world.call(method, path, body).await;
        assert_eq!(found.as_u16(), status, "{path}: {problem}");
        let detail = problem["detail"]
            .as_str()
            .unwrap_or_else(|| panic!("{path}: {problem}"));
        assert!(detail.contains(named), "{path}: {detail}");
    }
    assert_eq!(world.get("monitors").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("alert-rules").await["items"], json!([]));
}

#[tokio::test]
async fn a_project_that_does_not_exist_is_named() {
    let (_place, world) = world().await;
    let (status, problem) = world
        .call_in("/api/v1/projects/other", Method::GET, "monitors", None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(problem["reason"], "NOT_FOUND");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("project `other` does not exist"), "{detail}");
}
