//! Blobs as users upload and fetch them.

use bytes::Bytes;
use futures::Stream;
use modelyard_artifacts::{Blob, BlobStream, Digest};

use super::Registry;
use crate::error::{Error, Result};

/// The largest artifact, in bytes.
pub const ARTIFACT_LIMIT_BYTES: u64 = 64 << 30;

impl Registry {
    /// Stores content that arrives in pieces. With `digest` it must turn out to have that digest.
    pub async fn put_artifact<S, E>(&self, project: &str, content: S, digest: Option<&str>) -> Result<Blob>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.enter(project).await?;
        let expected = digest.map(str::parse::<Digest>).transpose()?;
        Ok(self.blobs.put_stream(content, expected, ARTIFACT_LIMIT_BYTES).await?)
    }

    /// The content of a blob, verified while it is read.
    pub async fn get_artifact(&self, project: &str, digest: &str) -> Result<BlobStream> {
        self.enter(project).await?;
        Ok(self.blobs.get(digest.parse()?).await?)
    }

    /// The size of a blob in bytes.
    pub async fn artifact_size(&self, project: &str, digest: &str) -> Result<u64> {
        self.enter(project).await?;
        let size = self.blobs.size(digest.parse()?).await?;
        size.ok_or_else(|| Error::not_found("artifact", digest, "upload it first"))
    }
}
