//! Writing, finding and removing the blobs of a project.

use std::{fmt, ops::Range, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{GetOptions, GetResult, ObjectStoreExt as _, path::Path};
use uuid::Uuid;

use crate::{
    blocks::{BlockDigests, Hashed, Hashing, in_blocks},
    cache::Downloads,
    digest::Digest,
    error::{Error, Result},
    local::UPLOADS,
    read::{self, BlobStream},
    sealed::{self, Sealer},
    storage::Storage,
    write::{ObjectUpload, PART_BLOCKS, PART_BYTES, whole_object},
};

const PROJECTS: &str = "projects";
const BLOBS: &str = "blobs";
const ALGORITHM: &str = "sha256";
/// How many leading digits of a digest name the folder, so that no folder grows huge.
const FOLDER_DIGITS: usize = 2;
/// What the name of an encrypted object ends with.
const SEALED_SUFFIX: &str = ".sealed";
/// How many objects a listing looks for at once, to find out which of two forms of a blob counts.
const LOOK_UPS_IN_FLIGHT: usize = 8;
/// The largest content without an announced digest on S3, in bytes: its name is known at its end only, and S3 copies no
/// larger object to another name. What encryption adds counts, too: 16 bytes in 64 KiB.
pub const MAX_UNADDRESSED_BYTES: u64 = 5 * 1024 * 1024 * 1024;

/// How an object holds its blob. The name tells, so that no content has to be read for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Sealed,
}

impl Form {
    /// Where to look for a blob, in this order, if blobs are stored in this form.
    const fn looks(self) -> &'static [Self] {
        match self {
            Self::Plain => &[Self::Plain, Self::Sealed],
            // A plain blob that is stored again meanwhile was sealed before it went away: the second look finds it.
            Self::Sealed => &[Self::Sealed, Self::Plain, Self::Sealed],
        }
    }
}

/// A stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its name: the digest of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl Hashed {
    const fn blob(&self) -> Blob {
        Blob {
            digest: self.digest,
            size_bytes: self.size_bytes,
        }
    }
}

/// A blob as [`ProjectArtifacts::list`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBlob {
    /// Name and size.
    pub blob: Blob,
    /// When it was stored last. Storing the same content again renews it, so that a collector that spares young blobs never
    /// removes one that somebody is about to refer to.
    pub stored_at: DateTime<Utc>,
}

/// The blobs of one project, which are the only ones that this can reach: what another project stored is not there, by
/// whatever name. Cheap to clone.
#[derive(Clone)]
pub struct ProjectArtifacts {
    storage: Storage,
    downloads: Arc<Downloads>,
    project: Arc<str>,
}

impl fmt::Debug for ProjectArtifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProjectArtifacts({}, {})", self.storage.place(), self.project)
    }
}

/// A path that nobody else has.
#[expect(clippy::disallowed_methods, reason = "a temporary name, not the id of anything")]
fn upload_path() -> Path {
    Path::from_iter([UPLOADS, &Uuid::now_v7().to_string()])
}

/// The digest and the form of a path below [`ProjectArtifacts::folder`].
fn blob_of(path: &Path, folder: &Path) -> Option<(Digest, Form)> {
    let parts: Vec<_> = path.prefix_match(folder)?.collect();
    let [start, rest] = parts.as_slice() else {
        return None;
    };
    if start.as_ref().len() != FOLDER_DIGITS {
        return None;
    }
    let (rest, form) = match rest.as_ref().strip_suffix(SEALED_SUFFIX) {
        Some(rest) => (rest, Form::Sealed),
        None => (rest.as_ref(), Form::Plain),
    };
    let digest = format!("{ALGORITHM}:{}{rest}", start.as_ref()).parse().ok()?;
    Some((digest, form))
}

fn check_expected(expected: Option<Digest>, actual: Digest) -> Result<()> {
    match expected {
        Some(expected) if expected != actual => Err(Error::DigestMismatch { expected, actual }),
        _ => Ok(()),
    }
}

impl ProjectArtifacts {
    /// The blobs of a project whose name was checked.
    pub(crate) const fn new(storage: Storage, downloads: Arc<Downloads>, project: Arc<str>) -> Self {
        Self {
            storage,
            downloads,
            project,
        }
    }

