//! Alerts.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    model::{
        alert::{Alert, AlertState},
        page::{Page, PageRequest},
    },
    service::Monitoring,
    store::AlertFilter,
};

/// Which alerts are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AlertParameters {
    /// The most items, 1 to 1000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only `firing` or `resolved` ones.
    state: Option<AlertState>,
    /// Only those of a rule.
    rule: Option<String>,
}

/// Lists alerts, the newest first.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/alerts",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), AlertParameters),
    responses((status = 200, body = Page<Alert>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn list_alerts(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(parameters): Query<AlertParameters>,
) -> Result<Json<Page<Alert>>, Problem> {
    let page = PageRequest::new(parameters.limit, parameters.cursor)?;
    let filter = AlertFilter {
        state: parameters.state,
        rule: parameters.rule,
    };
    Ok(Json(monitoring.list_alerts(&caller, &project, &filter, &page).await?))
}

/// Shows an alert.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/alerts/{id}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("id" = String, Path, description = "The alert")),
    responses((status = 200, body = Alert), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn get_alert(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Alert>, Problem> {
    Ok(Json(monitoring.get_alert(&caller, &project, &id).await?))
}
