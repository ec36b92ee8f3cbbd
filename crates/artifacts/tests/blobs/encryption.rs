//! What encryption at rest promises.

use std::{
    fs,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, TryStreamExt as _, future::join, stream};
use modelyard_artifacts::{
    Artifacts, Digest, EncryptionConfig, Error, ProjectArtifacts, Storage, StorageConfig, StoredBlob,
};
use modelyard_common::Fault as _;
use tempfile::TempDir;

use crate::{LARGE_BYTES, NO_LIMIT, PROJECT, content, file_of, left_overs, pieces, stored};

const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;
/// Magic, version, id of the key, salt.
const HEADER: usize = 8 + 1 + 4 + 32;
const KEY_ID: std::ops::Range<usize> = 9..13;
const REMEDY: &str = "storage.encryption.key_file";

const OLD_KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const NEW_KEY: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// A folder for storages that are opened with other keys each time.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn encryption(&self, keys: &[&str]) -> Option<EncryptionConfig> {
        let key_file = self.folder.path().join("keys");
        fs::write(&key_file, format!("# keys of a test\n{}\n", keys.join("\n"))).unwrap();
        (!keys.is_empty()).then_some(EncryptionConfig { key_file })
    }

    fn all(&self, config: StorageConfig, keys: &[&str]) -> Artifacts {
        let encryption = self.encryption(keys);
        Artifacts::new(Storage::open(&StorageConfig { encryption, ..config }).unwrap())
    }

    /// The project's blobs in the folder. Without keys they are not encrypted.
    fn open(&self, keys: &[&str]) -> ProjectArtifacts {
        let config = StorageConfig::folder(&self.root());
        self.all(config, keys).project(PROJECT).unwrap()
    }

    fn in_memory(&self) -> ProjectArtifacts {
        let config = StorageConfig::memory();
        self.all(config, &[OLD_KEY]).project(PROJECT).unwrap()
    }

    fn plain_file(&self, digest: Digest) -> PathBuf {
        file_of(&self.root(), digest)
    }

    fn sealed_file(&self, digest: Digest) -> PathBuf {
        self.plain_file(digest).with_extension("sealed")
    }

    /// The files of a project's blobs.
    fn blob_files(&self) -> Vec<PathBuf> {
        files_below(&self.root().join("projects"))
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

async fn listed(artifacts: &ProjectArtifacts) -> Vec<StoredBlob> {
    artifacts.list().try_collect().await.unwrap()
}

/// Reading ends with an error that names the blob, and before the content does.
async fn assert_refused(artifacts: &ProjectArtifacts, digest: Digest, size_bytes: usize, what: &str) -> Error {
    let error = artifacts.get_bytes(digest, NO_LIMIT).await.expect_err(what);
    assert!(error.to_string().contains(&digest.to_string()), "{what}: {error}");
    if let Ok(read) = artifacts.get(digest).await {
        let read: Vec<_> = read.collect().await;
        let (last, before) = read.split_last().expect(what);
        assert!(last.is_err(), "{what}");
        let passed: usize = before.iter().map(|block| block.as_ref().unwrap().len()).sum();
        assert!(passed < size_bytes.max(1), "{what}");
    }
    error
}

async fn assert_corrupt(artifacts: &ProjectArtifacts, digest: Digest, size_bytes: usize, what: &str) {
    let error = assert_refused(artifacts, digest, size_bytes, what).await;
    assert_eq!(error.reason(), "BLOB_CORRUPT", "{what}: {error}");
}

#[tokio::test]
async fn encrypted_content_comes_out_as_it_went_in() {
    let world = World::new();
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * 1024 * 1024 + 5, LARGE_BYTES];
    for artifacts in [world.open(&[OLD_KEY]), world.in_memory()] {
        for (seed, size_bytes) in sizes.into_iter().enumerate() {
            let content = content(size_bytes, 100 + seed as u64);
            let digest = Digest::of(&content);
            for expected in [None, Some(digest)] {
                let blob = artifacts
                    .put_stream(pieces(&content, 10_007), expected, NO_LIMIT)
                    .await
                    .unwrap();
                assert_eq!((blob.digest, blob.size_bytes), (digest, size_bytes as u64));
                assert_eq!(artifacts.get_bytes(digest, NO_LIMIT).await.unwrap(), content);
                assert_eq!(artifacts.put_bytes(content.clone()).await.unwrap(), blob);
            }
            assert_eq!(artifacts.get(digest).await.unwrap().size_bytes(), size_bytes as u64);
            assert_eq!(artifacts.get_bytes(digest, size_bytes as u64).await.unwrap(), content);
            assert_eq!(artifacts.size(digest).await.unwrap(), Some(size_bytes as u64));
            let copy = artifacts.open_local(digest, &world.cache()).await.unwrap();
            assert_eq!(fs::read(copy).unwrap(), content);
        }
        let mut listed: Vec<_> = listed(&artifacts)
            .await
            .iter()
            .map(|stored| stored.blob.size_bytes)
            .collect();
        listed.sort_unstable();
        assert_eq!(listed, sizes.map(|size_bytes| size_bytes as u64));
        for digest in stored(&artifacts).await {
            assert!(artifacts.delete(digest).await.unwrap());
            assert!(!artifacts.delete(digest).await.unwrap());
            assert!(matches!(artifacts.get(digest).await, Err(Error::NotFound { .. })));
        }
        fs::remove_dir_all(world.cache()).unwrap();
    }
    assert_eq!(left_overs(&world.root()), 0);
    assert!(world.blob_files().is_empty());
}

