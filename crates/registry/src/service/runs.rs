//! Experiments and runs.

use std::collections::BTreeMap;

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::{Timestamp, name::check_name};
use serde::Serialize;

use super::Registry;
use crate::{
    error::{Error, Result},
    metrics,
    model::{
        page::{Page, PageRequest},
        registered_model::idempotency_key,
        run::{
            Batch, Experiment, ExperimentChoice, MAX_BATCH, MAX_BATCH_TEXTS, MAX_INPUTS, MAX_TAG_BYTES,
            MAX_TITLE_BYTES, MetricPlace, MetricPoint, MetricValue, NewRun, Run, RunBatch, RunInput, RunPlace,
            RunStatus, check_key, check_text, check_title, request_digest,
        },
        tracking::RUN_NAME_TAG,
    },
    store::no_run,
};

/// How many of the last digits of a run's id name it when the caller does not.
const NAMING_DIGITS: usize = 8;

/// A run to be created.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunRequest {
    /// The experiment: by name, which is created where it is missing.
    pub experiment: String,
    /// The number of the experiment, instead of its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment_number: Option<i64>,
    /// The name of the run; empty: one is made up.
    pub name: String,
    /// Who makes it, as the client says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_id: String,
    /// When it started; none: now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// What it reads.
    pub inputs: Vec<InputRequest>,
    /// Repeating a creation with the same key finds the first one's run; empty: none.
    pub idempotency_key: String,
}

/// A dataset version that a run reads.
#[derive(Debug, Clone, Serialize)]
pub struct InputRequest {
    /// The dataset.
    pub dataset: String,
    /// Its version.
    pub version: u32,
    /// What it is read for.
    pub context: String,
}

