//! Model versions as MLflow's clients make and change them: from a source, which is a folder of files.

use modelyard_auth::{
    Action, Caller, Kind, Resource,
    audit::{NewEvent, Operation},
};

use super::{
    Registry,
    saved_models::{Served, below},
};
use crate::{
    error::{Error, Result},
    metrics,
    model::{
        alias::Selector,
        dataset::MAX_DESCRIPTION_BYTES,
        mlflow_registry::{
            LoggedSource, NewVersionEntry, PROMPT_SOURCES, Stage, VersionEntry, check_model_name, collect_tags,
            is_prompt, no_version, read_version, shown,
        },
        model_source::{MAX_SOURCE_BYTES, ModelUri, Uri, check_source, read_run_uri, unproven, unproven_path},
        registered_model::{NewModelVersion, no_signature},
        run::{check_text, request_digest},
    },
};

/// The longest id of a run or logged model, in bytes.
const MAX_ID_BYTES: usize = 256;

/// A version to be made from a source.
#[derive(Debug, Clone, Default)]
pub struct VersionOrder {
    /// The model, which exists.
    pub name: String,
    /// Where the files are.
    pub source: String,
    /// The run that made them; none: the client did not say, which is not the same as an empty text.
    pub run_id: Option<String>,
    /// The logged model that they are; none: the client did not say.
    pub model_id: Option<String>,
    /// A link to the run.
    pub run_link: String,
    /// What it is.
    pub description: String,
    /// Notes.
    pub tags: Vec<(String, String)>,
}

impl VersionOrder {
    fn check(&self) -> Result<()> {
        check_text(
            "description of model",
            &self.name,
            &self.description,
            MAX_DESCRIPTION_BYTES,
        )?;
        check_text("source of model", &self.name, &self.source, MAX_SOURCE_BYTES)?;
        check_text("run_link of model", &self.name, &self.run_link, MAX_SOURCE_BYTES)?;
        for (what, id) in [("run_id", &self.run_id), ("model_id", &self.model_id)] {
            check_text(what, &self.name, id.as_deref().unwrap_or_default(), MAX_ID_BYTES)?;
        }
        Ok(())
    }
}

/// What a version is made of, once its source was followed.
#[derive(Debug, Default)]
struct Origin {
    source: String,
    /// Where the files are, where the source does not say.
    storage_location: String,
    run_id: Option<String>,
    model_id: Option<String>,
    /// The version that it is a copy of.
    copied: Option<(String, u32)>,
}

/// A text that says something.
fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

impl Registry {
    /// Makes a version from a source. Where its files are in this server's store and an ONNX model is among them, it can be
    /// served.
    #[tracing::instrument(name = "registry.create_version", skip_all, fields(%project, model = %order.name))]
    pub async fn create_version(&self, caller: &Caller, project: &str, order: VersionOrder) -> Result<VersionEntry> {
        let event = self
            .model_event(caller, project, &order.name, Operation::Create)
            .await?;
        let new = self.new_entry(caller, project, &order, event).await?;
        let created = self.stores.version_registry.create_version_entry(&new).await?;
        ::metrics::counter!(metrics::MODEL_VERSIONS).increment(1);
        self.desired.notify();
        self.webhooks.wake();
        tracing::info!(
            model = order.name,
            version = created.version,
            servable = !created.artifact_digest.is_empty(),
            "model version created"
        );
        Ok(created)
    }

