//! Scorers.

use std::sync::Arc;

use axum::{Json, extract::State};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, millis},
    error::Refusal,
    read::{Fields, Tenant, missing, read_number},
    routes,
    trace_search::experiments,
};
use crate::{
    model::scorer::{ScorerOnlineConfig, ScorerVersion},
    service::Registry,
};

#[derive(Serialize)]
struct ScorerAnswer {
    experiment_id: i64,
    scorer_name: String,
    scorer_version: i64,
    serialized_scorer: String,
    #[serde(serialize_with = "millis")]
    creation_time: Timestamp,
    scorer_id: String,
}

impl From<ScorerVersion> for ScorerAnswer {
    fn from(scorer: ScorerVersion) -> Self {
        Self {
            experiment_id: scorer.experiment_id,
            scorer_name: scorer.name,
            scorer_version: scorer.version,
            serialized_scorer: scorer.serialized,
            creation_time: scorer.created_at,
            scorer_id: scorer.scorer_id,
        }
    }
}

#[derive(Serialize)]
struct Registered {
    version: i64,
    scorer_id: String,
    experiment_id: String,
    name: String,
    serialized_scorer: String,
    #[serde(serialize_with = "millis")]
    creation_time: Timestamp,
}

#[derive(Serialize)]
struct One {
    scorer: ScorerAnswer,
}

#[derive(Serialize)]
struct Listed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scorers: Vec<ScorerAnswer>,
}

impl From<Vec<ScorerVersion>> for Listed {
    fn from(scorers: Vec<ScorerVersion>) -> Self {
        Self {
            scorers: scorers.into_iter().map(ScorerAnswer::from).collect(),
        }
    }
}

#[derive(Serialize)]
struct ConfigAnswer {
    online_scoring_config_id: String,
    scorer_id: String,
    sample_rate: f64,
    experiment_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_string: Option<String>,
}

impl From<ScorerOnlineConfig> for ConfigAnswer {
    fn from(config: ScorerOnlineConfig) -> Self {
        Self {
            online_scoring_config_id: config.id,
            scorer_id: config.scorer_id,
            sample_rate: config.sample_rate,
            experiment_id: config.experiment_id.to_string(),
            filter_string: config.filter,
        }
    }
}

#[derive(Serialize)]
struct Configs {
    configs: Vec<ConfigAnswer>,
}

#[derive(Serialize)]
struct OneConfig {
    config: ConfigAnswer,
}

/// The experiment and the name that a message about one scorer has.
async fn named(registry: &Registry, tenant: &Tenant, fields: &Fields) -> Result<(i64, String), Refusal> {
    let (id, name) = (fields.required_text("experiment_id")?, fields.required_text("name")?);
    let number = registry.experiment_number(&tenant.caller, &tenant.project, &id).await?;
    Ok((number, name))
}

async fn register(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Registered>, Refusal> {
    let serialized = fields.required_text("serialized_scorer")?;
    let (number, name) = named(&registry, &tenant, &fields).await?;
    let made = registry
        .register_scorer(&tenant.caller, &tenant.project, number, &name, &serialized)
        .await?;
    Ok(Json(Registered {
        version: made.version,
        scorer_id: made.scorer_id,
        experiment_id: made.experiment_id.to_string(),
        name: made.name,
        serialized_scorer: made.serialized,
        creation_time: made.created_at,
    }))
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Listed>, Refusal> {
    let (caller, project) = (&tenant.caller, tenant.project.as_str());
    let one = fields.text("experiment_id")?.filter(|id| !id.is_empty());
    let has_many = fields.has("experiment_ids");
    if one.is_some() && has_many {
        return Err(Refusal::invalid(
            "Cannot specify both 'experiment_id' and 'experiment_ids'. Use 'experiment_ids' to scope the query to multiple \
             experiments, or 'experiment_id' to scope it to a single experiment.",
        ));
    }
    if let Some(id) = one {
        let number = registry.experiment_number(caller, project, &id).await?;
        return Ok(Json(registry.list_scorers_of(caller, project, number).await?.into()));
    }
    let numbers = experiments(&registry, &tenant, fields.texts("experiment_ids")?).await?;
    let scope = has_many.then_some(numbers.as_slice());
    Ok(Json(registry.list_scorers(caller, project, scope).await?.into()))
}

async fn versions(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Listed>, Refusal> {
    let (number, name) = named(&registry, &tenant, &fields).await?;
    let found = registry
        .list_scorer_versions(&tenant.caller, &tenant.project, number, &name)
        .await?;
    Ok(Json(found.into()))
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let version = fields.integer("version")?;
    let (number, name) = named(&registry, &tenant, &fields).await?;
    let found = registry
        .get_scorer(&tenant.caller, &tenant.project, number, &name, version)
        .await?;
    Ok(Json(One { scorer: found.into() }))
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    let version = fields.integer("version")?;
    let (number, name) = named(&registry, &tenant, &fields).await?;
    registry
        .delete_scorer(&tenant.caller, &tenant.project, number, &name, version)
        .await?;
    Ok(Json(Empty {}))
}

async fn configs(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Configs>, Refusal> {
    let ids = fields.texts("scorer_ids")?;
    if ids.is_empty() {
        return Err(missing("scorer_ids"));
    }
    let found = registry
        .scorer_online_configs(&tenant.caller, &tenant.project, &ids)
        .await?;
    Ok(Json(Configs {
        configs: found.into_iter().map(ConfigAnswer::from).collect(),
    }))
}

async fn put_config(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<OneConfig>, Refusal> {
    let rate = fields.value("sample_rate").ok_or_else(|| missing("sample_rate"))?;
    let rate = read_number("sample_rate", rate)?.ok_or_else(|| missing("sample_rate"))?;
    let filter = fields.text("filter_string")?;
    let (number, name) = named(&registry, &tenant, &fields).await?;
    let config = registry
        .put_scorer_online_config(&tenant.caller, &tenant.project, number, &name, (rate, filter))
        .await?;
    Ok(Json(OneConfig { config: config.into() }))
}

routes! {
    post "/scorers/register" => register,
    get "/scorers/list" => list,
    get "/scorers/versions" => versions,
    get "/scorers/get" => get,
    delete "/scorers/delete" => delete,
    get "/scorers/online-configs" => configs,
    put "/scorers/online-config" => put_config,
}