    /// The project.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    pub(crate) fn downloads(&self) -> &Downloads {
        &self.downloads
    }

    /// Where the blobs lie.
    fn folder(&self) -> Path {
        Path::from_iter([PROJECTS, &self.project, BLOBS, ALGORITHM])
    }

    fn path_of(&self, digest: Digest, form: Form) -> Path {
        let digits = digest.to_hex();
        let (folder, name) = digits.split_at(FOLDER_DIGITS);
        let folder = self.folder().join(folder);
        match form {
            Form::Plain => folder.join(name),
            Form::Sealed => folder.join(format!("{name}{SEALED_SUFFIX}")),
        }
    }

    /// The form that blobs are stored in.
    fn form(&self) -> Form {
        self.storage.keys().map_or(Form::Plain, |_| Form::Sealed)
    }

    /// Where a blob is stored.
    fn own_path(&self, digest: Digest) -> Path {
        self.path_of(digest, self.form())
    }

    /// What seals a blob, if they are stored sealed.
    fn sealer(&self) -> Result<Option<Sealer>> {
        let keys = self.storage.keys();
        keys.map(|keys| Sealer::start(keys, &self.project)).transpose()
    }

    /// The object that holds a blob, and its form.
    async fn find(&self, digest: Digest, options: GetOptions) -> Result<Option<(Form, GetResult)>> {
        let store = self.storage.store();
        for form in self.form().looks() {
            match store.get_opts(&self.path_of(digest, *form), options.clone()).await {
                Ok(result) => return Ok(Some((*form, result))),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.store_error(error)),
            }
        }
        Ok(None)
    }

    async fn find_head(&self, digest: Digest) -> Result<Option<(Form, GetResult)>> {
        self.find(digest, GetOptions::new().with_head(true)).await
    }

    /// Removes one form of a blob; `false` if there was none.
    async fn delete_form(&self, digest: Digest, form: Form) -> Result<bool> {
        match self.storage.store().delete(&self.path_of(digest, form)).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.store_error(error)),
        }
    }

    /// Removes the plain form of a blob that is stored sealed now.
    async fn forget_plain(&self, digest: Digest) {
        if self.form() == Form::Sealed
            && let Err(error) = self.delete_form(digest, Form::Plain).await
        {
            tracing::warn!(%digest, %error, "a blob that was encrypted stays in plain form, too, until it is stored again");
        }
    }

    fn store_error(&self, error: object_store::Error) -> Error {
        Error::of_store(self.storage.place(), error)
    }

    /// Stores content that arrives in pieces, in constant memory. Content that is stored already is stored again, which
    /// heals a damaged blob, renews its age and, with keys, encrypts one that was not; concurrent callers with the same content do not disturb each other.
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
        let stored = self.put_in_blocks(content, expected, limit_bytes).await;
        stored.map(|(blob, _)| blob)
    }

    /// As [`put_stream`](Self::put_stream), with what [`get_range`](Self::get_range) verifies parts by.
    ///
    /// # Errors
    /// As [`put_stream`](Self::put_stream).
    pub async fn put_in_blocks<S, E>(
        &self,
        content: S,
        expected: Option<Digest>,
        limit_bytes: u64,
    ) -> Result<(Blob, BlockDigests)>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let content = content.map_err(|error| Error::Interrupted { source: error.into() });
        let copied = expected.is_none() && !self.storage.renames();
        let limit_bytes = match self.form() {
            _ if !copied => limit_bytes,
            Form::Plain => limit_bytes.min(MAX_UNADDRESSED_BYTES),
            Form::Sealed => limit_bytes.min(sealed::max_plain_size(MAX_UNADDRESSED_BYTES)),
        };
        let mut content = pin!(in_blocks(content, limit_bytes));
        let mut hashing = Hashing::new();
        let mut first = Vec::new();
        while first.len() < PART_BLOCKS {
            let Some(block) = content.try_next().await? else {
                let hashed = self.hashed(hashing).await?;
                check_expected(expected, hashed.digest)?;
                return Ok((self.put_whole(first, &hashed).await?, hashed.blocks));
            };
            self.hash(&mut hashing, &block).await?;
            first.push(block);
        }
        // With an announced digest the upload's name is its last: it appears only if the digest turns out right.
        let path = expected.map_or_else(upload_path, |digest| self.own_path(digest));
        let sealer = self.sealer()?;
        let store = self.storage.store();
        let upload = store
            .put_multipart(&path)
            .await
            .map_err(|error| self.store_error(error))?;
        let mut upload = ObjectUpload::new(upload, sealer);
        let sent = self.send(&mut upload, first, content, hashing).await;
        let hashed = match sent.and_then(|hashed| check_expected(expected, hashed.digest).map(|()| hashed)) {
            Ok(hashed) => hashed,
            Err(error) => {
                upload.abort().await;
                return Err(error);
            }
        };
        upload.finish().await.map_err(|error| self.store_error(error))?;
        if expected.is_none() {
            self.give_name(&path, hashed.digest).await?;
        }
        self.forget_plain(hashed.digest).await;
        Ok((hashed.blob(), hashed.blocks))
    }

    async fn hash(&self, hashing: &mut Hashing, block: &Bytes) -> Result<()> {
        let taken = hashing.update(block).await;
        taken.map_err(|error| self.store_error(error.into()))
    }

    async fn hashed(&self, hashing: Hashing) -> Result<Hashed> {
        let hashed = hashing.finish().await;
        hashed.map_err(|error| self.store_error(error.into()))
    }

    async fn send(
        &self,
        upload: &mut ObjectUpload,
        first: Vec<Bytes>,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
        mut hashing: Hashing,
    ) -> Result<Hashed> {
        let failed = |error| self.store_error(error);
        for block in first {
            upload.write(block).await.map_err(failed)?;
        }
        while let Some(block) = content.try_next().await? {
            self.hash(&mut hashing, &block).await?;
            upload.write(block).await.map_err(failed)?;
        }
        upload.end().await.map_err(failed)?;
        self.hashed(hashing).await
    }

    async fn give_name(&self, upload: &Path, digest: Digest) -> Result<()> {
        let store = self.storage.store();
        let renamed = store.rename(upload, &self.own_path(digest)).await;
        if renamed.is_err()
            && let Err(error) = store.delete(upload).await
        {
            tracing::warn!(%upload, %error, "a failed upload stays until it is swept");
        }
        renamed.map_err(|error| self.store_error(error))
    }

    async fn put_whole(&self, content: Vec<Bytes>, hashed: &Hashed) -> Result<Blob> {
        let object = whole_object(content, self.sealer()?).await;
        let store = self.storage.store();
        store
            .put(&self.own_path(hashed.digest), object)
            .await
            .map_err(|error| self.store_error(error))?;
        self.forget_plain(hashed.digest).await;
        Ok(hashed.blob())
    }

    /// Stores content that is in memory.
    ///
    /// # Errors
    /// A storage error. Then no blob was stored.
    pub async fn put_bytes(&self, content: impl Into<Bytes> + Send) -> Result<Blob> {
        let content = content.into();
        // Announced, so that it needs no copy on S3.
        let digest = (content.len() > PART_BYTES).then(|| Digest::of(&content));
        let limit_bytes = content.len() as u64;
        let pieces = stream::once(async { Ok::<_, Error>(content) });
        self.put_stream(pieces, digest, limit_bytes).await
    }

    /// The content of a blob in pieces, verified while it is read: a damaged blob ends with [`Error::Corrupt`] instead of
    /// its last piece.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::EncryptionKey`]; [`Error::Corrupt`] or a storage error, here or in the stream.
    pub async fn get(&self, digest: Digest) -> Result<BlobStream> {
        let (form, result) = self
            .find(digest, GetOptions::new())
            .await?
            .ok_or(Error::NotFound { digest })?;
        let place = self.storage.place().into();
        match (form, self.storage.keys()) {
            (Form::Plain, _) => Ok(BlobStream::plain(digest, place, result)),
            (Form::Sealed, Some(keys)) => BlobStream::sealed(digest, place, result, keys, &self.project).await,
            (Form::Sealed, None) => Err(Error::EncryptionKey {
                digest,
                problem: "name the file with its key in `storage.encryption.key_file`".to_owned(),
            }),
        }
    }

    /// Some bytes of a blob of a size, in pieces. With the digests of its blocks, and stored as it is, only the blocks are read that
    /// have some of them, and each is verified before it is passed on; otherwise all of it is read and verified, and the last piece
    /// comes only if it was right.
    ///
    /// # Errors
    /// As [`ProjectArtifacts::get`].
    pub async fn get_range(
        &self,
        digest: Digest,
        size_bytes: u64,
        blocks: Option<&BlockDigests>,
        range: Range<u64>,
    ) -> Result<BlobStream> {
        if let Some(blocks) = blocks.filter(|blocks| blocks.are_of(size_bytes) && !range.is_empty())
            && let Some(content) = self.open_blocks(digest, size_bytes, blocks, &range).await?
        {
            return Ok(content);
        }
        let content = self.get(digest).await?;
        Ok(if range == (0..content.size_bytes()) {
            content
        } else {
            content.part(range)
        })
    }

    /// The blocks that have some of a range; none: there is no such object, or it cannot be read from its middle.
    async fn open_blocks(
        &self,
        digest: Digest,
        size_bytes: u64,
        blocks: &BlockDigests,
        range: &Range<u64>,
    ) -> Result<Option<BlobStream>> {
        let store = self.storage.store();
        let path = self.path_of(digest, Form::Plain);
        let whole = read::whole_blocks(range, size_bytes);
        let mut options = GetOptions::new();
        if whole != (0..size_bytes) {
            // A range of one that was cut would be an error that says less.
            match store.head(&path).await {
                Ok(found) if found.size == size_bytes => {}
                _ => return Ok(None),
            }
            options = options.with_range(Some(whole.clone()));
        }
        match store.get_opts(&path, options).await {
            Ok(result) if result.meta.size == size_bytes => {
                let place = self.storage.place().into();
                Ok(Some(
                    BlobStream::blocks(digest, place, result, blocks.clone(), whole.start)
                        .part(range.start - whole.start..range.end - whole.start),
                ))
            }
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.store_error(error)),
        }
    }

    /// The verified content of a blob of at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`ProjectArtifacts::get`], or [`Error::TooLarge`].
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

    /// The size of a blob's content in bytes, or `None` if there is no such blob. Its content is not verified, and no key is
    /// needed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] (no encrypted blob has the object's size) or a storage error.
    pub async fn size(&self, digest: Digest) -> Result<Option<u64>> {
        match self.find_head(digest).await? {
            None => Ok(None),
            Some((Form::Plain, result)) => Ok(Some(result.meta.size)),
            Some((Form::Sealed, result)) => read::plain_size(digest, result.meta.size).map(Some),
        }
    }

    /// When a blob was stored last, or `None` if there is no such blob. Its content is not verified, and no key is needed.
    ///
    /// # Errors
    /// A storage error.
    pub async fn stored_at(&self, digest: Digest) -> Result<Option<DateTime<Utc>>> {
        let found = self.find_head(digest).await?;
        Ok(found.map(|(_, result)| result.meta.last_modified))
    }

    /// An address by which anybody fetches a blob from the storage itself for some time, unverified; none: it comes through this
    /// server alone.
    ///
    /// # Errors
    /// A storage error.
    pub async fn presign(&self, digest: Digest, valid_for: Duration) -> Result<Option<String>> {
        if !self.storage.presigns() {
            return Ok(None);
        }
        match self.find_head(digest).await? {
            Some((Form::Plain, _)) => {
                self.storage
                    .presign(&self.path_of(digest, Form::Plain), valid_for)
                    .await
            }
            Some((Form::Sealed, _)) | None => Ok(None),
        }
    }

    /// Whether there is such a blob. Its content is not verified, and no key is needed.
    ///
    /// # Errors
    /// A storage error.
    pub async fn exists(&self, digest: Digest) -> Result<bool> {
        Ok(self.find_head(digest).await?.is_some())
    }

    /// Removes a blob, encrypted or not; `false` if there was none.
    ///
    /// # Errors
    /// A storage error.
    pub async fn delete(&self, digest: Digest) -> Result<bool> {
        // S3 does not say whether there was one.
        if !self.exists(digest).await? {
            return Ok(false);
        }
        let plain = self.delete_form(digest, Form::Plain).await?;
        let sealed = self.delete_form(digest, Form::Sealed).await?;
        Ok(plain || sealed)
    }

    /// All blobs of the project, in no order. Objects that are no blobs are passed over. Of a blob that lies there encrypted
    /// and not, the one counts that is stored in the form that this storage writes.
    pub fn list(&self) -> BoxStream<'static, Result<StoredBlob>> {
        let place = self.storage.place().to_owned();
        let folder = self.folder();
        let objects = self.storage.store().list(Some(&folder));
        let project = self.clone();
        objects
            .map_err(move |error| Error::of_store(&place, error))
            .try_filter_map(move |object| {
                let blob = blob_of(&object.location, &folder).map(|(digest, form)| (digest, form, object));
                std::future::ready(Ok(blob))
            })
            .map_ok(move |(digest, form, object)| {
                let project = project.clone();
                async move {
                    if form != project.form() && project.has_own_form(digest).await? {
                        return Ok(None);
                    }
                    let size_bytes = match form {
                        Form::Plain => Some(object.size),
                        Form::Sealed => sealed::plain_size(object.size),
                    };
                    Ok(Some(StoredBlob {
                        blob: Blob {
                            digest,
                            // A damaged one is listed, too, with what lies there.
                            size_bytes: size_bytes.unwrap_or(object.size),
                        },
                        stored_at: object.last_modified,
                    }))
                }
            })
            .try_buffer_unordered(LOOK_UPS_IN_FLIGHT)
            .try_filter_map(|blob| std::future::ready(Ok(blob)))
            .boxed()
    }

    /// Whether the blob lies there in the form that blobs are stored in.
    async fn has_own_form(&self, digest: Digest) -> Result<bool> {
        match self.storage.store().head(&self.own_path(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.store_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_changes_its_form_is_found_whenever_that_happens() {
        let looks = Form::Sealed.looks();
        for changes_before in 0..=looks.len() {
            let found = looks.iter().enumerate().any(|(look, form)| {
                let lies = if look < changes_before {
                    Form::Plain
                } else {
                    Form::Sealed
                };
                *form == lies
            });
            assert!(found, "before look {changes_before}");
        }
    }
}
