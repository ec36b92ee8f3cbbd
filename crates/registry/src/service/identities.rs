//! Users and service accounts.

use modelyard_auth::{
    Action, Caller, Place, Principal, Resource, Subject, Via,
    audit::{NewEvent, Operation},
    password::{PasswordHash, check_password, hash},
};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        identity::{Identity, IdentityKind, IdentitySpec},
        page::{Page, PageRequest},
    },
};

/// The event of something that was done to what belongs to the installation.
pub(super) fn event_of(caller: &Caller, action: Action, operation: Operation, kind: &str, name: &str) -> NewEvent {
    let mut event = caller.event(action, operation, &Resource::INSTALLATION);
    kind.clone_into(&mut event.resource_kind);
    name.clone_into(&mut event.resource);
    event
}

impl Registry {
    /// Makes a user or service account, or changes it. Disabling one ends its sessions and tokens.
    pub async fn put_identity(
        &self,
        caller: &Caller,
        kind: IdentityKind,
        name: &str,
        spec: &IdentitySpec,
    ) -> Result<(Outcome, Identity)> {
        caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
        spec.check(name)?;
        if !spec.enabled && *caller.principal() == kind.principal(name) {
            return Err(Error::State(
                "you cannot disable yourself: let another admin do it".to_owned(),
            ));
        }
        let principal = kind.principal(name);
        self.guard_admins(caller, &principal)?;
        let snapshot = self.access.snapshot();
        let makes_more = snapshot.state().bindings.iter().any(|binding| {
            binding.grant.place == Place::Installation
                && matches!(&binding.subject, Subject::Group(group) if spec.groups.contains(group))
        });
        if makes_more {
            caller.authorize(Action::AccessWrite, Resource::INSTALLATION)?;
        }
        if !spec.enabled {
            self.keep_another_admin(&principal)?;
        }
        let event = event_of(caller, Action::IdentityWrite, Operation::Apply, kind.as_str(), name);
        let outcome = self.stores.identities.put_identity(kind, name, spec, &event).await?;
        if outcome != Outcome::Unchanged {
            self.know_change().await?;
            tracing::info!(kind = kind.as_str(), name, ?outcome, "identity declared");
        }
        Ok((outcome, self.find_identity(kind, name).await?))
    }

    /// Whoever changes somebody who decides about access decides about it, too.
    fn guard_admins(&self, caller: &Caller, principal: &Principal) -> Result<()> {
        let changed = self.access.as_if(principal.clone(), None, Via::Token);
        if changed.may(Action::AccessWrite, Resource::INSTALLATION) {
            caller.authorize(Action::AccessWrite, Resource::INSTALLATION)?;
        }
        Ok(())
    }

    /// A user or service account. Everybody may see themselves.
    pub async fn get_identity(&self, caller: &Caller, kind: IdentityKind, name: &str) -> Result<Identity> {
        if *caller.principal() != kind.principal(name) {
            caller.authorize(Action::IdentityRead, Resource::INSTALLATION)?;
        }
        self.find_identity(kind, name).await
    }

    async fn find_identity(&self, kind: IdentityKind, name: &str) -> Result<Identity> {
        let found = self.stores.identities.find_identity(kind, name).await?;
        found.ok_or_else(|| no_identity(kind, name))
    }

    /// The users or service accounts by name.
    pub async fn list_identities(
        &self,
        caller: &Caller,
        kind: IdentityKind,
        page: &PageRequest<String>,
    ) -> Result<Page<Identity>> {
        caller.authorize(Action::IdentityRead, Resource::INSTALLATION)?;
        self.stores.identities.list_identities(kind, page).await
    }

