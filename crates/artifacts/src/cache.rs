//! Verified local copies of blobs, for libraries that read files.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::TryStreamExt as _;
use parking_lot::Mutex;
use tempfile::NamedTempFile;
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking};

use crate::{
    blob::ProjectArtifacts,
    blocks::BLOCK_BYTES,
    digest::{Digest, DigestBuilder},
    error::{Error, Result},
};

/// What an unfinished download is called.
const PART_PREFIX: &str = ".part-";
/// After this time an unfinished download is what a crash left behind.
const PART_LIFETIME: Duration = Duration::from_hours(24);

/// One lock for each file being downloaded, so that concurrent callers download it once.
#[derive(Default)]
pub(crate) struct Downloads {
    locks: Mutex<HashMap<PathBuf, Weak<AsyncMutex<()>>>>,
}

impl Downloads {
    fn lock_of(&self, target: &FilePath) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock();
        if let Some(lock) = locks.get(target).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        locks.insert(target.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

impl ProjectArtifacts {
    /// The path of a verified copy of the blob in the project's folder of `cache_dir` (created where missing):
    /// `PROJECT/DIGITS`, so that a copy that one project made is none for another. It is downloaded unless it is there.
    /// Callers at the same time share one download. A damaged copy is replaced. The storage is not asked for a copy that is
    /// there, so that this works while the storage is away.
    ///
    /// # Errors
    /// As [`ProjectArtifacts::get`], or the folder cannot be written.
    pub async fn open_local(&self, digest: Digest, cache_dir: &FilePath) -> Result<PathBuf> {
        let cache_dir = &cache_dir.join(self.project());
        let target = cache_dir.join(digest.to_hex());
        let lock = self.downloads().lock_of(&target);
        let _guard = lock.lock().await;
        let cached = target.clone();
        let found = spawn_blocking(move || digest_of_file(&cached))
            .await
            .map_err(|error| Error::of_task(&target, error))?
            .map_err(|error| Error::of_file(&target, error))?;
        match found {
            Some(actual) if actual == digest => return Ok(target),
            Some(_) => tracing::warn!(%digest, path = %target.display(), "damaged copy of a blob is replaced"),
            None => {}
        }
        self.download(digest, cache_dir, &target).await?;
        Ok(target)
    }

    async fn download(&self, digest: Digest, cache_dir: &FilePath, target: &FilePath) -> Result<()> {
        let mut content = self.get(digest).await?;
        let folder = cache_dir.to_owned();
        let failed = |error| Error::of_file(target, error);
        let stopped = |error| Error::of_task(target, error);
        let mut file = spawn_blocking(move || new_part(&folder))
            .await
            .map_err(stopped)?
            .map_err(failed)?;
        while let Some(block) = content.try_next().await? {
            file = spawn_blocking(move || file.write_all(&block).map(|()| file))
                .await
                .map_err(stopped)?
                .map_err(failed)?;
        }
        let path = target.to_owned();
        spawn_blocking(move || {
            file.as_file().sync_all()?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        })
        .await
        .map_err(stopped)?
        .map_err(failed)
    }
}

/// A file to download into. Removes what crashes left behind long ago; the new file's own time is the measure.
fn new_part(folder: &FilePath) -> io::Result<NamedTempFile> {
    fs::create_dir_all(folder)?;
    let part = tempfile::Builder::new().prefix(PART_PREFIX).tempfile_in(folder)?;
    let now = part.as_file().metadata()?.modified()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PART_PREFIX) {
            continue;
        }
        // Another process may have finished or removed it meanwhile.
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        if age.is_some_and(|age| age > PART_LIFETIME)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "old unfinished download cannot be removed");
        }
    }
    Ok(part)
}

fn digest_of_file(path: &FilePath) -> io::Result<Option<Digest>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut hash = DigestBuilder::default();
    let file_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(BLOCK_BYTES);
    let mut block = vec![0; file_bytes.clamp(1, BLOCK_BYTES)];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Some(hash.finish())),
            read => hash.update(&block[..read]),
        }
    }
}
