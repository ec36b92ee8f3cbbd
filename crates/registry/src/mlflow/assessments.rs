//! What people and judges say of traces.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use modelyard_common::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    answers::Empty,
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
    trace_answers::AssessmentAnswer,
};
use crate::{
    model::trace::{Assessment, AssessmentChange, AssessmentKind},
    service::Registry,
};

/// Who assesses, in the order of their numbers in the message.
const SOURCES: [&str; 4] = ["SOURCE_TYPE_UNSPECIFIED", "HUMAN", "LLM_JUDGE", "CODE"];
/// How an expectation that is no single value is written.
const JSON_FORMAT: &str = "JSON_FORMAT";

#[derive(Serialize)]
struct One {
    assessment: AssessmentAnswer,
}

/// A value of protobuf, which does not tell 1 from 1.0.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => json!(float as i64),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), plain(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

fn value_of(message: &Fields) -> Value {
    message.value("value").map_or(Value::Null, plain)
}

fn feedback(message: &Fields) -> Result<(Value, Option<Value>), Refusal> {
    let error = message.object("error")?.map(|error| {
        Ok::<_, Refusal>(json!({
            "error_code": error.text("error_code")?.unwrap_or_default(),
            "error_message": error.text("error_message")?.filter(|text| !text.is_empty()),
            "stack_trace": error.text("stack_trace")?.filter(|text| !text.is_empty()),
        }))
    });
    Ok((value_of(message), error.transpose()?))
}

fn expectation(message: &Fields) -> Result<Value, Refusal> {
    let Some(serialized) = message.object("serialized_value")? else {
        return Ok(value_of(message));
    };
    let format = serialized.text("serialization_format")?.unwrap_or_default();
    if format != JSON_FORMAT {
        return Err(Refusal::invalid(format!(
            "Unknown serialization format: {format}. Only JSON_FORMAT is supported."
        )));
    }
    let text = serialized.text("value")?.unwrap_or_default();
    serde_json::from_str(&text).map_err(|_| Refusal::invalid("the value of the expectation is no JSON"))
}

/// A time of a message in milliseconds; 0: it is not there.
pub(super) fn time(message: &Fields, name: &str) -> Result<i64, Refusal> {
    let Some(text) = message.text(name)?.filter(|text| !text.is_empty()) else {
        return Ok(0);
    };
    let time: Timestamp = text
        .parse()
        .map_err(|_| Refusal::invalid(format!("Invalid value '{text}' for parameter '{name}': it is no time")))?;
    Ok(time.as_millis())
}

fn source(message: &Fields) -> Result<(String, Option<String>), Refusal> {
    let source = message.object("source")?.unwrap_or_default();
    let kind = match source.integer("source_type") {
        Ok(Some(number)) => usize::try_from(number)
            .ok()
            .and_then(|place| SOURCES.get(place))
            .map_or_else(String::new, |kind| (*kind).to_owned()),
        _ => source.text("source_type")?.unwrap_or_else(|| "CODE".to_owned()),
    };
    if !SOURCES.contains(&kind.as_str()) {
        return Err(Refusal::invalid(format!(
            "Invalid assessment source type: {kind}. Valid source types: {SOURCES:?}"
        )));
    }
    Ok((kind, source.text("source_id")?.filter(|id| !id.is_empty())))
}

/// The assessment of a message.
pub(super) fn read(message: &Fields, trace_id: &str) -> Result<Assessment, Refusal> {
    let told = message.object("feedback")?;
    let expected = message.object("expectation")?;
    let issue = message.object("issue")?;
    let (kind, (value, error)) = match (told, expected, issue) {
        (Some(told), None, None) => (AssessmentKind::Feedback, feedback(&told)?),
        (None, Some(expected), None) => (AssessmentKind::Expectation, (expectation(&expected)?, None)),
        (None, None, Some(issue)) => {
            let name = issue.text("issue_name")?.unwrap_or_default();
            (AssessmentKind::Issue, (json!({ "issue_name": name }), None))
        }
        (None, None, None) => return Err(Refusal::invalid("Unknown assessment type: None")),
        _ => {
            return Err(Refusal::invalid(
                "Exactly one of `expectation`, `feedback`, or `issue` should be specified.",
            ));
        }
    };
    let text = |name: &str| Ok::<_, Refusal>(message.text(name)?.filter(|text| !text.is_empty()));
    let (source_type, source_id) = source(message)?;
    Ok(Assessment {
        assessment_id: text("assessment_id")?.unwrap_or_default(),
        trace_id: trace_id.to_owned(),
        name: message.required_text("assessment_name")?,
        kind,
        value,
        error,
        created_ms: time(message, "create_time")?,
        updated_ms: time(message, "last_update_time")?,
        source_type,
        source_id,
        run_id: None,
        span_id: text("span_id")?,
        rationale: text("rationale")?,
        overrides: text("overrides")?,
        is_valid: true,
        metadata: message.map("metadata")?,
    })
}

