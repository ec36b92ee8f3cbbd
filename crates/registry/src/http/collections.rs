//! Collections of what deletion left behind, and quotas.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::page::PageQuery;
use crate::{
    model::{
        collection::{CollectedObject, CollectedOutcome, Collection, CollectionRequest},
        page::{Page, PageRequest},
        storage::Quota,
    },
    service::Registry,
};

/// The collections of several projects.
#[derive(Debug, Serialize, ToSchema)]
pub struct Collections {
    /// One for each project.
    items: Vec<Collection>,
}

/// Which objects of a collection are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ObjectQuery {
    /// Only those of which this became: `freed`, `would-be-freed` or `kept`.
    #[param(inline)]
    outcome: Option<CollectedOutcome>,
    /// The most items, 1 to 1000; 50 when it is left out.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Whether an experiment can come back.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemovalQuery {
    /// Whether it is removed for good, with its runs, logged models and artifacts, so that its name is free again.
    #[serde(default)]
    permanent: bool,
}

/// How much a project may store.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaSpec {
    /// In bytes; null: as much as there is room for.
    #[schema(required = true)]
    limit_bytes: Option<u64>,
}

/// Starts to free what deletion left behind in a project.
///
/// The collection goes on in the background; its record tells how far it is. One at a time runs in a project.
#[utoipa::path(post, path = "/gc", tag = "storage", params(("project" = String, Path)),
    request_body = CollectionRequest,
    responses((status = ACCEPTED, body = Collection), (status = "default", body = Problem)))]
pub async fn start_collection(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(request): Body<CollectionRequest>,
) -> Result<(StatusCode, Json<Collection>), Problem> {
    let started = registry.start_collection(&caller, &project, request).await?;
    Ok((StatusCode::ACCEPTED, Json(started)))
}

/// Starts to free what deletion left behind in every project. Where that goes on already, what goes on is answered.
#[utoipa::path(post, path = "/gc", tag = "storage", request_body = CollectionRequest,
    responses((status = ACCEPTED, body = Collections), (status = "default", body = Problem)))]
pub async fn start_collections(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Body(request): Body<CollectionRequest>,
) -> Result<(StatusCode, Json<Collections>), Problem> {
    let items = registry.start_collections(&caller, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(Collections { items })))
}

/// The collections of a project, the newest first.
#[utoipa::path(get, path = "/gc", tag = "storage", params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<Collection>), (status = "default", body = Problem)))]
pub async fn list_collections(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Collection>>, Problem> {
    Ok(Json(
        registry.list_collections(&caller, &project, &page.request()?).await?,
    ))
}

/// A collection: how far it is, and what it freed.
#[utoipa::path(get, path = "/gc/{id}", tag = "storage", params(("project" = String, Path), ("id" = String, Path)),
    responses((status = OK, body = Collection), (status = "default", body = Problem)))]
pub async fn get_collection(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Collection>, Problem> {
    Ok(Json(registry.get_collection(&caller, &project, &id).await?))
}

/// What a collection freed, would free or kept, by kind and id.
#[utoipa::path(get, path = "/gc/{id}/objects", tag = "storage",
    params(("project" = String, Path), ("id" = String, Path), ObjectQuery),
    responses((status = OK, body = Page<CollectedObject>), (status = "default", body = Problem)))]
pub async fn list_collected(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
    Query(query): Query<ObjectQuery>,
) -> Result<Json<Page<CollectedObject>>, Problem> {
    let page = PageRequest::new(query.limit, query.cursor.as_deref())?;
    let objects = registry
        .list_collected(&caller, &project, &id, query.outcome, &page)
        .await?;
    Ok(Json(objects))
}

/// Deletes an experiment with its runs.
///
/// With `permanent` it is removed for good, by the collection that is answered. A run that a model version was made from stays, and
/// its experiment with it.
#[utoipa::path(delete, path = "/experiments/{id}", tag = "runs",
    params(("project" = String, Path), ("id" = String, Path), RemovalQuery),
    responses((status = NO_CONTENT), (status = ACCEPTED, body = Collection), (status = "default", body = Problem)))]
pub async fn delete_experiment(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
    Query(query): Query<RemovalQuery>,
) -> Result<Response, Problem> {
    let started = registry
        .remove_experiment(&caller, &project, &id, query.permanent)
        .await?;
    Ok(match started {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(collection) => (StatusCode::ACCEPTED, Json(collection)).into_response(),
    })
}

/// How much a project stores and may store.
#[utoipa::path(get, path = "/quota", tag = "storage", params(("project" = String, Path)),
    responses((status = OK, body = Quota), (status = "default", body = Problem)))]
pub async fn get_quota(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
) -> Result<Json<Quota>, Problem> {
    Ok(Json(registry.get_quota(&caller, &project).await?))
}

/// Sets how much a project may store.
#[utoipa::path(put, path = "/quota", tag = "storage", params(("project" = String, Path)), request_body = QuotaSpec,
    responses((status = OK, body = Quota), (status = "default", body = Problem)))]
pub async fn put_quota(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(spec): Body<QuotaSpec>,
) -> Result<Json<Quota>, Problem> {
    Ok(Json(registry.set_quota(&caller, &project, spec.limit_bytes).await?))
}
