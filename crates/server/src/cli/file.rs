//! Files that take their names only when they are whole.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::Context;
use tempfile::NamedTempFile;

use super::UsageError;

/// Only the owner reads and writes it: it has keys, or who did what.
const MODE: u32 = 0o600;

/// A file under a temporary name beside its own. Unless it is kept, it goes away.
#[derive(Debug)]
pub struct NewFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file; one that is there stays as it is until the new one is kept.
    pub fn begin(path: &Path) -> anyhow::Result<Self> {
        let path = place_of(path)?;
        let file = tempfile::Builder::new()
            .prefix(".modelyard-")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(folder_of(&path))
            .with_context(|| format!("`{}` cannot be written", path.display()))?;
        Ok(Self { file, path })
    }

    /// Gives it the owner of the file that it replaces, who could not read it otherwise.
    pub fn take_owner(&self) -> anyhow::Result<()> {
        let old = fs::metadata(&self.path).with_context(|| format!("`{}` cannot be read", self.path.display()))?;
        let new = self.file.as_file().metadata()?;
        if (old.uid(), old.gid()) == (new.uid(), new.gid()) {
            return Ok(());
        }
        fchown(self.file.as_file(), Some(old.uid()), Some(old.gid())).with_context(|| {
            format!(
                "`{}` belongs to somebody else: run this as its owner",
                self.path.display()
            )
        })
    }

    /// Writes more of it.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| format!("`{}` cannot be written", self.path.display()))
    }

    /// Puts it in its place, all at once, so that it survives a loss of power.
    pub fn keep(self) -> anyhow::Result<()> {
        let Self { file, path } = self;
        keep(file, &path).with_context(|| format!("`{}` cannot be written", path.display()))
    }
}

fn keep(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder_of(path))?.sync_all()
}

/// Where the file really is: a link stays a link, and a device is not replaced.
fn place_of(path: &Path) -> anyhow::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(real) if real.is_file() => Ok(real),
        Ok(_) => Err(UsageError(format!("`{}` is there and is no file: name another", path.display())).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error).with_context(|| format!("`{}` cannot be written", path.display())),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_broken_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = NewFile::begin(&path).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(names(folder.path()), Vec::<String>::new());

        fs::write(&path, "old").unwrap();
        let mut file = NewFile::begin(&path).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(names(folder.path()), ["out"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn a_whole_file_replaces_what_a_link_points_at() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("out"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        symlink(&path, &link).unwrap();
        let mut file = NewFile::begin(&link).unwrap();
        file.take_owner().unwrap();
        file.write(b"ne").unwrap();
        file.write(b"w").unwrap();
        file.keep().unwrap();
        assert_eq!(names(folder.path()), ["link", "out"]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null")] {
            assert!(
                NewFile::begin(path).unwrap_err().is::<UsageError>(),
                "{}",
                path.display()
            );
        }
        let missing = folder.path().join("missing/out");
        let error = NewFile::begin(&missing).unwrap_err().to_string();
        assert!(error.contains("missing/out"), "{error}");
    }
}
