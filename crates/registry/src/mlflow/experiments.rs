//! Experiments.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;

use super::{
    answers::{Empty, ExperimentAnswer},
    error::Refusal,
    read::{Fields, Tenant},
    routes,
};
use crate::{
    model::{
        run::collect_texts,
        tracking::{ExperimentChange, MAX_EXPERIMENT_TAG_BYTES},
    },
    service::Registry,
};

#[derive(Serialize)]
struct Created {
    experiment_id: String,
}

#[derive(Serialize)]
struct One {
    experiment: ExperimentAnswer,
}

async fn create(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Created>, Refusal> {
    let name = fields.required_text("name")?;
    let location = fields.text("artifact_location")?.unwrap_or_default();
    let tags = collect_texts("tag", fields.pairs("tags")?, MAX_EXPERIMENT_TAG_BYTES)?;
    let made = registry
        .create_experiment(&tenant.caller, &tenant.project, &name, &location, tags)
        .await?;
    Ok(Json(Created {
        experiment_id: made.experiment_id,
    }))
}

/// The number of the experiment that a message names.
async fn number(registry: &Registry, tenant: &Tenant, fields: &Fields) -> Result<i64, Refusal> {
    let id = fields.required_text("experiment_id")?;
    Ok(registry.experiment_number(&tenant.caller, &tenant.project, &id).await?)
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let number = number(&registry, &tenant, &fields).await?;
    let found = registry.get_experiment(&tenant.caller, &tenant.project, number).await?;
    Ok(Json(One {
        experiment: found.into(),
    }))
}

async fn get_by_name(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let name = fields.required_text("experiment_name")?;
    let found = registry
        .get_experiment_by_name(&tenant.caller, &tenant.project, &name)
        .await?;
    Ok(Json(One {
        experiment: found.into(),
    }))
}

async fn change(
    registry: &Registry,
    tenant: &Tenant,
    fields: &Fields,
    change: ExperimentChange,
) -> Result<Json<Empty>, Refusal> {
    let number = number(registry, tenant, fields).await?;
    registry
        .change_experiment(&tenant.caller, &tenant.project, number, &change)
        .await?;
    Ok(Json(Empty {}))
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    change(&registry, &tenant, &fields, ExperimentChange::Delete).await
}

async fn restore(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    change(&registry, &tenant, &fields, ExperimentChange::Restore).await
}

async fn update(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    let name = fields.required_text("new_name")?;
    change(&registry, &tenant, &fields, ExperimentChange::Rename(name)).await
}

async fn set_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let number = number(&registry, &tenant, &fields).await?;
    let key = fields.required_text("key")?;
    let value = fields.text("value")?.unwrap_or_default();
    registry
        .tag_experiment(&tenant.caller, &tenant.project, number, &key, Some(&value))
        .await?;
    Ok(Json(Empty {}))
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let number = number(&registry, &tenant, &fields).await?;
    let key = fields.required_text("key")?;
    registry
        .tag_experiment(&tenant.caller, &tenant.project, number, &key, None)
        .await?;
    Ok(Json(Empty {}))
}

routes! {
    post "/experiments/create" => create,
    get "/experiments/get" => get,
    get "/experiments/get-by-name" => get_by_name,
    post "/experiments/delete" => delete,
    post "/experiments/restore" => restore,
    post "/experiments/update" => update,
    post "/experiments/set-experiment-tag" => set_tag,
    post "/experiments/delete-experiment-tag" => delete_tag,
}
