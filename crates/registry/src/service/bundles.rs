//! Signatures of model versions.

use modelyard_artifacts::{
    Digest,
    signing::{Bundle, Files, MAX_BUNDLE_BYTES, ONLY_FILE, read_list},
};
use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        alias::Selector,
        registered_model::{MLFLOW, ModelVersion},
        storage::NamedBlob,
    },
};

/// The largest list of a folder's files, in bytes.
const MAX_LIST_BYTES: u64 = 8 << 20;

impl Registry {
    /// Keeps the signature of a version, in the place of the one before. It must be about the version's files; whose it is, is
    /// for those to judge who serve it.
    #[tracing::instrument(name = "registry.set_bundle", skip_all, fields(%project, %model, %version))]
    pub async fn set_bundle(
        &self,
        caller: &Caller,
        project: &str,
        model: &str,
        version: u32,
        digest: &str,
    ) -> Result<ModelVersion> {
        let resource = Resource::named(Kind::Model, project, model);
        self.enter(caller, Action::ModelWrite, resource).await?;
        let selector = Selector::Version(version);
        let signed = self.get_model_version(caller, project, model, &selector).await?;
        let removals = self.stores.blobs.storage_view(project).await?.removals;
        let (digest, size_bytes) = self.blob_size(project, "bundle", digest).await?;
        let content = self.blobs.project(project)?.get_bytes(digest, MAX_BUNDLE_BYTES).await?;
        self.check_bundle(&signed, &Bundle::read(&content)?).await?;
        let bundle = NamedBlob::new(digest, size_bytes);
        let event = caller.event(Action::ModelWrite, Operation::Apply, &resource);
        let models = &self.stores.models;
        let signed = models
            .set_version_bundle(project, model, version, &bundle, removals, &event)
            .await?;
        self.desired.notify();
        tracing::info!(model, version, bundle = %digest, "model version signed");
        Ok(signed)
    }

    async fn check_bundle(&self, version: &ModelVersion, bundle: &Bundle) -> Result<()> {
        if version.artifact_digest.is_empty() {
            return Err(Error::State(format!(
                "version {} of model `{}` has no file that could be signed here",
                version.version, version.model
            )));
        }
        let digest: Digest = version.artifact_digest.parse()?;
        let files = if version.format == MLFLOW {
            let blobs = self.blobs.project(&version.project)?;
            read_list(&blobs.get_bytes(digest, MAX_LIST_BYTES).await?)?
        } else {
            Files::from([(ONLY_FILE.to_owned(), digest)])
        };
        Ok(bundle.check(&files)?)
    }

    /// The blob of a bundle, with its size.
    pub(super) async fn bundle_blob(&self, project: &str, digest: Option<&str>) -> Result<Option<NamedBlob>> {
        let Some(digest) = digest else {
            return Ok(None);
        };
        let (digest, size_bytes) = self.blob_size(project, "bundle", digest).await?;
        Ok(Some(NamedBlob::new(digest, size_bytes)))
    }
}
