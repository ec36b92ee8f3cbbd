//! What clients ask about the server itself. Everybody may know.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;

use super::routes;
use crate::service::Registry;

#[derive(Serialize)]
struct ServerInfo {
    store_type: &'static str,
    workspaces_enabled: bool,
    multipart_uploads_enabled: bool,
    multipart_downloads_enabled: bool,
    presigned_upload_run_id_supported: bool,
    presigned_upload_model_id_supported: bool,
    trace_archival_enabled: bool,
    features_enabled: Features,
}

/// What MLflow's server can do beside tracking.
#[derive(Serialize)]
struct Features {
    /// Its proxy to providers of language models.
    gateway: bool,
}

async fn server_info(State(registry): State<Arc<Registry>>) -> Json<ServerInfo> {
    Json(ServerInfo {
        // The kind of store that clients take for one that can search.
        store_type: "SqlStore",
        workspaces_enabled: true,
        multipart_uploads_enabled: true,
        multipart_downloads_enabled: registry.presigns(),
        presigned_upload_run_id_supported: false,
        presigned_upload_model_id_supported: false,
        trace_archival_enabled: false,
        features_enabled: Features { gateway: false },
    })
}

routes! {
    get "/server-info" => server_info,
}
