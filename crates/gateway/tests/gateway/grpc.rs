//! The Open Inference Protocol over gRPC.

use bytes::Bytes;
use modelyard_common::rpc::local;
use modelyard_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest,
    ServerMetadataRequest, ServerReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use tonic::Code;

use crate::protocol::{doubling, raw_texts};

fn typed(name: &str, datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        contents: Some(contents),
        ..InferInputTensor::default()
    }
}

fn grpc_request() -> ModelInferRequest {
    ModelInferRequest {
        model_name: "e".to_owned(),
        id: "my id".to_owned(),
        inputs: vec![
            typed(
                "x",
                "FP32",
                &[1, 2],
                InferTensorContents {
                    fp32_contents: vec![1.5, 2.0],
                    ..Default::default()
                },
            ),
            typed(
                "who",
                "BYTES",
                &[1],
                InferTensorContents {
                    bytes_contents: vec![b"ann".to_vec()],
                    ..Default::default()
                },
            ),
            typed(
                "n",
                "INT64",
                &[1, 1],
                InferTensorContents {
                    int64_contents: vec![7],
                    ..Default::default()
                },
            ),
        ],
        ..ModelInferRequest::default()
    }
}

fn as_raw(mut request: ModelInferRequest) -> ModelInferRequest {
    for input in &mut request.inputs {
        input.contents = None;
    }
    let x: Vec<u8> = [1.5_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let who = raw_texts(&["ann".to_owned()]);
    request.raw_input_contents = vec![x.into(), who.into(), 7_i64.to_le_bytes().to_vec().into()];
    request
}

#[tokio::test]
async fn grpc_takes_typed_and_raw_and_always_answers_raw() {
    let (_world, running) = doubling().await;
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    assert!(
        client
            .server_live(ServerLiveRequest {})
            .await
            .unwrap()
            .into_inner()
            .live
    );
    assert!(
        client
            .server_ready(ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    let server = client
        .server_metadata(ServerMetadataRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(server.name, "modelyard");
    let ready = ModelReadyRequest {
        name: "e".to_owned(),
        version: "2".to_owned(),
    };
    assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
    let metadata = ModelMetadataRequest {
        name: "e".to_owned(),
        version: String::new(),
    };
    let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
    assert_eq!(
        (metadata.versions, metadata.platform.as_str()),
        (vec!["2".to_owned()], "onnx_onnxv1")
    );
    assert_eq!(metadata.inputs[0].shape, [-1, 2]);
    for request in [grpc_request(), as_raw(grpc_request())] {
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(
            (
                answer.model_name.as_str(),
                answer.model_version.as_str(),
                answer.id.as_str()
            ),
            ("e", "2", "my id")
        );
        assert_eq!(answer.raw_output_contents.len(), 3);
        assert!(answer.outputs.iter().all(|output| output.contents.is_none()));
        let y: Vec<u8> = [3.0_f32, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(answer.raw_output_contents[0], Bytes::from(y));
        assert_eq!(
            answer.raw_output_contents[1],
            Bytes::from(raw_texts(&["ann".to_owned()]))
        );
    }
    let mut chosen = grpc_request();
    chosen.outputs = vec![InferRequestedOutputTensor {
        name: "m".to_owned(),
        ..Default::default()
    }];
    let answer = client.model_infer(chosen).await.unwrap().into_inner();
    assert_eq!(answer.outputs.len(), 1);
    assert_eq!(answer.raw_output_contents, [Bytes::from(7_i64.to_le_bytes().to_vec())]);
}

#[tokio::test]
async fn grpc_says_what_is_wrong_with_the_right_code() {
    let (_world, running) = doubling().await;
    let mut client = GrpcInferenceServiceClient::new(local(running.service.grpc.clone()));
    let change = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = grpc_request();
        change(&mut request);
        request
    };
    let parameter = |choice| InferParameter {
        parameter_choice: Some(choice),
    };
    let cases = [
        (
            change(&|request| request.model_name = "none".to_owned()),
            Code::NotFound,
            "no endpoint `none`",
        ),
        (
            change(&|request| request.model_version = "9".to_owned()),
            Code::NotFound,
            "it serves 2",
        ),
        (
            change(&|request| request.inputs[0].datatype = "FP64".to_owned()),
            Code::InvalidArgument,
            "got 0",
        ),
        (
            change(&|request| request.inputs[0].shape = vec![2, 2]),
            Code::InvalidArgument,
            "holds 4 elements",
        ),
        (
            change(&|request| request.inputs.truncate(1)),
            Code::InvalidArgument,
            "missing: who, n",
        ),
        (
            change(&|request| request.raw_input_contents = vec![Bytes::new()]),
            Code::InvalidArgument,
            "1 entries for 3 inputs",
        ),
        (
            change(&|request| {
                *request = as_raw(request.clone());
                request.inputs[1].contents = Some(InferTensorContents::default());
            }),
            Code::InvalidArgument,
            "input `who` has both contents and raw_input_contents",
        ),
        (
            change(&|request| {
                let parameter = parameter(ParameterChoice::StringParam("r".to_owned()));
                let shared = "shared_memory_region".to_owned();
                request.inputs[0].parameters.insert(shared, parameter);
            }),
            Code::InvalidArgument,
            "shared memory is not offered",
        ),
        (
            change(&|request| {
                let priority = parameter(ParameterChoice::Int64Param(-1));
                request.parameters.insert("priority".to_owned(), priority);
            }),
            Code::InvalidArgument,
            "priority is no number of zero or more",
        ),
        (
            change(&|request| {
                request.inputs[1].contents.as_mut().unwrap().bytes_contents = vec![vec![0xff]];
            }),
            Code::InvalidArgument,
            "not UTF-8",
        ),
        (
            change(&|request| {
                let time = parameter(ParameterChoice::StringParam("soon".to_owned()));
                request.parameters.insert("event_time".to_owned(), time);
            }),
            Code::InvalidArgument,
            "not a point in time",
        ),
        (
            change(&|request| {
                let timeout = parameter(ParameterChoice::Int64Param(0));
                request.parameters.insert("timeout".to_owned(), timeout);
            }),
            Code::DeadlineExceeded,
            "deadline",
        ),
    ];
    for (request, code, expected) in cases {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(expected),
            "{} lacks {expected}",
            status.message()
        );
    }
}
