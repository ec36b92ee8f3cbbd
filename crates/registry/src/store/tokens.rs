//! Tokens of users, service accounts and browsers.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{Grant, Principal, TokenUse, audit::NewEvent, token::TokenHash, token::TokenKind};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{SqlStore, json, to_json, word};
use crate::{
    error::{Error, Result},
    model::{
        identity::IdentityKind,
        page::{Page, PageRequest},
        token::AccessToken,
    },
};

/// The most tokens of an identity that have not ended.
const MAX_LIVE: i64 = 1000;

/// A token as it is stored.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// The hash of its text.
    pub hash: TokenHash,
    /// What it is for.
    pub kind: TokenKind,
    /// What it is called in lists.
    pub name: String,
    /// The most that it opens; none: all that its owner may.
    pub scope: Option<Vec<Grant>>,
    /// When it ends; none: when it is revoked.
    pub expires_at: Option<Timestamp>,
}

/// A token that was made, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenMade {
    /// It counts since this revision of who may do what.
    Made {
        /// The token.
        token: Box<AccessToken>,
        /// The revision.
        revision: u64,
    },
    /// There is no such owner, or it is disabled.
    NoOwner,
    /// The owner has as many as it may have.
    TooMany,
}

/// Tokens.
#[async_trait]
pub trait TokenStore: Send + Sync {
    /// Makes a token of an identity that is enabled.
    async fn create_token(
        &self,
        owner: (IdentityKind, &str),
        token: &TokenRow,
        created_by: &str,
        event: &NewEvent,
    ) -> Result<TokenMade>;
    /// A token.
    async fn find_token(&self, id: &str) -> Result<Option<AccessToken>>;
    /// The tokens of an owner, or of all, the newest first.
    async fn list_tokens(&self, owner: Option<&Principal>, page: &PageRequest<String>) -> Result<Page<AccessToken>>;
    /// Revokes a token; since which revision of who may do what. None: it was revoked before, or there is none.
    async fn revoke_token(&self, id: &str, event: &NewEvent) -> Result<Option<u64>>;
    /// Notes when tokens were used last.
    async fn note_uses(&self, uses: &[TokenUse]) -> Result<()>;
    /// Forgets the tokens that ended or were revoked before a time; how many.
    async fn prune_tokens(&self, before: Timestamp) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    kind: String,
    owner_kind: String,
    owner: String,
    scope: Option<String>,
    created_at: i64,
    created_by: String,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

const COLUMNS: &str =
    "id, name, kind, owner_kind, owner, scope, created_at, created_by, expires_at, last_used_at, revoked_at";

impl Row {
    fn into_token(self) -> Result<AccessToken> {
        let owner = word("kind of an owner", &self.owner_kind, IdentityKind::parse)?.principal(&self.owner);
        Ok(AccessToken {
            id: self.id,
            name: self.name,
            kind: word("kind of a token", &self.kind, TokenKind::parse)?,
            owner,
            scope: self.scope.map(|scope| json("scope", &scope)).transpose()?,
            created_at: Timestamp::from_micros(self.created_at),
            created_by: self.created_by,
            expires_at: self.expires_at.map(Timestamp::from_micros),
            last_used_at: self.last_used_at.map(Timestamp::from_micros),
            revoked_at: self.revoked_at.map(Timestamp::from_micros),
        })
    }
}

/// Whose token it is, as the table has it.
fn owner_of(principal: &Principal) -> Option<(IdentityKind, &str)> {
    let kind = match principal.entity_type()? {
        "User" => IdentityKind::User,
        "ServiceAccount" => IdentityKind::ServiceAccount,
        _ => return None,
    };
    Some((kind, principal.name()))
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    pub(super) async fn insert_access_token(
        tx: &mut Transaction<<P as Pools>::Db>,
        (owner_kind, owner): (IdentityKind, &str),
        token: &TokenRow,
        created_by: &str,
        now: Timestamp,
    ) -> Result<()> {
        let scope = token.scope.as_ref().map(|scope| to_json("scope", scope)).transpose()?;
        sqlx::query(
            "INSERT INTO access_token (id, hash, kind, owner_kind, owner, name, scope, created_at, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&token.id)
        .bind(token.hash.to_string())
        .bind(token.kind.as_str())
        .bind(owner_kind.as_str())
        .bind(owner)
        .bind(&token.name)
        .bind(scope)
        .bind(now.as_micros())
        .bind(created_by)
        .bind(token.expires_at.map(Timestamp::as_micros))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TokenStore for SqlStore<P> {
    async fn create_token(
        &self,
        owner: (IdentityKind, &str),
        token: &TokenRow,
        created_by: &str,
        event: &NewEvent,
    ) -> Result<TokenMade> {
        let now = event.at;
        let mut tx = self.pools.begin().await?;
        let revision = Self::raise_access(&mut tx).await?;
        let (kind, name) = owner;
        let enabled: Option<i64> = sqlx::query_scalar("SELECT enabled FROM identity WHERE kind = $1 AND name = $2")
            .bind(kind.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if enabled.is_none_or(|enabled| enabled == 0) {
            return Ok(TokenMade::NoOwner);
        }
        let live: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM access_token WHERE owner_kind = $1 AND owner = $2 AND kind = $3
             AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $4)",
        )
        .bind(kind.as_str())
        .bind(name)
        .bind(token.kind.as_str())
        .bind(now.as_micros())
        .fetch_one(&mut *tx)
        .await?;
        if live >= MAX_LIVE {
            return Ok(TokenMade::TooMany);
        }
        Self::insert_access_token(&mut tx, owner, token, created_by, now).await?;
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        let token = AccessToken {
            id: token.id.clone(),
            name: token.name.clone(),
            kind: token.kind,
            owner: kind.principal(name),
            scope: token.scope.clone(),
            created_at: now,
            created_by: created_by.to_owned(),
            expires_at: token.expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        Ok(TokenMade::Made {
            token: Box::new(token),
            revision,
        })
    }

    async fn find_token(&self, id: &str) -> Result<Option<AccessToken>> {
        let mut query = QueryBuilder::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM access_token WHERE id = ")
            .push_bind(id.to_owned());
        let row: Option<Row> = query.build_query_as().fetch_optional(self.pools.reader()).await?;
        row.map(Row::into_token).transpose()
    }

    async fn list_tokens(&self, owner: Option<&Principal>, page: &PageRequest<String>) -> Result<Page<AccessToken>> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS).push(" FROM access_token WHERE kind = 'api'");
        if let Some(principal) = owner {
            let Some((kind, name)) = owner_of(principal) else {
                return Err(Error::request(format!("`{principal}` has no tokens")));
            };
            query.push(" AND owner_kind = ").push_bind(kind.as_str());
            query.push(" AND owner = ").push_bind(name.to_owned());
        }
        if let Some(after) = &page.after {
            query.push(" AND id < ").push_bind(after.clone());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(page.rows());
        let rows: Vec<Row> = query.build_query_as().fetch_all(self.pools.reader()).await?;
        let tokens = rows.into_iter().map(Row::into_token).collect::<Result<Vec<_>>>()?;
        Ok(page.cut(tokens, |token| token.id.clone()))
    }

    async fn revoke_token(&self, id: &str, event: &NewEvent) -> Result<Option<u64>> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::raise_access(&mut tx).await?;
        let revoked = sqlx::query("UPDATE access_token SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
            .bind(event.at.as_micros())
            .bind(id)
            .execute(&mut *tx)
            .await?;
        if revoked.rows_affected() == 0 {
            return Ok(None);
        }
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(Some(revision))
    }

    async fn note_uses(&self, uses: &[TokenUse]) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        for used in uses {
            sqlx::query(
                "UPDATE access_token SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)",
            )
            .bind(used.at.as_micros())
            .bind(&used.token_id)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn prune_tokens(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let pruned = sqlx::query("DELETE FROM access_token WHERE expires_at < $1 OR revoked_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}