    /// A version of what an order names, once its source was followed.
    pub(super) async fn new_entry(
        &self,
        caller: &Caller,
        project: &str,
        order: &VersionOrder,
        event: NewEvent,
    ) -> Result<NewVersionEntry> {
        let name = order.name.as_str();
        order.check()?;
        let tags = collect_tags(order.tags.clone())?;
        let removals = self.stores.blobs.storage_view(project).await?.removals;
        let (origin, served) = if is_prompt(&tags) {
            (prompt_origin(order)?, Served::default())
        } else {
            let origin = self.origin(caller, project, order).await?;
            let served = self.served(project, &origin).await?;
            (origin, served)
        };
        let run_id = origin.run_id.as_deref();
        let known_run = match run_id {
            Some(run_id) => self.stores.runs.find_run(project, run_id).await?,
            None => None,
        };
        let signature = served.signature.unwrap_or_else(no_signature);
        Ok(NewVersionEntry {
            version: NewModelVersion {
                project: project.to_owned(),
                model: name.to_owned(),
                description: order.description.clone(),
                format: served.format,
                files: served.files,
                artifact_digest: served.digest,
                artifact_size_bytes: served.size_bytes,
                signature: signature.to_string(),
                bundle: served.bundle,
                reference_profile_digest: served.reference_profile_digest,
                reference_profile_size_bytes: served.reference_profile_size_bytes,
                removals,
                metrics: served.metrics,
                run_id: known_run.map(|run| run.run_id),
                dataset: served.dataset,
                training_rows: served.training_rows,
                tags,
                aliases: Vec::new(),
                idempotency_key: None,
                request_digest: request_digest(&(name, &origin.source, &order.description)),
                changed_by: caller.principal().to_string(),
                event,
                now: self.clock.now(),
            },
            run_id: run_id.map(str::to_owned),
            source: origin.source,
            storage_location: origin.storage_location,
            run_link: order.run_link.clone(),
            status_message: served.problem,
            model_id: origin.model_id,
        })
    }

    /// Follows a source, and refuses one that the caller has not shown to be part of a run or logged model.
    async fn origin(&self, caller: &Caller, project: &str, order: &VersionOrder) -> Result<Origin> {
        let mut uri = Uri::split(&order.source);
        let mut origin = Origin {
            source: order.source.clone(),
            run_id: filled(order.run_id.as_deref()).map(str::to_owned),
            model_id: filled(order.model_id.as_deref()).map(str::to_owned),
            ..Origin::default()
        };
        let mut logged_id = None;
        if uri.scheme == "models" {
            if !uri.authority.is_empty() {
                return Err(Error::request(format!(
                    "Invalid model version source: '{}'. Registered model sources must use the active model registry.",
                    shown(&order.source)
                )));
            }
            match ModelUri::read(&uri).ok_or_else(|| unproven(&order.source, "model_id"))? {
                ModelUri::Logged(id) => logged_id = Some(id),
                reference => {
                    self.copy_origin(caller, project, order, reference, &mut origin).await?;
                    uri = Uri::split(&origin.source);
                }
            }
        }
        match origin.model_id.clone() {
            Some(model_id) => {
                let logged = self.check_source_model(project, &origin, &uri, &model_id).await?;
                origin.run_id = origin.run_id.or_else(|| logged.as_ref()?.run_id.clone());
                if logged_id.is_some() {
                    let logged = logged.ok_or_else(|| {
                        Error::NotThere(format!(
                            "Unable to fetch model from model URI source artifact location '{}'. Error: Logged model with \
                             ID '{}' not found.",
                            shown(&order.source),
                            shown(&model_id)
                        ))
                    })?;
                    origin.storage_location = logged.artifact_location;
                }
            }
            None if logged_id.is_some() => return Err(unproven(&order.source, "model_id")),
            None => self.check_source_run(project, &origin, &uri).await?,
        }
        Ok(origin)
    }

