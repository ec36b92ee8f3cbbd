//! What can be declared, and what is refused.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::World;

fn value(name: &str) -> Value {
    json!({"name": name, "op": "value"})
}

fn train(with: &Value) -> Value {
    json!({"steps": [{"name": "t", "op": "train", "with": with}]})
}

/// Definitions that cannot run, and what the refusal must say.
fn bad_pipelines() -> Vec<(Value, Vec<&'static str>)> {
    let needs = |name: &str, needs: &[&str]| json!({"name": name, "op": "value", "needs": needs});
    vec![
        (json!({"steps": []}), vec!["steps: there is none"]),
        (
            json!({"steps": [value("a"), value("a")]}),
            vec!["step `a`: there are two of this name"],
        ),
        (
            json!({"steps": [value("a.b")]}),
            vec!["step 1 (`a.b`): a name has 1 to 64"],
        ),
        (
            json!({"steps": [{"name": "a", "op": "dance"}]}),
            vec!["step `a`: there is no op `dance`: use one of dataset, evaluate"],
        ),
        (
            json!({"steps": [needs("a", &["c"]), needs("b", &["a"]), needs("c", &["b"])]}),
            vec!["there is a cycle: `a` needs `c` needs `b` needs `a`"],
        ),
        (
            json!({"steps": [needs("a", &["a"])]}),
            vec!["there is a cycle: `a` needs `a`"],
        ),
        (
            json!({"steps": [
                {"name": "a", "op": "value", "with": {"x": "{{ steps.b.outputs.y }}"}},
                {"name": "b", "op": "value", "with": {"x": "{{ steps.a.outputs.y }}"}},
            ]}),
            vec!["`a` needs `b` needs `a`"],
        ),
        (
            json!({"steps": [needs("a", &["z"])]}),
            vec!["step `a`: needs: there is no step `z`"],
        ),
        (
            json!({"steps": [{"name": "a", "op": "value", "with": {"x": "{{ parameters.p }}", "y": "{{ steps.z.outputs }}"}}]}),
            vec![
                "step `a`: with.x: there is no parameter `p`",
                "step `a`: with.y: there is no step `z`",
            ],
        ),
        (
            json!({"steps": [{"name": "a", "op": "value", "with": {"x": "{{ event.id }}", "y": "{{ 1 + 1 }}"}}]}),
            vec!["a pipeline knows its parameters only", "`1 + 1` is no expression"],
        ),
        (
            json!({"steps": [{"name": "a", "op": "value", "when": "sometimes", "timeout": "soon", "retry": {"attempts": 0}}]}),
            vec![
                "when: write one expression",
                "timeout: `soon` is no duration",
                "retry.attempts: is 0",
            ],
        ),
        (
            json!({"steps": [{"name": "d", "op": "dataset", "with": {"dataset": "flights", "fast": true}}]}),
            vec![
                "with.dataset: `flights` names no dataset",
                "with.fast: op `dataset` has no such key: it takes dataset",
            ],
        ),
        (
            json!({"steps": [{"name": "d", "op": "dataset"}]}),
            vec!["with.dataset: is missing"],
        ),
        (
            json!({"steps": [
                {"name": "d", "op": "dataset", "with": {"dataset": "flights/1"}},
                {"name": "v", "op": "value", "with": {"x": "{{ steps.d.outputs.row }}"}},
            ]}),
            vec!["step `d` has no output `row`: op `dataset` gives name, version"],
        ),
        (train(&json!({"dataset": "flights/1"})), vec!["with.target: is missing"]),
        (
            train(&json!({"dataset": "flights/1", "target": "late", "tree": 3})),
            vec!["with.tree: op `train` has no such key"],
        ),
        (
            train(&json!({"dataset": "flights/1", "target": "late", "trees": 0, "holdout": "a week"})),
            vec!["`trees` is 0", "with.holdout: `a week` is no duration"],
        ),
        (
            json!({"steps": [{"name": "g", "op": "gate", "with": {"evaluation": {"candidate": {}}, "metric": "beauty", "min_gain": -1}}]}),
            vec![
                "with.evaluation: must be the outputs of a step",
                "`beauty` is no metric",
                "with.min_gain: is -1",
            ],
        ),
        (
            json!({"steps": [{"name": "s", "op": "set-alias", "with": {"model": "../m", "alias": "champion", "version": 0}}]}),
            vec!["with.model: `../m` is not a name", "with.version: is 0"],
        ),
        (
            json!({"parameters": {"a b": 1, "list": [1], "late": "{{ steps.a }}"}, "steps": [value("a")]}),
            vec![
                "parameter `a b`",
                "its default is a list",
                "a default holds no expressions",
            ],
        ),
    ]
}

#[tokio::test]
async fn a_pipeline_that_cannot_run_is_refused_with_everything_that_is_wrong() {
    let world = World::new().await;
    for (spec, expected) in bad_pipelines() {
        let (status, problem) = world.send(Method::PUT, "pipelines/bad", Some(&spec)).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{spec}");
        assert_eq!(problem["reason"], "INVALID_SPEC", "{spec}: {detail}");
        for expected in expected {
            assert!(detail.contains(expected), "`{expected}` is not in: {detail}");
        }
    }
    let many: Vec<Value> = (0..201).map(|place| value(&format!("s{place}"))).collect();
    let (_, problem) = world
        .send(Method::PUT, "pipelines/bad", Some(&json!({"steps": many})))
        .await;
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("there are 201, and may be 200")
    );
    let (status, _) = world.send(Method::GET, "pipelines/bad", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "nothing of it was stored");
}

