//! Local copies of blobs while they are read.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// The folder below the data folder.
const FOLDER: &str = "registry-imports";

/// A folder of its own for each import. What a crash leaves behind goes at the next start.
#[derive(Debug, Clone)]
pub struct ImportFolders {
    root: PathBuf,
}

/// The folder of one import; removed when this is dropped.
#[derive(Debug)]
pub struct ImportFolder {
    path: PathBuf,
}

impl ImportFolders {
    /// Below the data folder, empty.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join(FOLDER);
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    /// A new folder.
    pub fn create(&self, id: Uuid) -> io::Result<ImportFolder> {
        let path = self.root.join(id.simple().to_string());
        fs::create_dir_all(&path)?;
        Ok(ImportFolder { path })
    }
}

impl ImportFolder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ImportFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the folder of an import stays until the next start");
        }
    }
}