    /// Removes a user or service account, with its tokens, sessions and role bindings.
    pub async fn remove_identity(&self, caller: &Caller, kind: IdentityKind, name: &str) -> Result<()> {
        caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
        if *caller.principal() == kind.principal(name) {
            return Err(Error::State(
                "you cannot remove yourself: let another admin do it".to_owned(),
            ));
        }
        let principal = kind.principal(name);
        self.guard_admins(caller, &principal)?;
        self.keep_another_admin(&principal)?;
        let event = event_of(caller, Action::IdentityWrite, Operation::Delete, kind.as_str(), name);
        if !self.stores.identities.remove_identity(kind, name, &event).await? {
            return Err(no_identity(kind, name));
        }
        tracing::info!(kind = kind.as_str(), name, "identity removed");
        self.know_change().await
    }

    /// Makes a user who signs in with a password; whether there was none with its name.
    pub async fn create_user(&self, caller: &Caller, name: &str, password: &str) -> Result<bool> {
        caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
        let spec = IdentitySpec::default();
        spec.check(name)?;
        check_password(password, name).map_err(|error| Error::request(error.to_string()))?;
        // Bindings can be there before the user they speak of.
        self.guard_admins(caller, &IdentityKind::User.principal(name))?;
        let hash = self.hash_password(password.to_owned()).await?;
        let kind = IdentityKind::User.as_str();
        let event = event_of(caller, Action::IdentityWrite, Operation::Apply, kind, name);
        let is_new = self.stores.identities.create_user(name, &spec, &hash, &event).await?;
        if is_new {
            tracing::info!(user = name, "user created");
            self.know_change().await?;
        }
        Ok(is_new)
    }

    /// Sets a user's password, and ends its other sessions. Users set their own and show the present one; an admin sets
    /// anybody's, and the first one of who has none.
    pub async fn set_password(&self, caller: &Caller, name: &str, password: &str, present: Option<&str>) -> Result<()> {
        let is_own = *caller.principal() == IdentityKind::User.principal(name) && caller.via() != Via::Local;
        if !is_own {
            caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
            self.guard_admins(caller, &IdentityKind::User.principal(name))?;
        } else if caller.scope().is_some() {
            return Err(Error::State(
                "a token with a scope cannot change a password: sign in with the present one".to_owned(),
            ));
        }
        check_password(password, name).map_err(|error| Error::request(error.to_string()))?;
        if is_own {
            let record = self.stores.identities.find_password(name).await?;
            if record.is_none_or(|record| record.hash.is_none()) {
                // Who signs in elsewhere could otherwise stay in with a password after the account there has ended.
                caller.authorize(Action::IdentityWrite, Resource::INSTALLATION)?;
            } else {
                let present = present
                    .ok_or_else(|| Error::request("send `present_password`, too, to change your own password"))?;
                let request_id = Some(caller.request_id());
                self.check_password_of(name, present, caller.source(), request_id)
                    .await?;
            }
        }
        let hash = self.hash_password(password.to_owned()).await?;
        let event = event_of(
            caller,
            Action::IdentityWrite,
            Operation::ChangePassword,
            IdentityKind::User.as_str(),
            name,
        );
        if !self
            .stores
            .identities
            .set_password(name, &hash, caller.token_id(), &event)
            .await?
        {
            return Err(no_identity(IdentityKind::User, name));
        }
        tracing::info!(user = name, "password changed");
        self.know_change().await
    }

    /// Hashes a password, which is slow on purpose, on a thread that may block. Few at a time: each takes memory.
    pub(super) async fn hash_password(&self, password: String) -> Result<PasswordHash> {
        let _slot = self.hashing.acquire().await;
        let hashed = tokio::task::spawn_blocking(move || hash(&password)).await?;
        hashed.map_err(|error| Error::State(error.to_string()))
    }
}

fn no_identity(kind: IdentityKind, name: &str) -> Error {
    let what = match kind {
        IdentityKind::User => "user",
        IdentityKind::ServiceAccount => "service account",
    };
    Error::not_found(
        what,
        name,
        "list them with `modelyard get users` or `modelyard get service-accounts`",
    )
}
