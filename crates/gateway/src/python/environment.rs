//! Python environments with what models need, each made once for all models that need the same.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use modelyard_artifacts::Digest;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The file in a model's folder that lists what it needs.
const REQUIREMENTS: &str = "requirements.txt";

/// What tells that an environment is complete.
const STAMP: &str = "complete";

/// What the programs that make an environment said.
const LOG: &str = "install.log";

/// How long making an environment may take.
const TIMEOUT: Duration = Duration::from_mins(30);
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How many environments are kept, those in use among them.
const MAX_ENVIRONMENTS: usize = 32;

/// How much of what went wrong is told, in bytes from the end.
const TOLD_BYTES: u64 = 2000;

/// The variables of this process that are of use to others: nothing that could be a secret of ours.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// What pip reads beside them.
const PASSED_ON_TO_PIP: [&str; 7] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "REQUESTS_CA_BUNDLE",
];
const PIP_PREFIX: &str = "PIP_";

/// Leaves a command's process only the variables that it needs, and `more`.
pub(super) fn pass_on(command: &mut Command, more: &[&str]) {
    command.env_clear();
    for name in PASSED_ON.iter().chain(more) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

/// The environments on this machine.
pub(crate) struct Environments {
    folder: PathBuf,
    /// The Python that makes them.
    interpreter: PathBuf,
    /// An environment is made by one at a time.
    locks: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
}

impl Environments {
    pub(crate) fn new(folder: PathBuf, interpreter: PathBuf) -> Self {
        Self {
            folder,
            interpreter,
            locks: Mutex::default(),
        }
    }

    /// The Python of the environment with what the model in a folder needs, made where it is missing.
    ///
    /// # Errors
    /// `Python` with what pip said.
    pub(crate) fn of(&self, model: &Path) -> Result<PathBuf> {
        let path = model.join(REQUIREMENTS);
        let requirements = fs::read(&path).map_err(|error| Error::Python {
            detail: format!(
                "the model does not say what it needs ({REQUIREMENTS}: {error}): log it with MLflow 1.19 or later"
            ),
        })?;
        let version = self.version()?;
        let key = Digest::of(&[version.as_bytes(), b"\n", &requirements].concat()).to_hex();
        let environment = self.folder.join(key);
        let python = environment.join("bin/python");
        let lock = Arc::clone(self.locks.lock().entry(environment.clone()).or_default());
        let _made_by_one = lock.lock();
        let stamp = environment.join(STAMP);
        if stamp.is_file() {
            // Its age tells when the environment was of use last.
            let _ = fs::write(&stamp, version);
            return Ok(python);
        }
        tracing::info!(environment = %environment.display(), "a Python environment is made for a model");
        fs::create_dir_all(&environment).map_err(Error::io(&environment))?;
        let mut venv = Command::new(&self.interpreter);
        venv.args(["-m", "venv", "--clear"]).arg(&environment);
        self.run(venv, "the environment cannot be made", None)?;
        let log = environment.join(LOG);
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(&path);
        self.run(pip, "what the model needs cannot be installed", Some(&log))?;
        fs::write(&stamp, version).map_err(Error::io(&stamp))?;
        self.sweep();
        Ok(python)
    }

    /// Removes the environments that were of use the longest time ago, where there are many. Those that this process has
    /// used stay.
    fn sweep(&self) {
        let used: HashSet<PathBuf> = self.locks.lock().keys().cloned().collect();
        let folders = fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        let mut folders: Vec<(Option<SystemTime>, PathBuf)> = folders
            .map(|entry| entry.path())
            .map(|folder| {
                (
                    fs::metadata(folder.join(STAMP)).and_then(|stamp| stamp.modified()).ok(),
                    folder,
                )
            })
            .collect();
        folders.sort();
        let surplus = folders.len().saturating_sub(MAX_ENVIRONMENTS);
        for (_, folder) in folders.into_iter().take(surplus) {
            if !used.contains(&folder)
                && let Err(error) = fs::remove_dir_all(&folder)
            {
                tracing::warn!(folder = %folder.display(), %error, "a Python environment that is of no use cannot be removed");
            }
        }
    }

    /// Which Python makes the environments: another version needs others.
    fn version(&self) -> Result<String> {
        let mut command = Command::new(&self.interpreter);
        pass_on(&mut command, &[]);
        let output = command.arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| Error::Python {
            detail: format!("`{}` cannot be started: {error}", self.interpreter.display()),
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a program to its end, and tells the end of what it said where it failed.
    fn run(&self, mut command: Command, what: &str, log: Option<&Path>) -> Result<()> {
        let failed = |detail: String| Error::Python {
            detail: format!("{what}: {detail}"),
        };
        let mut said = match log {
            Some(path) => File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(path),
            None => tempfile::tempfile(),
        }
        .map_err(|error| failed(error.to_string()))?;
        let pip: Vec<String> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| name.starts_with(PIP_PREFIX))
            .collect();
        let more: Vec<&str> = PASSED_ON_TO_PIP
            .into_iter()
            .chain(pip.iter().map(String::as_str))
            .collect();
        pass_on(&mut command, &more);
        let (output, errors) = (said.try_clone(), said.try_clone());
        let (output, errors) = output
            .and_then(|output| Ok((output, errors?)))
            .map_err(|error| failed(error.to_string()))?;
        let spawned = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let mut child = spawned.map_err(|error| failed(format!("`{}`: {error}", self.interpreter.display())))?;
        let until = Instant::now() + TIMEOUT;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < until => std::thread::sleep(CHECK_INTERVAL),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("it took longer than {TIMEOUT:?}")));
                }
            }
        };
        if status.success() {
            return Ok(());
        }
        Err(failed(last_of(&mut said).unwrap_or_else(|_| status.to_string())))
    }
}

/// The end of a file, as text.
fn last_of(file: &mut File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TOLD_BYTES)))?;
    let mut last = Vec::new();
    file.take(TOLD_BYTES).read_to_end(&mut last)?;
    Ok(String::from_utf8_lossy(&last).trim().to_owned())
}
