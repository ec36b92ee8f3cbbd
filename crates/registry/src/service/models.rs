//! Models, their versions and aliases.

use std::collections::{BTreeMap, BTreeSet};

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Registry;
use crate::{
    error::{Error, Result},
    files::{onnx::read_signature, upstream::check_upstream},
    metrics,
    model::{
        alias::{Alias, AliasAt, AliasChange, Selector, check_alias},
        dataset::MAX_DESCRIPTION_BYTES,
        page::{Page, PageRequest},
        registered_model::{
            MAX_SIGNATURE_BYTES, MAX_TAG_BYTES, MAX_TAGS, ModelVersion, NewModelVersion, ONNX, RegisteredModel,
            UPSTREAM, check_metrics, check_signature, idempotency_key, no_signature,
        },
        run::{check_key, check_text, request_digest},
    },
    store::AliasRequest,
};

/// The most aliases that a new version is given at once.
const MAX_NEW_ALIASES: usize = 16;

/// A model version to be created.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelVersionRequest {
    /// Its file, uploaded before: `sha256:` and 64 hexadecimal digits.
    pub artifact_digest: String,
    /// The format of the file: `onnx`, or `upstream`: it describes (JSON) a model that another server runs, as
    /// `{"upstream": {"url": "grpc://HOST:PORT", "model": "NAME", "version": "VERSION"}}`.
    #[serde(default = "onnx")]
    pub format: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// What it takes and gives, as MLflow writes it; read from the file when it is left out.
    #[serde(default)]
    pub signature: Option<Value>,
    /// The blob with the profile of its training data (JSON).
    #[serde(default)]
    pub reference_profile_digest: Option<String>,
    /// Its metrics, measured on held-out data.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// The run that trained it.
    #[serde(default)]
    pub run_id: Option<String>,
    /// The dataset that it was trained on.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The version of that dataset.
    #[serde(default)]
    pub dataset_version: Option<u32>,
    /// Rows of the training data.
    #[serde(default)]
    pub training_rows: u64,
    /// Notes.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Aliases that shall point at it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Repeating a creation with the same key finds the first one's version.
    #[serde(default)]
    pub idempotency_key: String,
}

fn onnx() -> String {
    ONNX.to_owned()
}

impl ModelVersionRequest {
    fn check(&self, model: &str) -> Result<()> {
        check_name("a model", model)?;
        if ![ONNX, UPSTREAM].contains(&self.format.as_str()) {
            return Err(Error::request(format!(
                "format `{}` cannot be served: export the model to ONNX, or name a model of another server (`{UPSTREAM}`)",
                self.format
            )));
        }
        check_text("description of model", model, &self.description, MAX_DESCRIPTION_BYTES)?;
        check_metrics(&self.metrics)?;
        if self.tags.len() > MAX_TAGS || self.aliases.len() > MAX_NEW_ALIASES {
            return Err(Error::request(format!(
                "the version has {} tags and {} aliases: use at most {MAX_TAGS} and {MAX_NEW_ALIASES}",
                self.tags.len(),
                self.aliases.len()
            )));
        }
        for (key, value) in &self.tags {
            check_key("tag", key)?;
            check_text("tag", key, value, MAX_TAG_BYTES)?;
        }
        for alias in &self.aliases {
            check_alias(alias)?;
        }
        match &self.signature {
            Some(signature) if signature.to_string().len() > MAX_SIGNATURE_BYTES => Err(Error::request(format!(
                "the signature is larger than {MAX_SIGNATURE_BYTES} bytes: leave it out to have it read from the model"
            ))),
            Some(signature) => check_signature(signature),
            None => Ok(()),
        }
    }
}

