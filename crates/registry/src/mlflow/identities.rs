//! Users of MLflow's accounts, which are users and service accounts, and what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use modelyard_auth::{
    ADMIN, Action, BUILT_IN_ROLES, Caller, Grant, Place, Principal, PrincipalKind, Resource, State, Subject,
    actions_of_built_in_role,
};
use serde::Serialize;

use super::error::Refusal;
use crate::{
    error::Error,
    model::{
        identity::IdentityKind,
        mlflow_access::{SERVICE_ACCOUNT_PREFIX, find_role, levels_of, number_of, role_number},
        page::{MAX_PAGE, PageRequest},
    },
    service::Registry,
};

/// What stands for the installation where MLflow has a workspace: a role that is held there is held in all of them.
pub(super) const EVERYWHERE: &str = "*";

/// What the roles that are always there may do; reading it from the policies takes a while.
static BUILT_IN: LazyLock<BTreeMap<&'static str, Vec<Action>>> = LazyLock::new(|| {
    let actions = |role| (role, actions_of_built_in_role(role).unwrap_or_default());
    BUILT_IN_ROLES.into_iter().map(actions).collect()
});

/// The kind and the name of a user as MLflow's clients write it.
pub(super) fn read_username(username: &str) -> (IdentityKind, &str) {
    match username.strip_prefix(SERVICE_ACCOUNT_PREFIX) {
        Some(name) => (IdentityKind::ServiceAccount, name),
        None => (IdentityKind::User, username),
    }
}

/// How MLflow's clients see the name of somebody.
pub(super) fn username(principal: &Principal) -> String {
    match principal.kind() {
        PrincipalKind::ServiceAccount => format!("{SERVICE_ACCOUNT_PREFIX}{}", principal.name()),
        _ => principal.name().to_owned(),
    }
}

/// The number of somebody.
pub(super) fn user_number(principal: &Principal) -> i64 {
    number_of(&["identity", &principal.to_string()])
}

/// A user.
#[derive(Serialize)]
pub(super) struct UserAnswer {
    pub(super) id: i64,
    pub(super) username: String,
    pub(super) is_admin: bool,
}

impl UserAnswer {
    pub(super) fn new(caller: &Caller, principal: &Principal) -> Self {
        Self {
            id: user_number(principal),
            username: username(principal),
            is_admin: is_admin(caller, principal),
        }
    }
}

/// Whether somebody may do everything everywhere.
pub(super) fn is_admin(caller: &Caller, principal: &Principal) -> bool {
    let everything = |grant: &Grant| grant.role == ADMIN && grant.place == Place::Installation;
    caller.snapshot().grants(principal).any(everything)
}

/// Refuses somebody who is not there.
pub(super) fn check_known(caller: &Caller, principal: &Principal) -> Result<(), Refusal> {
    if caller.snapshot().state().identities.contains_key(principal) {
        return Ok(());
    }
    Err(no_user(principal))
}

/// Somebody is not there.
pub(super) fn no_user(principal: &Principal) -> Refusal {
    let name: String = username(principal).chars().take(200).collect();
    Error::NotThere(format!("User with username={name} not found")).into()
}

/// A permission of a role.
#[derive(Serialize)]
pub(super) struct RolePermissionAnswer {
    id: i64,
    role_id: i64,
    pub(super) resource_type: &'static str,
    pub(super) resource_pattern: &'static str,
    pub(super) permission: &'static str,
}

/// A role at a place.
#[derive(Serialize)]
pub(super) struct RoleAnswer {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) workspace: String,
    pub(super) description: Option<String>,
    pub(super) permissions: Vec<RolePermissionAnswer>,
}

/// Where access to a place is ruled: a project, or the installation.
pub(super) fn ruled_by(place: &str) -> Resource<'_> {
    if place == EVERYWHERE {
        Resource::INSTALLATION
    } else {
        Resource::project(place)
    }
}

/// The project of a place; empty: the installation.
pub(super) fn home(place: &str) -> &str {
    if place == EVERYWHERE { "" } else { place }
}

/// The place of a grant that MLflow can speak of; it has no roles on single endpoints.
pub(super) fn place_of(grant: &Grant) -> Option<&str> {
    match &grant.place {
        Place::Installation => Some(EVERYWHERE),
        Place::Project(project) => Some(project),
        Place::Endpoint { .. } => None,
    }
}

/// The roles as a caller may see them.
pub(super) struct Roles<'a> {
    caller: &'a Caller,
    state: &'a State,
    /// Whether the caller may see all roles, held or not.
    sees_all: bool,
    descriptions: BTreeMap<String, String>,
}

