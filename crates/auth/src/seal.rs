//! Sealing: secrets as they lie in the database, and the keys that open them, which do not.
//!
//! AES-256-GCM with a random nonce. The place that a value is for is authenticated with it, so that a sealed value cannot be
//! moved to where another is opened. Keys are known by an id, and a ring holds the older ones as long as values sealed with
//! them are left: rotation is a new first key, and sealing again whatever [`KeyRing::needs_rotation`].

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD},
};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hmac,
};

use crate::token::{NoRandomBytes, fill_random};

/// The largest value that is sealed, in bytes.
pub const MAX_PLAIN_BYTES: usize = 1 << 20;
/// The most keys of a ring.
pub const MAX_KEYS: usize = 64;
/// The bytes of a key.
const KEY: usize = 32;
/// The bytes of a key's digest that are its id.
const KEY_ID: usize = 4;
/// The form of a sealed value.
const VERSION: &str = "v1";

/// People paste keys with and without padding, in both alphabets.
const PASTED: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PASTED);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PASTED);

/// Something that cannot be sealed or opened. No message holds a key or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No keys.
    #[error("there is no key: write one, 32 random bytes as base64 or hex, on a line of its own")]
    NoKeys,
    /// Too many keys.
    #[error("there are more than {MAX_KEYS} keys: remove those with which nothing is sealed any more")]
    TooManyKeys,
    /// A line that is no key.
    #[error("line {line} is no key: write 32 random bytes as base64 or hex, or begin the line with `#`")]
    Line {
        /// The line, from one.
        line: usize,
    },
    /// A key that is there twice.
    #[error("line {line} repeats the key of an earlier line: remove one of them")]
    Repeated {
        /// The line, from one.
        line: usize,
    },
    /// A value that is too large.
    #[error("a value of {bytes} bytes is too large to be sealed: at most {MAX_PLAIN_BYTES} are")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A key that is not in the ring.
    #[error("the key {id} is missing, with which the value was sealed: add it to the key file, below the first line")]
    UnknownKey {
        /// Its id.
        id: String,
    },
    /// A value that cannot be opened.
    #[error("the sealed value is damaged, or was sealed for another place: set it again")]
    Damaged,
    /// No nonce or key.
    #[error(transparent)]
    NoRandomBytes(#[from] NoRandomBytes),
}

/// A key with its id.
struct Key {
    id: String,
    bytes: [u8; KEY],
    cipher: LessSafeKey,
}

impl Key {
    fn new(bytes: [u8; KEY]) -> Result<Self, SealError> {
        let digest = digest(&SHA256, &bytes);
        let cipher = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Damaged)?;
        Ok(Self {
            id: hex::encode(&digest.as_ref()[..KEY_ID]),
            bytes,
            cipher: LessSafeKey::new(cipher),
        })
    }

    fn generate() -> Result<Self, SealError> {
        let mut bytes = [0; KEY];
        fill_random(&mut bytes)?;
        Self::new(bytes)
    }

    fn parse(text: &str) -> Option<Result<Self, SealError>> {
        let bytes = match text.len() {
            64 => hex::decode(text).ok()?,
            _ => BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok()?,
        };
        Some(Self::new(bytes.try_into().ok()?))
    }
}

/// The keys that values are sealed with and opened by. They are not printed.
pub struct KeyRing {
    current: Key,
    older: Vec<Key>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys().map(|key| &key.id)).finish()
    }
}

