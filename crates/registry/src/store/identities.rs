//! Users and service accounts.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{audit::NewEvent, password::PasswordHash};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use super::{SqlStore, json, to_json, word};
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        identity::{Identity, IdentityKind, IdentitySpec, PasswordRecord},
        page::{Page, PageRequest},
    },
};

/// The most users, and the most service accounts: all of them are in the memory of every process.
const MAX_IDENTITIES: i64 = 100_000;

/// Users and service accounts.
#[async_trait]
pub trait IdentityStore: Send + Sync {
    /// Makes an identity, or changes it.
    async fn put_identity(
        &self,
        kind: IdentityKind,
        name: &str,
        spec: &IdentitySpec,
        event: &NewEvent,
    ) -> Result<Outcome>;
    /// Makes a user with a password; whether there was none with its name.
    async fn create_user(&self, name: &str, spec: &IdentitySpec, hash: &PasswordHash, event: &NewEvent)
    -> Result<bool>;
    /// An identity.
    async fn find_identity(&self, kind: IdentityKind, name: &str) -> Result<Option<Identity>>;
    /// The identities of a kind by name.
    async fn list_identities(&self, kind: IdentityKind, page: &PageRequest<String>) -> Result<Page<Identity>>;
    /// Removes an identity with its tokens, sessions and role bindings; whether there was one.
    async fn remove_identity(&self, kind: IdentityKind, name: &str, event: &NewEvent) -> Result<bool>;
    /// Makes the password of a user this one, and ends its sessions but the one with the id `but`; whether there is such a
    /// user.
    async fn set_password(&self, name: &str, hash: &PasswordHash, but: Option<&str>, event: &NewEvent) -> Result<bool>;
    /// What is needed to verify a user's password.
    async fn find_password(&self, name: &str) -> Result<Option<PasswordRecord>>;
    /// Replaces a hash by one of the same password with the parameters of today; nothing if it is another by now.
    async fn renew_hash(&self, name: &str, old: &str, new: &PasswordHash) -> Result<()>;
}

#[derive(sqlx::FromRow)]
struct Row {
    kind: String,
    name: String,
    display_name: String,
    enabled: i64,
    password_hash: Option<String>,
    groups: String,
    issuer: Option<String>,
    created_at: i64,
    updated_at: i64,
}

macro_rules! select_identities {
    ($rest:literal) => {
        concat!(
            "SELECT kind, name, display_name, enabled, password_hash, \"groups\", issuer, created_at, updated_at
             FROM identity WHERE ",
            $rest
        )
    };
}

