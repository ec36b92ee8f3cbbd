//! The engines that TensorRT builds of a model, kept beside the model's file. ONNX Runtime writes them where it reads them, and takes what it
//! finds there for whole and for this model's, by the names in the graph. So each session works in a folder of its own, on a copy, which becomes
//! what is kept once the session is warm.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use tempfile::TempDir;

/// The extension of the folder with what is kept.
const KEPT_EXTENSION: &str = "engines";

/// How folders that are worked in begin, and after what time they are taken for a crash's.
const WORKING_PREFIX: &str = ".engines-";
const WORKING_LIFETIME: Duration = Duration::from_hours(24);

/// So that nothing is copied that is being replaced.
static KEPT: Mutex<()> = Mutex::new(());

/// The engines of one model, as one session uses them.
#[derive(Debug)]
pub(crate) struct Engines {
    kept: PathBuf,
    path: PathBuf,
    /// None once what it had is kept.
    working: Mutex<Option<TempDir>>,
}

impl Engines {
    /// A folder to work in, with what was kept of the model in this file.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn open(model: &Path) -> io::Result<Self> {
        let kept = model.with_extension(KEPT_EXTENSION);
        let working = working_folder(&kept)?;
        let copying = KEPT.lock();
        for file in files(&kept)? {
            fs::copy(kept.join(&file), working.path().join(&file))?;
        }
        drop(copying);
        Ok(Self {
            kept,
            path: working.path().to_owned(),
            working: Mutex::new(Some(working)),
        })
    }

    /// Where the session finds and writes them. The folder is gone once they are kept: what it writes later is lost.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        files(&self.path).is_ok_and(|files| files.is_empty())
    }

    /// Removes what the session would find. What is kept stays.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        files(&self.path)?
            .into_iter()
            .try_for_each(|file| fs::remove_file(self.path.join(file)))
    }

    /// Keeps them as they are now, instead of what was kept before.
    ///
    /// # Errors
    /// If they cannot be put there; then they are gone.
    pub(crate) fn keep(&self) -> io::Result<()> {
        let Some(working) = self.working.lock().take() else {
            return Ok(());
        };
        for file in files(working.path())? {
            File::open(working.path().join(file))?.sync_all()?;
        }
        let _replacing = KEPT.lock();
        // Goes with this value.
        let before = working_folder(&self.kept)?;
        if self.kept.is_dir() {
            fs::rename(&self.kept, before.path().join(KEPT_EXTENSION))?;
        }
        fs::rename(working.path(), &self.kept)?;
        let _ = working.keep();
        Ok(())
    }
}

/// A new folder beside what is kept. Removes what crashes left behind long ago; the new folder's own time is the measure.
fn working_folder(kept: &Path) -> io::Result<TempDir> {
    let folder = kept.parent().unwrap_or(Path::new("."));
    let working = tempfile::Builder::new().prefix(WORKING_PREFIX).tempdir_in(folder)?;
    let now = fs::metadata(working.path())?.modified()?;
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(WORKING_PREFIX.as_bytes())
            && age.is_some_and(|age| age > WORKING_LIFETIME)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an old folder of engines cannot be removed");
        }
    }
    Ok(working)
}

/// The names in a folder; none if it is not there.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.file_name().into())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(engines: &Engines, content: &str) {
        fs::write(engines.path().join("an.engine"), content).unwrap();
    }

    fn read(engines: &Engines) -> Option<String> {
        fs::read_to_string(engines.path().join("an.engine")).ok()
    }

    #[test]
    fn what_a_session_made_counts_once_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        let (first, second) = (Engines::open(&model).unwrap(), Engines::open(&model).unwrap());
        assert!(first.is_empty());
        write(&first, "whole");
        write(&second, "ha");
        first.keep().unwrap();
        first.keep().unwrap();
        let third = Engines::open(&model).unwrap();
        assert_eq!(read(&third).as_deref(), Some("whole"));
        third.clear().unwrap();
        assert!(third.is_empty());
        // Neither those that are not kept nor what became of a copy change what others find.
        drop((second, third));
        let fourth = Engines::open(&model).unwrap();
        assert_eq!(read(&fourth).as_deref(), Some("whole"));
        write(&fourth, "larger");
        fourth.keep().unwrap();
        assert_eq!(read(&Engines::open(&model).unwrap()).as_deref(), Some("larger"));
        assert_eq!(files(folder.path()).unwrap(), [Path::new("model.engines")]);
    }

    #[test]
    fn what_crashes_left_behind_is_removed_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let left = [".engines-old", ".engines-new"].map(|name| folder.path().join(name));
        for path in &left {
            fs::create_dir(path).unwrap();
        }
        let long_ago = fs::metadata(&left[1]).unwrap().modified().unwrap() - 2 * WORKING_LIFETIME;
        File::open(&left[0]).unwrap().set_modified(long_ago).unwrap();
        let _engines = Engines::open(&folder.path().join("model")).unwrap();
        assert!(!left[0].exists() && left[1].exists());
    }
}