impl KeyRing {
    /// A ring of one new key.
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self {
            current: Key::generate()?,
            older: Vec::new(),
        })
    }

    /// Reads a ring: a key a line, as base64 or hex; the first one seals. Empty lines, and those that begin with `#`, are
    /// passed over.
    ///
    /// # Errors
    /// The line that is wrong, without its text.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let (line, text) = (index + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key = Key::parse(text).ok_or(SealError::Line { line })??;
            if keys.iter().any(|other| equal(&other.bytes, &key.bytes)) {
                return Err(SealError::Repeated { line });
            }
            keys.push(key);
            if keys.len() > MAX_KEYS {
                return Err(SealError::TooManyKeys);
            }
        }
        let mut keys = keys.into_iter();
        Ok(Self {
            current: keys.next().ok_or(SealError::NoKeys)?,
            older: keys.collect(),
        })
    }

    /// The ring as [`KeyRing::parse`] reads it: whoever has this text can open everything.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from(
            "# Keys of sealed secrets: the first one seals, all of them open. Keep a copy apart from the database.\n",
        );
        for key in self.keys() {
            text.push_str(&BASE64.encode(key.bytes));
            text.push('\n');
        }
        text
    }

    /// The ring with a new key that seals; those of before still open.
    ///
    /// # Errors
    /// No random bytes, or too many keys.
    pub fn rotated(&self) -> Result<Self, SealError> {
        let older = self
            .keys()
            .map(|key| Key::new(key.bytes))
            .collect::<Result<Vec<_>, _>>()?;
        if older.len() >= MAX_KEYS {
            return Err(SealError::TooManyKeys);
        }
        Ok(Self {
            current: Key::generate()?,
            older,
        })
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn current_id(&self) -> &str {
        &self.current.id
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.older)
    }

    /// Seals a value for a place, such as `secret/default/slack-webhook`: it opens for the same place only.
    ///
    /// # Errors
    /// A value that is too large, or no random bytes.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<String, SealError> {
        if plain.len() > MAX_PLAIN_BYTES {
            return Err(SealError::TooLarge { bytes: plain.len() });
        }
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        let key = &self.current;
        let mut payload = Vec::with_capacity(NONCE_LEN + plain.len() + MAX_TAG_LEN);
        payload.extend_from_slice(&nonce);
        payload.extend_from_slice(plain);
        let tag = key
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                place(&key.id, context),
                &mut payload[NONCE_LEN..],
            )
            .map_err(|_| SealError::TooLarge { bytes: plain.len() })?;
        payload.extend_from_slice(tag.as_ref());
        Ok(format!("{VERSION}.{}.{}", key.id, URL_SAFE_NO_PAD.encode(payload)))
    }

    /// Opens a value that was sealed for the same place.
    ///
    /// # Errors
    /// A key that is missing, or a value that is damaged or was sealed for another place.
    pub fn open(&self, context: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let (id, payload) = parts(sealed).ok_or(SealError::Damaged)?;
        let Some(key) = self.keys().find(|key| key.id == id) else {
            return Err(SealError::UnknownKey { id: id.to_owned() });
        };
        let mut payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| SealError::Damaged)?;
        let (nonce, sealed) = payload.split_at_mut_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
        let plain = key
            .cipher
            .open_in_place(nonce, place(&key.id, context), sealed)
            .map_err(|_| SealError::Damaged)?;
        Ok(plain.to_vec())
    }

    /// Whether the value was sealed with another key than the one that seals now.
    #[must_use]
    pub fn needs_rotation(&self, sealed: &str) -> bool {
        parts(sealed).is_none_or(|(id, _)| id != self.current.id)
    }
}

/// The key's id and the payload of a sealed value.
fn parts(sealed: &str) -> Option<(&str, &str)> {
    let (id, payload) = sealed.strip_prefix(VERSION)?.strip_prefix('.')?.split_once('.')?;
    let is_id = id.len() == 2 * KEY_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some((id, payload))
}

/// What is authenticated with a value.
fn place(key_id: &str, context: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("{VERSION}.{key_id}.{context}").into_bytes())
}

