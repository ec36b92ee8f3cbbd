//! Who does something.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kind of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrincipalKind {
    /// A person.
    User,
    /// A program of the users.
    ServiceAccount,
    /// One of Modelyard's own services.
    Service,
    /// Nobody who is known.
    Anonymous,
}

/// Somebody, written as `user:alice`, `service-account:ci`, `service:orchestrator` or `anonymous`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    kind: PrincipalKind,
    name: String,
}

/// A text that names nobody.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` names nobody: write it as user:NAME or service-account:NAME")]
pub struct InvalidPrincipal(String);

const USER: &str = "user";
const SERVICE_ACCOUNT: &str = "service-account";
const SERVICE: &str = "service";
const ANONYMOUS: &str = "anonymous";

impl Principal {
    /// A person.
    pub fn user(name: impl Into<String>) -> Self {
        Self::new(PrincipalKind::User, name)
    }

    /// A program of the users.
    pub fn service_account(name: impl Into<String>) -> Self {
        Self::new(PrincipalKind::ServiceAccount, name)
    }

    /// One of our services.
    pub fn service(name: impl Into<String>) -> Self {
        Self::new(PrincipalKind::Service, name)
    }

    /// Nobody who is known.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(PrincipalKind::Anonymous, "")
    }

    fn new(kind: PrincipalKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// Its name, unique among its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The entity type in the schema; none for nobody, who may nothing.
    #[must_use]
    pub const fn entity_type(&self) -> Option<&'static str> {
        match self.kind {
            PrincipalKind::User => Some("User"),
            PrincipalKind::ServiceAccount => Some("ServiceAccount"),
            PrincipalKind::Service => Some("Service"),
            PrincipalKind::Anonymous => None,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.kind {
            PrincipalKind::User => USER,
            PrincipalKind::ServiceAccount => SERVICE_ACCOUNT,
            PrincipalKind::Service => SERVICE,
            PrincipalKind::Anonymous => return f.write_str(ANONYMOUS),
        };
        write!(f, "{word}:{}", self.name)
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPrincipal(text.chars().take(200).flat_map(char::escape_default).collect());
        if text == ANONYMOUS {
            return Ok(Self::anonymous());
        }
        let (word, name) = text.split_once(':').ok_or_else(invalid)?;
        let kind = match word {
            USER => PrincipalKind::User,
            SERVICE_ACCOUNT => PrincipalKind::ServiceAccount,
            SERVICE => PrincipalKind::Service,
            _ => return Err(invalid()),
        };
        if check_identity_name(name).is_err() {
            return Err(invalid());
        }
        Ok(Self::new(kind, name))
    }
}

impl Serialize for Principal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Principal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The longest name of a user, service account or group, in bytes. Mail addresses fit.
pub const MAX_IDENTITY_BYTES: usize = 254;

/// A name that no user, service account or group can have.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` cannot name a user, service account or group: use 1 to {MAX_IDENTITY_BYTES} letters, digits and `-_.@+/`, beginning with a letter or digit"
)]
pub struct InvalidIdentityName(String);

/// Checks the name of a user, service account or group. Mail addresses and the paths of groups at identity providers are
/// names; nothing that could break a line or a policy is.
pub fn check_identity_name(name: &str) -> Result<(), InvalidIdentityName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+' | '/');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= MAX_IDENTITY_BYTES && name.chars().all(allowed) {
        return Ok(());
    }
    Err(InvalidIdentityName(
        name.chars().take(200).flat_map(char::escape_default).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_read_as_they_are_written() {
        for text in [
            "user:alice",
            "user:a@b.example",
            "service-account:ci",
            "service:gateway",
            "anonymous",
        ] {
            assert_eq!(text.parse::<Principal>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "alice",
            "user:",
            "user:a b",
            "user:a\nb",
            "root:x",
            "user:\"x",
            "user:a:b",
        ] {
            assert!(text.parse::<Principal>().is_err(), "{text}");
        }
    }
}
