//! What can go wrong with blobs and their storage.

use std::{
    io,
    path::{Path, PathBuf},
};

use modelyard_common::{ErrorKind, Fault, name::InvalidName};

use crate::digest::{Digest, InvalidDigest};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the storage or of a blob in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names no storage that can be opened.
    #[error("storage url `{url}` cannot be used: {problem}")]
    InvalidConfig {
        /// The configured url.
        url: String,
        /// What is wrong with it, and what to write.
        problem: String,
    },
    /// The keys of encrypted blobs cannot be read.
    #[error("the keys `{}` cannot be used: {problem}; name a readable file of keys with `storage.encryption.key_file`", path.display())]
    InvalidKeyFile {
        /// The configured file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A blob is encrypted, and the key that opens it is not there.
    #[error("blob {digest} is encrypted and cannot be read: {problem}")]
    EncryptionKey {
        /// The blob.
        digest: Digest,
        /// What is missing, and what to do.
        problem: String,
    },
    /// The machine gives no random bytes to encrypt with.
    #[error("the machine gives no random bytes to encrypt with: check its `/dev/urandom`")]
    NoRandomBytes,
    /// A text is not a digest.
    #[error(transparent)]
    InvalidDigest(#[from] InvalidDigest),
    /// A name that cannot be a project's.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// No such blob in the project.
    #[error("blob {digest} does not exist")]
    NotFound {
        /// The blob.
        digest: Digest,
    },
    /// The stored content is not what its name promises.
    #[error("blob {digest} is damaged: {problem}; restore it from a backup or upload it again")]
    Corrupt {
        /// The blob.
        digest: Digest,
        /// What differs.
        problem: String,
    },
    /// The uploaded content is not what the caller announced.
    #[error(
        "content has digest {actual} but {expected} was announced: it changed or was damaged on the way, send it again"
    )]
    DigestMismatch {
        /// What the caller announced.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// The content is larger than allowed.
    #[error("content is larger than the allowed {limit_bytes} bytes: send less, or raise the limit")]
    TooLarge {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The content's sender failed before the end.
    #[error("content ended before it was complete: send it again")]
    Interrupted {
        /// The sender's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No space is left.
    #[error("storage {place} is full: free some space or enlarge it")]
    Full {
        /// Which storage or folder.
        place: String,
        /// The storage's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The storage refuses the server's identity.
    #[error("storage {place} refuses access: give the server's user or access key the right to read and write there")]
    Denied {
        /// Which storage or folder.
        place: String,
        /// The storage's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The storage cannot be reached, or failed.
    #[error("storage {place} failed: check that it is reachable and healthy")]
    Unavailable {
        /// Which storage or folder.
        place: String,
        /// The storage's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidConfig { .. } | Self::InvalidKeyFile { .. } | Self::DigestMismatch { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::InvalidDigest(error) => error.kind(),
            Self::InvalidName(error) => error.kind(),
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Corrupt { .. } | Self::Denied { .. } => ErrorKind::FailedPrecondition,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Full { .. } => ErrorKind::ResourceExhausted,
            Self::Interrupted { .. } => ErrorKind::Aborted,
            // Whoever asks cannot mend it: whoever runs the server has the key.
            Self::EncryptionKey { .. } | Self::NoRandomBytes | Self::Unavailable { .. } => ErrorKind::Unavailable,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::InvalidConfig { .. } => "INVALID_STORAGE_CONFIG",
            Self::InvalidKeyFile { .. } => "ENCRYPTION_KEY_FILE",
            Self::EncryptionKey { .. } => "ENCRYPTION_KEY",
            Self::NoRandomBytes => "NO_RANDOM_BYTES",
            Self::InvalidDigest(error) => error.reason(),
            Self::InvalidName(error) => error.reason(),
            Self::NotFound { .. } => "BLOB_NOT_FOUND",
            Self::Corrupt { .. } => "BLOB_CORRUPT",
            Self::DigestMismatch { .. } => "DIGEST_MISMATCH",
            Self::TooLarge { .. } => "BLOB_TOO_LARGE",
            Self::Interrupted { .. } => "UPLOAD_INTERRUPTED",
            Self::Full { .. } => "STORAGE_FULL",
            Self::Denied { .. } => "STORAGE_DENIED",
            Self::Unavailable { .. } => "STORAGE_UNAVAILABLE",
        }
    }
}

impl Error {
    /// An error of the object store at `place`, sorted by what the operator has to do about it.
    pub(crate) fn of_store(place: &str, source: object_store::Error) -> Self {
        let denied = matches!(
            source,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
        );
        let place = place.to_owned();
        match io_kind(&source) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Self::Full {
                place,
                source: source.into(),
            },
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => Self::Denied {
                place,
                source: source.into(),
            },
            _ if denied => Self::Denied {
                place,
                source: source.into(),
            },
            _ => Self::Unavailable {
                place,
                source: source.into(),
            },
        }
    }

    /// An error of the local file system at `path`.
    pub(crate) fn of_file(path: &std::path::Path, source: io::Error) -> Self {
        let place = path.display().to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                place,
                source: source.into(),
            },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied {
                place,
                source: source.into(),
            },
            _ => Self::Unavailable {
                place,
                source: source.into(),
            },
        }
    }

    /// A blocking task that was cancelled or panicked.
    pub(crate) fn of_task(path: &Path, source: tokio::task::JoinError) -> Self {
        Self::Unavailable {
            place: path.display().to_string(),
            source: source.into(),
        }
    }
}

/// The kind of the first I/O error among an error's sources.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_error(kind: io::ErrorKind) -> object_store::Error {
        object_store::Error::Generic {
            store: "local",
            source: io::Error::from(kind).into(),
        }
    }

    #[test]
    fn storage_errors_are_sorted_by_remedy() {
        let full = Error::of_store("/data", store_error(io::ErrorKind::StorageFull));
        assert_eq!(full.reason(), "STORAGE_FULL");
        assert!(full.to_string().contains("/data"));
        let denied = Error::of_store("/data", store_error(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.reason(), "STORAGE_DENIED");
        let other = Error::of_store("/data", store_error(io::ErrorKind::ConnectionReset));
        assert_eq!(other.kind(), ErrorKind::Unavailable);
    }
}
