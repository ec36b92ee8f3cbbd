//! Helpers for tests: servers, databases, waiting. A dev-dependency only.

#![expect(clippy::missing_panics_doc, reason = "a test that cannot be set up fails")]

pub mod access;
pub mod certificates;
pub mod postgres;
pub mod wait;
