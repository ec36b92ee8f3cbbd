//! Models that MLflow saved in any of its flavours, each run by processes of Python that are watched over.

mod environment;
mod process;

use std::{
    borrow::Cow,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use modelyard_artifacts::Digest;
use modelyard_inference::{
    Backend, Error as InferenceError, Model as InferenceModel, Run, Signature, Source, Tensor, run_merged,
};
use parking_lot::Mutex;
use serde::Deserialize;

use self::{
    environment::Environments,
    process::{Failure, Findings, Launch, Process},
};
use crate::{
    config::PythonConfig,
    error::{Error, Result},
};

/// The folder of environments below the gateway's.
const ENVIRONMENTS_FOLDER: &str = "python";

/// The most files of a model.
const MAX_FILES: usize = 10_000;

/// The waits before a worker that ended again and again is started again: none at first, then doubled to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_mins(1);

/// How long a request without a deadline waits for a worker that is being started.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that MLflow saved a model in: its files, each a blob.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    files: Vec<SavedFile>,
}

/// One file of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedFile {
    /// Below the folder, with `/`.
    path: String,
    digest: String,
    #[expect(dead_code, reason = "for people, and for what reads the description elsewhere")]
    size_bytes: u64,
}

impl Saved {
    /// Where each blob belongs below the folder.
    ///
    /// # Errors
    /// `Description` if a path leads out of the folder.
    pub(crate) fn places(&self) -> Result<Vec<(Digest, PathBuf)>> {
        let wrong = |detail: String| Error::Description { detail };
        if self.files.len() > MAX_FILES {
            return Err(wrong(format!("it has more than {MAX_FILES} files")));
        }
        let each = self.files.iter().map(|file| {
            let path = PathBuf::from(&file.path);
            let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            if file.path.is_empty() || file.path.contains('\0') || !is_plain {
                return Err(wrong(format!("`{}` is no path below the model's folder", file.path)));
            }
            let digest = file.digest.parse();
            let digest = digest.map_err(|error: modelyard_artifacts::InvalidDigest| wrong(error.to_string()))?;
            Ok((digest, path))
        });
        each.collect()
    }
}

/// Puts files together to a folder that is whole or not there.
///
/// # Errors
/// `Io`.
pub(crate) fn assemble(folder: &Path, files: &[(PathBuf, PathBuf)]) -> Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    let partial = tempfile::Builder::new()
        .prefix(".folder-")
        .tempdir_in(parent)
        .map_err(Error::io(parent))?;
    for (content, place) in files {
        let place = partial.path().join(place);
        let below = place.parent().unwrap_or(partial.path());
        fs::create_dir_all(below).map_err(Error::io(below))?;
        // The same content can be in it twice, and links are not made everywhere.
        fs::hard_link(content, &place)
            .or_else(|_| fs::copy(content, &place).map(drop))
            .map_err(Error::io(&place))?;
    }
    match fs::rename(partial.path(), folder) {
        Ok(()) => {
            // It is no temporary folder any more.
            let _ = partial.keep();
            Ok(())
        }
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(Error::io(folder)(error)),
    }
}

/// How models of Python run on this machine.
pub(crate) struct Workers {
    config: PythonConfig,
    interpreter: PathBuf,
    environments: Environments,
}

impl Workers {
    /// None: no Python is configured. `folder` is the gateway's.
    pub(crate) fn new(config: &PythonConfig, folder: &Path) -> Option<Self> {
        let interpreter = config.interpreter.clone()?;
        Some(Self {
            environments: Environments::new(folder.join(ENVIRONMENTS_FOLDER), interpreter.clone()),
            config: config.clone(),
            interpreter,
        })
    }

    /// Starts a worker for the model in a folder.
    ///
    /// # Errors
    /// `Python` with the reason.
    pub(crate) fn open(&self, folder: &Path) -> Result<InferenceModel> {
        let interpreter = if self.config.environments {
            self.environments.of(folder)?
        } else {
            self.interpreter.clone()
        };
        let mut launcher = Launcher {
            launch: Launch {
                interpreter,
                folder: folder.to_owned(),
                memory_bytes: self.config.worker_memory_bytes,
                processors: self.config.worker_processors,
                run_timeout: self.config.run_timeout,
            },
            first: Mutex::default(),
            memory_bytes: AtomicU64::new(0),
            example: Vec::new(),
        };
        let (first, findings) = launcher.start().map_err(|detail| Error::Python {
            detail: format!("the model cannot be run: {detail}"),
        })?;
        launcher.example = findings.example;
        launcher.first = Mutex::new(Some(first));
        Ok(InferenceModel::new(
            findings.signature,
            Arc::new(Pool(Arc::new(launcher))),
            self.config.max_workers,
        )?)
    }
}

/// Starts workers of one model.
struct Launcher {
    launch: Launch,
    /// The one that told what the model takes.
    first: Mutex<Option<Process>>,
    /// How much the last one took that was started.
    memory_bytes: AtomicU64,
    /// What the model takes for sure.
    example: Vec<Tensor>,
}

impl Launcher {
    fn start(&self) -> Result<(Process, Findings), String> {
        let (process, findings) = Process::start(&self.launch)?;
        let memory_bytes = process.memory_bytes().unwrap_or_default();
        self.memory_bytes.store(memory_bytes, Ordering::Relaxed);
        Ok((process, findings))
    }
}

struct Pool(Arc<Launcher>);

impl Source for Pool {
    fn open(&self) -> Result<Box<dyn Backend>, InferenceError> {
        let first = self.0.first.lock().take();
        let process = first.map_or_else(|| self.0.start().map(|(process, _)| process), Ok);
        let process = process.map_err(|detail| InferenceError::BackendAway { detail })?;
        Ok(Box::new(Worker {
            state: State::Ready(process),
            failures: 0,
            launcher: Arc::clone(&self.0),
        }))
    }

    fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes.load(Ordering::Relaxed)
    }

    fn example(&self) -> Option<Vec<Tensor>> {
        Some(self.0.example.clone())
    }

    fn takes_any_bytes(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }
}

/// What a worker is at.
enum State {
    Ready(Process),
    /// It is started anew, not before a time.
    Starting {
        started: mpsc::Receiver<Result<Process, String>>,
        begins: Instant,
        /// Why the one before it is gone.
        why: String,
    },
}

/// A worker process that is started again when it ends.
struct Worker {
    state: State,
    /// How often it ended since it worked.
    failures: u32,
    launcher: Arc<Launcher>,
}

impl Worker {
    /// Starts another process in the place of one that is gone: at once for the first time, later after a while.
    fn restart(&mut self, why: String) {
        let wait = match self.failures {
            0 => Duration::ZERO,
            failures => FIRST_WAIT.saturating_mul(1 << (failures - 1).min(6)).min(LAST_WAIT),
        };
        self.failures = self.failures.saturating_add(1);
        tracing::warn!(folder = %self.launcher.launch.folder.display(), why, ?wait,
            "a model's worker is gone and started again");
        let (done, started) = mpsc::channel();
        let launcher: Weak<Launcher> = Arc::downgrade(&self.launcher);
        let begin = move || {
            thread::sleep(wait);
            // The model may have gone meanwhile.
            if let Some(launcher) = launcher.upgrade() {
                let _ = done.send(launcher.start().map(|(process, _)| process));
            }
        };
        // Without a thread nothing is sent, and the next run tries again.
        let _ = thread::Builder::new().name("python".to_owned()).spawn(begin);
        self.state = State::Starting {
            started,
            begins: Instant::now() + wait,
            why,
        };
    }

    /// The process, waited for while it is being started.
    fn ready(&mut self, deadline: Option<Instant>) -> Result<&mut Process, InferenceError> {
        if let State::Ready(process) = &mut self.state
            && process.has_ended()
        {
            self.restart("it ended while it had nothing to do".to_owned());
        }
        if let State::Starting { started, begins, why } = &self.state {
            let now = Instant::now();
            // A little is waited for: the requests that the last one was at are tried one by one.
            if *begins > now + FIRST_WAIT {
                return Err(InferenceError::BackendAway {
                    detail: format!(
                        "the model's worker is gone ({why}), and is started again in {:.1?}",
                        *begins - now
                    ),
                });
            }
            let patience = deadline.map_or(PATIENCE, |deadline| deadline.saturating_duration_since(now));
            match started.recv_timeout(patience) {
                Ok(Ok(process)) => self.state = State::Ready(process),
                Ok(Err(why)) => return Err(self.gone(why)),
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(InferenceError::DeadlineExceeded),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.gone("it could not be started".to_owned()));
                }
            }
        }
        match &mut self.state {
            State::Ready(process) => Ok(process),
            State::Starting { why, .. } => Err(InferenceError::BackendAway { detail: why.clone() }),
        }
    }

    fn gone(&mut self, why: String) -> InferenceError {
        let detail = gone(&why);
        self.restart(why);
        InferenceError::BackendAway { detail }
    }

    fn run_whole(
        &mut self,
        signature: &Signature,
        inputs: Cow<'_, [Tensor]>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, InferenceError> {
        let least = self.launcher.launch.run_timeout;
        let process = self.ready(deadline)?;
        // Ending it for each request that is late would cost more than it saves.
        let patience = deadline.map_or(least, |deadline| {
            least.max(deadline.saturating_duration_since(Instant::now()))
        });
        match process.run(inputs.into_owned(), patience) {
            Ok(outputs) => {
                self.failures = 0;
                signature.arrange_outputs(outputs)
            }
            Err(Failure::Refused(error)) => {
                self.failures = 0;
                Err(error)
            }
            Err(Failure::Ended(why)) => {
                let detail = gone(&why);
                self.restart(why);
                Err(InferenceError::BackendLost { detail })
            }
        }
    }
}

fn gone(why: &str) -> String {
    format!("the model's worker is gone: {why}")
}

impl Backend for Worker {
    fn run(
        &mut self,
        signature: &Signature,
        requests: &[&[Tensor]],
        deadline: Option<Instant>,
    ) -> Result<Run, InferenceError> {
        run_merged(requests, |inputs| self.run_whole(signature, inputs, deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(paths: &[&str]) -> Saved {
        let file = |path: &&str| SavedFile {
            path: (*path).to_owned(),
            digest: Digest::of(path.as_bytes()).to_string(),
            size_bytes: 1,
        };
        Saved {
            files: paths.iter().map(file).collect(),
        }
    }

    #[test]
    fn files_stay_in_the_folder() {
        assert_eq!(saved(&["MLmodel", "data/model.pkl"]).places().unwrap().len(), 2);
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./x", "a\0b"] {
            let error = saved(&["MLmodel", bad]).places().unwrap_err().to_string();
            assert!(error.contains("no path below"), "{bad}: {error}");
        }
    }

    #[test]
    fn folders_are_put_together_once() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, "content").unwrap();
        let files = ["MLmodel", "data/one", "data/two"].map(|place| (blob.clone(), PathBuf::from(place)));
        let target = folder.path().join("model");
        for _ in 0..2 {
            assemble(&target, &files).unwrap();
            for (_, place) in &files {
                assert_eq!(fs::read_to_string(target.join(place)).unwrap(), "content");
            }
        }
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "nothing partial is left behind");
    }
}
