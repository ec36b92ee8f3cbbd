//! Triton's extensions of the protocol, over HTTP and gRPC.

use std::io::Read as _;

use axum::body::Body;
use flate2::read::{GzDecoder, ZlibDecoder};
use futures::{StreamExt as _, stream};
use http::{Request, StatusCode};
use modelyard_common::rpc::local;
use modelyard_proto::inference::{
    InferParameter, InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelStatisticsRequest,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use modelyard_testkit::wait::until;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    harness::{PATIENCE, Running, World, endpoint, live},
    onnx::simple,
    peers::Registry,
};

/// A gateway whose endpoint `e` is version 1 of a model that doubles `x`, two numbers a row.
async fn doubler() -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(simple(2.0)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 1, &digest, 1.0)])]);
    let running = world.start_ready().await;
    (world, running)
}

fn rows(values: &[f32]) -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [values.len() / 2, 2], "data": values}]})
}

/// Rows of two numbers for the endpoint `e`.
pub fn grpc_rows(id: &str, values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "e".to_owned(),
        id: id.to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![values.len() as i64 / 2, 2],
            contents: Some(InferTensorContents {
                fp32_contents: values.to_vec(),
                ..Default::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    }
}

#[tokio::test]
async fn the_configuration_leaves_the_batch_out_of_the_dimensions() {
    let (_world, running) = doubler().await;
    let config = running.get("/v2/models/e/config").await.json();
    assert_eq!(config["name"], "e");
    assert!(config["max_batch_size"].as_i64().unwrap() > 1, "{config}");
    assert_eq!(
        config["input"],
        json!([{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}])
    );
    assert_eq!(
        config["output"],
        json!([{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}])
    );
    assert_eq!(running.get("/v2/models/e/versions/1/config").await.json(), config);
    assert_eq!(
        running.get("/v2/models/none/config").await.status,
        StatusCode::NOT_FOUND
    );

    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let request = ModelConfigRequest {
        name: "e".to_owned(),
        version: String::new(),
    };
    let config = client.model_config(request).await.unwrap().into_inner().config.unwrap();
    assert_eq!(
        (
            config.input[0].dims.as_slice(),
            config.input[0].data_type().as_str_name()
        ),
        ([2].as_slice(), "TYPE_FP32")
    );
}

#[tokio::test]
async fn statistics_count_requests_rows_and_runs() {
    let (_world, running) = doubler().await;
    let before = running.get("/v2/models/e/stats").await.json();
    assert_eq!(before["model_stats"][0]["last_inference"], 0);
    for values in [&[1.0, 2.0][..], &[1.0, 2.0, 3.0, 4.0]] {
        let answer = running.post("/v2/models/e/infer", &rows(values)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let stats = running.get("/v2/models/e/versions/1/stats").await.json();
    let model = &stats["model_stats"][0];
    assert_eq!((&model["name"], &model["version"]), (&json!("e"), &json!("1")));
    assert_eq!(
        (&model["inference_count"], &model["execution_count"]),
        (&json!(3), &json!(2))
    );
    assert!(model["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
    let parts = &model["inference_stats"];
    for part in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert_eq!(parts[part]["count"], 2, "{part}");
    }
    let nanos = |part: &str| parts[part]["ns"].as_u64().unwrap();
    let sum = nanos("queue") + nanos("compute_input") + nanos("compute_infer") + nanos("compute_output");
    assert_eq!(nanos("success"), sum);
    let sizes: Vec<_> = model["batch_stats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|batch| &batch["batch_size"])
        .collect();
    assert_eq!(sizes, [&json!(1), &json!(2)]);
    assert_eq!(
        running.get("/v2/models/stats").await.json()["model_stats"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let all = client
        .model_statistics(ModelStatisticsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.model_stats[0].inference_count, 3);
}

#[tokio::test]
async fn models_are_unloaded_and_loaded_by_hand() {
    let (world, running) = doubler().await;
    let index = |body: Value| {
        let running = &running;
        async move { running.post("/v2/repository/index", &body).await.json() }
    };
    assert_eq!(
        index(json!({})).await,
        json!([{"name": "e", "version": "1", "state": "READY"}])
    );
    let answer = running.post("/v2/repository/models/e/unload", &json!({})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let found = index(json!({})).await;
    assert_eq!(
        (&found[0]["name"], &found[0]["state"]),
        (&json!("e"), &json!("UNAVAILABLE"))
    );
    assert!(found[0]["reason"].as_str().unwrap().contains("unloaded by hand"));
    assert_eq!(index(json!({"ready": true})).await, json!([]));
    let refused = running.post("/v2/models/e/infer", &rows(&[1.0, 2.0])).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);

    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let load = |name: &str| RepositoryModelLoadRequest {
        model_name: name.to_owned(),
        ..RepositoryModelLoadRequest::default()
    };
    client.repository_model_load(load("e")).await.unwrap();
    let answer = running.post("/v2/models/e/infer", &rows(&[1.0, 2.0])).await;
    assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0, 4.0]));
    assert_eq!(
        client.repository_model_load(load("none")).await.unwrap_err().code(),
        Code::NotFound
    );
    let models = client
        .repository_index(RepositoryIndexRequest::default())
        .await
        .unwrap()
        .into_inner()
        .models;
    assert_eq!((models.len(), models[0].state.as_str()), (1, "READY"));

    // A deployment loads what was unloaded.
    let unload = RepositoryModelUnloadRequest {
        model_name: "e".to_owned(),
        ..RepositoryModelUnloadRequest::default()
    };
    client.repository_model_unload(unload).await.unwrap();
    let digest = world.store(simple(3.0)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 2, &digest, 1.0)])]);
    modelyard_testkit::wait::until("version 2 serves", std::time::Duration::from_mins(1), || async {
        let ready = running.get("/v2/models/e/versions/2/ready").await;
        (ready.status == StatusCode::OK).then_some(())
    })
    .await;
    let brought = json!({"parameters": {"config": "{}"}});
    let refused = running.post("/v2/repository/models/e/load", &brought).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(
        refused.json()["error"]
            .as_str()
            .unwrap()
            .contains("`config` is not offered")
    );
}

