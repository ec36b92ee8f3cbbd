//! The registry over gRPC: convert, call, convert.

mod access;
mod audit;
mod datasets;
mod endpoints;
mod models;
mod runs;
mod secrets;

use std::sync::Arc;

use modelyard_auth::{Caller, rpc};
use modelyard_common::{error::to_status, rpc::MAX_MESSAGE_BYTES};
use modelyard_proto::registry::v1::{
    access_service_server::AccessServiceServer, audit_service_server::AuditServiceServer,
    dataset_service_server::DatasetServiceServer, endpoint_service_server::EndpointServiceServer,
    model_service_server::ModelServiceServer, run_service_server::RunServiceServer,
    secret_service_server::SecretServiceServer,
};
use tonic::{Request, Response, Status, service::Routes};

use crate::{error::Error, service::Registry};

/// The face of the registry to the other services.
#[derive(Clone)]
struct Face {
    registry: Arc<Registry>,
}

impl Face {
    /// Who calls: a service, or somebody for whom it works.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        rpc::caller(self.registry.access(), request)
    }
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
        EndpointServiceServer::new(face.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
    .add_service(
        AccessServiceServer::new(face.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit),
    )
    .add_service(AuditServiceServer::new(face.clone()).max_decoding_message_size(limit))
    .add_service(SecretServiceServer::new(face))
}

/// An answer, or the status of the error.
fn answer<T>(result: Result<T, Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

/// None for an empty text, as proto3 has it.
fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
