//! Files: read piece by piece, written at once, compared by size and digest.

use std::sync::Arc;

use anyhow::bail;
use futures::TryStreamExt;
use parking_lot::Mutex;
use reqwest::{Body, Method, header};
use sha2::{Digest, Sha256};

use super::{
    mlflow::{Entry, Mlflow, Place, below},
    target::{Counts, Target},
};

/// How often a file is read again when its transfer breaks off.
const ATTEMPTS: u32 = 3;
/// The most folders of one run or logged model.
const MAX_FOLDERS: usize = 1_000_000;

/// What passed through: its length and its hash.
#[derive(Default)]
struct Passed {
    bytes: u64,
    hash: Sha256,
}

/// Copies all files of a place to below `root` of the target's store; how many there are, and their size. Files arrive whole or
/// not at all: where they `stay` as they are there, one that is here with the same size is not sent again.
pub async fn copy_files(
    source: &Mlflow,
    place: &Place,
    target: &Target,
    root: &str,
    stay: bool,
) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut folders = vec![String::new()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if seen > MAX_FOLDERS {
            bail!("there are more than {MAX_FOLDERS} folders below `{root}`");
        }
        let wanted = source.files(place, &folder).await?;
        if wanted.is_empty() {
            continue;
        }
        let here = Place::Proxied(root.to_owned());
        let present = if stay {
            target.server.files(&here, &folder).await?
        } else {
            Vec::new()
        };
        for entry in wanted {
            if entry.is_folder {
                folders.push(entry.path);
                continue;
            }
            counts.files += 1;
            counts.bytes += match present_size(&present, &entry) {
                Some(size) => size,
                None => copy_file(source, place, target, root, &entry).await?,
            };
        }
    }
    Ok(counts)
}

/// The size of a file that is there already as it shall be.
fn present_size(present: &[Entry], wanted: &Entry) -> Option<u64> {
    let found = present
        .iter()
        .find(|entry| entry.path == wanted.path && !entry.is_folder)?;
    let size = wanted.size_bytes?;
    (found.size_bytes == Some(size)).then_some(size)
}

async fn copy_file(source: &Mlflow, place: &Place, target: &Target, root: &str, entry: &Entry) -> anyhow::Result<u64> {
    let mut attempt = 1;
    loop {
        match try_copy(source, place, target, root, entry).await {
            Ok(size) => return Ok(size),
            Err(error) if attempt >= ATTEMPTS => {
                return Err(error.context(format!("file `{}` was not copied", below(root, &entry.path))));
            }
            Err(_) => attempt += 1,
        }
    }
}

/// Passes a file on, and compares what the target stored with what came by.
async fn try_copy(source: &Mlflow, place: &Place, target: &Target, root: &str, entry: &Entry) -> anyhow::Result<u64> {
    let response = source.open(place, &entry.path).await?;
    let passed = Arc::new(Mutex::new(Passed::default()));
    let watching = Arc::clone(&passed);
    let content = response.bytes_stream().inspect_ok(move |piece| {
        let mut passed = watching.lock();
        passed.bytes += piece.len() as u64;
        passed.hash.update(piece);
    });
    let path = format!("api/2.0/mlflow-artifacts/artifacts/{}", below(root, &entry.path));
    let segments: Vec<&str> = path.split('/').collect();
    let request = target.server.patient_request(Method::PUT, &segments)?;
    let stored = request.body(Body::wrap_stream(content)).send().await?;
    let status = stored.status();
    let tag = stored.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.unwrap_or_default().trim_matches('"').to_owned();
    if !status.is_success() {
        let said = stored.text().await.unwrap_or_default();
        bail!("the server answered {status}: {said}");
    }
    let (bytes, digest) = {
        let passed = passed.lock();
        (passed.bytes, hex::encode(passed.hash.clone().finalize()))
    };
    if tag != format!("sha256:{digest}") {
        bail!("it was stored as {tag} and read as sha256:{digest}");
    }
    let expected = entry.size_bytes.unwrap_or(bytes);
    if bytes != expected {
        bail!("it has {bytes} bytes and shall have {expected}");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_size_is_sent_again() {
        let entry = |path: &str, size_bytes| Entry {
            path: path.to_owned(),
            is_folder: false,
            size_bytes,
        };
        let present = [entry("a", Some(3)), entry("b", Some(4))];
        assert_eq!(present_size(&present, &entry("a", Some(3))), Some(3));
        assert_eq!(present_size(&present, &entry("b", Some(3))), None);
        assert_eq!(present_size(&present, &entry("c", Some(3))), None);
        assert_eq!(present_size(&present, &entry("a", None)), None);
    }
}
