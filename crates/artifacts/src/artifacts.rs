//! The blobs of a storage, project by project.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use modelyard_common::name::check_name;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, path::Path};

use crate::{
    blob::ProjectArtifacts,
    cache::Downloads,
    error::{Error, Result},
    local::UPLOADS,
    storage::Storage,
};

/// How many left-over uploads are removed at once.
const SWEEPS_IN_FLIGHT: usize = 8;

/// The blobs of a storage, which are reached project by project. Cheap to clone.
#[derive(Clone)]
pub struct Artifacts {
    storage: Storage,
    downloads: Arc<Downloads>,
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Artifacts({})", self.storage.place())
    }
}

impl Artifacts {
    /// The blobs of a storage.
    #[must_use]
    pub fn new(storage: Storage) -> Self {
        Self {
            storage,
            downloads: Arc::default(),
        }
    }

    /// The storage that the blobs lie in.
    #[must_use]
    pub const fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The blobs of a project. Whether there is such a project is not asked.
    ///
    /// # Errors
    /// [`Error::InvalidName`]: the name could be a path.
    pub fn project(&self, name: &str) -> Result<ProjectArtifacts> {
        check_name("a project", name)?;
        let downloads = Arc::clone(&self.downloads);
        Ok(ProjectArtifacts::new(self.storage.clone(), downloads, name.into()))
    }

    /// Removes what crashes left in `uploads/` before `older_than`, whatever the project, and says how many. Choose a time
    /// before which no upload can have begun that is still going on.
    ///
    /// # Errors
    /// A storage error; what could be removed before it is removed.
    pub async fn sweep_uploads(&self, older_than: DateTime<Utc>) -> Result<u64> {
        let store = &self.storage.store();
        let removed = store
            .list(Some(&Path::from(UPLOADS)))
            .try_filter(|object| std::future::ready(object.last_modified < older_than))
            .map_ok(|object| remove_left_over(store, object))
            .try_buffer_unordered(SWEEPS_IN_FLIGHT)
            .try_fold(0, |sum, removed| async move { Ok(sum + u64::from(removed)) })
            .await
            .map_err(|error| Error::of_store(self.storage.place(), error))?;
        if removed > 0 {
            tracing::info!(removed, place = self.storage.place(), "unfinished uploads removed");
        }
        Ok(removed)
    }
}

async fn remove_left_over(store: &Arc<dyn ObjectStore>, object: ObjectMeta) -> object_store::Result<bool> {
    match store.delete(&object.location).await {
        Ok(()) => Ok(true),
        // Finished or removed by another meanwhile.
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