impl<'a> Roles<'a> {
    /// Asks for what the descriptions of roles are.
    pub(super) async fn open(registry: &Registry, caller: &'a Caller) -> Result<Self, Refusal> {
        let state = caller.snapshot().state();
        let sees_all = caller.may(Action::AccessRead, Resource::INSTALLATION);
        let mut descriptions = BTreeMap::new();
        let first = PageRequest::up_to(MAX_PAGE, None)?;
        let mut page = sees_all.then_some(first);
        while let Some(wanted) = page {
            let found = registry.list_roles(caller, &wanted).await?;
            descriptions.extend(found.items.into_iter().map(|role| (role.name, role.spec.description)));
            let next = found.next_cursor.map(|next| PageRequest::up_to(MAX_PAGE, Some(&next)));
            page = next.transpose()?;
        }
        Ok(Self {
            caller,
            state,
            sees_all,
            descriptions,
        })
    }

    /// The roles that can be held at a place: the built-in ones first.
    pub(super) fn names_at(&self, place: &str) -> Vec<&'a str> {
        let state = self.state;
        let held: BTreeSet<&str> = state
            .bindings
            .iter()
            .filter(|binding| place_of(&binding.grant) == Some(place))
            .map(|binding| binding.grant.role.as_str())
            .collect();
        let made = state.roles.keys().map(String::as_str);
        let visible = made.filter(|role| self.sees_all || held.contains(role));
        BUILT_IN_ROLES.into_iter().chain(visible).collect()
    }

    /// A role at a place.
    pub(super) fn answer(&self, role: &str, place: &str) -> RoleAnswer {
        let built_in = BUILT_IN.get(role);
        let made = self.state.roles.get(role);
        let has = |action: Action| {
            built_in.is_some_and(|actions| actions.contains(&action))
                || made.is_some_and(|actions| actions.contains(action.as_str()))
        };
        let id = role_number(role, place);
        let permissions = levels_of(has).into_iter();
        RoleAnswer {
            id,
            name: role.to_owned(),
            workspace: place.to_owned(),
            description: self.descriptions.get(role).cloned(),
            permissions: permissions
                .map(|(resource_type, level)| RolePermissionAnswer {
                    id: number_of(&["permission", role, place, resource_type]),
                    role_id: id,
                    resource_type,
                    resource_pattern: EVERYWHERE,
                    permission: level.as_str(),
                })
                .collect(),
        }
    }

    /// The roles that somebody holds, also by their groups, where the caller may know it.
    pub(super) fn held_by(&self, principal: &Principal) -> Result<Vec<RoleAnswer>, Refusal> {
        let is_own = principal == self.caller.principal();
        let grants = self.caller.snapshot().grants(principal);
        let held: BTreeSet<(&str, &str)> = grants
            .filter_map(|grant| Some((place_of(grant)?, grant.role.as_str())))
            .filter(|(place, _)| is_own || self.caller.may(Action::AccessRead, ruled_by(place)))
            .collect();
        if !is_own && held.is_empty() {
            self.caller.authorize(Action::AccessRead, Resource::INSTALLATION)?;
        }
        Ok(held.into_iter().map(|(place, role)| self.answer(role, place)).collect())
    }

    /// The role and the place of a number, where the caller may do this.
    pub(super) fn find(&self, number: i64, action: Action) -> Result<(&'a str, &'a str), Refusal> {
        let state = self.state;
        let caller = self.caller;
        let visible = state.projects.iter().map(String::as_str);
        let places = std::iter::once(EVERYWHERE).chain(visible.filter(|project| caller.sees(project)));
        let roles = BUILT_IN_ROLES.into_iter().chain(state.roles.keys().map(String::as_str));
        let found = find_role(number, roles, places).filter(|(role, place)| self.names_at(place).contains(role));
        if let Some((role, place)) = found {
            caller.authorize(action, ruled_by(place))?;
            Ok((role, place))
        } else {
            // Who may not know is told the same of every number.
            caller.authorize(action, Resource::INSTALLATION)?;
            Err(Error::NotThere(format!("Role with id={number} not found")).into())
        }
    }

    /// The roles that somebody holds, as MLflow lists them without a workspace: those of the installation, and those held.
    pub(super) fn everywhere(&self) -> Vec<RoleAnswer> {
        let held = self.state.bindings.iter().filter_map(|binding| {
            let place = place_of(&binding.grant)?;
            (place != EVERYWHERE).then_some((place, binding.grant.role.as_str()))
        });
        let held: BTreeSet<(&str, &str)> = held.collect();
        let of_installation = self.names_at(EVERYWHERE).into_iter().map(|role| (EVERYWHERE, role));
        of_installation
            .chain(held)
            .map(|(place, role)| self.answer(role, place))
            .collect()
    }

    /// Who holds a role at a place by a binding of their own, and the bindings' names.
    pub(super) fn holders(&self, role: &str, place: &str) -> Vec<(&'a Principal, &'a str)> {
        let at = |grant: &Grant| grant.role == role && place_of(grant) == Some(place);
        let state = self.state;
        let bindings = state.bindings.iter().filter(|binding| at(&binding.grant));
        bindings
            .filter_map(|binding| match &binding.subject {
                Subject::Principal(principal) => Some((principal, binding.name.as_str())),
                Subject::Group(_) => None,
            })
            .collect()
    }
}