impl Registry {
    /// Starts a run.
    #[tracing::instrument(name = "registry.create_run", level = "debug", skip_all, fields(%project))]
    pub async fn create_run(&self, caller: &Caller, project: &str, request: RunRequest) -> Result<Run> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let experiment = if let Some(number) = request.experiment_number {
            ExperimentChoice::Numbered(number)
        } else {
            check_title("an experiment", &request.experiment)?;
            ExperimentChoice::Named(request.experiment.clone())
        };
        if !request.name.is_empty() {
            check_title("a run", &request.name)?;
        }
        check_text("user of run", &request.name, &request.user_id, MAX_TITLE_BYTES)?;
        for (key, value) in &request.tags {
            check_key("tag", key)?;
            check_text("tag", key, value, MAX_TAG_BYTES)?;
        }
        if request.tags.len() > MAX_BATCH_TEXTS || request.inputs.len() > MAX_INPUTS {
            return Err(Error::request(format!(
                "the run has {} tags and {} inputs: use at most {MAX_BATCH_TEXTS} and {MAX_INPUTS}",
                request.tags.len(),
                request.inputs.len()
            )));
        }
        let key = idempotency_key(&request.idempotency_key)?;
        let digest = request_digest(&request);
        let inputs = self.find_inputs(project, &request.inputs).await?;
        let run_id = self.ids.next().simple().to_string();
        let now = self.clock.now();
        let name = if request.name.is_empty() {
            format!("run-{}", &run_id[run_id.len() - NAMING_DIGITS..])
        } else {
            request.name
        };
        let mut tags = request.tags;
        if request.experiment_number.is_some() {
            // MLflow's clients look for the name among the tags.
            tags.entry(RUN_NAME_TAG.to_owned()).or_insert_with(|| name.clone());
        }
        let run = NewRun {
            project: project.to_owned(),
            experiment,
            name,
            user_id: request.user_id,
            start_time: request.start_time.unwrap_or(now),
            tags,
            inputs,
            event: caller.event(
                Action::RunWrite,
                Operation::Create,
                &Resource::named(Kind::Run, project, &run_id),
            ),
            run_id,
            idempotency_key: key,
            request_digest: digest,
            now,
        };
        let run = if run.idempotency_key.is_none() && run.inputs.is_empty() {
            self.new_runs.put(run).await?
        } else {
            self.stores.runs.create_run(&run).await?
        };
        ::metrics::counter!(metrics::RUNS).increment(1);
        Ok(run)
    }

    async fn find_inputs(&self, project: &str, inputs: &[InputRequest]) -> Result<Vec<RunInput>> {
        let mut found = Vec::with_capacity(inputs.len());
        for input in inputs {
            check_text("context of dataset", &input.dataset, &input.context, MAX_TAG_BYTES)?;
            let version = self
                .find_fixed_dataset_version(project, &input.dataset, input.version)
                .await?;
            found.push(RunInput {
                dataset: input.dataset.clone(),
                version: input.version,
                digest: version.summary.digest,
                context: input.context.clone(),
            });
        }
        Ok(found)
    }

    /// Adds params, metrics and tags to a run, all or none of them.
    pub async fn log_batch(&self, caller: &Caller, project: &str, run_id: &str, mut batch: Batch) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::named(Kind::Run, project, run_id))
            .await?;
        let (params, metrics, tags) = (batch.params.len(), batch.metrics.len(), batch.tags.len());
        if params > MAX_BATCH_TEXTS || tags > MAX_BATCH_TEXTS || params + metrics + tags > MAX_BATCH {
            return Err(Error::request(format!(
                "{params} params, {metrics} metrics and {tags} tags are too many for one batch: send at most \
                 {MAX_BATCH_TEXTS} params, {MAX_BATCH_TEXTS} tags and {MAX_BATCH} in all"
            )));
        }
        for (key, point) in &mut batch.metrics {
            check_key("metric", key)?;
            // JSON has no infinity; NaN stays and is told apart when it is stored.
            point.value = MetricValue(point.value.0.clamp(f64::MIN, f64::MAX));
        }
        for metric in &mut batch.model_metrics {
            let (name, digest) = &metric.dataset;
            check_text("dataset of metric", &metric.key, name, MAX_TITLE_BYTES)?;
            check_text("dataset of metric", &metric.key, digest, MAX_TITLE_BYTES)?;
            metric.point.value = MetricValue(metric.point.value.0.clamp(f64::MIN, f64::MAX));
        }
        let batch = RunBatch {
            project: project.to_owned(),
            run_id: run_id.to_owned(),
            batch,
        };
        self.run_log.put(batch).await?;
        ::metrics::counter!(metrics::METRIC_POINTS).increment(metrics as u64);
        Ok(())
    }

    /// Ends a run: finished, failed or killed.
    pub async fn finish_run(&self, caller: &Caller, project: &str, run_id: &str, status: RunStatus) -> Result<Run> {
        self.enter(caller, Action::RunWrite, Resource::named(Kind::Run, project, run_id))
            .await?;
        if !status.is_final() {
            return Err(Error::request(format!(
                "a run does not end as {}: end it as FINISHED, FAILED or KILLED",
                status.as_str()
            )));
        }
        let event = caller.event(
            Action::RunWrite,
            Operation::Finish,
            &Resource::named(Kind::Run, project, run_id),
        );
        self.stores.runs.finish_run(project, run_id, status, &event).await
    }

    /// A run.
    pub async fn get_run(&self, caller: &Caller, project: &str, run_id: &str) -> Result<Run> {
        self.enter(caller, Action::RunRead, Resource::named(Kind::Run, project, run_id))
            .await?;
        let run = self.stores.runs.find_run(project, run_id).await?;
        run.ok_or_else(|| no_run(run_id))
    }

    /// The runs of a project or of one of its experiments, newest first.
    pub async fn list_runs(
        &self,
        caller: &Caller,
        project: &str,
        experiment: Option<&str>,
        page: &PageRequest<RunPlace>,
    ) -> Result<Page<Run>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.runs.list_runs(project, experiment, page).await
    }

    /// The history of a metric by step, time and value; empty when the run never logged it.
    pub async fn metric_history(
        &self,
        caller: &Caller,
        project: &str,
        run_id: &str,
        key: &str,
        page: &PageRequest<MetricPlace>,
    ) -> Result<Page<MetricPoint>> {
        self.enter(caller, Action::RunRead, Resource::named(Kind::Run, project, run_id))
            .await?;
        let history = self.stores.runs.metric_history(project, run_id, key, page).await?;
        history.ok_or_else(|| no_run(run_id))
    }

    /// The experiments by id.
    pub async fn list_experiments(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<Experiment>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.runs.list_experiments(project, page).await
    }

    /// A dataset version that something else refers to: it must exist, and `latest` is none.
    pub(super) async fn find_fixed_dataset_version(
        &self,
        project: &str,
        dataset: &str,
        version: u32,
    ) -> Result<crate::model::dataset::DatasetVersion> {
        check_name("a dataset", dataset)?;
        let found = match version {
            0 => None,
            version => {
                self.stores
                    .datasets
                    .find_dataset_version(project, dataset, Some(version))
                    .await?
            }
        };
        found.ok_or_else(|| {
            Error::request(format!(
                "version {version} of dataset `{dataset}` does not exist: name one that does"
            ))
        })
    }
}
