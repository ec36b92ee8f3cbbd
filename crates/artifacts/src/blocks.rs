//! Content in blocks. Each block has a digest of its own: any part of a blob can be read and verified without the rest, and blocks
//! are verified at the same time, by a hash that is several times faster than the one that names blobs.

use std::{mem, pin::Pin};

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt as _, stream};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::{
    digest::{Digest, DigestBuilder},
    error::{Error, Result},
};

/// The size of a block in bytes; the last one is shorter.
pub(crate) const BLOCK_BYTES: usize = 1024 * 1024;
const DIGEST_BYTES: usize = 32;
/// Up to this size, in bytes, content is hashed at once; above it another thread does it, while more arrives.
const HASHED_AT_ONCE: usize = 64 * 1024;

/// The BLAKE3 digest of each MiB of a blob, in order. It is as good a proof of the content as the blob's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockDigests(Vec<[u8; DIGEST_BYTES]>);

impl BlockDigests {
    /// What [`to_bytes`](Self::to_bytes) wrote; None: it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (digests, rest) = bytes.as_chunks();
        rest.is_empty().then(|| Self(digests.to_vec()))
    }

    /// 32 bytes a block.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether they are those of content of this size in bytes.
    pub(crate) const fn are_of(&self, size_bytes: u64) -> bool {
        self.0.len() as u64 == size_bytes.div_ceil(BLOCK_BYTES as u64)
    }

    pub(crate) fn is_right(&self, block: u64, content: &[u8]) -> bool {
        let expected = usize::try_from(block).ok().and_then(|block| self.0.get(block));
        expected.is_some_and(|expected| blake3::hash(content) == *expected)
    }
}

/// Content in blocks of [`BLOCK_BYTES`]. More than the limit is an error.
pub(crate) fn in_blocks(
    content: impl Stream<Item = Result<Bytes>> + Send,
    limit_bytes: u64,
) -> impl Stream<Item = Result<Bytes>> + Send {
    struct Cutting<S> {
        content: Pin<Box<S>>,
        piece: Bytes,
        block: BytesMut,
        size_bytes: u64,
        is_over: bool,
    }
    let start = Cutting {
        content: Box::pin(content),
        piece: Bytes::new(),
        block: BytesMut::new(),
        size_bytes: 0,
        is_over: false,
    };
    stream::try_unfold(start, move |mut cutting| async move {
        while !cutting.is_over {
            if cutting.piece.is_empty() {
                match cutting.content.try_next().await? {
                    Some(piece) => cutting.piece = piece,
                    None => cutting.is_over = true,
                }
                cutting.size_bytes += cutting.piece.len() as u64;
                if cutting.size_bytes > limit_bytes {
                    return Err(Error::TooLarge { limit_bytes });
                }
                continue;
            }
            if cutting.block.is_empty() && cutting.piece.len() >= BLOCK_BYTES {
                return Ok(Some((cutting.piece.split_to(BLOCK_BYTES), cutting)));
            }
            let missing = BLOCK_BYTES - cutting.block.len();
            if !cutting.block.is_empty() {
                // There is more than one piece: space for all at once.
                cutting.block.reserve(missing);
            }
            let taken = cutting.piece.split_to(missing.min(cutting.piece.len()));
            cutting.block.extend_from_slice(&taken);
            if cutting.block.len() == BLOCK_BYTES {
                return Ok(Some((cutting.block.split().freeze(), cutting)));
            }
        }
        let last = mem::take(&mut cutting.block).freeze();
        Ok((!last.is_empty()).then_some((last, cutting)))
    })
}

#[derive(Default)]
struct Hashes {
    whole: DigestBuilder,
    blocks: BlockDigests,
}

impl Hashes {
    fn update(mut self, block: &[u8]) -> Self {
        self.whole.update(block);
        self.blocks.0.push(blake3::hash(block).into());
        self
    }
}

enum State {
    Ready(Hashes),
    Running(JoinHandle<Hashes>),
}

/// Hashes content, a block behind it.
pub(crate) struct Hashing(State);

/// What the content was.
pub(crate) struct Hashed {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) blocks: BlockDigests,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        Self(State::Ready(Hashes::default()))
    }

    async fn hashes(&mut self) -> Result<Hashes, JoinError> {
        match mem::replace(&mut self.0, State::Ready(Hashes::default())) {
            State::Ready(hashes) => Ok(hashes),
            State::Running(task) => task.await,
        }
    }

    /// Takes the next block, once the one before was hashed.
    pub(crate) async fn update(&mut self, block: &Bytes) -> Result<(), JoinError> {
        let hashes = self.hashes().await?;
        self.0 = if block.len() <= HASHED_AT_ONCE {
            State::Ready(hashes.update(block))
        } else {
            let block = block.clone();
            State::Running(spawn_blocking(move || hashes.update(&block)))
        };
        Ok(())
    }

    pub(crate) async fn finish(mut self) -> Result<Hashed, JoinError> {
        let Hashes { whole, blocks } = self.hashes().await?;
        Ok(Hashed {
            size_bytes: whole.size_bytes(),
            digest: whole.finish(),
            blocks,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pieces_of_any_size_become_the_same_blocks(
            pieces in proptest::collection::vec(0_usize..2 * BLOCK_BYTES + 3, 0..6)
        ) {
            let content: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|at| (at % 251) as u8).collect();
            let mut rest = Bytes::from(content.clone());
            let pieces: Vec<Result<Bytes>> = pieces.into_iter().map(|size| Ok(rest.split_to(size))).collect();
            let size_bytes = content.len() as u64;
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let blocks: Vec<Bytes> = runtime
                .block_on(in_blocks(stream::iter(pieces), size_bytes).try_collect())
                .unwrap();
            let expected: Vec<&[u8]> = content.chunks(BLOCK_BYTES).collect();
            prop_assert_eq!(&blocks, &expected);
            let hashed = runtime.block_on(async {
                let mut hashing = Hashing::new();
                for block in &blocks {
                    hashing.update(block).await.unwrap();
                }
                hashing.finish().await.unwrap()
            });
            prop_assert_eq!((hashed.digest, hashed.size_bytes), (Digest::of(&content), size_bytes));
            prop_assert!(hashed.blocks.are_of(size_bytes));
            for (number, block) in (0..).zip(&blocks) {
                prop_assert!(hashed.blocks.is_right(number, block));
                prop_assert!(!hashed.blocks.is_right(number + 1, block) || blocks.get(number as usize + 1) == Some(block));
            }
            prop_assert_eq!(BlockDigests::from_bytes(&hashed.blocks.to_bytes()), Some(hashed.blocks));
        }
    }
}
