//! Endpoints and the feed of events.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::{Declared, page::PageQuery};
use crate::{
    model::{
        endpoint::{EndpointResource, EndpointSpec},
        event::Event,
        page::{Page, PageRequest},
    },
    service::Registry,
};

/// Which events are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// The revision of the last event that the caller has; 0 when it is left out.
    after: Option<String>,
    /// The most items, 1 to 1000; 50 when it is left out.
    limit: Option<u32>,
}

/// The endpoints by name.
#[utoipa::path(get, path = "/endpoints", tag = "endpoints", params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<EndpointResource>), (status = "default", body = Problem)))]
pub async fn list_endpoints(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<EndpointResource>>, Problem> {
    Ok(Json(
        registry.list_endpoints(&caller, &project, &page.request()?).await?,
    ))
}

/// An endpoint: its spec, the versions that it means, and what the gateways made of it.
#[utoipa::path(get, path = "/endpoints/{name}", tag = "endpoints",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = OK, body = EndpointResource), (status = "default", body = Problem)))]
pub async fn get_endpoint(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<EndpointResource>, Problem> {
    Ok(Json(registry.get_endpoint(&caller, &project, &name).await?))
}

/// Makes the spec of an endpoint this one. What its routes refer to may come into being later.
#[utoipa::path(put, path = "/endpoints/{name}", tag = "endpoints",
    params(("project" = String, Path), ("name" = String, Path)), request_body = EndpointSpec,
    responses((status = OK, body = Declared<EndpointResource>), (status = "default", body = Problem)))]
pub async fn put_endpoint(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<Value>,
) -> Result<Json<Declared<EndpointResource>>, Problem> {
    let (outcome, resource) = registry.put_endpoint(&caller, &project, &name, &spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Brings back what an endpoint served before.
///
/// Away from what is on its way, or, where nothing is, from what serves. It stays like this until the routes of the endpoint mean
/// something else again.
#[utoipa::path(post, path = "/endpoints/{name}/rollback", tag = "endpoints",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = OK, body = EndpointResource), (status = "default", body = Problem)))]
pub async fn roll_back_endpoint(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<EndpointResource>, Problem> {
    Ok(Json(registry.roll_back_endpoint(&caller, &project, &name).await?))
}

/// Removes an endpoint. Gateways stop serving it.
#[utoipa::path(delete, path = "/endpoints/{name}", tag = "endpoints",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_endpoint(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    registry.delete_endpoint(&caller, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What happened, oldest first. Keep the revision of the last event and go on from there.
#[utoipa::path(get, path = "/events", tag = "events", params(("project" = String, Path), EventQuery),
    responses((status = OK, body = Page<Event>), (status = "default", body = Problem)))]
pub async fn list_events(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<EventQuery>,
) -> Result<Json<Page<Event>>, Problem> {
    let page = PageRequest::new(query.limit, query.after.as_deref())?;
    Ok(Json(registry.list_events(&caller, &project, &page).await?))
}
