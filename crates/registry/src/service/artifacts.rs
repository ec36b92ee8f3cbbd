//! Blobs as users upload and fetch them.

use bytes::Bytes;
use futures::Stream;
use modelyard_artifacts::{Blob, BlobStream, Digest};
use modelyard_auth::{Action, Caller, Kind, Resource};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::storage::NamedBlob,
};

/// The largest artifact, in bytes.
pub const ARTIFACT_LIMIT_BYTES: u64 = 64 << 30;

impl Registry {
    /// Stores content that arrives in pieces. With `digest` it must turn out to have that digest.
    pub async fn put_artifact<S, E>(
        &self,
        caller: &Caller,
        project: &str,
        content: S,
        digest: Option<&str>,
    ) -> Result<Blob>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        let expected = digest.map(str::parse::<Digest>).transpose()?;
        let view = self.stores.blobs.storage_view(project).await?;
        // What is there already takes no room.
        let is_counted = match expected {
            Some(digest) => self.stores.blobs.has_blob(project, digest).await?,
            None => false,
        };
        let room = if is_counted {
            ARTIFACT_LIMIT_BYTES
        } else {
            view.room(project, ARTIFACT_LIMIT_BYTES)?
        };
        let stored = self.blobs.project(project)?.put_stream(content, expected, room).await;
        let blob = stored.map_err(|error| view.refusal(project, ARTIFACT_LIMIT_BYTES, error))?;
        let named = NamedBlob::new(blob.digest, blob.size_bytes);
        let now = self.clock.now();
        self.stores.blobs.note_blob(project, &named, view.removals, now).await?;
        Ok(blob)
    }

    /// The content of a blob, verified while it is read.
    pub async fn get_artifact(&self, caller: &Caller, project: &str, digest: &str) -> Result<BlobStream> {
        self.enter(
            caller,
            Action::ArtifactRead,
            Resource::named(Kind::Artifact, project, digest),
        )
        .await?;
        Ok(self.blobs.project(project)?.get(digest.parse()?).await?)
    }

    /// The size of a blob in bytes.
    pub async fn artifact_size(&self, caller: &Caller, project: &str, digest: &str) -> Result<u64> {
        self.enter(
            caller,
            Action::ArtifactRead,
            Resource::named(Kind::Artifact, project, digest),
        )
        .await?;
        let size = self.blobs.project(project)?.size(digest.parse()?).await?;
        size.ok_or_else(|| Error::not_found("artifact", digest, "upload it first"))
    }
}
