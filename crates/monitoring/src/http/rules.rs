//! Alert rules.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde_json::Value;

use super::monitors::ListParameters;
use crate::{
    model::{
        page::Page,
        resource::{Applied, Resource},
        rule::{AlertRule, AlertRuleSpec},
    },
    service::Monitoring,
};

/// Lists alert rules by name.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/alert-rules",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ListParameters),
    responses((status = 200, body = Page<Resource<AlertRuleSpec>>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn list_rules(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(parameters): Query<ListParameters>,
) -> Result<Json<Page<AlertRule>>, Problem> {
    let page = parameters.page()?;
    Ok(Json(monitoring.list_rules(&caller, &project, &page).await?))
}

/// Declares an alert rule. It judges, once each, the windows that end after the watermark of this moment.
#[utoipa::path(
    put,
    path = "/api/v1/projects/{project}/alert-rules/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The rule")),
    request_body = AlertRuleSpec,
    responses((status = 200, body = Applied<AlertRuleSpec>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn put_rule(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<Value>,
) -> Result<Json<Applied<AlertRuleSpec>>, Problem> {
    Ok(Json(monitoring.put_rule(&caller, &project, &name, spec).await?))
}

/// Shows an alert rule.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/alert-rules/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The rule")),
    responses((status = 200, body = Resource<AlertRuleSpec>), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn get_rule(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<AlertRule>, Problem> {
    Ok(Json(monitoring.get_rule(&caller, &project, &name).await?))
}

/// Removes an alert rule and resolves its alerts.
#[utoipa::path(
    delete,
    path = "/api/v1/projects/{project}/alert-rules/{name}",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The rule")),
    responses((status = 204, description = "Removed"), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn delete_rule(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    monitoring.delete_rule(&caller, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
