//! Authentication of calls between services. Whether a call comes from a service at all is settled before: the internal
//! listener lets nobody else in, and a call within the process comes from nowhere else.

use modelyard_common::{error::to_status, rpc};
use tonic::{Request, Status, metadata::MetadataMap};

use crate::{
    access::{Access, Facts},
    caller::Caller,
};

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(|value| value.to_str().ok())
}

/// The caller behind a call: the service, or somebody for whom it works.
///
/// # Errors
/// `UNAUTHENTICATED`: the call names no service, or nobody who is let in.
pub fn caller<T>(access: &Access, request: &Request<T>) -> Result<Caller, Status> {
    let metadata = request.metadata();
    let facts = Facts {
        request_id: text(metadata, crate::http::REQUEST_ID),
        source: None,
    };
    access
        .authenticate_service(text(metadata, rpc::SERVICE), text(metadata, rpc::ACTING_FOR), facts)
        .map_err(|error| to_status(&error))
}
