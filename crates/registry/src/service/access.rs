//! Roles, role bindings, policies, marks, and the reasons of decisions.

use std::fmt::Write as _;

use modelyard_auth::{
    ADMIN, Action, BUILT_IN_ROLES, Caller, Kind, Mode, Place, Principal, PrincipalKind, ProjectScope, Resource,
    ResourceKey, Subject, Via, actions_of_built_in_role,
    audit::{Operation, clean_text},
    is_built_in_role,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Registry, identities::event_of};
use crate::{
    error::{Error, Result},
    model::{
        access::{AccessKind, AccessRecord, AccessResource, AccessSpec, RoleSpec, SensitiveMark, markable},
        endpoint::Outcome,
        page::{Page, PageRequest},
    },
};

/// The longest name of something that is marked, in bytes: ids of requests and digests fit.
const MAX_MARKED_NAME_BYTES: usize = 256;

/// Who the caller is, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Me {
    /// `user:NAME` or `service-account:NAME`.
    pub principal: String,
    /// How it came in: `token`, `session`, `exchange`, `password` or `local`.
    pub via: &'static str,
    /// The id of its token.
    pub token_id: Option<String>,
    /// The most that its token opens; null: all that it may.
    pub scope: Option<Vec<String>>,
    /// The projects in which it has a role; null: all.
    pub projects: Option<Vec<String>>,
    /// The roles that it holds, as `ROLE@PLACE`.
    pub roles: Vec<String>,
}

/// A question about access.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessQuestion {
    /// `user:NAME` or `service-account:NAME`.
    #[schema(value_type = String)]
    pub principal: Principal,
    /// The action, such as `alias.write`.
    pub action: String,
    /// `installation`, `project:NAME` or `KIND:PROJECT/NAME`.
    pub resource: String,
}

/// The answer, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AccessAnswer {
    /// Who.
    pub principal: String,
    /// What.
    pub action: String,
    /// On what.
    pub resource: String,
    /// Whether it may.
    pub allowed: bool,
    /// Why, in a sentence.
    pub why: String,
    /// The policies that decided; none permits it where it is empty and refused.
    pub policies: Vec<String>,
    /// The roles that the principal holds for the resource.
    pub roles: Vec<String>,
    /// The roles that its token's scope opens.
    pub scope_roles: Option<Vec<String>>,
    /// What went wrong while policies were evaluated; those count as not there.
    pub errors: Vec<String>,
}

/// Where something is declared, for decisions: a project, or the installation.
fn home(project: &str) -> Resource<'_> {
    if project.is_empty() {
        Resource::INSTALLATION
    } else {
        Resource::project(project)
    }
}

fn resource<S: AccessSpec>(record: AccessRecord) -> Result<AccessResource<S>> {
    let spec = serde_json::from_value(record.spec)
        .map_err(|_| modelyard_db::Error::value("spec of an access resource", &record.name))?;
    Ok(AccessResource {
        kind: S::KIND.resource_kind_in(&record.project),
        name: record.name,
        project: Some(record.project).filter(|project| !project.is_empty()),
        built_in: false,
        spec,
        created_at: Some(record.created_at),
        updated_at: Some(record.updated_at),
    })
}

fn unknown(kind: AccessKind, name: &str) -> Error {
    match kind {
        AccessKind::Role => Error::not_found("role", name, "list them with `modelyard get roles`"),
        AccessKind::RoleBinding => {
            Error::not_found("role binding", name, "list them with `modelyard get role-bindings`")
        }
        AccessKind::Policy => Error::not_found("policy", name, "list them with `modelyard get policies`"),
    }
}

/// The roles that are always there.
fn built_in_role(name: &str) -> Result<AccessResource<RoleSpec>> {
    let actions = actions_of_built_in_role(name).map_err(|error| Error::State(error.to_string()))?;
    Ok(AccessResource {
        kind: AccessKind::Role.resource_kind(),
        name: name.to_owned(),
        project: None,
        built_in: true,
        spec: RoleSpec {
            description: "built in: `modelyard auth schema` prints its policy".to_owned(),
            actions: actions.iter().map(ToString::to_string).collect(),
        },
        created_at: None,
        updated_at: None,
    })
}

