//! The form of an encrypted object.
//!
//! A header: the magic, the version, the id of the key and a random salt. Then the content in chunks of 64 KiB, each sealed
//! with AES-256-GCM and followed by its tag; the last one holds what is left, and is empty only if the content is.
//!
//! Every object has a key of its own, derived from the key of the ring by HKDF-SHA256 with the salt and the project, so that
//! a chunk's index can be its nonce. With a chunk the header, its index and whether it is the last are authenticated. An
//! object that is cut, extended, put together anew or moved to another project does not open. That it is the one that its
//! name promises is what the digest of the content is verified for.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{
    error::{Error, Result},
    keys::{KEY_ID_BYTES, Key, KeyId, KeyRing},
};

const MAGIC: &[u8; 8] = b"MYSEALED";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const VERSION_AT: usize = MAGIC.len();
const KEY_ID_AT: usize = VERSION_AT + 1;
const SALT_AT: usize = KEY_ID_AT + KEY_ID_BYTES;
/// The bytes before the first chunk.
pub(crate) const HEADER_BYTES: usize = SALT_AT + SALT_BYTES;
/// The content of a chunk, of all but the last.
const CHUNK_BYTES: usize = 64 * 1024;
const TAG_BYTES: usize = 16;
/// What is authenticated with a chunk: the header, the index and whether it is the last.
const AAD_BYTES: usize = HEADER_BYTES + size_of::<u64>() + 1;
/// What keys are derived for. Another version of the form has another one.
const PURPOSE: &[u8] = b"modelyard artifact v1:";

/// How many chunks the content makes: at least one, so that an object without chunks is a cut one.
const fn chunks(plain_bytes: u64) -> u64 {
    let chunks = plain_bytes.div_ceil(CHUNK_BYTES as u64);
    if chunks == 0 { 1 } else { chunks }
}

/// The size of the object that holds so much content.
pub(crate) const fn object_size(plain_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + plain_bytes + chunks(plain_bytes) * TAG_BYTES as u64
}

/// The most content that fits into an object of this size.
pub(crate) const fn max_plain_size(object_bytes: u64) -> u64 {
    let sealed = object_bytes.saturating_sub(HEADER_BYTES as u64);
    let chunk = (CHUNK_BYTES + TAG_BYTES) as u64;
    sealed / chunk * CHUNK_BYTES as u64 + (sealed % chunk).saturating_sub(TAG_BYTES as u64)
}

/// The size of the content of an object of this size, or `None` if no object has it.
pub(crate) fn plain_size(object_bytes: u64) -> Option<u64> {
    let plain_bytes = max_plain_size(object_bytes);
    (object_size(plain_bytes) == object_bytes).then_some(plain_bytes)
}

/// What stands before the chunks.
pub(crate) struct Header([u8; HEADER_BYTES]);

impl Header {
    fn generate(key: KeyId) -> Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..VERSION_AT].copy_from_slice(MAGIC);
        bytes[VERSION_AT] = VERSION;
        bytes[KEY_ID_AT..SALT_AT].copy_from_slice(&key.0);
        SystemRandom::new()
            .fill(&mut bytes[SALT_AT..])
            .map_err(|_| Error::NoRandomBytes)?;
        Ok(Self(bytes))
    }

    /// Reads the header, or says what is wrong with it.
    pub(crate) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, String> {
        if !bytes.starts_with(MAGIC) {
            return Err("it does not begin as an encrypted blob".to_owned());
        }
        match bytes[VERSION_AT] {
            VERSION => Ok(Self(bytes)),
            version => Err(format!(
                "its start names the form {version}, which this release does not know"
            )),
        }
    }

    /// The key that the object was sealed with.
    pub(crate) fn key_id(&self) -> KeyId {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&self.0[KEY_ID_AT..SALT_AT]);
        KeyId(id)
    }

    #[expect(
        clippy::expect_used,
        reason = "the output of a key's length is what HKDF-SHA256 always has"
    )]
    fn derive(&self, key: &Key, project: &str) -> LessSafeKey {
        let salt = Salt::new(HKDF_SHA256, &self.0[SALT_AT..]);
        let pseudorandom = salt.extract(key.bytes());
        let purpose = [PURPOSE, project.as_bytes()];
        let derived = pseudorandom.expand(&purpose, &AES_256_GCM).expect("32 bytes");
        LessSafeKey::new(UnboundKey::from(derived))
    }
}

/// Seals and opens the chunks of one object.
struct Cipher {
    header: Header,
    key: LessSafeKey,
}

impl Cipher {
    fn new(header: Header, key: &Key, project: &str) -> Self {
        let key = header.derive(key, project);
        Self { header, key }
    }