#[tokio::test]
async fn what_lies_in_the_storage_does_not_hold_the_content() {
    let world = World::new();
    let artifacts = world.open(&[OLD_KEY]);
    let secret = b"the secret recipe ";
    let assert_hidden = |file: &Path| {
        let object = fs::read(file).unwrap();
        assert!(object.starts_with(b"MYSEALED"), "{}", file.display());
        let at = object.windows(secret.len()).position(|window| window == secret);
        assert_eq!(at, None, "{}", file.display());
    };
    let large = bytes::Bytes::from(secret.repeat(600_000));
    for content in [large.slice(..1000), large.clone()] {
        let blob = artifacts.put_bytes(content.clone()).await.unwrap();
        let without_name = pieces(&content, 1 << 20);
        assert_eq!(artifacts.put_stream(without_name, None, NO_LIMIT).await.unwrap(), blob);
        assert!(world.sealed_file(blob.digest).is_file());
    }
    let files = world.blob_files();
    assert_eq!(files.len(), 2);
    for file in files {
        assert_hidden(&file);
    }

    // Nor does what lies there before the content has ended.
    let endless = pieces(&large, 1 << 20).chain(stream::pending());
    let mut upload = Box::pin(artifacts.put_stream(endless, None, NO_LIMIT));
    let staged = loop {
        assert!(futures::poll!(&mut upload).is_pending());
        let staged = files_below(&world.root().join("uploads"));
        if let Some(file) = staged
            .iter()
            .find(|file| fs::metadata(file).unwrap().len() > HEADER as u64)
        {
            break file.clone();
        }
        tokio::task::yield_now().await;
    };
    assert_hidden(&staged);
}

#[tokio::test]
async fn every_altered_byte_is_noticed() {
    let world = World::new();
    let artifacts = world.open(&[OLD_KEY]);
    let chunk = CHUNK + TAG;
    let in_large = [
        HEADER,
        HEADER + CHUNK,
        HEADER + chunk - 1,
        HEADER + chunk,
        HEADER + chunk + CHUNK,
        HEADER + 2 * chunk,
        HEADER + 2 * chunk + 1,
        HEADER + 2 * chunk + 1 + TAG - 1,
    ];
    let in_small: Vec<usize> = (0..HEADER + 100 + TAG).collect();
    for (size_bytes, places) in [
        (100, in_small),
        (2 * CHUNK + 1, in_large.to_vec()),
        (0, (0..HEADER + TAG).collect()),
    ] {
        let content = content(size_bytes, 200);
        let digest = artifacts.put_bytes(content.clone()).await.unwrap().digest;
        let file = world.sealed_file(digest);
        let good = fs::read(&file).unwrap();
        for at in places {
            let mut altered = good.clone();
            altered[at] ^= 1;
            fs::write(&file, altered).unwrap();
            let error = assert_refused(&artifacts, digest, size_bytes, &format!("byte {at} of {size_bytes}")).await;
            let reason = if KEY_ID.contains(&at) {
                "ENCRYPTION_KEY"
            } else {
                "BLOB_CORRUPT"
            };
            assert_eq!(error.reason(), reason, "byte {at}: {error}");
        }
        assert!(artifacts.open_local(digest, &world.cache()).await.is_err());
        // Storing it again heals it.
        artifacts.put_bytes(content.clone()).await.unwrap();
        assert_eq!(artifacts.get_bytes(digest, NO_LIMIT).await.unwrap(), content);
    }
}

