//! Webhooks, and what became of their deliveries.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use modelyard_jobs::Claim;
use serde_json::{Value, json};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::{after, change},
    maybe, number, to_json, word,
};
use crate::{
    error::{Error, Result},
    model::{
        mlflow_registry::shown,
        page::{Page, PageRequest},
        webhook::{
            AttemptEnd, Delivery, DeliveryState, MAX_WEBHOOKS, SealedWebhook, Webhook, WebhookChange, WebhookEvent,
            WebhookStatus,
        },
    },
};

/// A delivery that waits to be sent.
#[derive(Debug, Clone)]
pub struct Pending {
    /// To whom.
    pub webhook: Webhook,
    /// What it is signed with, sealed; none: it is not signed.
    pub secret: Option<String>,
    /// What is sent.
    pub body: String,
    /// How often it was sent.
    pub attempts: u32,
}

/// Webhooks.
#[async_trait]
pub trait WebhookStore: Send + Sync {
    /// Makes a webhook.
    async fn create_webhook(&self, new: &SealedWebhook, event: &NewEvent) -> Result<()>;
    /// A webhook.
    async fn find_webhook(&self, project: &str, id: &str) -> Result<Option<SealedWebhook>>;
    /// The webhooks of a project, newest first.
    async fn list_webhooks(&self, project: &str, offset: u64, limit: u32) -> Result<Vec<Webhook>>;
    /// Changes a webhook. The secret of the change is sealed already.
    async fn change_webhook(
        &self,
        project: &str,
        id: &str,
        wanted: &WebhookChange,
        event: &NewEvent,
    ) -> Result<Webhook>;
    /// Removes a webhook with its deliveries.
    async fn delete_webhook(&self, project: &str, id: &str, event: &NewEvent) -> Result<()>;
    /// The deliveries of a webhook, newest first; none: no such webhook.
    async fn list_deliveries(
        &self,
        project: &str,
        id: &str,
        page: &PageRequest<String>,
    ) -> Result<Option<Page<Delivery>>>;
    /// A delivery that waits to be sent, for whoever sends it.
    async fn find_pending(&self, delivery: &str) -> Result<Option<Pending>>;
    /// Writes down how an attempt ended; a delivery that is finished takes its job with it.
    async fn end_attempt(&self, delivery: &str, end: &AttemptEnd, job: Option<&Claim>, now: Timestamp) -> Result<()>;
    /// Forgets deliveries of what happened before a time, and those of webhooks that are gone; how many.
    async fn prune_deliveries(&self, before: Timestamp) -> Result<u64>;
    /// All webhooks with secrets, as project, id and sealed secret: for sealing them with another key.
    async fn webhook_secrets(&self) -> Result<Vec<(String, String, String)>>;
    /// Replaces what is sealed by the same, sealed with another key; nothing if it was set anew meanwhile.
    async fn reseal_webhook(&self, id: &str, sealed: &str, resealed: &str) -> Result<()>;
}

/// A webhook that is not there.
pub(crate) fn no_webhook(id: &str) -> Error {
    Error::NotThere(format!("Webhook with ID {} not found.", shown(id)))
}

#[derive(sqlx::FromRow)]
struct WebhookRow {
    id: String,
    project: String,
    name: String,
    description: String,
    url: String,
    status: String,
    secret: Option<String>,
    created_at: i64,
    updated_at: i64,
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    id: String,
    event: String,
    state: String,
    attempts: i64,
    response_status: Option<i64>,
    error: String,
    created_at: i64,
    attempted_at: Option<i64>,
    finished_at: Option<i64>,
}

impl DeliveryRow {
    fn into_delivery(self) -> Result<Delivery> {
        Ok(Delivery {
            delivery_id: self.id,
            event: self.event,
            state: word("state of a delivery", &self.state, DeliveryState::parse)?,
            attempts: number("attempts", self.attempts)?,
            response_status: maybe("status", self.response_status)?,
            error: self.error,
            created_at: Timestamp::from_micros(self.created_at),
            attempted_at: self.attempted_at.map(Timestamp::from_micros),
            finished_at: self.finished_at.map(Timestamp::from_micros),
        })
    }
}

