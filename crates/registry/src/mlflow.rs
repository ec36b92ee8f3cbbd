//! MLflow's protocol, so that its clients work unchanged: reading a message, one operation of [`Registry`], the answer in MLflow's
//! words. An MLflow workspace is a project.

mod answers;
mod artifacts;
mod assessments;
mod batch;
mod error;
mod evaluation_datasets;
mod experiments;
mod identities;
mod logged_models;
mod meta;
mod metrics;
mod model_versions;
mod models;
mod old_traces;
mod otlp;
mod read;
mod roles;
mod run_artifacts;
mod runs;
mod scorers;
mod search;
mod trace_answers;
mod trace_metrics;
mod trace_search;
mod traces;
mod user_permissions;
mod users;
mod webhooks;
mod workspaces;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn_with_state, map_response},
    routing::{get, post},
};
use modelyard_auth::http::authenticate;

use crate::service::Registry;

/// The version of MLflow whose protocol this is; its clients decide by it what they use.
pub const MLFLOW_VERSION: &str = "3.17.2";
/// The largest message, in bytes: a batch of the largest texts.
const MESSAGE_LIMIT_BYTES: usize = 32 << 20;
/// Clients of programs and of pages use different beginnings for the same.
const PREFIXES: [&str; 2] = ["/api", "/ajax-api"];

/// The routes of a group, and a list of them with their methods.
macro_rules! routes {
    ($($method:ident $path:literal => $handler:ident),* $(,)?) => {
        /// Methods and paths.
        pub(super) const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        /// The routes.
        pub(super) fn routes() -> axum::Router<std::sync::Arc<$crate::service::Registry>> {
            axum::Router::new()$(.route($path, axum::routing::$method($handler)))*
        }
    };
}
use routes;

/// The groups of routes, each with what follows `/api` in its paths.
const GROUPS: &[(&str, &[(&str, &str)])] = &[
    ("/2.0/mlflow", experiments::ROUTES),
    ("/2.0/mlflow", runs::ROUTES),
    ("/2.0/mlflow", metrics::ROUTES),
    ("/2.0/mlflow", search::ROUTES),
    ("/2.0/mlflow", logged_models::ROUTES),
    ("/2.0/mlflow", models::ROUTES),
    ("/2.0/mlflow", model_versions::ROUTES),
    ("/2.0/mlflow", run_artifacts::ROUTES),
    ("/2.0/mlflow", old_traces::ROUTES),
    ("/2.0/mlflow", webhooks::ROUTES),
    ("/2.0/mlflow", users::ROUTES),
    ("/2.0/mlflow-artifacts", artifacts::ROUTES),
    ("/3.0/mlflow", traces::ROUTES),
    ("/3.0/mlflow", trace_search::ROUTES),
    ("/3.0/mlflow", trace_metrics::ROUTES),
    ("/3.0/mlflow", assessments::ROUTES),
    ("/3.0/mlflow", evaluation_datasets::ROUTES),
    ("/3.0/mlflow", scorers::ROUTES),
    ("/3.0/mlflow", workspaces::ROUTES),
    ("/3.0/mlflow", roles::ROUTES),
    ("/3.0/mlflow", user_permissions::ROUTES),
    ("/3.0/mlflow", meta::ROUTES),
];

/// All methods and paths, for whoever checks that each has its permission.
pub fn paths() -> impl Iterator<Item = (String, String)> {
    PREFIXES.into_iter().flat_map(|prefix| {
        GROUPS.iter().flat_map(move |(group, routes)| {
            routes
                .iter()
                .map(move |(method, path)| (method.to_uppercase(), format!("{prefix}{group}{path}")))
        })
    })
}

/// The routes.
pub(crate) fn router(registry: Arc<Registry>) -> Router {
    let second = experiments::routes()
        .merge(runs::routes())
        .merge(metrics::routes())
        .merge(search::routes())
        .merge(logged_models::routes())
        .merge(models::routes())
        .merge(model_versions::routes())
        .merge(run_artifacts::routes())
        .merge(old_traces::routes())
        .merge(webhooks::routes())
        .merge(users::routes());
    let third = traces::routes()
        .merge(trace_search::routes())
        .merge(trace_metrics::routes())
        .merge(assessments::routes())
        .merge(evaluation_datasets::routes())
        .merge(scorers::routes())
        .merge(workspaces::routes())
        .merge(roles::routes())
        .merge(user_permissions::routes());
    let known = PREFIXES.into_iter().fold(Router::new(), |router, prefix| {
        router
            .nest(&format!("{prefix}/2.0/mlflow"), second.clone())
            .nest(&format!("{prefix}/3.0/mlflow"), third.clone())
            .nest(&format!("{prefix}/2.0/mlflow-artifacts"), artifacts::routes())
    });
    let open = PREFIXES.into_iter().fold(Router::new(), |router, prefix| {
        router.nest(&format!("{prefix}/3.0/mlflow"), meta::routes())
    });
    // MLflow's client sends no token with the parts of an upload: each upload has a secret of its own.
    let open = open.nest("/api/2.0/mlflow-artifacts", artifacts::open_routes());
    known
        .route("/get-artifact", get(artifacts::get_of_run))
        .route("/v1/traces", post(otlp::export))
        .route("/model-versions/get-artifact", get(artifacts::get_of_version))
        .layer(from_fn_with_state(registry.access().clone(), authenticate))
        .layer(map_response(error::in_its_words))
        .merge(open)
        .layer(DefaultBodyLimit::max(MESSAGE_LIMIT_BYTES))
        .with_state(registry)
}
