//! Signatures over the chain.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use modelyard_common::Timestamp;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Error, Result, chain::Hash};
use crate::token::NoRandomBytes;

/// The bytes of a public key.
const PUBLIC_KEY: usize = 32;
/// The bytes of a public key's digest that are its id.
const KEY_ID: usize = 8;
/// What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// The signature over the hash of an event, and so over all events up to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The event's number.
    pub seq: u64,
    /// The event's hash.
    pub hash: Hash,
    /// When it was signed.
    pub at: Timestamp,
    /// The id of the key that signed.
    pub key_id: String,
    /// The Ed25519 signature, as base64.
    pub signature: String,
}

impl Checkpoint {
    /// What is signed. The first line keeps the signature from meaning anything else.
    #[must_use]
    pub fn signed_text(&self) -> String {
        format!(
            "modelyard audit checkpoint v1\n{}\n{}\n{}\n",
            self.seq, self.hash, self.at
        )
    }
}

/// The key that signs. It is not printed.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key().id())
    }
}

impl SigningKey {
    /// A new key, and its PKCS#8 form, which is to be sealed.
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn generate() -> Result<(Self, Vec<u8>)> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| NoRandomBytes)?;
        let bytes = document.as_ref().to_vec();
        Ok((Self::from_pkcs8(&bytes)?, bytes))
    }

    /// Reads the PKCS#8 form, as this or openssl writes it.
    ///
    /// # Errors
    /// Bytes that are no Ed25519 key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self> {
        // openssl leaves the public half out, which is computed then.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map_err(|_| Error::SigningKey)?;
        Ok(Self(pair))
    }

    /// The half that verifies.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let mut key = PublicKey([0; PUBLIC_KEY]);
        key.0.copy_from_slice(self.0.public_key().as_ref());
        key
    }
}

/// Signs the hash of an event.
#[must_use]
pub fn sign(key: &SigningKey, key_id: &str, seq: u64, hash: Hash, at: Timestamp) -> Checkpoint {
    let mut checkpoint = Checkpoint {
        seq,
        hash,
        at,
        key_id: key_id.to_owned(),
        signature: String::new(),
    };
    let signature = key.0.sign(checkpoint.signed_text().as_bytes());
    checkpoint.signature = STANDARD.encode(signature);
    checkpoint
}

/// The key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; PUBLIC_KEY]);

impl PublicKey {
    /// The id that checkpoints name it by: the first digits of its SHA-256.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&digest(&SHA256, &self.0).as_ref()[..KEY_ID])
    }

    /// As openssl reads it: `openssl pkey -pubin -text`.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut der = SPKI_PREFIX.to_vec();
        der.extend_from_slice(&self.0);
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(der))
    }

    /// Reads one key.
    ///
    /// # Errors
    /// A text that is not one Ed25519 key.
    pub fn from_pem(text: &str) -> Result<Self> {
        let mut keys = Self::all_from_pem(text)?;
        match (keys.pop(), keys.is_empty()) {
            (Some(key), true) => Ok(key),
            _ => Err(Error::PublicKey),
        }
    }

    /// Reads the keys of a file, one after the other: after a change of keys an older export needs the older one.
    ///
    /// # Errors
    /// A text that holds no key, or something that is no Ed25519 key.
    pub fn all_from_pem(text: &str) -> Result<Vec<Self>> {
        let mut keys = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let body = rest.strip_prefix(PEM_BEGIN).ok_or(Error::PublicKey)?;
            let (body, after) = body.split_once(PEM_END).ok_or(Error::PublicKey)?;
            let der = STANDARD.decode(body.split_whitespace().collect::<String>());
            let der = der.map_err(|_| Error::PublicKey)?;
            let key = der.strip_prefix(&SPKI_PREFIX).ok_or(Error::PublicKey)?;
            keys.push(Self(key.try_into().map_err(|_| Error::PublicKey)?));
            rest = after.trim_start();
        }
        if keys.is_empty() {
            return Err(Error::PublicKey);
        }
        Ok(keys)
    }

    /// Whether the checkpoint was signed with the other half.
    #[must_use]
    pub fn has_signed(&self, checkpoint: &Checkpoint) -> bool {
        STANDARD.decode(&checkpoint.signature).is_ok_and(|signature| {
            let key = UnparsedPublicKey::new(&ED25519, &self.0);
            key.verify(checkpoint.signed_text().as_bytes(), &signature).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    #[test]
    fn a_signature_is_for_its_own_text_and_key() {
        let (key, public) = fixture::key();
        let (_, other) = fixture::key();
        let events = fixture::chain(2);
        let checkpoint = fixture::checkpoint(&key, &events[0]);
        assert!(public.has_signed(&checkpoint));
        assert!(!other.has_signed(&checkpoint));
        assert_eq!(
            checkpoint.signed_text(),
            format!(
                "modelyard audit checkpoint v1\n1\n{}\n2026-01-02T03:04:06Z\n",
                events[0].hash
            )
        );
        for changed in [
            Checkpoint {
                seq: 2,
                ..checkpoint.clone()
            },
            Checkpoint {
                hash: events[1].hash,
                ..checkpoint.clone()
            },
            Checkpoint {
                at: events[1].at,
                ..checkpoint.clone()
            },
            Checkpoint {
                signature: checkpoint.signature.replace(&checkpoint.signature[..1], "_"),
                ..checkpoint.clone()
            },
            Checkpoint {
                signature: String::new(),
                ..checkpoint.clone()
            },
        ] {
            assert!(!public.has_signed(&changed), "{changed:?}");
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let (key, bytes) = SigningKey::generate().unwrap();
        let public = key.public_key();
        assert_eq!(SigningKey::from_pkcs8(&bytes).unwrap().public_key(), public);
        assert_eq!(PublicKey::from_pem(&public.to_pem()).unwrap(), public);
        let windows = public.to_pem().replace('\n', "\r\n");
        assert_eq!(PublicKey::from_pem(&windows).unwrap(), public);
        let (_, other) = fixture::key();
        let both = format!("{}{}", public.to_pem(), other.to_pem());
        assert_eq!(PublicKey::all_from_pem(&both).unwrap(), [public.clone(), other]);
        assert!(PublicKey::from_pem(&both).is_err());
        assert!(SigningKey::from_pkcs8(&bytes[1..]).is_err());
        for bad in [
            "",
            "nonsense",
            &public.to_pem()[..60],
            &public.to_pem().replace("MCow", "MCox"),
        ] {
            assert!(PublicKey::from_pem(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_openssl_are_read() {
        // RFC 8410, section 10: the private key without its public half, and the public key.
        let private = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = SigningKey::from_pkcs8(&STANDARD.decode(private).unwrap()).unwrap();
        assert_eq!(key.public_key().to_pem(), public);
    }

    #[test]
    fn the_signing_key_is_never_printed() {
        let (key, public) = fixture::key();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", public.id()));
    }
}
