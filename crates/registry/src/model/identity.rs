//! Users and service accounts.

use std::collections::BTreeSet;

use modelyard_auth::{Principal, check_identity_name};
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::run::check_text;
use crate::error::{Error, Result};

/// The longest display name, in bytes.
pub const MAX_DISPLAY_NAME_BYTES: usize = 256;
/// The most groups of one identity.
pub const MAX_GROUPS: usize = 200;

/// A person, or a program of the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityKind {
    /// A person.
    User,
    /// A program.
    ServiceAccount,
}

impl IdentityKind {
    /// The word in the database, in URLs and in the audit chain.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServiceAccount => "service-account",
        }
    }

    /// The name of the resource's kind.
    #[must_use]
    pub const fn resource_kind(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::ServiceAccount => "ServiceAccount",
        }
    }

    /// The kind of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::User, Self::ServiceAccount]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// Who has the name.
    #[must_use]
    pub fn principal(self, name: &str) -> Principal {
        match self {
            Self::User => Principal::user(name),
            Self::ServiceAccount => Principal::service_account(name),
        }
    }
}

/// What a user or service account shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySpec {
    /// What to call it.
    pub display_name: String,
    /// Whether it is let in. Its sessions and tokens end with it.
    pub enabled: bool,
    /// The groups that it is a member of. Who signs in at a provider has the provider's groups from then on.
    pub groups: BTreeSet<String>,
}

impl Default for IdentitySpec {
    fn default() -> Self {
        Self {
            display_name: String::new(),
            enabled: true,
            groups: BTreeSet::new(),
        }
    }
}

impl IdentitySpec {
    /// Checks names and lengths.
    pub fn check(&self, name: &str) -> Result<()> {
        let bad = |error: modelyard_auth::InvalidIdentityName| Error::request(error.to_string());
        check_identity_name(name).map_err(bad)?;
        check_text("display name of", name, &self.display_name, MAX_DISPLAY_NAME_BYTES)?;
        if self.groups.len() > MAX_GROUPS {
            return Err(Error::request(format!(
                "`{name}` would be in {} groups: use at most {MAX_GROUPS}",
                self.groups.len()
            )));
        }
        self.groups
            .iter()
            .try_for_each(|group| check_identity_name(group).map_err(bad))
    }
}

/// A user or service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Identity {
    /// `User` or `ServiceAccount`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it shall be.
    pub spec: IdentitySpec,
    /// Whether it can sign in with a password.
    pub has_password: bool,
    /// The OpenID provider at which it signs in.
    pub issuer: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// What is needed to verify a password.
#[derive(Clone)]
pub struct PasswordRecord {
    /// The hash; none: it has no password.
    pub hash: Option<String>,
    /// Whether it is let in.
    pub enabled: bool,
}
