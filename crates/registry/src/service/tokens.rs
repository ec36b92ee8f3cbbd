//! Tokens: made, listed and revoked.

use std::time::Duration;

use modelyard_auth::{
    Action, Caller, Grant, Principal, PrincipalKind, Resource, Via,
    audit::Operation,
    is_built_in_role,
    token::{Token, TokenKind},
};
use modelyard_common::{Timestamp, name::check_name};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Registry, identities::event_of};
use crate::{
    error::{Error, Result},
    model::{
        identity::IdentityKind,
        page::{Page, PageRequest},
        token::AccessToken,
    },
    store::{TokenMade, TokenRow},
};

/// How long a token lives that does not say.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// The longest lifetime of a token that ends.
const MAX_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// The most grants of a scope.
const MAX_SCOPE: usize = 64;
/// The kind in the audit chain.
const TOKEN: &str = "token";

/// A token to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenOrder {
    /// What to call it.
    pub name: String,
    /// Whose it shall be: `service-account:NAME`; your own where it is left out.
    #[schema(value_type = Option<String>)]
    pub owner: Option<Principal>,
    /// The most that it shall open, as `ROLE@PLACE`; all that its owner may where it is left out.
    #[schema(value_type = Option<Vec<String>>)]
    pub scope: Option<Vec<Grant>>,
    /// How long it shall live, such as `30days`; 90 days where it is left out.
    pub expires_in: Option<String>,
    /// Whether it lives until it is revoked.
    pub never_expires: bool,
}

impl TokenOrder {
    fn expires_at(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        let lifetime = match &self.expires_in {
            Some(_) if self.never_expires => {
                return Err(Error::request("send `expires_in` or `never_expires`, not both"));
            }
            Some(text) => humantime::parse_duration(text).map_err(|error| {
                Error::request(format!("expires_in `{text}` is no duration, such as `30days`: {error}"))
            })?,
            None if self.never_expires => return Ok(None),
            None => DEFAULT_LIFETIME,
        };
        if lifetime.is_zero() || lifetime > MAX_LIFETIME {
            return Err(Error::request(
                "a token lives for a second to ten years, or until it is revoked: send `never_expires`",
            ));
        }
        Ok(Some(now + lifetime))
    }
}

fn owner_kind(owner: &Principal) -> Option<IdentityKind> {
    match owner.kind() {
        PrincipalKind::User => Some(IdentityKind::User),
        PrincipalKind::ServiceAccount => Some(IdentityKind::ServiceAccount),
        PrincipalKind::Service | PrincipalKind::Anonymous => None,
    }
}

/// Refuses what opens nothing because it is misspelled. Whether there is a project without a role for the caller is not told.
fn check_grant(caller: &Caller, grant: &Grant) -> Result<()> {
    let is_known = is_built_in_role(&grant.role) || caller.snapshot().state().roles.contains_key(&grant.role);
    if !is_known {
        return Err(Error::request(format!(
            "the scope `{grant}` names a role that does not exist: list them with `modelyard get roles`"
        )));
    }
    match grant.place.project() {
        Some(project) if !caller.sees(project) => Err(modelyard_auth::Error::Project(project.to_owned()).into()),
        _ => Ok(()),
    }
}

