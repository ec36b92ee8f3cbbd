//! Roles, role bindings, policies, marks, and why somebody may do something.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::{BUILT_IN_POLICIES, Caller, SCHEMA, token::TOKEN_PATTERN};
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Declared, page::PageQuery};
use crate::{
    model::{
        access::{
            AccessKind, AccessResource, ActionInfo, PolicySpec, RoleBindingSpec, RoleSpec, SensitiveMark, actions,
        },
        page::Page,
    },
    service::{AccessAnswer, AccessQuestion, Me, Registry},
};

/// The home of what belongs to no project.
const INSTALLATION: &str = "";

/// What policies are written over, and what is built in.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccessSchema {
    /// The schema, in Cedar's language.
    schema: &'static str,
    /// The policies of the built-in roles, in Cedar's language.
    policies: &'static str,
    /// The regular expression by which secret scanners find tokens.
    token_pattern: &'static str,
}

/// Who the caller is, and what it has.
#[utoipa::path(get, path = "/auth/me", tag = "auth",
    responses((status = OK, body = Me), (status = "default", body = Problem)))]
pub async fn me(State(registry): State<Arc<Registry>>, caller: Caller) -> Json<Me> {
    Json(registry.me(&caller))
}

/// The schema of the policies, and the built-in policies.
#[utoipa::path(get, path = "/auth/schema", tag = "auth",
    responses((status = OK, body = AccessSchema), (status = "default", body = Problem)))]
pub async fn get_access_schema(_: Caller) -> Json<AccessSchema> {
    Json(AccessSchema {
        schema: SCHEMA,
        policies: BUILT_IN_POLICIES,
        token_pattern: TOKEN_PATTERN,
    })
}

/// Whether somebody may do something, and why.
#[utoipa::path(post, path = "/auth/explain", tag = "auth", request_body = AccessQuestion,
    responses((status = OK, body = AccessAnswer), (status = "default", body = Problem)))]
pub async fn explain(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Body(question): Body<AccessQuestion>,
) -> Result<Json<AccessAnswer>, Problem> {
    Ok(Json(registry.explain(&caller, &question)?))
}

/// The actions of which roles and policies speak.
#[utoipa::path(get, path = "/actions", tag = "access",
    responses((status = OK, body = Page<ActionInfo>), (status = "default", body = Problem)))]
pub async fn list_actions(_: Caller) -> Json<Page<ActionInfo>> {
    Json(Page {
        items: actions().collect(),
        next_cursor: None,
    })
}

/// The roles: the built-in ones first.
#[utoipa::path(get, path = "/roles", tag = "access", params(PageQuery),
    responses((status = OK, body = Page<AccessResource<RoleSpec>>), (status = "default", body = Problem)))]
pub async fn list_roles(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AccessResource<RoleSpec>>>, Problem> {
    Ok(Json(registry.list_roles(&caller, &page.request()?).await?))
}

/// A role.
#[utoipa::path(get, path = "/roles/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = OK, body = AccessResource<RoleSpec>), (status = "default", body = Problem)))]
pub async fn get_role(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AccessResource<RoleSpec>>, Problem> {
    Ok(Json(registry.get_role(&caller, &name).await?))
}

/// Makes or changes a role.
#[utoipa::path(put, path = "/roles/{name}", tag = "access", params(("name" = String, Path)), request_body = RoleSpec,
    responses((status = OK, body = Declared<AccessResource<RoleSpec>>), (status = "default", body = Problem)))]
