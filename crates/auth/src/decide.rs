//! May they: decisions by Cedar over one [`State`].

mod asked;
mod built_in;

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::{Arc, atomic::AtomicI64},
};

use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy,
    PolicyId, PolicySet, Request, RestrictedExpression, Schema, ValidationMode, Validator,
};
use parking_lot::RwLock;

pub use self::built_in::{actions_of_built_in_role, is_built_in_role};

use self::asked::{Asked, Remembered};
use crate::{
    action::Action,
    caller::Identified,
    principal::{Principal, PrincipalKind},
    resource::{Kind, Resource},
    state::{Grant, ResourceKey, State, Subject, TokenEntry},
    token::TokenHash,
};

/// The schema, as an admin can read it.
pub const SCHEMA: &str = include_str!("../policies/schema.cedarschema");
/// The policies of the built-in roles, as an admin can read them.
pub const BUILT_IN_POLICIES: &str = include_str!("../policies/roles.cedar");

/// The longest text of a policy that an admin adds, in bytes.
pub const MAX_POLICY_BYTES: usize = 16 << 10;
/// The most decisions that are remembered; when there are more, all are forgotten.
const MAX_REMEMBERED: usize = 65_536;

/// Policies that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The built-in schema or policies.
    #[error("the built-in policies cannot be read: {0}")]
    BuiltIn(String),
    /// A policy of an admin.
    #[error("policy `{name}` is not valid: {problem}")]
    Invalid {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A role of an admin.
    #[error("role `{name}` names the action `{action}`, which does not exist: list them with `modelyard get actions`")]
    Role {
        /// Its name.
        name: String,
        /// What it names.
        action: String,
    },
}

/// How a caller came in; policies see it as `context.via`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// With an API token.
    Token,
    /// In a browser that signed in.
    Session,
    /// With a short-lived token that a workload was given for its own.
    Exchange,
    /// With name and password.
    Password,
    /// Through one of our services.
    Service,
    /// On a server that asks nobody to sign in.
    Local,
}

impl Via {
    const ALL: [Self; 6] = [
        Self::Token,
        Self::Session,
        Self::Exchange,
        Self::Password,
        Self::Service,
        Self::Local,
    ];

    /// The word in policies and in the audit chain.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Exchange => "exchange",
            Self::Password => "password",
            Self::Service => "service",
            Self::Local => "local",
        }
    }

    /// The way of a word.
    #[must_use]
    pub fn find(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|via| via.as_str() == word)
    }
}

/// A question: may `principal`, within `scope`, do `action` on `resource`?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// The most that its token opens; none: no limit of its own.
    pub scope: Option<&'a [Grant]>,
    /// How it came in.
    pub via: Via,
    /// What.
    pub action: Action,
    /// On what.
    pub resource: Resource<'a>,
}

/// An answer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// The policies that decided. Empty and refused: none permits it.
    pub policies: Vec<String>,
    /// The roles that the principal holds for the resource.
    pub roles: Vec<String>,
    /// The roles that the token's scope opens for it; none: the token has no scope.
    pub scope_roles: Option<Vec<String>>,
    /// What went wrong while policies were evaluated; those count as not there.
    pub errors: Vec<String>,
}

/// The state at one revision, ready to decide.
pub struct Snapshot {
    revision: u64,
    state: State,
    policies: PolicySet,
    /// Those of the roles, without what an admin added.
    of_roles: PolicySet,
    types: Types,
    held: HashMap<Subject, Vec<Grant>>,
    tokens: HashMap<TokenHash, LiveToken>,
    remembered: RwLock<Remembered>,
}

/// A token, and when its use was noticed last.
pub(crate) struct LiveToken {
    pub(crate) entry: TokenEntry,
    /// Who brings it.
    pub(crate) identified: Arc<Identified>,
    /// Microseconds since the epoch.
    pub(crate) noticed: AtomicI64,
}

