//! Projects and their secrets.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query, SecretBody},
};

use super::{Declared, page::PageQuery};
use crate::{
    model::{
        page::Page,
        project::{Project, ProjectSpec},
        secret::{SecretEntry, SecretValue},
    },
    service::Registry,
};

/// The projects in which the caller has a role, by name.
#[utoipa::path(get, path = "/projects", tag = "projects", params(PageQuery),
    responses((status = OK, body = Page<Project>), (status = "default", body = Problem)))]
pub async fn list_projects(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Project>>, Problem> {
    Ok(Json(registry.list_projects(&caller, &page.request()?).await?))
}

/// A project.
#[utoipa::path(get, path = "/projects/{project}", tag = "projects", params(("project" = String, Path)),
    responses((status = OK, body = Project), (status = "default", body = Problem)))]
pub async fn get_project(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
) -> Result<Json<Project>, Problem> {
    Ok(Json(registry.get_project(&caller, &project).await?))
}

/// Makes a project, or changes it.
#[utoipa::path(put, path = "/projects/{project}", tag = "projects", params(("project" = String, Path)),
    request_body = ProjectSpec,
    responses((status = OK, body = Declared<Project>), (status = "default", body = Problem)))]
pub async fn put_project(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(spec): Body<ProjectSpec>,
) -> Result<Json<Declared<Project>>, Problem> {
    let (outcome, resource) = registry.put_project(&caller, &project, &spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a project without endpoints. Its name is not given again.
#[utoipa::path(delete, path = "/projects/{project}", tag = "projects", params(("project" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_project(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
) -> Result<StatusCode, Problem> {
    registry.remove_project(&caller, &project, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The secrets of a project by name, without their values.
#[utoipa::path(get, path = "/projects/{project}/secrets", tag = "secrets",
    params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<SecretEntry>), (status = "default", body = Problem)))]
pub async fn list_secrets(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<SecretEntry>>, Problem> {
    Ok(Json(registry.list_secrets(&caller, &project, &page.request()?).await?))
}

/// Sets a secret. Its value is given out to the services that use it alone.
#[utoipa::path(put, path = "/projects/{project}/secrets/{name}", tag = "secrets",
    params(("project" = String, Path), ("name" = String, Path)), request_body = SecretValue,
    responses((status = OK, body = Declared<SecretEntry>), (status = "default", body = Problem)))]
pub async fn put_secret(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    SecretBody(secret): SecretBody<SecretValue>,
) -> Result<Json<Declared<SecretEntry>>, Problem> {
    let (outcome, resource) = registry.put_secret(&caller, &project, &name, &secret.value).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a secret.
#[utoipa::path(delete, path = "/projects/{project}/secrets/{name}", tag = "secrets",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_secret(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    registry.remove_secret(&caller, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
