//! Versions that stand for a model of another server: here another gateway, at a port of its own.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::Array as _;
use axum::{
    extract::Request,
    middleware::{Next, from_fn},
};
use http::StatusCode;
use modelyard_proto::registry::v1::RouteState;
use modelyard_testkit::wait::until;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{service::Routes, transport::Server};

use crate::{
    echo::{Echo, FLOOD},
    harness::{Answer, PATIENCE, Running, World, endpoint, live},
    onnx::simple,
    peers::Registry,
    protocol::{binary_outputs, binary_request},
};

/// The other server, whose endpoint `there` doubles.
struct Other {
    running: Running,
    // Keeps what the gateway needs.
    _world: World,
    address: SocketAddr,
    /// What has its connections, so that they end with it.
    connections: Option<Runtime>,
    /// The time that each prediction was given, as its header said.
    timeouts: Arc<Mutex<Vec<Option<String>>>>,
}

impl Other {
    async fn start() -> Self {
        let world = World::new(Registry::new(vec![]));
        let digest = world.store(simple(2.0)).await;
        world
            .registry
            .set(vec![endpoint("there", vec![live("m", 1, &digest, 1.0)])]);
        let mut other = Self {
            running: world.start_ready().await,
            _world: world,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            connections: None,
            timeouts: Arc::default(),
        };
        other.listen().await;
        other
    }

    /// Listens, where it did before if it did.
    async fn listen(&mut self) {
        let listener = until("the port is free", PATIENCE, || async {
            TcpListener::bind(self.address).await.ok()
        })
        .await;
        self.address = listener.local_addr().unwrap();
        let listener = listener.into_std().unwrap();
        let timeouts = Arc::clone(&self.timeouts);
        let note = from_fn(move |request: Request, next: Next| {
            if request.uri().path().ends_with("/ModelInfer") {
                let timeout = request.headers().get("grpc-timeout");
                let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
                timeouts.lock().push(timeout);
            }
            next.run(request)
        });
        let routes = Routes::from(self.running.service.grpc.clone().into_axum_router().layer(note));
        let connections = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        connections.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            Server::builder().add_routes(routes).serve_with_incoming(incoming).await
        });
        self.connections = Some(connections);
    }

    /// Is gone at once, with all connections.
    fn leave(&mut self) {
        if let Some(connections) = self.connections.take() {
            connections.shutdown_background();
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A gateway whose endpoint `here` stands for a model of the server at `address`.
async fn gateway(address: SocketAddr, model: &str, allowed: &[String]) -> World {
    let mut world = World::new(Registry::new(vec![]));
    world.config.upstreams = allowed.to_vec();
    let description = json!({"upstream": {"url": format!("grpc://{address}"), "model": model, "version": "1"}});
    let digest = world.store(description.to_string().into_bytes()).await;
    world
        .registry
        .set(vec![endpoint("here", vec![live("m", 1, &digest, 1.0)])]);
    world
}

async fn ask(running: &Running, parameters: Value) -> Answer {
    let body = json!({
        "parameters": parameters,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}],
    });
    running.post("/v2/models/here/infer", &body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_another_server_answers_like_one_of_its_own() {
    let other = Other::start().await;
    let world = gateway(other.address, "there", &[other.address.to_string()]).await;
    let running = world.start_ready().await;
    let config = running.get("/v2/models/here/config").await.json();
    assert_eq!(config["input"][0]["dims"], json!([2]), "{config}");
    assert_eq!(config["platform"], "open_inference");
    assert_eq!(config["backend"], "upstream");
    assert!(
        config["max_batch_size"].as_u64().unwrap() > 1,
        "its rows are merged: {config}"
    );
    let answers = futures::future::join_all((0..32).map(|_| ask(&running, json!({})))).await;
    for answer in answers {
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0, 4.0]));
    }
    let wrong = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]});
    let refused = running.post("/v2/models/here/infer", &wrong).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{:?}", refused.body);
    // Another gateway's word of what it took, so that nothing was answered here.
    let statistics = other.running.get("/v2/models/there/stats").await.json();
    let rows = statistics["model_stats"][0]["inference_count"].as_u64().unwrap();
    assert!(rows >= 32, "{statistics}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_a_request_has_is_passed_on() {
    let other = Other::start().await;
    let world = gateway(other.address, "there", &["*".to_owned()]).await;
    let running = world.start_ready().await;
    other.timeouts.lock().clear();
    let answer = ask(&running, json!({"timeout": 7_000_000})).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let timeouts = other.timeouts.lock().clone();
    let [Some(timeout)] = timeouts.as_slice() else {
        panic!("{timeouts:?}")
    };
    let micros: u64 = timeout.strip_suffix('u').unwrap().parse().unwrap();
    assert!((1..=7_000_000).contains(&micros), "{timeout}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_fails_fast_and_is_found_again() {
    let mut other = Other::start().await;
    let world = gateway(other.address, "there", &["*".to_owned()]).await;
    let running = world.start_ready().await;
    assert_eq!(ask(&running, json!({})).await.status, StatusCode::OK);
    other.leave();
    let began = Instant::now();
    let answers = futures::future::join_all((0..16).map(|_| ask(&running, json!({})))).await;
    for answer in answers {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{:?}", answer.body);
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains("model `there` of grpc://127.0.0.1"), "{message}");
    }
    // Nobody waits for as long as a request may.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    other.listen().await;
    until("the server is found again", PATIENCE, || async {
        (ask(&running, json!({})).await.status == StatusCode::OK).then_some(())
    })
    .await;
    running.stop().await;
}

