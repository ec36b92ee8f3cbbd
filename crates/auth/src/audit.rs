//! The audit chain: who did what, in an order that nobody can change unseen.
//!
//! Each event holds the hash of the one before: `hash = SHA-256(prev_hash || canonical JSON of the event without hash)`,
//! where the first event's `prev_hash` is 32 zero bytes. A [`Checkpoint`] signs the hash of an event, and with it all that
//! came before. Whoever has the public key and an export ([`export`]) verifies it without this program: each line is the
//! canonical JSON of an event, so that `jq -cS 'del(.hash)'` gives the bytes that were hashed.
//!
//! What a chain cannot show: that its writer kept silent, and what was cut off after the newest checkpoint that is known
//! elsewhere. Checkpoints are worth most where the database's owner cannot reach them.

mod canonical;
mod chain;
mod checkpoint;
mod event;
pub mod export;
pub mod ocsf;
mod operation;
mod report;
mod verify;

#[cfg(test)]
mod fixture;

use std::io;

pub use chain::{GENESIS, Hash, InvalidHash, link};
pub use checkpoint::{Checkpoint, PublicKey, SigningKey, sign};
pub use event::{AuditEvent, MAX_DETAILS, NewEvent, Outcome, clean_text};
pub use operation::Operation;
pub use report::{MAX_PROBLEMS, Problem, Report};
pub use verify::Verifier;

use crate::token::NoRandomBytes;

/// What cannot be written into the chain, signed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number that canonical JSON here does not have.
    #[error("{0} is not an integer of at most 53 bits: audit events hold other numbers as text")]
    Number(String),
    /// No key could be made.
    #[error(transparent)]
    NoRandomBytes(#[from] NoRandomBytes),
    /// A private key that cannot be read.
    #[error(
        "the signing key cannot be read: it has to be an Ed25519 key in PKCS#8, as `openssl genpkey -algorithm ed25519 -outform DER` writes it"
    )]
    SigningKey,
    /// A public key that cannot be read.
    #[error(
        "the public key cannot be read: it has to be an Ed25519 key as PEM, beginning with `-----BEGIN PUBLIC KEY-----`"
    )]
    PublicKey,
    /// A file that is no export.
    #[error("this is no export of an audit chain: {0}")]
    NotAnExport(String),
    /// An export of a later version.
    #[error("the export has version {0}, which a later Modelyard wrote: verify it with that one")]
    Version(u32),
    /// A line that is too long.
    #[error(
        "line {line} of the export is longer than {} bytes: no event is",
        export::MAX_LINE_BYTES
    )]
    LineTooLong {
        /// The line, from one.
        line: u64,
    },
    /// The export could not be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
