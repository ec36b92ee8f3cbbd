//! Declared resources.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use modelyard_jobs::{audit::delivery, enqueue_in};

use super::{Page, ResourceStore, SqlStore};
use crate::{
    error::{Error, Result},
    model::{Outcome, Resource, ResourceKind},
};

#[derive(sqlx::FromRow)]
struct ResourceRow {
    project: String,
    name: String,
    spec: String,
    applied_by: String,
    created_at: i64,
    updated_at: i64,
}

impl ResourceRow {
    fn into_resource(self, kind: ResourceKind) -> Result<Resource> {
        let spec = serde_json::from_str(&self.spec).map_err(|_| modelyard_db::Error::value("spec", &self.spec))?;
        Ok(Resource {
            kind,
            name: self.name,
            project: self.project,
            spec,
            applied_by: self.applied_by,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ResourceStore for SqlStore<P> {
    async fn put_resource(&self, resource: &Resource, event: &NewEvent) -> Result<(Outcome, Resource)> {
        let mut tx = self.pools.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO resource (project, kind, name, spec, applied_by, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (project, kind, name) DO NOTHING",
        )
        .bind(&resource.project)
        .bind(resource.kind.as_str())
        .bind(&resource.name)
        .bind(resource.spec.to_string())
        .bind(&resource.applied_by)
        .bind(resource.created_at.as_micros())
        .bind(resource.updated_at.as_micros())
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() > 0 {
            let job = delivery(&event.with_digests(None, Some(&resource.spec.to_string())))?;
            enqueue_in(&mut tx, &job, event.at).await?;
            tx.commit().await?;
            self.wake.notify();
            return Ok((Outcome::Created, resource.clone()));
        }
        // Takes the row's lock before it is read.
        let row: ResourceRow = sqlx::query_as(
            "UPDATE resource SET name = name WHERE project = $1 AND kind = $2 AND name = $3
             RETURNING project, name, spec, applied_by, created_at, updated_at",
        )
        .bind(&resource.project)
        .bind(resource.kind.as_str())
        .bind(&resource.name)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or_else(|| Error::from(sqlx::Error::RowNotFound))?;
        let stored = row.into_resource(resource.kind)?;
        if stored.spec == resource.spec {
            return Ok((Outcome::Unchanged, stored));
        }
        sqlx::query(
            "UPDATE resource SET spec = $4, updated_at = $5, applied_by = $6
             WHERE project = $1 AND kind = $2 AND name = $3",
        )
        .bind(&resource.project)
        .bind(resource.kind.as_str())
        .bind(&resource.name)
        .bind(resource.spec.to_string())
        .bind(resource.updated_at.as_micros())
        .bind(&resource.applied_by)
        .execute(&mut *tx)
        .await?;
        let job = delivery(&event.with_digests(Some(&stored.spec.to_string()), Some(&resource.spec.to_string())))?;
        enqueue_in(&mut tx, &job, event.at).await?;
        tx.commit().await?;
        self.wake.notify();
        let updated = Resource {
            created_at: stored.created_at,
            ..resource.clone()
        };
        Ok((Outcome::Updated, updated))
    }

    async fn find_resource(&self, project: &str, kind: ResourceKind, name: &str) -> Result<Option<Resource>> {
        let row: Option<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, applied_by, created_at, updated_at FROM resource
             WHERE project = $1 AND kind = $2 AND name = $3",
        )
        .bind(project)
        .bind(kind.as_str())
        .bind(name)
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(|row| row.into_resource(kind)).transpose()
    }

    async fn list_resources(&self, project: &str, kind: ResourceKind, page: Page<'_>) -> Result<Vec<Resource>> {
        let rows: Vec<ResourceRow> = sqlx::query_as(
            "SELECT project, name, spec, applied_by, created_at, updated_at FROM resource
             WHERE project = $1 AND kind = $2 AND name > $3 ORDER BY name LIMIT $4",
        )
        .bind(project)
        .bind(kind.as_str())
        .bind(page.after.unwrap_or(""))
        .bind(i64::from(page.limit) + 1)
        .fetch_all(self.pools.reader())
        .await?;
        rows.into_iter().map(|row| row.into_resource(kind)).collect()
    }

    async fn delete_resource(&self, project: &str, kind: ResourceKind, name: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let query = "DELETE FROM resource WHERE project = $1 AND kind = $2 AND name = $3 RETURNING spec";
        let deleted: Option<String> = sqlx::query_scalar(query)
            .bind(project)
            .bind(kind.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(spec) = &deleted {
            let spec: serde_json::Value =
                serde_json::from_str(spec).map_err(|_| modelyard_db::Error::value("spec", spec))?;
            enqueue_in(
                &mut tx,
                &delivery(&event.with_digests(Some(&spec.to_string()), None))?,
                event.at,
            )
            .await?;
        }
        tx.commit().await?;
        self.wake.notify();
        Ok(deleted.is_some())
    }
}