    /// No two chunks of an object have the same nonce, and no two objects the same key.
    fn nonce(index: u64, is_last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..size_of::<u64>()].copy_from_slice(&index.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(is_last);
        Nonce::assume_unique_for_key(nonce)
    }

    fn authenticated(&self, index: u64, is_last: bool) -> Aad<[u8; AAD_BYTES]> {
        let mut bytes = [0; AAD_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&self.header.0);
        bytes[HEADER_BYTES..AAD_BYTES - 1].copy_from_slice(&index.to_be_bytes());
        bytes[AAD_BYTES - 1] = u8::from(is_last);
        Aad::from(bytes)
    }

    #[expect(clippy::expect_used, reason = "only content of 64 GiB and more cannot be sealed")]
    fn seal(&self, index: u64, is_last: bool, chunk: &[u8], object: &mut Vec<u8>) {
        let start = object.len();
        object.extend_from_slice(chunk);
        let nonce = Self::nonce(index, is_last);
        let aad = self.authenticated(index, is_last);
        let tag = self.key.seal_in_place_separate_tag(nonce, aad, &mut object[start..]);
        object.extend_from_slice(tag.expect("a chunk is small").as_ref());
    }

    fn open<'chunk>(&self, index: u64, is_last: bool, chunk: &'chunk mut [u8]) -> Option<&'chunk [u8]> {
        let nonce = Self::nonce(index, is_last);
        let aad = self.authenticated(index, is_last);
        self.key.open_in_place(nonce, aad, chunk).ok().map(|plain| &*plain)
    }
}

/// Makes an object of content that arrives in pieces.
pub(crate) struct Sealer {
    cipher: Cipher,
    /// The next chunk's.
    index: u64,
    /// At most one chunk: whether it is the last shows only when there is more.
    pending: Vec<u8>,
}

impl Sealer {
    /// Begins an object of a project.
    pub(crate) fn start(keys: &KeyRing, project: &str) -> Result<Self> {
        let key = keys.current();
        Ok(Self::after(Header::generate(key.id())?, key, project))
    }

    fn after(header: Header, key: &Key, project: &str) -> Self {
        Self {
            cipher: Cipher::new(header, key, project),
            index: 0,
            pending: Vec::with_capacity(CHUNK_BYTES),
        }
    }

    /// What the object begins with.
    pub(crate) const fn header(&self) -> &[u8] {
        &self.cipher.header.0
    }

    /// Takes the next piece of the content, and appends the chunks that it completes.
    pub(crate) fn push(&mut self, mut content: &[u8], object: &mut Vec<u8>) {
        while !content.is_empty() {
            if self.pending.len() == CHUNK_BYTES {
                self.cipher.seal(self.index, false, &self.pending, object);
                self.index += 1;
                self.pending.clear();
            }
            let missing = CHUNK_BYTES - self.pending.len();
            let (start, rest) = content.split_at(missing.min(content.len()));
            self.pending.extend_from_slice(start);
            content = rest;
        }
    }

    /// Appends the last chunk.
    pub(crate) fn finish(self, object: &mut Vec<u8>) {
        self.cipher.seal(self.index, true, &self.pending, object);
    }
}

/// Takes the content out of an object that arrives in blocks.
pub(crate) struct Opener {
    cipher: Cipher,
    plain_bytes: u64,
    /// The next chunk's.
    index: u64,
    /// What has arrived of it.
    pending: Vec<u8>,
}

impl Opener {
    /// Opens an object with this header, of this project and with so much content.
    pub(crate) fn new(header: Header, key: &Key, project: &str, plain_bytes: u64) -> Self {
        Self {
            cipher: Cipher::new(header, key, project),
            plain_bytes,
            index: 0,
            pending: Vec::new(),
        }
    }

    /// Takes the next block of the object, and returns the content of the chunks that it completes, or says what is wrong.
    pub(crate) fn push(&mut self, block: &[u8]) -> Result<Vec<u8>, String> {
        self.pending.extend_from_slice(block);
        let mut plain = Vec::with_capacity(self.pending.len());
        let mut at = 0;
        let chunks = chunks(self.plain_bytes);
        while self.index < chunks {
            let is_last = self.index == chunks - 1;
            let length = if is_last {
                (self.plain_bytes - self.index * CHUNK_BYTES as u64) as usize
            } else {
                CHUNK_BYTES
            };
            let Some(chunk) = self.pending.get_mut(at..at + length + TAG_BYTES) else {
                break;
            };
            let opened = self.cipher.open(self.index, is_last, chunk).ok_or_else(|| {
                let number = self.index + 1;
                format!("chunk {number} of {chunks} cannot be decrypted, because it or the start was altered")
            })?;
            plain.extend_from_slice(opened);
            at += length + TAG_BYTES;
            self.index += 1;
        }
        self.pending.drain(..at);
        if self.index == chunks && !self.pending.is_empty() {
            return Err("it is longer than the storage says".to_owned());
        }
        Ok(plain)
    }

