//! Collections: nothing that something refers to is lost, and all else is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use modelyard_artifacts::Digest;
use modelyard_common::clock::Clock as _;
use modelyard_proto::registry::v1::CreateModelVersionRequest;
use modelyard_testkit::wait::until;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    fixture,
    openid::database,
    support::{PATIENCE, PROJECT, TestRegistry, execute, registries, start},
};

/// The clock of the tests begins long before the files are made: from here on they are old.
const LATER: Duration = Duration::from_hours(24 * 365 * 30);
/// How many things happen in a test.
const TURNS: u64 = 150;

/// Numbers that look random, and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn file(registry: &TestRegistry, method: Method, path: &str, content: Vec<u8>) -> (StatusCode, Bytes) {
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/2.0/mlflow-artifacts/artifacts/{path}"))
        .body(Body::from(content))
        .unwrap();
    let response = registry.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

async fn ended(registry: &TestRegistry, id: &str) -> Value {
    let path = format!("gc/{id}");
    let path = &path;
    let record = until("the collection ends", PATIENCE, || async move {
        let record = registry.get(path).await;
        (record["state"] != "running").then_some(record)
    })
    .await;
    assert_eq!(record["state"], "finished", "{record}");
    record
}

/// Collects at once what nothing names.
async fn collect(registry: &TestRegistry) -> Value {
    let request = json!({"blob_grace": "0s", "older_than": "0s"});
    let started = registry.take(Method::POST, "gc", &request).await;
    ended(registry, started["id"].as_str().unwrap()).await
}

