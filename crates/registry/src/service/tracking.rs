//! Runs as MLflow's clients change them.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        run::{MAX_INPUTS, MetricPoint, Run, check_key, check_text, check_title},
        tracking::{Lifecycle, MetricSampling, PROXY_SCHEME, RunChange, RunDataset, RunModel},
    },
    store::{DatasetSummary, ExperimentPage, ExperimentSearch, RunPage, RunSearch},
};

/// The most runs of one chart.
const MAX_SAMPLED_RUNS: usize = 100;
/// The most datasets of experiments that are found, as MLflow has it.
const MAX_DATASETS: u32 = 1000;
/// The longest name of a dataset, its digest, and the kind of its source, in bytes.
const MAX_DATASET_NAME_BYTES: usize = 500;
/// The largest source of a dataset, in bytes.
const MAX_DATASET_SOURCE_BYTES: usize = 64 << 10;
/// The largest schema of a dataset, in bytes.
const MAX_DATASET_SCHEMA_BYTES: usize = 1 << 20;
/// The largest profile of a dataset, in bytes.
const MAX_DATASET_PROFILE_BYTES: usize = 16 << 20;

pub(super) fn check_dataset(dataset: &RunDataset) -> Result<()> {
    for (what, length, limit) in [
        ("name", dataset.name.len(), MAX_DATASET_NAME_BYTES),
        ("digest", dataset.digest.len(), MAX_DATASET_NAME_BYTES),
        ("context", dataset.context.len(), MAX_DATASET_NAME_BYTES),
        ("source_type", dataset.source_type.len(), MAX_DATASET_NAME_BYTES),
        ("source", dataset.source.len(), MAX_DATASET_SOURCE_BYTES),
        (
            "schema",
            dataset.schema.as_deref().map_or(0, str::len),
            MAX_DATASET_SCHEMA_BYTES,
        ),
        (
            "profile",
            dataset.profile.as_deref().map_or(0, str::len),
            MAX_DATASET_PROFILE_BYTES,
        ),
    ] {
        if length > limit {
            return Err(Error::request(format!(
                "the {what} of dataset `{}` has {length} bytes: use at most {limit}",
                dataset.name.chars().take(64).collect::<String>()
            )));
        }
    }
    if dataset.tags.len() > MAX_INPUTS {
        return Err(Error::request(format!(
            "a dataset has {} tags: use at most {MAX_INPUTS}",
            dataset.tags.len()
        )));
    }
    for (key, value) in &dataset.tags {
        check_key("tag", key)?;
        check_text("tag", key, value, MAX_DATASET_NAME_BYTES)?;
    }
    Ok(())
}

impl Registry {
    /// Changes a run, deletes or restores it.
    pub async fn change_run(&self, caller: &Caller, project: &str, run_id: &str, change: &RunChange) -> Result<Run> {
        let resource = Resource::named(Kind::Run, project, run_id);
        self.enter(caller, Action::RunWrite, resource).await?;
        if let Some(name) = &change.name {
            check_title("a run", name)?;
        }
        let operation = match change.lifecycle {
            Some(Lifecycle::Deleted) => Operation::Delete,
            Some(Lifecycle::Active) => Operation::Restore,
            None if change.status.is_some_and(crate::model::run::RunStatus::is_final) => Operation::Finish,
            None => Operation::Apply,
        };
        let event = caller.event(Action::RunWrite, operation, &resource);
        self.stores.tracking.change_run(project, run_id, change, &event).await
    }

    /// Removes a tag of a run.
    pub async fn delete_run_tag(&self, caller: &Caller, project: &str, run_id: &str, key: &str) -> Result<()> {
        let resource = Resource::named(Kind::Run, project, run_id);
        self.enter(caller, Action::RunWrite, resource).await?;
        if self.stores.tracking.delete_run_tag(project, run_id, key).await? {
            return Ok(());
        }
        Err(Error::NotThere(format!(
            "No tag with name: {key} in run with id {run_id}"
        )))
    }

    /// Adds datasets and logged models that a run read or made.
    pub async fn add_run_links(
        &self,
        caller: &Caller,
        project: &str,
        run_id: &str,
        datasets: &[RunDataset],
        models: &[RunModel],
    ) -> Result<()> {
        let resource = Resource::named(Kind::Run, project, run_id);
        self.enter(caller, Action::RunWrite, resource).await?;
        if datasets.len().max(models.len()) > MAX_INPUTS {
            return Err(Error::request(format!(
                "{} datasets and {} models are too many at once: send at most {MAX_INPUTS}",
                datasets.len(),
                models.len()
            )));
        }
        datasets.iter().try_for_each(check_dataset)?;
        for model in models {
            check_key("model id", &model.model_id)?;
        }
        self.stores
            .tracking
            .add_run_links(project, run_id, datasets, models)
            .await
    }

    /// The points of a metric at some steps of each run, for a chart.
    pub async fn sample_metric(
        &self,
        caller: &Caller,
        project: &str,
        sampling: &MetricSampling,
    ) -> Result<Vec<(String, MetricPoint)>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        if sampling.run_ids.len() > MAX_SAMPLED_RUNS {
            return Err(Error::request(format!(
                "GetMetricHistoryBulkInterval request must specify at most {MAX_SAMPLED_RUNS} run_ids. Received {} run_ids.",
                sampling.run_ids.len()
            )));
        }
        for run_id in &sampling.run_ids {
            self.enter(caller, Action::RunRead, Resource::named(Kind::Run, project, run_id))
                .await?;
        }
        self.stores.tracking.sample_metric(project, sampling).await
    }

    /// Where a run's artifacts are in the server's own store: what follows `mlflow-artifacts:/`.
    pub(crate) async fn run_artifact_root(&self, caller: &Caller, project: &str, run_id: &str) -> Result<String> {
        let run = self.get_run(caller, project, run_id).await?;
        let Some(path) = run.artifact_uri.strip_prefix(PROXY_SCHEME) else {
            return Err(Error::State(format!(
                "the artifacts of run {run_id} are at {} and not in this server's store: clients read them there",
                run.artifact_uri
            )));
        };
        Ok(path.trim_start_matches('/').to_owned())
    }
}

impl Registry {
    /// A page of the runs that are found.
    pub async fn search_runs(&self, caller: &Caller, project: &str, search: &RunSearch) -> Result<RunPage> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.search.search_runs(project, search).await
    }

    /// A page of the experiments that are found.
    pub async fn search_experiments(
        &self,
        caller: &Caller,
        project: &str,
        search: &ExperimentSearch,
    ) -> Result<ExperimentPage> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.search.search_experiments(project, search).await
    }

    /// The datasets that runs of experiments read.
    pub async fn search_run_datasets(
        &self,
        caller: &Caller,
        project: &str,
        experiments: &[i64],
    ) -> Result<Vec<DatasetSummary>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let search = &self.stores.search;
        search.search_run_datasets(project, experiments, MAX_DATASETS).await
    }
}
