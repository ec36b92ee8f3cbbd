//! A pipeline as it is written.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::template::type_name;

/// The most steps of a pipeline.
pub const MAX_STEPS: usize = 200;
/// The most parameters of a pipeline.
pub const MAX_PARAMETERS: usize = 100;
/// The largest definition, as JSON.
pub const MAX_SPEC_BYTES: usize = 512 << 10;
/// The largest set of parameters of one run, as JSON.
pub const MAX_PARAMETERS_BYTES: usize = 64 << 10;
/// The most attempts that a step may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The longest wait between attempts, and the longest time that a step may be given.
pub(crate) const MAX_DURATION: Duration = Duration::from_hours(30 * 24);

/// What a pipeline does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What a run can be given, with the values that it takes otherwise: texts, numbers, truth values or null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub parameters: BTreeMap<String, Value>,
    /// The steps, in any order: 1 to 200.
    pub steps: Vec<StepSpec>,
}

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// What it does: `dataset`, `train`, `evaluate`, `gate`, `register`, `set-alias` or `value`.
    pub op: String,
    /// What the op is given; texts may hold expressions.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub with: Map<String, Value>,
    /// Steps that must succeed before it, beside those whose outputs it refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// An expression or truth value: when false, the step and what needs it is skipped, and the run still succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub when: Option<Value>,
    /// Whether it is tried again when it fails. A service that is away for a moment is waited for without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// The longest that one attempt may take, such as `30m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// How a failing step is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetrySpec {
    /// How many attempts in all: 1 to 100.
    pub attempts: u32,
    /// The wait before the second attempt, such as `10s`, which doubles before every further one.
    #[serde(default = "default_backoff")]
    pub backoff: String,
}

fn default_backoff() -> String {
    "10s".to_owned()
}

/// The parameters of a run: the pipeline's own, with those given in their place. All problems at once.
pub fn check_parameters(
    declared: &BTreeMap<String, Value>,
    given: &Map<String, Value>,
) -> Result<Map<String, Value>, Vec<String>> {
    let mut parameters: Map<String, Value> = declared.clone().into_iter().collect();
    let mut problems = Vec::new();
    for (name, value) in given {
        match declared.get(name) {
            None => {
                let known: Vec<String> = declared.keys().map(|name| format!("`{name}`")).collect();
                let known = if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                };
                problems.push(format!("there is no parameter `{name}`: the pipeline has {known}"));
            }
            Some(default) => match fit(default, value) {
                Ok(value) => {
                    parameters.insert(name.clone(), value);
                }
                Err(problem) => problems.push(format!("parameter `{name}` {problem}")),
            },
        }
    }
    if problems.is_empty() {
        Ok(parameters)
    } else {
        Err(problems)
    }
}

/// The value in the type of the default. Texts are read as numbers and truth values where the default is one: a command
/// line has only texts.
fn fit(default: &Value, value: &Value) -> Result<Value, String> {
    let refuse = || {
        Err(format!(
            "is {}, and must be {} like its default",
            type_name(value),
            type_name(default)
        ))
    };
    match (default, value) {
        (_, Value::Array(_) | Value::Object(_)) => Err(format!(
            "is {}: a parameter is a text, a number or a truth value",
            type_name(value)
        )),
        (Value::Number(_), Value::String(text)) => match serde_json::from_str::<serde_json::Number>(text) {
            Ok(number) => Ok(Value::Number(number)),
            Err(_) => refuse(),
        },
        (Value::Bool(_), Value::String(text)) => text.parse().map(Value::Bool).or_else(|_| refuse()),
        (Value::String(_), Value::Number(number)) => Ok(Value::String(number.to_string())),
        (Value::Null, _)
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_)) => Ok(value.clone()),
        _ => refuse(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(value: Value) -> Result<Map<String, Value>, Vec<String>> {
        let declared = json!({"dataset": "flights@latest", "trees": 150, "fast": false, "note": null});
        let declared: BTreeMap<String, Value> = serde_json::from_value(declared).unwrap();
        check_parameters(&declared, &serde_json::from_value(value).unwrap())
    }

    #[test]
    fn parameters_take_the_place_of_defaults_in_their_type() {
        let parameters = given(json!({"trees": "20", "fast": "true", "dataset": 7, "note": "x"})).unwrap();
        assert_eq!(
            Value::Object(parameters),
            json!({"dataset": "7", "trees": 20, "fast": true, "note": "x"})
        );
        assert_eq!(given(json!({})).unwrap()["trees"], 150);
    }

    #[test]
    fn all_problems_are_named() {
        let problems =
            given(json!({"tree": 1, "fast": "perhaps", "trees": "many", "note": [], "dataset": true})).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("no parameter `tree`")));
    }
}
