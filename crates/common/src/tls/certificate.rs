//! PEM files: what is in them, and what is wrong with them.

use std::{
    error::Error as StdError,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chrono::NaiveDateTime;
use tokio_rustls::rustls::{
    self, InconsistentKeys, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// The largest file that is read, in bytes: far above any chain, so that a wrong path does no harm.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The permission of everybody to read a file.
const READ_BY_OTHERS: u32 = 0o004;

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("`{key}`: the file `{}` cannot be read ({source}): name a PEM file that the server's user may read", file.display())]
    Unreadable {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has no certificate.
    #[error("`{key}`: `{}` has no certificate: it must have a PEM section that begins with -----BEGIN CERTIFICATE-----", file.display())]
    NoCertificate {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// The file has no key.
    #[error("`{key}`: `{}` has no private key: it must have a PEM section that begins with -----BEGIN PRIVATE KEY-----, without a passphrase", file.display())]
    NoKey {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// The key is of another certificate.
    #[error("`{key}`: the key in `{}` does not belong to the first certificate in `{}`: name the two files that were made together", file.display(), certificate.display())]
    WrongKey {
        /// The key of the configuration.
        key: &'static str,
        /// The file with the private key.
        file: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
    /// The content is no certificate or key that can be used.
    #[error("`{key}`: `{}` cannot be used ({message}): make it anew, as ECDSA P-256 or RSA from 2048 bits", file.display())]
    Unusable {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// This machine trusts nobody.
    #[error(
        "the certificates of peers cannot be checked, because this machine has no authorities of its own: set `tls.peer_ca_file` to the PEM file of the authority that signed them"
    )]
    NoAuthorities,
    /// The TLS library offers nothing.
    #[error("TLS cannot be set up")]
    Protocol(#[source] rustls::Error),
}

impl TlsError {
    /// An error of a certificate and its key, which are the first two files.
    pub(super) fn of_pair(files: &[Read], error: rustls::Error) -> Self {
        match (files, error) {
            ([certificate, key, ..], rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Self::WrongKey {
                    key: key.file.key,
                    file: key.file.path.clone(),
                    certificate: certificate.file.path.clone(),
                }
            }
            ([_, key, ..], error @ rustls::Error::General(_)) => key.unusable(&error),
            ([certificate, ..], error) => certificate.unusable(&error),
            ([], error) => Self::Protocol(error),
        }
    }
}

/// A file that the configuration names.
#[derive(Debug, Clone)]
pub(super) struct PemFile {
    key: &'static str,
    path: PathBuf,
    is_secret: bool,
}

impl PemFile {
    /// A file that everybody may read.
    pub(super) fn new(key: &'static str, path: &Path) -> Self {
        Self {
            key,
            path: path.to_owned(),
            is_secret: false,
        }
    }

    /// A file that holds a private key.
    pub(super) fn secret(key: &'static str, path: &Path) -> Self {
        Self {
            is_secret: true,
            ..Self::new(key, path)
        }
    }

    /// Reads the file as it is now.
    pub(super) fn read(&self) -> Result<Vec<u8>, TlsError> {
        self.read_bytes().map_err(|source| TlsError::Unreadable {
            key: self.key,
            file: self.path.clone(),
            source,
        })
    }

    fn read_bytes(&self) -> io::Result<Vec<u8>> {
        let size = fs::metadata(&self.path)?.len();
        if size > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "its {size} bytes are more than certificates have"
            )));
        }
        fs::read(&self.path)
    }

    /// Says when others may read a private key.
    pub(super) fn warn_of_readers(&self) {
        let Ok(metadata) = fs::metadata(&self.path) else {
            return;
        };
        if self.is_secret && metadata.permissions().mode() & READ_BY_OTHERS != 0 {
            tracing::warn!(key = self.key, file = %self.path.display(), "everybody on this machine may read the private key: run `chmod 600` on it");
        }
    }
}

/// A file with its content.
pub(super) struct Read {
    pub(super) file: PemFile,
    pub(super) content: Vec<u8>,
}

impl Read {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The certificates in it, of which there is at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.content).collect();
        let certificates = certificates.map_err(|error| self.broken(&error))?;
        if certificates.is_empty() {
            return Err(TlsError::NoCertificate {
                key: self.file.key,
                file: self.file.path.clone(),
            });
        }
        Ok(certificates)
    }

    /// The private key in it.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::NoKey {
                key: self.file.key,
                file: self.file.path.clone(),
            },
            error => self.broken(&error),
        })
    }

    /// The PEM library quotes lines, which may be those of a key: only where it stopped is told of a secret.
    fn broken(&self, error: &pem::Error) -> TlsError {
        let message = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no end".to_owned(),
            pem::Error::IllegalSectionStart { .. } => "the first line of a section is broken".to_owned(),
            pem::Error::Base64Decode(_) => "a section is not Base64".to_owned(),
            _ if self.file.is_secret => "it is not PEM".to_owned(),
            error => error.to_string(),
        };
        self.unusable_because(message)
    }

    /// The content is refused by the TLS library.
    pub(super) fn unusable(&self, error: &dyn StdError) -> TlsError {
        self.unusable_because(error.to_string())
    }

    fn unusable_because(&self, message: String) -> TlsError {
        TlsError::Unusable {
            key: self.file.key,
            file: self.file.path.clone(),
            message,
        }
    }
}

/// The authorities that this machine trusts.
pub(super) fn native_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsError::NoAuthorities);
    }
    Ok(roots)
}

/// When a chain's own certificate expires, in seconds since 1970.
pub(super) fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let mut certificate = Der(chain.first()?).find(SEQUENCE)?;
    let mut signed = certificate.find(SEQUENCE)?;
    if signed.0.first() == Some(&EXPLICIT_VERSION) {
        signed.next()?;
    }
    let (_serial, _algorithm, _issuer) = (signed.next()?, signed.next()?, signed.next()?);
    let mut validity = signed.find(SEQUENCE)?;
    let _begin = validity.next()?;
    let (tag, end) = validity.next()?;
    let end = std::str::from_utf8(end).ok()?;
    // RFC 5280, 4.1.2.5.1: two digits of a year stand for 1950 to 2049.
    let text = match tag {
        UTC_TIME if end < "50" => format!("20{end}"),
        UTC_TIME => format!("19{end}"),
        GENERALIZED_TIME => end.to_owned(),
        _ => return None,
    };
    let end = NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
    Some(end.and_utc().timestamp())
}

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The longest length field that is read, in bytes.
const MAX_LENGTH_BYTES: usize = 4;

/// Reads the elements of DER one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let bytes = usize::from(first & 0x7f);
            if bytes > MAX_LENGTH_BYTES {
                return None;
            }
            let (length, rest) = rest.split_at_checked(bytes)?;
            let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next element's content, when it has this tag.
    fn find(&mut self, tag: u8) -> Option<Self> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| Self(content))
    }
}
