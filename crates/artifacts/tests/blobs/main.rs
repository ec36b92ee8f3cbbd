//! What the storage of blobs promises, on a local folder and in memory.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod encryption;
mod ranges;

use std::{
    collections::HashSet,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use chrono::TimeDelta;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future::join_all, stream};
use modelyard_artifacts::{Artifacts, Digest, Error, ProjectArtifacts, Storage, StorageConfig};
use modelyard_common::{
    Fault as _,
    clock::{Clock as _, SystemClock},
};
use object_store::{ObjectStoreExt as _, path::Path as ObjectPath};
use tempfile::TempDir;

/// More than two parts of an upload.
const LARGE_BYTES: usize = 20 * 1024 * 1024 + 17;
const NO_LIMIT: u64 = u64::MAX;
const PROJECT: &str = "default";

/// All projects of a fresh folder.
fn all_in_folder() -> (TempDir, Artifacts) {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::open(&StorageConfig::folder(folder.path())).unwrap();
    (folder, Artifacts::new(storage))
}

/// All projects, in memory.
fn all_in_memory() -> Artifacts {
    Artifacts::new(Storage::open(&StorageConfig::memory()).unwrap())
}

fn in_folder() -> (TempDir, ProjectArtifacts) {
    let (folder, all) = all_in_folder();
    (folder, all.project(PROJECT).unwrap())
}

fn in_memory() -> ProjectArtifacts {
    all_in_memory().project(PROJECT).unwrap()
}

fn content(size_bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size_bytes).map(|_| next()).collect()
}

fn pieces(content: &Bytes, piece_bytes: usize) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let pieces: Vec<Bytes> = content.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces.into_iter().map(Ok))
}

fn file_of(folder: &Path, digest: Digest) -> PathBuf {
    let hex = digest.to_hex();
    folder
        .join("projects/default/blobs/sha256")
        .join(&hex[..2])
        .join(&hex[2..])
}

fn left_overs(folder: &Path) -> usize {
    fs::read_dir(folder.join("uploads")).unwrap().count()
}

async fn stored(artifacts: &ProjectArtifacts) -> HashSet<Digest> {
    artifacts
        .list()
        .map_ok(|stored| stored.blob.digest)
        .try_collect()
        .await
        .unwrap()
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let (_folder, local) = in_folder();
    for artifacts in [local, in_memory()] {
        let mut all = HashSet::new();
        for (seed, size_bytes) in [0, 1, 100_000, 8 * 1024 * 1024, LARGE_BYTES].into_iter().enumerate() {
            let content = content(size_bytes, seed as u64);
            let expected = seed.is_multiple_of(2).then(|| Digest::of(&content));
            let blob = artifacts
                .put_stream(pieces(&content, 65_537), expected, NO_LIMIT)
                .await
                .unwrap();
            assert_eq!(blob.digest, Digest::of(&content));
            assert_eq!(blob.size_bytes, size_bytes as u64);
            assert_eq!(artifacts.get_bytes(blob.digest, NO_LIMIT).await.unwrap(), content);
            assert_eq!(artifacts.size(blob.digest).await.unwrap(), Some(size_bytes as u64));
            assert_eq!(artifacts.put_bytes(content).await.unwrap(), blob);
            all.insert(blob.digest);
        }
        assert_eq!(stored(&artifacts).await, all);
        for digest in all {
            assert!(artifacts.delete(digest).await.unwrap());
            assert!(!artifacts.delete(digest).await.unwrap());
            assert!(!artifacts.exists(digest).await.unwrap());
            let error = artifacts.get_bytes(digest, NO_LIMIT).await.unwrap_err();
            assert!(matches!(error, Error::NotFound { digest: named } if named == digest));
        }
    }
}

#[tokio::test]
async fn a_refused_upload_stores_nothing() {
    let (folder, local) = in_folder();
    for artifacts in [local, in_memory()] {
        for size_bytes in [1000, LARGE_BYTES] {
            let good = content(size_bytes, 7);
            let wrong = Digest::of(b"something else");
            let error = artifacts
                .put_stream(pieces(&good, 4096), Some(wrong), NO_LIMIT)
                .await
                .unwrap_err();
            assert_eq!(error.reason(), "DIGEST_MISMATCH");
            assert!(error.to_string().contains(&Digest::of(&good).to_string()), "{error}");

            let limit_bytes = size_bytes as u64 - 1;
            let error = artifacts
                .put_stream(pieces(&good, 4096), None, limit_bytes)
                .await
                .unwrap_err();
            assert!(matches!(error, Error::TooLarge { limit_bytes: named } if named == limit_bytes));

            let cut = pieces(&good, 4096).map_err(|error| match error {});
            let cut = cut.chain(stream::once(async { Err(std::io::Error::other("connection lost")) }));
            let error = artifacts.put_stream(cut, None, NO_LIMIT).await.unwrap_err();
            assert_eq!(error.reason(), "UPLOAD_INTERRUPTED");
        }
        assert!(stored(&artifacts).await.is_empty());
    }
    assert_eq!(left_overs(folder.path()), 0);
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let (folder, artifacts) = in_folder();
    let large = content(LARGE_BYTES, 3);
    let endless = pieces(&large, 1 << 20).chain(stream::pending());
    let mut upload = Box::pin(artifacts.put_stream(endless, None, NO_LIMIT));
    while left_overs(folder.path()) == 0 {
        assert!(futures::poll!(&mut upload).is_pending());
        tokio::task::yield_now().await;
    }
    drop(upload);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while left_overs(folder.path()) > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the staged file stays");
        tokio::task::yield_now().await;
    }
    assert!(stored(&artifacts).await.is_empty());
}

