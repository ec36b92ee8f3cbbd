//! Loads model versions: fetches their files, opens and warms them, and lets go of those used least when memory is short.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirEntry, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_inference::{
    Accelerator, BatcherOptions, Batching, Counters, InputShapes, Model as InferenceModel, ModelOptions, Predictor,
    Runtime, Signature, session_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit},
    task::spawn_blocking,
};

use crate::{
    config::Config,
    desired::EndpointKey,
    error::{Error, Result},
    meters::{self, Unloaded},
    model::{Facts, Model, Platform, Shapes},
    python::{Saved, Workers, assemble},
    signatures::Signatures,
    upstream::Upstream,
};

/// What lies beside a model's file and tells what was found out by loading it.
const FACTS_EXTENSION: &str = "json";

/// The ending of the folder beside a description that names the files of a folder.
const FOLDER_EXTENSION: &str = "folder";

/// The longest description of how an artifact is run, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 8 << 20;

/// How many models of other servers are asked for at once.
const MAX_UPSTREAMS_AT_ONCE: usize = 32;

/// The folder of models below the gateway's.
const MODELS_FOLDER: &str = "models";

/// A blob as an endpoint serves it. The same content for two endpoints is loaded twice: one's load is not the other's, and
/// what one project has says nothing about another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ModelKey {
    pub endpoint: EndpointKey,
    pub digest: Digest,
    /// The blob with the signature of its files.
    pub bundle: Option<Digest>,
}

impl ModelKey {
    /// Where the copies of its blobs lie in the cache.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let blobs = std::iter::once(self.digest).chain(self.bundle);
        blobs.map(|digest| Path::new(&self.endpoint.project).join(digest.to_hex()))
    }
}

/// How an endpoint wants a model to be.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub batcher: BatcherOptions,
    /// After this time without a request it is let go of; none: never.
    pub unload_after: Option<Duration>,
    /// What was seen of its requests.
    pub shapes: Arc<Shapes>,
}

/// Loads models.
pub(crate) struct Loader {
    artifacts: Artifacts,
    runtime: Runtime,
    folder: PathBuf,
    batcher: BatcherOptions,
    cache_bytes: u64,
    memory_bytes: u64,
    /// What runs ONNX models beside the processors.
    accelerator: Option<Accelerator>,
    /// The other servers that may be called.
    upstreams: Arc<[String]>,
    /// What runs models of Python, where that is wanted.
    workers: Option<Arc<Workers>>,
    /// Whose signature models must have.
    signatures: Signatures,
    models: Mutex<HashMap<ModelKey, Arc<Slot>>>,
    /// Those that are in memory, and some that were: few of all, and looked at with each load.
    loaded: Mutex<Vec<Weak<Model>>>,
    permits: Permits,
}

/// How many models are loaded at once, by what runs them: those that are away or install what they need take long, and must not keep
/// others waiting.
struct Permits {
    /// Each load keeps a processor busy.
    onnx: Semaphore,
    python: Semaphore,
    /// These wait for somebody else only.
    upstream: Semaphore,
}

impl Permits {
    fn new(processors: usize) -> Self {
        Self {
            onnx: Semaphore::new(processors),
            python: Semaphore::new(processors),
            upstream: Semaphore::new(MAX_UPSTREAMS_AT_ONCE),
        }
    }

    async fn permit(&self, description: Option<&Description>) -> Result<SemaphorePermit<'_>> {
        let semaphore = match description {
            None => &self.onnx,
            Some(Description::Mlflow(_)) => &self.python,
            Some(Description::Upstream(_)) => &self.upstream,
        };
        semaphore.acquire().await.map_err(|_| interrupted())
    }
}

/// One model's place; its lock makes concurrent callers load it once.
type Slot = AsyncMutex<Weak<Model>>;

impl Loader {
    /// # Errors
    /// `Config` if a key that is trusted cannot be read.
    pub(crate) fn new(artifacts: Artifacts, runtime: Runtime, folder: &Path, config: &Config) -> Result<Self> {
        Ok(Self {
            artifacts,
            permits: Permits::new(runtime.processors()),
            runtime,
            folder: folder.join(MODELS_FOLDER),
            batcher: config.batcher(),
            cache_bytes: config.model_cache_bytes,
            memory_bytes: config.model_memory_bytes(),
            accelerator: config.accelerator.map(Accelerator::from),
            upstreams: config.upstreams.as_slice().into(),
            workers: Workers::new(&config.python, folder).map(Arc::new),
            signatures: Signatures::open(&config.signatures)?,
            models: Mutex::default(),
            loaded: Mutex::default(),
        })
    }

