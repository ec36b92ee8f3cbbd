//! Bare handlers that the gateway is measured beside: they do with each request what a server cannot leave out, and answer.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use clap::ValueEnum;
use futures::stream::BoxStream;
use modelyard_proto::inference::{
    self as proto, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tonic::{
    Request, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use super::messages::HEADER_LENGTH;
use crate::bare_server::serve;

/// Where the handlers over HTTP are.
const ROUTE: &str = "/v2/models/{name}/infer";

/// A bare handler of the gateway's benchmark.
#[derive(Debug, clap::Args)]
pub struct BareModelArguments {
    /// What it does.
    kind: Kind,
    /// The file with the answer to every request.
    answer: PathBuf,
    /// How many bytes of the answer are JSON.
    #[arg(default_value_t = 0)]
    header_bytes: usize,
}

/// What a bare handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Parses JSON into types, and serializes the answer.
    Json,
    /// Parses the JSON before binary tensors, and serializes that of the answer.
    Binary,
    /// Answers with the body, which it has in one piece by then.
    Copy,
    /// Decodes messages of gRPC and encodes the answer.
    Grpc,
}

/// Serves a bare handler until the process is ended.
pub async fn serve_bare_model(
    arguments: BareModelArguments,
    announce: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let answer = || {
        let read = fs::read(&arguments.answer);
        read.with_context(|| format!("the answer `{}` cannot be read", arguments.answer.display()))
    };
    match arguments.kind {
        Kind::Json => {
            let answer: JsonAnswer = serde_json::from_slice(&answer()?).context("the answer is another one")?;
            let router = Router::new().route(ROUTE, post(json)).with_state(Arc::new(answer));
            serve(router, announce).await
        }
        Kind::Copy => {
            // The body came in pieces; putting them together was the one copy.
            let copy = async |body: Bytes| body;
            let router = Router::new()
                .route(ROUTE, post(copy))
                .layer(DefaultBodyLimit::disable());
            serve(router, announce).await
        }
        Kind::Binary => {
            let answer = BinaryAnswer::read(answer()?, arguments.header_bytes)?;
            let router = Router::new().route(ROUTE, post(binary)).with_state(Arc::new(answer));
            serve(router, announce).await
        }
        Kind::Grpc => {
            let answer = ModelInferResponse::decode(answer()?.as_slice()).context("the answer is no message")?;
            serve_grpc(answer, announce).await
        }
    }
}

/// A request in JSON, as a handler without a library would declare it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRequest {
    inputs: Vec<JsonTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTensor {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    data: Vec<f32>,
}

/// An answer in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonAnswer {
    model_name: String,
    model_version: String,
    id: String,
    outputs: Vec<JsonTensor>,
}

async fn json(State(answer): State<Arc<JsonAnswer>>, Json(request): Json<JsonRequest>) -> Response {
    if request.inputs.is_empty() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    Json(answer).into_response()
}

/// An answer with binary tensors.
struct BinaryAnswer {
    header: Value,
    tensors: Vec<u8>,
}

impl BinaryAnswer {
    fn read(mut body: Vec<u8>, header_bytes: usize) -> Result<Self> {
        let tensors = body.split_off(header_bytes.min(body.len()));
        let header = serde_json::from_slice(&body).context("the answer does not begin with JSON")?;
        Ok(Self { header, tensors })
    }
}

/// A request with binary tensors, as a handler without a library would declare it.
#[derive(Deserialize)]
struct BinaryRequest {
    inputs: Vec<BinaryInput>,
}

#[derive(Deserialize)]
struct BinaryInput {
    #[expect(dead_code, reason = "parsed like the gateway's, and not used")]
    name: String,
    #[expect(dead_code, reason = "parsed like the gateway's, and not used")]
    datatype: String,
    #[expect(dead_code, reason = "parsed like the gateway's, and not used")]
    shape: Vec<i64>,
    parameters: BinaryParameters,
}

#[derive(Deserialize)]
struct BinaryParameters {
    binary_data_size: usize,
}

async fn binary(State(answer): State<Arc<BinaryAnswer>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(()) = check_binary(&headers, &body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut written = answer.header.to_string().into_bytes();
    let length = written.len();
    written.extend_from_slice(&answer.tensors);
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (HEADER_LENGTH, length.to_string()),
    ];
    (headers, written).into_response()
}

/// Reads a request; nothing if it is none.
fn check_binary(headers: &HeaderMap, body: &Bytes) -> Option<()> {
    let header_bytes: usize = headers.get(HEADER_LENGTH)?.to_str().ok()?.parse().ok()?;
    let (header, tensors) = body.split_at_checked(header_bytes)?;
    let request: BinaryRequest = serde_json::from_slice(header).ok()?;
    let expected: usize = request
        .inputs
        .iter()
        .map(|input| input.parameters.binary_data_size)
        .sum();
    (expected == tensors.len()).then_some(())
}

async fn serve_grpc(answer: ModelInferResponse, announce: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    announce(listener.local_addr()?)?;
    let service = GrpcInferenceServiceServer::new(BareService { answer });
    Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

/// Answers every request with the same message.
struct BareService {
    answer: ModelInferResponse,
}

type Answered<T> = Result<tonic::Response<T>, Status>;

/// The service, of which all methods but one are refused.
macro_rules! service {
    ($($refused:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl GrpcInferenceService for BareService {
            $(async fn $refused(&self, _: Request<proto::$request>) -> Answered<proto::$response> {
                Err(Status::unimplemented("the bare handler predicts only"))
            })*

            type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

            async fn model_stream_infer(
                &self,
                _: Request<Streaming<ModelInferRequest>>,
            ) -> Answered<Self::ModelStreamInferStream> {
                Err(Status::unimplemented("the bare handler predicts only"))
            }

            async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answered<ModelInferResponse> {
                if request.get_ref().inputs.is_empty() {
                    return Err(Status::invalid_argument("there is no input"));
                }
                Ok(tonic::Response::new(self.answer.clone()))
            }
        }
    };
}

service! {
    server_live(ServerLiveRequest) -> ServerLiveResponse;
    server_ready(ServerReadyRequest) -> ServerReadyResponse;
    server_metadata(ServerMetadataRequest) -> ServerMetadataResponse;
    model_ready(ModelReadyRequest) -> ModelReadyResponse;
    model_metadata(ModelMetadataRequest) -> ModelMetadataResponse;
    model_config(ModelConfigRequest) -> ModelConfigResponse;
    model_statistics(ModelStatisticsRequest) -> ModelStatisticsResponse;
    repository_index(RepositoryIndexRequest) -> RepositoryIndexResponse;
    repository_model_load(RepositoryModelLoadRequest) -> RepositoryModelLoadResponse;
    repository_model_unload(RepositoryModelUnloadRequest) -> RepositoryModelUnloadResponse;
}
