//! The registry over HTTP: read, call, answer. What belongs to a project is below `/api/v1/projects/{project}`.

mod access;
mod artifacts;
mod audit;
mod collections;
mod datasets;
mod endpoints;
mod identities;
mod imports;
mod lineage;
mod models;
mod openid;
mod page;
mod projects;
mod runs;
mod sign_in;
mod webhooks;

use std::sync::Arc;

use axum::{extract::DefaultBodyLimit, middleware::from_fn_with_state};
use modelyard_auth::http::authenticate;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{model::endpoint::Outcome, service::Registry};

/// The largest JSON body, in bytes. Artifacts have their own limit.
pub const JSON_LIMIT_BYTES: usize = 8 << 20;
/// The largest batch of an import, in bytes: a run can have schemas and profiles of many datasets.
const IMPORT_LIMIT_BYTES: usize = 32 << 20;
/// Below which all routes are, but those of signing in at a provider, which name it themselves.
const PREFIX: &str = "/api/v1";
/// Below which the routes are of what belongs to a project.
const PROJECT_PREFIX: &str = "/api/v1/projects/{project}";

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
    let access = registry.access().clone();
    let known = OpenApiRouter::new()
        .nest(PROJECT_PREFIX, in_project())
        .nest(PREFIX, in_installation())
        .layer(from_fn_with_state(access, authenticate));
    let unknown = OpenApiRouter::new().nest(PREFIX, OpenApiRouter::new().routes(routes!(sign_in::sign_in)));
    known
        .merge(unknown)
        .layer(DefaultBodyLimit::max(JSON_LIMIT_BYTES))
        .with_state(Arc::clone(&registry))
        .merge(openid::router(registry))
}

fn in_project() -> OpenApiRouter<Arc<Registry>> {
    OpenApiRouter::new()
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
        .routes(routes!(models::set_bundle))
        .routes(routes!(models::get_alias, models::set_alias, models::remove_alias))
        .routes(routes!(models::alias_history))
        .routes(routes!(models::alias_at))
        .routes(routes!(lineage::get_lineage))
        .routes(routes!(runs::list_experiments))
        .routes(routes!(collections::delete_experiment))
        .routes(routes!(collections::list_collections, collections::start_collection))
        .routes(routes!(collections::get_collection))
        .routes(routes!(collections::list_collected))
        .routes(routes!(collections::get_quota, collections::put_quota))
        .routes(routes!(runs::list_runs))
        .routes(routes!(runs::get_run))
        .routes(routes!(runs::metric_history))
        .routes(routes!(endpoints::list_endpoints))
        .routes(routes!(
            endpoints::get_endpoint,
            endpoints::put_endpoint,
            endpoints::delete_endpoint
        ))
        .routes(routes!(endpoints::roll_back_endpoint))
        .routes(routes!(endpoints::list_events))
        .routes(routes!(webhooks::list_webhook_deliveries))
        .merge(of_imports())
}

fn of_imports() -> OpenApiRouter<Arc<Registry>> {
    OpenApiRouter::new()
        .routes(routes!(imports::import_experiments))
        .routes(routes!(imports::import_runs))
        .routes(routes!(imports::import_points))
        .routes(routes!(imports::import_logged_models))
        .routes(routes!(imports::import_models))
        .routes(routes!(imports::import_versions))
        .routes(routes!(imports::find_import_states))
        .routes(routes!(imports::set_import_states))
        .routes(routes!(imports::count_imported))
        .layer(DefaultBodyLimit::max(IMPORT_LIMIT_BYTES))
}

fn in_installation() -> OpenApiRouter<Arc<Registry>> {
    OpenApiRouter::new()
        .routes(routes!(projects::list_projects))
        .routes(routes!(collections::start_collections))
        .routes(routes!(
            projects::get_project,
            projects::put_project,
            projects::delete_project
        ))
        .routes(routes!(projects::list_secrets))
        .routes(routes!(projects::put_secret, projects::delete_secret))
        .routes(routes!(identities::list_users))
        .routes(routes!(
            identities::get_user,
            identities::put_user,
            identities::delete_user
        ))
        .routes(routes!(identities::set_password))
        .routes(routes!(identities::list_service_accounts))
        .routes(routes!(
            identities::get_service_account,
            identities::put_service_account,
            identities::delete_service_account
        ))
        .routes(routes!(identities::list_tokens, identities::create_token))
        .routes(routes!(identities::revoke_token))
        .routes(routes!(access::me))
        .routes(routes!(access::get_access_schema))
        .routes(routes!(access::explain))
        .routes(routes!(access::list_actions))
        .routes(routes!(access::list_roles))
        .routes(routes!(access::get_role, access::put_role, access::delete_role))
        .routes(routes!(access::list_policies))
        .routes(routes!(access::get_policy, access::put_policy, access::delete_policy))
        .routes(routes!(access::list_role_bindings))
        .routes(routes!(
            access::get_role_binding,
            access::put_role_binding,
            access::delete_role_binding
        ))
        .routes(routes!(access::list_project_role_bindings))
        .routes(routes!(
            access::get_project_role_binding,
            access::put_project_role_binding,
            access::delete_project_role_binding
        ))
        .routes(routes!(access::list_sensitive))
        .routes(routes!(access::mark_sensitive, access::unmark_sensitive))
        .routes(routes!(audit::list_audit_events))
        .routes(routes!(audit::export_audit_chain))
        .routes(routes!(audit::verify_audit_chain))
        .routes(routes!(audit::sign_audit_chain))
        .routes(routes!(audit::list_audit_keys))
        .routes(routes!(sign_in::sign_out))
}
