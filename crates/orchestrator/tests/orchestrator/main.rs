//! The orchestrator alone: its stores on both databases, its faces and its engine against a registry that the tests play.

#![expect(clippy::unwrap_used, reason = "tests")]

mod definitions;
mod engine;
mod flights;
mod registry;
mod rollouts;
mod stores;
mod world;
