//! Extractors whose refusals are problems like all others.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
};
use http::{StatusCode, request::Parts};
use modelyard_common::error::{ErrorKind, Problem};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use crate::{
    error::Result,
    model::page::{Cursor, PageRequest},
};

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(refuse(&rejection)),
        }
    }
}

/// A JSON body with secrets: what is wrong with it is told without repeating any of it.
pub struct SecretBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for SecretBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_)) => Err(Problem::new(
                ErrorKind::InvalidArgument,
                "INVALID_BODY",
                "the body cannot be used: send a JSON object with the fields of the API's description; what was sent is not repeated, it may be secret",
            )),
            Err(rejection) => Err(refuse(&rejection)),
        }
    }
}

fn refuse(rejection: &JsonRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body is larger than {} bytes: send less", super::JSON_LIMIT_BYTES);
        return Problem::new(ErrorKind::ResourceExhausted, "BODY_TOO_LARGE", detail);
    }
    let detail = match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            "the body is not marked as JSON: send the header `content-type: application/json`".to_owned()
        }
        other => format!("the body cannot be used: {}", other.body_text()),
    };
    Problem::new(ErrorKind::InvalidArgument, "INVALID_BODY", detail)
}

/// A query string.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(
                ErrorKind::InvalidArgument,
                "INVALID_QUERY",
                format!("the query cannot be used: {}", rejection.body_text()),
            )),
        }
    }
}

/// The parts of a path.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(
                ErrorKind::InvalidArgument,
                "INVALID_PATH",
                format!("the path cannot be used: {}", rejection.body_text()),
            )),
        }
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The most items, 1 to 1000; 50 when it is left out.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// The request for that part.
    pub fn request<K: Cursor>(&self) -> Result<PageRequest<K>> {
        PageRequest::new(self.limit, self.cursor.as_deref())
    }
}