#[tokio::test]
async fn classes_come_instead_of_elements() {
    let (_world, running) = doubler().await;
    let mut body = rows(&[1.0, 2.0, 4.0, 3.0]);
    body["outputs"] = json!([{"name": "y", "parameters": {"classification": 1}}]);
    let answer = running.post("/v2/models/e/infer", &body).await.json();
    let output = &answer["outputs"][0];
    assert_eq!(
        (&output["datatype"], &output["shape"]),
        (&json!("BYTES"), &json!([2, 1]))
    );
    assert_eq!(output["data"], json!(["4.000000:1", "8.000000:0"]));

    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let mut request = grpc_rows("classes", &[1.0, 2.0]);
    let two = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(2)),
    };
    request.outputs = vec![InferRequestedOutputTensor {
        name: "y".to_owned(),
        parameters: [("classification".to_owned(), two)].into(),
    }];
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(
        (answer.outputs[0].datatype.as_str(), answer.outputs[0].shape.as_slice()),
        ("BYTES", [1, 2].as_slice())
    );
    assert_eq!(&answer.raw_output_contents[0][4..14], b"4.000000:1");
}

#[tokio::test]
async fn answers_are_compressed_where_that_is_asked_for_and_pays() {
    let (_world, running) = doubler().await;
    let values: Vec<f32> = (0..2000_u16).map(|number| f32::from(number % 5)).collect();
    let ask = |body: Value, encoding: &'static str| {
        let request = Request::post("/v2/models/e/infer").header("accept-encoding", encoding);
        running.send(request.body(Body::from(body.to_string())).unwrap())
    };
    let plain = ask(rows(&values), "identity").await;
    assert_eq!(plain.headers.get("content-encoding"), None);
    let mut body = Vec::new();
    let gzip = ask(rows(&values), "gzip").await;
    assert_eq!(gzip.headers["content-encoding"], "gzip");
    assert!(gzip.body.len() * 2 < plain.body.len());
    GzDecoder::new(gzip.body.as_ref()).read_to_end(&mut body).unwrap();
    let outputs = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["outputs"].clone();
    assert_eq!(outputs(&body), outputs(&plain.body));
    let deflate = ask(rows(&values), "deflate").await;
    body.clear();
    ZlibDecoder::new(deflate.body.as_ref()).read_to_end(&mut body).unwrap();
    assert_eq!(outputs(&body), outputs(&plain.body));
    assert_eq!(
        ask(rows(&[1.0, 2.0]), "gzip").await.headers.get("content-encoding"),
        None,
        "small"
    );
    let refused = ask(json!({"inputs": []}), "gzip").await;
    assert_eq!(
        (refused.status, refused.headers.get("content-encoding")),
        (StatusCode::BAD_REQUEST, None)
    );
}

/// The answers to all requests of a stream.
async fn streamed(
    running: &Running,
    requests: impl IntoIterator<Item = ModelInferRequest>,
) -> Vec<ModelStreamInferResponse> {
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let requests: Vec<_> = requests.into_iter().collect();
    let answers = client.model_stream_infer(stream::iter(requests)).await.unwrap();
    answers.into_inner().map(Result::unwrap).collect().await
}

