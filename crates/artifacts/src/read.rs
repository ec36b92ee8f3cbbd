//! Reading with verification.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{GetResult, GetResultPayload};
use tokio::task::spawn_blocking;

use crate::{
    blocks::{BLOCK_BYTES, BlockDigests, in_blocks},
    digest::{Digest, DigestBuilder},
    error::{Error, Result},
    keys::KeyRing,
    sealed::{self, HEADER_BYTES, Header, Opener},
};

/// How many blocks are read and verified at the same time.
const BLOCKS_AT_ONCE: usize = 2;

/// The content of a blob in pieces, verified while it is read. The last piece comes only after the whole content was found
/// to be right, so that nobody who reads to the end has read altered content.
pub struct BlobStream {
    digest: Digest,
    size_bytes: u64,
    inner: BoxStream<'static, Result<Bytes>>,
}

impl BlobStream {
    /// The content of an object that holds it as it is.
    pub(crate) fn plain(digest: Digest, place: Arc<str>, result: GetResult) -> Self {
        let size_bytes = result.meta.size;
        Self {
            digest,
            size_bytes,
            inner: verified(digest, size_bytes, blocks(place, result)),
        }
    }

    /// Blocks of an object that holds its blob as it is, from the byte `start` on, each verified on its own.
    pub(crate) fn blocks(
        digest: Digest,
        place: Arc<str>,
        result: GetResult,
        digests: BlockDigests,
        start: u64,
    ) -> Self {
        let size_bytes = result.meta.size;
        let end = result.range.end;
        let digests = Arc::new(digests);
        let verify = move |at: u64, block: Bytes| {
            let wanted = (end - at).min(BLOCK_BYTES as u64);
            if block.len() as u64 == wanted && digests.is_right(at / BLOCK_BYTES as u64, &block) {
                return Ok(block);
            }
            let last = at + wanted - 1;
            let problem = format!("its bytes {at} to {last} are not what was stored");
            Err(Error::Corrupt { digest, problem })
        };
        let failed = move |error| Error::of_store(&place, error);
        let starts = (start..end).step_by(BLOCK_BYTES);
        let inner = match result.payload {
            GetResultPayload::File(file, _) => {
                let file = Arc::new(file);
                let read = move |at| {
                    let (file, verify, failed) = (Arc::clone(&file), verify.clone(), failed.clone());
                    async move {
                        let told = failed.clone();
                        let read = move || match read_block(&file, at) {
                            Ok(block) => verify(at, block),
                            Err(error) => Err(told(file_error(error))),
                        };
                        spawn_blocking(read)
                            .await
                            .unwrap_or_else(|error| Err(failed(error.into())))
                    }
                };
                stream::iter(starts).map(read).buffered(BLOCKS_AT_ONCE).boxed()
            }
            GetResultPayload::Stream(content) => {
                let blocks = in_blocks(content.map_err(failed.clone()), u64::MAX);
                let verify = move |(block, at): (Result<Bytes>, u64)| {
                    let (verify, failed) = (verify.clone(), failed.clone());
                    async move {
                        let block = block?;
                        let verified = spawn_blocking(move || verify(at, block)).await;
                        verified.unwrap_or_else(|error| Err(failed(error.into())))
                    }
                };
                // A block that is missing is one that is wrong.
                let missing = stream::repeat_with(|| Ok(Bytes::new()));
                blocks
                    .chain(missing)
                    .zip(stream::iter(starts))
                    .map(verify)
                    .buffered(BLOCKS_AT_ONCE)
                    .boxed()
            }
        };
        Self {
            digest,
            size_bytes,
            inner,
        }
    }

    /// Some bytes of the stream. What comes before and after them is read, too, and the last of them only passed on when all that follows was found to be right.
    pub(crate) fn part(self, range: Range<u64>) -> Self {
        let (digest, size_bytes) = (self.digest, self.size_bytes);
        Self {
            digest,
            size_bytes,
            inner: part_of(self.inner, range),
        }
    }