/// Whether two secrets are equal, in a time that depends on their lengths only.
///
/// ring's own comparison is not for others to call; its verification of HMACs compares in constant time, too.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"modelyard: are they equal");
    hmac::verify(&key, a, hmac::sign(&key, b).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: &str = "secret/default/slack-webhook";

    fn ring() -> KeyRing {
        KeyRing::generate().unwrap()
    }

    #[test]
    fn a_value_opens_where_it_was_sealed_for_only() {
        let ring = ring();
        for plain in [&b""[..], b"x", &[0; 4096]] {
            let sealed = ring.seal(PLACE, plain).unwrap();
            assert!(sealed.starts_with(&format!("v1.{}.", ring.current_id())));
            assert_eq!(ring.open(PLACE, &sealed).unwrap(), plain);
            for other in ["secret/other/slack-webhook", "", "secret/default/slack-webhook2"] {
                assert_eq!(ring.open(other, &sealed), Err(SealError::Damaged), "{other}");
            }
        }
        assert_ne!(ring.seal(PLACE, b"x").unwrap(), ring.seal(PLACE, b"x").unwrap());
        let large = vec![0; MAX_PLAIN_BYTES + 1];
        assert!(ring.seal(PLACE, &large).unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let ring = ring();
        let sealed = ring.seal(PLACE, b"treasure").unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bytes = sealed.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                if let Ok(text) = String::from_utf8(bytes) {
                    assert!(ring.open(PLACE, &text).is_err(), "byte {at}, bit {bit}");
                }
            }
            assert!(ring.open(PLACE, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn rotation_keeps_what_was_sealed_before() {
        let old = ring();
        let sealed = old.seal(PLACE, b"treasure").unwrap();
        let new = old.rotated().unwrap();
        assert_eq!(new.open(PLACE, &sealed).unwrap(), b"treasure");
        assert!(!old.needs_rotation(&sealed));
        assert!(new.needs_rotation(&sealed));
        let again = new.seal(PLACE, &new.open(PLACE, &sealed).unwrap()).unwrap();
        assert!(!new.needs_rotation(&again));
        assert!(new.needs_rotation("nonsense"));

        let error = old.open(PLACE, &again).unwrap_err().to_string();
        assert!(
            error.contains(new.current_id()) && error.contains("add it to the key file"),
            "{error}"
        );
        let read = KeyRing::parse(&new.to_text()).unwrap();
        assert_eq!(read.current_id(), new.current_id());
        assert_eq!(read.open(PLACE, &sealed).unwrap(), b"treasure");
        assert_eq!(read.open(PLACE, &again).unwrap(), b"treasure");
    }

    #[test]
    fn keys_are_read_in_the_forms_that_people_have() {
        let bytes = [0xfb; KEY];
        let id = KeyRing::parse(&hex::encode(bytes)).unwrap().current_id().to_owned();
        for text in [
            hex::encode_upper(bytes),
            BASE64.encode(bytes),
            BASE64.encode(bytes).trim_end_matches('=').to_owned(),
            BASE64_URL.encode(bytes),
            format!("# mine\r\n\r\n  {}  \r\n", BASE64.encode(bytes)),
        ] {
            assert_eq!(KeyRing::parse(&text).unwrap().current_id(), id, "{text}");
        }
    }

    #[test]
    fn errors_name_the_line_and_no_key() {
        let key = BASE64.encode([7; KEY]);
        let short = BASE64.encode([7; KEY - 1]);
        for (text, expected) in [
            (String::new(), SealError::NoKeys),
            ("# only words\n\n".to_owned(), SealError::NoKeys),
            (format!("{key}\n{short}"), SealError::Line { line: 2 }),
            (format!("# a\n\nsecret words\n{key}"), SealError::Line { line: 3 }),
            (
                format!("{key}\n{}", hex::encode([7; KEY])),
                SealError::Repeated { line: 2 },
            ),
        ] {
            let error = KeyRing::parse(&text).unwrap_err();
            assert_eq!(error, expected);
            let shown = error.to_string();
            assert!(!shown.contains(&short) && !shown.contains("secret words"), "{shown}");
        }
        let many: String = (0..=MAX_KEYS).map(|n| hex::encode([n as u8; KEY]) + "\n").collect();
        assert_eq!(KeyRing::parse(&many).unwrap_err(), SealError::TooManyKeys);
    }

    #[test]
    fn keys_are_never_printed() {
        let ring = ring();
        let shown = format!("{ring:?}");
        assert_eq!(shown, format!("[{:?}]", ring.current_id()));
    }

    #[test]
    fn equal_is_equal() {
        for (a, b, same) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "aa", false),
            ("", "a", false),
        ] {
            assert_eq!(equal(a.as_bytes(), b.as_bytes()), same);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens(plain in proptest::collection::vec(any::<u8>(), 0..200), context in ".{0,40}") {
            let ring = ring();
            let sealed = ring.seal(&context, &plain).unwrap();
            prop_assert_eq!(ring.open(&context, &sealed).unwrap(), plain);
        }

        #[test]
        fn whatever_is_opened_does_no_harm(text in ".{0,120}") {
            prop_assert!(ring().open(PLACE, &text).is_err());
        }
    }
}
