//! Telling webhooks: a delivery is stored, and its job with it, in the transaction of what it tells of.

use std::{collections::BTreeMap, sync::Arc};

use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use modelyard_jobs::{JobId, MAX_ATTEMPTS, NewJob};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid, Variant, Version};

use super::{AliasRequest, SqlStore};
use crate::{
    error::Result,
    model::{
        mlflow_registry::PROMPT_TAG,
        registered_model::NewModelVersion,
        webhook::{DeliveryState, MAX_FINISHED, MAX_PENDING},
        webhook_payload::{Happening, body},
    },
    webhooks::QUEUE,
};

/// The id of a delivery: of the age of what it tells of, and the same however often it is computed. It is not made by the
/// service layer because only the transaction knows how many webhooks there are.
fn delivery_id(cause: Uuid, place: usize, webhook: &str) -> Uuid {
    /// The bytes of the time in a UUID of version 7.
    const TIME_BYTES: usize = 6;
    let digest = Sha256::digest(format!("{cause}/{place}/{webhook}"));
    let mut bytes = cause.into_bytes();
    for (byte, digested) in bytes.iter_mut().skip(TIME_BYTES).zip(digest) {
        *byte = digested;
    }
    Builder::from_bytes(bytes)
        .with_version(Version::SortRand)
        .with_variant(Variant::RFC4122)
        .into_uuid()
}

/// A message for one webhook.
struct Message {
    id: Uuid,
    webhook: String,
    event: String,
    body: Arc<str>,
}

