//! Projects.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{ProjectScope, audit::NewEvent};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use sqlx::QueryBuilder;

use super::{SqlStore, number};
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        page::{Page, PageRequest},
        project::{Project, ProjectSpec},
    },
};

/// The most projects: all of them are in the memory of every process.
const MAX_PROJECTS: i64 = 10_000;

/// The projects.
#[async_trait]
pub trait ProjectStore: Send + Sync {
    /// The revision of the last change.
    async fn revision(&self) -> Result<u64>;
    /// Makes a project, or changes it.
    async fn put_project(&self, name: &str, spec: &ProjectSpec, event: &NewEvent) -> Result<Outcome>;
    /// A project that was not removed.
    async fn find_project(&self, name: &str) -> Result<Option<Project>>;
    /// The projects in a scope by name.
    async fn list_projects(&self, scope: &ProjectScope, page: &PageRequest<String>) -> Result<Page<Project>>;
    /// The first projects after one by name that were removed at or before a time and still have something stored.
    async fn list_removed_projects(&self, before: Timestamp, after: &str, limit: u32) -> Result<Vec<String>>;
    /// Whether a project was removed at or before a time.
    async fn was_removed(&self, name: &str, before: Timestamp) -> Result<bool>;
    /// Dates what every database has from its migration, the project and the experiment `default`, if it is not dated yet.
    async fn date_defaults(&self, now: Timestamp) -> Result<()>;
    /// Removes a project without endpoints; whether there was one. What is in it stays in the database, and its name is
    /// not given again.
    async fn remove_project(&self, name: &str, only_empty: bool, event: &NewEvent) -> Result<bool>;
}

/// What is in the project `$1`. Each has an experiment as soon as it is asked for: that one counts with what is in it.
const CONTENT: &str = "
    SELECT 'experiments' FROM experiment WHERE project = $1 AND name <> 'Default'
    UNION ALL SELECT 'runs' FROM run WHERE project = $1
    UNION ALL SELECT 'logged models' FROM logged_model WHERE project = $1
    UNION ALL SELECT 'registered models' FROM registered_model WHERE project = $1
    UNION ALL SELECT 'datasets' FROM dataset WHERE project = $1
    UNION ALL SELECT 'traces' FROM trace WHERE project = $1
    UNION ALL SELECT 'evaluation datasets' FROM evaluation_dataset WHERE project = $1
    UNION ALL SELECT 'scorers' FROM scorer WHERE project = $1
    UNION ALL SELECT 'webhooks' FROM webhook WHERE project = $1
    UNION ALL SELECT 'artifacts' FROM artifact_file WHERE project = $1
    UNION ALL SELECT 'secrets' FROM secret WHERE project = $1
    LIMIT 1";

type ProjectRow = (String, String, i64);