/// The names of the entity types, parsed once.
struct Types(HashMap<&'static str, EntityTypeName>);

impl Types {
    fn new() -> Result<Self, PolicyError> {
        let own = ["Role", "Group", "User", "ServiceAccount", "Token", "Service", "Action"];
        let names = own.into_iter().chain(Kind::ALL.iter().map(|kind| kind.as_str()));
        let types = names.map(|name| {
            let parsed = name.parse().map_err(|error| PolicyError::BuiltIn(format!("{error}")))?;
            Ok((name, parsed))
        });
        Ok(Self(types.collect::<Result<_, PolicyError>>()?))
    }

    fn uid(&self, kind: &'static str, id: &str) -> Option<EntityUid> {
        let name = self.0.get(kind)?.clone();
        Some(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
    }
}

fn parse_schema() -> Result<Schema, PolicyError> {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| PolicyError::BuiltIn(error.to_string()))?;
    Ok(schema)
}

/// Parses policies; each is known by its `@id`, or by `name` and its place in the text.
fn parse_policies(name: &str, text: &str) -> Result<Vec<Policy>, String> {
    let set: PolicySet = text.parse().map_err(|error: cedar_policy::ParseErrors| {
        let problems = error.iter().map(ToString::to_string);
        problems.collect::<Vec<_>>().join("; ")
    })?;
    if set.templates().next().is_some() {
        return Err("templates are not used: name the principals by their roles or groups".to_owned());
    }
    let mut policies: Vec<&Policy> = set.policies().collect();
    policies.sort_by_key(|policy| policy.id().to_string());
    let ids = policies.iter().enumerate().map(|(index, policy)| {
        let id = policy.annotation("id").map(str::to_owned);
        let id = id.unwrap_or_else(|| {
            if index == 0 {
                name.to_owned()
            } else {
                format!("{name}-{index}")
            }
        });
        policy.new_id(PolicyId::new(id))
    });
    Ok(ids.collect())
}

/// Checks a policy that an admin wants to add: its syntax, and that it speaks of entities and actions of the schema.
///
/// # Errors
/// What is wrong with it.
pub fn check_policy(name: &str, text: &str) -> Result<(), PolicyError> {
    let invalid = |problem: String| PolicyError::Invalid {
        name: name.to_owned(),
        problem,
    };
    if text.len() > MAX_POLICY_BYTES {
        return Err(invalid(format!(
            "it has {} bytes: use at most {MAX_POLICY_BYTES}",
            text.len()
        )));
    }
    let policies = parse_policies(name, text).map_err(invalid)?;
    if policies.is_empty() {
        return Err(invalid(
            "it is empty: write `permit (...)` or `forbid (...)`".to_owned(),
        ));
    }
    let set = PolicySet::from_policies(policies).map_err(|error| invalid(error.to_string()))?;
    let result = Validator::new(parse_schema()?).validate(&set, ValidationMode::default());
    if result.validation_passed() {
        return Ok(());
    }
    let problems: Vec<String> = result.validation_errors().map(ToString::to_string).collect();
    Err(invalid(problems.join("; ")))
}

/// The policy that a role of an admin amounts to.
fn policy_of_role(name: &str, actions: impl Iterator<Item = impl AsRef<str>>) -> Result<String, PolicyError> {
    let mut list = String::new();
    for action in actions {
        let found = Action::find(action.as_ref()).ok_or_else(|| PolicyError::Role {
            name: name.to_owned(),
            action: action.as_ref().to_owned(),
        })?;
        if !list.is_empty() {
            list.push_str(", ");
        }
        // Writing to a string cannot fail.
        let _ = write!(list, "Action::\"{found}\"");
    }
    Ok(format!(
        "permit (principal in Role::\"{name}\", action in [{list}], resource);"
    ))
}

/// Checks a role that an admin wants to make.
///
/// # Errors
/// The action that does not exist.
pub fn check_role(name: &str, actions: &[String]) -> Result<(), PolicyError> {
    policy_of_role(name, actions.iter()).map(drop)
}

impl Snapshot {
    /// Reads the policies of a state.
    ///
    /// # Errors
    /// A policy that this version does not understand. Of roles it takes what it does.
    pub fn new(revision: u64, mut state: State) -> Result<Self, PolicyError> {
        // Without them every decision would be a refusal.
        actions().map_err(PolicyError::BuiltIn)?;
        let mut policies = PolicySet::new();
        let add = |policies: &mut PolicySet, name: &str, text: &str| {
            let invalid = |problem: String| PolicyError::Invalid {
                name: name.to_owned(),
                problem,
            };
            for policy in parse_policies(name, text).map_err(invalid)? {
                policies.add(policy).map_err(|error| invalid(error.to_string()))?;
            }
            Ok(())
        };
        add(&mut policies, "built-in", BUILT_IN_POLICIES)?;
        for (name, actions) in &state.roles {
            // A newer registry has actions that nobody asks for here; all else that it says counts nevertheless.
            let known = actions.iter().filter(|action| Action::find(action.as_str()).is_some());
            let known: Vec<&String> = known.collect();
            if known.len() < actions.len() {
                // It is so at each revision until this version is a newer one.
                tracing::debug!(role = %name, "the role has actions that this version does not know");
            }
            if !known.is_empty() {
                let text = policy_of_role(name, known.into_iter())?;
                add(&mut policies, &format!("role-{name}"), &text)?;
            }
        }
        let of_roles = policies.clone();
        for (name, text) in &state.policies {
            add(&mut policies, &format!("policy-{name}"), text)?;
        }
        let mut held: HashMap<Subject, Vec<Grant>> = HashMap::new();
        for binding in &state.bindings {
            held.entry(binding.subject.clone())
                .or_default()
                .push(binding.grant.clone());
        }
        let live = |entry: TokenEntry| LiveToken {
            identified: Arc::new(Identified::from(&entry)),
            entry,
            noticed: AtomicI64::new(0),
        };
        let tokens = state.tokens.drain().map(|(hash, entry)| (hash, live(entry))).collect();
        Ok(Self {
            revision,
            state,
            policies,
            of_roles,
            types: Types::new()?,
            held,
            tokens,
            remembered: RwLock::default(),
        })
    }

    /// The revision of the state.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The state, without the tokens.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether a project exists.
    #[must_use]
    pub fn has_project(&self, project: &str) -> bool {
        self.state.projects.contains(project)
    }

    /// Whether an admin marked the resource as sensitive.
    #[must_use]
    pub fn is_sensitive(&self, resource: &Resource<'_>) -> bool {
        if self.state.sensitive.is_empty() {
            return false;
        }
        self.state.sensitive.contains(&ResourceKey {
            kind: resource.kind(),
            project: resource.project_name().to_owned(),
            name: resource.name().to_owned(),
        })
    }

    /// What a principal holds: by its own bindings and by those of its groups.
    pub fn grants(&self, principal: &Principal) -> impl Iterator<Item = &Grant> {
        let own = self.held.get(&Subject::Principal(principal.clone()));
        let groups = self.state.identities.get(principal).map(|identity| &identity.groups);
        let of_groups = groups
            .into_iter()
            .flatten()
            .filter_map(|group| self.held.get(&Subject::Group(group.clone())));
        own.into_iter().chain(of_groups).flatten()
    }

    /// What a token opens; none: there is no such token, or its owner is not let in.
    pub(crate) fn token(&self, hash: &TokenHash) -> Option<&LiveToken> {
        let token = self.tokens.get(hash)?;
        self.is_enabled(&token.entry.owner).then_some(token)
    }

    /// Whether somebody is known and let in.
    #[must_use]
    pub fn is_enabled(&self, principal: &Principal) -> bool {
        let identity = self.state.identities.get(principal);
        identity.is_some_and(|identity| identity.enabled)
    }

    /// Answers a question. The same question is evaluated once a revision.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Arc<Decision> {
        if let Some(decision) = self.remembered.read().get(question) {
            return Arc::clone(decision);
        }
        let decision = Arc::new(self.evaluate(question));
        let mut remembered = self.remembered.write();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(Asked::from(question), Arc::clone(&decision));
        decision
    }

    /// The policies that count. What an admin added is no concern of the services, and takes nobody's right to change the
    /// access rules themselves: one mistake in a policy would otherwise lock out everybody who could mend it.
    fn policies_for(&self, question: &Question<'_>) -> &PolicySet {
        let is_service = question.principal.kind() == PrincipalKind::Service;
        let is_rules = matches!(question.action, Action::AccessRead | Action::AccessWrite)
            && question.resource.kind() == Kind::Installation;
        if is_service || is_rules {
            &self.of_roles
        } else {
            &self.policies
        }
    }

    /// Evaluates the principal, and its scope beside it: both must be permitted.
    fn evaluate(&self, question: &Question<'_>) -> Decision {
        let (kind, name) = (question.principal.entity_type(), question.principal.name());
        let roles = self.roles(question.principal, &question.resource);
        let groups = self
            .state
            .identities
            .get(question.principal)
            .map(|identity| &identity.groups);
        let groups: Vec<&str> = groups.into_iter().flatten().map(String::as_str).collect();
        let mut decision = match kind {
            Some(kind) => self.ask(question, (kind, name), &roles, &groups),
            None => refused(),
        };
        if let Some(scope) = question.scope {
            let covering = scope.iter().filter(|grant| grant.place.covers(&question.resource));
            let scope_roles: Vec<String> = covering.map(|grant| grant.role.clone()).collect();
            let within = self.ask(question, ("Token", name), &scope_roles, &[]);
            if decision.allowed && !within.allowed {
                decision.policies = within.policies;
            }
            decision.allowed &= within.allowed;
            decision.errors.extend(within.errors);
            decision.scope_roles = Some(scope_roles);
        }
        decision.roles = roles;
        decision
    }

    fn roles(&self, principal: &Principal, resource: &Resource<'_>) -> Vec<String> {
        let covering = self.grants(principal).filter(|grant| grant.place.covers(resource));
        let mut roles: Vec<String> = covering.map(|grant| grant.role.clone()).collect();
        roles.sort_unstable();
        roles.dedup();
        roles
    }

    fn ask(
        &self,
        question: &Question<'_>,
        (kind, name): (&'static str, &str),
        roles: &[String],
        groups: &[&str],
    ) -> Decision {
        self.request(question, (kind, name), roles, groups).map_or_else(
            |problem| Decision {
                errors: vec![problem],
                ..refused()
            },
            |(request, entities)| {
                let response = Authorizer::new().is_authorized(&request, self.policies_for(question), &entities);
                let mut policies: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
                policies.sort_unstable();
                Decision {
                    allowed: response.decision() == CedarDecision::Allow,
                    policies,
                    errors: response.diagnostics().errors().map(ToString::to_string).collect(),
                    ..refused()
                }
            },
        )
    }

    fn request(
        &self,
        question: &Question<'_>,
        (kind, name): (&'static str, &str),
        roles: &[String],
        groups: &[&str],
    ) -> Result<(Request, Entities), String> {
        let unknown = || "an entity type is missing".to_owned();
        let uid = |kind: &'static str, id: &str| self.types.uid(kind, id).ok_or_else(unknown);
        let principal = uid(kind, name)?;
        let mut parents = HashSet::with_capacity(roles.len() + groups.len());
        for role in roles {
            parents.insert(uid("Role", role)?);
        }
        for group in groups {
            parents.insert(uid("Group", group)?);
        }
        let installation = uid(Kind::Installation.as_str(), "installation")?;
        let mut entities = vec![
            Entity::new_no_attrs(principal.clone(), parents),
            Entity::new_no_attrs(installation.clone(), HashSet::new()),
        ];
        let resource = question.resource;
        let mut target = installation.clone();
        if resource.kind() != Kind::Installation {
            let project = Resource::project(resource.project_name());
            let project_uid = uid(Kind::Project.as_str(), project.name())?;
            entities.push(self.entity(project_uid.clone(), &project, installation)?);
            target = project_uid;
            if resource.kind() != Kind::Project {
                let id = format!("{}/{}", resource.project_name(), resource.name());
                let own = uid(resource.kind().as_str(), &id)?;
                entities.push(self.entity(own.clone(), &resource, target)?);
                target = own;
            }
        }
        let via = RestrictedExpression::new_string(question.via.as_str().to_owned());
        let context = Context::from_pairs([("via".to_owned(), via)]).map_err(|error| error.to_string())?;
        // The groups of actions that the schema declares.
        let action = uid("Action", question.action.as_str())?;
        let entities = Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        let entities = entities
            .add_entities(actions()?.iter().cloned(), None)
            .map_err(|error| error.to_string())?;
        let request = Request::new(principal, action, target, context, None).map_err(|error| error.to_string())?;
        Ok((request, entities))
    }

    fn entity(&self, uid: EntityUid, resource: &Resource<'_>, parent: EntityUid) -> Result<Entity, String> {
        let name = RestrictedExpression::new_string(resource.name().to_owned());
        let sensitive = RestrictedExpression::new_bool(self.is_sensitive(resource));
        let attributes = HashMap::from([("name".to_owned(), name), ("sensitive".to_owned(), sensitive)]);
        Entity::new(uid, attributes, HashSet::from([parent])).map_err(|error| error.to_string())
    }
}

/// The actions and their groups, as entities.
fn actions() -> Result<&'static [Entity], String> {
    static ACTIONS: std::sync::OnceLock<Result<Vec<Entity>, String>> = std::sync::OnceLock::new();
    let actions = ACTIONS.get_or_init(|| {
        let schema = parse_schema().map_err(|error| error.to_string())?;
        let entities = schema.action_entities().map_err(|error| error.to_string())?;
        Ok(entities.iter().cloned().collect())
    });
    actions.as_ref().map(Vec::as_slice).map_err(Clone::clone)
}

const fn refused() -> Decision {
    Decision {
        allowed: false,
        policies: Vec::new(),
        roles: Vec::new(),
        scope_roles: None,
        errors: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
