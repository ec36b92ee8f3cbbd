//! Files of segments that are done with, which become the next segments.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// How many are kept. They are empty.
const MAX_SPARES: usize = 256;

/// Empty files. Where many endpoints have a few predictions each, segments come and go by the hundred a second, and for a file system
/// that has just removed so many, making a file is work of milliseconds, which requests would wait for; renaming one is not.
#[derive(Debug)]
pub(super) struct Spares {
    folder: PathBuf,
    files: Mutex<Vec<PathBuf>>,
    /// How many there have been.
    count: AtomicU64,
}

impl Spares {
    /// None yet, with an empty folder for them. What a process before has left there goes.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder,
            files: Mutex::default(),
            count: AtomicU64::new(0),
        })
    }

    /// An empty file at this path, to be appended to.
    pub(super) fn take(&self, path: &Path) -> io::Result<File> {
        let spare = self.files.lock().pop();
        if let Some(spare) = spare
            && let Ok(file) = File::options().append(true).open(&spare)
            && fs::rename(&spare, path).is_ok()
        {
            return Ok(file);
        }
        File::options().append(true).create_new(true).open(path)
    }

    /// A file is done with: it is there no more after this, unless that fails.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        if self.files.lock().len() < MAX_SPARES
            && let Ok(spare) = self.keep(path)
        {
            self.files.lock().push(spare);
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn keep(&self, path: &Path) -> io::Result<PathBuf> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let spare = self.folder.join(number.to_string());
        // It moves first: no crash between the two leaves an empty segment.
        fs::rename(path, &spare)?;
        File::options().write(true).open(&spare)?.set_len(0)?;
        Ok(spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = || {
            let names = fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let spares = Spares::open(path("spares")).unwrap();
        drop(spares.take(&path("a")).unwrap());
        fs::write(path("a"), "content").unwrap();
        spares.give(&path("a")).unwrap();
        assert_eq!(names(), ["spares"]);
        io::Write::write_all(&mut spares.take(&path("b")).unwrap(), b"other").unwrap();
        assert_eq!(fs::read(path("b")).unwrap(), b"other");
        assert_eq!(fs::read_dir(path("spares")).unwrap().count(), 0);
        // One that somebody removed is no loss.
        spares.give(&path("b")).unwrap();
        fs::remove_file(spares.files.lock()[0].clone()).unwrap();
        drop(spares.take(&path("c")).unwrap());
        spares.give(&path("gone")).unwrap();
        assert_eq!(names(), ["c", "spares"]);
        // What is there already is not written over.
        assert_eq!(
            spares.take(&path("c")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[test]
    fn so_many_are_kept_and_a_restart_forgets_them() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("spares");
        let count = || fs::read_dir(&kept).unwrap().count();
        let spares = Spares::open(kept.clone()).unwrap();
        for number in 0..MAX_SPARES + 10 {
            let path = folder.path().join(number.to_string());
            fs::write(&path, "content").unwrap();
            spares.give(&path).unwrap();
        }
        assert_eq!(count(), MAX_SPARES);
        drop(Spares::open(kept.clone()).unwrap());
        assert_eq!(count(), 0);
    }
}