fn project((name, description, created_at): ProjectRow) -> Project {
    Project {
        kind: "Project",
        name,
        spec: ProjectSpec { description },
        created_at: Timestamp::from_micros(created_at),
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ProjectStore for SqlStore<P> {
    async fn revision(&self) -> Result<u64> {
        let query = sqlx::query_scalar("SELECT value FROM counter WHERE name = 'revision'");
        let value: i64 = query.fetch_one(self.pools.reader()).await?;
        number("revision", value)
    }

    async fn put_project(&self, name: &str, spec: &ProjectSpec, event: &NewEvent) -> Result<Outcome> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let present: Option<(String, Option<i64>)> =
            sqlx::query_as("SELECT description, removed_at FROM project WHERE name = $1")
                .bind(name)
                .fetch_optional(&mut *tx)
                .await?;
        let outcome = match &present {
            Some((_, Some(_))) => {
                return Err(Error::State(format!(
                    "the name `{name}` belonged to a project that was removed, and is not given again: take another"
                )));
            }
            Some((description, None)) if *description == spec.description => return Ok(Outcome::Unchanged),
            Some(_) => {
                sqlx::query("UPDATE project SET description = $1 WHERE name = $2")
                    .bind(&spec.description)
                    .bind(name)
                    .execute(&mut *tx)
                    .await?;
                Outcome::Updated
            }
            None => {
                let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM project WHERE removed_at IS NULL")
                    .fetch_one(&mut *tx)
                    .await?;
                if count >= MAX_PROJECTS {
                    return Err(Error::State(format!(
                        "there are {count} projects, as many as there may be: remove one first"
                    )));
                }
                sqlx::query("INSERT INTO project (name, description, created_at) VALUES ($1, $2, $3)")
                    .bind(name)
                    .bind(&spec.description)
                    .bind(event.at.as_micros())
                    .execute(&mut *tx)
                    .await?;
                Outcome::Created
            }
        };
        let before = present.as_ref().map(|(description, _)| description.as_str());
        let event = event.with_digests(before, Some(&spec.description));
        Self::append_audit(&mut tx, &event).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    async fn find_project(&self, name: &str) -> Result<Option<Project>> {
        let row: Option<ProjectRow> =
            sqlx::query_as("SELECT name, description, created_at FROM project WHERE name = $1 AND removed_at IS NULL")
                .bind(name)
                .fetch_optional(self.pools.reader())
                .await?;
        Ok(row.map(project))
    }

    async fn list_removed_projects(&self, before: Timestamp, after: &str, limit: u32) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "SELECT p.name FROM project p
             WHERE p.removed_at <= $1 AND p.name > $2 AND EXISTS (SELECT 1 FROM blob b WHERE b.project = p.name)
             ORDER BY p.name LIMIT $3",
        );
        Ok(query
            .bind(before.as_micros())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(self.pools.reader())
            .await?)
    }

    async fn was_removed(&self, name: &str, before: Timestamp) -> Result<bool> {
        let found: Option<String> = sqlx::query_scalar("SELECT name FROM project WHERE name = $1 AND removed_at <= $2")
            .bind(name)
            .bind(before.as_micros())
            .fetch_optional(self.pools.reader())
            .await?;
        Ok(found.is_some())
    }

    async fn date_defaults(&self, now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        for statement in [
            "UPDATE project SET created_at = $1 WHERE created_at = 0",
            "UPDATE experiment SET created_at = $1, updated_at = $1 WHERE id = 0 AND created_at = 0",
        ] {
            sqlx::query(statement).bind(now.as_micros()).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn list_projects(&self, scope: &ProjectScope, page: &PageRequest<String>) -> Result<Page<Project>> {
        let mut query = QueryBuilder::new("SELECT name, description, created_at FROM project WHERE removed_at IS NULL");
        if let ProjectScope::Only(names) = scope {
            if names.is_empty() {
                return Ok(page.cut(Vec::new(), |project: &Project| project.name.clone()));
            }
            query.push(" AND name IN (");
            let mut listed = query.separated(", ");
            for name in names {
                listed.push_bind(name.clone());
            }
            query.push(")");
        }
        if let Some(after) = &page.after {
            query.push(" AND name > ").push_bind(after.clone());
        }
        query.push(" ORDER BY name LIMIT ").push_bind(page.rows());
        let rows: Vec<ProjectRow> = query.build_query_as().fetch_all(self.pools.reader()).await?;
        let projects = rows.into_iter().map(project).collect();
        Ok(page.cut(projects, |project| project.name.clone()))
    }

    async fn remove_project(&self, name: &str, only_empty: bool, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let present: Option<String> =
            sqlx::query_scalar("SELECT description FROM project WHERE name = $1 AND removed_at IS NULL")
                .bind(name)
                .fetch_optional(&mut *tx)
                .await?;
        let Some(description) = present else {
            return Ok(false);
        };
        let endpoints: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM endpoint WHERE project = $1")
            .bind(name)
            .fetch_one(&mut *tx)
            .await?;
        if endpoints > 0 {
            return Err(Error::State(format!(
                "project `{name}` has {endpoints} endpoints: delete them first"
            )));
        }
        if only_empty {
            let found: Option<String> = sqlx::query_scalar(CONTENT).bind(name).fetch_optional(&mut *tx).await?;
            if let Some(what) = found {
                let project = name.to_owned();
                return Err(Error::NotEmpty { project, what });
            }
        }
        sqlx::query("UPDATE project SET removed_at = $1 WHERE name = $2")
            .bind(event.at.as_micros())
            .bind(name)
            .execute(&mut *tx)
            .await?;
        // Nobody holds anything in what is gone.
        sqlx::query("DELETE FROM access_resource WHERE project = $1")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        // A project that is made anew tells nobody whom it does not know; deliveries go with the retention.
        sqlx::query("DELETE FROM webhook WHERE project = $1")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&description), None)).await?;
        tx.commit().await?;
        Ok(true)
    }
}
