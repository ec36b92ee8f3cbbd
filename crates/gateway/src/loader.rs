//! Model versions in memory, each blob once, and their files on disk.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::SystemTime,
};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_inference::{BatcherOptions, Model, ModelOptions, Predictor, Runtime};
use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking};

use crate::error::{Error, Result};

/// A blob of a project. The same content in two projects is loaded twice: what one has says nothing about the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ModelKey {
    pub project: String,
    pub digest: Digest,
}

impl ModelKey {
    /// Where its copy lies in the cache.
    fn file(&self) -> PathBuf {
        Path::new(&self.project).join(self.digest.to_hex())
    }
}

/// A model that is loaded and warm. When the last user lets go of it, its queue closes and its sessions are freed.
pub(crate) struct LoadedModel {
    pub predictor: Predictor,
}

/// Loads models.
pub(crate) struct Loader {
    artifacts: Artifacts,
    runtime: Runtime,
    folder: PathBuf,
    options: BatcherOptions,
    cache_bytes: u64,
    models: Mutex<HashMap<ModelKey, Arc<Slot>>>,
}

/// One blob's place; its lock makes concurrent callers load it once.
type Slot = AsyncMutex<Weak<LoadedModel>>;

impl Loader {
    pub(crate) fn new(
        artifacts: Artifacts,
        runtime: Runtime,
        folder: PathBuf,
        options: BatcherOptions,
        cache_bytes: u64,
    ) -> Self {
        Self {
            artifacts,
            runtime,
            folder,
            options,
            cache_bytes,
            models: Mutex::default(),
        }
    }

    /// The model of a blob: the one in memory, or one that is fetched, verified, loaded and warmed.
    pub(crate) async fn load(&self, key: ModelKey) -> Result<Arc<LoadedModel>> {
        let artifacts = self.artifacts.project(&key.project)?;
        let digest = key.digest;
        let slot = Arc::clone(self.models.lock().entry(key).or_default());
        let mut place = slot.lock().await;
        if let Some(model) = place.upgrade() {
            return Ok(model);
        }
        let path = artifacts.open_local(digest, &self.folder).await?;
        let (runtime, options) = (self.runtime.clone(), self.options);
        let predictor = spawn_blocking(move || open(&runtime, &path, options))
            .await
            .map_err(|_| Error::Interrupted {
                what: "loading the model",
            })??;
        let model = Arc::new(LoadedModel { predictor });
        *place = Arc::downgrade(&model);
        Ok(model)
    }

    /// Forgets models that are gone, and removes files that no model in memory came from and that are more than the
    /// cache may hold, the oldest first. `keep` are spared as well: they will be needed after a restart.
    pub(crate) async fn sweep(&self, mut keep: HashSet<ModelKey>) {
        self.models.lock().retain(|key, slot| {
            // A locked slot is being loaded.
            let alive = slot.try_lock().map_or(true, |place| place.strong_count() > 0);
            if alive {
                keep.insert(key.clone());
            }
            alive
        });
        let (folder, limit) = (self.folder.clone(), self.cache_bytes);
        let swept = spawn_blocking(move || sweep_files(&folder, &keep, limit)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(folder = %self.folder.display(), %error, "unused model files cannot be removed");
        }
    }
}

fn open(runtime: &Runtime, path: &Path, options: BatcherOptions) -> Result<Predictor> {
    let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let model = Model::from_file(runtime, path, ModelOptions::for_size(size, runtime.processors()))?;
    if let Err(error) = model.warm_up() {
        // Zeros may be no valid input; real ones will tell.
        tracing::info!(%error, "the model did not take the warm-up's zeros");
    }
    Ok(Predictor::start(model, options)?)
}

fn sweep_files(folder: &Path, used: &HashSet<ModelKey>, limit: u64) -> io::Result<()> {
    let used: HashSet<PathBuf> = used.iter().map(|key| folder.join(key.file())).collect();
    let mut unused = Vec::new();
    for entry in entries(folder)? {
        if entry.file_type()?.is_dir() {
            for entry in entries(&entry.path())? {
                find_unused(&entry, &used, &mut unused)?;
            }
        } else {
            // From before there was a folder for each project.
            find_unused(&entry, &used, &mut unused)?;
        }
    }
    unused.sort();
    let mut total: u64 = unused.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in unused {
        if total <= limit {
            break;
        }
        fs::remove_file(&path)?;
        total -= bytes;
    }
    Ok(())
}

/// What is in a folder; nothing if it is not there.
fn entries(folder: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

/// A file that could go: when it was made, its size, and where it is.
type Unused = (SystemTime, u64, PathBuf);

fn find_unused(entry: &DirEntry, used: &HashSet<PathBuf>, unused: &mut Vec<Unused>) -> io::Result<()> {
    let path = entry.path();
    // Unfinished downloads begin with a point; their owner removes them.
    let unfinished = entry.file_name().as_encoded_bytes().starts_with(b".");
    if !unfinished && !used.contains(&path) {
        let metadata = entry.metadata()?;
        unused.push((metadata.modified()?, metadata.len(), path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_files_beyond_the_limit_go() {
        let folder = tempfile::tempdir().unwrap();
        let key = |project: &str, index: u8| ModelKey {
            project: project.to_owned(),
            digest: Digest::of(&[index]),
        };
        let keys: Vec<ModelKey> = ["a", "b"]
            .into_iter()
            .flat_map(|project| (0..2).map(move |index| key(project, index)))
            .collect();
        for key in &keys {
            fs::create_dir_all(folder.path().join(&key.project)).unwrap();
            fs::write(folder.path().join(key.file()), [0; 10]).unwrap();
        }
        let used = HashSet::from([keys[0].clone()]);
        let left = || {
            keys.iter()
                .filter(|key| folder.path().join(key.file()).exists())
                .count()
        };
        sweep_files(folder.path(), &used, 30).unwrap();
        assert_eq!(left(), 4);
        sweep_files(folder.path(), &used, 10).unwrap();
        assert_eq!(left(), 2);
        let before = folder.path().join(keys[0].digest.to_hex());
        fs::write(&before, [0; 10]).unwrap();
        sweep_files(folder.path(), &used, 0).unwrap();
        assert_eq!(left(), 1);
        assert!(folder.path().join(keys[0].file()).exists());
        assert!(!before.exists(), "of no project");
    }
}
