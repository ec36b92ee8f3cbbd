//! Secrets, sealed.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::SqlStore;
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        page::{Page, PageRequest},
        secret::{MAX_SECRETS, SecretEntry},
    },
};

/// A secret as it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// Its project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// The sealed value.
    pub sealed: String,
}

/// Secrets.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// Sets a secret.
    async fn put_secret(&self, secret: &SealedSecret, event: &NewEvent) -> Result<Outcome>;
    /// A secret without its value.
    async fn find_secret(&self, project: &str, name: &str) -> Result<Option<SecretEntry>>;
    /// The secrets of a project by name.
    async fn list_secrets(&self, project: &str, page: &PageRequest<String>) -> Result<Page<SecretEntry>>;
    /// Removes a secret; whether there was one.
    async fn remove_secret(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool>;
    /// The sealed value, together with the event that it was opened.
    async fn open_secret(&self, project: &str, name: &str, event: &NewEvent) -> Result<Option<String>>;
    /// Whether anything in the database is sealed with a key that is not in it: secrets, also of webhooks, or keys of the
    /// audit chain.
    async fn has_sealed(&self) -> Result<bool>;
    /// All secrets, for sealing them with another key.
    async fn all_secrets(&self) -> Result<Vec<SealedSecret>>;
    /// Replaces what is sealed by the same, sealed with another key; nothing if it was set anew meanwhile.
    async fn reseal_secret(&self, secret: &SealedSecret, resealed: &str) -> Result<()>;
}

fn entry((name, created_at, updated_at): (String, i64, i64)) -> SecretEntry {
    SecretEntry {
        name,
        created_at: Timestamp::from_micros(created_at),
        updated_at: Timestamp::from_micros(updated_at),
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl SecretStore for SqlStore<P> {
    async fn put_secret(&self, secret: &SealedSecret, event: &NewEvent) -> Result<Outcome> {
        let mut tx = self.pools.begin().await?;
        let updated = sqlx::query("UPDATE secret SET sealed = $1, updated_at = $2 WHERE project = $3 AND name = $4")
            .bind(&secret.sealed)
            .bind(event.at.as_micros())
            .bind(&secret.project)
            .bind(&secret.name)
            .execute(&mut *tx)
            .await?;
        let is_new = updated.rows_affected() == 0;
        if is_new {
            let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM secret WHERE project = $1")
                .bind(&secret.project)
                .fetch_one(&mut *tx)
                .await?;
            if count >= MAX_SECRETS {
                return Err(Error::State(format!(
                    "project `{}` has {count} secrets, as many as it may have: remove some first",
                    secret.project
                )));
            }
            sqlx::query(
                "INSERT INTO secret (project, name, sealed, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)",
            )
            .bind(&secret.project)
            .bind(&secret.name)
            .bind(&secret.sealed)
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?;
        }
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(if is_new { Outcome::Created } else { Outcome::Updated })
    }

    async fn find_secret(&self, project: &str, name: &str) -> Result<Option<SecretEntry>> {
        let row: Option<(String, i64, i64)> =
            sqlx::query_as("SELECT name, created_at, updated_at FROM secret WHERE project = $1 AND name = $2")
                .bind(project)
                .bind(name)
                .fetch_optional(self.pools.reader())
                .await?;
        Ok(row.map(entry))
    }

    async fn list_secrets(&self, project: &str, page: &PageRequest<String>) -> Result<Page<SecretEntry>> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT name, created_at, updated_at FROM secret WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let secrets = rows.into_iter().map(entry).collect();
        Ok(page.cut(secrets, |secret| secret.name.clone()))
    }

    async fn remove_secret(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query("DELETE FROM secret WHERE project = $1 AND name = $2")
            .bind(project)
            .bind(name)
            .execute(&mut *tx)
            .await?;
        if removed.rows_affected() == 0 {
            return Ok(false);
        }
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn open_secret(&self, project: &str, name: &str, event: &NewEvent) -> Result<Option<String>> {
        let mut tx = self.pools.begin().await?;
        let sealed: Option<String> = sqlx::query_scalar("SELECT sealed FROM secret WHERE project = $1 AND name = $2")
            .bind(project)
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if sealed.is_some() {
            Self::append_audit(&mut tx, event).await?;
            tx.commit().await?;
        }
        Ok(sealed)
    }

    async fn has_sealed(&self) -> Result<bool> {
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM secret) + (SELECT COUNT(*) FROM audit_key)
                    + (SELECT COUNT(*) FROM webhook WHERE secret IS NOT NULL)",
        )
        .fetch_one(self.pools.reader())
        .await?;
        Ok(count > 0)
    }

    async fn all_secrets(&self) -> Result<Vec<SealedSecret>> {
        let rows: Vec<(String, String, String)> =
            sqlx::query_as("SELECT project, name, sealed FROM secret ORDER BY project, name")
                .fetch_all(self.pools.reader())
                .await?;
        let secrets = rows
            .into_iter()
            .map(|(project, name, sealed)| SealedSecret { project, name, sealed });
        Ok(secrets.collect())
    }

    async fn reseal_secret(&self, secret: &SealedSecret, resealed: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE secret SET sealed = $1 WHERE project = $2 AND name = $3 AND sealed = $4")
            .bind(resealed)
            .bind(&secret.project)
            .bind(&secret.name)
            .bind(&secret.sealed)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
