//! The registry through its two faces, on each database that can be tested.
#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
mod artifacts;
mod audit;
mod collections;
mod datasets;
mod endpoints;
mod evaluation_datasets;
#[path = "../../src/fixture.rs"]
mod fixture;
mod models;
mod openid;
mod runs;
mod support;
mod traffic;
mod watch;
mod webhooks;