    /// Whether the object was whole, or says what is missing.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let chunks = chunks(self.plain_bytes);
        if self.index < chunks {
            return Err(format!("{} of its {chunks} encrypted chunks could be read", self.index));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;
    const PROJECT: &str = "default";

    fn ring() -> KeyRing {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, hex::encode([7; 32])).unwrap();
        KeyRing::read(&path).unwrap()
    }

    fn seal(content: &[u8], piece_bytes: usize) -> Vec<u8> {
        let mut sealer = Sealer::start(&ring(), PROJECT).unwrap();
        let mut object = sealer.header().to_vec();
        for piece in content.chunks(piece_bytes) {
            sealer.push(piece, &mut object);
        }
        sealer.finish(&mut object);
        object
    }

    fn open(object: &[u8], project: &str, block_bytes: usize) -> Result<Vec<u8>, String> {
        let keys = ring();
        let plain_bytes = plain_size(object.len() as u64).ok_or("length")?;
        let (header, rest) = object.split_at(HEADER_BYTES);
        let header = Header::parse(header.try_into().unwrap())?;
        let key = keys.find(header.key_id()).ok_or("key")?;
        let mut opener = Opener::new(header, key, project, plain_bytes);
        let mut content = Vec::new();
        for block in rest.chunks(block_bytes) {
            content.extend(opener.push(block)?);
        }
        opener.finish()?;
        Ok(content)
    }

