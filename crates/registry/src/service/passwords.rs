//! Signing in with a name and a password, and ending a session.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use modelyard_auth::{
    Action, Caller, Resource, Throttle,
    audit::Operation,
    password::{PasswordHash, verify_nobody},
    token::{Token, TokenKind},
};
use modelyard_common::Fault as _;
use serde_json::json;

use super::{
    Registry,
    identities::event_of,
    openid::{Origin, SESSION_LIFETIME, anonymous_event},
};
use crate::{
    error::{Error, Result},
    model::identity::{IdentityKind, PasswordRecord},
    store::TokenMade,
};

/// The action in the audit chain.
pub(super) const SIGN_IN: &str = "sign-in";
/// The action in the audit chain.
const SIGN_OUT: &str = "sign-out";
/// The longest name that is looked up, in bytes.
const MAX_NAME_BYTES: usize = modelyard_auth::MAX_IDENTITY_BYTES;

/// Slows down those who guess passwords: by account, so that nobody guesses one from many places, and by address, so that
/// nobody tries many accounts from one.
#[derive(Default)]
pub(crate) struct Guessing {
    accounts: Throttle<String>,
    addresses: Throttle<IpAddr>,
}

impl Guessing {
    fn wait(&self, name: &str, source: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let account = self.accounts.wait(&name.to_owned(), now);
        let address = source.and_then(|source| self.addresses.wait(&source, now));
        account.max(address)
    }

    fn failed(&self, name: &str, source: Option<IpAddr>, now: Instant) {
        self.accounts.failed(name.to_owned(), now);
        if let Some(source) = source {
            self.addresses.failed(source, now);
        }
    }

    /// What an account did is forgiven with the right password. What came from the address is not: it may try others.
    fn succeeded(&self, name: &str) {
        self.accounts.succeeded(&name.to_owned());
    }
}

impl Registry {
    /// Whether a name and a password belong together, asked by another process for a client of its own.
    pub(crate) async fn verify_password(
        &self,
        caller: &Caller,
        name: &str,
        password: &str,
        source: Option<IpAddr>,
    ) -> Result<()> {
        caller.authorize(Action::AccessWatch, Resource::INSTALLATION)?;
        let origin = Origin {
            request_id: Some(caller.request_id().to_owned()),
            source,
        };
        self.check_and_note(name, password, &origin).await
    }

    /// Makes a browser session of a name and a password.
    pub async fn sign_in(&self, name: &str, password: &str, origin: &Origin) -> Result<Token> {
        self.check_password_of(name, password, origin.source, origin.request_id.as_deref())
            .await?;
        let now = self.clock.now();
        let token = Token::generate(TokenKind::Session).map_err(|error| Error::State(error.to_string()))?;
        let row = self.token_row(&token, "sign-in".to_owned(), None, Some(now + SESSION_LIFETIME));
        let user = IdentityKind::User.principal(name).to_string();
        let mut event = anonymous_event(&self.ids, now, SIGN_IN, origin);
        event.actor.clone_from(&user);
        IdentityKind::User.as_str().clone_into(&mut event.resource_kind);
        name.clone_into(&mut event.resource);
        event.details = json!({"via": "password", "token": row.id});
        let made = self
            .stores
            .tokens
            .create_token((IdentityKind::User, name), &row, &user, &event)
            .await?;
        match made {
            TokenMade::Made { revision, .. } => {
                tracing::info!(user = name, "signed in");
                self.know(revision).await;
                Ok(token)
            }
            TokenMade::NoOwner => Err(modelyard_auth::Error::Password.into()),
            TokenMade::TooMany => Err(Error::State(format!(
                "user `{name}` has too many sessions: end some first"
            ))),
        }
    }

