//! Rollouts.

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    model::{Rollout, RolloutPage},
    service::{Orchestrator, RolloutChange},
};

pub(super) fn router() -> OpenApiRouter<Orchestrator> {
    OpenApiRouter::new()
        .routes(routes!(list_rollouts))
        .routes(routes!(get_rollout))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(promote))
        .routes(routes!(abort))
}

/// Which rollouts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RolloutQuery {
    /// Of this endpoint.
    endpoint: Option<String>,
    /// At most so many items: 1 to 1000, 50 without it.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Rollouts, the newest first.
#[utoipa::path(get, path = "/api/v1/projects/{project}/rollouts", tag = "rollouts",
    params(("project" = String, Path), RolloutQuery),
    responses((status = 200, body = RolloutPage), (status = "default", body = Problem)))]
async fn list_rollouts(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<RolloutQuery>,
) -> Result<Json<RolloutPage>, Problem> {
    let (endpoint, cursor) = (query.endpoint.as_deref(), query.cursor.as_deref());
    Ok(Json(
        orchestrator
            .list_rollouts(&caller, &project, endpoint, query.limit, cursor)
            .await?,
    ))
}

/// A rollout.
#[utoipa::path(get, path = "/api/v1/projects/{project}/rollouts/{id}", tag = "rollouts",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Rollout), (status = "default", body = Problem)))]
async fn get_rollout(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Rollout>, Problem> {
    Ok(Json(orchestrator.get_rollout(&caller, &project, &id).await?))
}

/// Keeps a rollout where it is. Guards are not judged until it goes on.
#[utoipa::path(post, path = "/api/v1/projects/{project}/rollouts/{id}/pause", tag = "rollouts",
    operation_id = "pause_rollout",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Rollout), (status = "default", body = Problem)))]
async fn pause(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Rollout>, Problem> {
    let change = RolloutChange::Pause;
    Ok(Json(orchestrator.change_rollout(&caller, &project, &id, change).await?))
}

/// Goes on with a paused rollout; its step begins anew.
#[utoipa::path(post, path = "/api/v1/projects/{project}/rollouts/{id}/resume", tag = "rollouts",
    operation_id = "resume_rollout",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Rollout), (status = "default", body = Problem)))]
async fn resume(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Rollout>, Problem> {
    let change = RolloutChange::Resume;
    Ok(Json(orchestrator.change_rollout(&caller, &project, &id, change).await?))
}

/// Lets the new routes serve at once.
#[utoipa::path(post, path = "/api/v1/projects/{project}/rollouts/{id}/promote", tag = "rollouts",
    operation_id = "promote_rollout",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Rollout), (status = "default", body = Problem)))]
async fn promote(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Rollout>, Problem> {
    let change = RolloutChange::Promote;
    Ok(Json(orchestrator.change_rollout(&caller, &project, &id, change).await?))
}

/// Refuses the new routes: what served before goes on serving.
#[utoipa::path(post, path = "/api/v1/projects/{project}/rollouts/{id}/abort", tag = "rollouts",
    operation_id = "abort_rollout",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Rollout), (status = "default", body = Problem)))]
async fn abort(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Rollout>, Problem> {
    let change = RolloutChange::Abort;
    Ok(Json(orchestrator.change_rollout(&caller, &project, &id, change).await?))
}