#[tokio::test]
async fn damage_is_found_and_never_read_to_the_end() {
    let (folder, artifacts) = in_folder();
    for size_bytes in [10, 3 * 1024 * 1024] {
        let good = content(size_bytes, 11);
        let blob = artifacts.put_bytes(good.clone()).await.unwrap();
        let file = file_of(folder.path(), blob.digest);
        let mut flipped = good.to_vec();
        flipped[size_bytes / 2] ^= 1;
        for damaged in [flipped, good[..size_bytes - 1].to_vec(), Vec::new()] {
            fs::write(&file, &damaged).unwrap();
            let error = artifacts.get_bytes(blob.digest, NO_LIMIT).await.unwrap_err();
            assert!(
                matches!(error, Error::Corrupt { digest, .. } if digest == blob.digest),
                "{error}"
            );
            assert!(error.to_string().contains(&blob.digest.to_string()));
            let read: Vec<_> = artifacts.get(blob.digest).await.unwrap().collect().await;
            let (last, before) = read.split_last().unwrap();
            assert!(last.is_err());
            let passed: usize = before.iter().map(|block| block.as_ref().unwrap().len()).sum();
            assert!(passed < damaged.len().max(1));
            assert!(
                artifacts
                    .open_local(blob.digest, &folder.path().join("cache"))
                    .await
                    .is_err()
            );
        }
        // Storing it again heals it.
        artifacts.put_bytes(good.clone()).await.unwrap();
        assert_eq!(artifacts.get_bytes(blob.digest, NO_LIMIT).await.unwrap(), good);
        let error = artifacts
            .get_bytes(blob.digest, size_bytes as u64 - 1)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "BLOB_TOO_LARGE");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_content_may_arrive_many_times_at_once() {
    let (folder, local) = in_folder();
    for artifacts in [local, in_memory()] {
        let large = content(LARGE_BYTES, 5);
        let puts = (0..6).map(|put| {
            let expected = (put % 2 == 0).then(|| Digest::of(&large));
            artifacts.put_stream(pieces(&large, 100_000 + put), expected, NO_LIMIT)
        });
        for blob in join_all(puts).await {
            assert_eq!(blob.unwrap().digest, Digest::of(&large));
        }
        assert_eq!(artifacts.get_bytes(Digest::of(&large), NO_LIMIT).await.unwrap(), large);
        assert_eq!(stored(&artifacts).await.len(), 1);
    }
    assert_eq!(left_overs(folder.path()), 0);
}

#[tokio::test]
async fn local_copies_are_verified_shared_and_replaced_when_damaged() {
    let (folder, artifacts) = in_folder();
    let cache = folder.path().join("cache");
    let good = content(2_500_000, 13);
    let blob = artifacts.put_bytes(good.clone()).await.unwrap();
    let opened = join_all((0..8).map(|_| artifacts.open_local(blob.digest, &cache))).await;
    let paths: HashSet<PathBuf> = opened.into_iter().map(Result::unwrap).collect();
    let path = paths.iter().next().unwrap();
    assert_eq!(paths.len(), 1);
    assert_eq!(fs::read(path).unwrap(), good);
    assert_eq!(fs::read_dir(cache.join(PROJECT)).unwrap().count(), 1);

    fs::write(path, b"damaged").unwrap();
    artifacts.open_local(blob.digest, &cache).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), good);

    // The copy serves while the storage does not have the blob.
    artifacts.delete(blob.digest).await.unwrap();
    artifacts.open_local(blob.digest, &cache).await.unwrap();
    let missing = Digest::of(b"never stored");
    assert!(matches!(
        artifacts.open_local(missing, &cache).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(fs::read_dir(cache.join(PROJECT)).unwrap().count(), 1);
}

#[tokio::test]
async fn a_project_cannot_reach_what_another_has() {
    let (folder, local) = all_in_folder();
    let cache = folder.path().join("cache");
    for all in [local, all_in_memory()] {
        let ours = all.project("ours").unwrap();
        let theirs = all.project("theirs").unwrap();
        for (seed, size_bytes) in [10, LARGE_BYTES].into_iter().enumerate() {
            let content = content(size_bytes, 23 + seed as u64);
            let digest = Digest::of(&content);
            for expected in [None, Some(digest)] {
                ours.put_stream(pieces(&content, 1 << 20), expected, NO_LIMIT)
                    .await
                    .unwrap();
            }
            let copy = ours.open_local(digest, &cache).await.unwrap();

            let missing = |error: Error| matches!(error, Error::NotFound { digest: named } if named == digest);
            assert!(missing(theirs.get(digest).await.err().unwrap()));
            assert!(missing(theirs.get_bytes(digest, NO_LIMIT).await.unwrap_err()));
            // Not by the copy that is there for us, either.
            assert!(missing(theirs.open_local(digest, &cache).await.unwrap_err()));
            assert_eq!(theirs.size(digest).await.unwrap(), None);
            assert!(!theirs.exists(digest).await.unwrap());
            assert!(!theirs.delete(digest).await.unwrap());
            assert!(stored(&theirs).await.is_empty());
            assert!(ours.exists(digest).await.unwrap());

            // What they store themselves is theirs alone, too.
            theirs.put_bytes(content.clone()).await.unwrap();
            let their_copy = theirs.open_local(digest, &cache).await.unwrap();
            assert_ne!(their_copy, copy);
            assert!(theirs.delete(digest).await.unwrap());
            assert_eq!(ours.get_bytes(digest, NO_LIMIT).await.unwrap(), content);
            fs::remove_dir_all(&cache).unwrap();
        }
        assert_eq!(stored(&ours).await.len(), 2);
    }
}

#[test]
fn what_could_be_a_path_is_no_project() {
    let all = all_in_memory();
    for name in [
        "", ".", "..", "../ours", "a/b", "/etc", "a\\b", ".hidden", "a\0", "%2e%2e", "ours\n",
    ] {
        assert_eq!(all.project(name).unwrap_err().reason(), "INVALID_NAME", "{name:?}");
    }
    assert_eq!(all.project("ours").unwrap().project(), "ours");
}

#[tokio::test]
async fn what_crashes_left_is_swept_and_nothing_else() {
    let (folder, all) = all_in_folder();
    let artifacts = all.project(PROJECT).unwrap();
    let blob = artifacts.put_bytes(content(100, 17)).await.unwrap();
    let old = folder.path().join("uploads/file-left-by-a-crash");
    fs::write(&old, b"half").unwrap();
    let young = all.storage().store();
    let young_path = ObjectPath::from("uploads/finished-but-not-named");
    young.put(&young_path, b"half".to_vec().into()).await.unwrap();
    let written = fs::File::options().write(true).open(&old).unwrap();
    let now = SystemClock.now().to_datetime();
    let yesterday = now - TimeDelta::days(1);
    written.set_modified(yesterday.into()).unwrap();

    assert_eq!(all.sweep_uploads(yesterday + TimeDelta::hours(1)).await.unwrap(), 1);
    assert!(!old.exists());
    assert!(young.head(&young_path).await.is_ok());
    assert_eq!(all.sweep_uploads(now + TimeDelta::hours(1)).await.unwrap(), 1);
    assert_eq!(left_overs(folder.path()), 0);
    assert!(artifacts.exists(blob.digest).await.unwrap());
}

#[tokio::test]
async fn objects_that_are_no_blobs_are_not_listed() {
    let all = all_in_memory();
    let store = all.storage().store();
    for path in [
        "blobs/sha256/ab/../../x",
        "blobs/sha256/ab/short",
        "blobs/md5/ab/cd",
        "blobs/sha256/readme",
    ] {
        let path = format!("projects/{PROJECT}/{path}");
        store.put(&ObjectPath::from(path), b"x".to_vec().into()).await.unwrap();
    }
    assert!(stored(&all.project(PROJECT).unwrap()).await.is_empty());
}

#[tokio::test]
async fn a_storage_that_breaks_is_named_and_keeps_no_half_blob() {
    let (folder, all) = all_in_folder();
    let artifacts = all.project(PROJECT).unwrap();
    all.storage().check().await.unwrap();
    fs::remove_dir(folder.path().join("uploads")).unwrap();
    fs::write(folder.path().join("uploads"), b"in the way").unwrap();
    for size_bytes in [1000, LARGE_BYTES] {
        let error = artifacts
            .put_stream(pieces(&content(size_bytes, 19), 1 << 20), None, NO_LIMIT)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(all.storage().place()), "{error}");
    }
    assert!(all.storage().check().await.is_err());
    assert!(stored(&artifacts).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_one_of_many_creates_an_object() {
    let (_folder, all) = all_in_folder();
    let store = &all.storage().store();
    let path = &ObjectPath::from("log/00000000000000000001.json");
    let create = |writer: usize| async move {
        let options = object_store::PutMode::Create.into();
        store
            .put_opts(path, format!("writer {writer}").into(), options)
            .await
            .is_ok()
    };
    let created = join_all((0..16).map(create)).await;
    let winners: Vec<usize> = (0..16).filter(|writer| created[*writer]).collect();
    assert_eq!(winners.len(), 1);
    let text = store.get(path).await.unwrap().bytes().await.unwrap();
    assert_eq!(text, format!("writer {}", winners[0]));
}
