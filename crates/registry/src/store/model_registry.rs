//! Registered models as MLflow's clients change them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{Kind, audit::NewEvent};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    AliasRequest, SqlStore,
    audit::{after, change, with_detail},
    number, to_json,
    version_rows::{EntryRow, select_entries},
};
use crate::{
    error::{Error, Result},
    model::{
        mlflow_registry::{ModelEntry, NewModelEntry, VersionEntry, is_prompt, no_model},
        webhook_payload::Happening,
    },
};

/// How many models are completed by one statement.
const BATCH: usize = 500;

/// Registered models as MLflow's clients change them.
#[async_trait]
pub trait ModelRegistryStore: Send + Sync {
    /// Makes a model without versions.
    async fn create_model_entry(&self, new: &NewModelEntry) -> Result<ModelEntry>;
    /// A model.
    async fn find_model_entry(&self, project: &str, model: &str) -> Result<Option<ModelEntry>>;
    /// Says what a model is.
    async fn describe_model(
        &self,
        project: &str,
        model: &str,
        description: &str,
        event: &NewEvent,
    ) -> Result<ModelEntry>;
    /// Gives a model another name: its versions, aliases, tags and marks go with it.
    async fn rename_model(
        &self,
        project: &str,
        model: &str,
        new_name: &str,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<ModelEntry>;
    /// Removes a model with its versions. The history of its aliases stays.
    async fn delete_model(
        &self,
        project: &str,
        model: &str,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<()>;
    /// Sets a tag of a model, or removes it.
    async fn tag_model(
        &self,
        project: &str,
        model: &str,
        key: &str,
        value: Option<&str>,
        event: &NewEvent,
    ) -> Result<()>;
}

/// Whether aliases may go along with what they point at, which takes a permission of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aliases {
    /// The caller was asked for it.
    Go,
    /// There were none when the caller was asked.
    None,
}

impl Aliases {
    /// For what was seen before the transaction.
    pub fn seen<T>(aliases: &[T]) -> Self {
        if aliases.is_empty() { Self::None } else { Self::Go }
    }

    /// Refuses where an alias came meanwhile.
    pub(super) fn check<T>(self, model: &str, aliases: &[T]) -> Result<()> {
        if self == Self::None && !aliases.is_empty() {
            return Err(Error::Contended {
                what: "registered model",
                name: model.to_owned(),
            });
        }
        Ok(())
    }
}

/// How a database is told to check foreign keys at the end of the transaction.
trait ChecksAtTheEnd {
    /// The statement.
    const STATEMENT: &str;
}

impl ChecksAtTheEnd for SqlitePools {
    const STATEMENT: &str = "PRAGMA defer_foreign_keys = ON";
}

impl ChecksAtTheEnd for PostgresPools {
    const STATEMENT: &str = "SET CONSTRAINTS ALL DEFERRED";
}

/// What a model's name is in. Endpoints are not: they are declared elsewhere, and a model that one refers to keeps its name.
/// The history of aliases stays with the name that had them.
const NAMED: [&str; 6] = [
    "UPDATE registered_model_tag SET model = $3 WHERE project = $1 AND model = $2",
    "UPDATE model_version SET model = $3 WHERE project = $1 AND model = $2",
    "UPDATE model_version_tag SET model = $3 WHERE project = $1 AND model = $2",
    "UPDATE model_alias SET model = $3 WHERE project = $1 AND model = $2",
    "UPDATE import_item SET local_id = $3 WHERE project = $1 AND kind = 'model' AND local_id = $2",
    "UPDATE import_item SET local_id = $3 || substr(local_id, length($2) + 1)
     WHERE project = $1 AND kind = 'version' AND substr(local_id, 1, length($2) + 1) = $2 || '/'",
];

#[derive(sqlx::FromRow)]
pub(super) struct ModelEntryRow {
    project: String,
    name: String,
    description: String,
    created_at: i64,
    updated_at: i64,
}

/// The columns of [`ModelEntryRow`].
macro_rules! select_models {
    ($rest:literal) => {
        concat!(
            "SELECT m.project, m.name, m.description, m.created_at, m.updated_at FROM registered_model m ",
            $rest
        )
    };
}
pub(super) use select_models;

/// The name is taken, by a model or by a prompt.
fn taken(name: &str, old_is_prompt: bool, new_is_prompt: bool) -> Error {
    let word = |is_prompt: bool| if is_prompt { "Prompt" } else { "Registered Model" };
    if old_is_prompt == new_is_prompt {
        return Error::Exists(format!("{} (name={name}) already exists.", word(new_is_prompt)));
    }
    Error::Exists(format!(
        "Tried to create a {} with name '{name}', but the name is already taken by a {}. MLflow does not allow creating a \
         model and a prompt with the same name.",
        word(new_is_prompt).to_lowercase(),
        word(old_is_prompt).to_lowercase()
    ))
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Holds a model to the end of the transaction, and says when it was changed.
    pub(super) async fn hold_model(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        updated_at: Option<Timestamp>,
    ) -> Result<()> {
        let held = sqlx::query(
            "UPDATE registered_model SET updated_at = COALESCE($3, updated_at) WHERE project = $1 AND name = $2",
        )
        .bind(project)
        .bind(model)
        .bind(updated_at.map(Timestamp::as_micros))
        .execute(&mut **tx)
        .await?;
        if held.rows_affected() == 0 {
            return Err(no_model(model));
        }
        Ok(())
    }

    /// Models of one project with their aliases, tags and newest versions, in their order.
    pub(super) async fn complete_model_entries(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<ModelEntryRow>,
    ) -> Result<Vec<ModelEntry>> {
        let mut entries = Vec::with_capacity(rows.len());
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let batch: Vec<ModelEntryRow> = rows.by_ref().take(BATCH).collect();
            Self::complete_model_batch(tx, batch, &mut entries).await?;
        }
        Ok(entries)
    }

