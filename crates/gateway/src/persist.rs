//! The last good state on disk: what a gateway serves after a restart while the registry is away.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use modelyard_inference::InputShapes;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use crate::{
    desired::{Desired, EndpointKey, EndpointSpec},
    error::{Error, Result},
};

/// The file's name.
const FILE: &str = "state.json";

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// The largest file that is read.
const MAX_STATE_BYTES: u64 = 256 << 20;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Kept {
    /// The last state that was received.
    pub desired: Desired,
    /// What each endpoint really served last; differs from the desired state where that could not be loaded.
    pub serving: BTreeMap<EndpointKey, EndpointSpec>,
    /// Shapes of inputs that were seen, with which models are warmed.
    pub shapes: BTreeMap<EndpointKey, Vec<InputShapes>>,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    desired: Desired,
    serving: Vec<EndpointSpec>,
    #[serde(default)]
    shapes: Vec<(EndpointKey, Vec<InputShapes>)>,
}

/// The file, and what it holds at present.
pub(crate) struct StateFile {
    path: PathBuf,
    written: String,
}

impl StateFile {
    /// Opens the file in a folder and reads what is there. What cannot be read is passed over with a warning: the
    /// registry has it all, this is for the time without it.
    pub(crate) fn open(folder: &Path) -> (Self, Option<Kept>) {
        let path = folder.join(FILE);
        let (written, kept) = match read(&path) {
            Ok(Some((text, kept))) => (text, Some(kept)),
            Ok(None) => (String::new(), None),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last state cannot be used: waiting for the registry");
                (String::new(), None)
            }
        };
        (Self { path, written }, kept)
    }

    /// Replaces the file's content as one step, if it changes.
    pub(crate) async fn write(&mut self, kept: &Kept) -> Result<()> {
        let file = File {
            format: FORMAT,
            desired: kept.desired.clone(),
            serving: kept.serving.values().cloned().collect(),
            shapes: kept.shapes.clone().into_iter().collect(),
        };
        let text = serde_json::to_string(&file).map_err(|error| Error::Io {
            path: self.path.clone(),
            source: error.into(),
        })?;
        if text == self.written {
            return Ok(());
        }
        let path = self.path.clone();
        let text = spawn_blocking(move || replace(&path, &text).map(|()| text))
            .await
            .map_err(|_| Error::Interrupted {
                what: "writing the last state",
            })?
            .map_err(Error::io(&self.path))?;
        self.written = text;
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Option<(String, Kept)>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.len() > MAX_STATE_BYTES => {
            return Err(io::Error::other(format!("it is larger than {MAX_STATE_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    let text = fs::read_to_string(path)?;
    let Format { format } = serde_json::from_str(&text)?;
    if format != FORMAT {
        return Err(io::Error::other(format!(
            "it has format {format}, and this version reads {FORMAT}"
        )));
    }
    let file: File = serde_json::from_str(&text)?;
    let kept = Kept {
        desired: file.desired,
        serving: file.serving.into_iter().map(|spec| (spec.key.clone(), spec)).collect(),
        shapes: file.shapes.into_iter().collect(),
    };
    Ok(Some((text, kept)))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    #[tokio::test]
    async fn the_last_state_is_found_again_and_damage_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, kept) = StateFile::open(folder.path());
        assert_eq!(kept, None);
        let key = EndpointKey {
            project: "default".to_owned(),
            name: "a".to_owned(),
        };
        let spec = EndpointSpec {
            key: key.clone(),
            routes: vec![],
            options: Options::default(),
            in_rollout: false,
        };
        let kept = Kept {
            desired: Desired {
                revision: 3,
                ..Desired::default()
            },
            serving: BTreeMap::from([(key.clone(), spec)]),
            shapes: BTreeMap::from([(key, vec![vec![vec![1, 4]]])]),
        };
        file.write(&kept).await.unwrap();
        let (_, found) = StateFile::open(folder.path());
        assert_eq!(found, Some(kept));
        for damage in [r#"{"format":1,"desir"#, r#"{"format":99,"new":true}"#] {
            fs::write(folder.path().join(FILE), damage).unwrap();
            assert_eq!(StateFile::open(folder.path()).1, None, "{damage}");
        }
    }
}