impl Row {
    fn into_identity(self) -> Result<Identity> {
        Ok(Identity {
            kind: word("kind of an identity", &self.kind, IdentityKind::parse)?.resource_kind(),
            name: self.name,
            spec: IdentitySpec {
                display_name: self.display_name,
                enabled: self.enabled != 0,
                groups: json("groups", &self.groups)?,
            },
            has_password: self.password_hash.is_some(),
            issuer: self.issuer,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn insert_identity(
        tx: &mut Transaction<<P as Pools>::Db>,
        (kind, name): (IdentityKind, &str),
        spec: &IdentitySpec,
        hash: Option<&PasswordHash>,
        event: &NewEvent,
    ) -> Result<()> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM identity WHERE kind = $1")
            .bind(kind.as_str())
            .fetch_one(&mut **tx)
            .await?;
        if count >= MAX_IDENTITIES {
            return Err(Error::State(format!(
                "there are {count} of the kind {}, as many as there may be: remove some first",
                kind.as_str()
            )));
        }
        sqlx::query(
            "INSERT INTO identity (kind, name, display_name, enabled, password_hash, password_revision, \"groups\",
                                   created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(kind.as_str())
        .bind(name)
        .bind(&spec.display_name)
        .bind(i64::from(spec.enabled))
        .bind(hash.map(PasswordHash::as_str))
        .bind(i64::from(hash.is_some()))
        .bind(to_json("groups", &spec.groups)?)
        .bind(event.at.as_micros())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl IdentityStore for SqlStore<P> {
    async fn put_identity(
        &self,
        kind: IdentityKind,
        name: &str,
        spec: &IdentitySpec,
        event: &NewEvent,
    ) -> Result<Outcome> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let row: Option<Row> = sqlx::query_as(select_identities!("kind = $1 AND name = $2"))
            .bind(kind.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        let present = row.map(Row::into_identity).transpose()?;
        let groups = to_json("groups", &spec.groups)?;
        let outcome = match &present {
            Some(present) if present.spec == *spec => return Ok(Outcome::Unchanged),
            Some(_) => {
                sqlx::query(
                    "UPDATE identity SET display_name = $1, enabled = $2, \"groups\" = $3, updated_at = $4
                     WHERE kind = $5 AND name = $6",
                )
                .bind(&spec.display_name)
                .bind(i64::from(spec.enabled))
                .bind(groups)
                .bind(event.at.as_micros())
                .bind(kind.as_str())
                .bind(name)
                .execute(&mut *tx)
                .await?;
                Outcome::Updated
            }
            None => {
                Self::insert_identity(&mut tx, (kind, name), spec, None, event).await?;
                Outcome::Created
            }
        };
        let before = present.map(|present| to_json("identity", &present.spec)).transpose()?;
        let after = to_json("identity", spec)?;
        Self::append_audit(&mut tx, &event.with_digests(before.as_deref(), Some(&after))).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    async fn create_user(
        &self,
        name: &str,
        spec: &IdentitySpec,
        hash: &PasswordHash,
        event: &NewEvent,
    ) -> Result<bool> {
        let user = IdentityKind::User;
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let present: Option<i64> = sqlx::query_scalar("SELECT 1 FROM identity WHERE kind = $1 AND name = $2")
            .bind(user.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if present.is_some() {
            return Ok(false);
        }
        Self::insert_identity(&mut tx, (user, name), spec, Some(hash), event).await?;
        let after = to_json("identity", spec)?;
        Self::append_audit(&mut tx, &event.with_digests(None, Some(&after))).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn find_identity(&self, kind: IdentityKind, name: &str) -> Result<Option<Identity>> {
        let row: Option<Row> = sqlx::query_as(select_identities!("kind = $1 AND name = $2"))
            .bind(kind.as_str())
            .bind(name)
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(Row::into_identity).transpose()
    }

    async fn list_identities(&self, kind: IdentityKind, page: &PageRequest<String>) -> Result<Page<Identity>> {
        let rows: Vec<Row> = sqlx::query_as(select_identities!("kind = $1 AND name > $2 ORDER BY name LIMIT $3"))
            .bind(kind.as_str())
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows())
            .fetch_all(self.pools.reader())
            .await?;
        let identities = rows.into_iter().map(Row::into_identity).collect::<Result<Vec<_>>>()?;
        Ok(page.cut(identities, |identity| identity.name.clone()))
    }

    async fn remove_identity(&self, kind: IdentityKind, name: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let row: Option<Row> = sqlx::query_as(select_identities!("kind = $1 AND name = $2"))
            .bind(kind.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(present) = row.map(Row::into_identity).transpose()? else {
            return Ok(false);
        };
        sqlx::query("DELETE FROM identity WHERE kind = $1 AND name = $2")
            .bind(kind.as_str())
            .bind(name)
            .execute(&mut *tx)
            .await?;
        // Whoever has the name next inherits nothing.
        sqlx::query("DELETE FROM access_resource WHERE subject = $1")
            .bind(kind.principal(name).to_string())
            .execute(&mut *tx)
            .await?;
        let before = to_json("identity", &present.spec)?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&before), None)).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn set_password(&self, name: &str, hash: &PasswordHash, but: Option<&str>, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let user = IdentityKind::User.as_str();
        let changed = sqlx::query(
            "UPDATE identity SET password_hash = $1, password_revision = password_revision + 1, updated_at = $2
             WHERE kind = $3 AND name = $4",
        )
        .bind(hash.as_str())
        .bind(event.at.as_micros())
        .bind(user)
        .bind(name)
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "UPDATE access_token SET revoked_at = $1
             WHERE owner_kind = $2 AND owner = $3 AND kind = 'session' AND revoked_at IS NULL AND id <> $4",
        )
        .bind(event.at.as_micros())
        .bind(user)
        .bind(name)
        .bind(but.unwrap_or_default())
        .execute(&mut *tx)
        .await?;
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn find_password(&self, name: &str) -> Result<Option<PasswordRecord>> {
        let row: Option<(Option<String>, i64)> =
            sqlx::query_as("SELECT password_hash, enabled FROM identity WHERE kind = $1 AND name = $2")
                .bind(IdentityKind::User.as_str())
                .bind(name)
                .fetch_optional(self.pools.reader())
                .await?;
        Ok(row.map(|(hash, enabled)| PasswordRecord {
            hash,
            enabled: enabled != 0,
        }))
    }

    async fn renew_hash(&self, name: &str, old: &str, new: &PasswordHash) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE identity SET password_hash = $1 WHERE kind = $2 AND name = $3 AND password_hash = $4")
            .bind(new.as_str())
            .bind(IdentityKind::User.as_str())
            .bind(name)
            .bind(old)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
