//! Webhooks: who is told what happens to models and prompts.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};

use super::{
    Registry,
    model_registry::{page_token, read_page_token},
    secrets::sealed,
};
use crate::{
    error::{Error, Result},
    model::{
        page::{Page, PageRequest},
        webhook::{Delivery, SealedWebhook, Webhook, WebhookChange, WebhookEvent, WebhookStatus},
        webhook_payload::{body, example},
    },
    store::no_webhook,
    webhooks::{Message, open_secret, secret_context},
};

/// How many webhooks a page has when the client does not say.
const DEFAULT_PAGE: i64 = 100;
/// The most webhooks of a page.
const MAX_PAGE: i64 = 1000;

/// What came of testing a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookTrial {
    /// Whether the message was taken.
    pub is_success: bool,
    /// The status of the answer; none: there was none.
    pub response_status: Option<u16>,
    /// The beginning of the answer.
    pub response_body: String,
    /// Why there was no answer.
    pub error: String,
}

impl Registry {
    /// Makes a webhook. Of the change, name, address and events must be there.
    #[tracing::instrument(name = "registry.create_webhook", skip_all, fields(%project))]
    pub async fn create_webhook(&self, caller: &Caller, project: &str, wanted: WebhookChange) -> Result<Webhook> {
        let id = self.ids.next().to_string();
        let resource = Resource::named(Kind::Webhook, project, &id);
        self.enter(caller, Action::WebhookWrite, resource).await?;
        wanted.check()?;
        let url = wanted.url.unwrap_or_default();
        self.webhooks.sender.check(&url).await?;
        let event = caller.event(Action::WebhookWrite, Operation::Create, &resource);
        let new = SealedWebhook {
            secret: self.seal_webhook_secret(project, &id, wanted.secret.as_deref())?,
            webhook: Webhook {
                id: id.clone(),
                project: project.to_owned(),
                name: wanted.name.unwrap_or_default(),
                description: wanted.description.unwrap_or_default(),
                url,
                events: wanted.events.unwrap_or_default(),
                status: wanted.status.unwrap_or(WebhookStatus::Active),
                created_at: event.at,
                updated_at: event.at,
            },
        };
        self.stores.webhooks.create_webhook(&new, &event).await?;
        tracing::info!(webhook = id, "webhook made");
        Ok(new.webhook)
    }

    /// The secret as it is stored; none where it is empty, or not said.
    fn seal_webhook_secret(&self, project: &str, id: &str, secret: Option<&str>) -> Result<Option<String>> {
        let secret = secret.filter(|secret| !secret.is_empty());
        let seal = |secret: &str| self.keys.seal(&secret_context(project, id), secret.as_bytes());
        secret.map(seal).transpose().map_err(|error| sealed(&error))
    }

    async fn find_webhook(&self, project: &str, id: &str) -> Result<SealedWebhook> {
        let found = self.stores.webhooks.find_webhook(project, id).await?;
        found.ok_or_else(|| no_webhook(id))
    }

    /// A webhook.
    pub async fn get_webhook(&self, caller: &Caller, project: &str, id: &str) -> Result<Webhook> {
        self.enter(caller, Action::WebhookRead, Resource::named(Kind::Webhook, project, id))
            .await?;
        Ok(self.find_webhook(project, id).await?.webhook)
    }

    /// The webhooks, newest first, and the token of the next page.
    pub async fn list_webhooks(
        &self,
        caller: &Caller,
        project: &str,
        max_results: Option<i64>,
        token: Option<&str>,
    ) -> Result<(Vec<Webhook>, Option<String>)> {
        self.enter(caller, Action::WebhookRead, Resource::project(project))
            .await?;
        let wanted = max_results.filter(|wanted| *wanted != 0).unwrap_or(DEFAULT_PAGE);
        let limit = u32::try_from(wanted)
            .ok()
            .filter(|_| (1..=MAX_PAGE).contains(&wanted))
            .ok_or_else(|| Error::request("max_results must be between 1 and 1000."))?;
        let token = token.filter(|token| !token.is_empty());
        let offset = token.map_or(Ok(0), read_page_token)?;
        let mut found = self.stores.webhooks.list_webhooks(project, offset, limit + 1).await?;
        let has_more = found.len() > limit as usize;
        found.truncate(limit as usize);
        Ok((found, has_more.then(|| page_token(offset + u64::from(limit)))))
    }

