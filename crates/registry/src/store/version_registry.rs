//! Model versions as MLflow's clients change them.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;

use super::{
    AliasRequest, Aliases, SqlStore,
    audit::{after, change, with_detail},
    collector::COLLECTED,
    no_logged_model, to_json,
    version_rows::{EntryRow, select_entries},
};
use crate::{
    error::{Error, Result},
    model::{
        event::EventKind,
        json::Json,
        mlflow_registry::{LoggedSource, MODEL_VERSIONS_TAG, NewVersionEntry, Stage, VersionEntry, no_version},
        tracking::PROXY_SCHEME,
        webhook_payload::Happening,
    },
};

/// The most versions that a logged model's tag lists.
const MAX_LISTED_VERSIONS: usize = 1000;

/// Model versions as MLflow's clients change them.
#[async_trait]
pub trait VersionRegistryStore: Send + Sync {
    /// Adds a version to a model that exists.
    async fn create_version_entry(&self, new: &NewVersionEntry) -> Result<VersionEntry>;
    /// A version.
    async fn find_version_entry(&self, project: &str, model: &str, version: u32) -> Result<Option<VersionEntry>>;
    /// Says what a version is.
    async fn describe_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        description: &str,
        event: &NewEvent,
    ) -> Result<VersionEntry>;
    /// Moves a version to a stage; with `archive`, those that were there become archived.
    async fn stage_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        stage: Stage,
        archive: bool,
        event: &NewEvent,
    ) -> Result<VersionEntry>;
    /// Removes a version with the aliases that point at it. Its number is not given again.
    async fn delete_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<()>;
    /// Sets a tag of a version, or removes it.
    async fn tag_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        key: &str,
        value: Option<&str>,
        event: &NewEvent,
    ) -> Result<()>;
    /// A logged model that is there.
    async fn find_logged_source(&self, project: &str, model_id: &str) -> Result<Option<LoggedSource>>;
}

