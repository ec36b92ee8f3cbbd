//! Model versions in memory, each blob once, and their files on disk.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_inference::{BatcherOptions, Model, ModelOptions, Predictor, Runtime};
use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking};

use crate::error::{Error, Result};

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
    models: Mutex<HashMap<Digest, Arc<Slot>>>,
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
    pub(crate) async fn load(&self, digest: Digest) -> Result<Arc<LoadedModel>> {
        let slot = Arc::clone(self.models.lock().entry(digest).or_default());
        let mut place = slot.lock().await;
        if let Some(model) = place.upgrade() {
            return Ok(model);
        }
        let path = self.artifacts.open_local(digest, &self.folder).await?;
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
    pub(crate) async fn sweep(&self, keep: &HashSet<Digest>) {
        let mut used = keep.clone();
        self.models.lock().retain(|digest, slot| {
            // A locked slot is being loaded.
            let alive = slot.try_lock().map_or(true, |place| place.strong_count() > 0);
            if alive {
                used.insert(*digest);
            }
            alive
        });
        let (folder, limit) = (self.folder.clone(), self.cache_bytes);
        let swept = spawn_blocking(move || sweep_files(&folder, &used, limit)).await;
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

fn sweep_files(folder: &Path, used: &HashSet<Digest>, limit: u64) -> io::Result<()> {
    let names: HashSet<String> = used.iter().map(Digest::to_hex).collect();
    let mut unused = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // Unfinished downloads begin with a point; their owner removes them.
        if name.starts_with('.') || names.contains(name) {
            continue;
        }
        let metadata = entry.metadata()?;
        unused.push((metadata.modified()?, metadata.len(), entry.path()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_files_beyond_the_limit_go() {
        let folder = tempfile::tempdir().unwrap();
        let digests: Vec<Digest> = (0..4_u8).map(|index| Digest::of(&[index])).collect();
        for digest in &digests {
            fs::write(folder.path().join(digest.to_hex()), [0; 10]).unwrap();
        }
        let used = HashSet::from([digests[0]]);
        let left = || fs::read_dir(folder.path()).unwrap().count();
        sweep_files(folder.path(), &used, 30).unwrap();
        assert_eq!(left(), 4);
        sweep_files(folder.path(), &used, 10).unwrap();
        assert_eq!(left(), 2);
        sweep_files(folder.path(), &used, 0).unwrap();
        assert_eq!(left(), 1);
        assert!(folder.path().join(digests[0].to_hex()).exists());
    }
}
