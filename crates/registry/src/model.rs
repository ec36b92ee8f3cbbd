//! What the registry keeps: domain types and their rules. No database, no network, no async.

pub mod access;
pub mod alias;
pub mod artifact_file;
pub mod audit;
pub mod column;
pub mod dataset;
pub mod desired;
pub mod endpoint;
pub mod entry_search;
pub mod event;
pub mod identity;
pub mod lineage;
pub mod logged_model;
pub mod mlflow_registry;
pub mod model_source;
pub mod page;
pub mod project;
pub mod registered_model;
pub mod report;
pub mod run;
pub mod secret;
pub mod token;
pub mod tracking;