    /// How queues work that are not told otherwise.
    pub(crate) const fn batcher(&self) -> &BatcherOptions {
        &self.batcher
    }

    /// The model of a blob: the one that is there, or one that is fetched, verified, loaded and warmed. Where memory is
    /// short and what there is to know of it is known from before, it is loaded with its first request.
    /// Without a wish it is the one that is there, however it works.
    pub(crate) async fn load(self: &Arc<Self>, key: ModelKey, wanted: Option<Wanted>) -> Result<Arc<Model>> {
        let slot = Arc::clone(self.models.lock().entry(key.clone()).or_default());
        let mut place = slot.lock().await;
        match (place.upgrade(), &wanted) {
            (Some(model), None) => return Ok(model),
            (Some(model), Some(wanted)) if model.is_as(wanted) => {
                model.unload_after(wanted.unload_after);
                return Ok(model);
            }
            _ => {}
        }
        let wanted = wanted.unwrap_or_else(|| Wanted {
            batcher: self.batcher.clone(),
            unload_after: None,
            shapes: Arc::default(),
        });
        let (path, description) = self.fetch(&key).await?;
        let platform = description.as_ref().map_or(Platform::Onnx, Description::platform);
        let permit = self.permits.permit(description.as_ref()).await?;
        let facts = if self.has_room_for(&path) {
            None
        } else {
            read_facts(&path).await
        };
        let model = if let Some(facts) = facts {
            Arc::new(Model::new(key, wanted, facts, Arc::clone(self)))
        } else {
            let counters = Arc::default();
            let predictor = self
                .open_file(&key, &path, description, &wanted, &counters, permit)
                .await?;
            let facts = Facts {
                platform,
                signature: predictor.signature().clone(),
                batching: predictor.batching(),
            };
            write_facts(&path, &facts).await;
            let model = Arc::new(Model::new(key, wanted, facts, Arc::clone(self)).loaded(predictor, counters));
            self.note_loaded(&model);
            model
        };
        *place = Arc::downgrade(&model);
        Ok(model)
    }

    /// Puts a model to work that is not in memory.
    pub(crate) async fn open(&self, key: &ModelKey, wanted: &Wanted, counters: &Arc<Counters>) -> Result<Predictor> {
        let (path, description) = self.fetch(key).await?;
        let permit = self.permits.permit(description.as_ref()).await?;
        self.open_file(key, &path, description, wanted, counters, permit).await
    }

    async fn open_file(
        &self,
        key: &ModelKey,
        path: &Path,
        description: Option<Description>,
        wanted: &Wanted,
        counters: &Arc<Counters>,
        _permit: SemaphorePermit<'_>,
    ) -> Result<Predictor> {
        let is_small = description.is_none() && {
            let options = self.options(path)?;
            options.intra_threads == 1 && options.accelerator.is_none()
        };
        let open = self.opening(key, path, description).await?;
        let (shapes, batches) = (wanted.shapes.seen(), wanted.batcher.clone());
        let open = move || open_warm(open, shapes, &batches);
        let opened = if is_small {
            self.runtime.gentle().run(open).await
        } else {
            // What it starts, threads and processes, would stay as gentle as the thread that opened it.
            spawn_blocking(open).await.ok()
        };
        let model = opened.ok_or_else(interrupted)??;
        let (batcher, counters) = (wanted.batcher.clone(), Arc::clone(counters));
        // So would the threads that run it.
        let started = spawn_blocking(move || Predictor::start_counting(model, batcher, counters)).await;
        let predictor = started.map_err(|_| interrupted())??;
        meters::model_loaded();
        Ok(predictor)
    }

    /// How the ONNX model in a file is opened.
    fn options(&self, path: &Path) -> Result<ModelOptions> {
        let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(ModelOptions::for_size(size, self.runtime.processors()).on(self.accelerator))
    }

    /// How what is in a file is opened, with all that it needs beside the file.
    async fn opening(&self, key: &ModelKey, path: &Path, description: Option<Description>) -> Result<Opening> {
        let path = path.to_owned();
        Ok(match description {
            None => {
                let (runtime, options) = (self.runtime.clone(), self.options(&path)?);
                Box::new(move || Ok(InferenceModel::from_file(&runtime, &path, options)?))
            }
            Some(Description::Upstream(upstream)) => {
                let (upstreams, handle) = (Arc::clone(&self.upstreams), Handle::current());
                Box::new(move || upstream.open(&upstreams, &handle))
            }
            Some(Description::Mlflow(saved)) => {
                let workers = self.workers.clone().ok_or_else(|| Error::Python {
                    detail:
                        "it is a model of Python, and this gateway runs none: set `gateway.python.interpreter`, or \
                             export the model to ONNX"
                            .to_owned(),
                })?;
                let folder = self.fetch_folder(key, &path, &saved).await?;
                Box::new(move || workers.open(&folder))
            }
        })
    }

