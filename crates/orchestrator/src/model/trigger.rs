//! A trigger as it is written.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::template::{Reference, references};
use modelyard_common::name::check_name;

/// The longest key that a trigger is fired with.
pub const MAX_KEY_BYTES: usize = 256;
/// The largest event, as JSON.
pub const MAX_EVENT_BYTES: usize = 256 << 10;

/// Which pipeline an event starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TriggerSpec {
    /// The pipeline. It need not exist before the trigger is fired.
    pub pipeline: String,
    /// The parameters of the run; texts may refer to the event as `{{ event.NAME }}`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub parameters: Map<String, Value>,
}

impl TriggerSpec {
    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = check_name("a pipeline", &self.pipeline) {
            problems.push(format!("pipeline: {error}"));
        }
        for (name, value) in &self.parameters {
            let (found, errors) = references(value);
            problems.extend(errors.iter().map(|error| format!("parameters.{name}: {error}")));
            let foreign = found
                .iter()
                .filter(|reference| !matches!(reference, Reference::Event(_)));
            problems.extend(foreign.map(|reference| {
                format!("parameters.{name}: `{reference}` means nothing in a trigger, which knows its event only: write event.NAME")
            }));
        }
        problems
    }
}
