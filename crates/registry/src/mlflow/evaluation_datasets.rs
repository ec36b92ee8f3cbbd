//! Evaluation datasets and their records.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, millis},
    error::Refusal,
    read::{Fields, Tenant},
    routes,
};
use crate::{
    model::{
        evaluation_dataset::EvaluationDataset,
        evaluation_record::EvaluationRecord,
        json::{Json as Value, push_text},
    },
    service::{EvaluationDatasetQuery, Registry},
};

#[derive(Serialize)]
struct DatasetAnswer {
    dataset_id: String,
    name: String,
    /// A JSON object.
    tags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    digest: String,
    #[serde(serialize_with = "millis")]
    created_time: Timestamp,
    #[serde(serialize_with = "millis")]
    last_update_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_updated_by: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experiment_ids: Vec<String>,
}

fn tags_text(tags: BTreeMap<String, String>) -> String {
    let fields = tags.into_iter().map(|(key, value)| (key, Value::Text(value)));
    Value::Object(fields.collect()).dump()
}

impl From<EvaluationDataset> for DatasetAnswer {
    fn from(dataset: EvaluationDataset) -> Self {
        Self {
            profile: dataset.profile(),
            dataset_id: dataset.dataset_id,
            name: dataset.name,
            tags: tags_text(dataset.tags),
            schema: dataset.schema,
            digest: dataset.digest,
            created_time: dataset.created_at,
            last_update_time: dataset.updated_at,
            created_by: dataset.created_by,
            last_updated_by: dataset.updated_by,
            experiment_ids: Vec::new(),
        }
    }
}

#[derive(Serialize)]
struct One {
    dataset: DatasetAnswer,
}

fn one(dataset: EvaluationDataset) -> Json<One> {
    Json(One {
        dataset: dataset.into(),
    })
}