/// The columns of [`WebhookRow`].
macro_rules! select_webhooks {
    ($rest:literal) => {
        concat!(
            "SELECT w.id, w.project, w.name, w.description, w.url, w.status, w.secret, w.created_at, w.updated_at
             FROM webhook w ",
            $rest
        )
    };
}

/// What the audit chain keeps a digest of: what a webhook is, without its secret, but whether it has one.
fn witnessed(webhook: &SealedWebhook) -> Value {
    json!({"webhook": webhook.webhook, "has_secret": webhook.secret.is_some()})
}

/// The event with what it is about: not the address, which can carry a token.
fn described(event: &NewEvent, webhook: &Webhook) -> NewEvent {
    let mut event = event.clone();
    event.add_detail("name", webhook.name.as_str());
    event.add_detail("status", webhook.status.as_str());
    let events: Vec<String> = webhook.events.iter().map(ToString::to_string).collect();
    event.add_detail("events", events.join(" "));
    event
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn complete_webhooks(
        tx: &mut Transaction<<P as Pools>::Db>,
        rows: Vec<WebhookRow>,
    ) -> Result<Vec<SealedWebhook>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new("SELECT webhook_id, event FROM webhook_event WHERE webhook_id IN (");
        let mut ids = query.separated(", ");
        for row in &rows {
            ids.push_bind(row.id.clone());
        }
        query.push(") ORDER BY webhook_id, place");
        let events: Vec<(String, String)> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut webhooks = Vec::with_capacity(rows.len());
        for row in rows {
            let own = events.iter().filter(|(id, _)| *id == row.id);
            let own = own.map(|(_, event)| word("event of a webhook", event, WebhookEvent::parse));
            webhooks.push(SealedWebhook {
                webhook: Webhook {
                    events: own.collect::<Result<_>>()?,
                    id: row.id,
                    project: row.project,
                    name: row.name,
                    description: row.description,
                    url: row.url,
                    status: word("status of a webhook", &row.status, WebhookStatus::parse)?,
                    created_at: Timestamp::from_micros(row.created_at),
                    updated_at: Timestamp::from_micros(row.updated_at),
                },
                secret: row.secret,
            });
        }
        Ok(webhooks)
    }

    async fn webhook_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        id: &str,
    ) -> Result<Option<SealedWebhook>> {
        let rows: Vec<WebhookRow> = sqlx::query_as(select_webhooks!("WHERE w.project = $1 AND w.id = $2"))
            .bind(project)
            .bind(id)
            .fetch_all(&mut **tx)
            .await?;
        Ok(Self::complete_webhooks(tx, rows).await?.pop())
    }

    /// A webhook that nobody else changes before the end of the transaction.
    async fn held_webhook(tx: &mut Transaction<<P as Pools>::Db>, project: &str, id: &str) -> Result<SealedWebhook> {
        sqlx::query("UPDATE webhook SET updated_at = updated_at WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(id)
            .execute(&mut **tx)
            .await?;
        let found = Self::webhook_in(tx, project, id).await?;
        found.ok_or_else(|| no_webhook(id))
    }

    async fn put_events(tx: &mut Transaction<<P as Pools>::Db>, id: &str, events: &[WebhookEvent]) -> Result<()> {
        sqlx::query("DELETE FROM webhook_event WHERE webhook_id = $1")
            .bind(id)
            .execute(&mut **tx)
            .await?;
        for (place, event) in (0_i64..).zip(events) {
            sqlx::query("INSERT INTO webhook_event (webhook_id, place, event) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(place)
                .bind(event.to_string())
                .execute(&mut **tx)
                .await?;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl WebhookStore for SqlStore<P> {
    async fn create_webhook(&self, new: &SealedWebhook, event: &NewEvent) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let webhook = &new.webhook;
        // Held, so that no two become the last one at once.
        sqlx::query("UPDATE project SET name = name WHERE name = $1")
            .bind(&webhook.project)
            .execute(&mut *tx)
            .await?;
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM webhook WHERE project = $1")
            .bind(&webhook.project)
            .fetch_one(&mut *tx)
            .await?;
        if count >= MAX_WEBHOOKS {
            return Err(Error::State(format!(
                "project `{}` has {count} webhooks, as many as it may have: remove some first",
                webhook.project
            )));
        }
        sqlx::query(
            "INSERT INTO webhook (id, project, name, description, url, status, secret, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&webhook.id)
        .bind(&webhook.project)
        .bind(&webhook.name)
        .bind(&webhook.description)
        .bind(&webhook.url)
        .bind(webhook.status.as_str())
        .bind(new.secret.as_deref())
        .bind(webhook.created_at.as_micros())
        .bind(webhook.updated_at.as_micros())
        .execute(&mut *tx)
        .await?;
        Self::put_events(&mut tx, &webhook.id, &webhook.events).await?;
        let event = described(event, webhook);
        Self::append_audit(&mut tx, &after(&event, &witnessed(new))?).await?;
        Ok(tx.commit().await?)
    }

    async fn find_webhook(&self, project: &str, id: &str) -> Result<Option<SealedWebhook>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::webhook_in(&mut tx, project, id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_webhooks(&self, project: &str, offset: u64, limit: u32) -> Result<Vec<Webhook>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<WebhookRow> = sqlx::query_as(select_webhooks!(
            "WHERE w.project = $1 ORDER BY w.created_at DESC, w.id DESC LIMIT $2 OFFSET $3"
        ))
        .bind(project)
        .bind(i64::from(limit))
        .bind(super::stored("offset", offset)?)
        .fetch_all(&mut *tx)
        .await?;
        let found = Self::complete_webhooks(&mut tx, rows).await?;
        tx.rollback().await?;
        Ok(found.into_iter().map(|sealed| sealed.webhook).collect())
    }

    async fn change_webhook(
        &self,
        project: &str,
        id: &str,
        wanted: &WebhookChange,
        event: &NewEvent,
    ) -> Result<Webhook> {
        let mut tx = self.pools.begin().await?;
        let before = Self::held_webhook(&mut tx, project, id).await?;
        let secret = match &wanted.secret {
            None => before.secret.clone(),
            Some(sealed) => Some(sealed.clone()).filter(|sealed| !sealed.is_empty()),
        };
        sqlx::query(
            "UPDATE webhook SET name = COALESCE($3, name), description = COALESCE($4, description),
                                url = COALESCE($5, url), status = COALESCE($6, status), secret = $7, updated_at = $8
             WHERE project = $1 AND id = $2",
        )
        .bind(project)
        .bind(id)
        .bind(wanted.name.as_deref())
        .bind(wanted.description.as_deref())
        .bind(wanted.url.as_deref())
        .bind(wanted.status.map(WebhookStatus::as_str))
        .bind(secret)
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        if let Some(events) = &wanted.events {
            Self::put_events(&mut tx, id, events).await?;
        }
        let now = Self::webhook_in(&mut tx, project, id).await?;
        let now = now.ok_or_else(|| no_webhook(id))?;
        let mut event = described(event, &now.webhook);
        event.add_detail("secret_set", wanted.secret.is_some());
        Self::append_audit(&mut tx, &change(&event, &witnessed(&before), &witnessed(&now))?).await?;
        tx.commit().await?;
        Ok(now.webhook)
    }

    async fn delete_webhook(&self, project: &str, id: &str, event: &NewEvent) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let before = Self::held_webhook(&mut tx, project, id).await?;
        // Jobs on their way find nothing to do.
        sqlx::query("DELETE FROM webhook_delivery WHERE webhook_id = $1")
            .bind(id)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM webhook WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        let event = described(event, &before.webhook);
        let before = to_json("webhook", &witnessed(&before))?;
        Self::append_audit(&mut tx, &event.with_digests(Some(&before), None)).await?;
        Ok(tx.commit().await?)
    }

    async fn list_deliveries(
        &self,
        project: &str,
        id: &str,
        page: &PageRequest<String>,
    ) -> Result<Option<Page<Delivery>>> {
        let mut tx = self.pools.snapshot().await?;
        if Self::webhook_in(&mut tx, project, id).await?.is_none() {
            return Ok(None);
        }
        let rows: Vec<DeliveryRow> = sqlx::query_as(
            "SELECT d.id, d.event, d.state, d.attempts, d.response_status, d.error, d.created_at, d.attempted_at,
                    d.finished_at
             FROM webhook_delivery d
             WHERE d.webhook_id = $1 AND ($2 IS NULL OR d.id < $2) ORDER BY d.id DESC LIMIT $3",
        )
        .bind(id)
        .bind(page.after.as_deref())
        .bind(page.rows())
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let found = rows
            .into_iter()
            .map(DeliveryRow::into_delivery)
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(page.cut(found, |delivery| delivery.delivery_id.clone())))
    }

    async fn find_pending(&self, delivery: &str) -> Result<Option<Pending>> {
        let mut tx = self.pools.snapshot().await?;
        let row: Option<(String, String, i64)> = sqlx::query_as(
            "SELECT webhook_id, body, attempts FROM webhook_delivery WHERE id = $1 AND state = 'pending'",
        )
        .bind(delivery)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((webhook, text, attempts)) = row else {
            return Ok(None);
        };
        let rows: Vec<WebhookRow> = sqlx::query_as(select_webhooks!("WHERE w.id = $1"))
            .bind(webhook)
            .fetch_all(&mut *tx)
            .await?;
        let found = Self::complete_webhooks(&mut tx, rows).await?.pop();
        tx.rollback().await?;
        let attempts = number("attempts", attempts)?;
        Ok(found.map(|sealed| Pending {
            webhook: sealed.webhook,
            secret: sealed.secret,
            body: text,
            attempts,
        }))
    }

    async fn end_attempt(&self, delivery: &str, end: &AttemptEnd, job: Option<&Claim>, now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let is_finished = end.state != DeliveryState::Pending;
        let attempted_at = end.is_sent.then(|| now.as_micros());
        let webhook: Option<String> = sqlx::query_scalar(
            "UPDATE webhook_delivery SET state = $2, attempts = attempts + $3, response_status = $4, error = $5,
                    attempted_at = COALESCE($6, attempted_at), finished_at = $7,
                    body = CASE WHEN $2 = 'pending' THEN body ELSE '' END
             WHERE id = $1 AND state = 'pending' RETURNING webhook_id",
        )
        .bind(delivery)
        .bind(end.state.as_str())
        .bind(i64::from(end.is_sent))
        .bind(end.response_status.map(i64::from))
        .bind(&end.error)
        .bind(attempted_at)
        .bind(is_finished.then(|| now.as_micros()))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(claim) = job {
            modelyard_jobs::complete_in(&mut tx, claim, now).await?;
        }
        if let Some(webhook) = webhook.filter(|_| is_finished) {
            Self::cut_history(&mut tx, &webhook).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn prune_deliveries(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let old = sqlx::query("DELETE FROM webhook_delivery WHERE created_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        // What was enqueued while its webhook was removed has nobody to go to.
        let lost = sqlx::query("DELETE FROM webhook_delivery WHERE webhook_id NOT IN (SELECT id FROM webhook)")
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(old.rows_affected() + lost.rows_affected())
    }

    async fn webhook_secrets(&self) -> Result<Vec<(String, String, String)>> {
        let query = sqlx::query_as("SELECT project, id, secret FROM webhook WHERE secret IS NOT NULL ORDER BY id");
        Ok(query.fetch_all(self.pools.reader()).await?)
    }

    async fn reseal_webhook(&self, id: &str, sealed: &str, resealed: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE webhook SET secret = $1 WHERE id = $2 AND secret = $3")
            .bind(resealed)
            .bind(id)
            .bind(sealed)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