    /// The content of an object of a project that holds it encrypted. Its start is read here, so that a key that is missing
    /// is known before anything is passed on.
    pub(crate) async fn sealed(
        digest: Digest,
        place: Arc<str>,
        result: GetResult,
        keys: &KeyRing,
        project: &str,
    ) -> Result<Self> {
        let corrupt = |problem| Error::Corrupt { digest, problem };
        let object_bytes = result.meta.size;
        let size_bytes = plain_size(digest, object_bytes)?;
        let mut blocks = blocks(place, result);
        let mut start = Vec::new();
        let (header, rest) = loop {
            if let Some((header, rest)) = start.split_first_chunk::<HEADER_BYTES>() {
                break (*header, Bytes::copy_from_slice(rest));
            }
            let Some(block) = blocks.next().await.transpose()? else {
                return Err(corrupt(format!(
                    "{} of its {object_bytes} bytes could be read",
                    start.len()
                )));
            };
            start.extend_from_slice(&block);
        };
        let header = Header::parse(header).map_err(corrupt)?;
        let id = header.key_id();
        let key = keys.find(id).ok_or_else(|| Error::EncryptionKey {
            digest,
            problem: format!(
                "its key {id} is not in the file that `storage.encryption.key_file` names, add it there below the first"
            ),
        })?;
        let opener = Opener::new(header, key, project, size_bytes);
        let blocks = stream::once(std::future::ready(Ok(rest))).chain(blocks);
        Ok(Self {
            digest,
            size_bytes,
            inner: verified(digest, size_bytes, opened(digest, opener, blocks.boxed())),
        })
    }

    /// The blob's name.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The size of the stored content in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.poll_next_unpin(context)
    }
}

/// The size of the content of an encrypted object.
pub(crate) fn plain_size(digest: Digest, object_bytes: u64) -> Result<u64> {
    sealed::plain_size(object_bytes).ok_or_else(|| Error::Corrupt {
        digest,
        problem: format!("no encrypted blob has {object_bytes} bytes"),
    })
}

/// The object as it lies in the storage.
fn blocks(place: Arc<str>, result: GetResult) -> BoxStream<'static, Result<Bytes>> {
    let blocks = match result.payload {
        GetResultPayload::File(file, _) => file_blocks(file),
        GetResultPayload::Stream(_) => result.into_stream(),
    };
    blocks
        .map(move |block| block.map_err(|error| Error::of_store(&place, error)))
        .boxed()
}

/// The content of an encrypted object whose header was read.
fn opened(
    digest: Digest,
    opener: Opener,
    blocks: BoxStream<'static, Result<Bytes>>,
) -> BoxStream<'static, Result<Bytes>> {
    let corrupt = move |problem| Error::Corrupt { digest, problem };
    stream::try_unfold((blocks, opener), move |(mut blocks, mut opener)| async move {
        let Some(block) = blocks.next().await.transpose()? else {
            opener.finish().map_err(corrupt)?;
            return Ok(None);
        };
        let content = opener.push(&block).map_err(corrupt)?;
        Ok(Some((Bytes::from(content), (blocks, opener))))
    })
    .boxed()
}

/// The blocks of a local file. The store's own stream takes 8 KiB at a time, each on another thread.
fn file_blocks(file: File) -> BoxStream<'static, object_store::Result<Bytes>> {
    let file = Arc::new(file);
    stream::try_unfold((file, 0_u64), |(file, offset)| async move {
        let reader = Arc::clone(&file);
        let block = spawn_blocking(move || read_block(&reader, offset)).await?;
        let block = block.map_err(file_error)?;
        let next = offset + block.len() as u64;
        Ok((!block.is_empty()).then_some((block, (file, next))))
    })
    .boxed()
}

fn file_error(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "local folder",
        source: error.into(),
    }
}

