//! Datasets.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};

use super::page::PageQuery;
use crate::{
    error::{Error, Result},
    model::{
        dataset::{Dataset, DatasetVersion, DatasetVersionSummary},
        page::Page,
    },
    service::{DatasetVersionRequest, Registry},
};

/// Reads the version of a path: a number, or `latest`.
fn version(text: &str) -> Result<Option<u32>> {
    if text == "latest" {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| *number > 0);
    number
        .map(Some)
        .ok_or_else(|| Error::request(format!("`{text}` is not a version: write a number from 1, or latest")))
}

/// The datasets by name.
#[utoipa::path(get, path = "/datasets", tag = "datasets", params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<Dataset>), (status = "default", body = Problem)))]
pub async fn list_datasets(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Dataset>>, Problem> {
    Ok(Json(registry.list_datasets(&caller, &project, &page.request()?).await?))
}

/// The versions of a dataset, newest first.
#[utoipa::path(get, path = "/datasets/{dataset}/versions", tag = "datasets",
    params(("project" = String, Path), ("dataset" = String, Path), PageQuery),
    responses((status = OK, body = Page<DatasetVersionSummary>), (status = "default", body = Problem)))]
pub async fn list_dataset_versions(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, dataset)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<DatasetVersionSummary>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry
            .list_dataset_versions(&caller, &project, &dataset, &page)
            .await?,
    ))
}

/// Makes a version of uploaded files. The files of the newest version again are that version, with status 200.
#[utoipa::path(post, path = "/datasets/{dataset}/versions", tag = "datasets",
    params(("project" = String, Path), ("dataset" = String, Path)), request_body = DatasetVersionRequest,
    responses((status = CREATED, body = DatasetVersion), (status = OK, body = DatasetVersion),
              (status = "default", body = Problem)))]
pub async fn create_dataset_version(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, dataset)): Path<(String, String)>,
    Body(request): Body<DatasetVersionRequest>,
) -> Result<(StatusCode, Json<DatasetVersion>), Problem> {
    let (version, created) = registry
        .create_dataset_version(&caller, &project, &dataset, &request)
        .await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(version)))
}

/// A version: a number, or `latest`.
#[utoipa::path(get, path = "/datasets/{dataset}/versions/{version}", tag = "datasets",
    params(("project" = String, Path), ("dataset" = String, Path), ("version" = String, Path)),
    responses((status = OK, body = DatasetVersion), (status = "default", body = Problem)))]
pub async fn get_dataset_version(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, dataset, number)): Path<(String, String, String)>,
) -> Result<Json<DatasetVersion>, Problem> {
    let number = version(&number)?;
    Ok(Json(
        registry
            .get_dataset_version(&caller, &project, &dataset, number)
            .await?,
    ))
}

/// The profile of a version: counts, missing values, quantiles and the like of every column.
#[utoipa::path(get, path = "/datasets/{dataset}/versions/{version}/profile", tag = "datasets",
    params(("project" = String, Path), ("dataset" = String, Path), ("version" = String, Path)),
    responses((status = OK, body = serde_json::Value), (status = "default", body = Problem)))]
pub async fn get_dataset_profile(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, dataset, number)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let number = version(&number)?;
    let profile = registry
        .get_dataset_profile(&caller, &project, &dataset, number)
        .await?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], profile).into_response())
}
