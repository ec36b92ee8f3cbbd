//! Another server of the Open Inference Protocol, that answers with what it was asked.

use std::{net::SocketAddr, pin::Pin};

use futures::Stream;
use modelyard_proto::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Its model takes and gives `picture`: one element of `BYTES` a row.
pub struct Echo;

/// What it answers with more outputs than a message may have.
pub const FLOOD: &[u8] = b"flood";

impl Echo {
    /// Where it listens, until the test ends.
    pub async fn start() -> SocketAddr {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_service(GrpcInferenceServiceServer::new(Self));
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }
}

fn picture() -> TensorMetadata {
    TensorMetadata {
        name: "picture".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![-1, 1],
    }
}

macro_rules! not_offered {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        $(
            fn $method<'life0, 'async_trait>(
                &'life0 self,
                _: Request<$request>,
            ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'async_trait>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                Box::pin(std::future::ready(Err(Status::unimplemented("it only echoes"))))
            }
        )*
    };
}

#[tonic::async_trait]
impl GrpcInferenceService for Echo {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn model_metadata(
        &self,
        _: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        Ok(Response::new(ModelMetadataResponse {
            inputs: vec![picture()],
            outputs: vec![picture()],
            ..ModelMetadataResponse::default()
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let request = request.into_inner();
        if request.raw_input_contents.iter().any(|raw| raw.ends_with(FLOOD)) {
            return Ok(Response::new(ModelInferResponse {
                outputs: vec![InferOutputTensor::default(); 30_000],
                ..ModelInferResponse::default()
            }));
        }
        let outputs = request.inputs.into_iter().map(|input| InferOutputTensor {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape,
            ..InferOutputTensor::default()
        });
        Ok(Response::new(ModelInferResponse {
            id: request.id,
            outputs: outputs.collect(),
            raw_output_contents: request.raw_input_contents,
            ..ModelInferResponse::default()
        }))
    }

    not_offered! {
        server_live(ServerLiveRequest) -> ServerLiveResponse;
        server_ready(ServerReadyRequest) -> ServerReadyResponse;
        server_metadata(ServerMetadataRequest) -> ServerMetadataResponse;
        model_stream_infer(Streaming<ModelInferRequest>) -> Self::ModelStreamInferStream;
        model_config(ModelConfigRequest) -> ModelConfigResponse;
        model_statistics(ModelStatisticsRequest) -> ModelStatisticsResponse;
        repository_index(RepositoryIndexRequest) -> RepositoryIndexResponse;
        repository_model_load(RepositoryModelLoadRequest) -> RepositoryModelLoadResponse;
        repository_model_unload(RepositoryModelUnloadRequest) -> RepositoryModelUnloadResponse;
    }
}
