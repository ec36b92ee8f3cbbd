//! Versions of registered models.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, Pair, millis, pairs},
    error::Refusal,
    models::entry_query,
    read::{Fields, Tenant},
    routes,
};
use crate::{
    model::mlflow_registry::VersionEntry,
    service::{Registry, VersionOrder},
};

/// A version.
#[derive(Serialize)]
pub(super) struct VersionAnswer {
    name: String,
    version: String,
    #[serde(serialize_with = "millis")]
    creation_timestamp: Timestamp,
    #[serde(serialize_with = "millis")]
    last_updated_timestamp: Timestamp,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_id: String,
    current_stage: &'static str,
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    status_message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
    run_link: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
}

impl From<VersionEntry> for VersionAnswer {
    fn from(version: VersionEntry) -> Self {
        Self {
            name: version.model,
            version: version.version.to_string(),
            creation_timestamp: version.created_at,
            last_updated_timestamp: version.updated_at,
            user_id: version.user_id,
            current_stage: version.stage.as_str(),
            description: version.description,
            source: version.source,
            run_id: version.run_id,
            status: version.status.as_str(),
            status_message: version.status_message,
            tags: pairs(version.tags),
            run_link: version.run_link,
            aliases: version.aliases,
            model_id: version.model_id,
        }
    }
}

/// An answer with one version.
#[derive(Serialize)]
pub(super) struct OneVersion {
    model_version: VersionAnswer,
}

impl From<VersionEntry> for Json<OneVersion> {
    fn from(version: VersionEntry) -> Self {
        Self(OneVersion {
            model_version: version.into(),
        })
    }
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_versions: Vec<VersionAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct DownloadUri {
    artifact_uri: String,
}

type Answer = Result<Json<OneVersion>, Refusal>;

/// The model and the version that a message names.
fn named(fields: &Fields) -> Result<(String, String), Refusal> {
    Ok((fields.required_text("name")?, fields.required_text("version")?))
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let order = VersionOrder {
        name: fields.required_text("name")?,
        source: fields.required_text("source")?,
        run_id: fields.text("run_id")?,
        model_id: fields.text("model_id")?,
        run_link: fields.text("run_link")?.unwrap_or_default(),
        description: fields.text("description")?.unwrap_or_default(),
        tags: fields.pairs("tags")?,
    };
    let made = registry.create_version(&tenant.caller, &tenant.project, order).await?;
    Ok(made.into())
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let (name, version) = named(&fields)?;
    let found = registry
        .get_version(&tenant.caller, &tenant.project, &name, &version)
        .await?;
    Ok(found.into())
}

async fn update(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let (name, version) = named(&fields)?;
    let description = fields.text("description")?.unwrap_or_default();
    let changed = registry
        .update_version(&tenant.caller, &tenant.project, &name, &version, &description)
        .await?;
    Ok(changed.into())
}

async fn transition(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let (name, version) = named(&fields)?;
    let stage = fields.required_text("stage")?;
    let archive = fields.boolean("archive_existing_versions")?.unwrap_or(false);
    let changed = registry
        .transition_version(&tenant.caller, &tenant.project, &name, &version, &stage, archive)
        .await?;
    Ok(changed.into())
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    let (name, version) = named(&fields)?;
    registry
        .delete_version(&tenant.caller, &tenant.project, &name, &version)
        .await?;
    Ok(Json(Empty {}))
}

async fn search(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Found>, Refusal> {
    let query = entry_query(&fields)?;
    let (versions, next_page_token) = registry
        .search_versions(&tenant.caller, &tenant.project, &query)
        .await?;
    Ok(Json(Found {
        model_versions: versions.into_iter().map(VersionAnswer::from).collect(),
        next_page_token,
    }))
}

async fn download_uri(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<DownloadUri>, Refusal> {
    let (name, version) = named(&fields)?;
    let found = registry
        .get_version(&tenant.caller, &tenant.project, &name, &version)
        .await?;
    match found.download_uri() {
        Some(uri) => Ok(Json(DownloadUri {
            artifact_uri: uri.to_owned(),
        })),
        None => Err(Refusal::invalid(format!(
            "Model Version (name={name}, version={version}) was registered as an ONNX file and has no folder of MLflow: \
             download the artifact {}",
            found.artifact_digest
        ))),
    }
}

async fn set_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let (name, version) = named(&fields)?;
    let key = fields.required_text("key")?;
    let value = fields.text("value")?.unwrap_or_default();
    registry
        .tag_version(&tenant.caller, &tenant.project, &name, &version, &key, Some(&value))
        .await?;
    Ok(Json(Empty {}))
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let (name, version) = named(&fields)?;
    let key = fields.required_text("key")?;
    registry
        .tag_version(&tenant.caller, &tenant.project, &name, &version, &key, None)
        .await?;
    Ok(Json(Empty {}))
}

routes! {
    post "/model-versions/create" => create,
    get "/model-versions/get" => get,
    patch "/model-versions/update" => update,
    post "/model-versions/transition-stage" => transition,
    delete "/model-versions/delete" => delete,
    get "/model-versions/search" => search,
    get "/model-versions/get-download-uri" => download_uri,
    post "/model-versions/set-tag" => set_tag,
    delete "/model-versions/delete-tag" => delete_tag,
}