impl Registry {
    /// Registers a version of a model, which is created when it does not exist. Whether the version is new: a repeated
    /// idempotency key finds the version of the first call.
    #[tracing::instrument(name = "registry.create_model_version", skip_all, fields(%project, %model))]
    pub async fn create_model_version(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        request: ModelVersionRequest,
    ) -> Result<(ModelVersion, bool)> {
        let resource = Resource::named(Kind::Model, project, model);
        self.enter(caller, Action::ModelWrite, resource).await?;
        if !request.aliases.is_empty() {
            self.enter(caller, Action::AliasWrite, resource).await?;
        }
        request.check(model)?;
        let key = idempotency_key(&request.idempotency_key)?;
        let digest = request_digest(&(model, &request));
        let removals = self.stores.blobs.storage_view(project).await?.removals;
        let (dataset, reference_profile_size_bytes) = self.check_lineage(project, &request).await?;
        let (artifact, size_bytes) = self.blob_size(project, "artifact", &request.artifact_digest).await?;
        // Read in any case: what is registered can be served.
        let is_onnx = request.format == ONNX;
        let read = self
            .import("model", project, artifact, move |file| {
                let digest = artifact.to_string();
                if is_onnx {
                    read_signature(file, &digest)
                } else {
                    // What it takes is the other server's to say.
                    check_upstream(file, &digest).map(|()| no_signature())
                }
            })
            .await?;
        let aliases: BTreeSet<String> = request.aliases.into_iter().collect();
        let version = NewModelVersion {
            project: project.to_owned(),
            model: model.to_owned(),
            description: request.description,
            format: request.format,
            artifact_digest: artifact.to_string(),
            artifact_size_bytes: size_bytes,
            files: Vec::new(),
            signature: request.signature.unwrap_or(read).to_string(),
            bundle: None,
            reference_profile_digest: request.reference_profile_digest,
            reference_profile_size_bytes,
            removals,
            metrics: request.metrics,
            run_id: request.run_id,
            dataset,
            training_rows: request.training_rows,
            tags: request.tags,
            aliases: aliases.into_iter().collect(),
            idempotency_key: key,
            request_digest: digest,
            changed_by: caller.principal().to_string(),
            event: caller.event(Action::ModelWrite, Operation::Create, &resource),
            now: self.clock.now(),
        };
        let (version, created) = self.stores.models.create_model_version(&version).await?;
        if created {
            ::metrics::counter!(metrics::MODEL_VERSIONS).increment(1);
            self.desired.notify();
            self.webhooks.wake();
            tracing::info!(model, version = version.version, "model version created");
        }
        Ok((version, created))
    }

    /// The size of the profile that a version has, in bytes.
    pub(super) async fn profile_size(&self, project: &str, digest: Option<&str>) -> Result<u64> {
        let Some(digest) = digest else {
            return Ok(0);
        };
        let size = self.blobs.project(project)?.size(digest.parse()?).await?;
        Ok(size.unwrap_or_default())
    }

    /// Checks what the version says it was made from. The dataset version, where it names one, and the size of the profile.
    async fn check_lineage(
        &self,
        project: &str,
        request: &ModelVersionRequest,
    ) -> Result<(Option<(String, u32)>, u64)> {
        if let Some(run_id) = &request.run_id
            && self.stores.runs.find_run(project, run_id).await?.is_none()
        {
            return Err(Error::request(format!(
                "run `{run_id}` does not exist: name one that does, or leave it out"
            )));
        }
        let profile_size_bytes = match &request.reference_profile_digest {
            Some(profile) => self.blob_size(project, "reference profile", profile).await?.1,
            None => 0,
        };
        match (&request.dataset, request.dataset_version) {
            (Some(dataset), Some(version)) => {
                self.find_fixed_dataset_version(project, dataset, version).await?;
                Ok((Some((dataset.clone(), version)), profile_size_bytes))
            }
            (None, None) => Ok((None, profile_size_bytes)),
            _ => Err(Error::request(
                "dataset and dataset_version belong together: give both, or neither",
            )),
        }
    }

