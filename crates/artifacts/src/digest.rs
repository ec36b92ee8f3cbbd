//! The name of a blob.

use std::{fmt, str::FromStr};

use modelyard_common::{ErrorKind, Fault};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";
const BYTES: usize = 32;
/// How much of a wrong digest an error message repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// The SHA-256 of a blob's content, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; BYTES]);

/// A text that is not a digest.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a digest: write `sha256:` and 64 lower-case hexadecimal digits")]
pub struct InvalidDigest {
    text: String,
}

impl Fault for InvalidDigest {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    fn reason(&self) -> &'static str {
        "INVALID_DIGEST"
    }
}

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The 64 hexadecimal digits, without `sha256:`. They are the only part of a blob that ever becomes a path.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let parse = || {
            let digits = text.strip_prefix(PREFIX)?;
            // Upper case would give one blob two names.
            if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return None;
            }
            let mut bytes = [0; BYTES];
            hex::decode_to_slice(digits, &mut bytes).ok()?;
            Some(Self(bytes))
        };
        parse().ok_or_else(|| InvalidDigest {
            text: text.chars().take(SHOWN_CHARS).flat_map(char::escape_default).collect(),
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Computes a digest over content that arrives in pieces, and counts its bytes.
#[derive(Clone, Default)]
pub struct DigestBuilder {
    state: Sha256,
    size_bytes: u64,
}

impl DigestBuilder {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// The bytes taken so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.state.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_one_spelling_is_a_digest() {
        let digest = Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        let upper = text.to_uppercase();
        for wrong in [
            "",
            "sha256:",
            "sha256:abcd",
            &text[7..],
            &upper,
            "sha256:../../etc/passwd",
            "md5:00",
        ] {
            let error = wrong.parse::<Digest>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn pieces_hash_like_the_whole(content: Vec<u8>, cut in 0_usize..64) {
            let cut = cut.min(content.len());
            let mut builder = DigestBuilder::default();
            builder.update(&content[..cut]);
            builder.update(&content[cut..]);
            prop_assert_eq!(builder.size_bytes(), content.len() as u64);
            let digest = builder.finish();
            prop_assert_eq!(digest, Digest::of(&content));
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }
}
