//! What is promised to who reads a part of a blob.

use std::{fs, ops::Range};

use futures::TryStreamExt as _;
use modelyard_artifacts::{Artifacts, BlockDigests, EncryptionConfig, Error, ProjectArtifacts, Storage, StorageConfig};

use crate::{LARGE_BYTES, NO_LIMIT, PROJECT, content, file_of, in_folder, in_memory, pieces};

const MEBIBYTE: u64 = 1024 * 1024;

async fn read(
    artifacts: &ProjectArtifacts,
    digest: modelyard_artifacts::Digest,
    size_bytes: usize,
    blocks: Option<&BlockDigests>,
    range: Range<u64>,
) -> Result<Vec<u8>, Error> {
    let content = artifacts.get_range(digest, size_bytes as u64, blocks, range).await?;
    let pieces: Vec<_> = content.try_collect().await?;
    Ok(pieces.concat())
}

fn sealed_in_memory() -> ProjectArtifacts {
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), format!("{}\n", "5a".repeat(32))).unwrap();
    let encryption = Some(EncryptionConfig {
        key_file: keys.path().to_owned(),
    });
    let config = StorageConfig {
        encryption,
        ..StorageConfig::memory()
    };
    Artifacts::new(Storage::open(&config).unwrap())
        .project(PROJECT)
        .unwrap()
}

#[tokio::test]
async fn any_part_is_what_was_stored() {
    let (_folder, local) = in_folder();
    for artifacts in [local, in_memory(), sealed_in_memory()] {
        for size_bytes in [LARGE_BYTES, 3 * MEBIBYTE as usize, 5] {
            let whole = content(size_bytes, 23);
            let stored = artifacts.put_in_blocks(pieces(&whole, 100_003), None, NO_LIMIT).await;
            let (blob, blocks) = stored.unwrap();
            let end = size_bytes as u64;
            let middle = end / 2;
            let around = MEBIBYTE.saturating_sub(2).min(middle)..(MEBIBYTE + 2).min(end);
            for range in [
                0..end,
                0..1,
                end - 1..end,
                middle..middle + 1,
                middle..end,
                around,
                middle..middle,
            ] {
                let expected = &whole[range.start as usize..range.end as usize];
                for blocks in [Some(&blocks), None] {
                    let found = read(&artifacts, blob.digest, size_bytes, blocks, range.clone()).await;
                    assert!(found.unwrap() == expected, "{range:?} of {size_bytes}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_block_is_refused_and_the_others_are_read() {
    let (folder, artifacts) = in_folder();
    let whole = content(LARGE_BYTES, 29);
    let stored = artifacts.put_in_blocks(pieces(&whole, 65_537), None, NO_LIMIT).await;
    let (blob, blocks) = stored.unwrap();
    let file = file_of(folder.path(), blob.digest);
    let mut damaged = whole.to_vec();
    let at = 3 * MEBIBYTE as usize + 7;
    damaged[at] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let read = |range| read(&artifacts, blob.digest, LARGE_BYTES, Some(&blocks), range);
    for range in [
        0..LARGE_BYTES as u64,
        3 * MEBIBYTE..3 * MEBIBYTE + 1,
        2 * MEBIBYTE..5 * MEBIBYTE,
    ] {
        let error = read(range).await.unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { digest, .. } if digest == blob.digest),
            "{error}"
        );
        assert!(error.to_string().contains("3145728 to 4194303"), "{error}");
    }
    for range in [0..3 * MEBIBYTE, 4 * MEBIBYTE..LARGE_BYTES as u64] {
        let expected = &whole[range.start as usize..range.end as usize];
        assert!(read(range).await.unwrap() == expected);
    }
    // What was cut, or has grown, is another content wherever it is read.
    for size_bytes in [LARGE_BYTES - 1, LARGE_BYTES + 1] {
        damaged.resize(size_bytes, 0);
        fs::write(&file, &damaged).unwrap();
        let error = read(0..10).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    artifacts.delete(blob.digest).await.unwrap();
    let error = read(0..10).await.unwrap_err();
    assert!(
        matches!(error, Error::NotFound { digest } if digest == blob.digest),
        "{error}"
    );
}
