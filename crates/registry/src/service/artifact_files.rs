//! Artifacts by path: files are blobs that have a name, and may arrive in parts.
//!
//! A blob that no name refers to any more stays until unused blobs are collected: the same content may have another name, and only
//! the collector can prove that it has none.

use std::{num::NonZeroU32, ops::Range, time::Duration};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use modelyard_artifacts::{Blob, BlockDigests, Digest, DigestBuilder, MAX_UNADDRESSED_BYTES, ProjectArtifacts};
use modelyard_auth::{
    Action, Caller, Kind, Resource,
    token::{Token, TokenKind},
};
use modelyard_common::error::Chain;

use super::{ARTIFACT_LIMIT_BYTES, Registry};
use crate::{
    error::{Error, Result},
    model::{
        artifact_file::{
            ArtifactFile, ArtifactFolder, ArtifactPath, ChosenPart, FilePlace, FolderEntry, FolderPlace,
            MAX_PART_BYTES, MAX_PARTS, Upload, UploadPart, choose_parts,
        },
        page::{Cursor as _, MAX_PAGE, Page, PageRequest},
    },
    store::{Arrival, no_upload},
};

/// The most entries of a folder that are listed at once.
pub const MAX_LISTED: usize = 100_000;
/// How many files are forgotten in one transaction.
const DELETED_AT_ONCE: u32 = 1000;
/// From this size on S3 takes content only with a digest that is known before. What encryption adds to content is left room for.
const ADDRESSED_ABOVE_BYTES: u64 = MAX_UNADDRESSED_BYTES - (MAX_UNADDRESSED_BYTES >> 8);

/// How long an address holds by which a file is fetched from the storage itself, as with MLflow's server.
pub const PRESIGNED_LIFETIME: Duration = Duration::from_mins(5);

/// The content of a file, or a part of it.
pub type FileContent = BoxStream<'static, Result<Bytes, modelyard_artifacts::Error>>;

/// An upload that was begun.
pub struct NewUpload {
    /// The upload.
    pub upload: Upload,
    /// What opens it for parts, and for nothing else.
    pub secret: Token,
}

/// A file whose content is not what it was.
fn damaged(path: &ArtifactPath, problem: impl std::fmt::Display) -> Error {
    Error::State(format!(
        "artifact `{path}` cannot be read: {problem}; upload it again, or restore the storage from a backup"
    ))
}

