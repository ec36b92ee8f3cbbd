//! Webhooks.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    answers::{Empty, millis},
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    model::{
        mlflow_registry::shown,
        webhook::{Webhook, WebhookAction, WebhookChange, WebhookEntity, WebhookEvent, WebhookStatus},
    },
    service::{Registry, WebhookTrial},
};

#[derive(Serialize)]
struct EventAnswer {
    entity: &'static str,
    action: &'static str,
}

#[derive(Serialize)]
struct WebhookAnswer {
    webhook_id: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    url: String,
    events: Vec<EventAnswer>,
    status: &'static str,
    #[serde(serialize_with = "millis")]
    creation_timestamp: Timestamp,
    #[serde(serialize_with = "millis")]
    last_updated_timestamp: Timestamp,
}

impl From<Webhook> for WebhookAnswer {
    fn from(webhook: Webhook) -> Self {
        let events = webhook.events.iter().map(|event| EventAnswer {
            entity: event.entity.message_name(),
            action: event.action.message_name(),
        });
        Self {
            events: events.collect(),
            webhook_id: webhook.id,
            name: webhook.name,
            description: webhook.description,
            url: webhook.url,
            status: webhook.status.message_name(),
            creation_timestamp: webhook.created_at,
            last_updated_timestamp: webhook.updated_at,
        }
    }
}

#[derive(Serialize)]
struct One {
    webhook: WebhookAnswer,
}

#[derive(Serialize)]
struct Listed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhooks: Vec<WebhookAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct TrialAnswer {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "String::is_empty")]
    response_body: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error_message: String,
}

#[derive(Serialize)]
struct Tried {
    result: TrialAnswer,
}

impl From<WebhookTrial> for Tried {
    fn from(trial: WebhookTrial) -> Self {
        Self {
            result: TrialAnswer {
                success: trial.is_success,
                response_status: trial.response_status,
                response_body: trial.response_body,
                error_message: trial.error,
            },
        }
    }
}

fn one(webhook: Webhook) -> Json<One> {
    Json(One {
        webhook: webhook.into(),
    })
}

/// A word of a message, or the number of one.
fn word<T>(fields: &Fields, name: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
    let text = match fields.integer(name) {
        Ok(number) => number.map(|number| number.to_string()),
        Err(_) => fields.text(name)?,
    };
    Ok(text.as_deref().and_then(read))
}

fn event(fields: &Fields) -> Result<WebhookEvent, Refusal> {
    let unknown = |part: &str| {
        let given = fields.text(part).ok().flatten().unwrap_or_default();
        Refusal::invalid(format!("Unknown {part} '{}' of a webhook event.", shown(&given)))
    };
    let entity = word(fields, "entity", WebhookEntity::of_message)?.ok_or_else(|| unknown("entity"))?;
    let action = word(fields, "action", WebhookAction::of_message)?.ok_or_else(|| unknown("action"))?;
    Ok(WebhookEvent::new(entity, action)?)
}

fn events(fields: &Fields) -> Result<Vec<WebhookEvent>, Refusal> {
    fields.objects("events")?.iter().map(event).collect()
}

async fn create(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<One>, Refusal> {
    let (name, url) = (fields.required_text("name")?, fields.required_text("url")?);
    if !fields.has("events") {
        return Err(missing("events"));
    }
    let wanted = WebhookChange {
        name: Some(name),
        description: fields.text("description")?,
        url: Some(url),
        events: Some(events(&fields)?),
        secret: fields.text("secret")?,
        // A word that is not known is passed over, as protobuf does.
        status: word(&fields, "status", WebhookStatus::of_message)?,
    };
    let made = registry.create_webhook(&tenant.caller, &tenant.project, wanted).await?;
    Ok(one(made))
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<Listed>, Refusal> {
    let max_results = fields.integer("max_results")?;
    let token = fields.text("page_token")?;
    let (webhooks, next_page_token) = registry
        .list_webhooks(&tenant.caller, &tenant.project, max_results, token.as_deref())
        .await?;
    Ok(Json(Listed {
        webhooks: webhooks.into_iter().map(WebhookAnswer::from).collect(),
        next_page_token,
    }))
}

async fn get(
    State(registry): State<Arc<Registry>>,
    Path(webhook_id): Path<String>,
    tenant: Tenant,
) -> Result<Json<One>, Refusal> {
    let found = registry
        .get_webhook(&tenant.caller, &tenant.project, &webhook_id)
        .await?;
    Ok(one(found))
}

async fn update(
    State(registry): State<Arc<Registry>>,
    Path(webhook_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<One>, Refusal> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let wanted = WebhookChange {
        name: filled(fields.text("name")?),
        description: fields.text("description")?,
        url: filled(fields.text("url")?),
        events: Some(events(&fields)?).filter(|events| !events.is_empty()),
        secret: fields.text("secret")?,
        status: word(&fields, "status", WebhookStatus::of_message)?,
    };
    let changed = registry
        .change_webhook(&tenant.caller, &tenant.project, &webhook_id, wanted)
        .await?;
    Ok(one(changed))
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    Path(webhook_id): Path<String>,
    tenant: Tenant,
) -> Result<Json<Empty>, Refusal> {
    registry
        .delete_webhook(&tenant.caller, &tenant.project, &webhook_id)
        .await?;
    Ok(Json(Empty {}))
}

async fn test(
    State(registry): State<Arc<Registry>>,
    Path(webhook_id): Path<String>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Tried>, Refusal> {
    let wanted = fields.object("event")?.as_ref().map(event).transpose()?;
    let trial = registry
        .test_webhook(&tenant.caller, &tenant.project, &webhook_id, wanted)
        .await?;
    Ok(Json(trial.into()))
}

routes! {
    post "/webhooks" => create,
    get "/webhooks" => list,
    get "/webhooks/{webhook_id}" => get,
    patch "/webhooks/{webhook_id}" => update,
    delete "/webhooks/{webhook_id}" => delete,
    post "/webhooks/{webhook_id}/test" => test,
}
