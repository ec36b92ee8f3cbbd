//! Scorers of experiments.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        mlflow_registry::shown,
        scorer::{MAX_LISTED_SCORERS, MAX_SCORER_FILTER_BYTES, ScorerOnlineConfig, ScorerVersion, check_scorer},
    },
    search::{TRACES, parse_filter},
};

fn check_count(what: &str, count: usize) -> Result<()> {
    if count <= MAX_LISTED_SCORERS {
        return Ok(());
    }
    Err(Error::request(format!(
        "{count} {what} are too many: name at most {MAX_LISTED_SCORERS} at once"
    )))
}

impl Registry {
    /// Registers a version of a scorer.
    #[tracing::instrument(name = "registry.register_scorer", skip_all, fields(%project, experiment = experiment_id))]
    pub async fn register_scorer(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        name: &str,
        serialized: &str,
    ) -> Result<ScorerVersion> {
        let id = experiment_id.to_string();
        let resource = Resource::named(Kind::Experiment, project, &id);
        self.enter(caller, Action::RunWrite, resource).await?;
        check_scorer(name, serialized)?;
        let event = caller.event(Action::RunWrite, Operation::Apply, &resource);
        let new = ScorerVersion {
            scorer_id: self.ids.next().to_string(),
            experiment_id,
            name: name.to_owned(),
            version: 0,
            serialized: serialized.to_owned(),
            created_at: event.at,
        };
        let made = self.stores.scorers.register_scorer(project, &new, &event).await?;
        tracing::info!(version = made.version, "scorer registered");
        Ok(made)
    }

    /// The newest versions of the scorers of an experiment.
    pub async fn list_scorers_of(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
    ) -> Result<Vec<ScorerVersion>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.scorers.list_scorers_of(project, experiment_id).await
    }

    /// The newest versions of the scorers of active experiments; none: of all of them.
    pub async fn list_scorers(
        &self,
        caller: &Caller,
        project: &str,
        experiment_ids: Option<&[i64]>,
    ) -> Result<Vec<ScorerVersion>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        check_count("experiments", experiment_ids.map_or(0, <[i64]>::len))?;
        self.stores.scorers.list_scorers(project, experiment_ids).await
    }

    /// The versions of a scorer, in their order.
    pub async fn list_scorer_versions(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        name: &str,
    ) -> Result<Vec<ScorerVersion>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let scorers = &self.stores.scorers;
        scorers.list_scorer_versions(project, experiment_id, name).await
    }

    /// A version of a scorer; the newest if none is named.
    pub async fn get_scorer(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
    ) -> Result<ScorerVersion> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let scorers = &self.stores.scorers;
        scorers.get_scorer(project, experiment_id, name, version).await
    }

    /// Removes a version of a scorer, or the scorer.
    #[tracing::instrument(name = "registry.delete_scorer", skip_all, fields(%project, experiment = experiment_id))]
    pub async fn delete_scorer(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
    ) -> Result<()> {
        let id = experiment_id.to_string();
        let resource = Resource::named(Kind::Experiment, project, &id);
        self.enter(caller, Action::RunWrite, resource).await?;
        // The experiment stays: a part of it is removed.
        let event = caller.event(Action::RunWrite, Operation::Apply, &resource);
        let scorers = &self.stores.scorers;
        scorers
            .delete_scorer(project, experiment_id, name, version, &event)
            .await?;
        tracing::info!("scorer removed");
        Ok(())
    }

    /// The online configurations of scorers; those that have none are left out.
    pub async fn scorer_online_configs(
        &self,
        caller: &Caller,
        project: &str,
        scorer_ids: &[String],
    ) -> Result<Vec<ScorerOnlineConfig>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        check_count("scorers", scorer_ids.len())?;
        self.stores.scorers.online_configs(project, scorer_ids).await
    }

    /// Sets the online configuration of a scorer.
    pub async fn put_scorer_online_config(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        name: &str,
        (sample_rate, filter): (f64, Option<String>),
    ) -> Result<ScorerOnlineConfig> {
        let id = experiment_id.to_string();
        self.enter(
            caller,
            Action::RunWrite,
            Resource::named(Kind::Experiment, project, &id),
        )
        .await?;
        if !(0.0..=1.0).contains(&sample_rate) {
            return Err(Error::request(format!(
                "sample_rate must be between 0.0 and 1.0, got {sample_rate}"
            )));
        }
        if let Some(filter) = &filter
            && filter.len() > MAX_SCORER_FILTER_BYTES
        {
            return Err(Error::request(format!(
                "filter_string `{}` has {} bytes: use at most {MAX_SCORER_FILTER_BYTES}",
                shown(filter),
                filter.len()
            )));
        }
        parse_filter(&TRACES, filter.as_deref().unwrap_or_default())?;
        let wanted = ScorerOnlineConfig {
            id: self.ids.next().simple().to_string(),
            scorer_id: String::new(),
            experiment_id,
            sample_rate,
            filter,
        };
        self.stores.scorers.put_online_config(project, name, &wanted).await
    }
}