#[tokio::test]
async fn requests_that_can_never_be_right_are_named() {
    let world = World::new().await;
    world
        .put("pipelines/p", &json!({"parameters": {"n": 1}, "steps": [value("a")]}))
        .await;
    let cases = [
        (
            Method::PUT,
            "pipelines/p",
            json!({"steps": [], "stage": 1}),
            400,
            "unknown field `stage`",
        ),
        (
            Method::PUT,
            "pipelines/..%2Fx",
            json!({"steps": [value("a")]}),
            400,
            "is not a name for a pipeline",
        ),
        (
            Method::POST,
            "pipelines/none/runs",
            json!({}),
            404,
            "pipeline `none` does not exist",
        ),
        (
            Method::POST,
            "pipelines/p/runs",
            json!({"parameters": {"m": 1}}),
            400,
            "there is no parameter `m`: the pipeline has `n`",
        ),
        (
            Method::POST,
            "pipelines/p/runs",
            json!({"parameters": {"n": "x"}}),
            400,
            "parameter `n` is a text",
        ),
        (
            Method::POST,
            "pipelines/p/runs",
            json!({"idempotency_key": ""}),
            400,
            "idempotency_key must have",
        ),
        (Method::GET, "pipelines?limit=0", Value::Null, 400, "limit is 0"),
        (
            Method::GET,
            "pipelines?sort=name",
            Value::Null,
            400,
            "unknown field `sort`",
        ),
        (Method::GET, "pipeline-runs?status=asleep", Value::Null, 400, "asleep"),
        (
            Method::GET,
            "pipeline-runs/none",
            Value::Null,
            404,
            "pipeline run `none` does not exist",
        ),
        (
            Method::DELETE,
            "triggers/none",
            Value::Null,
            404,
            "trigger `none` does not exist",
        ),
        (
            Method::PUT,
            "triggers/t",
            json!({"pipeline": "p", "parameters": {"m": 1}}),
            400,
            "there is no parameter `m`",
        ),
        (
            Method::PUT,
            "triggers/t",
            json!({"pipeline": "p", "parameters": {"n": "{{ parameters.n }}"}}),
            400,
            "write event.NAME",
        ),
    ];
    for (method, path, body, status, text) in cases {
        let body = (!body.is_null()).then_some(&body);
        let (found, problem) = world.send(method, path, body).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(found.as_u16(), status, "{path}: {detail}");
        assert!(detail.contains(text), "`{text}` is not in: {detail}");
    }
}

#[tokio::test]
async fn a_declaration_is_created_updated_or_unchanged() {
    let world = World::new().await;
    let spec = json!({"steps": [value("a")]});
    let created = world.put("pipelines/p", &spec).await;
    assert_eq!(created["outcome"], "created");
    assert_eq!(created["resource"]["kind"], "Pipeline");
    assert_eq!(world.put("pipelines/p", &spec).await["outcome"], "unchanged");
    let updated = world.put("pipelines/p", &json!({"steps": [value("b")]})).await;
    assert_eq!(updated["outcome"], "updated");
    assert_eq!(updated["resource"]["created_at"], created["resource"]["created_at"]);
    assert_eq!(world.get("pipelines/p").await["spec"], json!({"steps": [value("b")]}));
    for name in ["q", "o"] {
        world.put(&format!("pipelines/{name}"), &spec).await;
    }
    let first = world.get("pipelines?limit=2").await;
    let names = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&first), ["o", "p"]);
    let second = world.get("pipelines?limit=2&cursor=p").await;
    assert_eq!(
        (names(&second), &second["next_cursor"]),
        (vec![json!("q")], &Value::Null)
    );
    let (status, _) = world.send(Method::DELETE, "pipelines/q", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = world.send(Method::GET, "pipelines/q", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_run_is_started_once_for_each_idempotency_key() {
    let world = World::new().await;
    world
        .put("pipelines/p", &json!({"parameters": {"n": 1}, "steps": [value("a")]}))
        .await;
    let body = json!({"parameters": {"n": 2}, "idempotency_key": "k"});
    let id = world.run("p", &body).await;
    let (status, again) = world.send(Method::POST, "pipelines/p/runs", Some(&body)).await;
    assert_eq!((status, again["id"].as_str().unwrap()), (StatusCode::OK, id.as_str()));
    let other = json!({"parameters": {"n": 3}, "idempotency_key": "k"});
    let (status, problem) = world.send(Method::POST, "pipelines/p/runs", Some(&other)).await;
    assert_eq!(
        (status, &problem["reason"]),
        (StatusCode::CONFLICT, &json!("IDEMPOTENCY_KEY_REUSED"))
    );
    let run = world.finish(&id).await;
    assert_eq!(run["parameters"], json!({"n": 2}));
}
