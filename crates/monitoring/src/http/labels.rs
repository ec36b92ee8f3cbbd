//! Labels.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path},
};

use crate::{
    model::label::{LabelRequest, LabelsAccepted},
    service::Monitoring,
};

/// Stores what turned out to be true of predictions.
///
/// Of several labels of a row the latest observed holds. Sending the same labels again changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/projects/{project}/labels",
    tag = "monitoring",
    params(("project" = String, Path, description = "The project")),
    request_body = LabelRequest,
    responses(
        (status = 202, description = "Stored, and soon scored", body = LabelsAccepted),
        (status = "default", description = "A refusal", body = Problem)
    )
)]
pub async fn add_labels(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(request): Body<LabelRequest>,
) -> Result<(StatusCode, Json<LabelsAccepted>), Problem> {
    let accepted = monitoring.add_labels(&caller, &project, request).await?;
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}
