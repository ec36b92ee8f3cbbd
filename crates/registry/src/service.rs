//! The registry's operations: check, store, tell those who watch.

mod artifacts;
mod datasets;
mod desired;
mod endpoints;
mod models;
mod retention;
mod runs;

use std::{path::Path, sync::Arc, time::Instant};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_common::{clock::SharedClock, id::SharedIds};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

pub use self::{
    artifacts::ARTIFACT_LIMIT_BYTES,
    datasets::{DatasetVersionRequest, MAX_PROFILE_BYTES},
    desired::{HEARTBEAT, POLL, Update},
    models::ModelVersionRequest,
    runs::{InputRequest, RunRequest},
};
pub(crate) use self::{desired::Desired, retention::run_retention};
use crate::{
    error::{Error, Result},
    files::folder::{ImportFolder, ImportFolders},
    metrics,
    store::Stores,
};

/// How many uploaded files are read at the same time.
const IMPORTS: usize = 2;

/// The registry.
pub struct Registry {
    stores: Stores,
    blobs: Artifacts,
    clock: SharedClock,
    ids: SharedIds,
    folders: ImportFolders,
    imports: Semaphore,
    desired: Arc<Desired>,
    soft: CancellationToken,
}

/// What a registry is made of.
pub(crate) struct Parts {
    pub(crate) stores: Stores,
    pub(crate) blobs: Artifacts,
    pub(crate) clock: SharedClock,
    pub(crate) ids: SharedIds,
    pub(crate) folders: ImportFolders,
    pub(crate) desired: Arc<Desired>,
    pub(crate) soft: CancellationToken,
}

impl Registry {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            stores: parts.stores,
            blobs: parts.blobs,
            clock: parts.clock,
            ids: parts.ids,
            folders: parts.folders,
            imports: Semaphore::new(IMPORTS),
            desired: parts.desired,
            soft: parts.soft,
        }
    }

    /// The beginning of every operation.
    async fn enter(&self, project: &str) -> Result<()> {
        self.stores.projects.check_project(project).await
    }

    /// The size of a blob that a request refers to.
    async fn blob_size(&self, what: &str, digest: &str) -> Result<(Digest, u64)> {
        let digest: Digest = digest.parse()?;
        let size = self.blobs.size(digest).await?;
        let size = size
            .ok_or_else(|| Error::request(format!("{what} {digest} is not in the artifact store: upload it first")))?;
        Ok((digest, size))
    }

    /// Lets `read` look at local copies of blobs, on a thread that may block. Few do so at a time.
    async fn import<T: Send + 'static>(
        &self,
        kind: &'static str,
        digests: &[Digest],
        read: impl FnOnce(&ImportFolder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _slot = self.imports.acquire().await;
        let started = Instant::now();
        let (folders, id) = (self.folders.clone(), self.ids.next());
        let folder = spawn_blocking(move || folders.create(id)).await??;
        for digest in digests {
            self.blobs.open_local(*digest, folder.path()).await?;
        }
        let result = spawn_blocking(move || read(&folder)).await?;
        ::metrics::histogram!(metrics::IMPORT_DURATION, metrics::KIND => kind).record(started.elapsed().as_secs_f64());
        result
    }
}

/// Where the copy of a blob is in the folder of an import.
fn copy_of(folder: &Path, digest: Digest) -> std::path::PathBuf {
    folder.join(digest.to_hex())
}
