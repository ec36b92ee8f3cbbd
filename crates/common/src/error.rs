//! One vocabulary of errors for all services, and its one table of gRPC codes and HTTP statuses.

use std::{collections::HashMap, fmt, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use utoipa::ToSchema;

/// The domain of `google.rpc.ErrorInfo` in our statuses.
pub const ERROR_DOMAIN: &str = "modelyard";

/// What went wrong, in gRPC's words, because both faces need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The caller sent something that can never be right.
    InvalidArgument,
    /// The caller did not say who it is.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// The thing does not exist.
    NotFound,
    /// The thing exists already, and differs.
    AlreadyExists,
    /// The thing is in a state that forbids this.
    FailedPrecondition,
    /// A concurrent change won; trying again can help.
    Aborted,
    /// What was sent is larger than is taken.
    TooLarge,
    /// A limit, quota, queue or disk is full.
    ResourceExhausted,
    /// It took too long.
    DeadlineExceeded,
    /// It cannot be done right now; trying again later can help.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::TooLarge,
        Self::ResourceExhausted,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The gRPC code.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::Aborted => Code::Aborted,
            // What tonic says of a message that is too large.
            Self::TooLarge => Code::OutOfRange,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The kind of a gRPC code, as a client of another service sees it.
    #[must_use]
    pub const fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::InvalidArgument,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::Aborted => Self::Aborted,
            Code::OutOfRange => Self::TooLarge,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unavailable | Code::Cancelled => Self::Unavailable,
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::Internal,
        }
    }

    /// Whether the same call can succeed later without a change by the caller.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Aborted | Self::ResourceExhausted | Self::DeadlineExceeded | Self::Unavailable
        )
    }
}

/// An error of a service or library that a face can answer with.
pub trait Fault: std::error::Error + Send + Sync + 'static {
    /// What went wrong.
    fn kind(&self) -> ErrorKind;
    /// A stable code for programs, in SCREAMING_SNAKE case.
    fn reason(&self) -> &str;
    /// When to try again, where that is known.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// What a client is told about an internal error; the log has the rest.
const INTERNAL_MESSAGE: &str = "internal error: the server's log has the details";

/// The longest message to a client, in bytes: what is wrong may be as long as the request, and over gRPC the message is a header,
/// twice and encoded at up to three times its length, of which some clients take 8 KiB.
const MAX_MESSAGE_BYTES: usize = 1200;

/// The message for the client, cut where it is too long. An internal error is logged here, once, with its sources.
fn client_message(fault: &(impl Fault + ?Sized)) -> String {
    if fault.kind() == ErrorKind::Internal {
        tracing::error!(reason = fault.reason(), error = %Chain(fault), "internal error");
        return INTERNAL_MESSAGE.to_owned();
    }
    let mut message = fault.to_string();
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    message
}

/// Prints an error with its sources on one line.
pub struct Chain<'a, E: ?Sized>(pub &'a E);

impl<E: std::error::Error + ?Sized> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// The gRPC status of a fault, with `google.rpc.ErrorInfo` and, where it is known when to try again, `RetryInfo`.
#[must_use]
pub fn to_status(fault: &(impl Fault + ?Sized)) -> Status {
    let mut details = ErrorDetails::with_error_info(fault.reason(), ERROR_DOMAIN, HashMap::new());
    if let Some(wait) = fault.retry_after() {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(fault.kind().code(), client_message(fault), details)
}

/// An error that another service answered with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    kind: ErrorKind,
    reason: String,
    message: String,
    retry_after: Option<Duration>,
}

impl Fault for RemoteError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<Status> for RemoteError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details
            .error_info()
            .map_or_else(|| "REMOTE".to_owned(), |info| info.reason.clone());
        Self {
            kind: ErrorKind::from_code(status.code()),
            reason,
            message: status.message().to_owned(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// The body of an HTTP error: `application/problem+json` of RFC 9457, with our `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says it all.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, and what to do.
    pub detail: String,
    /// A stable code for programs, in SCREAMING_SNAKE case.
    pub reason: String,
    /// When to try again: the header `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// What its body is, as `Content-Type` says it.
    pub const MEDIA_TYPE: &str = "application/problem+json";

    /// A problem of the given kind.
    #[must_use]
    pub fn new(kind: ErrorKind, reason: &str, detail: impl Into<String>) -> Self {
        let status = kind.status();
        Self {
            problem_type: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            reason: reason.to_owned(),
            retry_after: None,
        }
    }
}

impl<E: Fault> From<E> for Problem {
    fn from(fault: E) -> Self {
        Self {
            retry_after: fault.retry_after(),
            ..Self::new(fault.kind(), fault.reason(), client_message(&fault))
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(Self::MEDIA_TYPE));
        if let Some(wait) = retry_after {
            let seconds = wait.as_secs().max(1);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the door is shut: open it")]
    struct Shut(ErrorKind);

    impl Fault for Shut {
        fn kind(&self) -> ErrorKind {
            self.0
        }
        fn reason(&self) -> &'static str {
            "DOOR_SHUT"
        }
        fn retry_after(&self) -> Option<Duration> {
            Some(Duration::from_secs(7))
        }
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let remote = RemoteError::from(to_status(&Shut(kind)));
            assert_eq!(remote.kind(), kind);
            assert_eq!(remote.reason(), "DOOR_SHUT");
            assert_eq!(remote.retry_after(), Some(Duration::from_secs(7)));
            let response = Problem::from(remote).into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        }
    }

    #[test]
    fn internal_errors_do_not_leak() {
        let problem = Problem::from(Shut(ErrorKind::Internal));
        assert_eq!(problem.detail, INTERNAL_MESSAGE);
        assert_eq!(to_status(&Shut(ErrorKind::Internal)).message(), INTERNAL_MESSAGE);
        let problem = Problem::from(Shut(ErrorKind::NotFound));
        assert_eq!(problem.detail, "the door is shut: open it");
        assert_eq!(problem.status, 404);
    }

    #[test]
    fn messages_are_cut_where_they_are_too_long() {
        let said = |message: String| {
            let fault = RemoteError {
                kind: ErrorKind::InvalidArgument,
                reason: "LONG".to_owned(),
                message,
                retry_after: None,
            };
            assert_eq!(to_status(&fault).message(), Problem::from(fault.clone()).detail);
            Problem::from(fault).detail
        };
        let longest = "x".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(said(longest.clone()), longest);
        assert_eq!(said(format!("{longest}y")), format!("{longest}…"));
        let wide = said(format!("x{}", "é".repeat(MAX_MESSAGE_BYTES)));
        assert!(
            wide.ends_with("é…") && wide.len() <= MAX_MESSAGE_BYTES + '…'.len_utf8(),
            "{wide}"
        );
    }
}
