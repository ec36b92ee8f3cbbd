//! Experiments and runs.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::page::PageQuery;
use crate::{
    model::{
        page::{Page, PageRequest},
        run::{Experiment, MetricPoint, Run},
    },
    service::Registry,
};

/// Which runs are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunQuery {
    /// Only those of the experiment with this name.
    experiment: Option<String>,
    /// The most items, 1 to 1000; 50 when it is left out.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The experiments by id.
#[utoipa::path(get, path = "/experiments", tag = "runs", params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<Experiment>), (status = "default", body = Problem)))]
pub async fn list_experiments(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Experiment>>, Problem> {
    Ok(Json(
        registry.list_experiments(&caller, &project, &page.request()?).await?,
    ))
}

/// The runs, newest first.
#[utoipa::path(get, path = "/runs", tag = "runs", params(("project" = String, Path), RunQuery),
    responses((status = OK, body = Page<Run>), (status = "default", body = Problem)))]
pub async fn list_runs(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<Json<Page<Run>>, Problem> {
    let page = PageRequest::new(query.limit, query.cursor.as_deref())?;
    let experiment = query.experiment.as_deref();
    Ok(Json(registry.list_runs(&caller, &project, experiment, &page).await?))
}

/// A run with its params, tags, inputs and the latest value of each metric.
#[utoipa::path(get, path = "/runs/{run_id}", tag = "runs",
    params(("project" = String, Path), ("run_id" = String, Path)),
    responses((status = OK, body = Run), (status = "default", body = Problem)))]
pub async fn get_run(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, run_id)): Path<(String, String)>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(registry.get_run(&caller, &project, &run_id).await?))
}

/// The history of a metric by step, time and value.
#[utoipa::path(get, path = "/runs/{run_id}/metrics/{key}", tag = "runs",
    params(("project" = String, Path), ("run_id" = String, Path), ("key" = String, Path), PageQuery),
    responses((status = OK, body = Page<MetricPoint>), (status = "default", body = Problem)))]
pub async fn metric_history(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, run_id, key)): Path<(String, String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<MetricPoint>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry.metric_history(&caller, &project, &run_id, &key, &page).await?,
    ))
}
