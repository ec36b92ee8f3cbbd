//! What webhooks are told, as MLflow words it.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;
use serde_json::{Map, Value, json};

use super::webhook::{WebhookAction, WebhookEntity, WebhookEvent};
use crate::model::mlflow_registry::{PROMPT_TAG, is_prompt};

/// The tag with a prompt's text.
const PROMPT_TEXT_TAG: &str = "mlflow.prompt.text";
/// The tag that says what kind of prompt it is.
const PROMPT_TYPE_TAG: &str = "_mlflow_prompt_type";

/// What happened to a model or prompt.
#[derive(Debug, Clone, Copy)]
pub enum Happening<'a> {
    /// It was made.
    Created {
        /// Its notes.
        tags: &'a BTreeMap<String, String>,
        /// What it is.
        description: &'a str,
    },
    /// A version of it was made.
    VersionCreated {
        /// The version.
        version: i64,
        /// Where it came from.
        source: &'a str,
        /// The run that made it.
        run_id: Option<&'a str>,
        /// Its notes.
        tags: &'a BTreeMap<String, String>,
        /// What it is.
        description: &'a str,
    },
    /// A tag of it was set, or removed.
    Tag {
        /// The tag.
        key: &'a str,
        /// Its value; none: it was removed.
        value: Option<&'a str>,
    },
    /// A tag of a version was set, or removed.
    VersionTag {
        /// The version.
        version: i64,
        /// The tag.
        key: &'a str,
        /// Its value; none: it was removed.
        value: Option<&'a str>,
    },
    /// An alias was set, or removed.
    Alias {
        /// The alias.
        alias: &'a str,
        /// The version that it points at; none: it was removed.
        version: Option<i64>,
    },
}

impl Happening<'_> {
    /// Whether a prompt is meant: what is made says that itself, everything else is about the model as it is.
    #[must_use]
    pub fn is_of_prompt(&self, model_is_prompt: bool) -> bool {
        match self {
            Self::Created { tags, .. } | Self::VersionCreated { tags, .. } => is_prompt(tags),
            Self::Tag { .. } | Self::VersionTag { .. } | Self::Alias { .. } => model_is_prompt,
        }
    }

    /// The event, and what is told about the model `name`. None: MLflow tells nobody.
    #[must_use]
    pub fn told(&self, name: &str, is_prompt: bool) -> Option<(WebhookEvent, Value)> {
        let (entity, action, mut told) = self.words(is_prompt)?;
        told.insert("name".to_owned(), name.into());
        Some((WebhookEvent { entity, action }, Value::Object(told)))
    }

    fn words(&self, is_prompt: bool) -> Option<(WebhookEntity, WebhookAction, Map<String, Value>)> {
        use WebhookAction as Action;
        use WebhookEntity as Entity;
        let entity = |of_prompt, of_model| if is_prompt { of_prompt } else { of_model };
        let tagged = |value: Option<&str>| if value.is_some() { Action::Set } else { Action::Deleted };
        Some(match *self {
            Self::Created { tags, description } => (
                entity(Entity::Prompt, Entity::RegisteredModel),
                Action::Created,
                object(json!({"tags": shown_tags(tags, is_prompt), "description": description})),
            ),
            Self::VersionCreated {
                version,
                source,
                run_id,
                tags,
                description,
            } => {
                let description = Some(description).filter(|text| !text.is_empty());
                let shown = shown_tags(tags, is_prompt);
                let told = if is_prompt {
                    json!({
                        "version": version.to_string(), "template": tags.get(PROMPT_TEXT_TAG), "tags": shown,
                        "description": description,
                    })
                } else {
                    json!({
                        "version": version.to_string(), "source": source, "run_id": run_id, "tags": shown,
                        "description": description,
                    })
                };
                let entity = entity(Entity::PromptVersion, Entity::ModelVersion);
                (entity, Action::Created, object(told))
            }
            // MLflow has no event for the tags of models that are no prompts.
            Self::Tag { .. } if !is_prompt => return None,
            Self::Tag { key, value } => (Entity::PromptTag, tagged(value), tag(key, value)),
            Self::VersionTag { version, key, value } => {
                let mut told = tag(key, value);
                told.insert("version".to_owned(), version.to_string().into());
                (
                    entity(Entity::PromptVersionTag, Entity::ModelVersionTag),
                    tagged(value),
                    told,
                )
            }
            Self::Alias { alias, version } => {
                let mut told = object(json!({"alias": alias}));
                let action = match version {
                    Some(version) => {
                        told.insert("version".to_owned(), version.to_string().into());
                        Action::Created
                    }
                    None => Action::Deleted,
                };
                (entity(Entity::PromptAlias, Entity::ModelVersionAlias), action, told)
            }
        })
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn tag(key: &str, value: Option<&str>) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("key".to_owned(), key.into());
    if let Some(value) = value {
        told.insert("value".to_owned(), value.into());
    }
    told
}

/// The tags but those by which MLflow tells prompts from models.
fn shown_tags(tags: &BTreeMap<String, String>, is_prompt: bool) -> BTreeMap<&str, &str> {
    let inner = [PROMPT_TAG, PROMPT_TYPE_TAG, PROMPT_TEXT_TAG];
    tags.iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, _)| !is_prompt || !inner.contains(key))
        .collect()
}