    #[test]
    fn what_is_sealed_opens_in_its_project_only() {
        for size_bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let content: Vec<u8> = (0..size_bytes).map(|at| (at / 7) as u8).collect();
            let object = seal(&content, 10_007);
            assert_eq!(object.len() as u64, object_size(size_bytes as u64));
            for block_bytes in [4099, CHUNK_BYTES + TAG_BYTES, usize::MAX] {
                assert_eq!(open(&object, PROJECT, block_bytes).unwrap(), content);
            }
            assert!(open(&object, "other", usize::MAX).unwrap_err().contains("chunk 1 of"));
        }
    }

    #[test]
    fn no_two_objects_of_the_same_content_have_anything_in_common() {
        let [first, second] = [seal(&[0; 100], 100), seal(&[0; 100], 100)];
        assert_eq!(first[..SALT_AT], second[..SALT_AT]);
        let blocks = |object: &[u8]| object[SALT_AT..].chunks(8).map(<[u8]>::to_vec).collect::<Vec<_>>();
        for (at, block) in blocks(&first).into_iter().enumerate() {
            assert_ne!(block, blocks(&second)[at]);
        }
    }

    /// The form as it was first released. The fixtures were made with another program (Python's `cryptography`): what was
    /// stored then must open for ever.
    #[test]
    fn the_form_stays_as_it_is() {
        let header = [
            "4d595345414c4544",
            "01",
            "4bb06f8e",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        ]
        .concat();
        let small = [&header, "2cde0419f8e9631e", "9af7f424b268c46ebb6609f897959348"].concat();
        let object = hex::decode(small).unwrap();
        assert_eq!(open(&object, PROJECT, usize::MAX).unwrap(), b"treasure");

        // Three full chunks, by the digest of their object.
        let header: [u8; HEADER_BYTES] = hex::decode(header).unwrap().try_into().unwrap();
        let mut object = header.to_vec();
        let mut sealer = Sealer::after(Header::parse(header).unwrap(), ring().current(), PROJECT);
        sealer.push(&vec![0; 3 * CHUNK_BYTES], &mut object);
        sealer.finish(&mut object);
        let digest = "5242e213302f1e605446832fcbf51ee432d8562955836b8a33ebbda62c4a8833";
        assert_eq!(crate::Digest::of(&object).to_hex(), digest);
    }

    /// Without a look at the digest of the content, which would find it, too.
    #[test]
    fn chunks_open_in_their_place_of_their_object_only() {
        let sealed = CHUNK_BYTES + TAG_BYTES;
        let object = seal(&vec![0; 3 * CHUNK_BYTES], CHUNK_BYTES);
        let other = seal(&vec![0; 3 * CHUNK_BYTES], CHUNK_BYTES);
        let (header, chunks) = object.split_at(HEADER_BYTES);
        let parts: Vec<&[u8]> = chunks.chunks(sealed).collect();
        for (index, part) in parts.iter().enumerate() {
            let is_same = |other: &&[u8]| other[..CHUNK_BYTES] == part[..CHUNK_BYTES];
            assert!(!parts[..index].iter().any(is_same), "equal content shows");
        }
        let foreign = &other[HEADER_BYTES..HEADER_BYTES + sealed];
        for (forged, chunk) in [
            ([header, parts[1], parts[0], parts[2]].concat(), 1),
            ([header, parts[0], parts[0], parts[2]].concat(), 2),
            ([header, parts[0], parts[2], parts[1]].concat(), 2),
            ([header, parts[0], parts[1], parts[1]].concat(), 3),
            ([header, foreign, parts[1], parts[2]].concat(), 1),
            ([&other[..HEADER_BYTES], parts[0], parts[1], parts[2]].concat(), 1),
            ([header, parts[0], parts[1], &[]].concat(), 2),
            ([header, parts[0], &[], &[]].concat(), 1),
            ([header, parts[0], parts[1], parts[2], parts[2]].concat(), 3),
        ] {
            let problem = open(&forged, PROJECT, usize::MAX).unwrap_err();
            assert!(problem.contains(&format!("chunk {chunk} of")), "{problem}");
        }
    }

    /// The length is the storage's word, and the blocks may say otherwise.
    #[test]
    fn blocks_that_are_not_what_the_storage_announced_are_refused() {
        let object = seal(&vec![0; 2 * CHUNK_BYTES], CHUNK_BYTES);
        let (header, chunks) = object.split_first_chunk::<HEADER_BYTES>().unwrap();
        let opener = || {
            let header = Header::parse(*header).unwrap();
            Opener::new(header, ring().current(), PROJECT, 2 * CHUNK)
        };
        let mut cut = opener();
        let (most, last) = chunks.split_at(chunks.len() - 1);
        assert_eq!(cut.push(most).unwrap().len(), CHUNK_BYTES);
        assert!(cut.finish().unwrap_err().contains("1 of its 2"));
        assert_eq!(cut.push(last).unwrap().len(), CHUNK_BYTES);
        cut.finish().unwrap();
        assert!(cut.push(&[0]).unwrap_err().contains("longer"));
        assert!(opener().push(&[chunks, &[0]].concat()).unwrap_err().contains("longer"));
    }

    #[test]
    fn sizes_that_no_object_has_are_refused() {
        let header = HEADER_BYTES as u64;
        let tag = TAG_BYTES as u64;
        for object_bytes in [
            0,
            header,
            header + tag - 1,
            // An empty chunk after a full one.
            object_size(CHUNK) + tag,
            object_size(CHUNK) + 1,
        ] {
            assert_eq!(plain_size(object_bytes), None, "{object_bytes}");
        }
        assert_eq!(plain_size(header + tag), Some(0));
        assert_eq!(max_plain_size(0), 0);
    }

    proptest! {
        #[test]
        fn the_size_of_the_object_says_the_size_of_the_content(
            plain_bytes in prop_oneof![
                0..3 * CHUNK,
                (0_u64..1 << 24, 0_u64..3).prop_map(|(chunks, more)| (chunks * CHUNK + more).saturating_sub(1)),
                0_u64..1 << 50,
            ],
        ) {
            let object_bytes = object_size(plain_bytes);
            prop_assert_eq!(plain_size(object_bytes), Some(plain_bytes));
            prop_assert_eq!(max_plain_size(object_bytes), plain_bytes);
            prop_assert!(object_size(plain_bytes + 1) > object_bytes);
        }

        #[test]
        fn no_more_content_fits_than_is_said(object_bytes in object_size(0)..1 << 40) {
            let plain_bytes = max_plain_size(object_bytes);
            prop_assert!(object_size(plain_bytes) <= object_bytes);
            prop_assert!(object_size(plain_bytes + 1) > object_bytes);
            if let Some(known) = plain_size(object_bytes) {
                prop_assert_eq!(object_size(known), object_bytes);
            }
        }

        #[test]
        fn any_pieces_make_an_object_that_any_blocks_open(
            size_bytes in 0..3 * CHUNK_BYTES,
            piece_bytes in 1..2 * CHUNK_BYTES,
            block_bytes in 1_usize..200_000,
        ) {
            let content: Vec<u8> = (0..size_bytes).map(|at| (at / 3) as u8).collect();
            let object = seal(&content, piece_bytes);
            prop_assert_eq!(plain_size(object.len() as u64), Some(size_bytes as u64));
            prop_assert_eq!(open(&object, PROJECT, block_bytes).unwrap(), content);
        }
    }
}
