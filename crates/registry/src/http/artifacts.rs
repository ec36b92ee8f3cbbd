//! Artifacts.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::service::Registry;

/// What the content shall be.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ArtifactQuery {
    /// The digest that the content must have: `sha256:` and 64 hexadecimal digits.
    digest: Option<String>,
}

/// A stored artifact.
#[derive(Debug, Serialize, ToSchema)]
pub struct Artifact {
    /// Its name: `sha256:` and 64 hexadecimal digits.
    digest: String,
    /// Its size in bytes.
    size_bytes: u64,
}

/// Stores a file under the digest of its content.
#[utoipa::path(put, path = "/artifacts", tag = "artifacts",
    params(("project" = String, Path), ArtifactQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = CREATED, body = Artifact), (status = "default", body = Problem)))]
pub async fn put_artifact(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<ArtifactQuery>,
    content: Body,
) -> Result<(StatusCode, Json<Artifact>), Problem> {
    let content = content.into_data_stream();
    let blob = registry
        .put_artifact(&caller, &project, content, query.digest.as_deref())
        .await?;
    let artifact = Artifact {
        digest: blob.digest.to_string(),
        size_bytes: blob.size_bytes,
    };
    Ok((StatusCode::CREATED, Json(artifact)))
}

/// The content of an artifact. It is verified while it is sent; when it is damaged the connection breaks before its end.
#[utoipa::path(get, path = "/artifacts/{digest}", tag = "artifacts",
    params(("project" = String, Path), ("digest" = String, Path)),
    responses((status = OK, content_type = "application/octet-stream", body = Vec<u8>),
              (status = "default", body = Problem)))]
pub async fn get_artifact(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, digest)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let content = registry.get_artifact(&caller, &project, &digest).await?;
    let size_bytes = content.size_bytes();
    Ok(described(size_bytes, &digest, Body::from_stream(content)))
}

/// The size of an artifact, in the header `content-length`.
#[utoipa::path(head, path = "/artifacts/{digest}", tag = "artifacts",
    params(("project" = String, Path), ("digest" = String, Path)),
    responses((status = OK), (status = "default", description = "It does not exist, or cannot be looked for.")))]
pub async fn head_artifact(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, digest)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let size_bytes = registry.artifact_size(&caller, &project, &digest).await?;
    Ok(described(size_bytes, &digest, Body::empty()))
}

/// An answer with the headers of an artifact, which a browser never shows as a page.
fn described(size_bytes: u64, digest: &str, body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size_bytes));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, tag);
    }
    response
}
