//! Signatures of models, as the OpenSSF's model signing 1.0 has them: a Sigstore bundle v0.3 (JSON) around a DSSE envelope, whose
//! payload is an in-toto statement that lists the SHA-256 of every file. What `model_signing sign key` writes is read here, and
//! what is written here `model_signing verify key` verifies.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use modelyard_common::{ErrorKind, Fault};
use p256::{
    ecdsa::signature::{Signer as _, Verifier as _},
    pkcs8::{DecodePublicKey as _, EncodePublicKey as _, LineEnding},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::{Digest, DigestBuilder};

/// The largest bundle, in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 8 << 20;

/// The name that the only file of a model has in its bundle.
pub const ONLY_FILE: &str = ".";

/// The most signatures of one bundle.
const MAX_SIGNATURES: usize = 16;

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const HASH: &str = "sha256";
/// Every file has a digest of its own, as opposed to parts of files.
const BY_FILE: &str = "files";

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The bundle cannot be read.
    #[error(
        "the bundle cannot be used: {problem}; sign the model with `modelyard models sign` or `model_signing sign key`"
    )]
    InvalidBundle {
        /// What is wrong with it.
        problem: String,
    },
    /// The list of a model's files cannot be read.
    #[error("the list of the model's files cannot be read: {problem}; register the version again")]
    InvalidList {
        /// What is wrong with it.
        problem: String,
    },
    /// A text is no key that can be used.
    #[error("{what} cannot be used: {problem}")]
    InvalidKey {
        /// Which key.
        what: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// None of the keys has made the signature.
    #[error("none of the trusted keys has signed it: sign it with one of them, or trust the key that did")]
    NotTrusted,
    /// What is there is not what was signed.
    #[error("`{file}` {problem}: sign the model again, or find out who changed it")]
    Differs {
        /// The file.
        file: String,
        /// In what it differs.
        problem: &'static str,
    },
}

impl Fault for SigningError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidBundle { .. } | Self::InvalidKey { .. } => ErrorKind::InvalidArgument,
            Self::InvalidList { .. } | Self::NotTrusted | Self::Differs { .. } => ErrorKind::FailedPrecondition,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::InvalidBundle { .. } => "INVALID_BUNDLE",
            Self::InvalidList { .. } => "INVALID_LIST",
            Self::InvalidKey { .. } => "INVALID_KEY",
            Self::NotTrusted => "SIGNATURE_NOT_TRUSTED",
            Self::Differs { .. } => "SIGNATURE_DIFFERS",
        }
    }
}

fn invalid(problem: impl fmt::Display) -> SigningError {
    SigningError::InvalidBundle {
        problem: problem.to_string(),
    }
}

/// A file by its name below the model's folder.
pub type Files = BTreeMap<String, Digest>;

/// A public key: ECDSA on P-256 with SHA-256, or on P-384 with SHA-384.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// On P-256.
    P256(p256::ecdsa::VerifyingKey),
    /// On P-384.
    P384(p384::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads a key from PEM, as `openssl ec -pubout` writes it.
    ///
    /// # Errors
    /// `InvalidKey`.
    pub fn from_pem(text: &str) -> Result<Self, SigningError> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_pem(text) {
            return Ok(Self::P256(key));
        }
        p384::ecdsa::VerifyingKey::from_public_key_pem(text)
            .map(Self::P384)
            .map_err(|error| SigningError::InvalidKey {
                what: "the public key",
                problem: format!("{error}; write an ECDSA key on P-256 or P-384 as PEM (`openssl ec -in KEY -pubout`)"),
            })
    }

    fn to_pem(&self) -> Result<String, SigningError> {
        let pem = match self {
            Self::P256(key) => key.to_public_key_pem(LineEnding::LF),
            Self::P384(key) => key.to_public_key_pem(LineEnding::LF),
        };
        pem.map_err(|error| SigningError::InvalidKey {
            what: "the public key",
            problem: error.to_string(),
        })
    }

    /// What names the key in a bundle: the SHA-256 of its PEM, in hexadecimal digits.
    ///
    /// # Errors
    /// `InvalidKey` if it cannot be written.
    pub fn hint(&self) -> Result<String, SigningError> {
        Ok(Digest::of(self.to_pem()?.as_bytes()).to_hex())
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => p256::ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Self::P384(key) => p384::ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }
}

