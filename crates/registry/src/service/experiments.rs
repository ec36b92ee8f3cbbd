//! Experiments.

use std::collections::BTreeMap;

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        run::{Experiment, check_key, check_text, check_title},
        tracking::{DEFAULT_EXPERIMENT, ExperimentChange, MAX_EXPERIMENT_TAG_BYTES, NewExperiment},
    },
};

/// The longest place of an experiment's artifacts, in bytes.
const MAX_LOCATION_BYTES: usize = 1024;
/// The project whose experiment `Default` has the number 0.
const DEFAULT_PROJECT: &str = "default";

impl Registry {
    /// Makes an experiment.
    pub async fn create_experiment(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        artifact_location: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<Experiment> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_title("an experiment", name)?;
        check_text(
            "artifact location of experiment",
            name,
            artifact_location,
            MAX_LOCATION_BYTES,
        )?;
        for (key, value) in &tags {
            check_key("tag", key)?;
            check_text("tag", key, value, MAX_EXPERIMENT_TAG_BYTES)?;
        }
        let event = caller.event(
            Action::RunWrite,
            Operation::Create,
            &Resource::named(Kind::Experiment, project, name),
        );
        let new = NewExperiment {
            project: project.to_owned(),
            name: name.to_owned(),
            artifact_location: artifact_location.to_owned(),
            tags,
            event,
        };
        self.stores.experiments.create_experiment(&new).await
    }

    /// The number of an experiment as clients write it. `0` is the experiment `Default` of whichever project is asked.
    pub(crate) async fn experiment_number(&self, caller: &Caller, project: &str, id: &str) -> Result<i64> {
        let number: i64 = id.parse().map_err(|_| {
            let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
            Error::request(format!(
                "Invalid experiment ID: '{shown}'. Experiment IDs are decimal numbers."
            ))
        })?;
        if number != 0 || project == DEFAULT_PROJECT {
            return Ok(number);
        }
        caller.authorize(Action::RunRead, Resource::project(project))?;
        let found = self
            .stores
            .experiments
            .find_experiment_by_name(project, DEFAULT_EXPERIMENT)
            .await?;
        match found {
            Some(experiment) => Ok(experiment.experiment_id.parse().unwrap_or(number)),
            None if caller.may(Action::RunWrite, Resource::project(project)) => {
                let made = self
                    .create_experiment(caller, project, DEFAULT_EXPERIMENT, "", BTreeMap::new())
                    .await;
                let experiment = match made {
                    // Somebody else made it meanwhile.
                    Err(Error::Exists(_)) => self.get_experiment_by_name(caller, project, DEFAULT_EXPERIMENT).await?,
                    made => made?,
                };
                Ok(experiment.experiment_id.parse().unwrap_or(number))
            }
            None => Ok(number),
        }
    }

    /// An experiment, deleted or not.
    pub async fn get_experiment(&self, caller: &Caller, project: &str, number: i64) -> Result<Experiment> {
        let id = number.to_string();
        let resource = Resource::named(Kind::Experiment, project, &id);
        self.enter(caller, Action::RunRead, resource).await?;
        let found = self.stores.experiments.find_experiment(project, number).await?;
        found.ok_or_else(|| Error::NotThere(format!("No Experiment with id={number} exists")))
    }

    /// The experiment with a name, deleted or not.
    pub async fn get_experiment_by_name(&self, caller: &Caller, project: &str, name: &str) -> Result<Experiment> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let found = self.stores.experiments.find_experiment_by_name(project, name).await?;
        found.ok_or_else(|| Error::NotThere(format!("Could not find experiment with name '{name}'")))
    }

    /// Renames, deletes or restores an experiment.
    pub async fn change_experiment(
        &self,
        caller: &Caller,
        project: &str,
        number: i64,
        change: &ExperimentChange,
    ) -> Result<()> {
        let id = number.to_string();
        let resource = Resource::named(Kind::Experiment, project, &id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let operation = match change {
            ExperimentChange::Rename(name) => {
                check_title("an experiment", name)?;
                Operation::Apply
            }
            ExperimentChange::Delete => Operation::Delete,
            ExperimentChange::Restore => Operation::Restore,
        };
        let event = caller.event(Action::RunWrite, operation, &resource);
        self.stores
            .experiments
            .change_experiment(project, number, change, &event)
            .await
    }

    /// Sets a tag of an experiment, or removes it.
    pub async fn tag_experiment(
        &self,
        caller: &Caller,
        project: &str,
        number: i64,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_key("tag", key)?;
        if let Some(value) = value {
            check_text("tag", key, value, MAX_EXPERIMENT_TAG_BYTES)?;
        }
        let now = self.clock.now();
        let was_there = self
            .stores
            .experiments
            .tag_experiment(project, number, key, value, now)
            .await?;
        if value.is_none() && !was_there {
            return Err(Error::NotThere(format!(
                "No tag with name: {key} in experiment with id {number}"
            )));
        }
        Ok(())
    }
}