    async fn complete_model_batch(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<ModelEntryRow>,
        entries: &mut Vec<ModelEntry>,
    ) -> Result<()> {
        let project = match rows.first() {
            Some(first) => first.project.clone(),
            None => return Ok(()),
        };
        let aliases: Vec<(String, String, i64)> = {
            let mut query = QueryBuilder::new("SELECT model, alias, version FROM model_alias WHERE project = ");
            query.push_bind(project.clone()).push(" AND model IN (");
            let mut names = query.separated(", ");
            for row in &rows {
                names.push_bind(row.name.clone());
            }
            query.push(") ORDER BY model, alias");
            query.build_query_as().fetch_all(&mut **tx).await?
        };
        let mut aliases_of: BTreeMap<String, Vec<(String, u32)>> = BTreeMap::new();
        for (model, alias, version) in aliases {
            let version = number("version", version)?;
            aliases_of.entry(model).or_default().push((alias, version));
        }
        let tags: Vec<(String, String, String)> = {
            let mut query = QueryBuilder::new("SELECT model, key, value FROM registered_model_tag WHERE project = ");
            query.push_bind(project.clone()).push(" AND model IN (");
            let mut names = query.separated(", ");
            for row in &rows {
                names.push_bind(row.name.clone());
            }
            query.push(")");
            query.build_query_as().fetch_all(&mut **tx).await?
        };
        let mut tags_of: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (model, key, value) in tags {
            tags_of.entry(model).or_default().insert(key, value);
        }
        let mut newest_of = Self::newest_of(tx, &project, &rows).await?;
        for row in rows {
            entries.push(ModelEntry {
                aliases: aliases_of.remove(&row.name).unwrap_or_default(),
                tags: tags_of.remove(&row.name).unwrap_or_default(),
                latest: newest_of.remove(&row.name).unwrap_or_default(),
                project: row.project,
                name: row.name,
                description: row.description,
                created_at: Timestamp::from_micros(row.created_at),
                updated_at: Timestamp::from_micros(row.updated_at),
            });
        }
        Ok(())
    }