impl Registry {
    /// Declares a role, a role binding or a policy, in a project or (empty) in the installation.
    pub async fn put_access<S: AccessSpec>(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        mut spec: S,
    ) -> Result<(Outcome, AccessResource<S>)> {
        caller.authorize(Action::AccessWrite, home(project))?;
        spec.check(project, name)?;
        if S::KIND == AccessKind::RoleBinding && !spec.gives_admin_everywhere() {
            self.keep_an_admin(project, name)?;
        }
        let now = self.clock.now();
        let record = AccessRecord {
            kind: S::KIND,
            project: project.to_owned(),
            name: name.to_owned(),
            subject: spec.subject(),
            spec: serde_json::to_value(&spec).map_err(|error| Error::request(error.to_string()))?,
            created_at: now,
            updated_at: now,
        };
        let mut event = event_of(caller, Action::AccessWrite, Operation::Apply, S::KIND.as_str(), name);
        project.clone_into(&mut event.project);
        let outcome = self.stores.access.put_access(&record, &event).await?;
        if outcome != Outcome::Unchanged {
            self.know_change().await?;
            tracing::info!(kind = S::KIND.as_str(), project, name, ?outcome, "access changed");
        }
        let stored = self.stores.access.find_access(S::KIND, project, name).await?;
        Ok((outcome, resource(stored.unwrap_or(record))?))
    }

    /// A role binding, a policy or a role of an admin's making.
    pub async fn get_access<S: AccessSpec>(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
    ) -> Result<AccessResource<S>> {
        caller.authorize(Action::AccessRead, home(project))?;
        let found = self.stores.access.find_access(S::KIND, project, name).await?;
        resource(found.ok_or_else(|| unknown(S::KIND, name))?)
    }