fn required(fields: &Fields) -> Result<Fields, Refusal> {
    fields.object("assessment")?.ok_or_else(|| missing("assessment"))
}

async fn create(
    State(registry): State<Arc<Registry>>,
    Path(trace_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let assessment = read(&required(&fields)?, &trace_id)?;
    let made = registry
        .create_assessment(&tenant.caller, &tenant.project, assessment)
        .await?;
    Ok(Json(One {
        assessment: made.into(),
    }))
}

async fn get(
    State(registry): State<Arc<Registry>>,
    Path((trace_id, assessment_id)): Path<(String, String)>,
    tenant: Tenant,
) -> Result<Json<One>, Refusal> {
    let found = registry
        .get_assessment(&tenant.caller, &tenant.project, &trace_id, &assessment_id)
        .await?;
    Ok(Json(One {
        assessment: found.into(),
    }))
}

/// The fields that a message names: `feedback,assessmentName`, or an object with a list of them.
fn mask(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let named = match fields.value("update_mask") {
        Some(Value::Object(_)) => fields.object("update_mask")?.unwrap_or_default().texts("paths")?,
        Some(Value::String(text)) => text.split(',').map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let named: Vec<String> = named
        .into_iter()
        .map(|name| {
            if name == "assessmentName" {
                "assessment_name".to_owned()
            } else {
                name
            }
        })
        .collect();
    if named.iter().all(String::is_empty) {
        return Err(missing("update_mask"));
    }
    Ok(named)
}

async fn update(
    State(registry): State<Arc<Registry>>,
    Path((trace_id, assessment_id)): Path<(String, String)>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let message = required(&fields)?;
    let mut change = AssessmentChange::default();
    for name in mask(&fields)? {
        match name.as_str() {
            "assessment_name" => change.name = Some(message.text("assessment_name")?.unwrap_or_default()),
            "expectation" => {
                change.expectation = Some(expectation(&message.object("expectation")?.unwrap_or_default())?);
            }
            "feedback" => change.feedback = Some(feedback(&message.object("feedback")?.unwrap_or_default())?),
            "rationale" => change.rationale = Some(message.text("rationale")?.unwrap_or_default()),
            "metadata" => change.metadata = message.map("metadata")?,
            // Whether it is valid, others decide.
            _ => {}
        }
    }
    let changed = registry
        .change_assessment(&tenant.caller, &tenant.project, &trace_id, &assessment_id, change)
        .await?;
    Ok(Json(One {
        assessment: changed.into(),
    }))
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    Path((trace_id, assessment_id)): Path<(String, String)>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    registry
        .delete_assessment(&tenant.caller, &tenant.project, &trace_id, &assessment_id)
        .await?;
    Ok(Json(Empty {}))
}

routes! {
    post "/traces/{trace_id}/assessments" => create,
    get "/traces/{trace_id}/assessments/{assessment_id}" => get,
    patch "/traces/{trace_id}/assessments/{assessment_id}" => update,
    delete "/traces/{trace_id}/assessments/{assessment_id}" => delete,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of(value)
    }

    #[test]
    fn assessments_are_read() {
        let read = |message: Value| read(&fields(message), "tr-1");
        let told = read(json!({
            "assessment_name": "good", "feedback": {"value": 2.0, "error": {"error_code": "E"}},
            "source": {"source_type": "HUMAN", "source_id": "a"}, "create_time": "2023-11-14T22:13:20.123Z",
            "metadata": {"k": "v"}, "valid": false
        }))
        .unwrap();
        assert_eq!((told.kind, told.value), (AssessmentKind::Feedback, json!(2)));
        assert_eq!((told.created_ms, told.updated_ms), (1_700_000_000_123, 0));
        assert_eq!(
            told.error,
            Some(json!({"error_code": "E", "error_message": null, "stack_trace": null}))
        );
        assert!(told.is_valid, "the server decides");
        let expected = read(json!({
            "assessment_name": "x",
            "expectation": {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": "[1.0]"}}
        }))
        .unwrap();
        assert_eq!((expected.value, expected.source_type.as_str()), (json!([1.0]), "CODE"));
        assert!(read(json!({"assessment_name": "x"})).is_err());
        assert!(read(json!({"assessment_name": "x", "feedback": {}, "issue": {}})).is_err());
        assert!(read(json!({"assessment_name": "x", "feedback": {}, "source": {"source_type": "BIRD"}})).is_err());
    }

    #[test]
    fn masks_name_fields() {
        let mask = |value: Value| mask(&fields(json!({ "update_mask": value })));
        assert_eq!(
            mask(json!("feedback,assessmentName")).unwrap(),
            ["feedback", "assessment_name"]
        );
        assert_eq!(mask(json!({"paths": ["rationale"]})).unwrap(), ["rationale"]);
        assert!(mask(json!("")).is_err());
    }
}