impl Registry {
    /// Writes a file, in the place of the one that was there.
    pub async fn put_file<S, E>(
        &self,
        caller: &Caller,
        project: &str,
        path: &ArtifactPath,
        content: S,
    ) -> Result<ArtifactFile>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        let view = self.stores.blobs.storage_view(project).await?;
        let room = view.room(project, ARTIFACT_LIMIT_BYTES)?;
        let stored = self.blobs.project(project)?.put_in_blocks(content, None, room).await;
        let (blob, blocks) = stored.map_err(|error| view.refusal(project, ARTIFACT_LIMIT_BYTES, error))?;
        let file = self.file_of(project, path, blob, Some(blocks));
        self.stores
            .artifact_files
            .put_artifact_file(&file, view.removals)
            .await?;
        Ok(file)
    }

    fn file_of(&self, project: &str, path: &ArtifactPath, blob: Blob, blocks: Option<BlockDigests>) -> ArtifactFile {
        ArtifactFile {
            project: project.to_owned(),
            path: path.clone(),
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            // One block alone is verified by the name of its blob.
            blocks: blocks.filter(|blocks| blocks.count() > 1),
            created_at: self.clock.now(),
        }
    }

    /// A file, and of its content the bytes that `choose` wants to have once it has seen the file.
    ///
    /// What is given out is verified: the last piece comes only when the whole file was found to be right.
    pub async fn get_file(
        &self,
        caller: &Caller,
        project: &str,
        path: &ArtifactPath,
        choose: impl FnOnce(&ArtifactFile) -> Option<Range<u64>> + Send,
    ) -> Result<(ArtifactFile, Option<FileContent>)> {
        let resource = Resource::named(Kind::Artifact, project, path.as_str());
        self.enter(caller, Action::ArtifactRead, resource).await?;
        let Some(file) = self.stores.artifact_files.find_artifact_file(project, path).await? else {
            return Err(self.no_file(project, path).await?);
        };
        let Some(range) = choose(&file) else {
            return Ok((file, None));
        };
        let content = self.open_file(&file, range).await?;
        Ok((file, Some(content)))
    }

    /// A file, and an address by which it is fetched from the storage itself for a while; none: it comes through this server alone.
    pub async fn presign_file(
        &self,
        caller: &Caller,
        project: &str,
        path: &ArtifactPath,
        lifetime: Duration,
    ) -> Result<(ArtifactFile, Option<String>)> {
        let (file, _) = self.get_file(caller, project, path, |_| None).await?;
        let blobs = self.blobs.project(project)?;
        let address = blobs.presign(file.digest, lifetime).await?;
        Ok((file, address))
    }

    /// Whether files can be fetched from the storage itself.
    #[must_use]
    pub const fn presigns(&self) -> bool {
        self.blobs.storage().presigns()
    }

    /// What is wrong where there is no such file.
    async fn no_file(&self, project: &str, path: &ArtifactPath) -> Result<Error> {
        let folder = ArtifactFolder::from(path.clone());
        let page = PageRequest { after: None, limit: 1 };
        let below = self
            .stores
            .artifact_files
            .list_artifact_folder(project, &folder, &page)
            .await?;
        Ok(if below.items.is_empty() {
            Error::NotThere(format!("No such artifact: '{path}'"))
        } else {
            Error::request(format!("Artifact path refers to a directory, not a file: '{path}'"))
        })
    }

    async fn open_file(&self, file: &ArtifactFile, range: Range<u64>) -> Result<FileContent> {
        use modelyard_artifacts::Error as BlobError;
        let blobs = self.blobs.project(&file.project)?;
        let content = blobs.get_range(file.digest, file.size_bytes, file.blocks.as_ref(), range);
        let content = match content.await {
            Ok(content) => content,
            Err(error @ (BlobError::NotFound { .. } | BlobError::Corrupt { .. })) => {
                return Err(damaged(&file.path, error));
            }
            Err(error) => return Err(error.into()),
        };
        // A file that was cut is known before any of it is sent.
        if content.size_bytes() != file.size_bytes {
            return Err(damaged(
                &file.path,
                format!("it has {} of its {} bytes", content.size_bytes(), file.size_bytes),
            ));
        }
        let (project, path) = (file.project.clone(), file.path.clone());
        let told = content.inspect_err(move |error| {
            tracing::error!(project, %path, error = %Chain(error), "sending an artifact was cut off");
        });
        Ok(told.boxed())
    }

    /// What is in a folder, one level deep.
    pub async fn list_files(
        &self,
        caller: &Caller,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FolderPlace>,
    ) -> Result<Page<FolderEntry>> {
        let resource = Resource::named(Kind::Artifact, project, folder.name());
        self.enter(caller, Action::ArtifactRead, resource).await?;
        self.stores
            .artifact_files
            .list_artifact_folder(project, folder, page)
            .await
    }

    /// What is in a folder, one level deep: up to [`MAX_LISTED`] entries from a place on. MLflow's clients read no further pages.
    pub async fn list_whole_folder(
        &self,
        caller: &Caller,
        project: &str,
        folder: &ArtifactFolder,
        after: Option<FolderPlace>,
    ) -> Result<Page<FolderEntry>> {
        let resource = Resource::named(Kind::Artifact, project, folder.name());
        self.enter(caller, Action::ArtifactRead, resource).await?;
        let limit = MAX_PAGE;
        let mut page = PageRequest { after, limit };
        let mut items = Vec::new();
        loop {
            let found = self
                .stores
                .artifact_files
                .list_artifact_folder(project, folder, &page)
                .await?;
            items.extend(found.items);
            page.after = found.next_cursor.as_deref().and_then(FolderPlace::read);
            if page.after.is_none() || items.len() >= MAX_LISTED {
                let next_cursor = page.after.map(|place| place.write());
                return Ok(Page { items, next_cursor });
            }
        }
    }

    /// What is in a folder of a run or logged model whose artifacts are at `root`. The entries are named relative to `root`.
    pub async fn list_run_artifacts(
        &self,
        caller: &Caller,
        project: &str,
        root: &str,
        path: &str,
        after: Option<FolderPlace>,
    ) -> Result<Page<FolderEntry>> {
        let below = ArtifactFolder::parse(path)?;
        let folder = ArtifactFolder::parse(root)?.join(path)?;
        let mut page = self.list_whole_folder(caller, project, &folder, after).await?;
        for entry in &mut page.items {
            entry.path.insert_str(0, &below.prefix());
        }
        Ok(page)
    }

    /// All files below a folder, however deep.
    pub async fn list_files_below(
        &self,
        caller: &Caller,
        project: &str,
        folder: &ArtifactFolder,
        page: &PageRequest<FilePlace>,
    ) -> Result<Page<ArtifactFile>> {
        let resource = Resource::named(Kind::Artifact, project, folder.name());
        self.enter(caller, Action::ArtifactRead, resource).await?;
        self.stores
            .artifact_files
            .list_artifact_files(project, folder, page)
            .await
    }

    /// Forgets a file, or a folder with all that is below it; how many files. What is not there is no error.
    pub async fn delete_path(&self, caller: &Caller, project: &str, path: &ArtifactPath) -> Result<u64> {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        let store = &self.stores.artifact_files;
        let mut deleted = u64::from(store.delete_artifact_file(project, path).await?);
        let folder = ArtifactFolder::from(path.clone());
        loop {
            let count = store.delete_artifact_files(project, &folder, DELETED_AT_ONCE).await?;
            deleted += count;
            if count < u64::from(DELETED_AT_ONCE) {
                return Ok(deleted);
            }
        }
    }

    /// Begins the upload of a file in parts.
    pub async fn create_upload(
        &self,
        caller: &Caller,
        project: &str,
        path: &ArtifactPath,
        part_count: NonZeroU32,
    ) -> Result<NewUpload> {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        if part_count.get() > MAX_PARTS {
            return Err(Error::request(format!(
                "an upload in {part_count} parts has too many: make the parts larger, so that there are at most {MAX_PARTS}"
            )));
        }
        let secret = Token::generate(TokenKind::Exchanged).map_err(|error| Error::State(error.to_string()))?;
        let upload = Upload {
            upload_id: self.ids.next().simple().to_string(),
            project: project.to_owned(),
            path: path.clone(),
            part_count: part_count.get(),
            secret_hash: secret.hash(),
            created_at: self.clock.now(),
            is_complete: false,
        };
        self.stores.artifact_uploads.create_upload(&upload).await?;
        Ok(NewUpload { upload, secret })
    }

    /// Takes a part of a file. MLflow's client shows no token here, but only what the beginning of the upload answered: whoever
    /// knows the secret may add parts to this upload, and nothing comes of them until somebody completes it who may.
    pub async fn put_part<S, E>(&self, upload_id: &str, secret: &str, number: u32, content: S) -> Result<UploadPart>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let found = self.stores.artifact_uploads.find_upload(upload_id).await?;
        let hash = Token::parse(secret).map(|token| token.hash());
        let upload = found
            .filter(|upload| Some(upload.secret_hash) == hash && !upload.is_complete)
            .ok_or_else(|| no_upload(upload_id))?;
        if !(1..=upload.part_count).contains(&number) {
            return Err(Error::request(format!(
                "upload {} has no part {number}: its parts are 1 to {}",
                upload.upload_id, upload.part_count
            )));
        }
        let view = self.stores.blobs.storage_view(&upload.project).await?;
        let room = view.room(&upload.project, MAX_PART_BYTES)?;
        let stored = self
            .blobs
            .project(&upload.project)?
            .put_stream(content, None, room)
            .await;
        let blob = stored.map_err(|error| view.refusal(&upload.project, MAX_PART_BYTES, error))?;
        let part = UploadPart {
            number,
            digest: blob.digest,
            size_bytes: blob.size_bytes,
        };
        let arrival = Arrival {
            removals: view.removals,
            now: self.clock.now(),
        };
        self.stores
            .artifact_uploads
            .put_part(&upload, &part, ARTIFACT_LIMIT_BYTES, arrival)
            .await?;
        Ok(part)
    }

    /// The parts that have arrived, so that an upload that was cut off can go on with the others.
    pub async fn list_parts(&self, caller: &Caller, project: &str, upload_id: &str) -> Result<Vec<UploadPart>> {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        self.find_upload_of(project, None, upload_id).await?;
        self.stores.artifact_uploads.list_parts(upload_id).await
    }

    async fn find_upload_of(&self, project: &str, path: Option<&ArtifactPath>, upload_id: &str) -> Result<Upload> {
        let found = self.stores.artifact_uploads.find_upload(upload_id).await?;
        let is_meant = |upload: &Upload| upload.project == project && path.is_none_or(|path| *path == upload.path);
        found.filter(is_meant).ok_or_else(|| no_upload(upload_id))
    }

    /// Makes the file of the parts, in constant memory. Completing what is complete already changes nothing.
    pub async fn complete_upload(
        &self,
        caller: &Caller,
        project: &str,
        path: &ArtifactPath,
        upload_id: &str,
        chosen: &[ChosenPart],
    ) -> Result<()> {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        let upload = self.find_upload_of(project, Some(path), upload_id).await?;
        if upload.is_complete {
            return Ok(());
        }
        // Before the parts are looked for: they can be removed from then on, and may be the whole file.
        let view = self.stores.blobs.storage_view(project).await?;
        let arrived = self.stores.artifact_uploads.list_parts(upload_id).await?;
        let parts = choose_parts(chosen, &arrived)?;
        let (blob, blocks) = self.join_parts(project, &parts).await?;
        let file = self.file_of(project, path, blob, blocks);
        self.stores
            .artifact_uploads
            .complete_upload(upload_id, &file, view.removals)
            .await?;
        // They are the same content again, which counts as long as it is there.
        self.remove_unnamed(project, &arrived).await;
        Ok(())
    }

    async fn join_parts(&self, project: &str, parts: &[UploadPart]) -> Result<(Blob, Option<BlockDigests>)> {
        let size_bytes = parts.iter().map(|part| part.size_bytes).sum();
        if let [part] = parts {
            let digest = part.digest;
            return Ok((Blob { digest, size_bytes }, None));
        }
        let blobs = self.blobs.project(project)?;
        let digests: Vec<_> = parts.iter().map(|part| part.digest).collect();
        let expected = if size_bytes > ADDRESSED_ABOVE_BYTES && !self.blobs.storage().renames() {
            Some(digest_of(joined(blobs.clone(), digests.clone())).await?)
        } else {
            None
        };
        let content = joined(blobs.clone(), digests);
        let (blob, blocks) = blobs.put_in_blocks(content, expected, ARTIFACT_LIMIT_BYTES).await?;
        Ok((blob, Some(blocks)))
    }

    /// Gives an upload up. One that is not there, or is complete, is left as it is.
    pub async fn abort_upload(&self, caller: &Caller, project: &str, upload_id: &str) -> Result<()> {
        self.enter(caller, Action::ArtifactWrite, Resource::project(project))
            .await?;
        let parts = self.stores.artifact_uploads.list_parts(upload_id).await?;
        if self.stores.artifact_uploads.abort_upload(project, upload_id).await? {
            self.remove_unnamed(project, &parts).await;
        }
        Ok(())
    }
}

