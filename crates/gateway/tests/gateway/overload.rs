//! More requests than get done, as their callers see it: who goes first, who is refused, and what the metrics say.

use std::{cell::RefCell, time::Duration};

use http::StatusCode;
use modelyard_common::{
    error::{Fault as _, RemoteError},
    rpc::local,
    telemetry::render_metrics,
};
use modelyard_proto::{
    inference::{
        InferParameter, grpc_inference_service_client::GrpcInferenceServiceClient, infer_parameter::ParameterChoice,
    },
    registry::v1::{Batching, Limits},
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::{
    extensions::grpc_rows,
    harness::{Running, World, endpoint, live},
    onnx::{simple, slow},
    peers::Registry,
};

/// A gateway whose endpoint `e` takes its time for each request, and takes them one by one.
async fn busy(limits: Limits) -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(slow(1.0, 400)).await;
    let mut busy = endpoint("e", vec![live("m", 1, &digest, 1.0)]);
    busy.limits = Some(limits);
    busy.batching = Some(Batching {
        max_rows: 1,
        ..Batching::default()
    });
    world.registry.set(vec![busy]);
    let running = world.start_ready().await;
    (world, running)
}

fn rows(parameters: &Value) -> Value {
    let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]});
    json!({"parameters": parameters, "inputs": [x]})
}

/// How many of those who can wait, and came first, wait still when the last of the urgent ones is answered.
async fn overtaken(running: &Running, over_grpc: bool) -> usize {
    const PATIENT: usize = 40;
    const URGENT: usize = 5;
    let answered = RefCell::new(Vec::new());
    let ask = async |priority: u64| {
        if over_grpc {
            let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
            let mut request = grpc_rows("", &[1.0, 2.0]);
            let choice = InferParameter {
                parameter_choice: Some(ParameterChoice::Uint64Param(priority)),
            };
            request.parameters.insert("priority".to_owned(), choice);
            client.model_infer(request).await.unwrap();
        } else {
            let request = rows(&json!({"priority": priority}));
            let answer = running.post("/v2/models/e/infer", &request).await;
            assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        }
        answered.borrow_mut().push(priority);
    };
    let patient = (0..PATIENT).map(|_| ask(3));
    let urgent = (0..URGENT).map(|_| ask(1));
    futures::future::join(futures::future::join_all(patient), futures::future::join_all(urgent)).await;
    let answered = answered.into_inner();
    let last = answered.iter().rposition(|priority| *priority == 1).unwrap();
    answered.len() - last - 1
}

#[tokio::test]
async fn urgent_requests_go_first_over_both_protocols() {
    let (_world, running) = busy(Limits::default()).await;
    for over_grpc in [false, true] {
        let waiting = overtaken(&running, over_grpc).await;
        assert!(waiting >= 20, "gRPC {over_grpc}: {waiting} were overtaken");
    }
    running.stop().await;
}

#[tokio::test]
async fn who_finds_no_room_is_told_when_to_come_again() {
    let limits = Limits {
        max_queued_requests: 1,
        ..Limits::default()
    };
    let (_world, running) = busy(limits).await;
    let ask = async || {
        let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
        client.model_infer(grpc_rows("", &[1.0, 2.0])).await
    };
    let answers = futures::future::join_all((0..16).map(|_| ask())).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let error = RemoteError::from(status);
        assert_eq!(error.reason(), "QUEUE_FULL");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    }
    // Those who send rows are told as well, in the words of their protocol.
    let instances = json!({"instances": [[1.0, 2.0]]});
    let answers = (0..16).map(|_| running.post("/endpoints/e/invocations", &instances));
    let answers = futures::future::join_all(answers).await;
    let refused = answers.iter().find(|answer| answer.status != StatusCode::OK).unwrap();
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["error_code"], "QUEUE_FULL");
    running.stop().await;
}

#[tokio::test]
async fn the_time_that_a_call_allows_is_kept() {
    let (_world, running) = busy(Limits::default()).await;
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let mut request = Request::new(grpc_rows("", &[1.0, 2.0]));
    request.metadata_mut().insert("grpc-timeout", "1u".parse().unwrap());
    let status = client.model_infer(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(
        status.message().contains("before the prediction was made"),
        "{status:?}"
    );
    running.stop().await;
}

/// The value of a metric of the endpoint `e`, as it is scraped.
fn metric(name: &str) -> Option<f64> {
    let metrics = render_metrics();
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{endpoint=\"e\"")))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn the_metrics_say_when_more_gateways_are_wanted() {
    // Installs the recorder, before anything is measured.
    let _installed = render_metrics();
    let (_world, running) = busy(Limits::default()).await;
    let request = rows(&json!({}));
    let clients = (0..16).map(|_| async {
        loop {
            running.post("/v2/models/e/infer", &request).await;
        }
    });
    let busy = modelyard_testkit::wait::until("it is busy", crate::harness::PATIENCE, || async {
        let wait = metric("modelyard_gateway_expected_wait_seconds")?;
        let utilization = metric("modelyard_gateway_utilization")?;
        (wait > 0.0 && utilization > 0.5).then_some(())
    });
    tokio::select! {
        _ = futures::future::join_all(clients) => panic!("clients end"),
        () = busy => {}
    }
    running.stop().await;
}

#[tokio::test]
async fn the_metrics_say_how_many_answers_were_kept() {
    let _installed = render_metrics();
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(simple(1.0)).await;
    let mut kept = endpoint("e", vec![live("m", 1, &digest, 1.0)]);
    kept.cache = Some(modelyard_proto::registry::v1::Cache {
        time_to_live_ms: 60_000,
    });
    world.registry.set(vec![kept]);
    let running = world.start_ready().await;
    let asked = |outcome: &str| {
        let start = format!("modelyard_gateway_cache_requests_total{{outcome=\"{outcome}\"}} ");
        let metrics = render_metrics();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok());
        value.unwrap_or_default()
    };
    let before = (asked("hit"), asked("miss"));
    for _ in 0..3 {
        running.post("/v2/models/e/infer", &rows(&json!({}))).await;
    }
    assert!(asked("hit") >= before.0 + 2.0 && asked("miss") >= before.1 + 1.0);
    running.stop().await;
}
