//! Aliases, and the history of where they pointed.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;

use super::{SqlStore, audit::with_detail, before, maybe, number};
use crate::{
    error::{Error, Result},
    model::{
        alias::{Alias, AliasChange},
        event::EventKind,
        page::{Page, PageRequest},
    },
};

/// An alias to be set or removed.
#[derive(Debug, Clone, Copy)]
pub struct AliasRequest<'a> {
    /// The project.
    pub project: &'a str,
    /// The model.
    pub model: &'a str,
    /// The alias.
    pub alias: &'a str,
    /// Who asks.
    pub changed_by: &'a str,
    /// What the audit chain is told.
    pub event: &'a NewEvent,
    /// Now.
    pub now: Timestamp,
}

/// Aliases.
#[async_trait]
pub trait AliasStore: Send + Sync {
    /// Points an alias at a version; where it pointed before. Pointing where it points already changes nothing.
    async fn set_alias(&self, request: &AliasRequest<'_>, version: u32) -> Result<Option<u32>>;
    /// Removes an alias; where it pointed. None: there was none.
    async fn remove_alias(&self, request: &AliasRequest<'_>) -> Result<Option<u32>>;
    /// Where an alias points.
    async fn find_alias(&self, project: &str, model: &str, alias: &str) -> Result<Option<Alias>>;
    /// The change of an alias that held at a time, and the one that came next.
    async fn alias_at(
        &self,
        project: &str,
        model: &str,
        alias: &str,
        at: Timestamp,
    ) -> Result<Option<(AliasChange, Option<AliasChange>)>>;
    /// The changes of an alias, newest first.
    async fn alias_history(
        &self,
        project: &str,
        model: &str,
        alias: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<AliasChange>>;
}

/// Where an alias points and pointed: the numbers of the versions, which never change.
fn alias_event(request: &AliasRequest<'_>, previous: Option<i64>, version: Option<i64>) -> NewEvent {
    let mut event = with_detail(request.event, "alias", request.alias);
    for (key, version) in [("previous_version", previous), ("version", version)] {
        if let Some(version) = version {
            event = with_detail(&event, key, version);
        }
    }
    event
}

#[derive(sqlx::FromRow)]
pub(super) struct AliasRow {
    pub(super) model: String,
    alias: String,
    version: i64,
    updated_at: i64,
}

impl AliasRow {
    pub(super) fn into_alias(self) -> Result<Alias> {
        Ok(Alias {
            model: self.model,
            alias: self.alias,
            version: number("version", self.version)?,
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct ChangeRow {
    revision: i64,
    previous_version: Option<i64>,
    version: Option<i64>,
    changed_by: String,
    at: i64,
}

impl ChangeRow {
    fn into_change(self) -> Result<AliasChange> {
        Ok(AliasChange {
            revision: number("revision", self.revision)?,
            previous_version: maybe("version", self.previous_version)?,
            version: maybe("version", self.version)?,
            changed_by: self.changed_by,
            at: Timestamp::from_micros(self.at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Points an alias somewhere else and writes that down. The caller holds the revision.
    pub(super) async fn move_alias(
        tx: &mut Transaction<<P as Pools>::Db>,
        request: &AliasRequest<'_>,
        revision: i64,
        version: i64,
    ) -> Result<Option<i64>> {
        let previous: Option<i64> =
            sqlx::query_scalar("SELECT version FROM model_alias WHERE project = $1 AND model = $2 AND alias = $3")
                .bind(request.project)
                .bind(request.model)
                .bind(request.alias)
                .fetch_optional(&mut **tx)
                .await?;
        sqlx::query(
            "INSERT INTO model_alias (project, model, alias, version, updated_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (project, model, alias)
             DO UPDATE SET version = excluded.version, updated_at = excluded.updated_at",
        )
        .bind(request.project)
        .bind(request.model)
        .bind(request.alias)
        .bind(version)
        .bind(request.now.as_micros())
        .execute(&mut **tx)
        .await?;
        Self::record_alias(tx, request, revision, previous, Some(version)).await?;
        Self::follow_model(tx, request.project, request.model, revision, request.now).await?;
        Ok(previous)
    }

    pub(super) async fn record_alias(
        tx: &mut Transaction<<P as Pools>::Db>,
        request: &AliasRequest<'_>,
        revision: i64,
        previous: Option<i64>,
        version: Option<i64>,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO model_alias_change (revision, project, model, alias, previous_version, version, changed_by, at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(revision)
        .bind(request.project)
        .bind(request.model)
        .bind(request.alias)
        .bind(previous)
        .bind(version)
        .bind(request.changed_by)
        .bind(request.now.as_micros())
        .execute(&mut **tx)
        .await?;
        let subject = json!({
            "model": request.model,
            "alias": request.alias,
            "version": version,
            "previous_version": previous,
        });
        let kind = match version {
            Some(_) => EventKind::AliasSet,
            None => EventKind::AliasRemoved,
        };
        Self::record_event(tx, revision, request.project, kind, &subject, request.now).await
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl AliasStore for SqlStore<P> {
    async fn set_alias(&self, request: &AliasRequest<'_>, version: u32) -> Result<Option<u32>> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let found: Option<i64> =
            sqlx::query_scalar("SELECT version FROM model_version WHERE project = $1 AND model = $2 AND version = $3")
                .bind(request.project)
                .bind(request.model)
                .bind(i64::from(version))
                .fetch_optional(&mut *tx)
                .await?;
        if found.is_none() {
            let name = format!("{}/{version}", request.model);
            return Err(Error::not_found("model version", name, "create it first"));
        }
        let previous = Self::move_alias(&mut tx, request, revision, i64::from(version)).await?;
        if previous != Some(i64::from(version)) {
            Self::append_audit(&mut tx, &alias_event(request, previous, Some(i64::from(version)))).await?;
            Self::tell_of_alias(&mut tx, request, Some(i64::from(version))).await?;
            tx.commit().await?;
        }
        maybe("version", previous)
    }

    async fn remove_alias(&self, request: &AliasRequest<'_>) -> Result<Option<u32>> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let previous: Option<i64> = sqlx::query_scalar(
            "DELETE FROM model_alias WHERE project = $1 AND model = $2 AND alias = $3 RETURNING version",
        )
        .bind(request.project)
        .bind(request.model)
        .bind(request.alias)
        .fetch_optional(&mut *tx)
        .await?;
        if previous.is_some() {
            Self::record_alias(&mut tx, request, revision, previous, None).await?;
            Self::append_audit(&mut tx, &alias_event(request, previous, None)).await?;
            Self::tell_of_alias(&mut tx, request, None).await?;
            tx.commit().await?;
        }
        maybe("version", previous)
    }

    async fn find_alias(&self, project: &str, model: &str, alias: &str) -> Result<Option<Alias>> {
        let row: Option<AliasRow> = sqlx::query_as(
            "SELECT model, alias, version, updated_at FROM model_alias
             WHERE project = $1 AND model = $2 AND alias = $3",
        )
        .bind(project)
        .bind(model)
        .bind(alias)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(AliasRow::into_alias).transpose()
    }

    async fn alias_at(
        &self,
        project: &str,
        model: &str,
        alias: &str,
        at: Timestamp,
    ) -> Result<Option<(AliasChange, Option<AliasChange>)>> {
        let mut tx = self.pools.snapshot().await?;
        let held: Option<ChangeRow> = sqlx::query_as(
            "SELECT revision, previous_version, version, changed_by, at FROM model_alias_change
             WHERE project = $1 AND model = $2 AND alias = $3 AND at <= $4 ORDER BY revision DESC LIMIT 1",
        )
        .bind(project)
        .bind(model)
        .bind(alias)
        .bind(at.as_micros())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(held) = held else {
            return Ok(None);
        };
        let next: Option<ChangeRow> = sqlx::query_as(
            "SELECT revision, previous_version, version, changed_by, at FROM model_alias_change
             WHERE project = $1 AND model = $2 AND alias = $3 AND revision > $4 ORDER BY revision LIMIT 1",
        )
        .bind(project)
        .bind(model)
        .bind(alias)
        .bind(held.revision)
        .fetch_optional(&mut *tx)
        .await?;
        tx.rollback().await?;
        let next = next.map(ChangeRow::into_change).transpose()?;
        Ok(Some((held.into_change()?, next)))
    }

    async fn alias_history(
        &self,
        project: &str,
        model: &str,
        alias: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<AliasChange>> {
        let rows: Vec<ChangeRow> = sqlx::query_as(
            "SELECT revision, previous_version, version, changed_by, at FROM model_alias_change
             WHERE project = $1 AND model = $2 AND alias = $3 AND revision < $4 ORDER BY revision DESC LIMIT $5",
        )
        .bind(project)
        .bind(model)
        .bind(alias)
        .bind(before(page))
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let changes = rows.into_iter().map(ChangeRow::into_change).collect::<Result<_>>()?;
        Ok(page.cut(changes, |change| change.revision))
    }
}
