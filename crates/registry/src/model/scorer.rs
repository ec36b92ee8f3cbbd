//! Scorers, which say how the traces of an experiment are judged. The server keeps them, and never runs them.

use modelyard_common::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::mlflow_registry::shown;
use crate::error::{Error, Result};

/// The longest name of a scorer, in characters.
pub const MAX_SCORER_NAME: usize = 256;
/// The longest text of a scorer, in bytes.
pub const MAX_SCORER_BYTES: usize = 1 << 18;
/// The most scorers of an experiment.
pub const MAX_SCORERS: i64 = 200;
/// The most versions that a scorer has at once.
pub const MAX_SCORER_VERSIONS: i64 = 200;
/// The most scorers of one answer.
pub const MAX_LISTED_SCORERS: usize = 1000;
/// The most bytes of all texts of one answer.
pub const MAX_LISTED_BYTES: i64 = 32 << 20;
/// The longest filter of an online configuration, in bytes.
pub const MAX_SCORER_FILTER_BYTES: usize = 10_000;
/// The kinds of scorers that name a model.
const WITH_MODEL: [&str; 4] = [
    "instructions_judge_pydantic_data",
    "builtin_scorer_pydantic_data",
    "memory_augmented_judge_data",
    THIRD_PARTY,
];
/// The part of a scorer that another library evaluates.
const THIRD_PARTY: &str = "third_party_scorer_data";
/// Options that say where a library sends its requests.
const DESTINATIONS: [&str; 5] = ["api_base", "base_url", "custom_llm_provider", "fallbacks", "model_list"];
/// What models of a gateway begin with.
const GATEWAY: &str = "gateway:/";

/// A version of a scorer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScorerVersion {
    /// The id of the scorer, one for all its versions.
    pub scorer_id: String,
    /// The number of its experiment.
    pub experiment_id: i64,
    /// Its name.
    pub name: String,
    /// The number of the version.
    pub version: i64,
    /// The scorer as JSON, as its client wrote it.
    pub serialized: String,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// Which part of the new traces a scorer is meant for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScorerOnlineConfig {
    /// Its id.
    pub id: String,
    /// The id of the scorer.
    pub scorer_id: String,
    /// The number of the experiment.
    pub experiment_id: i64,
    /// The part of the traces, from 0 to 1.
    pub sample_rate: f64,
    /// Which traces, as searches of traces are written.
    pub filter: Option<String>,
}

/// Whether code that would be executed is anywhere in a scorer.
fn has_code(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            map.get("call_source").is_some_and(|source| !source.is_null()) || map.values().any(has_code)
        }
        Value::Array(values) => values.iter().any(has_code),
        _ => false,
    }
}

/// Whether an option is anywhere in options; pairs of a name and a value are options, too.
fn has_option(options: &Value, name: &str) -> bool {
    match options {
        Value::Object(map) => map.contains_key(name) || map.values().any(|value| has_option(value, name)),
        Value::Array(values) => values.iter().any(|value| {
            let pair = value.as_array().filter(|pair| pair.len() == 2);
            pair.and_then(|pair| pair.first()).and_then(Value::as_str) == Some(name) || has_option(value, name)
        }),
        _ => false,
    }
}

/// Refuses options of other libraries that would send what is judged to a place of the client's choice.
fn check_third_party(value: &Value) -> Result<()> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_third_party),
        Value::Object(map) => {
            if let Some(options) = map.get(THIRD_PARTY).and_then(|data| data.get("kwargs")) {
                if !options.is_object() && !options.is_null() {
                    return Err(Error::request("third_party_scorer_data.kwargs must be a JSON object."));
                }
                if let Some(name) = DESTINATIONS.iter().find(|name| has_option(options, name)) {
                    return Err(Error::request(format!(
                        "third_party_scorer_data.kwargs must not contain '{name}': it chooses where the scorer's LLM \
                         client sends requests. Set it where the scorer runs."
                    )));
                }
            }
            map.values().try_for_each(check_third_party)
        }
        _ => Ok(()),
    }
}

