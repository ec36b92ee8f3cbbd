//! Webhooks, against a receiver on this machine.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use modelyard_registry::Config;
use modelyard_testkit::{postgres::TestDatabase, postgres::test_databases, wait};
use parking_lot::Mutex;
use ring::hmac;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};
use tower::ServiceExt;

use crate::support::{PATIENCE, TestRegistry, start_with};

/// Who is told.
struct Receiver {
    url: String,
    messages: UnboundedReceiver<(HeaderMap, Bytes)>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<u16>>>,
    told: UnboundedSender<(HeaderMap, Bytes)>,
}

async fn take(State(script): State<Script>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    let status = script.answers.lock().pop_front().unwrap_or(200);
    script.told.send((headers, body)).ok();
    (StatusCode::from_u16(status).unwrap(), "said the receiver")
}

impl Receiver {
    /// A receiver that answers with these, then with 200.
    async fn start(answers: &[u16]) -> Self {
        Self::start_at(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    fn start_at(listener: TcpListener, answers: &[u16]) -> Self {
        let (told, messages) = unbounded_channel();
        let script = Script {
            answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
            told,
        };
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let app = Router::new().fallback(take).with_state(script);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            messages,
            _tasks: tasks,
        }
    }

    async fn next(&mut self) -> (HeaderMap, Value) {
        let (headers, body) = tokio::time::timeout(PATIENCE, self.messages.recv())
            .await
            .unwrap()
            .unwrap();
        let value = serde_json::from_slice(&body).unwrap();
        (headers, value)
    }
}

fn allow(config: &mut Config) {
    config.webhooks.allow_http = true;
    config.webhooks.allow_private_addresses = true;
}

/// A fresh place and a registry on it whose webhooks may go to this machine, for each database.
async fn registries() -> Vec<(TestDatabase, TestRegistry)> {
    // Whoever was first in this process has installed the same.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut running = Vec::new();
    for place in test_databases().await.unwrap() {
        let registry = start_with(&place, allow).await;
        running.push((place, registry));
    }
    running
}

/// Asks in MLflow's protocol.
async fn ask(registry: &TestRegistry, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/2.0/mlflow/{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = registry.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn post(registry: &TestRegistry, path: &str, body: &Value) -> Value {
    let (status, answer) = ask(registry, Method::POST, path, body).await;
    assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    answer
}

/// Makes a webhook that is told of models, versions and their tags; its id.
async fn make(registry: &TestRegistry, url: &str, more: &Value) -> String {
    let mut body = json!({"name": "hook", "url": url, "events": [
        {"entity": "REGISTERED_MODEL", "action": "CREATED"},
        {"entity": "MODEL_VERSION", "action": "CREATED"},
        {"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"},
    ]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let made = post(registry, "webhooks", &body).await;
    made["webhook"]["webhook_id"].as_str().unwrap().to_owned()
}

async fn make_model(registry: &TestRegistry, name: &str) {
    let model = json!({"name": name, "tags": [{"key": "a", "value": "b"}]});
    post(registry, "registered-models/create", &model).await;
}

/// The newest delivery, once it is in that state.
async fn newest(registry: &TestRegistry, id: &str, state: &str, attempts: u32) -> Value {
    wait::until("a delivery", PATIENCE, || async {
        let listed = registry.get(&format!("webhooks/{id}/deliveries")).await;
        let newest = listed["items"][0].clone();
        (newest["state"] == state && newest["attempts"] == attempts).then_some(newest)
    })
    .await
}

#[tokio::test]
async fn what_happens_is_told_and_signed() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[]).await;
        let id = make(&registry, &receiver.url, &json!({"secret": "s3cret"})).await;
        make_model(&registry, "m").await;
        let (headers, body) = receiver.next().await;
        let time = body["timestamp"].as_str().unwrap().to_owned();
        let data = json!({"name": "m", "tags": {"a": "b"}, "description": ""});
        assert_eq!(
            body,
            json!({"entity": "registered_model", "action": "created", "timestamp": time, "data": data,
                   "workspace": "default"})
        );
        let of = |name: &str| headers[name].to_str().unwrap().to_owned();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"s3cret");
        let signed = format!("{}.{}.{body}", of("x-mlflow-delivery-id"), of("x-mlflow-timestamp"));
        let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        assert_eq!(of("x-mlflow-signature"), format!("v1,{signature}"));
        assert_eq!(of("content-type"), "application/json");
        let delivered = newest(&registry, &id, "delivered", 1).await;
        assert_eq!(delivered["delivery_id"], of("x-mlflow-delivery-id"));
        assert_eq!(
            (&delivered["response_status"], &delivered["event"]),
            (&json!(200), &json!("registered_model.created"))
        );
        registry.stop().await;
    }
}

#[tokio::test]
async fn the_own_face_tells_of_model_version_and_aliases() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[]).await;
        make(&registry, &receiver.url, &json!({})).await;
        let digest = registry.upload_model().await;
        let body = json!({"artifact_digest": digest, "aliases": ["champion"]});
        registry.take(Method::POST, "models/delay/versions", &body).await;
        let mut told = Vec::new();
        for _ in 0..3 {
            let (headers, body) = receiver.next().await;
            assert!(!headers.contains_key("x-mlflow-signature"));
            told.push((body["entity"].as_str().unwrap().to_owned(), body["data"].clone()));
        }
        told.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(told[0].0, "model_version");
        assert_eq!(
            (&told[0].1["version"], &told[0].1["source"]),
            (&json!("1"), &json!(digest))
        );
        let alias = json!({"name": "delay", "alias": "champion", "version": "1"});
        assert_eq!(told[1], ("model_version_alias".to_owned(), alias));
        assert_eq!(told[2].0, "registered_model");
        registry.stop().await;
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_the_same_id() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[503, 429, 200]).await;
        let id = make(&registry, &receiver.url, &json!({})).await;
        make_model(&registry, "m").await;
        let (first, _) = receiver.next().await;
        let failed = newest(&registry, &id, "pending", 1).await;
        assert_eq!(failed["error"], "it answered 503: said the receiver");
        registry.clock.advance(Duration::from_secs(2));
        let (second, _) = receiver.next().await;
        newest(&registry, &id, "pending", 2).await;
        registry.clock.advance(Duration::from_secs(4));
        let (third, _) = receiver.next().await;
        let delivered = newest(&registry, &id, "delivered", 3).await;
        assert_eq!(delivered["error"], "");
        for headers in [&second, &third] {
            assert_eq!(headers["x-mlflow-delivery-id"], first["x-mlflow-delivery-id"]);
        }
        assert_ne!(second["x-mlflow-timestamp"], first["x-mlflow-timestamp"]);
        registry.stop().await;
    }
}

