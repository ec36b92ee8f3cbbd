//! Roles, role bindings, policies, and what is marked as sensitive.

use std::collections::BTreeSet;

use modelyard_auth::{ADMIN, Action, Grant, Kind, Subject, check_policy, check_role, is_built_in_role};
use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::run::check_text;
use crate::error::{Error, Result};

/// The longest description, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 4096;
/// The most of one kind in the installation or in a project: all of them are in the memory of every process.
pub const MAX_OF_A_KIND: i64 = 10_000;

/// The kinds of what decides who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A set of actions.
    Role,
    /// Who holds a role, and where.
    RoleBinding,
    /// Cedar text.
    Policy,
}

impl AccessKind {
    /// The word in the database and in the audit chain.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::RoleBinding => "role-binding",
            Self::Policy => "policy",
        }
    }

    /// The kind of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Role, Self::RoleBinding, Self::Policy]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// The name of the resource's kind.
    #[must_use]
    pub const fn resource_kind(self) -> &'static str {
        match self {
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
            Self::Policy => "Policy",
        }
    }

    /// The name of the kind of a resource in a project; empty: the installation.
    #[must_use]
    pub const fn resource_kind_in(self, project: &str) -> &'static str {
        match self {
            Self::RoleBinding if !project.is_empty() => "ProjectRoleBinding",
            kind => kind.resource_kind(),
        }
    }
}

/// Something of these kinds as it is stored; the spec has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessRecord {
    /// Which kind.
    pub kind: AccessKind,
    /// Its project; empty: the installation.
    pub project: String,
    /// Its name.
    pub name: String,
    /// What it shall be.
    pub spec: Value,
    /// Of a role binding: who.
    pub subject: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// A declared resource that decides who may do what.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AccessResource<S> {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its project, where it is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Whether it is always there and cannot be changed.
    pub built_in: bool,
    /// What it shall be.
    pub spec: S,
    /// When it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it was changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// What a spec of these kinds can do.
pub trait AccessSpec: Serialize + serde::de::DeserializeOwned + Send {
    /// The kind.
    const KIND: AccessKind;

    /// Checks the spec of the resource `name` in a project; empty: the installation.
    fn check(&mut self, project: &str, name: &str) -> Result<()>;

    /// Whom it speaks of.
    fn subject(&self) -> Option<String> {
        None
    }

    /// Whether who has it may do everything everywhere.
    fn gives_admin_everywhere(&self) -> bool {
        false
    }
}

/// A role of an admin's making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// What it may do; `GET /api/v1/actions` lists the actions.
    pub actions: BTreeSet<String>,
}

impl AccessSpec for RoleSpec {
    const KIND: AccessKind = AccessKind::Role;

    fn check(&mut self, _: &str, name: &str) -> Result<()> {
        check_name("a role", name)?;
        if is_built_in_role(name) {
            return Err(Error::State(format!(
                "role `{name}` is built in and cannot be changed: take another name"
            )));
        }
        check_text("description of role", name, &self.description, MAX_DESCRIPTION_BYTES)?;
        let actions: Vec<String> = self.actions.iter().cloned().collect();
        check_role(name, &actions).map_err(|error| Error::request(error.to_string()))
    }
}

/// Who holds a role, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleBindingSpec {
    /// `user:NAME`, `service-account:NAME` or `group:NAME`.
    #[schema(value_type = String)]
    pub subject: Subject,
    /// The role.
    pub role: String,
    /// `*` for the installation, `PROJECT`, or `PROJECT/endpoints/NAME`. In a project: the project where it is left out.
    #[serde(default)]
    pub place: String,
}

impl RoleBindingSpec {
    /// The role and its place.
    pub fn grant(&self) -> Result<Grant> {
        format!("{}@{}", self.role, self.place)
            .parse()
            .map_err(|error: modelyard_auth::InvalidGrant| Error::request(error.to_string()))
    }
}

impl AccessSpec for RoleBindingSpec {
    const KIND: AccessKind = AccessKind::RoleBinding;