/// A private key, whose public half others trust.
pub enum PrivateKey {
    /// On P-256.
    P256(p256::ecdsa::SigningKey),
    /// On P-384.
    P384(p384::ecdsa::SigningKey),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// Reads a key from PEM, as `openssl ecparam -name prime256v1 -genkey -noout` or `openssl genpkey` writes it.
    ///
    /// # Errors
    /// `InvalidKey`.
    pub fn from_pem(text: &str) -> Result<Self, SigningError> {
        if let Ok(key) = p256::SecretKey::from_pem(text) {
            return Ok(Self::P256(key.into()));
        }
        p384::SecretKey::from_pem(text)
            .map(|key| Self::P384(key.into()))
            .map_err(|error| SigningError::InvalidKey {
                what: "the private key",
                problem: format!(
                    "{error}; write an ECDSA key on P-256 or P-384 as PEM without a password \
                     (`openssl ecparam -name prime256v1 -genkey -noout`)"
                ),
            })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match self {
            Self::P256(key) => PublicKey::P256(*key.verifying_key()),
            Self::P384(key) => PublicKey::P384(*key.verifying_key()),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.sign(message);
                signature.as_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.sign(message);
                signature.as_bytes().to_vec()
            }
        }
    }
}

/// A bundle that was read: what is signed, and by what signatures. Who made them is not known before
/// [`Bundle::verify`] says so.
#[derive(Debug, Clone)]
pub struct Bundle {
    files: Files,
    /// Paths whose files were left out.
    ignored: Vec<String>,
    payload: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBundle {
    media_type: String,
    dsse_envelope: WireEnvelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Deserialize)]