#[tokio::test]
async fn what_will_not_pass_is_given_up() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[400, 302]).await;
        let id = make(&registry, &receiver.url, &json!({})).await;
        make_model(&registry, "m").await;
        receiver.next().await;
        let failed = newest(&registry, &id, "failed", 1).await;
        assert_eq!(failed["error"], "it answered 400: said the receiver");
        // The newest is the one with the later time.
        registry.clock.advance(Duration::from_secs(1));
        make_model(&registry, "n").await;
        receiver.next().await;
        let failed = newest(&registry, &id, "failed", 1).await;
        assert!(failed["error"].as_str().unwrap().contains("302"), "{failed}");
        registry.stop().await;
    }
}

#[tokio::test]
async fn who_is_disabled_or_gone_is_told_nothing() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[500]).await;
        let disabled = make(&registry, &receiver.url, &json!({"status": "DISABLED"})).await;
        let id = make(&registry, &receiver.url, &json!({})).await;
        make_model(&registry, "m").await;
        receiver.next().await;
        newest(&registry, &id, "pending", 1).await;
        let off = json!({"status": "DISABLED"});
        let (_, changed) = ask(&registry, Method::PATCH, &format!("webhooks/{id}"), &off).await;
        assert_eq!(changed["webhook"]["status"], "DISABLED");
        registry.clock.advance(Duration::from_secs(2));
        let failed = newest(&registry, &id, "failed", 1).await;
        assert!(failed["error"].as_str().unwrap().contains("disabled"), "{failed}");
        let items = registry.get(&format!("webhooks/{disabled}/deliveries")).await["items"].clone();
        assert_eq!(items, json!([]));
        ask(&registry, Method::DELETE, &format!("webhooks/{id}"), &json!({})).await;
        let (status, gone) = ask(&registry, Method::GET, &format!("webhooks/{id}"), &json!({})).await;
        assert_eq!(
            (status, &gone["error_code"]),
            (StatusCode::NOT_FOUND, &json!("RESOURCE_DOES_NOT_EXIST"))
        );
        let (status, _, _) = registry
            .refuse(Method::GET, &format!("webhooks/{id}/deliveries"), &Value::Null)
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        registry.stop().await;
    }
}

#[tokio::test]
async fn what_waits_survives_a_restart() {
    for (place, registry) in registries().await {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let id = make(&registry, &format!("http://{address}/hook"), &json!({"secret": "kept"})).await;
        make_model(&registry, "m").await;
        let failed = newest(&registry, &id, "pending", 1).await;
        assert_ne!(failed["error"], "");
        registry.stop().await;

        let mut receiver = Receiver::start_at(TcpListener::bind(address).await.unwrap(), &[]);
        let registry = start_with(&place, allow).await;
        registry.clock.advance(Duration::from_secs(2));
        let (headers, body) = receiver.next().await;
        assert_eq!(body["data"]["name"], "m");
        assert!(headers.contains_key("x-mlflow-signature"));
        newest(&registry, &id, "delivered", 2).await;
        registry.stop().await;
    }
}

