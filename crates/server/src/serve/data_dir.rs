//! The data folder: one server at a time, never a newer version's, and with a name that stays.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use modelyard_common::id::IdSource;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The layout of the data folder that this version writes.
const FORMAT: u32 = 1;

/// Held for as long as a server uses the folder.
const LOCK_FILE: &str = "lock";
/// What the folder is.
const MARKER_FILE: &str = "modelyard.json";
/// Where the running server listens.
const ADDRESSES_FILE: &str = "addresses.json";

/// A data folder that belongs to this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    marker: Marker,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    node: String,
}

/// Where the server listens.
#[derive(Debug, Clone, Serialize)]
pub struct Addresses {
    /// URL of the public listener.
    pub public: String,
    /// URL of the internal listener.
    pub internal: String,
    /// The process.
    pub pid: u32,
}

impl DataDir {
    /// Opens the folder, which is made when it does not exist, and locks it.
    pub fn open(path: &Path, ids: &dyn IdSource) -> anyhow::Result<Self> {
        // For this user alone: databases and keys are in it. One that is there keeps its mode.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("the data folder `{}` cannot be made", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("the data folder `{}` cannot be read", path.display()))?;
        let lock = lock(&path)?;
        let marker = match read_marker(&path)? {
            Some(marker) => marker,
            None => create_marker(&path, ids)?,
        };
        if marker.format > FORMAT {
            bail!(
                "the data folder `{}` was written by a newer version (format {}, this version knows {FORMAT}): start that version, or choose another folder with --data-dir",
                path.display(),
                marker.format
            );
        }
        // Left behind by a server that was killed.
        remove_if_there(&path.join(ADDRESSES_FILE))?;
        Ok(Self {
            path,
            marker,
            _lock: lock,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the server on this folder.
    pub fn node(&self) -> &str {
        &self.marker.node
    }

    /// Writes where the server listens, for tools on this machine.
    pub fn announce(&self, addresses: &Addresses) -> anyhow::Result<()> {
        write_atomically(&self.path, ADDRESSES_FILE, &serde_json::to_vec_pretty(addresses)?)
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.path.join(ADDRESSES_FILE)) {
            tracing::debug!(%error, "the addresses stay in the data folder");
        }
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE))
        .with_context(|| format!("the data folder `{}` cannot be written", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another server uses the data folder `{}`: stop it, or choose another folder with --data-dir",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("the data folder `{}` cannot be locked", path.display())),
    }
}

fn read_marker(path: &Path) -> anyhow::Result<Option<Marker>> {
    let file = path.join(MARKER_FILE);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("`{}` cannot be read", file.display())),
    };
    let marker = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is damaged: restore it from a backup", file.display()))?;
    Ok(Some(marker))
}

fn create_marker(path: &Path, ids: &dyn IdSource) -> anyhow::Result<Marker> {
    let foreign = fs::read_dir(path)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name() != LOCK_FILE && entry.file_name() != MARKER_FILE);
    if let Some(entry) = foreign {
        bail!(
            "`{}` is no data folder of Modelyard and is not empty (it has `{}`): choose another folder with --data-dir",
            path.display(),
            entry.file_name().display()
        );
    }
    let id = ids.next().simple().to_string();
    let marker = Marker {
        format: FORMAT,
        node: format!("node-{}", id.get(20..).unwrap_or(&id)),
    };
    write_atomically(path, MARKER_FILE, &serde_json::to_vec_pretty(&marker)?)?;
    Ok(marker)
}

/// Writes a file whole or not at all.
fn write_atomically(folder: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| {
        format!(
            "the data folder `{}` cannot be written: is the disk full?",
            folder.display()
        )
    })?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    Ok(())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use modelyard_common::id::CountingIds;

    use super::*;

    #[test]
    fn one_server_at_a_time_and_the_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let ids = CountingIds::new();
        let first = DataDir::open(folder.path(), &*ids).unwrap();
        let node = first.node().to_owned();
        let error = DataDir::open(folder.path(), &*ids).unwrap_err().to_string();
        assert!(error.contains("another server uses the data folder"), "{error}");
        drop(first);
        assert_eq!(DataDir::open(folder.path(), &*ids).unwrap().node(), node);
    }

    #[test]
    fn a_newer_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MARKER_FILE), r#"{"format": 9, "node": "node-x"}"#).unwrap();
        let error = DataDir::open(folder.path(), &*CountingIds::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("newer version (format 9"), "{error}");
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        let error = DataDir::open(folder.path(), &*CountingIds::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }
}
