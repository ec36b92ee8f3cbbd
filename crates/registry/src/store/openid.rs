//! Those who sign in at OpenID providers, and what is made for them: users, sessions, exchanged tokens, and the roles that
//! the configuration gives to groups.
//!
//! Each method raises the counter `access` first and holds its row to the commit: two browsers of one new user become one
//! user, and nobody sees half of a sign-in.

use std::collections::BTreeSet;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{Binding, Principal, audit::NewEvent};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use super::{SqlStore, audit::with_detail, to_json, tokens::TokenRow};
use crate::{
    error::Result,
    model::{
        access::{AccessKind, RoleBindingSpec},
        identity::IdentityKind,
    },
    openid,
};

/// The most exchanged tokens of a service account that have not ended.
const MAX_EXCHANGED: i64 = 1000;

const USER: &str = IdentityKind::User.as_str();
const SERVICE_ACCOUNT: &str = IdentityKind::ServiceAccount.as_str();
const BINDING: &str = AccessKind::RoleBinding.as_str();

/// A verified sign-in.
#[derive(Debug, Clone)]
pub struct NewSignIn<'a> {
    /// Who.
    pub profile: &'a openid::Profile,
    /// Whether somebody new becomes a user.
    pub may_create: bool,
    /// The session.
    pub token: TokenRow,
    /// The event; the actor is filled in.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// An accepted exchange.
#[derive(Debug, Clone)]
pub struct NewExchange<'a> {
    /// The service account.
    pub service_account: &'a str,
    /// The token.
    pub token: TokenRow,
    /// The event.
    pub event: NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// What became of a sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignedIn {
    /// The user of this name is in, since this revision of who may do what.
    As {
        /// The name.
        name: String,
        /// The revision.
        revision: u64,
    },
    /// Not let in, and nothing was changed.
    Refused(openid::Error),
}

/// What became of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangedAs {
    /// The token counts since this revision of who may do what.
    Made(u64),
    /// There is no such service account, or it is disabled.
    NoServiceAccount,
    /// It has as many tokens as it may have.
    TooMany,
}