/// The messages for those of `told`, webhooks with what they are told, that are told such things.
fn messages(
    project: &str,
    model: &str,
    is_prompt: bool,
    cause: &NewEvent,
    happenings: &[Happening<'_>],
    told: &[(String, String)],
) -> Vec<Message> {
    let mut messages = Vec::new();
    for (place, happening) in happenings.iter().enumerate() {
        let Some((event, data)) = happening.told(model, happening.is_of_prompt(is_prompt)) else {
            continue;
        };
        let name = event.to_string();
        let text: Arc<str> = body(project, event, cause.at, &data).into();
        let listeners = told.iter().filter(|(_, wanted)| *wanted == name);
        messages.extend(listeners.map(|(webhook, _)| Message {
            id: delivery_id(cause.id, place, webhook),
            webhook: webhook.clone(),
            event: name.clone(),
            body: Arc::clone(&text),
        }));
    }
    messages
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Enqueues deliveries to those who are told such things. `cause` is the event of the change, which has a time and an
    /// id; its place in `happenings` tells deliveries of one change apart.
    pub(super) async fn tell_webhooks(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        cause: &NewEvent,
        happenings: &[Happening<'_>],
    ) -> Result<()> {
        let told: Vec<(String, String)> = sqlx::query_as(
            "SELECT w.id, e.event FROM webhook w JOIN webhook_event e ON e.webhook_id = w.id
             WHERE w.project = $1 AND w.status = 'ACTIVE' ORDER BY w.created_at, w.id, e.place",
        )
        .bind(project)
        .fetch_all(&mut **tx)
        .await?;
        if told.is_empty() {
            return Ok(());
        }
        let prompt: Option<String> =
            sqlx::query_scalar("SELECT value FROM registered_model_tag WHERE project = $1 AND model = $2 AND key = $3")
                .bind(project)
                .bind(model)
                .bind(PROMPT_TAG)
                .fetch_optional(&mut **tx)
                .await?;
        let is_prompt = prompt.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        for message in messages(project, model, is_prompt, cause, happenings, &told) {
            Self::enqueue_delivery(tx, &message, cause.at).await?;
        }
        Ok(())
    }

    /// Whether the version's model comes into being with it.
    pub(super) async fn is_new_model(tx: &mut Transaction<<P as Pools>::Db>, new: &NewModelVersion) -> Result<bool> {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT last_version FROM registered_model WHERE project = $1 AND name = $2")
                .bind(&new.project)
                .bind(&new.model)
                .fetch_optional(&mut **tx)
                .await?;
        Ok(known.is_none())
    }

    /// Tells of a version that was registered as a file, with its aliases, and of its model where that is new.
    pub(super) async fn tell_of_version(
        tx: &mut Transaction<<P as Pools>::Db>,
        new: &NewModelVersion,
        version: i64,
        is_first: bool,
    ) -> Result<()> {
        let no_tags = BTreeMap::new();
        let model = Happening::Created {
            tags: &no_tags,
            description: "",
        };
        let made = Happening::VersionCreated {
            version,
            source: &new.artifact_digest,
            run_id: new.run_id.as_deref(),
            tags: &new.tags,
            description: &new.description,
        };
        let mut happenings = if is_first { vec![model, made] } else { vec![made] };
        happenings.extend(new.aliases.iter().map(|alias| Happening::Alias {
            alias,
            version: Some(version),
        }));
        Self::tell_webhooks(tx, &new.project, &new.model, &new.event, &happenings).await
    }

    /// Tells of an alias that points at a version now, or is gone.
    pub(super) async fn tell_of_alias(
        tx: &mut Transaction<<P as Pools>::Db>,
        request: &AliasRequest<'_>,
        version: Option<i64>,
    ) -> Result<()> {
        let alias = Happening::Alias {
            alias: request.alias,
            version,
        };
        Self::tell_webhooks(tx, request.project, request.model, request.event, &[alias]).await
    }

    async fn enqueue_delivery(tx: &mut Transaction<<P as Pools>::Db>, message: &Message, now: Timestamp) -> Result<()> {
        let Message { id, webhook, event, .. } = message;
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM (SELECT 1 FROM webhook_delivery WHERE webhook_id = $1 AND state = 'pending' LIMIT $2) w",
        )
        .bind(webhook)
        .bind(MAX_PENDING)
        .fetch_one(&mut **tx)
        .await?;
        let is_full = waiting >= MAX_PENDING;
        let (state, error) = if is_full {
            let error = format!("it was not sent: {MAX_PENDING} deliveries of this webhook wait already");
            (DeliveryState::Failed, error)
        } else {
            (DeliveryState::Pending, String::new())
        };
        sqlx::query(
            "INSERT INTO webhook_delivery (id, webhook_id, event, body, state, attempts, error, created_at, finished_at)
             VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8)",
        )
        .bind(id.to_string())
        .bind(webhook)
        .bind(event)
        .bind(if is_full { "" } else { message.body.as_ref() })
        .bind(state.as_str())
        .bind(error)
        .bind(now.as_micros())
        .bind(is_full.then(|| now.as_micros()))
        .execute(&mut **tx)
        .await?;
        if is_full {
            tracing::warn!(
                webhook,
                event,
                "a webhook does not keep up: what happens is not told to it"
            );
            return Self::cut_history(tx, webhook).await;
        }
        let job = NewJob {
            // How often it is tried is decided where it is sent.
            max_attempts: MAX_ATTEMPTS,
            // One that does not answer, with all that waits for it, does not keep the others waiting.
            priority: -waiting,
            ..NewJob::new(JobId::from(*id), QUEUE, json!({}), now)
        };
        modelyard_jobs::enqueue_in(tx, &job, now).await?;
        Ok(())
    }

    /// Forgets the oldest of what is finished, beyond what is kept.
    pub(super) async fn cut_history(tx: &mut Transaction<<P as Pools>::Db>, webhook: &str) -> Result<()> {
        sqlx::query(
            "DELETE FROM webhook_delivery WHERE webhook_id = $1 AND state <> 'pending' AND id <= (
                 SELECT id FROM webhook_delivery WHERE webhook_id = $1 AND state <> 'pending'
                 ORDER BY id DESC LIMIT 1 OFFSET $2)",
        )
        .bind(webhook)
        .bind(MAX_FINISHED)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_deliveries_are_their_own_and_of_their_time() {
        let cause = Uuid::parse_str("0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b").unwrap();
        let id = delivery_id(cause, 0, "w");
        assert_eq!(id, delivery_id(cause, 0, "w"));
        assert_ne!(id, delivery_id(cause, 1, "w"));
        assert_ne!(id, delivery_id(cause, 0, "v"));
        assert_eq!(id.get_version_num(), 7);
        assert!(id.to_string().starts_with("0190a1b2-c3d4-7"));
    }
}
