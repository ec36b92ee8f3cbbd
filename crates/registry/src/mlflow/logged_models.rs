//! Logged models.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, MetricAnswer, Pair, millis, pairs},
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
    search::limit,
};
use crate::{
    model::{
        logged_model::{LoggedModel, LoggedModelChange, LoggedModelOrder, LoggedModelSearch, LoggedModelStatus},
        run::{MAX_PARAM_BYTES, MAX_TAG_BYTES, collect_texts},
    },
    search::{LOGGED_MODELS, parse_filter, parse_logged_model_order},
    service::{LoggedModelOrderForm, Registry},
};

/// How many a page has where the client does not say.
const DEFAULT_MODELS: i64 = 100;
/// The most of a page.
const MAX_MODELS: u32 = 1000;
/// The most experiments that are searched at once.
const MAX_EXPERIMENTS: usize = 1000;

#[derive(Serialize)]
struct Info {
    experiment_id: String,
    model_id: String,
    name: String,
    artifact_uri: String,
    #[serde(serialize_with = "millis")]
    creation_timestamp_ms: Timestamp,
    #[serde(serialize_with = "millis")]
    last_updated_timestamp_ms: Timestamp,
    #[serde(skip_serializing_if = "String::is_empty")]
    model_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_run_id: Option<String>,
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
}

#[derive(Serialize)]
struct LoggedMetricAnswer {
    #[serde(flatten)]
    metric: MetricAnswer,
    model_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataset_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataset_digest: String,
}

#[derive(Serialize)]
struct Data {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    params: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<LoggedMetricAnswer>,
}

#[derive(Serialize)]
struct ModelAnswer {
    info: Info,
    data: Data,
}

impl From<LoggedModel> for ModelAnswer {
    fn from(model: LoggedModel) -> Self {
        let metrics = model.metrics.iter().map(|metric| LoggedMetricAnswer {
            metric: MetricAnswer::new(&metric.key, &metric.point, Some(&metric.run_id)),
            model_id: model.model_id.clone(),
            dataset_name: metric.dataset.0.clone(),
            dataset_digest: metric.dataset.1.clone(),
        });
        Self {
            data: Data {
                metrics: metrics.collect(),
                params: pairs(model.params.clone()),
            },
            info: Info {
                experiment_id: model.experiment_id.to_string(),
                artifact_uri: model.artifact_uri(),
                model_id: model.model_id,
                name: model.name,
                creation_timestamp_ms: model.created_at,
                last_updated_timestamp_ms: model.updated_at,
                model_type: model.model_type,
                source_run_id: model.source_run_id,
                status: model.status.message_name(),
                tags: pairs(model.tags),
            },
        }
    }
}

#[derive(Serialize)]
struct One {
    model: ModelAnswer,
}