/// The content of blobs, one after the other, each verified.
fn joined(
    blobs: ProjectArtifacts,
    digests: Vec<Digest>,
) -> impl Stream<Item = Result<Bytes, modelyard_artifacts::Error>> + Send {
    stream::iter(digests)
        .then(move |digest| {
            let blobs = blobs.clone();
            async move { blobs.get(digest).await }
        })
        .try_flatten()
}

async fn digest_of(content: impl Stream<Item = Result<Bytes, modelyard_artifacts::Error>> + Send) -> Result<Digest> {
    let hash = content.try_fold(DigestBuilder::default(), |mut hash, piece| async move {
        hash.update(&piece);
        Ok(hash)
    });
    Ok(hash.await?.finish())
}

#[cfg(test)]
mod tests {
    use modelyard_artifacts::{Artifacts, Storage, StorageConfig};

    use super::*;

    #[tokio::test]
    async fn parts_are_joined() {
        let blobs = Artifacts::new(Storage::open(&StorageConfig::memory()).unwrap());
        let blobs = blobs.project("default").unwrap();
        let whole: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let mut digests = Vec::new();
        for part in whole.chunks(1_100_000) {
            digests.push(blobs.put_bytes(part.to_vec()).await.unwrap().digest);
        }
        let content = joined(blobs.clone(), digests.clone());
        let blob = blobs.put_stream(content, None, u64::MAX).await.unwrap();
        assert_eq!(blob.digest, Digest::of(&whole));
        assert_eq!(digest_of(joined(blobs.clone(), digests)).await.unwrap(), blob.digest);
    }
}
