//! Roles and who holds them, as MLflow's client of accounts asks for them.
//!
//! A role here is one of the whole installation, made of actions; what MLflow calls a role of a workspace is such a role held
//! in that project. Giving and taking it is a role binding. What a role may do is not changed here: MLflow's permissions are
//! coarser than actions, and would say more, or less, than they do.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::{Action, Resource, Subject, is_built_in_role};
use serde::Serialize;

use super::{
    answers::Empty,
    error::Refusal,
    identities::{
        EVERYWHERE, RoleAnswer, RolePermissionAnswer, Roles, check_known, home, read_username, ruled_by, user_number,
    },
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    error::Error,
    model::{
        access::{AccessKind, RoleBindingSpec, RoleSpec},
        mlflow_access::{binding_name, number_of, role_number},
    },
    service::Registry,
};

/// What to do instead of changing what a role may do.
const MADE_OF_ACTIONS: &str = "A role is made of actions here, which are finer than MLflow's permissions: declare it with `modelyard apply` (`kind: Role`) or `PUT /api/v1/roles/NAME`, and assign it with MLflow's client";

#[derive(Serialize)]
struct OneRole {
    role: RoleAnswer,
}

#[derive(Serialize)]
struct ManyRoles {
    roles: Vec<RoleAnswer>,
}

#[derive(Serialize)]
struct Permissions {
    role_permissions: Vec<RolePermissionAnswer>,
}

/// That somebody holds a role.
#[derive(Serialize)]
struct Assignment {
    id: i64,
    user_id: i64,
    role_id: i64,
}

#[derive(Serialize)]
struct OneAssignment {
    assignment: Assignment,
}

#[derive(Serialize)]
struct Assignments {
    assignments: Vec<Assignment>,
}

type Answer<T> = Result<Json<T>, Refusal>;

fn number(fields: &Fields, name: &str) -> Result<i64, Refusal> {
    fields.integer(name)?.ok_or_else(|| missing(name))
}

fn assignment(principal: &modelyard_auth::Principal, role: &str, place: &str) -> Assignment {
    Assignment {
        id: number_of(&["assignment", &principal.to_string(), role, place]),
        user_id: user_number(principal),
        role_id: role_number(role, place),
    }
}

/// Refuses what MLflow has and a role here has not, whoever may change roles.
fn refuse_change(tenant: &Tenant) -> Refusal {
    match tenant.caller.authorize(Action::AccessWrite, Resource::INSTALLATION) {
        Ok(()) => Refusal::not_implemented(MADE_OF_ACTIONS),
        Err(error) => error.into(),
    }
}

