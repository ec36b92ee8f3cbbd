//! Monitoring alone: its store on both databases, and the whole service against peers that the tests play.

#![expect(clippy::unwrap_used, reason = "tests")]

mod alerts;
mod comparisons;
mod faces;
mod peers;
mod retention;
mod scores;
mod segments;
mod stores;
mod world;
