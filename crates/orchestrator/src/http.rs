//! The face for people and their tools.

mod rollouts;

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware::from_fn_with_state,
};
use modelyard_auth::{Caller, http::authenticate};
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    model::{
        AppliedResource, MAX_SPEC_BYTES, PipelineRun, PipelineRunPage, PipelineSpec, Resource, ResourceKind,
        ResourcePage, RunStatus, TriggerSpec,
    },
    service::{Orchestrator, RunQuery},
};

/// The largest body: a definition, with room for how it is spelled.
const MAX_BODY_BYTES: usize = 2 * MAX_SPEC_BYTES;

/// The routes, with their state.
pub(crate) fn router(orchestrator: Orchestrator) -> OpenApiRouter {
    let access = orchestrator.access.clone();
    OpenApiRouter::new()
        .routes(routes!(put_pipeline, get_pipeline, delete_pipeline))
        .routes(routes!(list_pipelines))
        .routes(routes!(create_run))
        .routes(routes!(list_runs))
        .routes(routes!(get_run))
        .routes(routes!(cancel_run))
        .routes(routes!(put_trigger, get_trigger, delete_trigger))
        .routes(routes!(list_triggers))
        .merge(rollouts::router())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(access, authenticate))
        .with_state(orchestrator)
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// At most so many items: 1 to 1000, 50 without it.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Which runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RunListQuery {
    /// Of this pipeline.
    pipeline: Option<String>,
    /// Started by this trigger.
    trigger: Option<String>,
    /// Started with this key of a trigger.
    trigger_key: Option<String>,
    /// In this status.
    status: Option<RunStatus>,
    /// At most so many items: 1 to 1000, 50 without it.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What a run is started with.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = CreatePipelineRun)]
struct CreateRun {
    /// Values that take the place of the pipeline's defaults.
    #[schema(value_type = Object)]
    parameters: Map<String, Value>,
    /// Repeating a call with the same key gives the run of the first call.
    idempotency_key: Option<String>,
}

/// Declares a pipeline.
#[utoipa::path(put, path = "/api/v1/projects/{project}/pipelines/{name}", tag = "pipelines",
    params(("project" = String, Path), ("name" = String, Path)), request_body = PipelineSpec,
    responses((status = 200, body = AppliedResource), (status = "default", body = Problem)))]
#[tracing::instrument(name = "orchestrator.put_pipeline", skip_all)]
async fn put_pipeline(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<PipelineSpec>,
) -> Result<Json<AppliedResource>, Problem> {
    Ok(Json(orchestrator.put_pipeline(&caller, &project, &name, &spec).await?))
}

/// A pipeline as it was declared.
#[utoipa::path(get, path = "/api/v1/projects/{project}/pipelines/{name}", tag = "pipelines",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Resource), (status = "default", body = Problem)))]
async fn get_pipeline(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<Resource>, Problem> {
    Ok(Json(
        orchestrator
            .get_resource(&caller, &project, ResourceKind::Pipeline, &name)
            .await?,
    ))
}

/// Removes a pipeline; its runs stay.
#[utoipa::path(delete, path = "/api/v1/projects/{project}/pipelines/{name}", tag = "pipelines",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = "default", body = Problem)))]
async fn delete_pipeline(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    orchestrator
        .delete_resource(&caller, &project, ResourceKind::Pipeline, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The pipelines by name.
#[utoipa::path(get, path = "/api/v1/projects/{project}/pipelines", tag = "pipelines",
    params(("project" = String, Path), ListQuery),
    responses((status = 200, body = ResourcePage), (status = "default", body = Problem)))]
async fn list_pipelines(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ResourcePage>, Problem> {
    let cursor = query.cursor.as_deref();
    Ok(Json(
        orchestrator
            .list_resources(&caller, &project, ResourceKind::Pipeline, query.limit, cursor)
            .await?,
    ))
}

/// Starts a pipeline.
#[utoipa::path(post, path = "/api/v1/projects/{project}/pipelines/{name}/runs", tag = "pipelines",
    operation_id = "create_pipeline_run",
    params(("project" = String, Path), ("name" = String, Path)), request_body = CreateRun,
    responses((status = 201, body = PipelineRun), (status = 200, description = "the idempotency key is known", body = PipelineRun),
        (status = "default", body = Problem)))]