pub async fn put_role(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(spec): Body<RoleSpec>,
) -> Result<Json<Declared<AccessResource<RoleSpec>>>, Problem> {
    let (outcome, resource) = registry.put_access(&caller, INSTALLATION, &name, spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a role that nobody holds.
#[utoipa::path(delete, path = "/roles/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_role(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    registry
        .remove_access(&caller, AccessKind::Role, INSTALLATION, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The policies by name.
#[utoipa::path(get, path = "/policies", tag = "access", params(PageQuery),
    responses((status = OK, body = Page<AccessResource<PolicySpec>>), (status = "default", body = Problem)))]
pub async fn list_policies(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AccessResource<PolicySpec>>>, Problem> {
    Ok(Json(
        registry.list_access(&caller, INSTALLATION, &page.request()?).await?,
    ))
}

/// A policy.
#[utoipa::path(get, path = "/policies/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = OK, body = AccessResource<PolicySpec>), (status = "default", body = Problem)))]
pub async fn get_policy(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AccessResource<PolicySpec>>, Problem> {
    Ok(Json(registry.get_access(&caller, INSTALLATION, &name).await?))
}

/// Makes or changes a policy. It counts at once.
#[utoipa::path(put, path = "/policies/{name}", tag = "access", params(("name" = String, Path)),
    request_body = PolicySpec,
    responses((status = OK, body = Declared<AccessResource<PolicySpec>>), (status = "default", body = Problem)))]
pub async fn put_policy(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(spec): Body<PolicySpec>,
) -> Result<Json<Declared<AccessResource<PolicySpec>>>, Problem> {
    let (outcome, resource) = registry.put_access(&caller, INSTALLATION, &name, spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a policy.
#[utoipa::path(delete, path = "/policies/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_policy(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    registry
        .remove_access(&caller, AccessKind::Policy, INSTALLATION, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The role bindings of the installation by name.
#[utoipa::path(get, path = "/role-bindings", tag = "access", params(PageQuery),
    responses((status = OK, body = Page<AccessResource<RoleBindingSpec>>), (status = "default", body = Problem)))]
pub async fn list_role_bindings(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AccessResource<RoleBindingSpec>>>, Problem> {
    Ok(Json(
        registry.list_access(&caller, INSTALLATION, &page.request()?).await?,
    ))
}

/// A role binding of the installation.
#[utoipa::path(get, path = "/role-bindings/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = OK, body = AccessResource<RoleBindingSpec>), (status = "default", body = Problem)))]
pub async fn get_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AccessResource<RoleBindingSpec>>, Problem> {
    Ok(Json(registry.get_access(&caller, INSTALLATION, &name).await?))
}

/// Makes or changes a role binding, which can give a role anywhere.
#[utoipa::path(put, path = "/role-bindings/{name}", tag = "access", params(("name" = String, Path)),
    request_body = RoleBindingSpec,
    responses((status = OK, body = Declared<AccessResource<RoleBindingSpec>>), (status = "default", body = Problem)))]
pub async fn put_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(spec): Body<RoleBindingSpec>,
) -> Result<Json<Declared<AccessResource<RoleBindingSpec>>>, Problem> {
    let (outcome, resource) = registry.put_access(&caller, INSTALLATION, &name, spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a role binding of the installation.
#[utoipa::path(delete, path = "/role-bindings/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    registry
        .remove_access(&caller, AccessKind::RoleBinding, INSTALLATION, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The role bindings of a project by name.
#[utoipa::path(get, path = "/projects/{project}/role-bindings", tag = "access",
    params(("project" = String, Path), PageQuery),
    responses((status = OK, body = Page<AccessResource<RoleBindingSpec>>), (status = "default", body = Problem)))]
pub async fn list_project_role_bindings(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AccessResource<RoleBindingSpec>>>, Problem> {
    Ok(Json(registry.list_access(&caller, &project, &page.request()?).await?))
}

/// A role binding of a project.
#[utoipa::path(get, path = "/projects/{project}/role-bindings/{name}", tag = "access",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = OK, body = AccessResource<RoleBindingSpec>), (status = "default", body = Problem)))]
pub async fn get_project_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<Json<AccessResource<RoleBindingSpec>>, Problem> {
    Ok(Json(registry.get_access(&caller, &project, &name).await?))
}

/// Makes or changes a role binding within a project.
#[utoipa::path(put, path = "/projects/{project}/role-bindings/{name}", tag = "access",
    params(("project" = String, Path), ("name" = String, Path)), request_body = RoleBindingSpec,
    responses((status = OK, body = Declared<AccessResource<RoleBindingSpec>>), (status = "default", body = Problem)))]
pub async fn put_project_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
    Body(spec): Body<RoleBindingSpec>,
) -> Result<Json<Declared<AccessResource<RoleBindingSpec>>>, Problem> {
    let (outcome, resource) = registry.put_access(&caller, &project, &name, spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a role binding of a project.
#[utoipa::path(delete, path = "/projects/{project}/role-bindings/{name}", tag = "access",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_project_role_binding(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    registry
        .remove_access(&caller, AccessKind::RoleBinding, &project, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is marked as sensitive in a project.
#[utoipa::path(get, path = "/projects/{project}/sensitive", tag = "access", params(("project" = String, Path)),
    responses((status = OK, body = Page<SensitiveMark>), (status = "default", body = Problem)))]
pub async fn list_sensitive(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
) -> Result<Json<Page<SensitiveMark>>, Problem> {
    Ok(Json(registry.list_sensitive(&caller, &project).await?))
}

/// Marks something as sensitive: each reading of it is an audit event from now on.
#[utoipa::path(put, path = "/projects/{project}/sensitive/{kind}/{name}", tag = "access",
    params(("project" = String, Path), ("kind" = String, Path), ("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn mark_sensitive(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, kind, name)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    registry.mark_sensitive(&caller, &project, &kind, &name, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a mark away.
#[utoipa::path(delete, path = "/projects/{project}/sensitive/{kind}/{name}", tag = "access",
    params(("project" = String, Path), ("kind" = String, Path), ("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn unmark_sensitive(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, kind, name)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    registry.mark_sensitive(&caller, &project, &kind, &name, false).await?;
    Ok(StatusCode::NO_CONTENT)
}
