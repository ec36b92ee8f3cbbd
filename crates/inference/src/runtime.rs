//! Finding and loading ONNX Runtime's library, once a process.

use std::{
    env,
    ffi::OsStr,
    fs, iter,
    num::NonZero,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use ort::{
    environment::{Environment, EnvironmentBuilder},
    logging::LogLevel,
};
use parking_lot::Mutex;

use crate::{
    error::{Error, Result},
    gentle::GentleThreads,
};

/// The variable that names the library's file.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The folder that set-up fetches the library into, beside the build's output.
const FETCHED_FOLDER: &str = "onnxruntime";

/// How many of the executable's ancestors may hold that folder: cargo puts tests two levels below its target folder.
const ANCESTORS: usize = 3;

/// The library's name without its ending.
const LIBRARY_STEM: &str = "onnxruntime";

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// ONNX Runtime, loaded. Cloning is cheap: there is one a process.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    processors: usize,
    gentle: GentleThreads,
}

impl Runtime {
    /// Loads ONNX Runtime, or hands out what is loaded already. The library is the file that `ORT_DYLIB_PATH` names,
    /// else the first found beside the executable, in `lib/` there or one level up, or in an `onnxruntime/` folder of
    /// the executable's three nearest ancestors. A failure is not remembered: a later call tries again.
    ///
    /// # Errors
    /// `RuntimeMissing` with the places looked at; `Thread` if the system refuses one; `RuntimeUnusable` if the file is no such library or too old.
    pub fn load() -> Result<Self> {
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime.clone());
        }
        let _loading = LOADING.lock();
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime.clone());
        }
        let executable = env::current_exe().unwrap_or_default();
        let library = find(env::var_os(LIBRARY_VARIABLE).as_deref(), &executable)?;
        let environment = open(&library)?
            .with_name("modelyard")
            .with_telemetry(false)
            .build()
            .map_err(|error| Error::RuntimeUnusable {
                path: library.clone(),
                detail: error.to_string(),
            })?;
        // Below warnings the runtime formats several messages a run, whether anybody listens or not.
        environment.set_log_level(LogLevel::Warning);
        let processors = processors();
        let gentle = GentleThreads::start(processors).map_err(|source| Error::Thread { source })?;
        tracing::info!(library = %library.display(), processors, "ONNX Runtime loaded");
        Ok(RUNTIME
            .get_or_init(|| Self {
                environment,
                library,
                processors,
                gentle,
            })
            .clone())
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The processors this process may use, which all thread counts are made of.
    pub const fn processors(&self) -> usize {
        self.processors
    }

    /// As many gentle threads as there are processors, for opening and freeing sessions that start no threads themselves.
    pub const fn gentle(&self) -> &GentleThreads {
        &self.gentle
    }

    /// What the sessions are made in.
    pub(crate) const fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// The processors that this process may use: the standard library reads the affinity mask and the control group's
/// quota (`cpu.max`), both of which ONNX Runtime itself ignores.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Loads the library's file, which must be ONNX Runtime and recent enough.
fn open(library: &Path) -> Result<EnvironmentBuilder> {
    ort::init_from(library).map_err(|error| Error::RuntimeUnusable {
        path: library.to_owned(),
        detail: error.to_string(),
    })
}

/// The library's file: what the variable says, or what the folders around the executable hold.
fn find(variable: Option<&OsStr>, executable: &Path) -> Result<PathBuf> {
    if let Some(path) = variable.filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::RuntimeMissing { tried: vec![path] })
        };
    }
    let folders = folders(executable);
    folders
        .iter()
        .find_map(|folder| newest_library(folder))
        .ok_or(Error::RuntimeMissing {
            tried: folders.into_iter().map(|folder| folder.join(file_pattern())).collect(),
        })
}

/// The folders that may hold the library, nearest first.
fn folders(executable: &Path) -> Vec<PathBuf> {
    let ancestors = executable.ancestors().skip(1);
    let beside = ancestors.clone().take(1).map(Path::to_owned);
    let lib = ancestors.clone().take(2).map(|folder| folder.join("lib"));
    let fetched = ancestors.take(ANCESTORS).map(|folder| folder.join(FETCHED_FOLDER));
    beside.chain(lib).chain(fetched).collect()
}

