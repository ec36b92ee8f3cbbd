//! Models, their versions and aliases.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    Timestamp,
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::page::PageQuery;
use crate::{
    error::{Error, Result},
    model::{
        alias::{Alias, AliasAt, AliasChange, Selector},
        page::Page,
        registered_model::{ModelVersion, RegisteredModel},
    },
    service::{ModelVersionRequest, Registry},
};

/// Where an alias shall point.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasTarget {
    /// The version.
    version: u32,
}

/// The signature of a version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleOrder {
    /// The Sigstore bundle (JSON), uploaded before: `sha256:` and 64 hexadecimal digits.
    digest: String,
}

/// The time that is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TimeQuery {
    /// The time, as `2026-03-01T12:00:00Z`.
    time: Timestamp,
}

/// The models by name.
#[utoipa::path(get, path = "/models", tag = "models", params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<RegisteredModel>), (status = "default", body = Problem)))]
pub async fn list_models(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<RegisteredModel>>, Problem> {
    Ok(Json(registry.list_models(&caller, &project, &page.request()?).await?))
}

/// A model with its aliases.
#[utoipa::path(get, path = "/models/{model}", tag = "models",
    params(("project" = String, Path), ("model" = String, Path)),
    responses((status = OK, body = RegisteredModel), (status = "default", body = Problem)))]
pub async fn get_model(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model)): Path<(String, String)>,
) -> Result<Json<RegisteredModel>, Problem> {
    Ok(Json(registry.get_model(&caller, &project, &model).await?))
}

/// The versions of a model, newest first.
#[utoipa::path(get, path = "/models/{model}/versions", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), PageQuery),
    responses((status = OK, body = Page<ModelVersion>), (status = "default", body = Problem)))]
pub async fn list_model_versions(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<ModelVersion>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry.list_model_versions(&caller, &project, &model, &page).await?,
    ))
}

/// Registers an uploaded file as the next version: an ONNX model, or the description of a model of another server.
///
/// A repeated idempotency key finds the version of the first call, with status 200.
#[utoipa::path(post, path = "/models/{model}/versions", tag = "models",
    params(("project" = String, Path), ("model" = String, Path)), request_body = ModelVersionRequest,
    responses((status = CREATED, body = ModelVersion), (status = OK, body = ModelVersion),
              (status = "default", body = Problem)))]
pub async fn create_model_version(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model)): Path<(String, String)>,
    Body(request): Body<ModelVersionRequest>,
) -> Result<(StatusCode, Json<ModelVersion>), Problem> {
    let (version, created) = registry
        .create_model_version(&caller, &project, &model, request)
        .await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(version)))
}

/// A version with its lineage, signature, metrics and aliases.
#[utoipa::path(get, path = "/models/{model}/versions/{version}", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("version" = u32, Path)),
    responses((status = OK, body = ModelVersion), (status = "default", body = Problem)))]
pub async fn get_model_version(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, version)): Path<(String, String, String)>,
) -> Result<Json<ModelVersion>, Problem> {
    let selector = Selector::Version(read_version(&version)?);
    Ok(Json(
        registry.get_model_version(&caller, &project, &model, &selector).await?,
    ))
}

fn read_version(text: &str) -> Result<u32> {
    text.parse()
        .map_err(|_| Error::request(format!("`{text}` is not a version: write a number from 1")))
}

/// Signs a version: keeps the Sigstore bundle with the signature of its files, in the place of the one before.
///
/// The bundle must be about the version's files. Whose signature it is does not matter here: gateways that are told so serve only
/// what a key has signed that they trust.
#[utoipa::path(put, path = "/models/{model}/versions/{version}/bundle", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("version" = u32, Path)), request_body = BundleOrder,
    responses((status = OK, body = ModelVersion), (status = "default", body = Problem)))]
pub async fn set_bundle(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, version)): Path<(String, String, String)>,
    Body(order): Body<BundleOrder>,
) -> Result<Json<ModelVersion>, Problem> {
    let version = read_version(&version)?;
    let signed = registry
        .set_bundle(&caller, &project, &model, version, &order.digest)
        .await?;
    Ok(Json(signed))
}

/// Where an alias points.
#[utoipa::path(get, path = "/models/{model}/aliases/{alias}", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("alias" = String, Path)),
    responses((status = OK, body = Alias), (status = "default", body = Problem)))]
pub async fn get_alias(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, alias)): Path<(String, String, String)>,
) -> Result<Json<Alias>, Problem> {
    Ok(Json(registry.get_alias(&caller, &project, &model, &alias).await?))
}

/// Points an alias at a version. Endpoints that follow it move there.
#[utoipa::path(put, path = "/models/{model}/aliases/{alias}", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("alias" = String, Path)),
    request_body = AliasTarget,
    responses((status = OK, body = Alias), (status = "default", body = Problem)))]
pub async fn set_alias(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, alias)): Path<(String, String, String)>,
    Body(target): Body<AliasTarget>,
) -> Result<Json<Alias>, Problem> {
    registry
        .set_alias(&caller, &project, &model, &alias, target.version)
        .await?;
    Ok(Json(registry.find_alias(&project, &model, &alias).await?))
}

/// Removes an alias. Endpoints that follow it keep what they serve, and say that they point at nothing.
#[utoipa::path(delete, path = "/models/{model}/aliases/{alias}", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("alias" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn remove_alias(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, alias)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    registry.remove_alias(&caller, &project, &model, &alias).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The changes of an alias, newest first.
#[utoipa::path(get, path = "/models/{model}/aliases/{alias}/history", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("alias" = String, Path), PageQuery),
    responses((status = OK, body = Page<AliasChange>), (status = "default", body = Problem)))]
pub async fn alias_history(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, alias)): Path<(String, String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AliasChange>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry.alias_history(&caller, &project, &model, &alias, &page).await?,
    ))
}

/// Where an alias pointed at a time, since and until when, and who had it so.
///
/// It answers for the name as it was: a model that was renamed or removed since then is asked for by the name that it had.
#[utoipa::path(get, path = "/models/{model}/aliases/{alias}/at", tag = "models",
    params(("project" = String, Path), ("model" = String, Path), ("alias" = String, Path), TimeQuery),
    responses((status = OK, body = AliasAt), (status = "default", body = Problem)))]
pub async fn alias_at(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, model, alias)): Path<(String, String, String)>,
    Query(query): Query<TimeQuery>,
) -> Result<Json<AliasAt>, Problem> {
    Ok(Json(
        registry.alias_at(&caller, &project, &model, &alias, query.time).await?,
    ))
}
