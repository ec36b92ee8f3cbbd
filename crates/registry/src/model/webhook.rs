//! Webhooks: addresses that are told what happens to models and prompts, as MLflow's clients declare them.

use modelyard_common::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::run::check_text;
use crate::error::{Error, Result};

/// The longest name, in characters.
const MAX_NAME_CHARS: usize = 63;
/// The longest address, in bytes.
const MAX_URL_BYTES: usize = 2000;
/// The longest description, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 4 << 10;
/// The longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 4 << 10;
/// The most webhooks of a project: each change of a model looks at all of them.
pub const MAX_WEBHOOKS: i64 = 200;
/// The most deliveries of a webhook that wait; what comes beyond is given up at once.
pub const MAX_PENDING: i64 = 10_000;
/// How many finished deliveries of a webhook are kept, the newest.
pub const MAX_FINISHED: i64 = 1000;
/// How much of the reason is kept why a delivery failed, in characters.
pub const MAX_ERROR_CHARS: usize = 500;

/// Words of a kind, in both of MLflow's spellings: small in payloads, in capitals in messages.
macro_rules! words {
    ($(#[doc = $about:literal])* $kind:ident { $($variant:ident = $small:literal, $capital:literal;)* }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum $kind { $($variant,)* }

        impl $kind {
            /// All, in the order of the numbers that messages may have for them, from 1.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in payloads.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $small,)* }
            }

            /// The word in messages.
            #[must_use]
            pub const fn message_name(self) -> &'static str {
                match self { $(Self::$variant => $capital,)* }
            }

            /// What a message names, by its word or its number.
            #[must_use]
            pub fn of_message(text: &str) -> Option<Self> {
                let number = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                let by_number = number.and_then(|number| Self::ALL.get(number).copied());
                by_number.or_else(|| Self::ALL.iter().copied().find(|one| one.message_name() == text))
            }

            pub(crate) fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text)
            }
        }
    };
}

words! {
    /// What something happens to.
    WebhookEntity {
        RegisteredModel = "registered_model", "REGISTERED_MODEL";
        ModelVersion = "model_version", "MODEL_VERSION";
        ModelVersionTag = "model_version_tag", "MODEL_VERSION_TAG";
        ModelVersionAlias = "model_version_alias", "MODEL_VERSION_ALIAS";
        Prompt = "prompt", "PROMPT";
        PromptVersion = "prompt_version", "PROMPT_VERSION";
        PromptTag = "prompt_tag", "PROMPT_TAG";
        PromptVersionTag = "prompt_version_tag", "PROMPT_VERSION_TAG";
        PromptAlias = "prompt_alias", "PROMPT_ALIAS";
        BudgetPolicy = "budget_policy", "BUDGET_POLICY";
    }
}

words! {
    /// What happens to it.
    WebhookAction {
        Created = "created", "CREATED";
        Updated = "updated", "UPDATED";
        Deleted = "deleted", "DELETED";
        Set = "set", "SET";
        Exceeded = "exceeded", "EXCEEDED";
    }
}

words! {
    /// Whether a webhook is told anything.
    WebhookStatus {
        Active = "ACTIVE", "ACTIVE";
        Disabled = "DISABLED", "DISABLED";
    }
}

impl WebhookEntity {
    /// What can happen to it, by name.
    const fn actions(self) -> &'static [WebhookAction] {
        match self {
            Self::RegisteredModel | Self::ModelVersion | Self::Prompt | Self::PromptVersion => {
                &[WebhookAction::Created]
            }
            Self::ModelVersionTag | Self::PromptTag | Self::PromptVersionTag => {
                &[WebhookAction::Deleted, WebhookAction::Set]
            }
            Self::ModelVersionAlias | Self::PromptAlias => &[WebhookAction::Created, WebhookAction::Deleted],
            Self::BudgetPolicy => &[WebhookAction::Exceeded],
        }
    }
}

/// Something that a webhook can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookEvent {
    /// What something happens to.
    pub entity: WebhookEntity,
    /// What happens to it.
    pub action: WebhookAction,
}

impl WebhookEvent {
    /// An event, if that can happen.
    pub fn new(entity: WebhookEntity, action: WebhookAction) -> Result<Self> {
        let valid = entity.actions();
        if valid.contains(&action) {
            return Ok(Self { entity, action });
        }
        let words: Vec<String> = valid.iter().map(|valid| format!("'{}'", valid.as_str())).collect();
        Err(Error::request(format!(
            "Invalid action '{}' for entity '{}'. Valid actions are: [{}]",
            action.as_str(),
            entity.as_str(),
            words.join(", ")
        )))
    }

    /// As in `model_version.created`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (entity, action) = text.split_once('.')?;
        Some(Self {
            entity: WebhookEntity::parse(entity)?,
            action: WebhookAction::parse(action)?,
        })
    }
}

impl std::fmt::Display for WebhookEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.entity.as_str(), self.action.as_str())
    }
}

