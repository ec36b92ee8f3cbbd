//! The HTTP face, below `/api/v1/projects/{project}`.

mod alerts;
mod comparisons;
mod labels;
mod monitors;
mod predictions;
mod rules;

use std::sync::Arc;

use axum::{extract::DefaultBodyLimit, middleware::from_fn_with_state};
use modelyard_auth::{Access, http::authenticate};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::service::Monitoring;

/// The largest body of a resource, in bytes.
const MAX_RESOURCE_BYTES: usize = 1 << 20;
/// The largest body of labels, in bytes: the most labels of one request with the longest ids and texts.
const MAX_LABEL_BYTES: usize = 24 << 20;

/// The routes with their description.
pub fn router(monitoring: Arc<Monitoring>, access: Access) -> OpenApiRouter {
    let labels = OpenApiRouter::new()
        .routes(routes!(labels::add_labels))
        .layer(DefaultBodyLimit::max(MAX_LABEL_BYTES));
    OpenApiRouter::new()
        .routes(routes!(monitors::list_monitors))
        .routes(routes!(
            monitors::put_monitor,
            monitors::get_monitor,
            monitors::delete_monitor
        ))
        .routes(routes!(monitors::list_windows))
        .routes(routes!(monitors::get_window))
        .routes(routes!(rules::list_rules))
        .routes(routes!(rules::put_rule, rules::get_rule, rules::delete_rule))
        .routes(routes!(alerts::list_alerts))
        .routes(routes!(alerts::get_alert))
        .routes(routes!(predictions::get_prediction))
        .routes(routes!(comparisons::compare))
        .layer(DefaultBodyLimit::max(MAX_RESOURCE_BYTES))
        .merge(labels)
        .layer(from_fn_with_state(access, authenticate))
        .with_state(monitoring)
}
