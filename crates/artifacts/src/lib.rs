//! Content-addressed blobs on an object store: a local folder, S3 or memory.
//!
//! This crate owns the folders `blobs/` and `uploads/` below the storage root. A blob is named by the SHA-256 of its
//! content, is written once, never changes, and is verified whenever it is read: what comes out is what went in, or an
//! error that names the blob. A blob appears whole or not at all; what a crash leaves behind lies in `uploads/` only, where
//! [`Artifacts::sweep_uploads`] removes it. It refuses to know what blobs mean and who may read them, and it counts no
//! references: whoever calls [`Artifacts::delete`] has proved that nothing refers to the blob.
//!
//! [`Storage`] is also the root that other data lies below (the inference log); on a local folder it makes every write
//! durable before it is acknowledged.

mod blob;
mod cache;
mod digest;
mod error;
mod local;
mod read;
mod storage;

pub use blob::{Artifacts, Blob, MAX_UNADDRESSED_BYTES, StoredBlob};
pub use digest::{Digest, DigestBuilder, InvalidDigest};
pub use error::{Error, Result};
pub use read::BlobStream;
pub use storage::{S3Config, Storage, StorageConfig};
