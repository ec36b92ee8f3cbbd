//! Runs.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, RunAnswer, RunInfo},
    batch::{BatchMessage, MetricMessage},
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    model::{
        run::{Batch, MAX_BATCH, MAX_PARAM_BYTES, MAX_TAG_BYTES, RunStatus, check_key, collect_texts},
        tracking::{CONTEXT_TAG, Lifecycle, ModelRole, RUN_NAME_TAG, RunChange, RunDataset, RunModel},
    },
    service::{Registry, RunRequest},
};

#[derive(Serialize)]
struct One {
    run: RunAnswer,
}

#[derive(Serialize)]
struct Updated {
    run_info: RunInfo,
}

/// The run that a message names; old clients call it `run_uuid`.
fn run_id(fields: &Fields) -> Result<String, Refusal> {
    let old = fields.text("run_uuid")?.filter(|id| !id.is_empty());
    match fields.text("run_id")?.filter(|id| !id.is_empty()).or(old) {
        Some(id) => Ok(id),
        None => Err(missing("run_id")),
    }
}

/// Texts that are too long are cut, as MLflow does unless it was told otherwise.
fn cut(mut pairs: Vec<(String, String)>, limit_bytes: usize) -> Vec<(String, String)> {
    for (_, value) in &mut pairs {
        if value.len() > limit_bytes {
            let mut end = limit_bytes;
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            value.truncate(end);
        }
    }
    pairs
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let experiment = fields.text("experiment_id")?.unwrap_or_default();
    let experiment = if experiment.is_empty() { "0" } else { &experiment };
    let number = registry
        .experiment_number(&tenant.caller, &tenant.project, experiment)
        .await?;
    let mut tags: BTreeMap<String, String> = cut(fields.pairs("tags")?, MAX_TAG_BYTES).into_iter().collect();
    let name = fields.text("run_name")?.filter(|name| !name.is_empty());
    let tagged = tags.get(RUN_NAME_TAG).cloned();
    if let (Some(name), Some(tagged)) = (&name, &tagged)
        && name != tagged
    {
        return Err(Refusal::invalid(format!(
            "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values \
             (run_name='{name}', mlflow.runName='{tagged}')."
        )));
    }
    let name = name.or(tagged).unwrap_or_default();
    if !name.is_empty() {
        tags.insert(RUN_NAME_TAG.to_owned(), name.clone());
    }
    for key in tags.keys() {
        check_key("tag", key)?;
    }
    let request = RunRequest {
        experiment_number: Some(number),
        name,
        user_id: fields.text("user_id")?.unwrap_or_default(),
        start_time: fields
            .integer("start_time")?
            .filter(|time| *time != 0)
            .map(Timestamp::from_millis),
        tags,
        ..RunRequest::default()
    };
    let run = registry.create_run(&tenant.caller, &tenant.project, request).await?;
    Ok(Json(One { run: run.into() }))
}

async fn get(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let run = registry
        .get_run(&tenant.caller, &tenant.project, &run_id(&fields)?)
        .await?;
    Ok(Json(One { run: run.into() }))
}

async fn update(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Updated>, Refusal> {
    let change = RunChange {
        // A status that is not known is passed over, as MLflow does.
        status: fields.text("status")?.as_deref().and_then(RunStatus::parse),
        end_time: fields.integer("end_time")?.map(Timestamp::from_millis),
        name: fields.text("run_name")?.filter(|name| !name.is_empty()),
        lifecycle: None,
    };
    let run = registry
        .change_run(&tenant.caller, &tenant.project, &run_id(&fields)?, &change)
        .await?;
    Ok(Json(Updated {
        run_info: RunInfo::new(&run),
    }))
}

async fn change_lifecycle(
    registry: &Registry,
    tenant: &Tenant,
    fields: &Fields,
    lifecycle: Lifecycle,
) -> Result<Json<Empty>, Refusal> {
    let change = RunChange {
        lifecycle: Some(lifecycle),
        ..RunChange::default()
    };
    registry
        .change_run(&tenant.caller, &tenant.project, &run_id(fields)?, &change)
        .await?;
    Ok(Json(Empty {}))
}

async fn delete(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Empty>, Refusal> {
    change_lifecycle(&registry, &tenant, &fields, Lifecycle::Deleted).await
}

async fn restore(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    change_lifecycle(&registry, &tenant, &fields, Lifecycle::Active).await
}

async fn log(registry: &Registry, tenant: &Tenant, run_id: &str, batch: Batch) -> Result<Json<Empty>, Refusal> {
    registry
        .log_batch(&tenant.caller, &tenant.project, run_id, batch)
        .await?;
    Ok(Json(Empty {}))
}

async fn log_metric(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    mut fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let mut batch = Batch::default();
    let run_id = run_id(&fields)?;
    MetricMessage::take(&mut fields).read(str::to_owned, &mut batch)?;
    log(&registry, &tenant, &run_id, batch).await
}

async fn log_parameter(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let run_id = run_id(&fields)?;
    let pair = (fields.required_text("key")?, fields.text("value")?.unwrap_or_default());
    let batch = Batch {
        params: collect_texts("param", cut(vec![pair], MAX_PARAM_BYTES), MAX_PARAM_BYTES)?,
        ..Batch::default()
    };
    log(&registry, &tenant, &run_id, batch).await
}

async fn set_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let run_id = run_id(&fields)?;
    let pair = (fields.required_text("key")?, fields.text("value")?.unwrap_or_default());
    let batch = Batch {
        tags: collect_texts("tag", cut(vec![pair], MAX_TAG_BYTES), MAX_TAG_BYTES)?,
        ..Batch::default()
    };
    log(&registry, &tenant, &run_id, batch).await
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let key = fields.required_text("key")?;
    registry
        .delete_run_tag(&tenant.caller, &tenant.project, &run_id(&fields)?, &key)
        .await?;
    Ok(Json(Empty {}))
}

/// Pairs of a batch, each of which has a key.
fn keyed(fields: &Fields, name: &str) -> Result<Vec<(String, String)>, Refusal> {
    let pairs = fields.pairs(name)?;
    match pairs.iter().position(|(key, _)| key.is_empty()) {
        Some(index) => Err(missing(&format!("{name}[{index}].key"))),
        None => Ok(pairs),
    }
}

async fn log_batch(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    BatchMessage {
        fields,
        metrics,
        left_out,
    }: BatchMessage,
) -> Result<Json<Empty>, Refusal> {
    let run_id = run_id(&fields)?;
    if left_out > 0 {
        return Err(Refusal::invalid(format!(
            "A batch logging request can contain at most {MAX_BATCH} metrics. Got {} metrics. Please split up metrics across \
             multiple requests and try again.",
            metrics.len() + left_out
        )));
    }
    let mut batch = Batch::default();
    for (index, metric) in metrics.iter().enumerate() {
        metric.read(|field| format!("metrics[{index}].{field}"), &mut batch)?;
    }
    let params = cut(keyed(&fields, "params")?, MAX_PARAM_BYTES);
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, value) in &params {
        if seen.insert(key, value).is_some() {
            return Err(Refusal::invalid(format!(
                "Duplicate parameter keys have been submitted: ['{key}']. Please ensure the request contains only one \
                 param value per param key."
            )));
        }
    }
    batch.params = collect_texts("param", params, MAX_PARAM_BYTES)?;
    // Of a tag that comes twice the last value stays.
    let tags: BTreeMap<String, String> = cut(keyed(&fields, "tags")?, MAX_TAG_BYTES).into_iter().collect();
    batch.tags = collect_texts("tag", tags, MAX_TAG_BYTES)?;
    log(&registry, &tenant, &run_id, batch).await
}

