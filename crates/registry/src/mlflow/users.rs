//! Users, as MLflow's client of accounts asks for them.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::{ADMIN, Action, Caller, Mode, Principal, PrincipalKind, Resource, Subject, Via};
use serde::Serialize;

use super::{
    answers::Empty,
    error::Refusal,
    identities::{EVERYWHERE, RoleAnswer, Roles, UserAnswer, check_known, is_admin, no_user, read_username},
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    error::Error,
    model::{
        access::{AccessKind, RoleBindingSpec},
        identity::IdentityKind,
        mlflow_access::binding_name,
        page::{MAX_PAGE, PageRequest},
    },
    service::Registry,
};

/// MLflow lists users without pages; more than this of a kind are cut off.
const MAX_USERS: usize = 10_000;

#[derive(Serialize)]
struct OneUser {
    user: UserAnswer,
}

#[derive(Serialize)]
struct CurrentUser {
    user: UserAnswer,
    is_basic_auth: bool,
}

#[derive(Serialize)]
struct ListedUser {
    #[serde(flatten)]
    user: UserAnswer,
    roles: Vec<RoleAnswer>,
}

#[derive(Serialize)]
struct Users {
    users: Vec<ListedUser>,
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Refuses a service account where a password is spoken of.
fn only_users(kind: IdentityKind) -> Result<(), Refusal> {
    match kind {
        IdentityKind::User => Ok(()),
        IdentityKind::ServiceAccount => Err(Refusal::invalid(
            "A service account has no password: make it with `modelyard apply`, and a token for it with `modelyard token create`",
        )),
    }
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<OneUser> {
    let caller = &tenant.caller;
    caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
    let username = fields.required_text("username")?;
    let password = fields.required_text("password")?;
    let (kind, name) = read_username(&username);
    only_users(kind)?;
    let principal = kind.principal(name);
    if check_known(caller, &principal).is_ok() || !registry.create_user(caller, name, &password).await? {
        return Err(Error::Exists(format!("User (username={name}) already exists.")).into());
    }
    let user = UserAnswer::new(caller, &principal);
    Ok(Json(OneUser { user }))
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<OneUser> {
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    match registry.get_identity(&tenant.caller, kind, name).await {
        Ok(_) => {}
        Err(Error::NotFound { .. }) => return Err(no_user(&principal)),
        Err(other) => return Err(other.into()),
    }
    let user = UserAnswer::new(&tenant.caller, &principal);
    Ok(Json(OneUser { user }))
}

async fn current(State(registry): State<Arc<Registry>>, tenant: Tenant) -> Answer<CurrentUser> {
    let principal = tenant.caller.principal();
    let mut user = UserAnswer::new(&tenant.caller, principal);
    // Where nobody signs in, everybody may do everything.
    user.is_admin |= registry.access().mode() == Mode::Open;
    Ok(Json(CurrentUser {
        user,
        is_basic_auth: tenant.caller.via() == Via::Password,
    }))
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant) -> Answer<Users> {
    let caller = &tenant.caller;
    caller.authorize(Action::IdentityRead, Resource::INSTALLATION)?;
    let roles = Roles::open(&registry, caller).await?;
    let mut users = Vec::new();
    for kind in [IdentityKind::User, IdentityKind::ServiceAccount] {
        for principal in all_of(&registry, caller, kind).await? {
            // Who may see the users need not see what they hold.
            let held = if caller.may(Action::AccessRead, Resource::INSTALLATION) || principal == *caller.principal() {
                roles.held_by(&principal)?
            } else {
                Vec::new()
            };
            users.push(ListedUser {
                user: UserAnswer::new(caller, &principal),
                roles: held,
            });
        }
    }
    Ok(Json(Users { users }))
}

async fn all_of(registry: &Registry, caller: &Caller, kind: IdentityKind) -> Result<Vec<Principal>, Refusal> {
    let mut all = Vec::new();
    let mut page = PageRequest::up_to(MAX_PAGE, None)?;
    while all.len() < MAX_USERS {
        let found = registry.list_identities(caller, kind, &page).await?;
        all.extend(found.items.into_iter().map(|identity| kind.principal(&identity.name)));
        let Some(next) = found.next_cursor else { break };
        page = PageRequest::up_to(MAX_PAGE, Some(&next))?;
    }
    Ok(all)
}

async fn update_password(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Empty> {
    let caller = &tenant.caller;
    let username = fields.required_text("username")?;
    let password = fields.required_text("password")?;
    let present = fields.text("current_password")?.filter(|present| !present.is_empty());
    let (kind, name) = read_username(&username);
    only_users(kind)?;
    if *caller.principal() == kind.principal(name) && caller.via() != Via::Local {
        let own = registry.get_identity(caller, kind, name).await?;
        if own.has_password && present.is_none() {
            return Err(Refusal::invalid(
                "Current password is required when changing your own password.",
            ));
        }
        if present.as_ref() == Some(&password) {
            return Err(Refusal::invalid("New password must differ from the current password."));
        }
    }
    match registry.set_password(caller, name, &password, present.as_deref()).await {
        Ok(()) => Ok(Json(Empty {})),
        Err(Error::Access(modelyard_auth::Error::Password)) => {
            Err(Refusal::invalid("Current password does not match."))
        }
        Err(other) => Err(other.into()),
    }
}

async fn update_admin(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Empty> {
    let caller = &tenant.caller;
    caller.authorize(Action::AccessWrite, Resource::INSTALLATION)?;
    let username = fields.required_text("username")?;
    let wanted = fields.boolean("is_admin")?.ok_or_else(|| missing("is_admin"))?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    check_known(caller, &principal)?;
    if wanted == is_admin(caller, &principal) {
        return Ok(Json(Empty {}));
    }
    if wanted {
        let binding = binding_name(&principal.to_string(), ADMIN, EVERYWHERE);
        let spec = RoleBindingSpec {
            subject: Subject::Principal(principal),
            role: ADMIN.to_owned(),
            place: EVERYWHERE.to_owned(),
        };
        registry.put_access(caller, "", &binding, spec).await?;
        return Ok(Json(Empty {}));
    }
    let roles = Roles::open(&registry, caller).await?;
    let own = roles.holders(ADMIN, EVERYWHERE).into_iter();
    let own: Vec<&str> = own
        .filter(|(holder, _)| **holder == principal)
        .map(|(_, binding)| binding)
        .collect();
    if own.is_empty() {
        return Err(Refusal::invalid_state(format!(
            "User '{username}' is an admin by a group: take the user out of it, or remove the role binding of the group"
        )));
    }
    for binding in own {
        registry
            .remove_access(caller, AccessKind::RoleBinding, "", binding)
            .await?;
    }
    Ok(Json(Empty {}))
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer<Empty> {
    let caller = &tenant.caller;
    caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
    let username = fields.required_text("username")?;
    let (kind, name) = read_username(&username);
    let principal = kind.principal(name);
    if *caller.principal() == principal && principal.kind() != PrincipalKind::Anonymous {
        return Err(Refusal::invalid(
            "Users cannot delete their own account. Ask another admin to delete this user instead.",
        ));
    }
    match registry.remove_identity(caller, kind, name).await {
        Ok(()) => Ok(Json(Empty {})),
        Err(Error::NotFound { .. }) => Err(no_user(&principal)),
        Err(other) => Err(other.into()),
    }
}

routes! {
    post "/users/create" => create,
    get "/users/get" => get,
    get "/users/current" => current,
    get "/users/list" => list,
    patch "/users/update-password" => update_password,
    patch "/users/update-admin" => update_admin,
    delete "/users/delete" => delete,
}
