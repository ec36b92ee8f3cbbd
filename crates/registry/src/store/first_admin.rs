//! The admin of the first start.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{ADMIN, Subject, audit::NewEvent, password::PasswordHash};
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::{SqlStore, json, to_json, tokens::TokenRow};
use crate::{
    error::Result,
    model::{
        access::{AccessKind, RoleBindingSpec},
        identity::IdentityKind,
    },
};

/// The place that is the whole installation.
const EVERYWHERE: &str = "*";

/// An admin to be made.
#[derive(Debug, Clone)]
pub struct FirstAdmin {
    /// The name, which is also that of the role binding.
    pub name: &'static str,
    /// The password, where the configuration has one.
    pub password: Option<PasswordHash>,
    /// The token.
    pub token: TokenRow,
    /// The event.
    pub event: NewEvent,
}

/// The admin of the first start.
#[async_trait]
pub trait FirstAdminStore: Send + Sync {
    /// Makes an admin of the installation, with a token, where there is none; whether it did. Of several processes that
    /// start at the same time, one does.
    async fn make_first_admin(&self, admin: &FirstAdmin) -> Result<bool>;
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl FirstAdminStore for SqlStore<P> {
    async fn make_first_admin(&self, admin: &FirstAdmin) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let specs: Vec<String> = sqlx::query_scalar(
            "SELECT spec FROM access_resource WHERE kind = $1 AND project = '' AND name NOT LIKE $2",
        )
        .bind(AccessKind::RoleBinding.as_str())
        .bind(format!("{}%", crate::openid::BINDING_PREFIX))
        .fetch_all(&mut *tx)
        .await?;
        for spec in &specs {
            let binding: RoleBindingSpec = json("spec", spec)?;
            if binding.role == ADMIN && binding.place == EVERYWHERE {
                return Ok(false);
            }
        }
        let user = IdentityKind::User;
        let now = admin.event.at.as_micros();
        sqlx::query(
            "INSERT INTO identity (kind, name, display_name, enabled, password_hash, password_revision, \"groups\",
                                   created_at, updated_at)
             VALUES ($1, $2, '', 1, $3, 0, '[]', $4, $4)
             ON CONFLICT (kind, name) DO UPDATE SET enabled = 1",
        )
        .bind(user.as_str())
        .bind(admin.name)
        .bind(admin.password.as_ref().map(PasswordHash::as_str))
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let subject = Subject::Principal(user.principal(admin.name));
        let spec = RoleBindingSpec {
            subject: subject.clone(),
            role: ADMIN.to_owned(),
            place: EVERYWHERE.to_owned(),
        };
        sqlx::query(
            "INSERT INTO access_resource (kind, project, name, spec, subject, created_at, updated_at)
             VALUES ($1, '', $2, $3, $4, $5, $5)
             ON CONFLICT (kind, project, name) DO UPDATE SET spec = excluded.spec, subject = excluded.subject",
        )
        .bind(AccessKind::RoleBinding.as_str())
        .bind(admin.name)
        .bind(to_json("spec", &spec)?)
        .bind(subject.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let created_by = admin.event.actor.as_str();
        Self::insert_access_token(&mut tx, (user, admin.name), &admin.token, created_by, admin.event.at).await?;
        Self::append_audit(&mut tx, &admin.event).await?;
        tx.commit().await?;
        Ok(true)
    }
}
