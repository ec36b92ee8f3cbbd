//! What the registry keeps: domain types and their rules. No database, no network, no async.

pub mod alias;
pub mod column;
pub mod dataset;
pub mod desired;
pub mod endpoint;
pub mod event;
pub mod page;
pub mod registered_model;
pub mod report;
pub mod run;
