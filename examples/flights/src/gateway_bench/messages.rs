//! The requests of the benchmark: one input, all outputs.

use anyhow::Result;
use bytes::Bytes;
use modelyard_proto::inference::{
    ModelInferRequest, ModelInferResponse, grpc_inference_service_client::GrpcInferenceServiceClient,
    model_infer_request::InferInputTensor,
};
use serde_json::json;
use tonic::transport::Endpoint;

use crate::{load::Subject, wire};

/// How many bytes of a body are JSON.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// The path of predictions.
pub fn path(endpoint: &str) -> String {
    format!("/v2/models/{endpoint}/infer")
}

/// Floats as JSON.
pub fn json_floats(endpoint: &str, name: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let body = json!({"inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": values}]});
    let headers = [("content-type", "application/json")];
    wire::post(&path(endpoint), &headers, body.to_string().as_bytes())
}

/// Floats behind JSON.
pub fn binary_floats(endpoint: &str, name: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    binary(endpoint, name, "FP32", shape, &float_bytes(values))
}

/// Numbers behind JSON.
pub fn binary_numbers(endpoint: &str, name: &str, shape: &[usize], values: &[i64]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    binary(endpoint, name, "INT64", shape, &bytes)
}

fn binary(endpoint: &str, name: &str, datatype: &str, shape: &[usize], content: &[u8]) -> Vec<u8> {
    let header = json!({
        "inputs": [{
            "name": name,
            "shape": shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": content.len()},
        }],
        "parameters": {"binary_data_output": true},
    })
    .to_string();
    let length = header.len().to_string();
    let headers = [
        ("content-type", "application/octet-stream"),
        (HEADER_LENGTH, length.as_str()),
    ];
    let mut body = header.into_bytes();
    body.extend_from_slice(content);
    wire::post(&path(endpoint), &headers, &body)
}

/// Floats as gRPC's clients send them: raw.
pub fn grpc_floats(endpoint: &str, name: &str, shape: &[usize], values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: endpoint.to_owned(),
        inputs: vec![InferInputTensor {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.iter().map(|&size| size as i64).collect(),
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![Bytes::from(float_bytes(values))],
        ..ModelInferRequest::default()
    }
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The answer to one call of gRPC, by a whole client.
pub async fn call(gateway: Subject, request: ModelInferRequest) -> Result<ModelInferResponse> {
    let channel = Endpoint::from_shared(format!("http://{}", gateway.address))?
        .connect()
        .await?;
    let answer = GrpcInferenceServiceClient::new(channel).model_infer(request).await?;
    Ok(answer.into_inner())
}