#[derive(Serialize)]
struct Models {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<ModelAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

fn one(model: LoggedModel) -> Json<One> {
    Json(One { model: model.into() })
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let experiment = fields.required_text("experiment_id")?;
    let form = LoggedModelOrderForm {
        experiment_id: registry
            .experiment_number(&tenant.caller, &tenant.project, &experiment)
            .await?,
        name: fields.text("name")?.unwrap_or_default(),
        model_type: fields.text("model_type")?.unwrap_or_default(),
        source_run_id: fields.text("source_run_id")?.filter(|id| !id.is_empty()),
        params: collect_texts("param", fields.pairs("params")?, MAX_PARAM_BYTES)?,
        tags: collect_texts("tag", fields.pairs("tags")?, MAX_TAG_BYTES)?,
    };
    let made = registry
        .create_logged_model(&tenant.caller, &tenant.project, form)
        .await?;
    Ok(one(made))
}

async fn get(
    State(registry): State<Arc<Registry>>,
    Path(model_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let also_deleted = fields.boolean("allow_deleted")?.unwrap_or_default();
    let found = registry
        .get_logged_model(&tenant.caller, &tenant.project, &model_id, also_deleted)
        .await?;
    Ok(one(found))
}

async fn finalize(
    State(registry): State<Arc<Registry>>,
    Path(model_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    // A name, or the number of one.
    let status = match fields.integer("status") {
        Ok(Some(number)) => number.to_string(),
        _ => fields.required_text("status")?,
    };
    let status = LoggedModelStatus::of_message(&status)
        .ok_or_else(|| Refusal::invalid(format!("Invalid value '{status}' for parameter 'status' supplied.")))?;
    let change = LoggedModelChange {
        status: Some(status),
        ..LoggedModelChange::default()
    };
    let changed = registry
        .change_logged_model(&tenant.caller, &tenant.project, &model_id, &change)
        .await?;
    Ok(one(changed))
}

async fn change(
    registry: &Registry,
    tenant: &Tenant,
    model_id: &str,
    change: LoggedModelChange,
) -> Result<Json<Empty>, Refusal> {
    registry
        .change_logged_model(&tenant.caller, &tenant.project, model_id, &change)
        .await?;
    Ok(Json(Empty {}))
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    Path(model_id): Path<String>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    let deleting = LoggedModelChange {
        delete: true,
        ..LoggedModelChange::default()
    };
    change(&registry, &tenant, &model_id, deleting).await
}

async fn log_params(
    State(registry): State<Arc<Registry>>,
    Path(model_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let adding = LoggedModelChange {
        params: collect_texts("param", fields.pairs("params")?, MAX_PARAM_BYTES)?,
        ..LoggedModelChange::default()
    };
    change(&registry, &tenant, &model_id, adding).await
}

async fn set_tags(
    State(registry): State<Arc<Registry>>,
    Path(model_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let setting = LoggedModelChange {
        tags: collect_texts("tag", fields.pairs("tags")?, MAX_TAG_BYTES)?,
        ..LoggedModelChange::default()
    };
    change(&registry, &tenant, &model_id, setting).await
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    Path((model_id, key)): Path<(String, String)>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    registry
        .delete_logged_model_tag(&tenant.caller, &tenant.project, &model_id, &key)
        .await?;
    Ok(Json(Empty {}))
}

/// A dataset's name and digest.
fn dataset(fields: &Fields) -> Result<(String, String), Refusal> {
    Ok((
        fields.text("dataset_name")?.unwrap_or_default(),
        fields.text("dataset_digest")?.unwrap_or_default(),
    ))
}

fn read_offset(token: &str) -> Option<u64> {
    let text = URL_SAFE_NO_PAD.decode(token).ok()?;
    std::str::from_utf8(&text).ok()?.parse().ok()
}

async fn search(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Models>, Refusal> {
    let named: BTreeSet<String> = fields.texts("experiment_ids")?.into_iter().collect();
    if named.is_empty() {
        return Err(missing("experiment_ids"));
    }
    if named.len() > MAX_EXPERIMENTS {
        return Err(Refusal::invalid(format!(
            "{} experiments are too many at once: name at most {MAX_EXPERIMENTS}",
            named.len()
        )));
    }
    let mut experiment_ids = Vec::with_capacity(named.len());
    for id in named {
        experiment_ids.push(registry.experiment_number(&tenant.caller, &tenant.project, &id).await?);
    }
    let mut order = Vec::new();
    for term in fields.objects("order_by")? {
        let descending = !term.boolean("ascending")?.unwrap_or(true);
        order.push(LoggedModelOrder {
            order: parse_logged_model_order(&term.required_text("field_name")?, descending)
                .map_err(crate::Error::from)?,
            dataset: dataset(&term)?,
        });
    }
    let token = fields.text("page_token")?.filter(|token| !token.is_empty());
    let offset = token.map(|token| {
        read_offset(&token).ok_or_else(|| {
            Refusal::invalid("Invalid page token, could not base64-decode: pass `next_page_token` unchanged")
        })
    });
    let datasets: Vec<(String, String)> = fields
        .objects("datasets")?
        .iter()
        .map(dataset)
        .collect::<Result<_, _>>()?;
    if datasets.iter().any(|(name, _)| name.is_empty()) {
        return Err(Refusal::invalid(
            "`dataset_name` in the `datasets` clause must be specified.",
        ));
    }
    let search = LoggedModelSearch {
        experiment_ids,
        filter: parse_filter(&LOGGED_MODELS, &fields.text("filter")?.unwrap_or_default())
            .map_err(crate::Error::from)?,
        datasets,
        order,
        limit: limit(&fields, DEFAULT_MODELS, MAX_MODELS)?,
        offset: offset.transpose()?.unwrap_or_default(),
    };
    let mut found = registry
        .search_logged_models(&tenant.caller, &tenant.project, &search)
        .await?;
    let is_more = found.len() > search.limit as usize;
    found.truncate(search.limit as usize);
    let next = search.offset + u64::from(search.limit);
    Ok(Json(Models {
        models: found.into_iter().map(ModelAnswer::from).collect(),
        next_page_token: is_more.then(|| URL_SAFE_NO_PAD.encode(next.to_string())),
    }))
}

routes! {
    post "/logged-models" => create,
    post "/logged-models/search" => search,
    get "/logged-models/{model_id}" => get,
    patch "/logged-models/{model_id}" => finalize,
    delete "/logged-models/{model_id}" => delete,
    post "/logged-models/{model_id}/params" => log_params,
    patch "/logged-models/{model_id}/tags" => set_tags,
    delete "/logged-models/{model_id}/tags/{key}" => delete_tag,
}
