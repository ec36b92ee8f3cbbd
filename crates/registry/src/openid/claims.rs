//! What a verified token says.

use std::collections::BTreeSet;

use modelyard_auth::check_identity_name;
use serde_json::{Map, Value};

use super::{config::Provider, error::Error};

/// The most groups of a user; what comes after is left out.
const MAX_GROUPS: usize = 500;
/// The longest name to be shown, in bytes.
const MAX_DISPLAY_BYTES: usize = 256;
/// The longest subject, in bytes: OpenID Connect allows 255 characters.
const MAX_SUBJECT_BYTES: usize = 255;

/// What a token says. Only verification makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn new(claims: Map<String, Value>) -> Self {
        Self(claims)
    }

    /// A claim: by its name, or by a JSON pointer.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let Some(pointer) = name.strip_prefix('/') else {
            return self.0.get(name);
        };
        let mut steps = pointer
            .split('/')
            .map(|step| step.replace("~1", "/").replace("~0", "~"));
        let first = self.0.get(&steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(&step))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// Takes over what another source says and this one does not.
    pub(super) fn fill(&mut self, others: Map<String, Value>) {
        for (name, value) in others {
            self.0.entry(name).or_insert(value);
        }
    }

    /// Who it is about.
    pub(super) fn subject(&self) -> Option<&str> {
        self.text("sub")
            .filter(|subject| !subject.is_empty() && subject.len() <= MAX_SUBJECT_BYTES)
    }
}

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The provider's name of itself.
    pub issuer: String,
    /// Who it is there. With the issuer it is the identity; names can change hands.
    pub subject: String,
    /// The name for a new user.
    pub name: String,
    /// The name to be shown.
    pub display_name: String,
    /// The groups.
    pub groups: BTreeSet<String>,
}

/// Whether everything that a profile needs is there, so that the provider need not be asked for more.
pub(super) fn is_complete(provider: &Provider, claims: &Claims) -> bool {
    user_name(provider, claims).is_ok() && claims.get(&provider.groups_claim).is_some() && claims.get("name").is_some()
}

fn user_name<'a>(provider: &Provider, claims: &'a Claims) -> Result<&'a str, String> {
    let name = match &provider.name_claim {
        Some(claim) => claims
            .text(claim)
            .ok_or_else(|| format!("there is no text in the claim `{claim}`"))?,
        None => claims
            .text("preferred_username")
            .or_else(|| {
                let is_verified = claims.get("email_verified") == Some(&Value::Bool(true));
                claims.text("email").filter(|_| is_verified)
            })
            .ok_or("there is neither the claim `preferred_username` nor an `email` that was verified")?,
    };
    check_identity_name(name).map_err(|error| error.to_string())?;
    Ok(name)
}

/// The groups in a claim. Names that cannot be those of groups are passed over: nothing could be bound to them.
fn groups(provider: &Provider, claims: &Claims) -> BTreeSet<String> {
    let values = match claims.get(&provider.groups_claim) {
        Some(Value::Array(values)) => values.as_slice(),
        Some(value @ Value::String(_)) => std::slice::from_ref(value),
        _ => &[],
    };
    let names = values.iter().take(MAX_GROUPS).filter_map(Value::as_str);
    // Keycloak writes the path of a group with a slash before it.
    let names = names.map(|name| format!("{}{}", provider.group_prefix, name.strip_prefix('/').unwrap_or(name)));
    names.filter(|name| check_identity_name(name).is_ok()).collect()
}

impl Profile {
    /// Reads the claims of a verified token.
    pub(super) fn read(provider: &Provider, claims: &Claims) -> Result<Self, Error> {
        let no_name = |problem: String| Error::NoName {
            name: provider.name.clone(),
            problem,
        };
        let subject = claims
            .subject()
            .ok_or_else(|| no_name("there is no usable claim `sub`".to_owned()))?;
        let name = user_name(provider, claims).map_err(no_name)?;
        let groups = groups(provider, claims);
        let allowed = &provider.allowed_groups;
        let is_allowed = |group: &String| groups.contains(&format!("{}{group}", provider.group_prefix));
        if !allowed.is_empty() && !allowed.iter().any(is_allowed) {
            return Err(Error::NotAllowed);
        }
        let display_name = claims.text("name").unwrap_or(name).trim();
        let display_name: String = display_name
            .chars()
            .filter(|character| !character.is_control())
            .collect();
        let end = display_name.floor_char_boundary(MAX_DISPLAY_BYTES);
        Ok(Self {
            issuer: provider.issuer.clone(),
            subject: subject.to_owned(),
            name: name.to_owned(),
            display_name: display_name.get(..end).unwrap_or_default().to_owned(),
            groups,
        })
    }
}
