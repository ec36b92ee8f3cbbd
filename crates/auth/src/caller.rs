//! Who is calling, handed to every operation.

use std::{
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::{Arc, OnceLock},
};

use serde_json::{Map, Value};

use crate::{
    access::{Access, Facts},
    action::Action,
    audit::{NewEvent, Operation, Outcome},
    decide::{Decision, Question, Snapshot, Via},
    error::{Error, Result},
    principal::{Principal, PrincipalKind},
    resource::{Kind, Resource},
    state::{Grant, InvalidGrant, Place, TokenEntry},
    token::TokenKind,
};

/// For whom a service works later: who started it, and the most that its token opened. Written as `user:alice`, or
/// `user:alice;ROLE@PROJECT,ROLE@PROJECT` with a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActingFor {
    /// Who.
    pub principal: Principal,
    /// The most that it opened; none: all that the principal may.
    pub scope: Option<Vec<Grant>>,
}

impl fmt::Display for ActingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.principal)?;
        let Some(scope) = &self.scope else {
            return Ok(());
        };
        f.write_str(";")?;
        for (index, grant) in scope.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{grant}")?;
        }
        Ok(())
    }
}

/// A text that names nobody to work for.
#[derive(Debug, thiserror::Error)]
#[error("nobody to work for is named: {0}")]
pub struct InvalidActingFor(String);

impl FromStr for ActingFor {
    type Err = InvalidActingFor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (principal, scope) = match text.split_once(';') {
            Some((principal, scope)) => (principal, Some(scope)),
            None => (text, None),
        };
        let principal: Principal = principal
            .parse()
            .map_err(|error| InvalidActingFor(format!("{error}")))?;
        let parse = |scope: &str| {
            scope
                .split(',')
                .filter(|grant| !grant.is_empty())
                .map(str::parse)
                .collect()
        };
        let scope: Option<Result<Vec<Grant>, InvalidGrant>> = scope.map(parse);
        let scope = scope.transpose().map_err(|error| InvalidActingFor(error.to_string()))?;
        Ok(Self { principal, scope })
    }
}

/// Which projects a list may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectScope {
    /// All.
    All,
    /// These.
    Only(Vec<String>),
}

/// Who is calling: known, and with everything that decisions need. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    inner: Arc<Inner>,
}

struct Inner {
    access: Access,
    snapshot: Arc<Snapshot>,
    identified: Arc<Identified>,
    request_id: OnceLock<String>,
    source: Option<IpAddr>,
}

/// What authentication found.
pub(crate) struct Identified {
    pub principal: Principal,
    pub scope: Option<Vec<Grant>>,
    pub via: Via,
    /// The service that speaks for the principal, or is it.
    pub service: Option<String>,
    pub token_id: Option<String>,
}

impl From<&TokenEntry> for Identified {
    /// Who brings the token.
    fn from(token: &TokenEntry) -> Self {
        Self {
            principal: token.owner.clone(),
            scope: token.scope.clone(),
            via: match token.kind {
                TokenKind::Api => Via::Token,
                TokenKind::Session => Via::Session,
                TokenKind::Exchanged => Via::Exchange,
            },
            service: None,
            token_id: Some(token.id.clone()),
        }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({} via {})", self.principal(), self.via().as_str())
    }
}

impl Caller {
    pub(crate) fn new(
        access: Access,
        snapshot: Arc<Snapshot>,
        identified: Arc<Identified>,
        request_id: Option<String>,
        source: Option<IpAddr>,
    ) -> Self {
        let request_id = request_id.map_or_else(OnceLock::new, OnceLock::from);
        Self {
            inner: Arc::new(Inner {
                access,
                snapshot,
                identified,
                request_id,
                source,
            }),
        }
    }

