//! The keys that artifacts are encrypted with: a key a line as base64 or hex, the first one seals, the others open, as in
//! `modelyard-auth`'s files of keys, which this crate must not depend on.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
/// The bytes of a key's digest that are its id.
pub(crate) const KEY_ID_BYTES: usize = 4;
/// The largest file of keys, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The most keys of a file.
const MAX_KEYS: usize = 64;

/// People paste keys with and without padding, in both alphabets.
const PASTED: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PASTED);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PASTED);

/// How artifacts are encrypted at rest, with AES-256-GCM. All processes that share the storage need the same keys.
///
/// New artifacts are encrypted. One that was stored before stays readable as it is, and is encrypted when it is stored
/// again. Without this section encrypted artifacts are refused.
///
/// Not hidden are the sizes of artifacts and the digests of their content, which name them: whoever sees the storage learns
/// which are equal and recognizes content that they have. Not encrypted are the copies that servers keep on their own disks,
/// because ONNX Runtime maps models from files, and the inference log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptionConfig {
    /// File with the keys: 32 random bytes as base64 or hex, one in a line, the first one encrypts and all decrypt. Without
    /// the key that it was encrypted with, an artifact is lost: keep a copy of the file apart from the storage.
    pub key_file: PathBuf,
}

/// What a key is known by, in the header of an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyId(pub(crate) [u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A key with its id. It is not printed.
pub(crate) struct Key {
    id: KeyId,
    bytes: [u8; KEY_BYTES],
}

impl Key {
    fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest(&SHA256, &bytes).as_ref()[..KEY_ID_BYTES]);
        Self { id: KeyId(id), bytes }
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = match text.len() {
            64 => hex::decode(text).ok()?,
            _ => BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok()?,
        };
        Some(Self::new(bytes.try_into().ok()?))
    }

    pub(crate) const fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }
}

/// The keys of a file.
pub(crate) struct KeyRing {
    current: Key,
    older: Vec<Key>,
}

impl KeyRing {
    /// Reads the file that the configuration names.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let invalid = |problem| Error::InvalidKeyFile {
            path: path.to_owned(),
            problem,
        };
        let text = read_text(path).map_err(|error| invalid(error.to_string()))?;
        Self::parse(&text).map_err(invalid)
    }

    /// Reads the keys, or says what is wrong without repeating any of the text. Empty lines, and those that begin with `#`,
    /// are passed over.
    fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let (line, text) = (index + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key =
                Key::parse(text).ok_or_else(|| format!("line {line} is no key of 32 random bytes as base64 or hex"))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("line {line} repeats the key of an earlier line"));
            }
            if keys.len() == MAX_KEYS {
                return Err(format!("there are more than {MAX_KEYS} keys"));
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let current = keys
            .next()
            .ok_or("there is no key: write one, 32 random bytes as base64 or hex, on a line of its own")?;
        Ok(Self {
            current,
            older: keys.collect(),
        })
    }

    /// The key that seals.
    pub(crate) const fn current(&self) -> &Key {
        &self.current
    }

    /// The key that something was sealed with.
    pub(crate) fn find(&self, id: KeyId) -> Option<&Key> {
        std::iter::once(&self.current)
            .chain(&self.older)
            .find(|key| key.id == id)
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than a file of keys"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use modelyard_common::Fault as _;

    use super::*;

    #[test]
    fn keys_are_read_in_the_forms_that_people_have() {
        let bytes = [0xfb; KEY_BYTES];
        for text in [
            hex::encode(bytes),
            hex::encode_upper(bytes),
            BASE64.encode(bytes),
            BASE64.encode(bytes).trim_end_matches('=').to_owned(),
            BASE64_URL.encode(bytes),
            format!("# mine\r\n\r\n  {}  \r\n", BASE64.encode(bytes)),
        ] {
            assert_eq!(*KeyRing::parse(&text).unwrap().current().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let ring = KeyRing::parse(&format!("{}\n{}\n", hex::encode([1; 32]), hex::encode([2; 32]))).unwrap();
        assert_eq!(*ring.current().bytes(), [1; 32]);
        for byte in [1, 2] {
            let id = Key::new([byte; 32]).id();
            assert_eq!(*ring.find(id).unwrap().bytes(), [byte; 32]);
        }
        assert!(ring.find(Key::new([3; 32]).id()).is_none());
        // As `modelyard-auth` names it: the start of the key's SHA-256.
        assert_eq!(Key::new([0; 32]).id().to_string(), "66687aad");
    }

    #[test]
    fn errors_name_the_line_and_no_key() {
        let key = BASE64.encode([7; KEY_BYTES]);
        let short = BASE64.encode([7; KEY_BYTES - 1]);
        let many: String = (0..=MAX_KEYS)
            .map(|n| hex::encode([n as u8; KEY_BYTES]) + "\n")
            .collect();
        for (text, expected) in [
            (String::new(), "there is no key"),
            ("# only words\n\n".to_owned(), "there is no key"),
            (format!("{key}\n{short}"), "line 2 is no key"),
            (format!("# a\n\nsecret words\n{key}"), "line 3 is no key"),
            (format!("{key}\n{}", hex::encode([7; KEY_BYTES])), "line 2 repeats"),
            (many, "more than 64 keys"),
        ] {
            let problem = KeyRing::parse(&text).err().unwrap();
            assert!(problem.contains(expected), "{problem}");
            for secret in [&key, &short, "secret words"] {
                assert!(!problem.contains(secret), "{problem}");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let key = hex::encode([7; KEY_BYTES]) + "\n";
        for (name, content) in [
            ("missing", None),
            ("empty", Some(Vec::new())),
            ("binary", Some(vec![0xff; 32])),
            ("large", Some(format!("{}{key}", "#\n".repeat(1 << 15)).into_bytes())),
        ] {
            let path = folder.path().join(name);
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = KeyRing::read(&path).err().unwrap();
            assert_eq!(error.reason(), "ENCRYPTION_KEY_FILE");
            let text = error.to_string();
            assert!(
                text.contains(name) && text.contains("storage.encryption.key_file"),
                "{text}"
            );
        }
        std::fs::write(folder.path().join("good"), key).unwrap();
        KeyRing::read(&folder.path().join("good")).unwrap();
    }
}