    /// The origin of a copy of a registered version, which the caller may read.
    async fn copy_origin(
        &self,
        caller: &Caller,
        project: &str,
        order: &VersionOrder,
        reference: ModelUri,
        origin: &mut Origin,
    ) -> Result<()> {
        let (ModelUri::Logged(name)
        | ModelUri::Version(name, _)
        | ModelUri::Latest(name)
        | ModelUri::Stage(name, _)
        | ModelUri::Alias(name, _)) = &reference;
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        let model = self.find_registered_model(project, name).await?;
        if model.is_prompt() {
            return Err(Error::request(format!(
                "Invalid model version source: '{}'. Prompt versions cannot be used as model version sources.",
                shown(&order.source)
            )));
        }
        let none = |stage: &str| Error::NotThere(format!("No versions of model with name '{name}'{stage} found"));
        let version = match &reference {
            ModelUri::Version(_, version) => {
                let number = read_version(version)?.ok_or_else(|| no_version(name, version))?;
                self.find_entry(project, name, number).await?
            }
            ModelUri::Alias(_, alias) => self.find_aliased(project, name, alias).await?,
            ModelUri::Stage(_, stage) => {
                let wanted = Stage::read(stage)?;
                let found = model.latest.into_iter().find(|version| version.stage == wanted);
                found.ok_or_else(|| none(&format!(" and stage '{}'", wanted.as_str())))?
            }
            ModelUri::Logged(_) | ModelUri::Latest(_) => model.newest().cloned().ok_or_else(|| none(""))?,
        };
        let differs = |given: &Option<String>, known: &Option<String>| {
            given
                .as_ref()
                .is_some_and(|given| given != known.as_deref().unwrap_or_default())
        };
        if differs(&order.run_id, &version.run_id) || differs(&order.model_id, &version.model_id) {
            return Err(Error::request(format!(
                "Invalid model version source: '{}'. The run_id and model_id request parameters must match the referenced \
                 model version.",
                shown(&order.source)
            )));
        }
        version
            .download_uri()
            .unwrap_or_default()
            .clone_into(&mut origin.storage_location);
        origin.source = format!("models:/{name}/{}", version.version);
        origin.run_id = version.run_id;
        origin.model_id = version.model_id;
        origin.copied = Some((name.clone(), version.version));
        Ok(())
    }

    /// Refuses a source that is not part of a logged model; that one, if it is there.
    async fn check_source_model(
        &self,
        project: &str,
        origin: &Origin,
        uri: &Uri,
        model_id: &str,
    ) -> Result<Option<LoggedSource>> {
        let logged = self
            .stores
            .version_registry
            .find_logged_source(project, model_id)
            .await?;
        let root = logged.as_ref().map(|logged| Uri::split(&logged.artifact_location));
        let is_within = root.as_ref().is_some_and(|root| uri.is_within(root));
        let source = origin.source.as_str();
        if uri.is_local() {
            let is_safe = check_source(&format!("file://{}", uri.path)).is_ok();
            return if is_within && is_safe {
                Ok(logged)
            } else {
                Err(unproven_path(source, "model_id"))
            };
        }
        check_source(source)?;
        let is_other = match uri.scheme.as_str() {
            "models" => origin.copied.is_none() && ModelUri::read(uri) != Some(ModelUri::Logged(model_id.to_owned())),
            "runs" => true,
            _ => uri.is_proxied() && !is_within,
        };
        if is_other {
            return Err(unproven(source, "model_id"));
        }
        Ok(logged)
    }

    /// Refuses a source that is not part of the run that is named, where it must be.
    async fn check_source_run(&self, project: &str, origin: &Origin, uri: &Uri) -> Result<()> {
        let source = origin.source.as_str();
        let run_id = origin.run_id.as_deref();
        let is_within = match run_id {
            Some(run_id) if uri.is_local() || uri.is_proxied() => {
                let run = self.stores.runs.find_run(project, run_id).await?;
                run.is_some_and(|run| uri.is_within(&Uri::split(&run.artifact_uri)))
            }
            _ => false,
        };
        if uri.is_local() {
            let is_safe = check_source(&format!("file://{}", uri.path)).is_ok();
            return if is_within && is_safe {
                Ok(())
            } else {
                Err(unproven_path(source, "run_id"))
            };
        }
        check_source(source)?;
        let is_other = match uri.scheme.as_str() {
            "runs" => {
                let named = read_run_uri(uri).map(|(named, _)| named);
                !uri.authority.is_empty() || named.is_none() || named != run_id
            }
            _ => uri.is_proxied() && !is_within,
        };
        if is_other {
            return Err(unproven(source, "run_id"));
        }
        Ok(())
    }