/// The body of a delivery.
#[must_use]
pub fn body(project: &str, event: WebhookEvent, at: Timestamp, told: &Value) -> String {
    json!({
        "entity": event.entity.as_str(),
        "action": event.action.as_str(),
        "timestamp": at.to_datetime().to_rfc3339(),
        "data": told,
        "workspace": project,
    })
    .to_string()
}

/// What a webhook is told when it is tested.
#[must_use]
pub fn example(event: WebhookEvent) -> Value {
    let tags = BTreeMap::from([("example_key".to_owned(), "example_value".to_owned())]);
    let told = |name: &str, is_prompt: bool, happening: &Happening<'_>| {
        happening.told(name, is_prompt).map_or(Value::Null, |(_, told)| told)
    };
    let (key, value) = ("example_key", Some("example_value"));
    let value = value.filter(|_| event.action == WebhookAction::Set);
    let version_tag = Happening::VersionTag { version: 1, key, value };
    let alias = Happening::Alias {
        alias: "example_alias",
        version: Some(1).filter(|_| event.action == WebhookAction::Created),
    };
    match event.entity {
        WebhookEntity::RegisteredModel => {
            let description = "An example registered model";
            let tags = &tags;
            told("example_model", false, &Happening::Created { tags, description })
        }
        WebhookEntity::Prompt => {
            let description = "An example prompt";
            let tags = &tags;
            told("example_prompt", true, &Happening::Created { tags, description })
        }
        WebhookEntity::ModelVersion => json!({
            "name": "example_model", "version": "1", "source": "models:/123", "run_id": "abcd1234abcd5678", "tags": tags,
            "description": "An example model version",
        }),
        WebhookEntity::PromptVersion => json!({
            "name": "example_prompt", "version": "1", "template": "Hello {{name}}!", "tags": tags,
            "description": "An example prompt version",
        }),
        WebhookEntity::ModelVersionTag => told("example_model", false, &version_tag),
        WebhookEntity::PromptVersionTag => told("example_prompt", true, &version_tag),
        WebhookEntity::PromptTag => told("example_prompt", true, &Happening::Tag { key, value }),
        WebhookEntity::ModelVersionAlias => told("example_model", false, &alias),
        WebhookEntity::PromptAlias => told("example_prompt", true, &alias),
        // The server has no budgets; whoever has a webhook for them can try it all the same.
        WebhookEntity::BudgetPolicy => json!({
            "budget_policy_id": "bp-abc123", "budget_unit": "USD", "budget_amount": 100.0, "current_spend": 105.5,
            "duration_unit": "MONTHS", "duration_value": 1, "target_scope": "ENDPOINT", "workspace": "default",
            "target_value": "ep-abc123", "window_start": 1_704_067_200_000_i64,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(happening: &Happening<'_>, is_prompt: bool) -> (String, Value) {
        let (event, told) = happening.told("m", is_prompt).unwrap();
        (event.to_string(), told)
    }

    #[test]
    fn a_version_is_told_with_its_source_and_a_prompts_with_its_text() {
        let tags = BTreeMap::from([
            ("mlflow.prompt.is_prompt".to_owned(), "true".to_owned()),
            ("mlflow.prompt.text".to_owned(), "Hi".to_owned()),
            ("a".to_owned(), "b".to_owned()),
        ]);
        let made = Happening::VersionCreated {
            version: 3,
            source: "runs:/1/model",
            run_id: None,
            tags: &tags,
            description: "",
        };
        let expected = json!({"name": "m", "version": "3", "template": "Hi", "tags": {"a": "b"}, "description": null});
        assert_eq!(told(&made, true), ("prompt_version.created".to_owned(), expected));
        let expected = json!({
            "name": "m", "version": "3", "source": "runs:/1/model", "run_id": null, "tags": tags, "description": null,
        });
        assert_eq!(told(&made, false), ("model_version.created".to_owned(), expected));
    }

    #[test]
    fn tags_and_aliases_come_and_go() {
        let tag = |value| Happening::VersionTag {
            version: 1,
            key: "k",
            value,
        };
        let expected = json!({"name": "m", "version": "1", "key": "k", "value": "v"});
        assert_eq!(
            told(&tag(Some("v")), false),
            ("model_version_tag.set".to_owned(), expected)
        );
        let expected = json!({"name": "m", "version": "1", "key": "k"});
        assert_eq!(
            told(&tag(None), true),
            ("prompt_version_tag.deleted".to_owned(), expected)
        );
        let alias = |version| Happening::Alias { alias: "a", version };
        let expected = json!({"name": "m", "alias": "a", "version": "2"});
        assert_eq!(
            told(&alias(Some(2)), false),
            ("model_version_alias.created".to_owned(), expected)
        );
        let expected = json!({"name": "m", "alias": "a"});
        assert_eq!(told(&alias(None), true), ("prompt_alias.deleted".to_owned(), expected));
        assert!(Happening::Tag { key: "k", value: None }.told("m", false).is_none());
    }

    #[test]
    fn every_event_has_an_example() {
        for entity in WebhookEntity::ALL {
            for action in WebhookAction::ALL {
                if let Ok(event) = WebhookEvent::new(*entity, *action) {
                    assert!(example(event).as_object().is_some_and(|told| told.len() > 1), "{event}");
                }
            }
        }
    }
}