/// The model that a scorer names.
fn model_of(scorer: &Value) -> Option<&Value> {
    let parts = WITH_MODEL.iter().filter_map(|kind| scorer.get(kind));
    let mut models = parts.filter_map(|part| match part.get("base_judge") {
        Some(base) => model_of(base),
        None => part.get("model"),
    });
    models.find(|model| !model.is_null())
}

/// Whether the model of a scorer is one of a gateway.
#[must_use]
pub fn uses_gateway(serialized: &str) -> bool {
    let scorer: Option<Value> = serde_json::from_str(serialized).ok();
    let model = scorer.as_ref().and_then(model_of).and_then(Value::as_str);
    model.is_some_and(|model| model.starts_with(GATEWAY))
}

/// Refuses a scorer that nobody should load.
pub fn check_scorer(name: &str, serialized: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::request(
            "Scorer name cannot be empty or contain only whitespace.",
        ));
    }
    if name.chars().count() > MAX_SCORER_NAME {
        return Err(Error::request(format!(
            "the name of a scorer is longer than {MAX_SCORER_NAME} characters: shorten it"
        )));
    }
    if serialized.len() > MAX_SCORER_BYTES {
        return Err(Error::request(format!(
            "serialized_scorer has {} bytes: use at most {MAX_SCORER_BYTES}",
            serialized.len()
        )));
    }
    let scorer: Value =
        serde_json::from_str(serialized).map_err(|_| Error::request("serialized_scorer must be valid JSON"))?;
    if has_code(&scorer) {
        return Err(Error::request(
            "Custom scorer registration (using @scorer decorator) is not supported: whoever loads such a scorer runs its \
             code. Keep its code in a repository and import it from there, or use a built-in scorer or a judge made \
             with `make_judge`.",
        ));
    }
    check_third_party(&scorer)?;
    match model_of(&scorer) {
        Some(Value::String(model)) if model.trim().is_empty() => Err(Error::request(
            "Scorer model cannot be empty or contain only whitespace.",
        )),
        None | Some(Value::String(_)) => Ok(()),
        Some(_) => Err(Error::request("Scorer model must be a string.")),
    }
}

/// What a scorer or a version that is not there is answered with.
pub(crate) fn no_scorer(experiment_id: i64, name: &str, version: Option<i64>) -> Error {
    let name = shown(name);
    Error::NotThere(match version {
        None => format!("Scorer with name '{name}' not found for experiment {experiment_id}."),
        Some(version) => {
            format!("Scorer with name '{name}' and version {version} not found for experiment {experiment_id}.")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scorers_with_code_are_refused() {
        check_scorer("a", r#"{"name": "a", "call_source": null}"#).unwrap();
        for text in [r#"{"call_source": "x"}"#, r#"{"a": [{"call_source": "x"}]}"#, "{", ""] {
            assert!(check_scorer("a", text).is_err(), "{text}");
        }
        for options in ["[]", r#"{"api_base": "x"}"#, r#"{"a": [["base_url", "x"]]}"#] {
            let text = format!(r#"{{"a": [{{"third_party_scorer_data": {{"kwargs": {options}}}}}]}}"#);
            assert!(check_scorer("a", &text).is_err(), "{text}");
        }
        check_scorer("a", r#"{"third_party_scorer_data": {"kwargs": {"threshold": 1}}}"#).unwrap();
        assert!(check_scorer(" ", "{}").is_err() && check_scorer(&"a".repeat(257), "{}").is_err());
    }

    #[test]
    fn models_are_found() {
        assert!(uses_gateway(
            r#"{"instructions_judge_pydantic_data": {"model": "gateway:/x"}}"#
        ));
        assert!(!uses_gateway(
            r#"{"instructions_judge_pydantic_data": {"model": "openai:/x"}}"#
        ));
        assert!(check_scorer("a", r#"{"instructions_judge_pydantic_data": {"model": " "}}"#).is_err());
    }
}