#[tracing::instrument(name = "orchestrator.create_run", skip_all)]
async fn create_run(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    request: Option<Body<CreateRun>>,
) -> Result<(StatusCode, Json<PipelineRun>), Problem> {
    let Body(request) = request.unwrap_or(Body(CreateRun::default()));
    let started = orchestrator.start_run(&caller, &project, &name, request.parameters, request.idempotency_key);
    let (created, run) = started.await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(run)))
}

/// Runs, the newest first.
#[utoipa::path(get, path = "/api/v1/projects/{project}/pipeline-runs", tag = "pipelines",
    operation_id = "list_pipeline_runs",
    params(("project" = String, Path), RunListQuery),
    responses((status = 200, body = PipelineRunPage), (status = "default", body = Problem)))]
async fn list_runs(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<RunListQuery>,
) -> Result<Json<PipelineRunPage>, Problem> {
    let query = RunQuery {
        pipeline: query.pipeline,
        trigger: query.trigger,
        trigger_key: query.trigger_key,
        status: query.status,
        limit: query.limit,
        cursor: query.cursor,
    };
    Ok(Json(orchestrator.list_runs(&caller, &project, &query).await?))
}

/// A run with its steps and their outputs.
#[utoipa::path(get, path = "/api/v1/projects/{project}/pipeline-runs/{id}", tag = "pipelines",
    operation_id = "get_pipeline_run",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = PipelineRun), (status = "default", body = Problem)))]
async fn get_run(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<PipelineRun>, Problem> {
    Ok(Json(orchestrator.get_run(&caller, &project, &id).await?))
}

/// Calls a run off.
#[utoipa::path(post, path = "/api/v1/projects/{project}/pipeline-runs/{id}/cancel", tag = "pipelines",
    operation_id = "cancel_pipeline_run",
    params(("project" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = PipelineRun), (status = "default", body = Problem)))]
#[tracing::instrument(name = "orchestrator.cancel_run", skip_all)]
async fn cancel_run(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<PipelineRun>, Problem> {
    Ok(Json(orchestrator.cancel_run(&caller, &project, &id).await?))
}

/// Declares a trigger.
#[utoipa::path(put, path = "/api/v1/projects/{project}/triggers/{name}", tag = "triggers",
    params(("project" = String, Path), ("name" = String, Path)), request_body = TriggerSpec,
    responses((status = 200, body = AppliedResource), (status = "default", body = Problem)))]
#[tracing::instrument(name = "orchestrator.put_trigger", skip_all)]
async fn put_trigger(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<TriggerSpec>,
) -> Result<Json<AppliedResource>, Problem> {
    Ok(Json(orchestrator.put_trigger(&caller, &project, &name, &spec).await?))
}

/// A trigger as it was declared.
#[utoipa::path(get, path = "/api/v1/projects/{project}/triggers/{name}", tag = "triggers",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Resource), (status = "default", body = Problem)))]
async fn get_trigger(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<Resource>, Problem> {
    Ok(Json(
        orchestrator
            .get_resource(&caller, &project, ResourceKind::Trigger, &name)
            .await?,
    ))
}

/// Removes a trigger; the runs that it started go on.
#[utoipa::path(delete, path = "/api/v1/projects/{project}/triggers/{name}", tag = "triggers",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = "default", body = Problem)))]
async fn delete_trigger(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    orchestrator
        .delete_resource(&caller, &project, ResourceKind::Trigger, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The triggers by name.
#[utoipa::path(get, path = "/api/v1/projects/{project}/triggers", tag = "triggers",
    params(("project" = String, Path), ListQuery),
    responses((status = 200, body = ResourcePage), (status = "default", body = Problem)))]
async fn list_triggers(
    State(orchestrator): State<Orchestrator>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ResourcePage>, Problem> {
    let cursor = query.cursor.as_deref();
    Ok(Json(
        orchestrator
            .list_resources(&caller, &project, ResourceKind::Trigger, query.limit, cursor)
            .await?,
    ))
}
