//! What is brought here from other MLflow servers: checked like everything else, with the ids, numbers and times that it had.

use modelyard_auth::{
    Action, Caller, Kind, Resource,
    audit::{NewEvent, Operation},
};

use super::{Registry, VersionOrder, tracking::check_dataset};
use crate::{
    error::{Error, Result},
    metrics,
    model::{
        dataset::MAX_DESCRIPTION_BYTES,
        import::{
            Audited, ImportKind, ImportScope, ImportState, ImportTotals, ImportedAs, ImportedExperiment,
            ImportedLoggedModel, ImportedModel, ImportedPoint, ImportedRun, ImportedVersion, MAX_IMPORTED,
            MAX_IMPORTED_POINTS, MAX_IMPORTED_TEXTS, ReadyVersion, check_import_batch, check_import_id,
            check_import_source, check_import_texts,
        },
        mlflow_registry::{check_model_name, collect_tags},
        run::{MAX_INPUTS, MAX_PARAM_BYTES, MAX_TAG_BYTES, MAX_TITLE_BYTES, check_key, check_text, check_title},
        tracking::{MAX_EXPERIMENT_TAG_BYTES, ModelMetric},
    },
    store::MeasuredModel,
};

/// The detail of an audit event that names where something came from.
const IMPORTED_FROM: &str = "imported_from";

fn scope(project: &str, source: &str) -> Result<ImportScope> {
    check_import_source(source)?;
    Ok(ImportScope {
        project: project.to_owned(),
        source: source.to_owned(),
    })
}

/// What the audit chain is told of something that comes from elsewhere.
fn arrival(caller: &Caller, action: Action, resource: &Resource<'_>, source: &str) -> NewEvent {
    let mut event = caller.event(action, Operation::Create, resource);
    event.add_detail(IMPORTED_FROM, source);
    event
}

fn check_run(run: &ImportedRun) -> Result<()> {
    check_import_id("run", &run.run_id)?;
    check_title("a run", &run.name)?;
    check_text("user_id of run", &run.name, &run.user_id, MAX_TITLE_BYTES)?;
    check_import_texts("param", &run.params, MAX_PARAM_BYTES)?;
    check_import_texts("tag", &run.tags, MAX_TAG_BYTES)?;
    check_import_batch("datasets of a run", run.datasets.len(), 10 * MAX_INPUTS)?;
    run.read_datasets().iter().try_for_each(check_dataset)?;
    run.read_models().map(drop)
}

fn check_logged_model(model: &ImportedLoggedModel) -> Result<()> {
    check_import_id("logged model", &model.model_id)?;
    check_title("a logged model", &model.name)?;
    check_text("type of model", &model.name, &model.model_type, MAX_TITLE_BYTES)?;
    if let Some(run_id) = &model.source_run_id {
        check_import_id("run", run_id)?;
    }
    check_import_texts("param", &model.params, MAX_PARAM_BYTES)?;
    check_import_texts("tag", &model.tags, MAX_TAG_BYTES)?;
    check_import_batch("metrics of a logged model", model.metrics.len(), MAX_IMPORTED_TEXTS)?;
    model.read_status().map(drop)
}

/// What runs measured on a logged model.
fn measured(model: &ImportedLoggedModel) -> Result<Vec<(String, ModelMetric)>> {
    let metrics = model.metrics.iter().map(|metric| {
        check_key("metric", &metric.key)?;
        check_import_id("run", &metric.run_id)?;
        let dataset = (metric.dataset_name.clone(), metric.dataset_digest.clone());
        check_text("dataset of metric", &metric.key, &dataset.0, MAX_TITLE_BYTES)?;
        check_text("dataset of metric", &metric.key, &dataset.1, MAX_TITLE_BYTES)?;
        let metric = ModelMetric {
            model_id: model.model_id.clone(),
            dataset,
            key: metric.key.clone(),
            point: metric.point.read(&metric.key)?,
        };
        Ok(metric)
    });
    let metrics = metrics.collect::<Result<Vec<_>>>()?;
    let runs = model.metrics.iter().map(|metric| metric.run_id.clone());
    Ok(runs.zip(metrics).collect())
}