    /// Changes a webhook. What waits is sent where it points then.
    #[tracing::instrument(name = "registry.change_webhook", skip_all, fields(%project, webhook = %id))]
    pub async fn change_webhook(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        mut wanted: WebhookChange,
    ) -> Result<Webhook> {
        let resource = Resource::named(Kind::Webhook, project, id);
        self.enter(caller, Action::WebhookWrite, resource).await?;
        self.find_webhook(project, id).await?;
        wanted.check()?;
        if let Some(url) = &wanted.url {
            self.webhooks.sender.check(url).await?;
        }
        if let Some(secret) = wanted.secret.take() {
            let secret = self.seal_webhook_secret(project, id, Some(&secret))?;
            wanted.secret = Some(secret.unwrap_or_default());
        }
        let event = caller.event(Action::WebhookWrite, Operation::Apply, &resource);
        let changed = self
            .stores
            .webhooks
            .change_webhook(project, id, &wanted, &event)
            .await?;
        tracing::info!("webhook changed");
        Ok(changed)
    }

    /// Removes a webhook, and what waits to be sent to it.
    #[tracing::instrument(name = "registry.delete_webhook", skip_all, fields(%project, webhook = %id))]
    pub async fn delete_webhook(&self, caller: &Caller, project: &str, id: &str) -> Result<()> {
        let resource = Resource::named(Kind::Webhook, project, id);
        self.enter(caller, Action::WebhookWrite, resource).await?;
        let event = caller.event(Action::WebhookWrite, Operation::Delete, &resource);
        self.stores.webhooks.delete_webhook(project, id, &event).await?;
        tracing::info!("webhook removed");
        Ok(())
    }

    /// Sends an example to a webhook, once, and says what came back.
    #[tracing::instrument(name = "registry.test_webhook", skip_all, fields(%project, webhook = %id))]
    pub async fn test_webhook(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        event: Option<WebhookEvent>,
    ) -> Result<WebhookTrial> {
        self.enter(
            caller,
            Action::WebhookWrite,
            Resource::named(Kind::Webhook, project, id),
        )
        .await?;
        let found = self.find_webhook(project, id).await?;
        let webhook = &found.webhook;
        let Some(event) = event.or_else(|| webhook.events.first().copied()) else {
            return Err(Error::State(format!("webhook `{id}` has no events: name some")));
        };
        let secret = open_secret(&self.keys, project, id, found.secret.as_deref())?;
        let _trial = self.webhooks.trials.acquire().await;
        let now = self.clock.now();
        let message = Message {
            url: &webhook.url,
            delivery_id: &self.ids.next().to_string(),
            body: body(project, event, now, &example(event)),
            secret,
            now,
        };
        Ok(match self.webhooks.sender.send(message).await {
            Ok(answer) => WebhookTrial {
                is_success: (200..300).contains(&answer.status),
                response_status: Some(answer.status),
                response_body: answer.body,
                error: String::new(),
            },
            Err(error) => WebhookTrial {
                error: format!("Failed to test webhook: {error}"),
                ..WebhookTrial::default()
            },
        })
    }

    /// What became of the deliveries of a webhook, newest first.
    pub async fn list_webhook_deliveries(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<Delivery>> {
        self.enter(caller, Action::WebhookRead, Resource::named(Kind::Webhook, project, id))
            .await?;
        let found = self.stores.webhooks.list_deliveries(project, id, page).await?;
        found.ok_or_else(|| Error::not_found("webhook", id, "list them to see which there are"))
    }
}
