//! The story of a prediction.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{model::prediction::Prediction, service::Monitoring};

/// Where to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PredictionParameters {
    /// The endpoint that answered; left out: all are looked at.
    endpoint: Option<String>,
}

/// Shows which version answered a request, what that was trained on, and how it turned out.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/predictions/{request_id}",
    tag = "monitoring",
    params(
        ("project" = String, Path, description = "The project"),
        ("request_id" = String, Path, description = "The request's id"),
        PredictionParameters
    ),
    responses((status = 200, body = Prediction), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn get_prediction(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, request_id)): Path<(String, String)>,
    Query(parameters): Query<PredictionParameters>,
) -> Result<Json<Prediction>, Problem> {
    let endpoint = parameters.endpoint.as_deref();
    Ok(Json(
        monitoring
            .get_prediction(&caller, &project, &request_id, endpoint)
            .await?,
    ))
}