impl Registry {
    /// Makes the experiments of another server, or finds what they are called here. Nothing is written when it is only `tried`.
    pub async fn import_experiments(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        experiments: Vec<ImportedExperiment>,
        tried: bool,
    ) -> Result<Vec<ImportedAs>> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        check_import_batch("experiments", experiments.len(), MAX_IMPORTED)?;
        for experiment in &experiments {
            check_title("an experiment", &experiment.name)?;
            check_key("experiment id", &experiment.source_id)?;
            check_import_texts("tag", &experiment.tags, MAX_EXPERIMENT_TAG_BYTES)?;
        }
        let experiments = experiments.into_iter().map(|item| {
            let resource = Resource::named(Kind::Experiment, project, &item.name);
            let event = arrival(caller, Action::RunWrite, &resource, source);
            Audited { item, event }
        });
        let experiments: Vec<_> = experiments.collect();
        self.stores
            .imports
            .import_experiments(&scope, &experiments, tried)
            .await
    }

    /// Makes runs of another server in an experiment, with their ids: all of them, or none.
    pub async fn import_runs(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        experiment: i64,
        runs: Vec<ImportedRun>,
    ) -> Result<Vec<ImportedAs>> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        check_import_batch("runs", runs.len(), MAX_IMPORTED)?;
        runs.iter().try_for_each(check_run)?;
        let runs = runs.into_iter().map(|item| {
            let resource = Resource::named(Kind::Run, project, &item.run_id);
            let event = arrival(caller, Action::RunWrite, &resource, source);
            Audited { item, event }
        });
        let runs: Vec<_> = runs.collect();
        let imported = self.stores.imports.import_runs(&scope, experiment, &runs).await?;
        ::metrics::counter!(metrics::RUNS).increment(imported.len() as u64);
        Ok(imported)
    }

    /// Adds points to a metric of a run that was imported.
    pub async fn import_points(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        (run_id, key): (&str, &str),
        points: &[ImportedPoint],
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::named(Kind::Run, project, run_id))
            .await?;
        let scope = scope(project, source)?;
        check_import_id("run", run_id)?;
        check_key("metric", key)?;
        check_import_batch("points", points.len(), MAX_IMPORTED_POINTS)?;
        let points = points.iter().map(|point| point.read(key));
        let mut points = points.collect::<Result<Vec<_>>>()?;
        // In the order of their table, which is written faster so.
        points.sort_by_key(|point| (point.timestamp, point.step));
        self.stores.imports.import_points(&scope, run_id, key, &points).await?;
        ::metrics::counter!(metrics::METRIC_POINTS).increment(points.len() as u64);
        Ok(())
    }

    /// Makes logged models of another server in an experiment, with their ids: all of them, or none.
    pub async fn import_logged_models(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        experiment: i64,
        models: Vec<ImportedLoggedModel>,
    ) -> Result<Vec<ImportedAs>> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        check_import_batch("logged models", models.len(), MAX_IMPORTED)?;
        models.iter().try_for_each(check_logged_model)?;
        let models = models.into_iter().map(|item| {
            let mut event = arrival(caller, Action::RunWrite, &Resource::project(project), source);
            event.add_detail("logged_model", item.model_id.as_str());
            let metrics = measured(&item)?;
            Ok((Audited { item, event }, metrics))
        });
        let models = models.collect::<Result<Vec<MeasuredModel>>>()?;
        self.stores
            .imports
            .import_logged_models(&scope, experiment, &models)
            .await
    }

    /// Makes registered models of another server. Nothing is written when it is only `tried`.
    pub async fn import_models(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        models: Vec<ImportedModel>,
        tried: bool,
    ) -> Result<Vec<ImportedAs>> {
        self.enter(caller, Action::ModelWrite, Resource::project(project))
            .await?;
        let scope = scope(project, source)?;
        check_import_batch("models", models.len(), MAX_IMPORTED)?;
        let mut checked = Vec::with_capacity(models.len());
        for mut item in models {
            let mut event = self.model_event(caller, project, &item.name, Operation::Create).await?;
            event.add_detail(IMPORTED_FROM, source);
            check_model_name("source_id", &item.source_id)?;
            check_text(
                "description of model",
                &item.name,
                &item.description,
                MAX_DESCRIPTION_BYTES,
            )?;
            item.tags = collect_tags(item.tags.into_iter().collect())?;
            checked.push(Audited { item, event });
        }
        if checked.is_empty() {
            return Ok(Vec::new());
        }
        let imported = self
            .stores
            .import_registry
            .import_models(&scope, &checked, tried)
            .await?;
        self.desired.notify();
        Ok(imported)
    }

    /// Makes versions of a model that was imported, with their numbers: all of them, or none. Their files are here.
    pub async fn import_versions(
        &self,
        caller: &Caller,
        project: &str,
        (source, source_name): (&str, &str),
        model: &str,
        versions: Vec<ImportedVersion>,
    ) -> Result<Vec<ImportedAs>> {
        self.enter(caller, Action::ModelWrite, Resource::named(Kind::Model, project, model))
            .await?;
        let scope = scope(project, source)?;
        check_import_batch("versions", versions.len(), MAX_IMPORTED)?;
        let mut ready = Vec::with_capacity(versions.len());
        for version in versions {
            let mut event = self.model_event(caller, project, model, Operation::Create).await?;
            event.add_detail(IMPORTED_FROM, source);
            ready.push(self.ready_version(caller, project, model, version, event).await?);
        }
        let imported = self
            .stores
            .import_registry
            .import_versions(&scope, source_name, &ready)
            .await?;
        ::metrics::counter!(metrics::MODEL_VERSIONS).increment(imported.len() as u64);
        self.desired.notify();
        Ok(imported)
    }

    async fn ready_version(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        version: ImportedVersion,
        event: NewEvent,
    ) -> Result<ReadyVersion> {
        if version.version == 0 {
            return Err(Error::request(format!(
                "a version of model `{model}` has the number 0: versions count from 1"
            )));
        }
        check_text("user_id of model", model, &version.user_id, MAX_TITLE_BYTES)?;
        check_text("status_message of model", model, &version.status_message, MAX_TAG_BYTES)?;
        let (stage, status) = (version.read_stage()?, version.read_status());
        let order = VersionOrder {
            name: model.to_owned(),
            source: version.source,
            run_id: version.run_id.filter(|id| !id.is_empty()),
            model_id: version.model_id.filter(|id| !id.is_empty()),
            run_link: version.run_link,
            description: version.description,
            tags: version.tags.into_iter().collect(),
        };
        let mut entry = self.new_entry(caller, project, &order, event).await?;
        entry.version.now = modelyard_common::Timestamp::from_millis(version.created_ms);
        if entry.status_message.is_empty() {
            entry.status_message = version.status_message;
        }
        Ok(ReadyVersion {
            entry,
            number: version.version,
            user_id: version.user_id,
            stage,
            status,
            updated_at: modelyard_common::Timestamp::from_millis(version.updated_ms),
        })
    }

    /// How far the import of some things is. What was not begun is left out.
    pub async fn import_states(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        kind: ImportKind,
        ids: &[String],
    ) -> Result<Vec<ImportState>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        check_import_batch("ids", ids.len(), MAX_IMPORTED)?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.stores.imports.import_states(&scope, kind, ids).await
    }

    /// Says that all of some things has arrived.
    pub async fn set_import_states(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        kind: ImportKind,
        states: &[ImportState],
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        check_import_batch("items", states.len(), MAX_IMPORTED)?;
        for state in states {
            check_text(
                "fingerprint of item",
                &state.source_id,
                &state.fingerprint,
                MAX_TITLE_BYTES,
            )?;
        }
        self.stores.imports.set_import_states(&scope, kind, states).await
    }

    /// What of a source is in an experiment.
    pub async fn count_imported(
        &self,
        caller: &Caller,
        project: &str,
        source: &str,
        experiment: i64,
    ) -> Result<ImportTotals> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let scope = scope(project, source)?;
        self.stores.imports.count_imported(&scope, experiment).await
    }
}
