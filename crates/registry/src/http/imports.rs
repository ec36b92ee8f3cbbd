//! What is brought here from other MLflow servers. Everything can be sent again: what is here already is not made twice.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::Caller;
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    model::import::{
        ImportKind, ImportState, ImportTotals, ImportedAs, ImportedExperiment, ImportedLoggedModel, ImportedModel,
        ImportedPoint, ImportedRun, ImportedVersion,
    },
    service::Registry,
};

/// Experiments of another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExperimentImport {
    /// The server that they come from, such as its URL. Everything that comes from it is sent with the same text.
    source: String,
    /// At most 100.
    experiments: Vec<ImportedExperiment>,
    /// Nothing is written: it is only said what would be.
    #[serde(default)]
    dry_run: bool,
}

/// Runs of another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunImport {
    /// The server that they come from.
    source: String,
    /// The number of their experiment here.
    experiment_id: i64,
    /// At most 100.
    runs: Vec<ImportedRun>,
}

/// Points of a metric of a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PointImport {
    /// The server that they come from.
    source: String,
    /// The run, which was imported before.
    run_id: String,
    /// The metric.
    key: String,
    /// At most 25,000.
    points: Vec<ImportedPoint>,
}

/// Logged models of another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoggedModelImport {
    /// The server that they come from.
    source: String,
    /// The number of their experiment here.
    experiment_id: i64,
    /// At most 100.
    models: Vec<ImportedLoggedModel>,
}

/// Registered models of another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelImport {
    /// The server that they come from.
    source: String,
    /// At most 100.
    models: Vec<ImportedModel>,
    /// Nothing is written: it is only said what would be.
    #[serde(default)]
    dry_run: bool,
}

/// Versions of a model of another server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VersionImport {
    /// The server that they come from.
    source: String,
    /// The name of the model there.
    source_id: String,
    /// Its name here.
    model: String,
    /// At most 100.
    versions: Vec<ImportedVersion>,
}

/// Which things are asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportStateQuery {
    /// The server that they come from.
    source: String,
    /// What they are.
    kind: ImportKind,
    /// Their ids there, at most 100.
    ids: Vec<String>,
}

/// Things of which all has arrived.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportStateChange {
    /// The server that they come from.
    source: String,
    /// What they are.
    kind: ImportKind,
    /// At most 100.
    items: Vec<ImportState>,
}

/// What is counted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportCountQuery {
    /// The server that it came from.
    source: String,
    /// The number of the experiment here.
    experiment_id: i64,
}

/// What came of it, one for each thing that was sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Imported {
    /// In the order in which they were sent.
    items: Vec<ImportedAs>,
}

/// How far the things are.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportStates {
    /// What was not begun is left out.
    items: Vec<ImportState>,
}

/// Makes experiments of another server, or finds what they are called here.
///
/// One whose name is taken by an experiment with content is refused, and nothing is written.
#[utoipa::path(post, path = "/import/experiments", tag = "import", params(("project" = String, Path)),
    request_body = ExperimentImport,
    responses((status = OK, body = Imported), (status = "default", body = Problem)))]
pub async fn import_experiments(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<ExperimentImport>,
) -> Result<Json<Imported>, Problem> {
    let items = registry
        .import_experiments(&caller, &project, &sent.source, sent.experiments, sent.dry_run)
        .await?;
    Ok(Json(Imported { items }))
}

/// Makes runs of another server, with their ids and times: all of them, or none.
#[utoipa::path(post, path = "/import/runs", tag = "import", params(("project" = String, Path)),
    request_body = RunImport,
    responses((status = OK, body = Imported), (status = "default", body = Problem)))]
pub async fn import_runs(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<RunImport>,
) -> Result<Json<Imported>, Problem> {
    let items = registry
        .import_runs(&caller, &project, &sent.source, sent.experiment_id, sent.runs)
        .await?;
    Ok(Json(Imported { items }))
}

/// Adds points to a metric of a run that was imported; of a deleted one, too.
#[utoipa::path(post, path = "/import/points", tag = "import", params(("project" = String, Path)),
    request_body = PointImport,
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn import_points(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<PointImport>,
) -> Result<StatusCode, Problem> {
    let place = (sent.run_id.as_str(), sent.key.as_str());
    registry
        .import_points(&caller, &project, &sent.source, place, &sent.points)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes logged models of another server, with their ids and times: all of them, or none.
#[utoipa::path(post, path = "/import/logged-models", tag = "import", params(("project" = String, Path)),
    request_body = LoggedModelImport,
    responses((status = OK, body = Imported), (status = "default", body = Problem)))]
pub async fn import_logged_models(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<LoggedModelImport>,
) -> Result<Json<Imported>, Problem> {
    let items = registry
        .import_logged_models(&caller, &project, &sent.source, sent.experiment_id, sent.models)
        .await?;
    Ok(Json(Imported { items }))
}

/// Makes registered models of another server, prompts among them.
///
/// One whose name is taken by a model with content is refused, and nothing is written.
#[utoipa::path(post, path = "/import/models", tag = "import", params(("project" = String, Path)),
    request_body = ModelImport,
    responses((status = OK, body = Imported), (status = "default", body = Problem)))]
pub async fn import_models(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<ModelImport>,
) -> Result<Json<Imported>, Problem> {
    let items = registry
        .import_models(&caller, &project, &sent.source, sent.models, sent.dry_run)
        .await?;
    Ok(Json(Imported { items }))
}

/// Makes versions of a model that was imported, with their numbers: all of them, or none. Their files are here already.
#[utoipa::path(post, path = "/import/versions", tag = "import", params(("project" = String, Path)),
    request_body = VersionImport,
    responses((status = OK, body = Imported), (status = "default", body = Problem)))]
pub async fn import_versions(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<VersionImport>,
) -> Result<Json<Imported>, Problem> {
    let place = (sent.source.as_str(), sent.source_id.as_str());
    let items = registry
        .import_versions(&caller, &project, place, &sent.model, sent.versions)
        .await?;
    Ok(Json(Imported { items }))
}

/// How far the import of some things is, so that one that was broken off goes on.
#[utoipa::path(post, path = "/import/states/find", tag = "import", params(("project" = String, Path)),
    request_body = ImportStateQuery,
    responses((status = OK, body = ImportStates), (status = "default", body = Problem)))]
pub async fn find_import_states(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<ImportStateQuery>,
) -> Result<Json<ImportStates>, Problem> {
    let items = registry
        .import_states(&caller, &project, &sent.source, sent.kind, &sent.ids)
        .await?;
    Ok(Json(ImportStates { items }))
}

/// Says that all of some things has arrived.
#[utoipa::path(put, path = "/import/states", tag = "import", params(("project" = String, Path)),
    request_body = ImportStateChange,
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn set_import_states(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Body(sent): Body<ImportStateChange>,
) -> Result<StatusCode, Problem> {
    registry
        .set_import_states(&caller, &project, &sent.source, sent.kind, &sent.items)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What of another server is in an experiment, counted.
#[utoipa::path(get, path = "/import/counts", tag = "import", params(("project" = String, Path), ImportCountQuery),
    responses((status = OK, body = ImportTotals), (status = "default", body = Problem)))]
pub async fn count_imported(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(project): Path<String>,
    Query(query): Query<ImportCountQuery>,
) -> Result<Json<ImportTotals>, Problem> {
    Ok(Json(
        registry
            .count_imported(&caller, &project, &query.source, query.experiment_id)
            .await?,
    ))
}