#[derive(Serialize)]
struct Datasets {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datasets: Vec<DatasetAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Experiments {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experiment_ids: Vec<String>,
}

#[derive(Serialize)]
struct Counts {
    inserted_count: u64,
    updated_count: u64,
}

#[derive(Serialize)]
struct Records {
    /// A JSON list.
    records: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Deleted {
    deleted_count: u64,
}

/// Adds a record. What is JSON already is not read again.
fn push_record(out: &mut String, record: &EvaluationRecord) {
    let mut separator = "{";
    let mut name = |out: &mut String, name: &str| {
        out.push_str(separator);
        push_text(name, out);
        out.push_str(": ");
        separator = ", ";
    };
    for (field, text) in [
        ("dataset_record_id", Some(&record.record_id)),
        ("dataset_id", Some(&record.dataset_id)),
        ("source_id", record.source_id.as_ref()),
        ("source_type", record.source_type.as_ref()),
        ("created_by", record.created_by.as_ref()),
        ("last_updated_by", record.updated_by.as_ref()),
    ] {
        if let Some(text) = text {
            name(out, field);
            push_text(text, out);
        }
    }
    for (field, json) in [
        ("inputs", Some(&record.inputs)),
        ("outputs", record.outputs.as_ref()),
        ("expectations", record.expectations.as_ref()),
        ("tags", Some(&record.tags)),
        ("source", record.source.as_ref()),
    ] {
        if let Some(json) = json {
            name(out, field);
            out.push_str(json);
        }
    }
    for (field, time) in [
        ("created_time", record.created_at),
        ("last_update_time", record.updated_at),
    ] {
        name(out, field);
        out.push_str(&time.as_millis().to_string());
    }
    out.push('}');
}

fn records_text(records: &[EvaluationRecord]) -> String {
    let mut out = "[".to_owned();
    for (place, record) in records.iter().enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        push_record(&mut out, record);
    }
    out.push(']');
    out
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let name = fields.required_text("name")?;
    let experiment_ids = fields.texts("experiment_ids")?;
    let tags = fields.text("tags")?.unwrap_or_default();
    let made = registry
        .create_evaluation_dataset(&tenant.caller, &tenant.project, &name, &tags, &experiment_ids)
        .await?;
    let mut answer = DatasetAnswer::from(made);
    answer.experiment_ids = experiment_ids;
    Ok(Json(One { dataset: answer }))
}

async fn get(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
) -> Result<Json<One>, Refusal> {
    let found = registry
        .get_evaluation_dataset(&tenant.caller, &tenant.project, &id)
        .await?;
    Ok(one(found))
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    registry
        .delete_evaluation_dataset(&tenant.caller, &tenant.project, &id)
        .await?;
    Ok(Json(Empty {}))
}

async fn search(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Datasets>, Refusal> {
    let query = EvaluationDatasetQuery {
        experiment_ids: fields.texts("experiment_ids")?,
        filter: fields.text("filter_string")?.unwrap_or_default(),
        order_by: fields.texts("order_by")?,
        max_results: fields.integer("max_results")?,
        page_token: fields.text("page_token")?,
    };
    let (found, next_page_token) = registry
        .search_evaluation_datasets(&tenant.caller, &tenant.project, &query)
        .await?;
    Ok(Json(Datasets {
        datasets: found.into_iter().map(DatasetAnswer::from).collect(),
        next_page_token,
    }))
}

async fn set_tags(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let tags = fields.required_text("tags")?;
    registry
        .set_evaluation_dataset_tags(&tenant.caller, &tenant.project, &id, &tags)
        .await?;
    Ok(Json(Empty {}))
}

async fn delete_tag(
    State(registry): State<Arc<Registry>>,
    Path((id, key)): Path<(String, String)>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    registry
        .delete_evaluation_dataset_tag(&tenant.caller, &tenant.project, &id, &key)
        .await?;
    Ok(Json(Empty {}))
}

async fn experiments(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
) -> Result<Json<Experiments>, Refusal> {
    let found = registry
        .evaluation_dataset_experiments(&tenant.caller, &tenant.project, &id)
        .await?;
    Ok(Json(Experiments {
        experiment_ids: found.iter().map(ToString::to_string).collect(),
    }))
}

async fn change_experiments(
    registry: &Registry,
    tenant: &Tenant,
    id: &str,
    fields: &Fields,
    adding: bool,
) -> Result<Json<One>, Refusal> {
    let ids = fields.texts("experiment_ids")?;
    let changed = registry
        .change_evaluation_dataset_experiments(&tenant.caller, &tenant.project, id, &ids, adding)
        .await?;
    Ok(one(changed))
}

async fn add_experiments(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    change_experiments(&registry, &tenant, &id, &fields, true).await
}

async fn remove_experiments(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    change_experiments(&registry, &tenant, &id, &fields, false).await
}

async fn upsert_records(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Counts>, Refusal> {
    let records = fields.required_text("records")?;
    drop(fields);
    let done = registry
        .upsert_evaluation_records(&tenant.caller, &tenant.project, &id, records)
        .await?;
    Ok(Json(Counts {
        inserted_count: done.inserted,
        updated_count: done.updated,
    }))
}

async fn records(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Records>, Refusal> {
    let token = fields.text("page_token")?;
    let max_results = fields.integer("max_results")?;
    let (found, next_page_token) = registry
        .list_evaluation_records(&tenant.caller, &tenant.project, &id, max_results, token.as_deref())
        .await?;
    Ok(Json(Records {
        records: records_text(&found),
        next_page_token,
    }))
}

async fn delete_records(
    State(registry): State<Arc<Registry>>,
    Path(id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Deleted>, Refusal> {
    let ids = fields.texts("dataset_record_ids")?;
    let deleted_count = registry
        .delete_evaluation_records(&tenant.caller, &tenant.project, &id, &ids)
        .await?;
    Ok(Json(Deleted { deleted_count }))
}

routes! {
    post "/datasets/create" => create,
    post "/datasets/search" => search,
    get "/datasets/search" => search,
    get "/datasets/{dataset_id}" => get,
    delete "/datasets/{dataset_id}" => delete,
    get "/datasets/{dataset_id}/records" => records,
    post "/datasets/{dataset_id}/records" => upsert_records,
    delete "/datasets/{dataset_id}/records" => delete_records,
    patch "/datasets/{dataset_id}/tags" => set_tags,
    delete "/datasets/{dataset_id}/tags/{key}" => delete_tag,
    get "/datasets/{dataset_id}/experiment-ids" => experiments,
    post "/datasets/{dataset_id}/add-experiments" => add_experiments,
    post "/datasets/{dataset_id}/remove-experiments" => remove_experiments,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_written_as_json() {
        let record = EvaluationRecord {
            record_id: "dr-1".to_owned(),
            dataset_id: "d-1".to_owned(),
            inputs: r#"{"q": "\"x\""}"#.to_owned(),
            outputs: None,
            expectations: Some("{}".to_owned()),
            tags: r#"{"t": "1"}"#.to_owned(),
            source: Some(r#"{"source_type": "HUMAN", "source_data": {}}"#.to_owned()),
            source_id: None,
            source_type: Some("HUMAN".to_owned()),
            created_at: Timestamp::from_micros(1_700_000_000_000_000),
            updated_at: Timestamp::from_micros(1_700_000_000_001_999),
            created_by: Some("an \"n".to_owned()),
            updated_by: None,
        };
        let text = records_text(&[record.clone(), record]);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "dataset_record_id": "dr-1", "dataset_id": "d-1", "inputs": {"q": "\"x\""}, "expectations": {}, "tags": {"t": "1"},
            "source": {"source_type": "HUMAN", "source_data": {}}, "source_type": "HUMAN", "created_by": "an \"n",
            "created_time": 1_700_000_000_000_i64, "last_update_time": 1_700_000_000_001_i64,
        });
        assert_eq!(read, serde_json::json!([expected, expected]));
        assert_eq!(records_text(&[]), "[]");
    }
}
