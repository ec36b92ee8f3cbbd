//! The versions of an endpoint beside each other.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    Timestamp,
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    model::comparison::Comparison,
    service::{ComparisonRequest, Monitoring},
};

/// What is to be compared.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ComparisonParameters {
    /// The version that the others are compared with, as `MODEL/VERSION`; left out: the one that answered most.
    baseline: Option<String>,
    /// Where the slice of event time begins; left out: a week before its end.
    start: Option<Timestamp>,
    /// Where it ends; left out: now.
    end: Option<Timestamp>,
}

/// Compares the versions of an endpoint that answered live.
///
/// By their latency, by what came of their predictions, and by how right they were, each with the significance of the difference.
#[utoipa::path(
    get,
    path = "/api/v1/projects/{project}/comparisons/{name}",
    tag = "monitoring",
    params(
        ("project" = String, Path, description = "The project"), ("name" = String, Path, description = "The endpoint"),
        ComparisonParameters
    ),
    responses((status = 200, body = Comparison), (status = "default", description = "A refusal", body = Problem))
)]
pub async fn compare(
    State(monitoring): State<Arc<Monitoring>>,
    caller: Caller,
    Path((project, endpoint)): Path<(String, String)>,
    Query(parameters): Query<ComparisonParameters>,
) -> Result<Json<Comparison>, Problem> {
    let request = ComparisonRequest {
        baseline: parameters.baseline,
        start: parameters.start,
        end: parameters.end,
    };
    Ok(Json(monitoring.compare(&caller, &project, &endpoint, request).await?))
}
