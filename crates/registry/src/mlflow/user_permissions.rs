//! What a user may do, as MLflow's client of accounts asks for it.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::{Action, Mode, Principal, Resource};
use serde::Serialize;

use super::{
    answers::Empty,
    error::Refusal,
    identities::{Roles, check_known, is_admin, read_username},
    read::{Fields, Tenant},
    routes,
};
use crate::{
    model::mlflow_access::{Level, ResourceType, WORKSPACE, all_types},
    service::{AccessQuestion, Registry},
};

/// What to do instead of giving somebody a permission on one thing.
const HELD_IN_PROJECTS: &str = "Roles are held in workspaces here, not on single experiments or models: assign a role of the workspace with `assign_role`, or write a policy (`kind: Policy`) that permits or forbids what you mean";

#[derive(Serialize)]
struct PermissionRow {
    role_id: i64,
    role_name: String,
    workspace: String,
    resource_type: &'static str,
    resource_pattern: &'static str,
    permission: &'static str,
}

#[derive(Serialize)]
struct Permissions {
    is_admin: bool,
    permissions: Vec<PermissionRow>,
}

#[derive(Serialize)]
struct Effective {
    allowed: bool,
    permission: &'static str,
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn rows(registry: &Registry, tenant: &Tenant, principal: &Principal) -> Result<Vec<PermissionRow>, Refusal> {
    let held = Roles::open(registry, &tenant.caller).await?.held_by(principal)?;
    let rows = held.into_iter().flat_map(|role| {
        let (role_id, role_name, workspace) = (role.id, role.name, role.workspace);
        role.permissions.into_iter().map(move |permission| PermissionRow {
            role_id,
            role_name: role_name.clone(),
            workspace: workspace.clone(),
            resource_type: permission.resource_type,
            resource_pattern: permission.resource_pattern,
            permission: permission.permission,
        })
    });
    Ok(rows.collect())
}

async fn list_own(State(registry): State<Arc<Registry>>, tenant: Tenant) -> Answer<Permissions> {
    let principal = tenant.caller.principal();
    Ok(Json(Permissions {
        is_admin: is_admin(&tenant.caller, principal) || registry.access().mode() == Mode::Open,
        permissions: rows(&registry, &tenant, principal).await?,
    }))
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Permissions> {
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    let permissions = rows(&registry, &tenant, &principal).await?;
    if principal != *tenant.caller.principal() {
        check_known(&tenant.caller, &principal)?;
    }
    Ok(Json(Permissions {
        is_admin: is_admin(&tenant.caller, &principal),
        permissions,
    }))
}

/// The type that a message names.
fn read_type(fields: &Fields) -> Result<ResourceType, Refusal> {
    let word = fields.required_text("resource_type")?;
    if let Some(known) = ResourceType::find(&word) {
        return Ok(known);
    }
    Err(Refusal::invalid(if word == WORKSPACE {
        "resource_type 'workspace' is not supported by the per-user permission convenience APIs. Assign a role of the workspace with `assign_role` instead.".to_owned()
    } else if all_types().contains(&word.as_str()) {
        format!("resource_type '{word}' is not supported by the per-user permission convenience APIs.")
    } else {
        let known: Vec<String> = all_types().into_iter().map(|known| format!("'{known}'")).collect();
        format!(
            "Invalid resource type '{}'. Valid resource types are: ({})",
            word.chars().take(100).collect::<String>(),
            known.join(", ")
        )
    }))
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Effective> {
    let caller = &tenant.caller;
    let project = tenant.project.as_str();
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    if principal != *caller.principal() {
        caller.authorize(Action::AccessRead, Resource::project(project))?;
        check_known(caller, &principal)?;
    }
    let asked = read_type(&fields)?;
    let id = fields.required_text("resource_id")?;
    if id != "*" && !asked.has_single {
        return Err(Refusal::invalid(format!(
            "Invalid resource_pattern '{}' for resource_type='{}'. This resource type supports only wildcard ('*') grants.",
            id.chars().take(100).collect::<String>(),
            asked.word
        )));
    }
    let mut given = Vec::new();
    for action in [asked.read, asked.write, Action::AccessWrite] {
        let resource = match action {
            Action::AccessWrite => format!("project:{project}"),
            _ => format!("{}:{project}/{id}", asked.kind.word()),
        };
        let question = AccessQuestion {
            principal: principal.clone(),
            action: action.as_str().to_owned(),
            resource,
        };
        if registry.explain(caller, &question)?.allowed {
            given.push(action);
        }
    }
    let level: Level = asked.level(|action| given.contains(&action));
    Ok(Json(Effective {
        allowed: level.is_use(),
        permission: level.as_str(),
    }))
}

async fn change(tenant: Tenant) -> Answer<Empty> {
    let place = Resource::project(&tenant.project);
    tenant.caller.authorize(Action::AccessWrite, place)?;
    Err(Refusal::not_implemented(HELD_IN_PROJECTS))
}

routes! {
    get "/users/current/permissions" => list_own,
    get "/users/permissions/list" => list,
    get "/users/permissions/get" => get,
    post "/users/permissions/grant" => change,
    post "/users/permissions/revoke" => change,
}
