//! Registered models, their aliases and searches, as MLflow's clients ask for them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use modelyard_auth::{
    Action, Caller, Kind, Resource,
    audit::{NewEvent, Operation},
};
use serde_json::{Value, json};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        dataset::MAX_DESCRIPTION_BYTES,
        entry_search::EntrySearch,
        mlflow_registry::{
            LATEST_ALIAS, ModelEntry, NewModelEntry, Stage, VersionEntry, check_alias_free, check_alias_name,
            check_model_name, check_tag, check_tag_key, collect_tags, no_model, no_version, read_version, shown,
        },
        run::check_text,
    },
    search::{MODEL_VERSIONS, REGISTERED_MODELS, Schema, parse_filter, parse_order},
    store::Aliases,
};

/// How many models a page has when the client does not say, and at most.
const MODELS_PAGE: (i64, i64) = (100, 1000);
/// How many versions a page has when the client does not say, and at most.
const VERSIONS_PAGE: (i64, i64) = (10_000, 200_000);
/// The most versions that are sent at once: whoever asks for more gets them on several pages.
const MAX_SENT: u32 = 10_000;
/// The most of what is found that is passed over.
const MAX_OFFSET: u64 = 100_000_000;

/// A search as a client writes it.
#[derive(Debug, Clone, Default)]
pub struct EntryQuery {
    /// What must hold.
    pub filter: String,
    /// The most that are wanted.
    pub max_results: Option<i64>,
    /// What comes first.
    pub order_by: Vec<String>,
    /// Where the page begins.
    pub page_token: Option<String>,
}

pub(super) fn page_token(offset: u64) -> String {
    STANDARD.encode(json!({"offset": offset}).to_string())
}

pub(super) fn read_page_token(token: &str) -> Result<u64> {
    let read = || {
        let decoded = STANDARD.decode(token).ok()?;
        let decoded: Value = serde_json::from_slice(&decoded).ok()?;
        decoded.get("offset")?.as_u64().filter(|offset| *offset <= MAX_OFFSET)
    };
    read().ok_or_else(|| Error::request("Invalid page token, could not base64-decode"))
}

impl EntryQuery {
    fn read(&self, schema: &Schema, (default, most): (i64, i64)) -> Result<EntrySearch> {
        let wanted = self.max_results.unwrap_or(default);
        if wanted < 1 {
            return Err(Error::request(format!(
                "Invalid value for max_results. It must be a positive integer, but got {wanted}"
            )));
        }
        if wanted > most {
            return Err(Error::request(format!(
                "Invalid value for request parameter max_results. It must be at most {most}, but got value {wanted}"
            )));
        }
        let filter = parse_filter(schema, &self.filter)?;
        let order = parse_order(schema, &self.order_by)?;
        let token = self.page_token.as_deref().filter(|token| !token.is_empty());
        let offset = token.map_or(Ok(0), read_page_token)?;
        let limit = u32::try_from(wanted).map_or(MAX_SENT, |wanted| wanted.min(MAX_SENT));
        Ok(EntrySearch::new(filter, order, offset, limit))
    }
}

/// A page of what was found, and the token of the next one.
fn cut<T>(mut found: Vec<T>, search: &EntrySearch) -> (Vec<T>, Option<String>) {
    let limit = search.limit as usize;
    if found.len() <= limit {
        return (found, None);
    }
    found.truncate(limit);
    (found, Some(page_token(search.offset + u64::from(search.limit))))
}

impl Registry {
    /// The beginning of every change of a model or version: may the caller do this? What the audit chain is told about it.
    pub(super) async fn model_event(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        operation: Operation,
    ) -> Result<NewEvent> {
        let resource = Resource::named(Kind::Model, project, model);
        self.enter(caller, Action::ModelWrite, resource).await?;
        check_model_name("name", model)?;
        Ok(caller.event(Action::ModelWrite, operation, &resource))
    }