struct WireSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    format: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// `InvalidBundle` if it is none, signs something else than files by their SHA-256, or contradicts itself.
    pub fn read(content: &[u8]) -> Result<Self, SigningError> {
        let wire: WireBundle = serde_json::from_slice(content).map_err(invalid)?;
        expect("mediaType", BUNDLE_TYPE, &wire.media_type)?;
        let envelope = wire.dsse_envelope;
        expect("payloadType", PAYLOAD_TYPE, &envelope.payload_type)?;
        if envelope.signatures.is_empty() || envelope.signatures.len() > MAX_SIGNATURES {
            return Err(invalid(format!(
                "it has {} signatures, and 1 to {MAX_SIGNATURES} are read",
                envelope.signatures.len()
            )));
        }
        let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(invalid);
        let payload = decode(&envelope.payload)?;
        let statement: Statement = serde_json::from_slice(&payload).map_err(invalid)?;
        let (files, ignored) = statement.into_files()?;
        Ok(Self {
            files,
            ignored,
            payload,
            signatures: envelope
                .signatures
                .iter()
                .map(|signature| decode(&signature.sig))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Signs files, which are those of a model of this name; the bundle's JSON.
    ///
    /// # Errors
    /// `InvalidKey` if the key cannot be named.
    pub fn sign(model: &str, files: &Files, key: &PrivateKey) -> Result<String, SigningError> {
        let resources: Vec<Resource> = files
            .iter()
            .map(|(name, digest)| Resource {
                name: name.clone(),
                algorithm: HASH.to_owned(),
                digest: digest.to_hex(),
            })
            .collect();
        let statement = json!({
            "_type": STATEMENT_TYPE,
            "subject": [{"name": model, "digest": {HASH: root(files.values()).to_hex()}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": BY_FILE,
                    "hash_type": HASH,
                    "allow_symlinks": false,
                    "ignore_paths": [],
                },
                "resources": resources,
            },
        });
        let payload = statement.to_string();
        let signature = key.sign(&authenticated(payload.as_bytes()));
        let bundle: Value = json!({
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key.public().hint()?}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": BASE64_STANDARD.encode(signature), "keyid": ""}],
            },
        });
        Ok(bundle.to_string())
    }

    /// The files that are signed.
    #[must_use]
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// The one of these keys that has signed it.
    ///
    /// # Errors
    /// `NotTrusted` if none has.
    pub fn verify<'a>(&self, keys: &'a [PublicKey]) -> Result<&'a PublicKey, SigningError> {
        let message = authenticated(&self.payload);
        let has_signed = |key: &&PublicKey| {
            let mut signatures = self.signatures.iter();
            signatures.any(|signature| key.has_signed(&message, signature))
        };
        keys.iter().find(has_signed).ok_or(SigningError::NotTrusted)
    }

    /// Checks that a model's files are what is signed. Of a model of one file, [`ONLY_FILE`], the content must be among what is
    /// signed under any name. A folder must have no file more, none less and none other, but for those that the signer left out.
    ///
    /// # Errors
    /// `Differs` with the first file that does.
    pub fn check(&self, files: &Files) -> Result<(), SigningError> {
        match files.get(ONLY_FILE) {
            Some(only) => self.check_file(*only),
            None => self.check_folder(files),
        }
    }

    fn check_file(&self, digest: Digest) -> Result<(), SigningError> {
        if self.files.values().any(|signed| *signed == digest) {
            return Ok(());
        }
        Err(SigningError::Differs {
            file: digest.to_string(),
            problem: "is not among the files that are signed",
        })
    }

    fn check_folder(&self, files: &Files) -> Result<(), SigningError> {
        let differs = |file: &str, problem| SigningError::Differs {
            file: file.to_owned(),
            problem,
        };
        for (name, digest) in files {
            match self.files.get(name) {
                Some(signed) if signed == digest => {}
                Some(_) => return Err(differs(name, "is another one than was signed")),
                None if self.is_ignored(name) => {}
                None => return Err(differs(name, "is there and was not signed")),
            }
        }
        match self.files.keys().find(|name| !files.contains_key(*name)) {
            Some(name) => Err(differs(name, "was signed and is missing")),
            None => Ok(()),
        }
    }

    fn is_ignored(&self, name: &str) -> bool {
        let mut ignored = self.ignored.iter();
        ignored.any(|path| {
            name.strip_prefix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

impl Statement {
    /// What it says of files: those that are signed, and paths that were left out.
    fn into_files(self) -> Result<(Files, Vec<String>), SigningError> {
        expect("_type", STATEMENT_TYPE, &self.format)?;
        expect("predicateType", PREDICATE_TYPE, &self.predicate_type)?;
        let Predicate {
            serialization,
            resources,
        } = self.predicate;
        expect("method", BY_FILE, &serialization.method)?;
        expect("hash_type", HASH, &serialization.hash_type)?;
        let mut files = Files::new();
        let mut digests = Vec::with_capacity(resources.len());
        for resource in resources {
            expect("algorithm", HASH, &resource.algorithm)?;
            let digest: Digest = format!("{HASH}:{}", resource.digest).parse().map_err(invalid)?;
            digests.push(digest);
            if files.insert(resource.name.clone(), digest).is_some() {
                return Err(invalid(format!("it lists `{}` twice", resource.name)));
            }
        }
        let [subject] = self.subject.as_slice() else {
            return Err(invalid(format!("it is about {} models", self.subject.len())));
        };
        if subject.digest.get(HASH) != Some(&root(&digests).to_hex()) {
            return Err(invalid("the digest of its subject is not that of its files"));
        }
        Ok((files, serialization.ignore_paths))
    }
}

/// A description of a folder that MLflow saved a model in.
#[derive(Deserialize)]
struct Description {
    mlflow: Folder,
}

#[derive(Deserialize)]
struct Folder {
    files: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct ListedFile {
    path: String,
    digest: Digest,
}

/// The files of a model's folder, as the blob lists them that describes it: `{"mlflow": {"files": [{"path": .., "digest": ..}]}}`.
///
/// # Errors
/// `InvalidList`.
pub fn read_list(description: &[u8]) -> Result<Files, SigningError> {
    let read: Description = serde_json::from_slice(description).map_err(|error| SigningError::InvalidList {
        problem: error.to_string(),
    })?;
    let files = read.mlflow.files.into_iter();
    Ok(files.map(|file| (file.path, file.digest)).collect())
}

fn expect(what: &str, expected: &str, given: &str) -> Result<(), SigningError> {
    if given == expected {
        return Ok(());
    }
    let given: String = given.chars().take(80).collect();
    Err(invalid(format!("its {what} is `{given}`, and `{expected}` is read")))
}

/// The digest of a model: that of its files' digests, one after the other.
fn root<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut builder = DigestBuilder::default();
    for digest in digests {
        builder.update(digest.as_bytes());
    }
    builder.finish()
}

/// What a signature is over: DSSE v1's pre-authentication encoding.
fn authenticated(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests;