/// Images, as clients of Triton send them: no texts, with zeros and all other bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_texts_go_through_as_they_are() {
    let address = Echo::start().await;
    let world = gateway(address, "echo", &["*".to_owned()]).await;
    let running = world.start_ready().await;
    let picture: Vec<u8> = (0..=255).chain([0, 0, 0xff]).collect();
    let raw = [(picture.len() as u32).to_le_bytes().as_slice(), &picture].concat();
    let header = |parameters: Value| {
        json!({"id": "picture", "parameters": parameters, "inputs": [
            {"name": "picture", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": raw.len()}},
        ]})
    };
    let path = "/v2/models/here/infer";
    let ask = async |parameters: Value| running.send(binary_request(path, &header(parameters), &raw)).await;
    let answer = ask(json!({"binary_data_output": true})).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    assert_eq!(binary_outputs(&answer).1["picture"], raw);
    // JSON has no word for them.
    let refused = ask(json!({})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let message = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(
        message.contains("`picture`") && message.contains("ask for binary outputs"),
        "{message}"
    );
    // They are in the log as what is missing.
    let logged = until("the prediction is in the log", PATIENCE, || async {
        let rows = world.rows("here").await;
        rows.into_iter().find(|batch| batch.num_rows() > 0)
    })
    .await;
    let column = logged.column_by_name("input_picture").unwrap();
    assert_eq!(column.logical_null_count(), logged.num_rows());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_taken_is_not_the_callers_fault() {
    let address = Echo::start().await;
    let world = gateway(address, "echo", &["*".to_owned()]).await;
    let running = world.start_ready().await;
    let flood = json!({"inputs": [
        {"name": "picture", "datatype": "BYTES", "shape": [1, 1], "data": [str::from_utf8(FLOOD).unwrap()]},
    ]});
    let answer = running.post("/v2/models/here/infer", &flood).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{:?}", answer.body);
    running.stop().await;
}

/// Why the endpoint's route failed.
async fn failure(world: &World) -> String {
    until("the failure is told", PATIENCE, || async {
        let status = world.registry.status("here")?;
        let failed = status.routes.iter().find(|route| route.state() == RouteState::Failed)?;
        Some(failed.message.clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_version_cannot_be_served_there_is_told() {
    let mut other = Other::start().await;
    let any = ["*".to_owned()];
    let not_allowed = gateway(other.address, "there", &["triton:8001".to_owned()]).await;
    let not_there = gateway(other.address, "elsewhere", &any).await;
    let running = [not_allowed.start().await, not_there.start().await];
    let message = failure(&not_allowed).await;
    assert!(message.contains("add it to `gateway.upstreams`"), "{message}");
    // Whoever asks for predictions is not told that it is on its way.
    let answer = ask(&running[0], json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let told = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(told.contains("add it to `gateway.upstreams`"), "{told}");
    let message = failure(&not_there).await;
    assert!(message.contains("there is no endpoint `elsewhere`"), "{message}");
    other.leave();
    let away = gateway(other.address, "there", &any).await;
    let away_running = away.start().await;
    let message = failure(&away).await;
    assert!(message.contains("model `there` of grpc://127.0.0.1"), "{message}");
    for running in running.into_iter().chain([away_running]) {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_is_nothing_known_is_refused() {
    let world = World::new(Registry::new(vec![]));
    for (content, expected) in [
        (r#"{"downstream": {}}"#, "unknown variant `downstream`"),
        ("{", "nor a description"),
        (r#"{"upstream": {"url": "grpc://t:1"}}"#, "missing field `model`"),
    ] {
        let digest = world.store(content.as_bytes().to_vec()).await;
        world
            .registry
            .set(vec![endpoint("here", vec![live("m", 1, &digest, 1.0)])]);
        let running = world.start().await;
        until("the reason is told", PATIENCE, || async {
            failure(&world).await.contains(expected).then_some(())
        })
        .await;
        running.stop().await;
    }
}