async fn create(tenant: Tenant) -> Answer<OneRole> {
    Err(refuse_change(&tenant))
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<OneRole> {
    let roles = Roles::open(&registry, &tenant.caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessRead)?;
    let role = roles.answer(role, place);
    Ok(Json(OneRole { role }))
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<ManyRoles> {
    let caller = &tenant.caller;
    let mut places = fields.texts("workspace")?;
    places.sort_unstable();
    places.dedup();
    if places.is_empty() {
        caller.authorize(Action::AccessRead, Resource::INSTALLATION)?;
    }
    for place in &places {
        if place.trim().is_empty() {
            return Err(Refusal::invalid(
                "Parameter 'workspace' must be a non-empty string when provided.",
            ));
        }
        caller.authorize(Action::AccessRead, ruled_by(place))?;
    }
    let known = Roles::open(&registry, caller).await?;
    if places.is_empty() {
        let roles = known.everywhere();
        return Ok(Json(ManyRoles { roles }));
    }
    let at = |place: &String| -> Vec<RoleAnswer> {
        let names = known.names_at(place).into_iter();
        names.map(|role| known.answer(role, place)).collect()
    };
    let roles = places.iter().flat_map(at).collect();
    Ok(Json(ManyRoles { roles }))
}

async fn update(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<OneRole> {
    let caller = &tenant.caller;
    caller.authorize(Action::AccessWrite, Resource::INSTALLATION)?;
    let roles = Roles::open(&registry, caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessWrite)?;
    let name = fields.text("name")?;
    let description = fields.text("description")?;
    if name.is_none() && description.is_none() {
        return Err(Refusal::invalid(
            "At least one of 'name' or 'description' must be provided to update a role.",
        ));
    }
    if name.is_some_and(|name| name != role) {
        return Err(Refusal::not_implemented(
            "A role keeps its name: declare another with `modelyard apply` (`kind: Role`), and give it to those who held this one",
        ));
    }
    if let Some(description) = description {
        let mut spec: RoleSpec = registry.get_role(caller, role).await?.spec;
        spec.description = description;
        registry.put_access(caller, "", role, spec).await?;
    }
    let role = Roles::open(&registry, caller).await?.answer(role, place);
    Ok(Json(OneRole { role }))
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Empty> {
    let caller = &tenant.caller;
    caller.authorize(Action::AccessWrite, Resource::INSTALLATION)?;
    let roles = Roles::open(&registry, caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessWrite)?;
    if place != EVERYWHERE && !is_built_in_role(role) {
        return Err(Refusal::invalid_state(format!(
            "Role '{role}' is of all workspaces: delete the one that `list_roles(\"{EVERYWHERE}\")` lists, after nobody holds it any more"
        )));
    }
    registry.remove_access(caller, AccessKind::Role, "", role).await?;
    Ok(Json(Empty {}))
}

async fn list_permissions(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Answer<Permissions> {
    let roles = Roles::open(&registry, &tenant.caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessRead)?;
    let role_permissions = roles.answer(role, place).permissions;
    Ok(Json(Permissions { role_permissions }))
}

async fn change_permission(tenant: Tenant) -> Answer<Empty> {
    Err(refuse_change(&tenant))
}

async fn assign(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<OneAssignment> {
    let caller = &tenant.caller;
    let roles = Roles::open(&registry, caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessWrite)?;
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    check_known(caller, &principal)?;
    let assignment = assignment(&principal, role, place);
    if roles
        .holders(role, place)
        .iter()
        .any(|(holder, _)| **holder == principal)
    {
        return Err(Error::Exists(format!(
            "User role assignment (user_id={}, role_id={}) already exists",
            assignment.user_id, assignment.role_id
        ))
        .into());
    }
    let binding = binding_name(&principal.to_string(), role, place);
    let spec = RoleBindingSpec {
        subject: Subject::Principal(principal),
        role: role.to_owned(),
        place: place.to_owned(),
    };
    registry.put_access(caller, home(place), &binding, spec).await?;
    Ok(Json(OneAssignment { assignment }))
}

/// Whether the binding of this name, in a project or (empty) in the installation, gives the role to this subject.
async fn gives(
    registry: &Registry,
    tenant: &Tenant,
    project: &str,
    binding: &str,
    wanted: &RoleBindingSpec,
) -> Result<bool, Refusal> {
    match registry
        .get_access::<RoleBindingSpec>(&tenant.caller, project, binding)
        .await
    {
        Ok(found) => Ok(found.spec == *wanted),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

async fn unassign(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Empty> {
    let caller = &tenant.caller;
    let roles = Roles::open(&registry, caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessWrite)?;
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    check_known(caller, &principal)?;
    let gone = assignment(&principal, role, place);
    let own = roles.holders(role, place).into_iter();
    let own: Vec<&str> = own
        .filter(|(holder, _)| **holder == principal)
        .map(|(_, binding)| binding)
        .collect();
    if own.is_empty() {
        return Err(Error::NotThere(format!(
            "User role assignment (user_id={}, role_id={}) not found; a role that is held by a group is taken away with the role binding of the group",
            gone.user_id, gone.role_id
        ))
        .into());
    }
    let wanted = RoleBindingSpec {
        subject: Subject::Principal(principal),
        role: role.to_owned(),
        place: place.to_owned(),
    };
    for binding in own {
        // A role in a project can be given by the project and by the installation.
        let project = home(place);
        let is_here = gives(&registry, &tenant, project, binding, &wanted).await?;
        let project = if is_here { project } else { "" };
        registry
            .remove_access(caller, AccessKind::RoleBinding, project, binding)
            .await?;
    }
    Ok(Json(Empty {}))
}

async fn list_of_user(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<ManyRoles> {
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    let roles = Roles::open(&registry, &tenant.caller).await?.held_by(&principal)?;
    if principal != *tenant.caller.principal() {
        check_known(&tenant.caller, &principal)?;
    }
    Ok(Json(ManyRoles { roles }))
}

async fn list_users(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Assignments> {
    let roles = Roles::open(&registry, &tenant.caller).await?;
    let (role, place) = roles.find(number(&fields, "role_id")?, Action::AccessRead)?;
    let holders = roles.holders(role, place).into_iter();
    let assignments = holders
        .map(|(principal, _)| assignment(principal, role, place))
        .collect();
    Ok(Json(Assignments { assignments }))
}

routes! {
    post "/roles/create" => create,
    get "/roles/get" => get,
    get "/roles/list" => list,
    patch "/roles/update" => update,
    delete "/roles/delete" => delete,
    post "/roles/permissions/add" => change_permission,
    delete "/roles/permissions/remove" => change_permission,
    get "/roles/permissions/list" => list_permissions,
    patch "/roles/permissions/update" => change_permission,
    post "/roles/assign" => assign,
    delete "/roles/unassign" => unassign,
    get "/roles/users/list" => list_users,
    get "/users/roles/list" => list_of_user,
}
