//! Identities, roles and policies as the registry hands them to every process: a plain value at one revision.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    str::FromStr,
};

use modelyard_common::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    principal::{Principal, check_identity_name},
    resource::{Kind, Resource},
    token::{TokenHash, TokenKind},
};

/// The roles that are always there.
pub const BUILT_IN_ROLES: [&str; 7] = [
    "viewer",
    "contributor",
    "deployer",
    "approver",
    "auditor",
    "caller",
    "admin",
];

/// The role that may do everything where it is held.
pub const ADMIN: &str = "admin";

/// Where a role is held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Everywhere, also in projects that will be made.
    Installation,
    /// In a project.
    Project(String),
    /// On one endpoint of a project.
    Endpoint {
        /// The project.
        project: String,
        /// The endpoint.
        name: String,
    },
}

impl Place {
    /// Whether what is held here counts for a resource.
    #[must_use]
    pub fn covers(&self, resource: &Resource<'_>) -> bool {
        match self {
            Self::Installation => true,
            Self::Project(project) => resource.kind() != Kind::Installation && project == resource.project_name(),
            Self::Endpoint { project, name } => {
                resource.kind() == Kind::Endpoint && project == resource.project_name() && name == resource.name()
            }
        }
    }

    /// The project that it is in; none for the installation.
    #[must_use]
    pub fn project(&self) -> Option<&str> {
        match self {
            Self::Installation => None,
            Self::Project(project) | Self::Endpoint { project, .. } => Some(project),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installation => f.write_str("*"),
            Self::Project(project) => f.write_str(project),
            Self::Endpoint { project, name } => write!(f, "{project}/endpoints/{name}"),
        }
    }
}

/// A role at a place, written as `ROLE@*`, `ROLE@PROJECT` or `ROLE@PROJECT/endpoints/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The role.
    pub role: String,
    /// Where it is held.
    pub place: Place,
}

/// A text that is no grant.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no grant: write it as ROLE@PROJECT, ROLE@PROJECT/endpoints/NAME, or ROLE@* for the installation")]
pub struct InvalidGrant(String);

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.role, self.place)
    }
}

impl FromStr for Grant {
    type Err = InvalidGrant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidGrant(text.chars().take(200).flat_map(char::escape_default).collect());
        let name = |name: &str| modelyard_common::name::check_name("a part of a grant", name).map_err(|_| invalid());
        let (role, place) = text.split_once('@').ok_or_else(invalid)?;
        name(role)?;
        let place = match place.split_once('/') {
            None if place == "*" => Place::Installation,
            None => {
                name(place)?;
                Place::Project(place.to_owned())
            }
            Some((project, rest)) => {
                let endpoint = rest.strip_prefix("endpoints/").ok_or_else(invalid)?;
                name(project)?;
                name(endpoint)?;
                Place::Endpoint {
                    project: project.to_owned(),
                    name: endpoint.to_owned(),
                }
            }
        };
        Ok(Self {
            role: role.to_owned(),
            place,
        })
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Who holds a grant, written as `user:NAME`, `service-account:NAME` or `group:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// One user or service account.
    Principal(Principal),
    /// All members of a group.
    Group(String),
}

/// A text that is no subject.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` cannot hold a role: write it as user:NAME, service-account:NAME or group:NAME")]
pub struct InvalidSubject(String);

const GROUP_PREFIX: &str = "group:";

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(principal) => principal.fmt(f),
            Self::Group(name) => write!(f, "{GROUP_PREFIX}{name}"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSubject(text.chars().take(200).flat_map(char::escape_default).collect());
        if let Some(group) = text.strip_prefix(GROUP_PREFIX) {
            check_identity_name(group).map_err(|_| invalid())?;
            return Ok(Self::Group(group.to_owned()));
        }
        let principal: Principal = text.parse().map_err(|_| invalid())?;
        match principal.entity_type() {
            Some("User" | "ServiceAccount") => Ok(Self::Principal(principal)),
            _ => Err(invalid()),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A subject and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Its name.
    pub name: String,
    /// Who.
    pub subject: Subject,
    /// What, and where.
    pub grant: Grant,
}

/// A user or service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Whether it is let in.
    pub enabled: bool,
    /// The groups that it is a member of.
    pub groups: BTreeSet<String>,
    /// Raised with each change of the password, so that what was remembered of the old one counts no more.
    pub password_revision: u64,
}

/// What a token opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Its id, by which it is listed and revoked.
    pub id: String,
    /// Whose it is.
    pub owner: Principal,
    /// An API token, a browser session, or one exchanged for another's token.
    pub kind: TokenKind,
    /// The most that it opens; none: all that the owner may.
    pub scope: Option<Vec<Grant>>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A resource as a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its project.
    pub project: String,
    /// Its name.
    pub name: String,
}

/// Everything that decisions need.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The projects.
    pub projects: BTreeSet<String>,
    /// Users and service accounts.
    pub identities: BTreeMap<Principal, Identity>,
    /// Tokens that have not ended, by the hash of their text.
    pub tokens: HashMap<TokenHash, TokenEntry>,
    /// Who holds what.
    pub bindings: Vec<Binding>,
    /// The roles that an admin made: the actions of each.
    pub roles: BTreeMap<String, BTreeSet<String>>,
    /// The policies that an admin added, as Cedar text, by name.
    pub policies: BTreeMap<String, String>,
    /// What an admin marked as sensitive.
    pub sensitive: BTreeSet<ResourceKey>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_and_subjects_are_read_as_they_are_written() {
        for text in ["viewer@*", "deployer@default", "caller@default/endpoints/flight-delay"] {
            assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
        }
        for text in [
            "viewer",
            "@x",
            "viewer@",
            "viewer@a/b",
            "viewer@a/endpoints/",
            "viewer@../x",
            "a b@c",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text}");
        }
        for text in ["user:alice", "group:team/data", "service-account:ci"] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for text in ["service:gateway", "anonymous", "group:", "alice"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_place_covers_what_is_in_it() {
        let endpoint = Resource::named(Kind::Endpoint, "a", "x");
        let place = |text: &str| format!("r@{text}").parse::<Grant>().unwrap().place;
        for (text, covers) in [
            ("*", true),
            ("a", true),
            ("b", false),
            ("a/endpoints/x", true),
            ("a/endpoints/y", false),
        ] {
            assert_eq!(place(text).covers(&endpoint), covers, "{text}");
        }
        assert!(!place("a").covers(&Resource::INSTALLATION));
        assert!(!place("a/endpoints/x").covers(&Resource::project("a")));
        assert!(!place("a/endpoints/x").covers(&Resource::named(Kind::Model, "a", "x")));
    }
}