impl Registry {
    /// Makes an API token. Everybody makes their own, as long as they came with all their rights; an admin makes those of
    /// service accounts.
    pub async fn create_token(&self, caller: &Caller, order: &TokenOrder) -> Result<(Token, AccessToken)> {
        let owner = order.owner.clone().unwrap_or_else(|| caller.principal().clone());
        let Some(kind) = owner_kind(&owner) else {
            return Err(Error::request(format!(
                "`{owner}` can have no tokens: name a service account"
            )));
        };
        if owner != *caller.principal() {
            caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
            if kind == IdentityKind::User {
                return Err(Error::request(format!(
                    "tokens of `{owner}` are made by that user alone: make one of a service account"
                )));
            }
        } else if caller.scope().is_some() || matches!(caller.via(), Via::Exchange | Via::Service) {
            // Or what is narrow or short-lived could make itself wide or lasting.
            return Err(Error::State(
                "a token with a scope, or one that was exchanged, cannot make tokens: sign in with all your rights"
                    .to_owned(),
            ));
        }
        check_name("a token", &order.name)?;
        if order
            .scope
            .as_ref()
            .is_some_and(|scope| scope.len() > MAX_SCOPE || scope.is_empty())
        {
            return Err(Error::request(format!(
                "a scope has 1 to {MAX_SCOPE} grants: leave it out for all rights"
            )));
        }
        for grant in order.scope.iter().flatten() {
            check_grant(caller, grant)?;
        }
        let expires_at = order.expires_at(self.clock.now())?;
        let token = Token::generate(TokenKind::Api).map_err(|error| Error::State(error.to_string()))?;
        let row = self.token_row(&token, order.name.clone(), order.scope.clone(), expires_at);
        let mut event = event_of(caller, Action::IdentityWrite, Operation::Create, TOKEN, &row.id);
        event.add_detail("owner", owner.to_string());
        event.add_detail("name", order.name.as_str());
        if let Some(scope) = &order.scope {
            let scope: Vec<String> = scope.iter().map(ToString::to_string).collect();
            event.add_detail("scope", scope.join(" "));
        }
        let created_by = caller.principal().to_string();
        let made = self
            .stores
            .tokens
            .create_token((kind, owner.name()), &row, &created_by, &event)
            .await?;
        match made {
            TokenMade::Made { token: made, revision } => {
                self.know(revision).await;
                tracing::info!(token = made.id, owner = %owner, "token made");
                Ok((token, *made))
            }
            TokenMade::NoOwner => Err(Error::not_found(
                "owner",
                owner.to_string(),
                "create it first, and enable it",
            )),
            TokenMade::TooMany => Err(Error::State(format!(
                "`{owner}` has as many tokens as it may have: revoke some first"
            ))),
        }
    }

    /// The tokens of an owner, the newest first. Everybody sees their own; an admin sees those of all.
    pub async fn list_tokens(
        &self,
        caller: &Caller,
        owner: Option<&Principal>,
        page: &PageRequest<String>,
    ) -> Result<Page<AccessToken>> {
        let own = caller.principal();
        let owner = if owner.is_some_and(|owner| owner != own) {
            caller.authorize(Action::IdentityRead, Resource::INSTALLATION)?;
            owner
        } else if owner.is_none() && caller.may(Action::IdentityRead, Resource::INSTALLATION) {
            None
        } else {
            Some(own)
        };
        self.stores.tokens.list_tokens(owner, page).await
    }

    /// Revokes a token; at once here, and within moments in every process. Everybody revokes their own, an admin any.
    pub async fn revoke_token(&self, caller: &Caller, id: &str) -> Result<()> {
        let unknown = || Error::not_found("token", id, "list them with `modelyard token list`");
        let token = self.stores.tokens.find_token(id).await?;
        let is_own = token.as_ref().is_some_and(|token| token.owner == *caller.principal());
        if !is_own && !caller.may(Action::IdentityWrite, Resource::INSTALLATION) {
            // Whether others have such a token is not told.
            return Err(unknown());
        }
        let token = token.ok_or_else(unknown)?;
        let mut event = event_of(caller, Action::IdentityWrite, Operation::Revoke, TOKEN, id);
        event.add_detail("owner", token.owner.to_string());
        if let Some(revision) = self.stores.tokens.revoke_token(id, &event).await? {
            self.know(revision).await;
            tracing::info!(token = id, "token revoked");
        }
        Ok(())
    }

    /// A token as it is stored.
    pub(super) fn token_row(
        &self,
        token: &Token,
        name: String,
        scope: Option<Vec<Grant>>,
        expires_at: Option<Timestamp>,
    ) -> TokenRow {
        TokenRow {
            id: self.ids.next().to_string(),
            hash: token.hash(),
            kind: token.kind(),
            name,
            scope,
            expires_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_unless_it_is_said_otherwise() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let order = |expires_in: Option<&str>, never_expires| TokenOrder {
            expires_in: expires_in.map(str::to_owned),
            never_expires,
            ..TokenOrder::default()
        };
        assert_eq!(
            order(None, false).expires_at(now).unwrap(),
            Some(now + DEFAULT_LIFETIME)
        );
        assert_eq!(order(None, true).expires_at(now).unwrap(), None);
        let hour = Duration::from_hours(1);
        assert_eq!(order(Some("1h"), false).expires_at(now).unwrap(), Some(now + hour));
        for (expires_in, never) in [("1h", true), ("0s", false), ("tomorrow", false), ("20years", false)] {
            assert!(order(Some(expires_in), never).expires_at(now).is_err(), "{expires_in}");
        }
    }
}
