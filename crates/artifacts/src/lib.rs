//! Content-addressed blobs on an object store: a local folder, S3 or memory.
//!
//! This crate owns the folders `projects/` and `uploads/` below the storage root. Blobs belong to a project: equal content
//! is stored once within one, and nobody learns by a digest what another project has. A blob is named by the SHA-256 of its
//! content, is written once, never changes, and is verified whenever it is read: what comes out is what went in, or an
//! error that names the blob. A blob appears whole or not at all; what a crash leaves behind lies in `uploads/` only, where
//! [`Artifacts::sweep_uploads`] removes it. It refuses to know what blobs mean and which callers may enter which project,
//! and it counts no references: whoever calls [`ProjectArtifacts::delete`] has proved that nothing refers to the blob.
//!
//! With [`EncryptionConfig`] what lies in the storage is encrypted, authenticated and bound to its project. Names and sizes
//! are not hidden, and a name, being the digest of the content, tells whoever sees it which blobs are equal.
//!
//! [`Storage`] is also the root that other data lies below (the inference log); on a local folder it makes every write
//! durable before it is acknowledged.

mod artifacts;
mod blob;
mod blocks;
mod cache;
mod digest;
mod error;
mod keys;
mod local;
mod read;
mod sealed;
pub mod signing;
mod storage;
mod write;

pub use artifacts::Artifacts;
pub use blob::{Blob, MAX_UNADDRESSED_BYTES, ProjectArtifacts, StoredBlob};
pub use blocks::BlockDigests;
pub use digest::{Digest, DigestBuilder, InvalidDigest};
pub use error::{Error, Result};
pub use keys::EncryptionConfig;
pub use read::BlobStream;
pub use storage::{S3Config, Storage, StorageConfig};