#[tokio::test]
async fn a_stream_answers_each_request_and_goes_on_after_a_wrong_one() {
    let (_world, running) = doubler().await;
    let mut wrong = grpc_rows("wrong", &[1.0, 2.0]);
    wrong.inputs[0].name = "z".to_owned();
    let mut last = grpc_rows("last", &[5.0, 6.0]);
    let asks = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    last.parameters
        .insert("triton_enable_empty_final_response".to_owned(), asks.clone());
    let mut requests: Vec<_> = (0..100_u8)
        .map(|at| grpc_rows(&at.to_string(), &[f32::from(at), 0.0]))
        .collect();
    requests.insert(50, wrong);
    requests.push(last);
    let answers = streamed(&running, requests).await;
    assert_eq!(answers.len(), 102);
    let failed: Vec<_> = answers
        .iter()
        .filter(|answer| !answer.error_message.is_empty())
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].infer_response.as_ref().unwrap().id, "wrong");
    let ids: Vec<_> = answers
        .iter()
        .map(|answer| answer.infer_response.as_ref().unwrap().id.clone())
        .collect();
    let mut expected: Vec<String> = (0..100).map(|at| at.to_string()).collect();
    expected.insert(50, "wrong".to_owned());
    expected.push("last".to_owned());
    assert_eq!(ids, expected);
    let doubled = &answers[7].infer_response.as_ref().unwrap().raw_output_contents[0];
    assert_eq!(&doubled[..4], 14_f32.to_le_bytes());
    let last = answers[101].infer_response.as_ref().unwrap();
    assert_eq!(last.parameters.get("triton_final_response"), Some(&asks));
}

#[tokio::test]
async fn an_id_that_is_too_long_is_not_said_back() {
    let (_world, running) = doubler().await;
    let requests = [grpc_rows(&"i".repeat(300), &[1.0, 2.0]), grpc_rows("next", &[1.0, 2.0])];
    let answers = streamed(&running, requests).await;
    assert!(
        answers[0].error_message.contains("the id has 300 bytes"),
        "{:?}",
        answers[0]
    );
    let ids = answers
        .iter()
        .map(|answer| answer.infer_response.as_ref().unwrap().id.as_str());
    assert_eq!(ids.collect::<Vec<_>>(), ["", "next"]);
}

#[tokio::test]
async fn an_open_stream_ends_with_the_gateway() {
    let (_world, running) = doubler().await;
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let (send, requests) = mpsc::channel(1);
    let stream = client.model_stream_infer(ReceiverStream::new(requests));
    send.send(grpc_rows("first", &[1.0, 2.0])).await.unwrap();
    let mut answers = stream.await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(
        (first.error_message.as_str(), first.infer_response.unwrap().id.as_str()),
        ("", "first")
    );
    running.lifecycle.stop();
    let end = answers.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("is stopping"), "{end}");
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_offered_says_so() {
    let (_world, running) = doubler().await;
    let refused = running.get("/v2/systemsharedmemory/status").await;
    assert_eq!(refused.status, StatusCode::NOT_IMPLEMENTED);
    assert!(
        refused.json()["error"]
            .as_str()
            .unwrap()
            .contains("send tensors in the request")
    );
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    for (name, choice, expected) in [
        ("sequence_id", ParameterChoice::Int64Param(3), "sequences"),
        ("sequence_id", ParameterChoice::StringParam("a".to_owned()), "sequences"),
        ("sequence_end", ParameterChoice::BoolParam(true), "sequences"),
        ("sequence_start", ParameterChoice::Int64Param(1), "sequences"),
        ("timeout", ParameterChoice::Int64Param(-1), "no number of microseconds"),
        (
            "timeout",
            ParameterChoice::StringParam("soon".to_owned()),
            "no number of microseconds",
        ),
        ("timeout", ParameterChoice::BoolParam(true), "no number of microseconds"),
    ] {
        let mut request = grpc_rows("parameters", &[1.0, 2.0]);
        let parameter = InferParameter {
            parameter_choice: Some(choice),
        };
        request.parameters.insert(name.to_owned(), parameter);
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(expected), "{status}");
    }
}

#[tokio::test]
async fn probes_over_grpc_are_told_whether_it_serves() {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(simple(2.0)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 1, &digest, 1.0)])]);
    // Nobody has told it yet what to serve.
    world.registry.leave();
    let starting = world.start().await;
    let ask = async |running: &Running, service: &str| {
        let mut client = HealthClient::new(local(running.service.grpc.clone()));
        let service = service.to_owned();
        let answer = client.check(HealthCheckRequest { service }).await;
        answer.map(|answer| answer.into_inner().status())
    };
    let not_serving = async || ask(&starting, "").await.unwrap() == ServingStatus::NotServing;
    until("it says that it does not serve", PATIENCE, || async {
        not_serving().await.then_some(())
    })
    .await;
    starting.stop().await;
    let (_world, running) = doubler().await;
    for service in ["", "inference.GRPCInferenceService"] {
        assert_eq!(
            ask(&running, service).await.unwrap(),
            ServingStatus::Serving,
            "{service}"
        );
    }
    let unknown = ask(&running, "somebody.Else").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn the_methods_can_be_asked_for() {
    let (_world, running) = doubler().await;
    let mut client = ServerReflectionClient::new(local(running.service.grpc.clone()));
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{names:?} lacks {name}");
    }
}