fn read_dataset(input: &Fields) -> Result<RunDataset, Refusal> {
    let dataset = input.object("dataset")?.ok_or_else(|| missing("dataset"))?;
    let mut tags = input.pairs("tags")?;
    let context = tags.iter().position(|(key, _)| key == CONTEXT_TAG);
    let context = context.map(|place| tags.remove(place).1).unwrap_or_default();
    Ok(RunDataset {
        name: dataset.required_text("name")?,
        digest: dataset.required_text("digest")?,
        context,
        source_type: dataset.required_text("source_type")?,
        source: dataset.required_text("source")?,
        schema: dataset.text("schema")?,
        profile: dataset.text("profile")?,
        tags,
    })
}

fn read_model(fields: &Fields, role: ModelRole) -> Result<RunModel, Refusal> {
    Ok(RunModel {
        model_id: fields.required_text("model_id")?,
        role,
        step: fields.integer("step")?.unwrap_or_default(),
    })
}

async fn log_inputs(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let run_id = run_id(&fields)?;
    let datasets = fields.objects("datasets")?;
    let datasets: Vec<_> = datasets.iter().map(read_dataset).collect::<Result<_, _>>()?;
    let models = fields.objects("models")?;
    let models = models.iter().map(|model| read_model(model, ModelRole::Input));
    let models: Vec<_> = models.collect::<Result<_, _>>()?;
    registry
        .add_run_links(&tenant.caller, &tenant.project, &run_id, &datasets, &models)
        .await?;
    Ok(Json(Empty {}))
}

async fn log_outputs(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let run_id = run_id(&fields)?;
    let models = fields.objects("models")?;
    let models = models.iter().map(|model| read_model(model, ModelRole::Output));
    let models: Vec<_> = models.collect::<Result<_, _>>()?;
    registry
        .add_run_links(&tenant.caller, &tenant.project, &run_id, &[], &models)
        .await?;
    Ok(Json(Empty {}))
}

/// What old clients tell of a model that they log: it is in the run's tags.
async fn log_model(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    const HISTORY: &str = "mlflow.log-model.history";
    let run_id = run_id(&fields)?;
    let said = fields.required_text("model_json")?;
    let model: serde_json::Value = serde_json::from_str(&said)
        .map_err(|_| Refusal::invalid(format!("Malformed model info. \n {said} \n is not a valid JSON.")))?;
    let run = registry.get_run(&tenant.caller, &tenant.project, &run_id).await?;
    let before = run.tags.get(HISTORY);
    let mut history: Vec<serde_json::Value> = before
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    history.push(model);
    let history = serde_json::Value::from(history).to_string();
    let batch = Batch {
        tags: collect_texts("tag", [(HISTORY.to_owned(), history)], MAX_TAG_BYTES)?,
        ..Batch::default()
    };
    log(&registry, &tenant, &run_id, batch).await
}

routes! {
    post "/runs/create" => create,
    get "/runs/get" => get,
    post "/runs/update" => update,
    post "/runs/delete" => delete,
    post "/runs/restore" => restore,
    post "/runs/log-metric" => log_metric,
    post "/runs/log-parameter" => log_parameter,
    post "/runs/log-batch" => log_batch,
    post "/runs/log-model" => log_model,
    post "/runs/log-inputs" => log_inputs,
    post "/runs/outputs" => log_outputs,
    post "/runs/set-tag" => set_tag,
    post "/runs/delete-tag" => delete_tag,
}
