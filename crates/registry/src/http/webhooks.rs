//! What became of what webhooks were told. Webhooks themselves are made in MLflow's protocol.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};

use super::page::PageQuery;
use crate::{
    error::Result,
    model::{page::Page, webhook::Delivery},
    service::Registry,
};

/// The deliveries of a webhook, newest first.
///
/// What was taken or given up is kept for 30 days, at most the newest 1000.
#[utoipa::path(get, path = "/webhooks/{webhook_id}/deliveries", tag = "webhooks",
    params(("project" = String, Path), ("webhook_id" = String, Path), PageQuery),
    responses((status = OK, body = Page<Delivery>), (status = "default", body = Problem)))]
pub async fn list_webhook_deliveries(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path((project, webhook_id)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry
            .list_webhook_deliveries(&caller, &project, &webhook_id, &page)
            .await?,
    ))
}
