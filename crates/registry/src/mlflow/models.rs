//! Registered models.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, Pair, millis, pairs},
    error::Refusal,
    model_versions::{OneVersion, VersionAnswer},
    read::{Fields, Tenant},
    routes,
};
use crate::{
    model::mlflow_registry::ModelEntry,
    service::{EntryQuery, Registry},
};

#[derive(Serialize)]
struct AliasAnswer {
    alias: String,
    version: String,
}

/// A registered model.
#[derive(Serialize)]
struct ModelAnswer {
    name: String,
    #[serde(serialize_with = "millis")]
    creation_timestamp: Timestamp,
    #[serde(serialize_with = "millis")]
    last_updated_timestamp: Timestamp,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    latest_versions: Vec<VersionAnswer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<AliasAnswer>,
}

impl From<ModelEntry> for ModelAnswer {
    fn from(model: ModelEntry) -> Self {
        let aliases = model.aliases.into_iter().map(|(alias, version)| AliasAnswer {
            alias,
            version: version.to_string(),
        });
        Self {
            name: model.name,
            creation_timestamp: model.created_at,
            last_updated_timestamp: model.updated_at,
            description: model.description,
            latest_versions: model.latest.into_iter().map(VersionAnswer::from).collect(),
            tags: pairs(model.tags),
            aliases: aliases.collect(),
        }
    }
}

#[derive(Serialize)]
struct OneModel {
    registered_model: ModelAnswer,
}

impl From<ModelEntry> for Json<OneModel> {
    fn from(model: ModelEntry) -> Self {
        Self(OneModel {
            registered_model: model.into(),
        })
    }
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registered_models: Vec<ModelAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Versions {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_versions: Vec<VersionAnswer>,
}

/// The search that a message asks for.
pub(super) fn entry_query(fields: &Fields) -> Result<EntryQuery, Refusal> {
    Ok(EntryQuery {
        filter: fields.text("filter")?.unwrap_or_default(),
        max_results: fields.integer("max_results")?,
        order_by: fields.texts("order_by")?,
        page_token: fields.text("page_token")?,
    })
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let name = fields.required_text("name")?;
    let description = fields.text("description")?.unwrap_or_default();
    let tags = fields.pairs("tags")?;
    let made = registry
        .create_registered_model(&tenant.caller, &tenant.project, &name, &description, tags)
        .await?;
    Ok(made.into())
}

type Answer = Result<Json<OneModel>, Refusal>;

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let name = fields.required_text("name")?;
    let found = registry
        .get_registered_model(&tenant.caller, &tenant.project, &name)
        .await?;
    Ok(found.into())
}

async fn update(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let name = fields.required_text("name")?;
    let description = fields.text("description")?.unwrap_or_default();
    let changed = registry
        .update_registered_model(&tenant.caller, &tenant.project, &name, &description)
        .await?;
    Ok(changed.into())
}

async fn rename(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Answer {
    let name = fields.required_text("name")?;
    let new_name = fields.required_text("new_name")?;
    let renamed = registry
        .rename_registered_model(&tenant.caller, &tenant.project, &name, &new_name)
        .await?;
    Ok(renamed.into())
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("name")?;
    registry
        .delete_registered_model(&tenant.caller, &tenant.project, &name)
        .await?;
    Ok(Json(Empty {}))
}

async fn search(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Found>, Refusal> {
    let query = entry_query(&fields)?;
    let (models, next_page_token) = registry
        .search_registered_models(&tenant.caller, &tenant.project, &query)
        .await?;
    Ok(Json(Found {
        registered_models: models.into_iter().map(ModelAnswer::from).collect(),
        next_page_token,
    }))
}

async fn latest(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Versions>, Refusal> {
    let name = fields.required_text("name")?;
    let stages = fields.texts("stages")?;
    let versions = registry
        .latest_versions(&tenant.caller, &tenant.project, &name, &stages)
        .await?;
    Ok(Json(Versions {
        model_versions: versions.into_iter().map(VersionAnswer::from).collect(),
    }))
}

async fn set_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("name")?;
    let key = fields.required_text("key")?;
    let value = fields.text("value")?.unwrap_or_default();
    registry
        .tag_registered_model(&tenant.caller, &tenant.project, &name, &key, Some(&value))
        .await?;
    Ok(Json(Empty {}))
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("name")?;
    let key = fields.required_text("key")?;
    registry
        .tag_registered_model(&tenant.caller, &tenant.project, &name, &key, None)
        .await?;
    Ok(Json(Empty {}))
}

async fn set_alias(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("name")?;
    let alias = fields.required_text("alias")?;
    let version = fields.required_text("version")?;
    registry
        .set_registered_model_alias(&tenant.caller, &tenant.project, &name, &alias, &version)
        .await?;
    Ok(Json(Empty {}))
}

async fn delete_alias(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("name")?;
    let alias = fields.required_text("alias")?;
    registry
        .delete_registered_model_alias(&tenant.caller, &tenant.project, &name, &alias)
        .await?;
    Ok(Json(Empty {}))
}

async fn get_alias(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<OneVersion>, Refusal> {
    let name = fields.required_text("name")?;
    let alias = fields.required_text("alias")?;
    let found = registry
        .get_version_by_alias(&tenant.caller, &tenant.project, &name, &alias)
        .await?;
    Ok(found.into())
}

routes! {
    post "/registered-models/create" => create,
    get "/registered-models/get" => get,
    patch "/registered-models/update" => update,
    post "/registered-models/rename" => rename,
    delete "/registered-models/delete" => delete,
    get "/registered-models/search" => search,
    get "/registered-models/get-latest-versions" => latest,
    post "/registered-models/get-latest-versions" => latest,
    post "/registered-models/set-tag" => set_tag,
    delete "/registered-models/delete-tag" => delete_tag,
    post "/registered-models/alias" => set_alias,
    delete "/registered-models/alias" => delete_alias,
    get "/registered-models/alias" => get_alias,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_is_written_as_mlflow_does() {
        let model = ModelEntry {
            project: "default".to_owned(),
            name: "m".to_owned(),
            description: String::new(),
            aliases: vec![("champion".to_owned(), 2)],
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            latest: Vec::new(),
            created_at: Timestamp::from_micros(1_700_000_000_123_456),
            updated_at: Timestamp::from_micros(1_700_000_001_000_000),
        };
        let written = serde_json::to_value(ModelAnswer::from(model)).unwrap();
        assert_eq!(
            written,
            json!({
                "name": "m",
                "creation_timestamp": 1_700_000_000_123_i64,
                "last_updated_timestamp": 1_700_000_001_000_i64,
                "tags": [{"key": "k", "value": "v"}],
                "aliases": [{"alias": "champion", "version": "2"}],
            })
        );
    }
}