    /// The newest version of each stage of some models.
    async fn newest_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        models: &[ModelEntryRow],
    ) -> Result<BTreeMap<String, Vec<VersionEntry>>> {
        let mut query = QueryBuilder::new(select_entries!("WHERE v.project = "));
        query
            .push_bind(project.to_owned())
            .push(" AND (v.model, v.version) IN (SELECT model, MAX(version) FROM model_version WHERE project = ");
        query.push_bind(project.to_owned()).push(" AND model IN (");
        let mut names = query.separated(", ");
        for row in models {
            names.push_bind(row.name.clone());
        }
        query.push(") GROUP BY model, stage) ORDER BY v.model, v.version");
        let rows: Vec<EntryRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut newest: BTreeMap<String, Vec<VersionEntry>> = BTreeMap::new();
        for entry in Self::complete_entries(tx, rows).await? {
            newest.entry(entry.model.clone()).or_default().push(entry);
        }
        Ok(newest)
    }

    pub(super) async fn model_entry_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
    ) -> Result<Option<ModelEntry>> {
        let rows: Vec<ModelEntryRow> = sqlx::query_as(select_models!("WHERE m.project = $1 AND m.name = $2"))
            .bind(project)
            .bind(model)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_model_entries(tx, rows).await?.pop())
    }

    async fn required_model(tx: &mut Transaction<<P as Pools>::Db>, project: &str, model: &str) -> Result<ModelEntry> {
        let found = Self::model_entry_in(tx, project, model).await?;
        found.ok_or_else(|| no_model(model))
    }

    /// Refuses to take a model away from an endpoint.
    async fn check_unserved(tx: &mut Transaction<<P as Pools>::Db>, project: &str, model: &str) -> Result<()> {
        let endpoint: Option<String> = sqlx::query_scalar(
            "SELECT endpoint FROM endpoint_route WHERE project = $1 AND model = $2 ORDER BY endpoint LIMIT 1",
        )
        .bind(project)
        .bind(model)
        .fetch_optional(&mut **tx)
        .await?;
        match endpoint {
            None => Ok(()),
            Some(endpoint) => Err(Error::State(format!(
                "endpoint `{endpoint}` refers to model `{model}`: declare the endpoint with another model first"
            ))),
        }
    }

    /// Removes the aliases of a model, or those that point at one of its versions, each with its place in the history. Their
    /// names, for the audit chain.
    pub(super) async fn remove_aliases(
        tx: &mut Transaction<<P as Pools>::Db>,
        request: &AliasRequest<'_>,
        version: Option<i64>,
    ) -> Result<String> {
        let removed: Vec<(String, i64)> = sqlx::query_as(
            "DELETE FROM model_alias WHERE project = $1 AND model = $2 AND version = COALESCE($3, version)
             RETURNING alias, version",
        )
        .bind(request.project)
        .bind(request.model)
        .bind(version)
        .fetch_all(&mut **tx)
        .await?;
        let mut names = Vec::with_capacity(removed.len());
        for (alias, version) in removed {
            let revision = Self::next_revision(tx).await?;
            let removal = AliasRequest {
                alias: &alias,
                ..*request
            };
            Self::record_alias(tx, &removal, revision, Some(version), None).await?;
            names.push(alias);
        }
        names.sort();
        Ok(names.join(" "))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ModelRegistryStore for SqlStore<P> {
    async fn create_model_entry(&self, new: &NewModelEntry) -> Result<ModelEntry> {
        let mut tx = self.pools.begin().await?;
        // Endpoints may have waited for the model.
        Self::next_revision(&mut tx).await?;
        if let Some(old) = Self::model_entry_in(&mut tx, &new.project, &new.name).await? {
            return Err(taken(&new.name, old.is_prompt(), is_prompt(&new.tags)));
        }
        sqlx::query(
            "INSERT INTO registered_model (project, name, description, last_version, created_at, updated_at)
             VALUES ($1, $2, $3, 0, $4, $4)",
        )
        .bind(&new.project)
        .bind(&new.name)
        .bind(&new.description)
        .bind(new.event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        for (key, value) in &new.tags {
            sqlx::query("INSERT INTO registered_model_tag (project, model, key, value) VALUES ($1, $2, $3, $4)")
                .bind(&new.project)
                .bind(&new.name)
                .bind(key)
                .bind(value)
                .execute(&mut *tx)
                .await?;
        }
        let created = Self::required_model(&mut tx, &new.project, &new.name).await?;
        Self::append_audit(&mut tx, &after(&new.event, &created)?).await?;
        let made = Happening::Created {
            tags: &new.tags,
            description: &new.description,
        };
        Self::tell_webhooks(&mut tx, &new.project, &new.name, &new.event, &[made]).await?;
        tx.commit().await?;
        Ok(created)
    }

    async fn find_model_entry(&self, project: &str, model: &str) -> Result<Option<ModelEntry>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::model_entry_in(&mut tx, project, model).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn describe_model(
        &self,
        project: &str,
        model: &str,
        description: &str,
        event: &NewEvent,
    ) -> Result<ModelEntry> {
        let mut tx = self.pools.begin().await?;
        Self::hold_model(&mut tx, project, model, None).await?;
        let before = Self::required_model(&mut tx, project, model).await?;
        sqlx::query("UPDATE registered_model SET description = $3, updated_at = $4 WHERE project = $1 AND name = $2")
            .bind(project)
            .bind(model)
            .bind(description)
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?;
        let now = Self::required_model(&mut tx, project, model).await?;
        Self::append_audit(&mut tx, &change(event, &before, &now)?).await?;
        tx.commit().await?;
        Ok(now)
    }

    async fn rename_model(
        &self,
        project: &str,
        model: &str,
        new_name: &str,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<ModelEntry> {
        let mut tx = self.pools.begin().await?;
        // No model comes, goes or is referred to from here on.
        Self::next_revision(&mut tx).await?;
        let before = Self::required_model(&mut tx, project, model).await?;
        aliases.check(model, &before.aliases)?;
        if Self::model_entry_in(&mut tx, project, new_name).await?.is_some() {
            return Err(Error::Exists(format!(
                "Registered Model (name={new_name}) already exists."
            )));
        }
        Self::check_unserved(&mut tx, project, model).await?;
        sqlx::query(<P as ChecksAtTheEnd>::STATEMENT).execute(&mut *tx).await?;
        sqlx::query("UPDATE registered_model SET name = $3, updated_at = $4 WHERE project = $1 AND name = $2")
            .bind(project)
            .bind(model)
            .bind(new_name)
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?;
        for statement in NAMED {
            sqlx::query(statement)
                .bind(project)
                .bind(model)
                .bind(new_name)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("UPDATE model_version SET updated_at = $3 WHERE project = $1 AND model = $2")
            .bind(project)
            .bind(new_name)
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?;
        // What is read with an audit event stays so under its new name; the old one may come back and keeps its mark.
        let marked = sqlx::query(
            "INSERT INTO sensitive_resource (project, kind, name, created_at)
             SELECT project, kind, $4, created_at FROM sensitive_resource
             WHERE project = $1 AND kind = $2 AND name = $3
             ON CONFLICT (project, kind, name) DO NOTHING",
        )
        .bind(project)
        .bind(Kind::Model.word())
        .bind(model)
        .bind(new_name)
        .execute(&mut *tx)
        .await?;
        if marked.rows_affected() > 0 {
            Self::raise_access(&mut tx).await?;
        }
        // The aliases of the old name end here, and those of the new one begin: at any time, a name tells what it meant then.
        for (alias, version) in &before.aliases {
            for (model, previous, version) in [(model, Some(*version), None), (new_name, None, Some(*version))] {
                let revision = Self::next_revision(&mut tx).await?;
                let request = AliasRequest {
                    project,
                    model,
                    alias,
                    changed_by,
                    event,
                    now: event.at,
                };
                let (previous, version) = (previous.map(i64::from), version.map(i64::from));
                Self::record_alias(&mut tx, &request, revision, previous, version).await?;
            }
        }
        let now = Self::required_model(&mut tx, project, new_name).await?;
        let event = with_detail(event, "new_name", new_name);
        Self::append_audit(&mut tx, &change(&event, &before, &now)?).await?;
        tx.commit().await?;
        Ok(now)
    }

    async fn delete_model(
        &self,
        project: &str,
        model: &str,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::next_revision(&mut tx).await?;
        let before = Self::required_model(&mut tx, project, model).await?;
        aliases.check(model, &before.aliases)?;
        Self::check_unserved(&mut tx, project, model).await?;
        let request = AliasRequest {
            project,
            model,
            alias: "",
            changed_by,
            event,
            now: event.at,
        };
        let aliases = Self::remove_aliases(&mut tx, &request, None).await?;
        for statement in [
            "DELETE FROM model_version WHERE project = $1 AND model = $2",
            "DELETE FROM registered_model WHERE project = $1 AND name = $2",
        ] {
            sqlx::query(statement)
                .bind(project)
                .bind(model)
                .execute(&mut *tx)
                .await?;
        }
        let event = with_detail(event, "aliases", aliases);
        let before = to_json("model", &before)?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&before), None)).await?;
        Ok(tx.commit().await?)
    }

    async fn tag_model(
        &self,
        project: &str,
        model: &str,
        key: &str,
        value: Option<&str>,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_model(&mut tx, project, model, None).await?;
        let before: Option<String> =
            sqlx::query_scalar("SELECT value FROM registered_model_tag WHERE project = $1 AND model = $2 AND key = $3")
                .bind(project)
                .bind(model)
                .bind(key)
                .fetch_optional(&mut *tx)
                .await?;
        if before.as_deref() == value {
            return Ok(());
        }
        let query = match value {
            Some(value) => sqlx::query(
                "INSERT INTO registered_model_tag (project, model, key, value) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (project, model, key) DO UPDATE SET value = excluded.value",
            )
            .bind(project)
            .bind(model)
            .bind(key)
            .bind(value),
            None => sqlx::query("DELETE FROM registered_model_tag WHERE project = $1 AND model = $2 AND key = $3")
                .bind(project)
                .bind(model)
                .bind(key),
        };
        query.execute(&mut *tx).await?;
        let event = with_detail(event, "tag", key);
        Self::append_audit(&mut tx, &event.with_digests(before.as_deref(), value)).await?;
        Self::tell_webhooks(&mut tx, project, model, &event, &[Happening::Tag { key, value }]).await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_that_came_after_the_caller_was_asked_does_not_go_along() {
        let none: [&str; 0] = [];
        let asked = Aliases::seen(&none);
        assert!(asked.check("tumor", &none).is_ok());
        let refused = asked.check("tumor", &["champion"]).unwrap_err().to_string();
        assert!(refused.contains("tumor") && refused.contains("try again"), "{refused}");
        assert!(Aliases::seen(&["champion"]).check("tumor", &["champion"]).is_ok());
    }
}
