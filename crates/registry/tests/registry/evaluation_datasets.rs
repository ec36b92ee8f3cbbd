//! Evaluation datasets: each in its project alone, and what the audit chain is told of them.

use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{TestRegistry, registries};

async fn ask(registry: &TestRegistry, project: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-mlflow-workspace", project)
        .body(body)
        .unwrap();
    let response = registry.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn datasets(
    registry: &TestRegistry,
    project: &str,
    method: Method,
    path: &str,
    body: Value,
) -> (StatusCode, Value) {
    ask(
        registry,
        project,
        method,
        &format!("/api/3.0/mlflow/datasets/{path}"),
        body,
    )
    .await
}

#[tokio::test]
async fn another_project_sees_and_changes_nothing() {
    for (_place, registry) in registries().await {
        let (status, _) = ask(&registry, "default", Method::PUT, "/api/v1/projects/theirs", json!({})).await;
        assert!(status.is_success(), "{status}");
        let experiment = json!({"name": "questions"});
        let (_, experiment) = ask(
            &registry,
            "default",
            Method::POST,
            "/api/2.0/mlflow/experiments/create",
            experiment,
        )
        .await;
        let experiment = &experiment["experiment_id"];
        let new = json!({"name": "qa", "experiment_ids": [experiment], "tags": "{\"a\": \"b\"}"});
        let (status, made) = datasets(&registry, "default", Method::POST, "create", new).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        let id = made["dataset"]["dataset_id"].as_str().unwrap();
        let records =
            json!({"records": "[{\"inputs\": {\"q\": 1}}, {\"inputs\": {\"q\": 2}}, {\"inputs\": {\"q\": 3}}]"});
        let path = format!("{id}/records");
        let (_, done) = datasets(&registry, "default", Method::POST, &path, records.clone()).await;
        assert_eq!(done, json!({"inserted_count": 3, "updated_count": 0}));
        let (_, done) = datasets(&registry, "default", Method::POST, &path, records.clone()).await;
        assert_eq!(done, json!({"inserted_count": 0, "updated_count": 3}));
        let (_, page) = datasets(&registry, "default", Method::GET, &path, Value::Null).await;
        let page: Value = serde_json::from_str(page["records"].as_str().unwrap()).unwrap();
        let record = page[0]["dataset_record_id"].clone();

        let absent = |path: &str| path.replace(id, "d-0123456789abcdef0123456789abcdef");
        for (method, path, body) in [
            (Method::GET, id.to_owned(), Value::Null),
            (Method::GET, path.clone(), Value::Null),
            (Method::POST, path.clone(), records),
            (Method::DELETE, path.clone(), json!({"dataset_record_ids": [record]})),
            (Method::PATCH, format!("{id}/tags"), json!({"tags": "{\"a\": \"c\"}"})),
            (Method::DELETE, format!("{id}/tags/a"), Value::Null),
            (Method::GET, format!("{id}/experiment-ids"), Value::Null),
            (Method::POST, format!("{id}/add-experiments"), json!({})),
            (
                Method::POST,
                format!("{id}/remove-experiments"),
                json!({"experiment_ids": [experiment]}),
            ),
            (Method::DELETE, id.to_owned(), Value::Null),
        ] {
            // It is answered as if there were no such dataset.
            let theirs = datasets(&registry, "theirs", method.clone(), &path, body.clone()).await;
            let (status, nothing) = datasets(&registry, "theirs", method.clone(), &absent(&path), body).await;
            let theirs = (theirs.0, absent(&theirs.1.to_string()));
            assert_eq!(theirs, (status, nothing.to_string()), "{method} {path}");
        }
        let search = json!({"experiment_ids": [experiment]});
        for (project, body) in [("theirs", json!({})), ("theirs", search)] {
            let (status, found) = datasets(&registry, project, Method::POST, "search", body).await;
            assert_eq!((status, found), (StatusCode::OK, json!({})));
        }
        let new = json!({"name": "qa", "experiment_ids": [experiment]});
        let (status, refused) = datasets(&registry, "theirs", Method::POST, "create", new).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");

        let (_, same) = datasets(&registry, "default", Method::GET, id, Value::Null).await;
        assert_eq!(same["dataset"]["tags"], "{\"a\": \"b\"}");
        assert_eq!(same["dataset"]["profile"], "{\"num_records\": 3}");
        let path = format!("{id}/experiment-ids");
        let (_, same) = datasets(&registry, "default", Method::GET, &path, Value::Null).await;
        assert_eq!(same, json!({"experiment_ids": [experiment]}));
        registry.stop().await;
    }
}

#[tokio::test]
async fn making_and_deleting_are_in_the_audit_chain_and_records_are_not() {
    for (_place, registry) in registries().await {
        let (_, made) = datasets(&registry, "default", Method::POST, "create", json!({"name": "qa"})).await;
        let id = made["dataset"]["dataset_id"].as_str().unwrap();
        let records = json!({"records": "[{\"inputs\": {\"q\": 1}}]"});
        datasets(&registry, "default", Method::POST, &format!("{id}/records"), records).await;
        for _ in 0..2 {
            let (status, _) = datasets(&registry, "default", Method::DELETE, id, Value::Null).await;
            assert_eq!(status, StatusCode::OK);
        }
        let path = format!("/api/v1/audit/events?resource_kind=evaluation-dataset&resource={id}");
        let (status, events) = ask(&registry, "default", Method::GET, &path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{events}");
        let events = events["items"].as_array().unwrap();
        let mut seen: Vec<&str> = events
            .iter()
            .map(|event| event["details"]["operation"].as_str().unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, ["create", "delete"]);
        let is_run_write = |event: &Value| event["action"] == "run.write" && event["outcome"] == "success";
        assert!(events.iter().all(is_run_write), "{events:?}");
        registry.stop().await;
    }
}
