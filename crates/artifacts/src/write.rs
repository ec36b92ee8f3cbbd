//! The objects that blobs become.

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload, WriteMultipart};

use crate::{
    blocks::BLOCK_BYTES,
    sealed::{Sealer, object_size},
};

/// The size of one part of an upload. S3 takes 10,000 parts: the largest blob is 80 GiB.
pub(crate) const PART_BYTES: usize = 8 * 1024 * 1024;
pub(crate) const PART_BLOCKS: usize = PART_BYTES / BLOCK_BYTES;
/// How many parts are on their way at once; with the one being filled they are all the memory that an upload takes.
const PARTS_IN_FLIGHT: usize = 4;

/// The object of content that is in memory; with a sealer it is encrypted.
pub(crate) async fn whole_object(blocks: Vec<Bytes>, sealer: Option<Sealer>) -> PutPayload {
    let Some(mut sealer) = sealer else {
        return blocks.into_iter().collect();
    };
    let size_bytes: usize = blocks.iter().map(Bytes::len).sum();
    let mut object = Vec::with_capacity(object_size(size_bytes as u64) as usize);
    object.extend_from_slice(sealer.header());
    for block in blocks {
        sealer.push(&block, &mut object);
        // A block takes about a millisecond: others get their turn.
        tokio::task::yield_now().await;
    }
    sealer.finish(&mut object);
    object.into()
}

/// The object of content that is on its way, in parts.
pub(crate) struct ObjectUpload {
    upload: WriteMultipart,
    sealer: Option<Sealer>,
    /// What is sealed and not yet in the part that is being filled.
    sealed: Vec<u8>,
}

impl ObjectUpload {
    /// Begins the object; with a sealer it is encrypted.
    pub(crate) fn new(upload: Box<dyn MultipartUpload>, sealer: Option<Sealer>) -> Self {
        let sealed = sealer.as_ref().map_or_else(Vec::new, |sealer| sealer.header().to_vec());
        Self {
            upload: WriteMultipart::new_with_chunk_size(upload, PART_BYTES),
            sealer,
            sealed,
        }
    }

    /// Takes the next block of the content.
    pub(crate) async fn write(&mut self, block: Bytes) -> object_store::Result<()> {
        self.upload.wait_for_capacity(PARTS_IN_FLIGHT).await?;
        match &mut self.sealer {
            None => self.upload.put(block),
            Some(sealer) => {
                sealer.push(&block, &mut self.sealed);
                self.upload.write(&self.sealed);
                self.sealed.clear();
            }
        }
        Ok(())
    }

    /// Ends the content. The last part but one fails here, where the upload can still be given up.
    pub(crate) async fn end(&mut self) -> object_store::Result<()> {
        if let Some(sealer) = self.sealer.take() {
            sealer.finish(&mut self.sealed);
            self.upload.wait_for_capacity(PARTS_IN_FLIGHT).await?;
            self.upload.write(&self.sealed);
        }
        self.upload.wait_for_capacity(1).await
    }

    /// Gives the upload up.
    pub(crate) async fn abort(self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, "an upload cannot be given up: parts may stay in the storage");
        }
    }

    /// Lets the object appear.
    pub(crate) async fn finish(self) -> object_store::Result<()> {
        self.upload.finish().await.map(drop)
    }
}