    /// Makes a model without versions.
    #[tracing::instrument(name = "registry.create_registered_model", skip_all, fields(%project, %name))]
    pub async fn create_registered_model(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        description: &str,
        tags: Vec<(String, String)>,
    ) -> Result<ModelEntry> {
        let event = self.model_event(caller, project, name, Operation::Create).await?;
        check_text("description of model", name, description, MAX_DESCRIPTION_BYTES)?;
        let new = NewModelEntry {
            project: project.to_owned(),
            name: name.to_owned(),
            description: description.to_owned(),
            tags: collect_tags(tags)?,
            event,
        };
        let created = self.stores.model_registry.create_model_entry(&new).await?;
        self.desired.notify();
        self.webhooks.wake();
        Ok(created)
    }

    /// A model.
    pub async fn get_registered_model(&self, caller: &Caller, project: &str, name: &str) -> Result<ModelEntry> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        self.find_registered_model(project, name).await
    }

    /// A model, for whoever may do what needs it.
    pub(super) async fn find_registered_model(&self, project: &str, name: &str) -> Result<ModelEntry> {
        let found = self.stores.model_registry.find_model_entry(project, name).await?;
        found.ok_or_else(|| no_model(name))
    }

    /// Says what a model is.
    pub async fn update_registered_model(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        description: &str,
    ) -> Result<ModelEntry> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        check_text("description of model", name, description, MAX_DESCRIPTION_BYTES)?;
        let store = &self.stores.model_registry;
        store.describe_model(project, name, description, &event).await
    }

    /// Gives a model another name. Its aliases go with it, so that this takes what changing them takes.
    #[tracing::instrument(name = "registry.rename_registered_model", skip_all, fields(%project, %name, %new_name))]
    pub async fn rename_registered_model(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        new_name: &str,
    ) -> Result<ModelEntry> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        let new_resource = Resource::named(Kind::Model, project, new_name);
        self.enter(caller, Action::ModelWrite, new_resource).await?;
        check_model_name("new_name", new_name)?;
        let model = self.find_registered_model(project, name).await?;
        if !model.aliases.is_empty() {
            self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, name))
                .await?;
            self.enter(caller, Action::AliasWrite, new_resource).await?;
        }
        let store = &self.stores.model_registry;
        let renamed = store
            .rename_model(
                project,
                name,
                new_name,
                &caller.principal().to_string(),
                Aliases::seen(&model.aliases),
                &event,
            )
            .await?;
        self.desired.notify();
        tracing::info!(name, new_name, "registered model renamed");
        Ok(renamed)
    }

    /// Removes a model with its versions and aliases.
    #[tracing::instrument(name = "registry.delete_registered_model", skip_all, fields(%project, %name))]
    pub async fn delete_registered_model(&self, caller: &Caller, project: &str, name: &str) -> Result<()> {
        let event = self.model_event(caller, project, name, Operation::Delete).await?;
        let model = self.find_registered_model(project, name).await?;
        if !model.aliases.is_empty() {
            self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, name))
                .await?;
        }
        let changed_by = caller.principal().to_string();
        let store = &self.stores.model_registry;
        store
            .delete_model(project, name, &changed_by, Aliases::seen(&model.aliases), &event)
            .await?;
        self.desired.notify();
        tracing::info!(name, "registered model deleted");
        Ok(())
    }

    /// Sets a tag of a model, or removes it.
    pub async fn tag_registered_model(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        match value {
            Some(value) => check_tag(key, value)?,
            None => check_tag_key(key)?,
        }
        let store = &self.stores.model_registry;
        store.tag_model(project, name, key, value, &event).await?;
        self.webhooks.wake();
        Ok(())
    }

    /// The newest version of each of some stages; of all where none is named.
    pub async fn latest_versions(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        stages: &[String],
    ) -> Result<Vec<VersionEntry>> {
        let model = self.get_registered_model(caller, project, name).await?;
        let stages = stages
            .iter()
            .map(|stage| Stage::read(stage))
            .collect::<Result<Vec<_>>>()?;
        let wanted = |version: &VersionEntry| stages.is_empty() || stages.contains(&version.stage);
        Ok(model.latest.into_iter().filter(wanted).collect())
    }

    /// Points an alias at a version: endpoints that follow it move there.
    pub async fn set_registered_model_alias(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        alias: &str,
        version: &str,
    ) -> Result<()> {
        self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        check_alias_name(alias)?;
        check_alias_free(alias)?;
        let number = read_version(version)?;
        let number = number.ok_or_else(|| no_version(name, shown(version)))?;
        self.find_entry(project, name, number).await?;
        self.point_alias(caller, project, name, alias, number).await?;
        Ok(())
    }

    /// Removes an alias, if there is one.
    pub async fn delete_registered_model_alias(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        alias: &str,
    ) -> Result<()> {
        self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        check_alias_name(alias)?;
        self.find_registered_model(project, name).await?;
        self.drop_alias(caller, project, name, alias).await?;
        Ok(())
    }

    /// The version that an alias points at.
    pub async fn get_version_by_alias(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        alias: &str,
    ) -> Result<VersionEntry> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        check_alias_name(alias)?;
        self.find_aliased(project, name, alias).await
    }

    /// The version that an alias points at, for whoever may do what needs it.
    pub(super) async fn find_aliased(&self, project: &str, name: &str, alias: &str) -> Result<VersionEntry> {
        let model = self.find_registered_model(project, name).await?;
        if alias.eq_ignore_ascii_case(LATEST_ALIAS) {
            let newest = model.newest().cloned();
            return newest.ok_or_else(|| Error::NotThere(format!("Latest version not found for model {name}.")));
        }
        let target = model.aliases.iter().find(|(known, _)| known == alias);
        let (_, number) =
            target.ok_or_else(|| Error::request(format!("Registered model alias {} not found.", shown(alias))))?;
        self.find_entry(project, name, *number).await
    }

    /// The models that are found, and the token of the next page.
    pub async fn search_registered_models(
        &self,
        caller: &Caller,
        project: &str,
        query: &EntryQuery,
    ) -> Result<(Vec<ModelEntry>, Option<String>)> {
        self.enter(caller, Action::ModelRead, Resource::project(project))
            .await?;
        let search = query.read(&REGISTERED_MODELS, MODELS_PAGE)?;
        let found = self.stores.entry_search.search_model_entries(project, &search).await?;
        Ok(cut(found, &search))
    }

    /// The versions that are found, and the token of the next page.
    pub async fn search_versions(
        &self,
        caller: &Caller,
        project: &str,
        query: &EntryQuery,
    ) -> Result<(Vec<VersionEntry>, Option<String>)> {
        self.enter(caller, Action::ModelRead, Resource::project(project))
            .await?;
        let search = query.read(&MODEL_VERSIONS, VERSIONS_PAGE)?;
        let found = self
            .stores
            .entry_search
            .search_version_entries(project, &search)
            .await?;
        Ok(cut(found, &search))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_come_back() {
        assert_eq!(read_page_token(&page_token(1200)).unwrap(), 1200);
        for bad in ["x", "", "e30=", "eyJvZmZzZXQiOiAtMX0="] {
            assert!(read_page_token(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_are_bounded() {
        let query = |max_results| EntryQuery {
            max_results,
            ..EntryQuery::default()
        };
        let read = |max_results| query(max_results).read(&MODEL_VERSIONS, VERSIONS_PAGE);
        assert_eq!(read(None).unwrap().limit, 10_000);
        assert_eq!(read(Some(200_000)).unwrap().limit, MAX_SENT);
        assert_eq!(read(Some(5)).unwrap().limit, 5);
        assert!(read(Some(0)).is_err() && read(Some(-1)).is_err() && read(Some(200_001)).is_err());
        let search = read(Some(2)).unwrap();
        let (page, token) = cut(vec![1, 2, 3], &search);
        assert_eq!((page, read_page_token(&token.unwrap()).unwrap()), (vec![1, 2], 2));
        assert_eq!(cut(vec![1, 2], &search), (vec![1, 2], None));
    }
}