/// Those who sign in elsewhere.
#[async_trait]
pub trait SignInStore: Send + Sync {
    /// Makes or updates the user, and its session.
    async fn sign_in(&self, new: &NewSignIn<'_>) -> Result<SignedIn>;
    /// Makes a token for a service account.
    async fn exchange(&self, new: &NewExchange<'_>) -> Result<ExchangedAs>;
    /// Makes the roles of groups those of the configuration. Whether that changed anything.
    async fn set_group_roles(&self, bindings: &[Binding], event: &NewEvent, now: Timestamp) -> Result<bool>;
}

#[derive(sqlx::FromRow)]
struct IdentityRow {
    name: String,
    enabled: i64,
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The user behind a profile: made, or brought up to date. None where it is refused.
    async fn user_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewSignIn<'_>,
    ) -> Result<std::result::Result<(String, bool), openid::Error>> {
        let profile = new.profile;
        let groups = to_json("groups", &profile.groups)?;
        // The pair of issuer and subject is who it is. A name can be given to another at the provider, and is kept here.
        let known: Option<IdentityRow> =
            sqlx::query_as("SELECT name, enabled FROM identity WHERE kind = $1 AND issuer = $2 AND subject = $3")
                .bind(USER)
                .bind(&profile.issuer)
                .bind(&profile.subject)
                .fetch_optional(&mut **tx)
                .await?;
        if let Some(known) = known {
            if known.enabled == 0 {
                return Ok(Err(openid::Error::Disabled(known.name)));
            }
            sqlx::query(
                "UPDATE identity SET display_name = $1, \"groups\" = $2, updated_at = $3 WHERE kind = $4 AND name = $5",
            )
            .bind(&profile.display_name)
            .bind(groups)
            .bind(new.now.as_micros())
            .bind(USER)
            .bind(&known.name)
            .execute(&mut **tx)
            .await?;
            return Ok(Ok((known.name, false)));
        }
        if !new.may_create {
            return Ok(Err(openid::Error::NoUser));
        }
        let made = sqlx::query(
            "INSERT INTO identity (kind, name, display_name, enabled, password_hash, password_revision, \"groups\", issuer,
                                   subject, created_at, updated_at)
             VALUES ($1, $2, $3, 1, NULL, 0, $4, $5, $6, $7, $7)
             ON CONFLICT (kind, name) DO NOTHING",
        )
        .bind(USER)
        .bind(&profile.name)
        .bind(&profile.display_name)
        .bind(groups)
        .bind(&profile.issuer)
        .bind(&profile.subject)
        .bind(new.now.as_micros())
        .execute(&mut **tx)
        .await?;
        if made.rows_affected() == 0 {
            return Ok(Err(openid::Error::NameTaken(profile.name.clone())));
        }
        Ok(Ok((profile.name.clone(), true)))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl SignInStore for SqlStore<P> {
    async fn sign_in(&self, new: &NewSignIn<'_>) -> Result<SignedIn> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::raise_access(&mut tx).await?;
        let (name, is_new) = match Self::user_of(&mut tx, new).await? {
            Ok(user) => user,
            Err(refusal) => {
                tx.rollback().await?;
                return Ok(SignedIn::Refused(refusal));
            }
        };
        let user = Principal::user(&name).to_string();
        Self::insert_access_token(&mut tx, (IdentityKind::User, &name), &new.token, &user, new.now).await?;
        let mut event = with_detail(&new.event, "new_user", is_new);
        event.actor = user;
        event.resource = name.clone();
        Self::append_audit(&mut tx, &event).await?;
        tx.commit().await?;
        Ok(SignedIn::As { name, revision })
    }

    async fn exchange(&self, new: &NewExchange<'_>) -> Result<ExchangedAs> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::raise_access(&mut tx).await?;
        let enabled: Option<i64> = sqlx::query_scalar("SELECT enabled FROM identity WHERE kind = $1 AND name = $2")
            .bind(SERVICE_ACCOUNT)
            .bind(new.service_account)
            .fetch_optional(&mut *tx)
            .await?;
        if enabled.is_none_or(|enabled| enabled == 0) {
            tx.rollback().await?;
            return Ok(ExchangedAs::NoServiceAccount);
        }
        let live: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM access_token
             WHERE owner_kind = $1 AND owner = $2 AND kind = $3 AND revoked_at IS NULL AND expires_at > $4",
        )
        .bind(SERVICE_ACCOUNT)
        .bind(new.service_account)
        .bind(new.token.kind.as_str())
        .bind(new.now.as_micros())
        .fetch_one(&mut *tx)
        .await?;
        if live >= MAX_EXCHANGED {
            tx.rollback().await?;
            return Ok(ExchangedAs::TooMany);
        }
        let owner = Principal::service_account(new.service_account).to_string();
        let account = (IdentityKind::ServiceAccount, new.service_account);
        Self::insert_access_token(&mut tx, account, &new.token, &owner, new.now).await?;
        Self::append_audit(&mut tx, &new.event).await?;
        tx.commit().await?;
        Ok(ExchangedAs::Made(revision))
    }

    async fn set_group_roles(&self, bindings: &[Binding], event: &NewEvent, now: Timestamp) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let pattern = format!("{}%", openid::BINDING_PREFIX);
        let query = "SELECT name FROM access_resource WHERE kind = $1 AND project = '' AND name LIKE $2";
        let present: Vec<String> = sqlx::query_scalar(query)
            .bind(BINDING)
            .bind(pattern)
            .fetch_all(&mut *tx)
            .await?;
        let present: BTreeSet<String> = present.into_iter().collect();
        // The names carry what they bind: one with the same name is the same.
        let wanted: BTreeSet<&str> = bindings.iter().map(|binding| binding.name.as_str()).collect();
        let removed: Vec<&String> = present.iter().filter(|name| !wanted.contains(name.as_str())).collect();
        let added: Vec<&Binding> = bindings
            .iter()
            .filter(|binding| !present.contains(&binding.name))
            .collect();
        if removed.is_empty() && added.is_empty() {
            tx.rollback().await?;
            return Ok(false);
        }
        for name in &removed {
            sqlx::query("DELETE FROM access_resource WHERE kind = $1 AND project = '' AND name = $2")
                .bind(BINDING)
                .bind(name.as_str())
                .execute(&mut *tx)
                .await?;
        }
        for binding in &added {
            let spec = RoleBindingSpec {
                subject: binding.subject.clone(),
                role: binding.grant.role.clone(),
                place: binding.grant.place.to_string(),
            };
            sqlx::query(
                "INSERT INTO access_resource (kind, project, name, spec, subject, created_at, updated_at)
                 VALUES ($1, '', $2, $3, $4, $5, $5)
                 ON CONFLICT (kind, project, name) DO NOTHING",
            )
            .bind(BINDING)
            .bind(&binding.name)
            .bind(to_json("spec", &spec)?)
            .bind(binding.subject.to_string())
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
        }
        let event = with_detail(event, "added", added.len());
        Self::append_audit(&mut tx, &with_detail(&event, "removed", removed.len())).await?;
        tx.commit().await?;
        Ok(true)
    }
}
