//! Where things come from and what became of them.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    model::lineage::{Direction, Lineage},
    service::Registry,
};

/// Whose lineage is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LineageQuery {
    /// The object: `run/ID`, `experiment/ID`, `pipeline-run/ID`, `logged-model/ID`, `model/NAME/VERSION`,
    /// `model/NAME@ALIAS`, `dataset/NAME/VERSION`, `dataset-input/NAME/DIGEST`, `endpoint/NAME`, or
    /// `prediction/ENDPOINT/MODEL/VERSION` with what the inference log says of a prediction.
    of: String,
    /// Which way; both when it is left out.
    #[serde(default)]
    direction: Direction,
    /// How many edges far, 1 to 50; 10 when it is left out.
    depth: Option<u32>,
}

/// What an object was made from, and what was made from it, as a graph.
///
/// At most 500 nodes and 2,000 edges; `truncated` says that there is more. What the caller may not read is left out with
/// what only it leads to, and `hidden` says so.
#[utoipa::path(get, path = "/lineage", tag = "lineage", params(("project" = String, Path), LineageQuery),
    responses((status = OK, body = Lineage), (status = "default", body = Problem)))]
pub async fn get_lineage(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<LineageQuery>,
) -> Result<Json<Lineage>, Problem> {
    Ok(Json(
        registry
            .lineage(&caller, &project, &query.of, query.direction, query.depth)
            .await?,
    ))
}