fn read_block(file: &File, offset: u64) -> std::io::Result<Bytes> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut length = 0;
    while length < block.len() {
        match file.read_at(&mut block[length..], offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    block.truncate(length);
    Ok(Bytes::from(block))
}

/// The bytes of a range widened to whole blocks.
pub(crate) fn whole_blocks(range: &Range<u64>, size_bytes: u64) -> Range<u64> {
    let block = BLOCK_BYTES as u64;
    let start = range.start / block * block;
    start..range.end.next_multiple_of(block).min(size_bytes)
}

struct Cut {
    content: BoxStream<'static, Result<Bytes>>,
    range: Range<u64>,
    /// How much was read.
    at: u64,
    /// The last piece of the range so far.
    held: Option<Bytes>,
}

fn part_of(content: BoxStream<'static, Result<Bytes>>, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let start = Cut {
        content,
        range,
        at: 0,
        held: None,
    };
    stream::try_unfold(start, |mut cut| async move {
        while let Some(piece) = cut.content.try_next().await? {
            let begin = cut.at;
            cut.at += piece.len() as u64;
            if let Some(piece) = within(&piece, begin, &cut.range)
                && let Some(before) = cut.held.replace(piece)
            {
                return Ok(Some((before, cut)));
            }
        }
        Ok(cut.held.take().map(|last| (last, cut)))
    })
    .boxed()
}

/// What a piece that begins at `begin` has of a range.
fn within(piece: &Bytes, begin: u64, range: &Range<u64>) -> Option<Bytes> {
    let end = begin + piece.len() as u64;
    let (first, last) = (range.start.max(begin), range.end.min(end));
    // Both lie in the piece, whose length is a usize.
    (first < last).then(|| piece.slice((first - begin) as usize..(last - begin) as usize))
}

struct Verification {
    blocks: BoxStream<'static, Result<Bytes>>,
    hash: DigestBuilder,
    held: Option<Bytes>,
    verified: bool,
}

/// Passes the blocks on one behind, and the last one only if all together have the digest.
fn verified(
    digest: Digest,
    size_bytes: u64,
    blocks: BoxStream<'static, Result<Bytes>>,
) -> BoxStream<'static, Result<Bytes>> {
    let start = Verification {
        blocks,
        hash: DigestBuilder::default(),
        held: None,
        verified: false,
    };
    stream::try_unfold(start, move |mut state| async move {
        while !state.verified {
            let Some(block) = state.blocks.next().await.transpose()? else {
                check(digest, size_bytes, std::mem::take(&mut state.hash))?;
                state.verified = true;
                break;
            };
            // One that ends the stream must not set the last content free.
            if block.is_empty() {
                continue;
            }
            state.hash.update(&block);
            if let Some(before) = state.held.replace(block) {
                return Ok(Some((before, state)));
            }
        }
        Ok(state.held.take().map(|last| (last, state)))
    })
    .boxed()
}

fn check(digest: Digest, size_bytes: u64, hash: DigestBuilder) -> Result<()> {
    let read = hash.size_bytes();
    let problem = if read == size_bytes {
        let actual = hash.finish();
        if actual == digest {
            return Ok(());
        }
        format!("its {size_bytes} bytes have the digest {actual}")
    } else {
        format!("{read} of its {size_bytes} bytes could be read")
    };
    Err(Error::Corrupt { digest, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_takes_its_share_of_each_piece() {
        let piece = Bytes::from_static(b"defg");
        let cases: [(Range<u64>, Option<&[u8]>); 7] = [
            (0..100, Some(b"defg")),
            (0..3, None),
            (0..4, Some(b"d")),
            (4..6, Some(b"ef")),
            (6..100, Some(b"g")),
            (7..100, None),
            (3..7, Some(b"defg")),
        ];
        for (range, expected) in cases {
            assert_eq!(within(&piece, 3, &range).as_deref(), expected, "{range:?}");
        }
    }

    #[tokio::test]
    async fn empty_blocks_neither_end_content_nor_set_the_last_block_free() {
        let blocks = || {
            let blocks = [&b""[..], b"abc", b"", b"def", b"", b""].map(Bytes::from_static);
            stream::iter(blocks.map(Ok)).boxed()
        };
        let good = verified(Digest::of(b"abcdef"), 6, blocks());
        assert_eq!(good.try_collect::<Vec<_>>().await.unwrap(), ["abc", "def"]);
        let bad: Vec<_> = verified(Digest::of(b"abcdeg"), 6, blocks()).collect().await;
        assert_eq!(bad.len(), 2);
        assert_eq!(bad[0].as_ref().unwrap(), "abc");
        assert!(matches!(bad[1], Err(Error::Corrupt { .. })));
    }
}