    /// The folder with a model's files, each of them verified.
    async fn fetch_folder(&self, key: &ModelKey, path: &Path, saved: &Saved) -> Result<PathBuf> {
        let folder = path.with_extension(FOLDER_EXTENSION);
        if folder.is_dir() {
            return Ok(folder);
        }
        let artifacts = self.artifacts.project(&key.endpoint.project)?;
        let mut files = Vec::new();
        for (digest, place) in saved.places()? {
            files.push((artifacts.open_local(digest, &self.folder).await?, place));
        }
        let assembled = folder.clone();
        spawn_blocking(move || assemble(&assembled, &files))
            .await
            .map_err(|_| interrupted())??;
        Ok(folder)
    }

    /// Whether one more model fits beside those that are loaded.
    fn has_room_for(&self, path: &Path) -> bool {
        let file_bytes = fs::metadata(path).map_or(0, |file| file.len());
        let loaded: u64 = self.loaded().iter().map(|model| model.memory_bytes()).sum();
        loaded.saturating_add(session_bytes(file_bytes)) <= self.memory_bytes
    }

    /// A model's file, which is what its digest and, where that is wanted, its signature say; and how it is run.
    async fn fetch(&self, key: &ModelKey) -> Result<(PathBuf, Option<Description>)> {
        let artifacts = self.artifacts.project(&key.endpoint.project)?;
        let path = artifacts.open_local(key.digest, &self.folder).await?;
        let description = read_description(&path)?;
        self.signatures
            .check(&artifacts, key, description.as_ref(), &self.folder)
            .await?;
        Ok((path, description))
    }

    /// The models that are in memory.
    fn loaded(&self) -> Vec<Arc<Model>> {
        let mut models = Vec::new();
        self.loaded.lock().retain(|model| {
            let loaded = model.upgrade().filter(|model| model.is_loaded());
            let is_loaded = loaded.is_some();
            models.extend(loaded);
            is_loaded
        });
        models
    }

    /// A model was loaded: those that were used least recently go, until the others fit.
    pub(crate) fn note_loaded(&self, model: &Arc<Model>) {
        {
            let mut loaded = self.loaded.lock();
            // It may have been in memory before.
            if !loaded.iter().any(|known| known.as_ptr() == Arc::as_ptr(model)) {
                loaded.push(Arc::downgrade(model));
            }
        }
        self.make_room(self.loaded(), Some(model));
    }

    /// Lets go of the models that were used least recently, until the others fit; `spared` is not among them. One model
    /// alone may take more than there is.
    fn make_room(&self, mut models: Vec<Arc<Model>>, spared: Option<&Arc<Model>>) {
        let mut bytes: u64 = models.iter().map(|model| model.memory_bytes()).sum();
        if bytes <= self.memory_bytes {
            return;
        }
        models.retain(|model| spared.is_none_or(|spared| !Arc::ptr_eq(model, spared)));
        models.sort_by_cached_key(|model| model.used());
        if spared.is_none() {
            // Without the one that was used last, nothing would be served.
            models.pop();
        }
        for model in models {
            if bytes <= self.memory_bytes {
                break;
            }
            bytes = bytes.saturating_sub(model.memory_bytes());
            if model.unload(Unloaded::Memory) {
                // Where few of many models fit it happens with every other request; the metrics count it.
                tracing::debug!(endpoint = %model.key.endpoint, digest = %model.key.digest,
                    "memory is short: a model is let go of until its next request");
            }
        }
    }

    /// Lets go of models that nobody asked for as long as they may stay, and shows what is loaded.
    pub(crate) fn rest(&self) {
        let models = self.loaded();
        for model in &models {
            if model.is_overdue() && model.unload(Unloaded::Idle) {
                tracing::info!(endpoint = %model.key.endpoint, digest = %model.key.digest,
                    "nobody asks: a model is let go of until its next request");
            }
        }
        // Models that got more workers take more than when they were loaded.
        self.make_room(models.clone(), None);
        let loaded = models.iter().filter(|model| model.is_loaded()).count();
        meters::models(loaded, models.iter().map(|model| model.memory_bytes()).sum());
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

const fn interrupted() -> Error {
    Error::Interrupted {
        what: "loading the model",
    }
}

/// What an artifact that is no model itself says of how it is run.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Description {
    /// By another server.
    Upstream(Upstream),
    /// By Python, from a folder that MLflow saved it in.
    Mlflow(Saved),
}

impl Description {
    const fn platform(&self) -> Platform {
        match self {
            Self::Upstream(_) => Platform::Upstream,
            Self::Mlflow(_) => Platform::Python,
        }
    }
}

/// What opens a model, and may take its time.
type Opening = Box<dyn FnOnce() -> Result<InferenceModel> + Send>;

/// The description that an artifact is; none: it is an ONNX file, which never begins as JSON's objects do.
fn read_description(path: &Path) -> Result<Option<Description>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut first = [0];
    let read = file.read(&mut first).map_err(Error::io(path))?;
    if read == 0 || first != *b"{" {
        return Ok(None);
    }
    let mut text = first.to_vec();
    file.take(MAX_DESCRIPTION_BYTES)
        .read_to_end(&mut text)
        .map_err(Error::io(path))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::Description {
            detail: error.to_string(),
        })
}

