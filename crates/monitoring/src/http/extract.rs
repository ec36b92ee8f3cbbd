//! Reading requests, with refusals as problems.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
};
use http::request::Parts;
use modelyard_common::error::{ErrorKind, Problem};
use serde::de::DeserializeOwned;

const REASON: &str = "INVALID_REQUEST";

/// A body of JSON.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let too_large = rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE;
            let detail = if too_large {
                "the body is too large: send less at once".to_owned()
            } else {
                format!("the body cannot be read: {}", rejection.body_text())
            };
            Problem {
                status: rejection.status().as_u16(),
                ..Problem::new(ErrorKind::InvalidArgument, REASON, detail)
            }
        })?;
        let read = serde_json::from_slice(&bytes);
        read.map(Self).map_err(|error| {
            let detail = format!("the body is not the JSON that is expected here: {error}");
            Problem::new(ErrorKind::InvalidArgument, REASON, detail)
        })
    }
}

/// The parameters after the `?`.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(parameters)| Self(parameters)).map_err(|rejection| {
            let detail = format!(
                "the parameters of the request cannot be read: {}",
                rejection.body_text()
            );
            Problem::new(ErrorKind::InvalidArgument, REASON, detail)
        })
    }
}

/// The names in the path.
pub struct Names<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(names)| Self(names)).map_err(|rejection| {
            let detail = format!("the path cannot be read: {}", rejection.body_text());
            Problem::new(ErrorKind::InvalidArgument, REASON, detail)
        })
    }
}
