//! What MLflow's clients see of a model version and change about it.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        dataset::MAX_DESCRIPTION_BYTES,
        mlflow_registry::{
            Stage, VersionEntry, check_model_name, check_tag, check_tag_key, no_version, read_version, shown,
        },
        run::check_text,
    },
    store::Aliases,
};

impl Registry {
    /// A version.
    pub async fn get_version(&self, caller: &Caller, project: &str, name: &str, version: &str) -> Result<VersionEntry> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        self.find_entry(project, name, number(name, version)?).await
    }

    /// Says what a version is.
    pub async fn update_version(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        version: &str,
        description: &str,
    ) -> Result<VersionEntry> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        let number = number(name, version)?;
        check_text("description of model", name, description, MAX_DESCRIPTION_BYTES)?;
        let store = &self.stores.version_registry;
        store.describe_version(project, name, number, description, &event).await
    }

    /// Moves a version to a stage; with `archive`, those that were there become archived.
    pub async fn transition_version(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        version: &str,
        stage: &str,
        archive: bool,
    ) -> Result<VersionEntry> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        let target = Stage::read(stage)?;
        if archive && !target.is_active() {
            return Err(Error::request(format!(
                "Model version transition cannot archive existing model versions because '{}' is not an Active stage. \
                 Valid stages are ['Staging', 'Production']",
                shown(stage)
            )));
        }
        let number = number(name, version)?;
        let store = &self.stores.version_registry;
        store
            .stage_version(project, name, number, target, archive, &event)
            .await
    }

    /// Removes a version with the aliases that point at it.
    #[tracing::instrument(name = "registry.delete_version", skip_all, fields(%project, model = %name, %version))]
    pub async fn delete_version(&self, caller: &Caller, project: &str, name: &str, version: &str) -> Result<()> {
        let event = self.model_event(caller, project, name, Operation::Delete).await?;
        let number = number(name, version)?;
        let entry = self.find_entry(project, name, number).await?;
        if !entry.aliases.is_empty() {
            self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, name))
                .await?;
        }
        let changed_by = caller.principal().to_string();
        let store = &self.stores.version_registry;
        store
            .delete_version(
                project,
                name,
                number,
                &changed_by,
                Aliases::seen(&entry.aliases),
                &event,
            )
            .await?;
        self.desired.notify();
        tracing::info!(model = name, version = number, "model version deleted");
        Ok(())
    }

    /// Sets a tag of a version, or removes it.
    pub async fn tag_version(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        version: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        let event = self.model_event(caller, project, name, Operation::Apply).await?;
        let number = number(name, version)?;
        match value {
            Some(value) => check_tag(key, value)?,
            None => check_tag_key(key)?,
        }
        let store = &self.stores.version_registry;
        store.tag_version(project, name, number, key, value, &event).await?;
        self.webhooks.wake();
        Ok(())
    }
}

fn number(name: &str, version: &str) -> Result<u32> {
    read_version(version)?.ok_or_else(|| no_version(name, shown(version)))
}
