//! `set-alias`: points an alias of a model at a version, which is a deployment for every endpoint that follows it.

use async_trait::async_trait;
use modelyard_proto::registry::v1::SetAliasRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Literals, Op, OpShape, StepContext, StepError, keys, outputs, read};

/// Takes `model`, `alias` and `version`.
pub(crate) struct SetAlias;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    model: String,
    alias: String,
    version: u32,
}

#[derive(Serialize)]
struct Outputs {
    model: String,
    alias: String,
    version: u32,
    /// Where it pointed before this call; null if nowhere.
    previous_version: Option<u32>,
}

#[async_trait]
impl Op for SetAlias {
    fn name(&self) -> &'static str {
        "set-alias"
    }

    fn shape(&self) -> OpShape {
        OpShape {
            keys: Some(keys(&["model", "alias", "version"], &[])),
            outputs: Some(&["model", "alias", "version", "previous_version"]),
            heavy: false,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        Literals::new(literals)
            .name("model", "a model")
            .name("alias", "an alias")
            .each("version", |version: u32| match version {
                0 => Err("is 0: versions count from 1".to_owned()),
                _ => Ok(()),
            })
            .problems()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        let with: With = read(&step.with)?;
        let message = SetAliasRequest {
            project: step.project.clone(),
            name: with.model.clone(),
            alias: with.alias.clone(),
            version: with.version,
        };
        let registry = &step.tools.registry;
        let previous = step
            .patiently("the registry", || registry.set_alias(message.clone()))
            .await
            .map_err(|error| StepError::of(&error))?;
        tracing::info!(
            model = with.model,
            alias = with.alias,
            version = with.version,
            "alias set"
        );
        outputs(&Outputs {
            model: with.model,
            alias: with.alias,
            version: with.version,
            previous_version: (previous > 0).then_some(previous),
        })
    }
}
