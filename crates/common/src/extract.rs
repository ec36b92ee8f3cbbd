//! Extractors whose refusals are problems like all others.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::{ErrorKind, Problem};

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match <Json<T> as FromRequest<S>>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(refuse_body(&rejection)),
        }
    }
}

/// No body at all is none; any other is JSON.
impl<S: Send + Sync, T: DeserializeOwned> OptionalFromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(Request::from_parts(parts.clone(), body), state)
            .await
            .map_err(|rejection| refuse_body(&rejection.into()))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let request = Request::from_parts(parts, bytes.into());
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// A JSON body with secrets: what is wrong with it is told without repeating any of it.
pub struct SecretBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for SecretBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match <Json<T> as FromRequest<S>>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_)) => Err(Problem::new(
                ErrorKind::InvalidArgument,
                "INVALID_BODY",
                "the body cannot be used: send a JSON object with the fields of the API's description; what was sent is not repeated, it may be secret",
            )),
            Err(rejection) => Err(refuse_body(&rejection)),
        }
    }
}

fn refuse_body(rejection: &JsonRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = "the body is larger than is taken here: send less at once";
        return Problem::new(ErrorKind::TooLarge, "BODY_TOO_LARGE", detail);
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

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body as HttpBody, extract::DefaultBodyLimit, routing::post};
    use serde::Deserialize;
    use tower::ServiceExt as _;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        count: u32,
    }

    async fn sent(path: &str, content_type: Option<&str>, body: &'static str) -> (StatusCode, String) {
        let routes = Router::new()
            .route("/body", post(async |Body(order): Body<Order>| order.count.to_string()))
            .route(
                "/secret",
                post(async |SecretBody(order): SecretBody<Order>| order.count.to_string()),
            )
            .route(
                "/optional",
                post(async |order: Option<Body<Order>>| order.map_or(0, |Body(order)| order.count).to_string()),
            )
            .layer(DefaultBodyLimit::max(64));
        let mut request = Request::post(path);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = routes
            .oneshot(request.body(HttpBody::from(body)).unwrap())
            .await
            .unwrap();
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    const JSON: Option<&str> = Some("application/json");
    const LARGE: &str = r#"{"count":                                                               1}"#;

    #[tokio::test]
    async fn a_body_is_json_or_a_problem() {
        for path in ["/body", "/secret", "/optional"] {
            assert_eq!(
                sent(path, JSON, r#"{"count": 3}"#).await,
                (StatusCode::OK, "3".to_owned()),
                "{path}"
            );
            let (status, text) = sent(path, JSON, LARGE).await;
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{path}: {text}");
            assert!(text.contains("BODY_TOO_LARGE"), "{text}");
            for (content_type, body) in [(None, r#"{"count": 3}"#), (JSON, "{"), (JSON, r#"{"hunter2": 1}"#)] {
                let (status, text) = sent(path, content_type, body).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {text}");
                assert!(text.contains("INVALID_BODY"), "{text}");
                assert!(path != "/secret" || !text.contains("hunter2"), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn no_body_is_none_where_it_may_be() {
        assert_eq!(sent("/optional", None, "").await, (StatusCode::OK, "0".to_owned()));
        assert_eq!(sent("/body", None, "").await.0, StatusCode::BAD_REQUEST);
    }
}