async fn has_blob(registry: &TestRegistry, content: &[u8]) -> bool {
    let path = format!("artifacts/{}", Digest::of(content));
    registry.send(Method::HEAD, &path, "", Body::empty()).await.0 == StatusCode::OK
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_stays_and_all_else_goes_whatever_happens_at_once() {
    for (_place, registry) in registries().await {
        registry.clock.advance(LATER);
        let contents: Vec<Vec<u8>> = (0..6)
            .map(|number| fixture::onnx_model_named(&format!("m{number}")))
            .collect();
        let mut files: BTreeMap<u64, usize> = BTreeMap::new();
        let mut versions: BTreeSet<usize> = BTreeSet::new();
        let mut dice = Dice(11);
        let mut running = String::new();
        for _ in 0..TURNS {
            let (path, choice) = (dice.roll(8), dice.roll(6) as usize);
            match dice.roll(10) {
                0..=3 => {
                    let (status, said) = file(
                        &registry,
                        Method::PUT,
                        &format!("files/{path}"),
                        contents[choice].clone(),
                    )
                    .await;
                    match status {
                        StatusCode::OK => drop(files.insert(path, choice)),
                        // It was being removed at this moment, and nothing came of the upload.
                        StatusCode::SERVICE_UNAVAILABLE => {}
                        _ => assert_eq!(status, StatusCode::OK, "{said:?}"),
                    }
                }
                4..=6 => {
                    let (status, said) = file(&registry, Method::DELETE, &format!("files/{path}"), Vec::new()).await;
                    assert_eq!(status, StatusCode::OK, "{said:?}");
                    files.remove(&path);
                }
                7 => {
                    let path = format!("artifacts?digest={}", Digest::of(&contents[choice]));
                    registry.send(Method::PUT, &path, "", contents[choice].clone()).await;
                    let request = CreateModelVersionRequest {
                        project: PROJECT.to_owned(),
                        name: "m".to_owned(),
                        artifact_digest: Digest::of(&contents[choice]).to_string(),
                        ..CreateModelVersionRequest::default()
                    };
                    // Refused where the content went before the version came.
                    if versions.len() < 2 && registry.models().create_model_version(request).await.is_ok() {
                        versions.insert(choice);
                    }
                }
                _ => {
                    let request = json!({"blob_grace": "0s"});
                    let (status, started) = registry.json(Method::POST, "gc", &request).await;
                    assert!(
                        status == StatusCode::ACCEPTED || status == StatusCode::CONFLICT,
                        "{started}"
                    );
                    if let Some(id) = started["id"].as_str() {
                        id.clone_into(&mut running);
                    }
                }
            }
        }
        if !running.is_empty() {
            ended(&registry, &running).await;
        }
        collect(&registry).await;
        for (path, choice) in &files {
            let (status, content) = file(&registry, Method::GET, &format!("files/{path}"), Vec::new()).await;
            assert_eq!(
                (status, &content[..]),
                (StatusCode::OK, &contents[*choice][..]),
                "{path}"
            );
        }
        let named: BTreeSet<usize> = files.values().copied().chain(versions).collect();
        for (choice, content) in contents.iter().enumerate() {
            assert_eq!(has_blob(&registry, content).await, named.contains(&choice), "{choice}");
        }
        let bytes: usize = named.iter().map(|choice| contents[*choice].len()).sum();
        let quota = registry.get("quota").await;
        assert_eq!(
            (&quota["used_bytes"], &quota["blob_count"]),
            (&json!(bytes), &json!(named.len()))
        );
        registry.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_goes_on_after_a_restart() {
    for (place, registry) in registries().await {
        registry.clock.advance(LATER);
        for number in 0..50 {
            registry.upload(format!("unused {number}")).await;
        }
        let (status, _) = file(&registry, Method::PUT, "kept", b"kept".to_vec()).await;
        assert_eq!(status, StatusCode::OK);
        let started = registry.take(Method::POST, "gc", &json!({"blob_grace": "0s"})).await;
        registry.stop().await;
        let registry = start(&place).await;
        registry.clock.advance(LATER);
        let record = ended(&registry, started["id"].as_str().unwrap()).await;
        assert_eq!(
            record["freed"],
            json!([{"kind": "blob", "count": 50, "size_bytes": 440}])
        );
        assert!(has_blob(&registry, b"kept").await && !has_blob(&registry, b"unused 7").await);
        registry.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_nobody_counted_are_found_and_those_of_other_projects_are_not_touched() {
    for (_place, registry) in registries().await {
        registry.clock.advance(LATER);
        let left = registry.data_dir.join("objects/projects");
        let digest = Digest::of(b"left").to_hex();
        for project in [PROJECT, "other"] {
            let folder = left.join(project).join("blobs/sha256").join(&digest[..2]);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(&digest[2..]), b"left").unwrap();
        }
        let planned = registry
            .take(Method::POST, "gc", &json!({"blob_grace": "0s", "dry_run": true}))
            .await;
        let planned = ended(&registry, planned["id"].as_str().unwrap()).await;
        assert!(has_blob(&registry, b"left").await);
        let freed = collect(&registry).await;
        assert_eq!(freed["freed"], json!([{"kind": "blob", "count": 1, "size_bytes": 4}]));
        assert_eq!(freed["list_digest"], planned["list_digest"]);
        assert!(!has_blob(&registry, b"left").await);
        let other = left.join("other/blobs/sha256").join(&digest[..2]).join(&digest[2..]);
        assert!(other.exists());
        registry.stop().await;
    }
}

#[tokio::test]
async fn a_quota_refuses_what_is_too_much_and_nothing_else() {
    for (_place, registry) in registries().await {
        registry.take(Method::PUT, "quota", &json!({"limit_bytes": 10})).await;
        registry.upload("12345678").await;
        let (status, said) = registry.send(Method::PUT, "artifacts", "", "12345").await;
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(
            (status, &said["reason"]),
            (StatusCode::PAYLOAD_TOO_LARGE, &json!("QUOTA_EXCEEDED"))
        );
        // What is there already takes no room.
        let path = format!("artifacts?digest={}", Digest::of(b"12345678"));
        let (status, _) = registry.send(Method::PUT, &path, "", "12345678").await;
        assert_eq!(status, StatusCode::CREATED);
        registry.upload("ab").await;
        let quota = registry.get("quota").await;
        assert_eq!(quota, json!({"limit_bytes": 10, "used_bytes": 10, "blob_count": 2}));
        let (status, _) = file(&registry, Method::PUT, "full", b"x".to_vec()).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        registry.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_somebody_works_at_is_left_alone() {
    for (place, registry) in registries().await {
        registry.clock.advance(LATER);
        registry.upload("part").await;
        let database = database(&place, &registry).await;
        let begun = format!(
            "INSERT INTO blob_removal (project, removal, digest, size_bytes, begun_at) VALUES ('{PROJECT}', 1, '{}', 4, {});
             UPDATE project_storage SET removals = 1 WHERE project = '{PROJECT}'",
            Digest::of(b"part"),
            registry.clock.now().as_micros(),
        );
        execute(&database, begun).await.unwrap();
        let freed = collect(&registry).await;
        assert_eq!(freed["freed"], json!([]));
        assert!(has_blob(&registry, b"part").await);
        // Whoever began it has been gone for long.
        registry.clock.advance(Duration::from_hours(1));
        let freed = collect(&registry).await;
        assert_eq!(freed["freed"], json!([{"kind": "blob", "count": 1, "size_bytes": 4}]));
        assert!(!has_blob(&registry, b"part").await);
        registry.stop().await;
    }
}

/// Sends a request to any project, also as MLflow's clients do; the status and the answer.
async fn ask(registry: &TestRegistry, method: Method, uri: &str, project: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", "application/json")
        .header("x-mlflow-workspace", project)
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = registry.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_project_stores_is_freed_with_all_projects() {
    for (_place, registry) in registries().await {
        registry.clock.advance(LATER);
        let registry = &registry;
        let send = |method, uri: &'static str, body: &'static str| async move {
            let (status, answer) = ask(registry, method, uri, "gone", body).await;
            assert!(status.is_success(), "{uri}: {status} {answer}");
            answer
        };
        send(Method::PUT, "/api/v1/projects/gone", r#"{"description": ""}"#).await;
        send(Method::PUT, "/api/2.0/mlflow-artifacts/artifacts/f", "named").await;
        send(Method::DELETE, "/api/v1/projects/gone", "").await;
        let started = |answer: Value| {
            let items = answer["items"].as_array().unwrap().clone();
            items.into_iter().find(|item| item["project"] == "gone")
        };
        // It may have been removed by mistake.
        let early = send(Method::POST, "/api/v1/gc", "{}").await;
        assert_eq!(started(early), None);
        registry.clock.advance(Duration::from_hours(24 * 31));
        let collection = started(send(Method::POST, "/api/v1/gc", "{}").await).unwrap();
        let uri = format!("/api/v1/projects/gone/gc/{}", collection["id"].as_str().unwrap());
        let uri = &uri;
        let collection = until("the collection ends", PATIENCE, || async move {
            let (status, record) = ask(registry, Method::GET, uri, PROJECT, "").await;
            assert_eq!(status, StatusCode::OK, "{record}");
            (record["state"] != "running").then_some(record)
        })
        .await;
        assert_eq!(collection["state"], "finished", "{collection}");
        assert_eq!(
            collection["freed"],
            json!([{"kind": "blob", "count": 1, "size_bytes": 5}])
        );
        let blob = Digest::of(b"named").to_hex();
        let folder = registry
            .data_dir
            .join("objects/projects/gone/blobs/sha256")
            .join(&blob[..2]);
        assert!(!folder.join(&blob[2..]).exists());
    }
}