    /// Ends the caller's session, or revokes the token that it came with.
    pub async fn sign_out(&self, caller: &Caller) -> Result<()> {
        let Some(id) = caller.token_id() else {
            return Err(Error::State(
                "there is no session to end: you did not come with one".to_owned(),
            ));
        };
        let mut event = event_of(
            caller,
            Action::IdentityWrite,
            Operation::Revoke,
            IdentityKind::User.as_str(),
            caller.principal().name(),
        );
        // It takes no permission.
        SIGN_OUT.clone_into(&mut event.action);
        if let Some(revision) = self.stores.tokens.revoke_token(id, &event).await? {
            self.know(revision).await;
        }
        Ok(())
    }

    /// Verifies, and writes down that it succeeded.
    async fn check_and_note(&self, name: &str, password: &str, origin: &Origin) -> Result<()> {
        self.check_password_of(name, password, origin.source, origin.request_id.as_deref())
            .await?;
        let mut event = anonymous_event(&self.ids, self.clock.now(), SIGN_IN, origin);
        event.actor = IdentityKind::User.principal(name).to_string();
        IdentityKind::User.as_str().clone_into(&mut event.resource_kind);
        name.clone_into(&mut event.resource);
        event.details = json!({"via": "password"});
        self.append(vec![event]).await
    }

    /// Verifies a password. Takes as long for a name that does not exist, and says the same.
    pub(super) async fn check_password_of(
        &self,
        name: &str,
        password: &str,
        source: Option<IpAddr>,
        request_id: Option<&str>,
    ) -> Result<()> {
        let origin = Origin {
            request_id: request_id.map(str::to_owned),
            source,
        };
        let name: String = name.chars().take(MAX_NAME_BYTES).collect();
        if let Some(wait) = self.guessing.wait(&name, source, Instant::now()) {
            let error = modelyard_auth::Error::Throttled { wait };
            let details = json!({"via": "password", "name": name});
            self.note_failure(SIGN_IN, error.reason(), &error.to_string(), &origin, details)
                .await;
            return Err(error.into());
        }
        let record = self.stores.identities.find_password(&name).await?;
        let (is_right, outdated) = self.verify(record, password.to_owned()).await?;
        if !is_right {
            self.guessing.failed(&name, source, Instant::now());
            let error = modelyard_auth::Error::Password;
            let details = json!({"via": "password", "name": name});
            self.note_failure(SIGN_IN, error.reason(), &error.to_string(), &origin, details)
                .await;
            return Err(error.into());
        }
        self.guessing.succeeded(&name);
        if let Some(old) = outdated {
            let new = self.hash_password(password.to_owned()).await?;
            self.stores.identities.renew_hash(&name, &old, &new).await?;
        }
        Ok(())
    }

    /// Whether the password is right, and the stored hash where its parameters are of an earlier version.
    async fn verify(&self, record: Option<PasswordRecord>, password: String) -> Result<(bool, Option<String>)> {
        let _slot = self.hashing.acquire().await;
        let verified = tokio::task::spawn_blocking(move || {
            let enabled = record.as_ref().is_some_and(|record| record.enabled);
            let Some(stored) = record.and_then(|record| record.hash) else {
                return (verify_nobody(&password), None);
            };
            let hash = PasswordHash::from_stored(stored.as_str());
            let is_right = hash.verify(&password) && enabled;
            (is_right, (is_right && hash.is_outdated()).then_some(stored))
        });
        Ok(verified.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_slows_down_the_account_and_the_address() {
        let guessing = Guessing::default();
        let now = Instant::now();
        let [here, there]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        for index in 0..7 {
            guessing.failed(&format!("user{index}"), Some(here), now);
            guessing.failed("alice", None, now);
        }
        assert!(guessing.wait("bob", Some(here), now).is_some());
        assert!(guessing.wait("alice", Some(there), now).is_some());
        assert!(guessing.wait("bob", Some(there), now).is_none());
        guessing.succeeded("alice");
        assert!(guessing.wait("alice", Some(there), now).is_none());
        assert!(guessing.wait("alice", Some(here), now).is_some());
    }
}
