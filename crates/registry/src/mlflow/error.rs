//! Refusals in MLflow's words. Its clients branch on the code and the status, and people search for the message.

use axum::{
    Json,
    body::to_bytes,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use modelyard_common::error::{ErrorKind, Fault as _, Problem};
use serde::Serialize;

use crate::error::Error;

/// The code of a request that can never be right.
pub(crate) const INVALID_PARAMETER_VALUE: &str = "INVALID_PARAMETER_VALUE";
/// The code of something that is there already.
pub(crate) const RESOURCE_ALREADY_EXISTS: &str = "RESOURCE_ALREADY_EXISTS";
/// The code of something that is not there.
pub(crate) const RESOURCE_DOES_NOT_EXIST: &str = "RESOURCE_DOES_NOT_EXIST";

/// What other faces of the server call a refusal.
const PROBLEM: &str = "application/problem+json";
/// The largest of these, in bytes.
const MAX_PROBLEM_BYTES: usize = 64 << 10;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct RefusalBody<'a> {
    error_code: &'a str,
    message: &'a str,
}

impl Refusal {
    /// 400: the request can never be right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: INVALID_PARAMETER_VALUE,
            message: message.into(),
        }
    }

    /// 400: the thing is in a state that forbids this. MLflow answers 500 with this code, which its clients would try again.
    pub(crate) fn invalid_state(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "INVALID_STATE",
            message: message.into(),
        }
    }

    /// 501: MLflow has it, and this server has not.
    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_IMPLEMENTED,
            code: "NOT_IMPLEMENTED",
            message: message.into(),
        }
    }
}

/// The status and the code of a kind of errors.
const fn codes(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::InvalidArgument | ErrorKind::FailedPrecondition => {
            (StatusCode::BAD_REQUEST, INVALID_PARAMETER_VALUE)
        }
        ErrorKind::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED"),
        ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, RESOURCE_DOES_NOT_EXIST),
        ErrorKind::AlreadyExists => (StatusCode::BAD_REQUEST, RESOURCE_ALREADY_EXISTS),
        ErrorKind::Aborted => (StatusCode::CONFLICT, "ABORTED"),
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID_PARAMETER_VALUE),
        ErrorKind::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
        ErrorKind::DeadlineExceeded | ErrorKind::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE")
        }
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // The params of a run never change; MLflow has no other word for it.
        let (status, code) = match error {
            Error::ParamChanged { .. } => (StatusCode::BAD_REQUEST, INVALID_PARAMETER_VALUE),
            // Clients try again where the status says so: this one does not, and asking again would not help.
            Error::Quota { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "RESOURCE_LIMIT_EXCEEDED"),
            _ => codes(error.kind()),
        };
        Self {
            status,
            code,
            // As everywhere: an internal error is logged, and its details stay here.
            message: Problem::from(error).detail,
        }
    }
}

impl From<modelyard_auth::Error> for Refusal {
    fn from(error: modelyard_auth::Error) -> Self {
        Error::from(error).into()
    }
}

/// Middleware: who is not let in is told so in MLflow's words, too.
pub(crate) async fn in_its_words(response: Response) -> Response {
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == PROBLEM);
    if !is_problem {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = to_bytes(body, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    let message = serde_json::from_slice::<Problem>(&bytes).map_or_else(|_| String::new(), |problem| problem.detail);
    let code = match parts.status {
        StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
        StatusCode::FORBIDDEN => "PERMISSION_DENIED",
        StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
        StatusCode::SERVICE_UNAVAILABLE => "TEMPORARILY_UNAVAILABLE",
        status if status.is_client_error() => INVALID_PARAMETER_VALUE,
        _ => "INTERNAL_ERROR",
    };
    let refusal = Refusal {
        status: parts.status,
        code,
        message,
    };
    // What tells when to try again, or how to sign in, stays.
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    let mut response = refusal.into_response();
    response.headers_mut().extend(parts.headers);
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = RefusalBody {
            error_code: self.code,
            message: &self.message,
        };
        (self.status, Json(body)).into_response()
    }
}