    /// The resources of a kind by name.
    pub async fn list_access<S: AccessSpec>(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<AccessResource<S>>> {
        caller.authorize(Action::AccessRead, home(project))?;
        let found = self.stores.access.list_access(S::KIND, project, page).await?;
        let items = found.items.into_iter().map(resource).collect::<Result<Vec<_>>>()?;
        Ok(Page {
            items,
            next_cursor: found.next_cursor,
        })
    }

    /// Removes a role binding, a policy or a role that nobody holds.
    pub async fn remove_access(&self, caller: &Caller, kind: AccessKind, project: &str, name: &str) -> Result<()> {
        caller.authorize(Action::AccessWrite, home(project))?;
        if kind == AccessKind::Role && is_built_in_role(name) {
            return Err(Error::State(format!("role `{name}` is built in and cannot be removed")));
        }
        if kind == AccessKind::RoleBinding {
            self.keep_an_admin(project, name)?;
        }
        let mut event = event_of(caller, Action::AccessWrite, Operation::Delete, kind.as_str(), name);
        project.clone_into(&mut event.project);
        if !self.stores.access.remove_access(kind, project, name, &event).await? {
            return Err(unknown(kind, name));
        }
        tracing::info!(kind = kind.as_str(), project, name, "access removed");
        self.know_change().await
    }

    /// Refuses to take away the last binding that gives somebody `admin` everywhere, where people have to sign in. Who is in a
    /// group only the provider knows.
    fn keep_an_admin(&self, project: &str, name: &str) -> Result<()> {
        let snapshot = self.access.snapshot();
        let mut admins = snapshot
            .state()
            .bindings
            .iter()
            .filter(|binding| matches!(binding.subject, Subject::Principal(_)))
            .filter(|binding| binding.grant.role == ADMIN && binding.grant.place == Place::Installation);
        let (first, second) = (admins.next(), admins.next());
        let is_last = project.is_empty() && first.is_some_and(|first| first.name == name) && second.is_none();
        if is_last && self.access.mode() == Mode::SignIn {
            return Err(Error::State(format!(
                "role binding `{name}` is the last one that gives `{ADMIN}` at `*`: give it to somebody else first"
            )));
        }
        Ok(())
    }

    /// Refuses to shut the last one out who is `admin` everywhere, where people have to sign in.
    pub(super) fn keep_another_admin(&self, principal: &Principal) -> Result<()> {
        let snapshot = self.access.snapshot();
        let is_admin = |of: &Principal| {
            let mut grants = snapshot.grants(of);
            grants.any(|grant| grant.role == ADMIN && grant.place == Place::Installation)
        };
        let mut others = snapshot.state().identities.iter();
        if self.access.mode() == Mode::SignIn
            && is_admin(principal)
            && !others.any(|(other, identity)| other != principal && identity.enabled && is_admin(other))
        {
            return Err(Error::State(format!(
                "{principal} is the last one who has `{ADMIN}` at `*`: give it to somebody else first"
            )));
        }
        Ok(())
    }

    /// A role, also a built-in one.
    pub async fn get_role(&self, caller: &Caller, name: &str) -> Result<AccessResource<RoleSpec>> {
        caller.authorize(Action::AccessRead, Resource::INSTALLATION)?;
        if is_built_in_role(name) {
            return built_in_role(name);
        }
        self.get_access(caller, "", name).await
    }

    /// The roles: on the first page the built-in ones, then those of an admin's making by name.
    pub async fn list_roles(
        &self,
        caller: &Caller,
        page: &PageRequest<String>,
    ) -> Result<Page<AccessResource<RoleSpec>>> {
        let mut listed = self.list_access(caller, "", page).await?;
        if page.after.is_none() {
            let built_in = BUILT_IN_ROLES.into_iter().map(built_in_role);
            listed.items.splice(0..0, built_in.collect::<Result<Vec<_>>>()?);
        }
        Ok(listed)
    }

    /// Marks something as sensitive, so that each reading of it is an audit event, or takes the mark away.
    pub async fn mark_sensitive(
        &self,
        caller: &Caller,
        project: &str,
        kind: &str,
        name: &str,
        is_sensitive: bool,
    ) -> Result<()> {
        caller.authorize(Action::AccessWrite, Resource::project(project))?;
        let kind = markable(kind)?;
        if name.is_empty() || clean_text(name, MAX_MARKED_NAME_BYTES) != name {
            return Err(Error::request(format!(
                "the name of a {} that is marked has 1 to {MAX_MARKED_NAME_BYTES} bytes on one line, without control characters",
                kind.word()
            )));
        }
        let operation = if is_sensitive {
            Operation::MarkSensitive
        } else {
            Operation::UnmarkSensitive
        };
        let event = caller.event(Action::AccessWrite, operation, &Resource::named(kind, project, name));
        let key = ResourceKey {
            kind,
            project: project.to_owned(),
            name: name.to_owned(),
        };
        if self.stores.access.mark_sensitive(&key, is_sensitive, &event).await? {
            self.know_change().await?;
        } else if !is_sensitive {
            return Err(Error::not_found(
                "mark",
                name,
                "list them with `modelyard sensitive list`",
            ));
        }
        Ok(())
    }

    /// What is marked in a project.
    pub async fn list_sensitive(&self, caller: &Caller, project: &str) -> Result<Page<SensitiveMark>> {
        caller.authorize(Action::AccessRead, Resource::project(project))?;
        Ok(Page {
            items: self.stores.access.list_sensitive(project).await?,
            next_cursor: None,
        })
    }

    /// Who the caller is.
    pub fn me(&self, caller: &Caller) -> Me {
        let texts = |grants: &[modelyard_auth::Grant]| grants.iter().map(ToString::to_string).collect();
        let mut roles: Vec<String> = caller
            .snapshot()
            .grants(caller.principal())
            .map(ToString::to_string)
            .collect();
        roles.sort_unstable();
        roles.dedup();
        Me {
            principal: caller.principal().to_string(),
            via: caller.via().as_str(),
            token_id: caller.token_id().map(str::to_owned),
            scope: caller.scope().map(texts),
            projects: match caller.projects() {
                ProjectScope::All => None,
                ProjectScope::Only(projects) => Some(projects),
            },
            roles,
        }
    }

    /// Whether somebody may do something, and why. Everybody may ask about themselves, an admin about anybody.
    pub fn explain(&self, caller: &Caller, question: &AccessQuestion) -> Result<AccessAnswer> {
        let action = Action::find(&question.action).ok_or_else(|| {
            Error::request(format!(
                "action `{}` does not exist: list them with `modelyard get actions`",
                question.action
            ))
        })?;
        let target = read_resource(&question.resource)?;
        let is_own = question.principal == *caller.principal();
        if !is_own {
            let place = match target.kind() {
                Kind::Installation => Resource::INSTALLATION,
                _ => Resource::project(target.project_name()),
            };
            caller.authorize(Action::AccessRead, place)?;
        } else if target.kind() != Kind::Installation && !caller.sees(target.project_name()) {
            // Whether there is such a project is not told.
            return Err(modelyard_auth::Error::Project(target.project_name().to_owned()).into());
        }
        let is_service = question.principal.kind() == PrincipalKind::Service;
        let is_known = is_service || caller.snapshot().is_enabled(&question.principal);
        let (scope, via) = if is_own {
            (caller.scope().map(<[modelyard_auth::Grant]>::to_vec), caller.via())
        } else {
            (None, Via::Token)
        };
        let asked = self.access.as_if(question.principal.clone(), scope, via);
        let decision = asked.decide(action, target);
        let exists = target.kind() == Kind::Installation || asked.snapshot().has_project(target.project_name());
        let allowed = decision.allowed && is_known && exists;
        let why = if !is_known {
            format!("{} does not exist or is disabled", question.principal)
        } else if !exists {
            format!("project `{}` does not exist", target.project_name())
        } else {
            reason(&decision)
        };
        Ok(AccessAnswer {
            principal: question.principal.to_string(),
            action: action.to_string(),
            resource: question.resource.clone(),
            allowed,
            why,
            policies: decision.policies.clone(),
            roles: decision.roles.clone(),
            scope_roles: decision.scope_roles.clone(),
            errors: decision.errors.clone(),
        })
    }
}

fn reason(decision: &modelyard_auth::Decision) -> String {
    let mut why = if decision.roles.is_empty() {
        "it holds no role there".to_owned()
    } else {
        format!("it holds {}", decision.roles.join(", "))
    };
    // Writing to a string cannot fail.
    let _ = match decision.scope_roles.as_deref() {
        None => Ok(()),
        Some([]) => write!(why, ", the token's scope gives no role there"),
        Some(roles) => write!(why, ", the token's scope gives {}", roles.join(", ")),
    };
    // Writing to a string cannot fail.
    let _ = match (decision.allowed, decision.policies.is_empty()) {
        (true, _) => write!(why, ", and {} permits it", decision.policies.join(", ")),
        (false, true) => write!(why, ", and no policy permits it"),
        (false, false) => write!(why, ", and {} forbids it", decision.policies.join(", ")),
    };
    why
}

/// Reads `installation`, `project:NAME` or `KIND:PROJECT/NAME`.
fn read_resource(text: &str) -> Result<Resource<'_>> {
    let invalid = || {
        Error::request(format!(
            "`{}` is no resource: write `installation`, `project:NAME` or `KIND:PROJECT/NAME`",
            text.chars()
                .take(200)
                .flat_map(char::escape_default)
                .collect::<String>()
        ))
    };
    if text == Kind::Installation.word() {
        return Ok(Resource::INSTALLATION);
    }
    let (kind, rest) = text.split_once(':').ok_or_else(invalid)?;
    let kind = Kind::find(kind).ok_or_else(invalid)?;
    match (kind, rest.split_once('/')) {
        (Kind::Project, None) if !rest.is_empty() => Ok(Resource::project(rest)),
        (Kind::Installation | Kind::Project, _) => Err(invalid()),
        (kind, Some((project, name))) if !project.is_empty() && !name.is_empty() => {
            Ok(Resource::named(kind, project, name))
        }
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read() {
        for text in [
            "installation",
            "project:default",
            "model:default/flight-delay",
            "artifact:a/sha256:01",
        ] {
            read_resource(text).unwrap();
        }
        for text in [
            "",
            "project:",
            "project:a/b",
            "model:default",
            "model:/x",
            "thing:a/b",
            "installation:a",
        ] {
            assert!(read_resource(text).is_err(), "{text}");
        }
    }
}
