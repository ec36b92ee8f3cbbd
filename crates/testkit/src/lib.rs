//! Helpers for tests: servers, databases, waiting. A dev-dependency only.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot be set up fails"
)]

pub mod postgres;
pub mod wait;
