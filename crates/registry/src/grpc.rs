//! The registry over gRPC: convert, call, convert.

mod datasets;
mod endpoints;
mod models;
mod runs;

use std::sync::Arc;

use modelyard_common::{error::to_status, rpc::MAX_MESSAGE_BYTES};
use modelyard_proto::registry::v1::{
    dataset_service_server::DatasetServiceServer, endpoint_service_server::EndpointServiceServer,
    model_service_server::ModelServiceServer, run_service_server::RunServiceServer,
};
use tonic::{Response, Status, service::Routes};

use crate::{error::Error, service::Registry};

/// Who changes things over gRPC: another service.
const CALLER: &str = "service";

/// The face of the registry to the other services.
#[derive(Clone)]
struct Face {
    registry: Arc<Registry>,
}

/// The services of `modelyard.registry.v1`.
pub fn routes(registry: Arc<Registry>) -> Routes {
    let face = Face { registry };
    let limit = MAX_MESSAGE_BYTES;
    Routes::new(
        RunServiceServer::new(face.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
    .add_service(
        DatasetServiceServer::new(face.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
    .add_service(
        ModelServiceServer::new(face.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
    .add_service(
        EndpointServiceServer::new(face)
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
}

/// An answer, or the status of the error.
fn answer<T>(result: Result<T, Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

/// None for an empty text, as proto3 has it.
fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