    /// What of an origin is served.
    async fn served(&self, project: &str, origin: &Origin) -> Result<Served> {
        if let Some((model, version)) = &origin.copied {
            let selector = Selector::Version(*version);
            let copied = self.stores.models.find_model_version(project, model, &selector).await?;
            let copied = copied.ok_or_else(|| no_version(model, version))?;
            let files = self.stores.models.list_version_files(project, model, *version).await?;
            let profile = copied.reference_profile_digest.as_deref();
            return Ok(Served {
                reference_profile_size_bytes: self.profile_size(project, profile).await?,
                format: copied.format,
                files,
                digest: copied.artifact_digest,
                size_bytes: copied.artifact_size_bytes,
                signature: Some(copied.signature),
                bundle: self.bundle_blob(project, copied.bundle_digest.as_deref()).await?,
                reference_profile_digest: copied.reference_profile_digest,
                metrics: copied.metrics,
                dataset: copied.dataset.zip(copied.dataset_version),
                training_rows: copied.training_rows,
                problem: String::new(),
            });
        }
        match self.folder_of(project, origin).await? {
            Some(folder) => self.read_folder(project, &folder).await,
            None => Ok(Served::default()),
        }
    }

    /// The folder of an origin in this server's artifact store.
    async fn folder_of(&self, project: &str, origin: &Origin) -> Result<Option<String>> {
        let place = filled(Some(&origin.storage_location)).unwrap_or(&origin.source);
        self.folder_at(project, place).await
    }

    /// The folder in this server's artifact store that a URI means.
    async fn folder_at(&self, project: &str, place: &str) -> Result<Option<String>> {
        let uri = Uri::split(place);
        let Some((run_id, path)) = read_run_uri(&uri).filter(|_| uri.scheme == "runs") else {
            return Ok(uri.proxied_path());
        };
        let run = self.stores.runs.find_run(project, run_id).await?;
        let root = run.and_then(|run| Uri::split(&run.artifact_uri).proxied_path());
        Ok(root.map(|root| below(&root, path)))
    }

    /// The folder of a version's files in this server's artifact store.
    pub(crate) async fn version_artifact_root(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        version: &str,
    ) -> Result<String> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, name))
            .await?;
        check_model_name("name", name)?;
        let number = read_version(version)?.ok_or_else(|| no_version(name, version))?;
        let entry = self.find_entry(project, name, number).await?;
        let folder = match entry.download_uri() {
            Some(place) => self.folder_at(project, place).await?,
            None => None,
        };
        folder.filter(|folder| !folder.is_empty()).ok_or_else(|| {
            Error::request(format!(
                "The files of version {number} of model '{}' are not in this server's artifact store: fetch them from its \
                 source",
                shown(name)
            ))
        })
    }

    /// A version, for whoever may do what needs it.
    pub(super) async fn find_entry(&self, project: &str, name: &str, version: u32) -> Result<VersionEntry> {
        let found = self
            .stores
            .version_registry
            .find_version_entry(project, name, version)
            .await?;
        found.ok_or_else(|| no_version(name, version))
    }
}

/// Prompts have no files; their source is a word that says so.
fn prompt_origin(order: &VersionOrder) -> Result<Origin> {
    if !PROMPT_SOURCES.contains(&order.source.as_str()) {
        return Err(Error::request(format!(
            "Invalid prompt source: '{}'. Prompt sources must use an MLflow placeholder.",
            shown(&order.source)
        )));
    }
    Ok(Origin {
        source: order.source.clone(),
        run_id: filled(order.run_id.as_deref()).map(str::to_owned),
        ..Origin::default()
    })
}