#[tokio::test]
async fn what_is_cut_extended_or_put_together_anew_is_refused() {
    let world = World::new();
    let artifacts = world.open(&[OLD_KEY]);
    let chunk = CHUNK + TAG;
    for size_bytes in [3 * CHUNK, 3 * CHUNK + 1000] {
        let digest = artifacts.put_bytes(content(size_bytes, 300)).await.unwrap().digest;
        let other = artifacts.put_bytes(content(size_bytes, 301)).await.unwrap().digest;
        let file = world.sealed_file(digest);
        let good = fs::read(&file).unwrap();
        let foreign = fs::read(world.sealed_file(other)).unwrap();
        let part = |index: usize| {
            let start = HEADER + index * chunk;
            &good[start..(start + chunk).min(good.len())]
        };
        let header = &good[..HEADER];
        let rest = &good[HEADER + 3 * chunk..];

        let mut forged = Vec::new();
        let borders = [
            0,
            8,
            HEADER,
            HEADER + chunk,
            HEADER + 2 * chunk,
            HEADER + 3 * chunk,
            good.len(),
        ];
        for border in borders {
            for length in [border.saturating_sub(1), border, border + 1, border + TAG] {
                if length < good.len() {
                    forged.push((format!("cut to {length}"), good[..length].to_vec()));
                }
            }
        }
        for (what, more) in [
            ("a byte", &[0][..]),
            ("an empty chunk", &[0; TAG]),
            ("its second chunk", part(1)),
            ("its last chunk", &good[good.len() - 1000..]),
            ("itself", &good),
        ] {
            forged.push((format!("{what} appended"), [&good, more].concat()));
        }
        for (what, parts) in [
            ("swapped", [header, part(1), part(0), part(2), rest]),
            ("the last but one swapped", [header, part(0), part(2), part(1), rest]),
            ("repeated", [header, part(0), part(0), part(2), rest]),
            ("left out", [header, part(0), part(2), rest, &[]]),
            ("the first left out", [header, part(1), part(2), rest, &[]]),
            (
                "foreign",
                [
                    header,
                    part(0),
                    &foreign[HEADER + chunk..HEADER + 2 * chunk],
                    part(2),
                    rest,
                ],
            ),
            (
                "under a foreign header",
                [&foreign[..HEADER], part(0), part(1), part(2), rest],
            ),
        ] {
            forged.push((what.to_owned(), parts.concat()));
        }
        for (what, object) in forged {
            assert_ne!(object, good, "{what}");
            fs::write(&file, object).unwrap();
            assert_corrupt(&artifacts, digest, size_bytes, &what).await;
        }
        fs::write(&file, good).unwrap();
        artifacts.get_bytes(digest, NO_LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn objects_are_refused_under_other_names_and_in_other_projects() {
    let world = World::new();
    let all = world.all(StorageConfig::folder(&world.root()), &[OLD_KEY]);
    let ours = all.project(PROJECT).unwrap();
    let theirs = all.project("theirs").unwrap();
    for size_bytes in [1000, 2 * CHUNK, 3 * 1024 * 1024] {
        let contents = [content(size_bytes, 400), content(size_bytes, 401)];
        let [first, second] = contents.each_ref().map(|content| Digest::of(content));
        for content in &contents {
            ours.put_bytes(content.clone()).await.unwrap();
        }
        let between = world.root().join("between");
        fs::rename(world.sealed_file(first), &between).unwrap();
        fs::rename(world.sealed_file(second), world.sealed_file(first)).unwrap();
        fs::rename(&between, world.sealed_file(second)).unwrap();
        for digest in [first, second] {
            assert_corrupt(&ours, digest, size_bytes, "swapped").await;
            assert!(ours.open_local(digest, &world.cache()).await.is_err());
        }

        // Whoever can write to the storage cannot have a project's content decrypted for another one.
        ours.put_bytes(contents[0].clone()).await.unwrap();
        theirs.put_bytes(contents[0].clone()).await.unwrap();
        let path = world.sealed_file(first).display().to_string();
        fs::copy(&path, path.replace("projects/default", "projects/theirs")).unwrap();
        assert_corrupt(&theirs, first, size_bytes, "of another project").await;
        assert_eq!(ours.get_bytes(first, NO_LIMIT).await.unwrap(), contents[0]);
    }
}

#[tokio::test]
async fn keys_are_rotated_and_missing_ones_are_named() {
    let world = World::new();
    let key_id = |digest| fs::read(world.sealed_file(digest)).unwrap()[KEY_ID].to_vec();
    for size_bytes in [100, LARGE_BYTES] {
        let [first, second] = [content(size_bytes, 500), content(size_bytes, 501)];
        let old = world.open(&[OLD_KEY]);
        let digest = old.put_bytes(first.clone()).await.unwrap().digest;
        let old_id = key_id(digest);

        let other = world.open(&[NEW_KEY]);
        let error = assert_refused(&other, digest, size_bytes, "another key").await;
        assert_eq!(error.reason(), "ENCRYPTION_KEY");
        let text = error.to_string();
        assert!(text.contains(&hex::encode(&old_id)) && text.contains(REMEDY), "{text}");
        assert!(!text.contains(OLD_KEY) && !text.contains(NEW_KEY), "{text}");
        assert!(other.open_local(digest, &world.cache()).await.is_err());

        // A forged id does not let another key open it.
        let rotated = world.open(&[NEW_KEY, OLD_KEY]);
        let later = rotated.put_bytes(second.clone()).await.unwrap().digest;
        let new_id = key_id(later);
        assert_ne!(new_id, old_id);
        let good = fs::read(world.sealed_file(digest)).unwrap();
        let mut forged = good.clone();
        forged[KEY_ID].copy_from_slice(&new_id);
        fs::write(world.sealed_file(digest), forged).unwrap();
        assert_corrupt(&rotated, digest, size_bytes, "a forged id").await;
        fs::write(world.sealed_file(digest), good).unwrap();

        assert_eq!(rotated.get_bytes(digest, NO_LIMIT).await.unwrap(), first);
        assert_eq!(rotated.get_bytes(later, NO_LIMIT).await.unwrap(), second);
        assert_eq!(
            assert_refused(&old, later, size_bytes, "too new").await.reason(),
            "ENCRYPTION_KEY"
        );
        // What is stored again is sealed with the new key.
        rotated.put_bytes(first.clone()).await.unwrap();
        assert_eq!(key_id(digest), new_id);
        assert_eq!(other.get_bytes(digest, NO_LIMIT).await.unwrap(), first);
    }
}

#[tokio::test]
async fn turned_on_later_it_leaves_readable_what_was_there() {
    let world = World::new();
    for (seed, size_bytes) in [0, 1000, LARGE_BYTES].into_iter().enumerate() {
        let content = content(size_bytes, 600 + seed as u64);
        let blob = world.open(&[]).put_bytes(content.clone()).await.unwrap();
        let artifacts = world.open(&[OLD_KEY]);
        for form in ["plain", "sealed"] {
            assert_eq!(
                artifacts.get_bytes(blob.digest, NO_LIMIT).await.unwrap(),
                content,
                "{form}"
            );
            assert_eq!(artifacts.size(blob.digest).await.unwrap(), Some(size_bytes as u64));
            let copy = artifacts.open_local(blob.digest, &world.cache()).await.unwrap();
            assert_eq!(fs::read(&copy).unwrap(), content);
            fs::remove_file(copy).unwrap();
            let listed = listed(&artifacts).await;
            assert_eq!(listed.iter().map(|stored| stored.blob).collect::<Vec<_>>(), [blob]);
            assert_eq!(world.plain_file(blob.digest).exists(), form == "plain");
            assert_eq!(world.sealed_file(blob.digest).exists(), form == "sealed");
            // Stored again it is encrypted, and the plain one goes away.
            let again = pieces(&content, 1 << 20);
            assert_eq!(artifacts.put_stream(again, None, NO_LIMIT).await.unwrap(), blob);
        }
        assert!(artifacts.delete(blob.digest).await.unwrap());
        assert!(world.blob_files().is_empty());
    }
}

#[tokio::test]
async fn turned_off_it_refuses_what_is_encrypted_and_names_the_remedy() {
    let world = World::new();
    for size_bytes in [0, 1000, LARGE_BYTES] {
        let content = content(size_bytes, 700);
        let encrypting = world.open(&[OLD_KEY]);
        let blob = encrypting.put_bytes(content.clone()).await.unwrap();
        let artifacts = world.open(&[]);
        let error = assert_refused(&artifacts, blob.digest, size_bytes, "no keys").await;
        assert_eq!(error.reason(), "ENCRYPTION_KEY");
        assert!(error.to_string().contains(REMEDY), "{error}");
        let error = artifacts.open_local(blob.digest, &world.cache()).await.unwrap_err();
        assert_eq!(error.reason(), "ENCRYPTION_KEY");
        // It is there all the same.
        assert_eq!(artifacts.size(blob.digest).await.unwrap(), Some(size_bytes as u64));
        assert_eq!(listed(&artifacts).await.first().unwrap().blob, blob);

        // Stored again it lies there in both forms, and counts once whoever looks.
        assert_eq!(artifacts.put_bytes(content.clone()).await.unwrap(), blob);
        assert_eq!(world.blob_files().len(), 2);
        for reader in [&artifacts, &world.open(&[OLD_KEY])] {
            assert_eq!(reader.get_bytes(blob.digest, NO_LIMIT).await.unwrap(), content);
            let listed = listed(reader).await;
            assert_eq!(listed.iter().map(|stored| stored.blob).collect::<Vec<_>>(), [blob]);
        }
        assert!(artifacts.delete(blob.digest).await.unwrap());
        assert!(!encrypting.exists(blob.digest).await.unwrap());
        assert!(world.blob_files().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blob_can_be_read_while_it_is_encrypted() {
    let world = World::new();
    let plain = world.open(&[]);
    let artifacts = world.open(&[OLD_KEY]);
    let content = content(3000, 800);
    let digest = Digest::of(&content);
    for _ in 0..40 {
        plain.put_bytes(content.clone()).await.unwrap();
        let _ = fs::remove_file(world.sealed_file(digest));
        let read = async {
            for _ in 0..10 {
                assert_eq!(artifacts.get_bytes(digest, NO_LIMIT).await.unwrap(), content);
            }
        };
        let (stored, ()) = join(artifacts.put_bytes(content.clone()), read).await;
        assert_eq!(stored.unwrap().digest, digest);
    }
    assert_eq!(world.blob_files(), [world.sealed_file(digest)]);
}

#[tokio::test]
async fn a_refused_upload_and_a_damaged_blob_leave_nothing() {
    let world = World::new();
    let artifacts = world.open(&[OLD_KEY]);
    for size_bytes in [1000, LARGE_BYTES] {
        let good = content(size_bytes, 900);
        let wrong = Some(Digest::of(b"something else"));
        let error = artifacts
            .put_stream(pieces(&good, 4096), wrong, NO_LIMIT)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "DIGEST_MISMATCH");
        let limit_bytes = size_bytes as u64 - 1;
        let error = artifacts
            .put_stream(pieces(&good, 4096), None, limit_bytes)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "BLOB_TOO_LARGE");
        assert!(stored(&artifacts).await.is_empty());
        assert_eq!(left_overs(&world.root()), 0);

        // Not of the limit's size, but of the content's.
        let limit_bytes = size_bytes as u64;
        let blob = artifacts
            .put_stream(pieces(&good, 4096), None, limit_bytes)
            .await
            .unwrap();
        fs::write(world.sealed_file(blob.digest), b"cut").unwrap();
        assert_eq!(artifacts.size(blob.digest).await.unwrap_err().reason(), "BLOB_CORRUPT");
        assert_eq!(listed(&artifacts).await.first().unwrap().blob.size_bytes, 3);
        assert!(artifacts.delete(blob.digest).await.unwrap());
    }
}

#[test]
fn a_storage_without_its_keys_does_not_open() {
    let world = World::new();
    let key_file = world.folder.path().join("nowhere");
    let config = StorageConfig {
        encryption: Some(EncryptionConfig { key_file }),
        ..StorageConfig::folder(&world.root())
    };
    let error = Storage::open(&config).unwrap_err();
    assert_eq!(error.reason(), "ENCRYPTION_KEY_FILE");
    assert!(
        error.to_string().contains("nowhere") && error.to_string().contains(REMEDY),
        "{error}"
    );
    assert!(!world.root().exists());
}
