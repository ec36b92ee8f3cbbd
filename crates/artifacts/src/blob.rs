//! Writing, finding and removing blobs.

use std::{fmt, pin::pin, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, WriteMultipart, path::Path};
use uuid::Uuid;

use crate::{
    cache::Downloads,
    digest::{Digest, DigestBuilder},
    error::{Error, Result},
    local::UPLOADS,
    read::BlobStream,
    storage::Storage,
};

const BLOBS: &str = "blobs";
const ALGORITHM: &str = "sha256";
/// How many leading digits of a digest name the folder, so that no folder grows huge.
const FOLDER_DIGITS: usize = 2;
/// The size of one part of an upload. S3 takes 10,000 parts: the largest blob is 80 GiB.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// How many parts are on their way at once; with the one being filled they are all the memory that an upload takes.
const PARTS_IN_FLIGHT: usize = 4;
/// The largest content without an announced digest on S3, in bytes: its name is known at its end only, and S3 copies no
/// larger object to another name.
pub const MAX_UNADDRESSED_BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// How many left-over uploads are removed at once.
const SWEEPS_IN_FLIGHT: usize = 8;

/// A stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its name: the digest of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A blob as [`Artifacts::list`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBlob {
    /// Name and size.
    pub blob: Blob,
    /// When it was stored last. Storing the same content again renews it, so that a collector that spares young blobs never
    /// removes one that somebody is about to refer to.
    pub stored_at: DateTime<Utc>,
}

/// The blobs of a storage. Cheap to clone.
#[derive(Clone)]
pub struct Artifacts {
    storage: Storage,
    downloads: Arc<Downloads>,
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Artifacts({})", self.storage.place())
    }
}

fn blob_path(digest: Digest) -> Path {
    let digits = digest.to_hex();
    Path::from_iter([BLOBS, ALGORITHM, &digits[..FOLDER_DIGITS], &digits[FOLDER_DIGITS..]])
}

/// A path that nobody else has.
#[expect(clippy::disallowed_methods, reason = "a temporary name, not the id of anything")]
fn upload_path() -> Path {
    Path::from_iter([UPLOADS, &Uuid::now_v7().to_string()])
}

/// The digest of a path that [`blob_path`] made.
fn digest_of(path: &Path) -> Option<Digest> {
    let parts: Vec<_> = path.parts().collect();
    let [blobs, algorithm, folder, rest] = parts.as_slice() else {
        return None;
    };
    if blobs.as_ref() != BLOBS || algorithm.as_ref() != ALGORITHM || folder.as_ref().len() != FOLDER_DIGITS {
        return None;
    }
    format!("{ALGORITHM}:{}{}", folder.as_ref(), rest.as_ref()).parse().ok()
}

fn check_limit(hash: &DigestBuilder, limit_bytes: u64) -> Result<()> {
    if hash.size_bytes() > limit_bytes {
        return Err(Error::TooLarge { limit_bytes });
    }
    Ok(())
}

fn check_expected(expected: Option<Digest>, actual: Digest) -> Result<()> {
    match expected {
        Some(expected) if expected != actual => Err(Error::DigestMismatch { expected, actual }),
        _ => Ok(()),
    }
}

impl Artifacts {
    /// The blobs of a storage.
    #[must_use]
    pub fn new(storage: Storage) -> Self {
        Self {
            storage,
            downloads: Arc::default(),
        }
    }

    /// The storage that the blobs lie in.
    #[must_use]
    pub const fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn downloads(&self) -> &Downloads {
        &self.downloads
    }

    fn store_error(&self, error: object_store::Error) -> Error {
        Error::of_store(self.storage.place(), error)
    }

