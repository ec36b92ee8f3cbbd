//! The registry over HTTP: extract, call, answer. Everything is below `/api/v1/projects/{project}`.

mod artifacts;
mod datasets;
mod endpoints;
mod extract;
mod models;
mod runs;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{model::endpoint::Outcome, service::Registry};

/// The largest JSON body, in bytes. Artifacts have their own limit.
pub const JSON_LIMIT_BYTES: usize = 8 << 20;
/// Below which all routes are.
const PREFIX: &str = "/api/v1/projects/{project}";
/// Who changes things over HTTP: nobody is known by name.
const CALLER: &str = "anonymous";

/// What declaring a resource did.
#[derive(Debug, Serialize, ToSchema)]
struct Declared<T> {
    /// Whether it is new, another, or as it was.
    outcome: Outcome,
    /// The resource.
    resource: T,
}

/// The routes, with their description.
pub fn router(registry: Arc<Registry>) -> OpenApiRouter {
    let routes = OpenApiRouter::new()
        .routes(routes!(artifacts::put_artifact))
        .routes(routes!(artifacts::get_artifact, artifacts::head_artifact))
        .routes(routes!(datasets::list_datasets))
        .routes(routes!(
            datasets::list_dataset_versions,
            datasets::create_dataset_version
        ))
        .routes(routes!(datasets::get_dataset_version))
        .routes(routes!(datasets::get_dataset_profile))
        .routes(routes!(models::list_models))
        .routes(routes!(models::get_model))
        .routes(routes!(models::list_model_versions, models::create_model_version))
        .routes(routes!(models::get_model_version))
        .routes(routes!(models::get_alias, models::set_alias, models::remove_alias))
        .routes(routes!(models::alias_history))
        .routes(routes!(runs::list_experiments))
        .routes(routes!(runs::list_runs))
        .routes(routes!(runs::get_run))
        .routes(routes!(runs::metric_history))
        .routes(routes!(endpoints::list_endpoints))
        .routes(routes!(
            endpoints::get_endpoint,
            endpoints::put_endpoint,
            endpoints::delete_endpoint
        ))
        .routes(routes!(endpoints::list_events))
        .layer(DefaultBodyLimit::max(JSON_LIMIT_BYTES))
        .with_state(registry);
    OpenApiRouter::new().nest(PREFIX, routes)
}
