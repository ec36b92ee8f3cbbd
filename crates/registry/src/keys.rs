//! The keys that secrets and the audit chain's own keys are sealed with. They are never in the database.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use modelyard_auth::seal::KeyRing;

use crate::error::{Error, Result};

/// Where the keys are when the configuration names no file.
const FILE: &str = "registry.keys";
/// Only the server's own user may read them.
const MODE: u32 = 0o600;
/// The largest file of keys, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Reads the keys. Without a file in the configuration they are in the data folder, and made there the first time: while
/// nothing `is_sealed` yet that other keys could not open.
pub fn open(configured: Option<&Path>, data_dir: &Path, is_sealed: bool) -> Result<KeyRing> {
    let own: PathBuf = data_dir.join(FILE);
    let (path, may_create) = configured.map_or((own.as_path(), true), |path| (path, false));
    let failed = |error: io::Error| Error::Keys {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= MAX_BYTES => {}
        Ok(_) => return Err(failed(io::Error::other("it is larger than a file of keys"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_create => {
            if is_sealed {
                let lost = "it is missing, and the database has what only it opens: put it back from a backup";
                return Err(failed(io::Error::other(lost)));
            }
            create(path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    KeyRing::parse(&text).map_err(|error| failed(io::Error::other(error.to_string())))
}

/// Makes the file whole or not at all, and never over one that is there.
fn create(path: &Path) -> io::Result<()> {
    let keys = KeyRing::generate().map_err(|error| io::Error::other(error.to_string()))?;
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&partial)?;
    file.write_all(keys.to_text().as_bytes())?;
    file.sync_all()?;
    fs::hard_link(&partial, path)?;
    fs::remove_file(&partial)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(None, folder.path(), false).unwrap();
        let sealed = first.seal("here", b"treasure").unwrap();
        let again = open(None, folder.path(), true).unwrap();
        assert_eq!(again.open("here", &sealed).unwrap(), b"treasure");
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn no_other_keys_are_made_for_what_is_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(None, folder.path(), true).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("backup"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("keys");
        let error = open(Some(&missing), folder.path(), false).unwrap_err().to_string();
        assert!(error.contains("keys"), "{error}");
        assert!(!missing.exists());
    }
}