    /// Who.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.inner.identified.principal
    }

    /// How it came in.
    #[must_use]
    pub fn via(&self) -> Via {
        self.inner.identified.via
    }

    /// The id of its token, where it has one.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.inner.identified.token_id.as_deref()
    }

    /// The most that its token opens.
    #[must_use]
    pub fn scope(&self) -> Option<&[Grant]> {
        self.inner.identified.scope.as_deref()
    }

    /// The id of the request: the client's own, or one of ours.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.inner
            .request_id
            .get_or_init(|| self.inner.access.next_id().to_string())
    }

    /// Where the request came from.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.inner.source
    }

    /// What the decisions rest on.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.inner.snapshot
    }

    /// For whom a service shall work when it goes on later with what this caller began.
    #[must_use]
    pub fn acting_for(&self) -> ActingFor {
        ActingFor {
            principal: self.principal().clone(),
            scope: self.inner.identified.scope.clone(),
        }
    }

    /// The caller for somebody for whom this service works.
    ///
    /// # Errors
    /// Somebody who is not let in any more, or a caller that is no service.
    pub fn on_behalf_of(&self, acting_for: &ActingFor) -> Result<Self> {
        let facts = Facts {
            request_id: Some(self.request_id()),
            source: self.source(),
        };
        let service = self.inner.identified.service.as_deref();
        let text = acting_for.to_string();
        self.inner.access.authenticate_service(service, Some(&text), facts)
    }

    /// Whether the caller may do this.
    #[must_use]
    pub fn may(&self, action: Action, resource: Resource<'_>) -> bool {
        self.decide(action, resource).allowed && self.exists(&resource)
    }

    /// The decision about this, and why.
    #[must_use]
    pub fn decide(&self, action: Action, resource: Resource<'_>) -> Arc<Decision> {
        self.inner.snapshot.decide(&Question {
            principal: self.principal(),
            scope: self.scope(),
            via: self.via(),
            action,
            resource,
        })
    }

    /// The beginning of every operation.
    ///
    /// # Errors
    /// [`Error::Project`] where the project does not exist or the caller has no role in it, else [`Error::Denied`].
    pub fn authorize(&self, action: Action, resource: Resource<'_>) -> Result<()> {
        if self.may(action, resource) {
            return Ok(());
        }
        self.inner.access.note_refusal(self, action, &resource);
        if resource.kind() != Kind::Installation && !self.sees(resource.project_name()) {
            return Err(Error::Project(resource.project_name().chars().take(128).collect()));
        }
        Err(Error::Denied {
            principal: self.principal().clone(),
            action,
            resource: resource.to_string(),
        })
    }

    fn exists(&self, resource: &Resource<'_>) -> bool {
        resource.kind() == Kind::Installation || self.inner.snapshot.has_project(resource.project_name())
    }

    /// Whether the project exists and the caller has any role in it.
    #[must_use]
    pub fn sees(&self, project: &str) -> bool {
        let within = |grant: &Grant| grant.place.project().is_none_or(|place| place == project);
        let snapshot = &self.inner.snapshot;
        let holds = self.principal().kind() == PrincipalKind::Service || snapshot.grants(self.principal()).any(within);
        let in_scope = self.scope().is_none_or(|scope| scope.iter().any(within));
        holds && in_scope && snapshot.has_project(project)
    }

    /// The projects in which the caller has a role.
    #[must_use]
    pub fn projects(&self) -> ProjectScope {
        match self.projects_of_grants() {
            ProjectScope::All => ProjectScope::All,
            ProjectScope::Only(mut projects) => {
                // A scope can name what does not exist.
                projects.retain(|project| self.inner.snapshot.has_project(project));
                ProjectScope::Only(projects)
            }
        }
    }

    fn projects_of_grants(&self) -> ProjectScope {
        let held = reach(self.inner.snapshot.grants(self.principal()));
        let held = match self.principal().kind() {
            PrincipalKind::Service => ProjectScope::All,
            _ => held,
        };
        match (held, self.scope().map(|scope| reach(scope.iter()))) {
            (held, None | Some(ProjectScope::All)) => held,
            (ProjectScope::All, Some(scope)) => scope,
            (ProjectScope::Only(mut held), Some(ProjectScope::Only(scope))) => {
                held.retain(|project| scope.contains(project));
                ProjectScope::Only(held)
            }
        }
    }

    /// Whether an admin marked the resource as sensitive: reading it is an audit event.
    #[must_use]
    pub fn is_sensitive(&self, resource: Resource<'_>) -> bool {
        self.inner.snapshot.is_sensitive(&resource)
    }

    /// The audit event of something that this caller did, and the permission that it took.
    #[must_use]
    pub fn event(&self, action: Action, operation: Operation, resource: &Resource<'_>) -> NewEvent {
        let mut event = self.event_without_operation(action, resource);
        event.add_detail("operation", operation.as_str());
        event
    }

    /// The audit event of something that this caller was not allowed to do.
    pub(crate) fn refused(&self, action: Action, resource: &Resource<'_>) -> NewEvent {
        NewEvent {
            outcome: Outcome::Denied,
            reason: Some("PERMISSION_DENIED".to_owned()),
            ..self.event_without_operation(action, resource)
        }
    }

    fn event_without_operation(&self, action: Action, resource: &Resource<'_>) -> NewEvent {
        let principal = self.principal().to_string();
        let (actor, on_behalf_of) = match &self.inner.identified.service {
            Some(service) if self.principal().kind() != PrincipalKind::Service => {
                (Principal::service(service).to_string(), Some(principal))
            }
            _ => (principal, None),
        };
        let mut details = Map::new();
        details.insert("via".to_owned(), Value::from(self.via().as_str()));
        if let Some(token) = self.token_id() {
            details.insert("token".to_owned(), Value::from(token));
        }
        NewEvent {
            id: self.inner.access.next_id(),
            at: self.inner.access.now(),
            project: resource.project_name().to_owned(),
            actor,
            on_behalf_of,
            action: action.as_str().to_owned(),
            resource_kind: resource.kind().word().to_owned(),
            resource: resource.name().to_owned(),
            outcome: Outcome::Success,
            reason: None,
            before_digest: None,
            after_digest: None,
            request_id: Some(self.request_id().to_owned()),
            source_address: self.source().map(|source| source.to_string()),
            details: Value::Object(details),
        }
    }
}

/// The projects that grants reach.
fn reach<'a>(grants: impl Iterator<Item = &'a Grant>) -> ProjectScope {
    let mut projects = Vec::new();
    for grant in grants {
        match &grant.place {
            Place::Installation => return ProjectScope::All,
            Place::Project(project) | Place::Endpoint { project, .. } => projects.push(project.clone()),
        }
    }
    projects.sort_unstable();
    projects.dedup();
    ProjectScope::Only(projects)
}