#[tokio::test]
async fn two_registries_tell_once() {
    const MODELS: usize = 20;
    for (place, one) in registries().await {
        if place.url.is_none() {
            one.stop().await;
            continue;
        }
        let other = start_with(&place, allow).await;
        let mut receiver = Receiver::start(&[]).await;
        let id = make(&one, &receiver.url, &json!({})).await;
        for number in 0..MODELS {
            make_model(if number % 2 == 0 { &one } else { &other }, &format!("m{number}")).await;
        }
        let mut told = Vec::new();
        for _ in 0..MODELS {
            let (_, body) = receiver.next().await;
            told.push(body["data"]["name"].as_str().unwrap().to_owned());
        }
        told.sort();
        told.dedup();
        assert_eq!(told.len(), MODELS);
        wait::until("the end of all", PATIENCE, || async {
            let listed = one.get(&format!("webhooks/{id}/deliveries")).await;
            let items = listed["items"].as_array().unwrap().clone();
            let is_done = items.len() == MODELS && items.iter().all(|item| item["state"] == "delivered");
            is_done.then_some(())
        })
        .await;
        assert!(receiver.messages.try_recv().is_err());
        one.stop().await;
        other.stop().await;
    }
}

#[tokio::test]
async fn a_test_sends_an_example_and_says_what_came_back() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[200, 500]).await;
        let id = make(&registry, &receiver.url, &json!({})).await;
        let path = format!("webhooks/{id}/test");
        let tried = post(&registry, &path, &json!({})).await;
        let expected = json!({"success": true, "response_status": 200, "response_body": "said the receiver"});
        assert_eq!(tried["result"], expected);
        assert_eq!(receiver.next().await.1["data"]["name"], "example_model");
        let event = json!({"event": {"entity": "PROMPT_TAG", "action": "SET"}});
        let tried = post(&registry, &path, &event).await;
        assert_eq!(
            (&tried["result"]["success"], &tried["result"]["response_status"]),
            (&json!(false), &json!(500))
        );
        assert_eq!(receiver.next().await.1["entity"], "prompt_tag");
        registry.stop().await;
    }
}

#[tokio::test]
async fn nothing_goes_inside_where_that_is_not_allowed() {
    rustls::crypto::ring::default_provider().install_default().ok();
    for place in test_databases().await.unwrap() {
        let events = json!([{"entity": "REGISTERED_MODEL", "action": "CREATED"}]);
        let registry = start_with(&place, |_| {}).await;
        for url in [
            "http://example.com/",
            "https://127.0.0.1/",
            "https://localhost/",
            "https://169.254.169.254/",
        ] {
            let body = json!({"name": "hook", "url": url, "events": events});
            let (status, refused) = ask(&registry, Method::POST, "webhooks", &body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{url}: {refused}");
        }
        registry.stop().await;

        // What was allowed when the webhook was made is checked again when it is told something.
        let receiver = Receiver::start(&[]).await;
        let named = receiver.url.replace("127.0.0.1", "localhost");
        let registry = start_with(&place, allow).await;
        let ids = [
            make(&registry, &receiver.url, &json!({})).await,
            make(&registry, &named, &json!({})).await,
        ];
        registry.stop().await;
        let registry = start_with(&place, |config| config.webhooks.allow_http = true).await;
        make_model(&registry, "m").await;
        for id in ids {
            let failed = newest(&registry, &id, "failed", 1).await;
            assert!(failed["error"].as_str().unwrap().contains("not public"), "{failed}");
        }
        registry.stop().await;
    }
}

#[tokio::test]
async fn a_secret_is_never_shown_and_can_be_taken_away() {
    for (_place, registry) in registries().await {
        let mut receiver = Receiver::start(&[]).await;
        let id = make(&registry, &receiver.url, &json!({"secret": "never-shown"})).await;
        for path in ["webhooks".to_owned(), format!("webhooks/{id}")] {
            let (_, answer) = ask(&registry, Method::GET, &path, &json!({})).await;
            assert!(
                !answer.to_string().contains("secret") && !answer.to_string().contains("never-shown"),
                "{answer}"
            );
        }
        let (_, changed) = ask(
            &registry,
            Method::PATCH,
            &format!("webhooks/{id}"),
            &json!({"description": "d"}),
        )
        .await;
        assert_eq!(changed["webhook"]["description"], "d");
        make_model(&registry, "m").await;
        assert!(receiver.next().await.0.contains_key("x-mlflow-signature"));
        ask(
            &registry,
            Method::PATCH,
            &format!("webhooks/{id}"),
            &json!({"secret": ""}),
        )
        .await;
        make_model(&registry, "n").await;
        assert!(!receiver.next().await.0.contains_key("x-mlflow-signature"));
        registry.stop().await;
    }
}
