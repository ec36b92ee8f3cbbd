//! A local folder as an object store whose writes survive a power cut.
//!
//! `object_store`'s own file system store renames atomically but never syncs, so that after a power cut an acknowledged
//! object can be empty or gone. Here an object's bytes are synced before it gets its name, and the folder after. Everything
//! unfinished lies in `uploads/`, so that what a crash leaves behind is found in one place.

use std::{
    fmt,
    fs::{self, File, Permissions},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result, UploadPart,
    local::LocalFileSystem, path::Path,
};
use parking_lot::Mutex;
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

/// The folder below the root where unfinished objects lie.
pub(crate) const UPLOADS: &str = "uploads";
/// Files are readable for other programs (Delta Lake readers), as far as the umask allows.
const FILE_MODE: u32 = 0o666;
const STORE: &str = "local folder";

/// See the module's description.
#[derive(Debug)]
pub(crate) struct DurableFolder {
    inner: LocalFileSystem,
    root: PathBuf,
    uploads: PathBuf,
}

impl DurableFolder {
    /// Opens the folder, and creates it where it is missing.
    pub(crate) fn open(folder: &FilePath) -> io::Result<Self> {
        create_folder(folder)?;
        let root = folder.canonicalize()?;
        let uploads = root.join(UPLOADS);
        create_folder(&uploads)?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { inner, root, uploads })
    }

    /// Whether the folder takes writes.
    pub(crate) fn check(&self) -> io::Result<()> {
        stage(&self.uploads).map(drop)
    }

    pub(crate) fn root(&self) -> &FilePath {
        &self.root
    }
}

impl fmt::Display for DurableFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root.display())
    }
}

/// A new unnamed-to-others file that vanishes with its handle unless it is persisted.
fn stage(uploads: &FilePath) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix("file-")
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(uploads)
}

fn sync_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates a folder with its parents, so that they survive a power cut.
fn create_folder(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let missing: Vec<&FilePath> = folder.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(folder)?;
    for created in missing {
        if let Some(parent) = created.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
    }
    Ok(())
}

fn parent_of(path: &FilePath) -> io::Result<&FilePath> {
    path.parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder"))
}

/// Gives a staged file its name.
fn persist(file: NamedTempFile, target: &FilePath, create_only: bool) -> io::Result<()> {
    file.as_file().sync_all()?;
    let folder = parent_of(target)?;
    create_folder(folder)?;
    if create_only {
        file.persist_noclobber(target).map_err(|error| error.error)?;
    } else {
        file.persist(target).map_err(|error| error.error)?;
    }
    sync_folder(folder)
}

/// Moves a file. Both folders are synced, the target's first: between the two the file has at least one name.
fn rename(from: &FilePath, to: &FilePath, create_only: bool) -> io::Result<()> {
    let folder = parent_of(to)?;
    create_folder(folder)?;
    if create_only {
        fs::hard_link(from, to)?;
        sync_folder(folder)?;
        fs::remove_file(from)?;
    } else {
        fs::rename(from, to)?;
        sync_folder(folder)?;
    }
    sync_folder(parent_of(from)?)
}

fn store_error(path: &FilePath, source: io::Error) -> Error {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound {
            path,
            source: source.into(),
        },
        io::ErrorKind::AlreadyExists => Error::AlreadyExists {
            path,
            source: source.into(),
        },
        io::ErrorKind::PermissionDenied => Error::PermissionDenied {
            path,
            source: source.into(),
        },
        _ => Error::Generic {
            store: STORE,
            source: source.into(),
        },
    }
}

fn write_payload(file: &mut File, payload: &PutPayload) -> io::Result<()> {
    payload.iter().try_for_each(|bytes| file.write_all(bytes))
}

#[async_trait]
impl ObjectStore for DurableFolder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create_only = match options.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "a conditional update".to_owned(),
                    implementer: self.to_string(),
                });
            }
        };
        let target = self.inner.path_to_filesystem(location)?;
        let uploads = self.uploads.clone();
        spawn_blocking(move || {
            let mut file = stage(&uploads).map_err(|error| store_error(&uploads, error))?;
            write_payload(file.as_file_mut(), &payload)
                .and_then(|()| persist(file, &target, create_only))
                .map_err(|error| store_error(&target, error))
        })
        .await??;
        Ok(PutResult {
            e_tag: None,
            version: None,
        })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let uploads = self.uploads.clone();
        let file = spawn_blocking(move || stage(&uploads).map_err(|error| store_error(&uploads, error))).await??;
        Ok(Box::new(StagedUpload {
            file: Some(Arc::new(file)),
            turn: Arc::default(),
            target,
            next_offset: 0,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let target = self.inner.path_to_filesystem(to)?;
        self.inner.copy_opts(from, to, options).await?;
        spawn_blocking(move || {
            parent_of(&target)
                .and_then(sync_folder)
                .map_err(|error| store_error(&target, error))
        })
        .await?
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let from = self.inner.path_to_filesystem(from)?;
        let to = self.inner.path_to_filesystem(to)?;
        let create_only = options.target_mode == RenameTargetMode::Create;
        spawn_blocking(move || rename(&from, &to, create_only).map_err(|error| store_error(&to, error))).await?
    }
}

/// An object that arrives in parts. Dropped before [`MultipartUpload::complete`], it leaves nothing behind.
#[derive(Debug)]
struct StagedUpload {
    file: Option<Arc<NamedTempFile>>,
    /// One part is written at a time: the file system lets no other in, and who waits there keeps a processor busy.
    turn: Arc<Mutex<()>>,
    target: PathBuf,
    next_offset: u64,
}

fn closed() -> Error {
    Error::Generic {
        store: STORE,
        source: "the upload was completed or given up before".into(),
    }
}

#[async_trait]
impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let offset = self.next_offset;
        self.next_offset += payload.content_length() as u64;
        let (file, turn) = (self.file.clone(), Arc::clone(&self.turn));
        let target = self.target.clone();
        Box::pin(async move {
            let file = file.ok_or_else(closed)?;
            spawn_blocking(move || {
                let mut at = offset;
                let own_turn = turn.lock();
                for bytes in &payload {
                    file.as_file().write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                drop((own_turn, payload));
                // The disk works while more arrives, and has little left to do at the end.
                file.as_file().sync_data()
            })
            .await?
            .map_err(|error: io::Error| store_error(&target, error))
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let file = self.file.take().and_then(Arc::into_inner).ok_or_else(closed)?;
        let target = self.target.clone();
        let size_bytes = self.next_offset;
        spawn_blocking(move || {
            let written = file
                .as_file()
                .metadata()
                .map_err(|error| store_error(&target, error))?
                .len();
            if written != size_bytes {
                return Err(Error::Generic {
                    store: STORE,
                    source: format!("{written} of {size_bytes} bytes were written").into(),
                });
            }
            persist(file, &target, false).map_err(|error| store_error(&target, error))
        })
        .await??;
        Ok(PutResult {
            e_tag: None,
            version: None,
        })
    }

    async fn abort(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        // A part that is still being written holds the file, and its space, until it is done.
        spawn_blocking(move || fs::remove_file(file.path()).map_err(|error| store_error(file.path(), error))).await?
    }
}