    /// A version.
    pub async fn get_model_version(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        selector: &Selector,
    ) -> Result<ModelVersion> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        let found = self.stores.models.find_model_version(project, model, selector).await?;
        found.ok_or_else(|| match selector {
            Selector::Version(_) => Error::not_found(
                "model version",
                format!("{model}{selector}"),
                "list the versions to see which there are",
            ),
            Selector::Alias(_) => no_alias(model, selector),
        })
    }

    /// The versions of a model, newest first.
    pub async fn list_model_versions(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<ModelVersion>> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        let versions = self.stores.models.list_model_versions(project, model, page).await?;
        versions.ok_or_else(|| no_model(model))
    }

    /// A model.
    pub async fn get_model(&self, caller: &Caller, project: &str, model: &str) -> Result<RegisteredModel> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        let found = self.stores.models.find_model(project, model).await?;
        found.ok_or_else(|| no_model(model))
    }

    /// The models by name.
    pub async fn list_models(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<RegisteredModel>> {
        self.enter(caller, Action::ModelRead, Resource::project(project))
            .await?;
        self.stores.models.list_models(project, page).await
    }

    /// Points an alias at a version; where it pointed before. Pointing where it points already changes nothing.
    #[tracing::instrument(name = "registry.set_alias", skip_all, fields(%project, %model, %alias, %version))]
    pub async fn set_alias(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        alias: &str,
        version: u32,
    ) -> Result<Option<u32>> {
        self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        check_alias(alias)?;
        self.point_alias(caller, project, model, alias, version).await
    }

    /// Points an alias at a version, for a caller that may do that and with names that were checked.
    pub(super) async fn point_alias(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        alias: &str,
        version: u32,
    ) -> Result<Option<u32>> {
        let request = AliasRequest {
            project,
            model,
            alias,
            changed_by: &caller.principal().to_string(),
            event: &caller.event(
                Action::AliasWrite,
                Operation::Apply,
                &Resource::named(Kind::Model, project, model),
            ),
            now: self.clock.now(),
        };
        let previous = self.stores.aliases.set_alias(&request, version).await?;
        if previous != Some(version) {
            self.alias_changed();
            tracing::info!(model, alias, version, previous, "alias set");
        }
        Ok(previous)
    }

    /// Removes an alias.
    pub async fn remove_alias(&self, caller: &Caller, project: &str, model: &str, alias: &str) -> Result<()> {
        self.enter(caller, Action::AliasWrite, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        check_alias(alias)?;
        match self.drop_alias(caller, project, model, alias).await? {
            Some(_) => Ok(()),
            None => Err(no_alias(model, &Selector::Alias(alias.to_owned()))),
        }
    }

    /// Removes an alias, for a caller that may do that and with names that were checked; where it pointed.
    pub(super) async fn drop_alias(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        alias: &str,
    ) -> Result<Option<u32>> {
        let request = AliasRequest {
            project,
            model,
            alias,
            changed_by: &caller.principal().to_string(),
            event: &caller.event(
                Action::AliasWrite,
                Operation::Delete,
                &Resource::named(Kind::Model, project, model),
            ),
            now: self.clock.now(),
        };
        let previous = self.stores.aliases.remove_alias(&request).await?;
        if previous.is_some() {
            self.alias_changed();
        }
        Ok(previous)
    }

    fn alias_changed(&self) {
        ::metrics::counter!(metrics::ALIAS_CHANGES).increment(1);
        self.desired.notify();
        self.webhooks.wake();
    }

    /// Where an alias points.
    pub async fn get_alias(&self, caller: &Caller, project: &str, model: &str, alias: &str) -> Result<Alias> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        check_name("a model", model)?;
        self.find_alias(project, model, alias).await
    }

    /// Where an alias points, for whoever may do what needs it.
    pub(crate) async fn find_alias(&self, project: &str, model: &str, alias: &str) -> Result<Alias> {
        let found = self.stores.aliases.find_alias(project, model, alias).await?;
        found.ok_or_else(|| no_alias(model, &Selector::Alias(alias.to_owned())))
    }

    /// Where an alias pointed at a time, and who had it so; also of a model that is gone.
    pub async fn alias_at(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        alias: &str,
        at: Timestamp,
    ) -> Result<AliasAt> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        let found = self.stores.aliases.alias_at(project, model, alias, at).await?;
        let (held, next) = found.ok_or_else(|| {
            Error::not_found(
                "alias",
                format!("{model}@{alias} at {at}"),
                "it was not set yet: its history tells when it was",
            )
        })?;
        Ok(AliasAt {
            model: model.to_owned(),
            alias: alias.to_owned(),
            at,
            version: held.version,
            since: held.at,
            until: next.as_ref().map(|next| next.at),
            changed_by: held.changed_by,
            ended_by: next.map(|next| next.changed_by),
        })
    }

    /// The changes of an alias, newest first; also of one that is gone.
    pub async fn alias_history(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        alias: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<AliasChange>> {
        self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, model))
            .await?;
        let history = self.stores.aliases.alias_history(project, model, alias, page).await?;
        if history.items.is_empty() && page.after.is_none() {
            return Err(no_alias(model, &Selector::Alias(alias.to_owned())));
        }
        Ok(history)
    }
}

fn no_model(model: &str) -> Error {
    Error::not_found("model", model, "import its first version, or train it")
}

fn no_alias(model: &str, selector: &Selector) -> Error {
    Error::not_found(
        "alias",
        format!("{model}{selector}"),
        "set it to one of the model's versions",
    )
}