fn file_pattern() -> String {
    format!("{}{LIBRARY_STEM}{}*", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// The library of the highest version in a folder.
fn newest_library(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((library_version(path.file_name()?.to_str()?)?, path)))
        .filter(|(_, path)| path.is_file())
        .max()
        .map(|(_, path)| path)
}

/// The version in a library's file name (`libonnxruntime.so.1.32.0`), empty if there is none; `None` for other files,
/// such as the provider libraries beside it.
fn library_version(name: &str) -> Option<Vec<u32>> {
    let rest = name.strip_prefix(env::consts::DLL_PREFIX)?.strip_prefix(LIBRARY_STEM)?;
    // Linux puts the version behind the ending, macOS before it.
    let (before, after) = rest.split_once(env::consts::DLL_SUFFIX)?;
    iter::once(before)
        .chain(iter::once(after))
        .flat_map(|part| part.split('.').filter(|number| !number.is_empty()))
        .map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use modelyard_common::error::{ErrorKind, Fault};

    use super::*;

    fn library_name(version: &str) -> String {
        format!(
            "{}{LIBRARY_STEM}{}{version}",
            env::consts::DLL_PREFIX,
            env::consts::DLL_SUFFIX
        )
    }

    /// A layout as cargo's: `target/debug/deps/test`.
    fn layout() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let deps = folder.path().join("target/debug/deps");
        fs::create_dir_all(&deps).unwrap();
        let executable = deps.join("test");
        (folder, executable)
    }

    #[test]
    fn the_fetched_library_of_the_highest_version_is_found() {
        let (folder, executable) = layout();
        let fetched = folder.path().join("target/onnxruntime");
        fs::create_dir_all(&fetched).unwrap();
        for version in [".1.9.0", ".1.32.0", ".1.4.0"] {
            fs::write(fetched.join(library_name(version)), "").unwrap();
        }
        fs::write(fetched.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(find(None, &executable).unwrap(), fetched.join(library_name(".1.32.0")));
        let beside = executable.with_file_name(library_name(""));
        fs::write(&beside, "").unwrap();
        assert_eq!(find(None, &executable).unwrap(), beside);
        let named = folder.path().join("mine.so");
        fs::write(&named, "").unwrap();
        assert_eq!(find(Some(named.as_os_str()), &executable).unwrap(), named);
    }

    #[test]
    fn a_missing_library_names_the_places_and_the_remedy() {
        let (folder, executable) = layout();
        let error = find(None, &executable).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let message = error.to_string();
        for place in ["target/debug/deps/lib", "target/debug/deps", "target/onnxruntime"] {
            let place = folder.path().join(place).display().to_string();
            assert!(message.contains(&place), "{message} lacks {place}");
        }
        assert!(
            message.contains("cargo xtask setup") && message.contains("ORT_DYLIB_PATH"),
            "{message}"
        );
        // What the variable names is meant: nothing else is tried.
        let gone = folder.path().join("gone.so");
        let message = find(Some(gone.as_os_str()), &executable).unwrap_err().to_string();
        assert!(message.contains(&gone.display().to_string()), "{message}");
        assert!(!message.contains("target/onnxruntime"), "{message}");
    }

    #[test]
    fn a_file_that_is_no_library_or_another_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join(library_name(""));
        fs::write(&text, "not a library").unwrap();
        let message = open(&text).map(|_| ()).unwrap_err().to_string();
        assert!(
            message.contains("cannot be used") && message.contains("cargo xtask setup"),
            "{message}"
        );
        #[cfg(target_os = "linux")]
        {
            let message = open(Path::new("libc.so.6")).map(|_| ()).unwrap_err().to_string();
            assert!(
                message.contains("libc.so.6") && message.contains("OrtGetApiBase"),
                "{message}"
            );
        }
    }

    #[test]
    fn loading_twice_gives_the_same_runtime() {
        let first = Runtime::load().unwrap();
        let second = Runtime::load().unwrap();
        assert_eq!(first.library(), second.library());
        assert!(first.processors() >= 1);
    }
}