/// The list of a logged model's versions with one more.
fn list_version(listed: Option<&str>, model: &str, version: i64) -> String {
    let mut listed = match listed.and_then(Json::parse) {
        Some(Json::List(listed)) => listed,
        _ => Vec::new(),
    };
    let name = ("name".to_owned(), Json::Text(model.to_owned()));
    let added = Json::Object(vec![name, ("version".to_owned(), Json::Integer(version))]);
    if !listed.contains(&added) {
        listed.push(added);
    }
    let too_many = listed.len().saturating_sub(MAX_LISTED_VERSIONS);
    listed.drain(..too_many);
    Json::List(listed).dump()
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    pub(super) async fn entry_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        version: i64,
    ) -> Result<Option<VersionEntry>> {
        let rows: Vec<EntryRow> = sqlx::query_as(select_entries!(
            "WHERE v.project = $1 AND v.model = $2 AND v.version = $3"
        ))
        .bind(project)
        .bind(model)
        .bind(version)
        .fetch_all(&mut **tx)
        .await?;
        Ok(Self::complete_entries(tx, rows).await?.pop())
    }

    async fn required_entry(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        version: i64,
    ) -> Result<VersionEntry> {
        let found = Self::entry_in(tx, project, model, version).await?;
        found.ok_or_else(|| no_version(model, version))
    }

    /// Holds a version to the end of the transaction, and says when it was changed.
    async fn hold_version(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        version: i64,
        updated_at: Option<Timestamp>,
    ) -> Result<()> {
        let held = sqlx::query(
            "UPDATE model_version SET updated_at = COALESCE($4, updated_at)
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(project)
        .bind(model)
        .bind(version)
        .bind(updated_at.map(Timestamp::as_micros))
        .execute(&mut **tx)
        .await?;
        if held.rows_affected() == 0 {
            return Err(no_version(model, version));
        }
        Ok(())
    }

    /// Adds what MLflow's protocol tells of a version to what every version has.
    async fn insert_source(tx: &mut Transaction<<P as Pools>::Db>, new: &NewVersionEntry, version: i64) -> Result<()> {
        sqlx::query(
            "UPDATE model_version
             SET source = $4, storage_location = $5, source_run_id = $6, run_link = $7, status_message = $8,
                 model_id = $9, updated_at = $10
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(&new.version.project)
        .bind(&new.version.model)
        .bind(version)
        .bind(&new.source)
        .bind(&new.storage_location)
        .bind(new.run_id.as_deref())
        .bind(&new.run_link)
        .bind(&new.status_message)
        .bind(new.model_id.as_deref())
        .bind(new.version.now.as_micros())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Refuses a logged model that a collection took away. The storage is held.
    pub(super) async fn check_logged_model_stays(tx: &mut Transaction<<P as Pools>::Db>, model_id: &str) -> Result<()> {
        let taken: Option<String> = sqlx::query_scalar("SELECT id FROM logged_model WHERE id = $1 AND project = $2")
            .bind(model_id)
            .bind(COLLECTED)
            .fetch_optional(&mut **tx)
            .await?;
        taken.map_or(Ok(()), |_| Err(no_logged_model(model_id)))
    }

    /// Lists a version in the tags of the logged model that it was made of. Refuses one that a collection took away since it was
    /// looked for: the storage is held, as who collects holds it.
    async fn list_in_logged_model(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewVersionEntry,
        model_id: &str,
        version: i64,
    ) -> Result<()> {
        Self::check_logged_model_stays(tx, model_id).await?;
        // Held, so that no two add to the same list at once.
        let held = sqlx::query("UPDATE logged_model SET updated_at = $3 WHERE project = $1 AND id = $2")
            .bind(&new.version.project)
            .bind(model_id)
            .bind(new.version.now.as_micros())
            .execute(&mut **tx)
            .await?;
        if held.rows_affected() == 0 {
            return Ok(());
        }
        let listed: Option<String> =
            sqlx::query_scalar("SELECT value FROM logged_model_tag WHERE model_id = $1 AND key = $2")
                .bind(model_id)
                .bind(MODEL_VERSIONS_TAG)
                .fetch_optional(&mut **tx)
                .await?;
        sqlx::query(
            "INSERT INTO logged_model_tag (model_id, key, value) VALUES ($1, $2, $3)
             ON CONFLICT (model_id, key) DO UPDATE SET value = excluded.value",
        )
        .bind(model_id)
        .bind(MODEL_VERSIONS_TAG)
        .bind(list_version(listed.as_deref(), &new.version.model, version))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Refuses to take a version away from an endpoint.
    async fn check_version_unserved(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        version: i64,
    ) -> Result<()> {
        let endpoint: Option<String> = sqlx::query_scalar(
            "SELECT r.endpoint FROM endpoint_route r
             LEFT JOIN model_alias a ON a.project = r.project AND a.model = r.model AND a.alias = r.alias
             WHERE r.project = $1 AND r.model = $2 AND COALESCE(r.version, a.version) = $3
             ORDER BY r.endpoint LIMIT 1",
        )
        .bind(project)
        .bind(model)
        .bind(version)
        .fetch_optional(&mut **tx)
        .await?;
        match endpoint {
            None => Ok(()),
            Some(endpoint) => Err(Error::State(format!(
                "endpoint `{endpoint}` serves version {version} of model `{model}`: point it, or the alias that it \
                 follows, at another version first"
            ))),
        }
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl VersionRegistryStore for SqlStore<P> {
    async fn create_version_entry(&self, new: &NewVersionEntry) -> Result<VersionEntry> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let common = &new.version;
        Self::hold_model(&mut tx, &common.project, &common.model, Some(common.now)).await?;
        let version = Self::next_version(&mut tx, common).await?;
        Self::insert_version(&mut tx, common, version).await?;
        Self::insert_source(&mut tx, new, version).await?;
        if let Some(model_id) = &new.model_id {
            Self::list_in_logged_model(&mut tx, new, model_id, version).await?;
        }
        let subject = json!({"model": common.model, "version": version});
        let kind = EventKind::ModelVersionCreated;
        Self::record_event(&mut tx, revision, &common.project, kind, &subject, common.now).await?;
        let created = Self::required_entry(&mut tx, &common.project, &common.model, version).await?;
        let event = with_detail(&common.event, "version", version);
        Self::append_audit(&mut tx, &after(&event, &created)?).await?;
        let made = Happening::VersionCreated {
            version,
            source: &new.source,
            run_id: new.run_id.as_deref(),
            tags: &common.tags,
            description: &common.description,
        };
        Self::tell_webhooks(&mut tx, &common.project, &common.model, &event, &[made]).await?;
        tx.commit().await?;
        Ok(created)
    }

    async fn find_version_entry(&self, project: &str, model: &str, version: u32) -> Result<Option<VersionEntry>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::entry_in(&mut tx, project, model, i64::from(version)).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn describe_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        description: &str,
        event: &NewEvent,
    ) -> Result<VersionEntry> {
        let mut tx = self.pools.begin().await?;
        let number = i64::from(version);
        Self::hold_version(&mut tx, project, model, number, None).await?;
        let before = Self::required_entry(&mut tx, project, model, number).await?;
        sqlx::query(
            "UPDATE model_version SET description = $4, updated_at = $5
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(project)
        .bind(model)
        .bind(number)
        .bind(description)
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        let now = Self::required_entry(&mut tx, project, model, number).await?;
        let event = with_detail(event, "version", version);
        Self::append_audit(&mut tx, &change(&event, &before, &now)?).await?;
        tx.commit().await?;
        Ok(now)
    }

    async fn stage_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        stage: Stage,
        archive: bool,
        event: &NewEvent,
    ) -> Result<VersionEntry> {
        let mut tx = self.pools.begin().await?;
        let number = i64::from(version);
        Self::required_entry(&mut tx, project, model, number).await?;
        // Held, so that no two become the only one of the stage at once.
        Self::hold_model(&mut tx, project, model, Some(event.at)).await?;
        let before = Self::required_entry(&mut tx, project, model, number).await?;
        if archive {
            sqlx::query(
                "UPDATE model_version SET stage = $5, updated_at = $6
                 WHERE project = $1 AND model = $2 AND version <> $3 AND stage = $4",
            )
            .bind(project)
            .bind(model)
            .bind(number)
            .bind(stage.as_str())
            .bind(Stage::Archived.as_str())
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query(
            "UPDATE model_version SET stage = $4, updated_at = $5
             WHERE project = $1 AND model = $2 AND version = $3",
        )
        .bind(project)
        .bind(model)
        .bind(number)
        .bind(stage.as_str())
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        let now = Self::required_entry(&mut tx, project, model, number).await?;
        let mut event = with_detail(event, "version", version);
        event.add_detail("stage", stage.as_str());
        event.add_detail("archived_others", archive);
        Self::append_audit(&mut tx, &change(&event, &before, &now)?).await?;
        tx.commit().await?;
        Ok(now)
    }

    async fn delete_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        changed_by: &str,
        aliases: Aliases,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        // Neither an alias nor an endpoint comes to point at it meanwhile.
        Self::next_revision(&mut tx).await?;
        let number = i64::from(version);
        let before = Self::required_entry(&mut tx, project, model, number).await?;
        aliases.check(model, &before.aliases)?;
        Self::check_version_unserved(&mut tx, project, model, number).await?;
        Self::hold_model(&mut tx, project, model, Some(event.at)).await?;
        let request = AliasRequest {
            project,
            model,
            alias: "",
            changed_by,
            event,
            now: event.at,
        };
        let aliases = Self::remove_aliases(&mut tx, &request, Some(number)).await?;
        sqlx::query("DELETE FROM model_version WHERE project = $1 AND model = $2 AND version = $3")
            .bind(project)
            .bind(model)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        let mut event = with_detail(event, "version", version);
        event.add_detail("aliases", aliases);
        let before = to_json("version", &before)?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&before), None)).await?;
        Ok(tx.commit().await?)
    }

    async fn tag_version(
        &self,
        project: &str,
        model: &str,
        version: u32,
        key: &str,
        value: Option<&str>,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let number = i64::from(version);
        Self::hold_version(&mut tx, project, model, number, None).await?;
        let before: Option<String> = sqlx::query_scalar(
            "SELECT value FROM model_version_tag WHERE project = $1 AND model = $2 AND version = $3 AND key = $4",
        )
        .bind(project)
        .bind(model)
        .bind(number)
        .bind(key)
        .fetch_optional(&mut *tx)
        .await?;
        if before.as_deref() == value {
            return Ok(());
        }
        let query = match value {
            Some(value) => sqlx::query(
                "INSERT INTO model_version_tag (project, model, version, key, value) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (project, model, version, key) DO UPDATE SET value = excluded.value",
            )
            .bind(project)
            .bind(model)
            .bind(number)
            .bind(key)
            .bind(value),
            None => sqlx::query(
                "DELETE FROM model_version_tag WHERE project = $1 AND model = $2 AND version = $3 AND key = $4",
            )
            .bind(project)
            .bind(model)
            .bind(number)
            .bind(key),
        };
        query.execute(&mut *tx).await?;
        let mut event = with_detail(event, "version", version);
        event.add_detail("tag", key);
        Self::append_audit(&mut tx, &event.with_digests(before.as_deref(), value)).await?;
        let tag = Happening::VersionTag {
            version: number,
            key,
            value,
        };
        Self::tell_webhooks(&mut tx, project, model, &event, &[tag]).await?;
        Ok(tx.commit().await?)
    }

    async fn find_logged_source(&self, project: &str, model_id: &str) -> Result<Option<LoggedSource>> {
        let row: Option<(Option<String>, i64, String)> = sqlx::query_as(
            "SELECT l.source_run_id, e.id, e.artifact_location FROM logged_model l
             JOIN experiment e ON e.id = l.experiment_id
             WHERE l.project = $1 AND l.id = $2 AND l.lifecycle = 'active'",
        )
        .bind(project)
        .bind(model_id)
        .fetch_optional(self.pools.reader())
        .await?;
        let found = row.map(|(run_id, experiment, location)| {
            let root = if location.is_empty() {
                format!("{PROXY_SCHEME}{experiment}")
            } else {
                location.trim_end_matches('/').to_owned()
            };
            LoggedSource {
                artifact_location: format!("{root}/models/{model_id}/artifacts"),
                run_id,
            }
        });
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_model_lists_its_versions_once() {
        let one = list_version(None, "m", 1);
        assert_eq!(one, r#"[{"name": "m", "version": 1}]"#);
        assert_eq!(list_version(Some(&one), "m", 1), one);
        let two = list_version(Some(&one), "m", 2);
        assert_eq!(two, r#"[{"name": "m", "version": 1}, {"name": "m", "version": 2}]"#);
        assert_eq!(list_version(Some("no list"), "m", 1), one);
    }
}