    fn check(&mut self, project: &str, name: &str) -> Result<()> {
        check_name("a role binding", name)?;
        if self.place.is_empty() {
            project.clone_into(&mut self.place);
        }
        let place = self.grant()?.place;
        let is_within = project.is_empty() || place.project() == Some(project);
        if is_within {
            return Ok(());
        }
        Err(Error::request(format!(
            "role binding `{name}` of project `{project}` cannot give a role at `{place}`: leave `place` out, or name the project or one of its endpoints"
        )))
    }

    fn subject(&self) -> Option<String> {
        Some(self.subject.to_string())
    }

    fn gives_admin_everywhere(&self) -> bool {
        self.role == ADMIN && self.place == "*"
    }
}

/// A policy of an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// One or more policies in Cedar's language, over the schema of `GET /api/v1/auth/schema`.
    pub policy: String,
}

impl AccessSpec for PolicySpec {
    const KIND: AccessKind = AccessKind::Policy;

    fn check(&mut self, _: &str, name: &str) -> Result<()> {
        check_name("a policy", name)?;
        check_text("description of policy", name, &self.description, MAX_DESCRIPTION_BYTES)?;
        check_policy(name, &self.policy).map_err(|error| Error::request(error.to_string()))
    }
}

/// Something whose every reading is written into the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SensitiveMark {
    /// The kind of the resource: `model`, `dataset`, ...
    pub kind: String,
    /// Its name.
    pub name: String,
    /// When it was marked.
    pub created_at: Timestamp,
}

/// The kind of what can be marked as sensitive.
pub fn markable(word: &str) -> Result<Kind> {
    Kind::find(word)
        .filter(|kind| !matches!(kind, Kind::Installation | Kind::Project))
        .ok_or_else(|| {
            let known = Kind::ALL.iter().skip(2).map(|kind| kind.word());
            Error::request(format!(
                "`{word}` is no kind that can be marked: use {}",
                known.collect::<Vec<_>>().join(", ")
            ))
        })
}

/// Something that can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct ActionInfo {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
}

/// All actions.
pub fn actions() -> impl Iterator<Item = ActionInfo> {
    Action::ALL.iter().map(|action| ActionInfo {
        name: action.as_str(),
        description: action.description(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(role: &str, place: &str) -> RoleBindingSpec {
        RoleBindingSpec {
            subject: "user:alice".parse().unwrap(),
            role: role.to_owned(),
            place: place.to_owned(),
        }
    }

    #[test]
    fn a_binding_of_a_project_stays_within_it() {
        for (place, expected) in [("", "a"), ("a", "a"), ("a/endpoints/x", "a/endpoints/x")] {
            let mut spec = binding("viewer", place);
            spec.check("a", "b").unwrap();
            assert_eq!(spec.place, expected);
        }
        for place in ["*", "b", "b/endpoints/x", "a/models/x"] {
            assert!(binding("viewer", place).check("a", "b").is_err(), "{place}");
        }
        binding("viewer", "*").check("", "b").unwrap();
        assert!(binding("viewer", "").check("", "b").is_err());
        assert!(binding("no role", "*").check("", "b").is_err());
    }

    #[test]
    fn roles_name_actions_that_exist() {
        let role = |actions: &[&str]| RoleSpec {
            description: String::new(),
            actions: actions.iter().map(|action| (*action).to_owned()).collect(),
        };
        role(&["run.read", "model.read"]).check("", "reader").unwrap();
        let error = role(&["run.reed"]).check("", "reader").unwrap_err().to_string();
        assert!(error.contains("run.reed"), "{error}");
        let error = role(&[]).check("", "admin").unwrap_err().to_string();
        assert!(error.contains("built in"), "{error}");
    }

    #[test]
    fn policies_fit_the_schema() {
        let policy = |text: &str| PolicySpec {
            description: String::new(),
            policy: text.to_owned(),
        };
        let good =
            r#"forbid (principal, action == Action::"alias.write", resource) unless { context.via == "session" };"#;
        policy(good).check("", "p").unwrap();
        for bad in [
            "",
            "permit",
            r#"permit (principal, action == Action::"fly", resource);"#,
        ] {
            assert!(policy(bad).check("", "p").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_in_a_project_can_be_marked() {
        assert_eq!(markable("model").unwrap(), Kind::Model);
        for bad in ["project", "installation", "modle"] {
            assert!(markable(bad).is_err(), "{bad}");
        }
    }
}