/// Opens a model and warms it with shapes that were seen.
fn open_warm(open: Opening, shapes: Vec<InputShapes>, batches: &BatcherOptions) -> Result<InferenceModel> {
    let mut model = open()?;
    if let Err(error) = model.warm_up(shapes, batches) {
        // Zeros may be no valid input; real ones will tell.
        tracing::info!(%error, "the model did not take the warm-up's zeros");
    }
    Ok(model)
}

/// [`Facts`] on disk.
#[derive(Serialize, Deserialize)]
struct KeptFacts {
    signature: Signature,
    /// Why requests are not merged; none: they are.
    alone: Option<String>,
    #[serde(default)]
    platform: Platform,
}

async fn read_facts(path: &Path) -> Option<Facts> {
    let text = tokio::fs::read(path.with_extension(FACTS_EXTENSION)).await.ok()?;
    let kept: KeptFacts = serde_json::from_slice(&text).ok()?;
    Some(Facts {
        signature: kept.signature,
        platform: kept.platform,
        batching: kept.alone.map_or(Batching::Rows, Batching::Never),
    })
}

/// Writes down what was found out. Without it the model is loaded to find out again.
async fn write_facts(path: &Path, facts: &Facts) {
    let kept = KeptFacts {
        signature: facts.signature.clone(),
        platform: facts.platform,
        alone: match &facts.batching {
            Batching::Rows => None,
            Batching::Never(why) => Some(why.clone()),
        },
    };
    let path = path.with_extension(FACTS_EXTENSION);
    let Ok(text) = serde_json::to_vec(&kept) else { return };
    if let Err(error) = tokio::fs::write(&path, text).await {
        tracing::debug!(path = %path.display(), %error, "what is known of a model cannot be kept");
    }
}

fn sweep_files(folder: &Path, used: &HashSet<ModelKey>, limit: u64) -> io::Result<()> {
    let used: HashSet<PathBuf> = used
        .iter()
        .flat_map(ModelKey::files)
        .map(|file| folder.join(file))
        .collect();
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
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
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
    // What is known of a model stays as long as its file.
    if !unfinished && !used.contains(&path.with_extension("")) {
        let metadata = entry.metadata()?;
        unused.push((metadata.modified()?, size_of(&path)?, path));
    }
    Ok(())
}

/// The bytes of a file, or of all files below a folder.
fn size_of(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    entries(path)?.iter().map(|entry| size_of(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_files_beyond_the_limit_go() {
        let folder = tempfile::tempdir().unwrap();
        let key = |project: &str, index: u8| ModelKey {
            endpoint: EndpointKey {
                project: project.to_owned(),
                name: "e".to_owned(),
            },
            digest: Digest::of(&[index]),
            bundle: None,
        };
        let file = |key: &ModelKey| key.files().next().unwrap();
        let keys: Vec<ModelKey> = ["a", "b"]
            .into_iter()
            .flat_map(|project| (0..2).map(move |index| key(project, index)))
            .collect();
        for key in &keys {
            fs::create_dir_all(folder.path().join(&key.endpoint.project)).unwrap();
            fs::write(folder.path().join(file(key)), [0; 10]).unwrap();
        }
        let used = HashSet::from([keys[0].clone()]);
        let left = || keys.iter().filter(|key| folder.path().join(file(key)).exists()).count();
        sweep_files(folder.path(), &used, 30).unwrap();
        assert_eq!(left(), 4);
        sweep_files(folder.path(), &used, 10).unwrap();
        assert_eq!(left(), 2);
        let before = folder.path().join(keys[0].digest.to_hex());
        fs::write(&before, [0; 10]).unwrap();
        sweep_files(folder.path(), &used, 0).unwrap();
        assert_eq!(left(), 1);
        assert!(folder.path().join(file(&keys[0])).exists());
        assert!(!before.exists(), "of no project");
    }
}