    /// Stores content that arrives in pieces, in constant memory. Content that is stored already is stored again, which
    /// heals a damaged blob and renews its age; concurrent callers with the same content do not disturb each other.
    ///
    /// Dropping the returned future gives the upload up. On S3 its parts stay until the bucket's lifecycle rule for
    /// incomplete multipart uploads removes them; on a local folder nothing stays.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::DigestMismatch`], [`Error::Interrupted`] (the stream failed) or a storage error. Then
    /// no blob was stored.
    pub async fn put_stream<S, E>(&self, content: S, expected: Option<Digest>, limit_bytes: u64) -> Result<Blob>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let content = content.map_err(|error| Error::Interrupted { source: error.into() });
        let mut content = pin!(content);
        let copied = expected.is_none() && !self.storage.renames();
        let limit_bytes = if copied {
            limit_bytes.min(MAX_UNADDRESSED_BYTES)
        } else {
            limit_bytes
        };
        let mut hash = DigestBuilder::default();
        let mut first = Vec::new();
        while first.len() < PART_BYTES {
            let Some(piece) = content.try_next().await? else {
                return self.put_whole(first.into(), hash.finish(), expected).await;
            };
            hash.update(&piece);
            check_limit(&hash, limit_bytes)?;
            first.extend_from_slice(&piece);
        }
        // With an announced digest the upload's name is its last: it appears only if the digest turns out right.
        let path = expected.map_or_else(upload_path, blob_path);
        let store = self.storage.store();
        let upload = store
            .put_multipart(&path)
            .await
            .map_err(|error| self.store_error(error))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        upload.put(first.into());
        let sent = self.send(&mut upload, content, &mut hash, limit_bytes).await;
        let size_bytes = hash.size_bytes();
        let digest = hash.finish();
        if let Err(error) = sent.and_then(|()| check_expected(expected, digest)) {
            if let Err(abort_error) = upload.abort().await {
                tracing::warn!(error = %abort_error, "an upload cannot be given up: parts may stay in the storage");
            }
            return Err(error);
        }
        upload.finish().await.map_err(|error| self.store_error(error))?;
        if expected.is_none() {
            self.give_name(&path, digest).await?;
        }
        Ok(Blob { digest, size_bytes })
    }

    async fn send(
        &self,
        upload: &mut WriteMultipart,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
        hash: &mut DigestBuilder,
        limit_bytes: u64,
    ) -> Result<()> {
        while let Some(piece) = content.try_next().await? {
            hash.update(&piece);
            check_limit(hash, limit_bytes)?;
            upload
                .wait_for_capacity(PARTS_IN_FLIGHT)
                .await
                .map_err(|error| self.store_error(error))?;
            upload.write(&piece);
        }
        // The last part but one fails here, where the upload can still be given up.
        upload
            .wait_for_capacity(1)
            .await
            .map_err(|error| self.store_error(error))
    }

    async fn give_name(&self, upload: &Path, digest: Digest) -> Result<()> {
        let store = self.storage.store();
        let renamed = store.rename(upload, &blob_path(digest)).await;
        if renamed.is_err()
            && let Err(error) = store.delete(upload).await
        {
            tracing::warn!(%upload, %error, "a failed upload stays until it is swept");
        }
        renamed.map_err(|error| self.store_error(error))
    }

    async fn put_whole(&self, content: Bytes, digest: Digest, expected: Option<Digest>) -> Result<Blob> {
        check_expected(expected, digest)?;
        let size_bytes = content.len() as u64;
        let store = self.storage.store();
        store
            .put(&blob_path(digest), content.into())
            .await
            .map_err(|error| self.store_error(error))?;
        Ok(Blob { digest, size_bytes })
    }

    /// Stores content that is in memory.
    ///
    /// # Errors
    /// A storage error. Then no blob was stored.
    pub async fn put_bytes(&self, content: impl Into<Bytes> + Send) -> Result<Blob> {
        let content = content.into();
        if content.len() <= PART_BYTES {
            let digest = Digest::of(&content);
            return self.put_whole(content, digest, None).await;
        }
        // Announced, so that it needs no copy on S3.
        let digest = Digest::of(&content);
        let limit_bytes = content.len() as u64;
        let pieces = stream::once(async { Ok::<_, Error>(content) });
        self.put_stream(pieces, Some(digest), limit_bytes).await
    }

    /// The content of a blob in pieces, verified while it is read: a damaged blob ends with [`Error::Corrupt`] instead of
    /// its last piece.
    ///
    /// # Errors
    /// [`Error::NotFound`] or a storage error, here or in the stream.
    pub async fn get(&self, digest: Digest) -> Result<BlobStream> {
        let result = self.storage.store().get(&blob_path(digest)).await;
        let result = result.map_err(|error| self.blob_error(digest, error))?;
        Ok(BlobStream::new(digest, self.storage.place().into(), result))
    }

    fn blob_error(&self, digest: Digest, error: object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { .. } => Error::NotFound { digest },
            error => self.store_error(error),
        }
    }

    /// The verified content of a blob of at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`], [`Error::Corrupt`] or a storage error.
    pub async fn get_bytes(&self, digest: Digest, limit_bytes: u64) -> Result<Bytes> {
        let mut content = self.get(digest).await?;
        if content.size_bytes() > limit_bytes {
            return Err(Error::TooLarge { limit_bytes });
        }
        let mut bytes = Vec::with_capacity(content.size_bytes() as usize);
        while let Some(block) = content.try_next().await? {
            bytes.extend_from_slice(&block);
        }
        Ok(bytes.into())
    }

    /// The size of a blob in bytes, or `None` if there is no such blob. Its content is not verified.
    ///
    /// # Errors
    /// A storage error.
    pub async fn size(&self, digest: Digest) -> Result<Option<u64>> {
        match self.storage.store().head(&blob_path(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.store_error(error)),
        }
    }

    /// Whether there is such a blob. Its content is not verified.
    ///
    /// # Errors
    /// A storage error.
    pub async fn exists(&self, digest: Digest) -> Result<bool> {
        Ok(self.size(digest).await?.is_some())
    }

    /// Removes a blob; `false` if there was none.
    ///
    /// # Errors
    /// A storage error.
    pub async fn delete(&self, digest: Digest) -> Result<bool> {
        // S3 does not say whether there was one.
        if !self.exists(digest).await? {
            return Ok(false);
        }
        match self.storage.store().delete(&blob_path(digest)).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.store_error(error)),
        }
    }

    /// All blobs, in no order. Objects that are no blobs are passed over.
    pub fn list(&self) -> BoxStream<'static, Result<StoredBlob>> {
        let place = self.storage.place().to_owned();
        let objects = self.storage.store().list(Some(&Path::from_iter([BLOBS, ALGORITHM])));
        objects
            .map_err(move |error| Error::of_store(&place, error))
            .try_filter_map(|object| async move {
                Ok(digest_of(&object.location).map(|digest| StoredBlob {
                    blob: Blob {
                        digest,
                        size_bytes: object.size,
                    },
                    stored_at: object.last_modified,
                }))
            })
            .boxed()
    }

    /// Removes what crashes left in `uploads/` before `older_than`, and says how many. Choose a time before which no upload
    /// can have begun that is still going on.
    ///
    /// # Errors
    /// A storage error; what could be removed before it is removed.
    pub async fn sweep_uploads(&self, older_than: DateTime<Utc>) -> Result<u64> {
        let store = &self.storage.store();
        let removed = store
            .list(Some(&Path::from(UPLOADS)))
            .try_filter(|object| std::future::ready(object.last_modified < older_than))
            .map_ok(|object| remove_left_over(store, object))
            .try_buffer_unordered(SWEEPS_IN_FLIGHT)
            .try_fold(0, |sum, removed| async move { Ok(sum + u64::from(removed)) })
            .await
            .map_err(|error| self.store_error(error))?;
        if removed > 0 {
            tracing::info!(removed, place = self.storage.place(), "unfinished uploads removed");
        }
        Ok(removed)
    }
}

async fn remove_left_over(store: &Arc<dyn ObjectStore>, object: ObjectMeta) -> object_store::Result<bool> {
    match store.delete(&object.location).await {
        Ok(()) => Ok(true),
        // Finished or removed by another meanwhile.
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