impl Serialize for WebhookEvent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for WebhookStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A webhook. Its secret is nowhere in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Its project.
    pub project: String,
    /// What it is called; others may be called the same.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Where it is told.
    pub url: String,
    /// What it is told.
    pub events: Vec<WebhookEvent>,
    /// Whether it is told anything.
    pub status: WebhookStatus,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// A webhook with its secret as it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedWebhook {
    /// The webhook.
    pub webhook: Webhook,
    /// The secret; none: its deliveries are not signed.
    pub secret: Option<String>,
}

/// What a client wants changed, or made. What is not there stays as it is.
#[derive(Debug, Clone, Default)]
pub struct WebhookChange {
    /// Its name.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Where it is told.
    pub url: Option<String>,
    /// What it is told.
    pub events: Option<Vec<WebhookEvent>>,
    /// What deliveries are signed with; an empty text: they are not signed any more. The service layer seals it.
    pub secret: Option<String>,
    /// Whether it is told anything.
    pub status: Option<WebhookStatus>,
}

impl WebhookChange {
    /// Checks all but where the address leads.
    pub fn check(&self) -> Result<()> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let of = self.name.as_deref().unwrap_or_default();
        for (what, text, limit) in [
            ("the URL of webhook", &self.url, MAX_URL_BYTES),
            ("the description of webhook", &self.description, MAX_DESCRIPTION_BYTES),
        ] {
            check_text(what, of, text.as_deref().unwrap_or_default(), limit)?;
        }
        let secret = self.secret.as_deref().unwrap_or_default();
        if secret.len() > MAX_SECRET_BYTES {
            return Err(Error::request(format!(
                "the secret of the webhook has {} bytes: use at most {MAX_SECRET_BYTES}",
                secret.len()
            )));
        }
        match &self.events {
            Some(events) => check_events(events),
            None => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut chars = name.chars();
    if name.len() <= MAX_NAME_CHARS
        && is_end(chars.next())
        && name.chars().all(is_inner)
        && is_end(name.chars().next_back())
    {
        return Ok(());
    }
    Err(Error::request(format!(
        "Webhook name '{}' is invalid. It must start and end with a letter or digit, be less than {MAX_NAME_CHARS} \
         characters long, and contain only letters, digits, dots (.), underscores (_), and hyphens (-).",
        super::mlflow_registry::shown(name)
    )))
}

fn check_events(events: &[WebhookEvent]) -> Result<()> {
    if events.is_empty() {
        return Err(Error::request(
            "Webhook events must be a non-empty list of WebhookEvent objects: [].",
        ));
    }
    for (place, event) in events.iter().enumerate() {
        if events.iter().take(place).any(|before| before == event) {
            return Err(Error::request(format!(
                "the webhook has the event `{event}` twice: name it once"
            )));
        }
    }
    Ok(())
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It will be sent, perhaps again.
    Pending,
    /// It was taken.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// The word for it, in SQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// What became of a message to a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delivery {
    /// Its id, which the webhook is told in the header `X-MLflow-Delivery-Id`; the same in every attempt.
    pub delivery_id: String,
    /// What happened, as in `model_version.created`.
    pub event: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// How often it was sent.
    pub attempts: u32,
    /// The status of the last answer; null: there was none.
    pub response_status: Option<u16>,
    /// Why the last attempt failed; empty: it did not.
    pub error: String,
    /// When it happened.
    pub created_at: Timestamp,
    /// When it was sent last.
    pub attempted_at: Option<Timestamp>,
    /// When it was taken or given up.
    pub finished_at: Option<Timestamp>,
}

/// How an attempt to deliver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// Where the delivery stands now.
    pub state: DeliveryState,
    /// Whether something was sent.
    pub is_sent: bool,
    /// The status of the answer; none: there was none.
    pub response_status: Option<u16>,
    /// Why it failed; empty: it did not.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_in_the_protocol() {
        for good in ["a", "9", "a.b_c-d", "A1", &"x".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "_a", "a-", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_are_those_that_can_happen() {
        let mut count = 0;
        for entity in WebhookEntity::ALL {
            for action in WebhookAction::ALL {
                if let Ok(event) = WebhookEvent::new(*entity, *action) {
                    count += 1;
                    assert_eq!(WebhookEvent::parse(&event.to_string()), Some(event));
                }
            }
        }
        assert_eq!(count, 15);
        let refused = WebhookEvent::new(WebhookEntity::PromptTag, WebhookAction::Created);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "Invalid action 'created' for entity 'prompt_tag'. Valid actions are: ['deleted', 'set']"
        );
    }

    #[test]
    fn words_may_be_numbers() {
        assert_eq!(WebhookEntity::of_message("2"), Some(WebhookEntity::ModelVersion));
        assert_eq!(WebhookAction::of_message("SET"), Some(WebhookAction::Set));
        for bad in ["0", "11", "set", "", "ENTITY_UNSPECIFIED"] {
            assert_eq!(WebhookEntity::of_message(bad), None, "{bad}");
        }
    }

    #[test]
    fn events_are_named_once() {
        let event = WebhookEvent::new(WebhookEntity::Prompt, WebhookAction::Created).unwrap();
        assert!(check_events(&[event]).is_ok());
        assert!(check_events(&[event, event]).is_err() && check_events(&[]).is_err());
    }
}
