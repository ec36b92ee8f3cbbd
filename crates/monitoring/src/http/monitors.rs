//! Monitors and their windows.

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
use utoipa::{IntoParams, ToSchema};

use crate::{
    model::{
        monitor::{Monitor, MonitorSpec},
        page::{Page, PageRequest},
        resource::{Applied, Resource},
        score::MonitorWindow,
        window::Length,
    },
    service::Monitoring,
};

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParameters {
    /// The most items, 1 to 1000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl ListParameters {
    /// The request, checked.
    pub fn page(self) -> Result<PageRequest, Problem> {
        Ok(PageRequest::new(self.limit, self.cursor)?)
    }
}

/// In which order windows are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = WindowOrder)]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    #[default]
    Desc,
}

/// Which windows are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WindowParameters {
    /// The most items, 1 to 1000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `desc` (newest first) or `asc`.
    #[param(inline)]
    order: Option<Order>,
}

/// Lists monitors by name.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/monitors",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ListParameters),
    responses((status = 200, body = Page<Resource<MonitorSpec>>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn list_monitors(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(parameters): Query<ListParameters>,
) -> Result<Json<Page<Monitor>>, Problem> {
    let page = parameters.page()?;
    Ok(Json(monitoring.list_monitors(&caller, &project, &page).await?))
}

/// Declares a monitor.
#[utoipa::path(
    put,
    path = "/api/v1/projects/{project}/monitors/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The monitor")),
    request_body = MonitorSpec,
    responses((status = 200, body = Applied<MonitorSpec>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn put_monitor(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<Value>,
) -> Result<Json<Applied<MonitorSpec>>, Problem> {
    Ok(Json(monitoring.put_monitor(&caller, &project, &name, spec).await?))
}

/// Shows a monitor.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/monitors/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The monitor")),
    responses((status = 200, body = Resource<MonitorSpec>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn get_monitor(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<Monitor>, Problem> {
    Ok(Json(monitoring.get_monitor(&caller, &project, &name).await?))
}

/// Removes a monitor with its windows. The inference log stays.
#[utoipa::path(
    delete,
    path = "/api/v1/projects/{project}/monitors/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The monitor")),
    responses((status = 204, description = "Removed"), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn delete_monitor(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    monitoring.delete_monitor(&caller, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the windows of a monitor that have predictions, with their scores.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/monitors/{name}/windows",
    tag = "monitoring",
    params(
        ("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The monitor"),
        WindowParameters
    ),
    responses((status = 200, body = Page<MonitorWindow>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn list_windows(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Query(parameters): Query<WindowParameters>,
) -> Result<Json<Page<MonitorWindow>>, Problem> {
    let page = PageRequest::new(parameters.limit, parameters.cursor)?;
    let ascending = parameters.order.unwrap_or_default() == Order::Asc;
    Ok(Json(
        monitoring
            .list_windows(&caller, &project, &name, &page, ascending)
            .await?,
    ))
}

/// Shows a window with its score.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/monitors/{name}/windows/{start}",
    tag = "monitoring",
    params(
        ("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The monitor"),
        ("start" = String, Path, description = "Where it begins: 2013-03-01T00:00:00Z, 2013-03-01 or 2013-03")
    ),
    responses((status = 200, body = MonitorWindow), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn get_window(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name, start)): Path<(String, String, String)>,
) -> Result<Json<MonitorWindow>, Problem> {
    let start = Length::read_start(&start)?;
    Ok(Json(monitoring.get_window(&caller, &project, &name, start).await?))
}
