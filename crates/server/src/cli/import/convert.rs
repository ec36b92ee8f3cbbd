//! What MLflow's answers say, as our import takes it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::mlflow::{list, number, text};

/// The tag of a dataset input that says what the dataset was read for.
const CONTEXT_TAG: &str = "mlflow.data.context";
/// The tag of a prompt with the experiments that it belongs to.
const EXPERIMENTS_TAG: &str = "_mlflow_experiment_ids";
/// The name of a run whose server keeps it as a tag only.
const RUN_NAME_TAG: &str = "mlflow.runName";

/// Keys and values as an object.
pub fn texts(pairs: &[Value]) -> Map<String, Value> {
    let texts = pairs.iter().filter(|pair| !text(pair, "key").is_empty());
    let texts = texts.map(|pair| (text(pair, "key").to_owned(), json!(text(pair, "value"))));
    texts.collect()
}

fn part<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

fn some_text(value: &Value, key: &str) -> Option<String> {
    Some(text(value, key).to_owned()).filter(|text| !text.is_empty())
}

fn lifecycle(value: &Value) -> &'static str {
    if text(value, "lifecycle_stage") == "deleted" {
        "deleted"
    } else {
        "active"
    }
}

/// An experiment, under the name that it gets here.
pub fn experiment(found: &Value, name: &str) -> Value {
    let created = number(found, "creation_time").unwrap_or_default();
    json!({
        "source_id": text(found, "experiment_id"),
        "name": name,
        "lifecycle": lifecycle(found),
        "tags": texts(list(found, "tags")),
        "created_ms": created,
        "updated_ms": number(found, "last_update_time").unwrap_or(created),
    })
}

/// A run with all but its metrics and artifacts.
pub fn run(found: &Value) -> Value {
    let (info, data) = (part(found, "info"), part(found, "data"));
    let run_id = run_id(found);
    let tags = texts(list(data, "tags"));
    let tagged = tags.get(RUN_NAME_TAG).and_then(Value::as_str).unwrap_or_default();
    let names = [text(info, "run_name"), tagged, run_id];
    let name = names.into_iter().find(|name| !name.trim().is_empty()).unwrap_or(run_id);
    let status = text(info, "status");
    json!({
        "run_id": run_id,
        "name": name,
        "user_id": text(info, "user_id"),
        "status": if status.is_empty() { "RUNNING" } else { status },
        "lifecycle": lifecycle(info),
        "start_ms": number(info, "start_time").unwrap_or_default(),
        "end_ms": number(info, "end_time").filter(|end| *end > 0),
        "params": texts(list(data, "params")),
        "tags": tags,
        "datasets": datasets(part(found, "inputs")),
        "models": models(found),
    })
}

/// The id of a run, under its old name or its new one.
pub fn run_id(found: &Value) -> &str {
    let info = part(found, "info");
    let id = text(info, "run_id");
    if id.is_empty() { text(info, "run_uuid") } else { id }
}

/// The metrics of a run, of which the latest point is known, in their order.
pub fn metric_keys(found: &Value) -> Vec<String> {
    let metrics = list(part(found, "data"), "metrics").iter();
    let mut keys: Vec<String> = metrics.map(|metric| text(metric, "key").to_owned()).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// How and when a run ended, so that what was read of it is all; None: it goes on.
pub fn run_ending(found: &Value) -> Option<String> {
    let info = part(found, "info");
    let status = text(info, "status");
    let is_over = matches!(status, "FINISHED" | "FAILED" | "KILLED");
    is_over.then(|| format!("{status} {}", number(info, "end_time").unwrap_or_default()))
}

/// How a logged model ended; None: it is being made.
pub fn logged_model_ending(converted: &Value) -> Option<String> {
    let status = text(converted, "status");
    (status != "LOGGED_MODEL_PENDING").then(|| status.to_owned())
}

fn datasets(inputs: &Value) -> Vec<Value> {
    let datasets = list(inputs, "dataset_inputs").iter().map(|input| {
        let dataset = part(input, "dataset");
        let tags = texts(list(input, "tags"));
        let context = tags.get(CONTEXT_TAG).and_then(Value::as_str).unwrap_or_default();
        let others: Vec<_> = tags.iter().filter(|(key, _)| *key != CONTEXT_TAG).collect();
        json!({
            "name": text(dataset, "name"),
            "digest": text(dataset, "digest"),
            "context": context,
            "source_type": text(dataset, "source_type"),
            "source": text(dataset, "source"),
            "schema": some_text(dataset, "schema"),
            "profile": some_text(dataset, "profile"),
            "tags": others,
        })
    });
    datasets.collect()
}

fn models(found: &Value) -> Vec<Value> {
    let mut models = Vec::new();
    for (holder, key, role) in [
        ("inputs", "model_inputs", "input"),
        ("outputs", "model_outputs", "output"),
    ] {
        for model in list(part(found, holder), key) {
            let step = number(model, "step").unwrap_or_default();
            models.push(json!({"model_id": text(model, "model_id"), "role": role, "step": step}));
        }
    }
    models
}

/// A point of a metric.
pub fn point(found: &Value) -> Value {
    json!({
        "timestamp_ms": number(found, "timestamp").unwrap_or_default(),
        "step": number(found, "step").unwrap_or_default(),
        "value": found.get("value").cloned().unwrap_or(json!(0)),
    })
}

/// A logged model with all but its files.
pub fn logged_model(found: &Value) -> Value {
    let (info, data) = (part(found, "info"), part(found, "data"));
    let metrics = list(data, "metrics").iter().map(|metric| {
        json!({
            "key": text(metric, "key"),
            "run_id": text(metric, "run_id"),
            "dataset_name": text(metric, "dataset_name"),
            "dataset_digest": text(metric, "dataset_digest"),
            "point": point(metric),
        })
    });
    let created = number(info, "creation_timestamp_ms").unwrap_or_default();
    json!({
        "model_id": text(info, "model_id"),
        "name": text(info, "name"),
        "model_type": text(info, "model_type"),
        "status": text(info, "status"),
        "source_run_id": some_text(info, "source_run_id"),
        "params": texts(list(data, "params")),
        "tags": texts(list(info, "tags")),
        "metrics": metrics.collect::<Vec<_>>(),
        "created_ms": created,
        "updated_ms": number(info, "last_updated_timestamp_ms").unwrap_or(created),
    })
}

/// A registered model or prompt, under the name that it gets here. `experiments` has the ids here of those there.
pub fn model(found: &Value, name: &str, experiments: &BTreeMap<String, String>) -> Value {
    let mut tags = texts(list(found, "tags"));
    if let Some(value) = tags.get_mut(EXPERIMENTS_TAG) {
        let mapped = map_ids(value.as_str().unwrap_or_default(), experiments);
        *value = json!(mapped);
    }
    let created = number(found, "creation_timestamp").unwrap_or_default();
    json!({
        "source_id": text(found, "name"),
        "name": name,
        "description": text(found, "description"),
        "tags": tags,
        "created_ms": created,
        "updated_ms": number(found, "last_updated_timestamp").unwrap_or(created),
    })
}

/// A list of ids of experiments between commas, with their ids here; what was not imported is left out.
fn map_ids(ids: &str, experiments: &BTreeMap<String, String>) -> String {
    let mapped = ids.split(',').filter_map(|id| experiments.get(id.trim()));
    let mapped: Vec<&str> = mapped.map(String::as_str).collect();
    if mapped.is_empty() {
        return String::new();
    }
    format!(",{},", mapped.join(","))
}

/// A version, with the source that it has here.
pub fn version(found: &Value, source: &str) -> Value {
    let logged = source
        .strip_prefix("models:/")
        .filter(|rest| !rest.contains(['/', '@']));
    let model_id = some_text(found, "model_id").or_else(|| logged.map(str::to_owned));
    let created = number(found, "creation_timestamp").unwrap_or_default();
    json!({
        "version": number(found, "version").unwrap_or_default(),
        "description": text(found, "description"),
        "user_id": text(found, "user_id"),
        "stage": text(found, "current_stage"),
        "status": text(found, "status"),
        "status_message": text(found, "status_message"),
        "source": source,
        "run_id": some_text(found, "run_id"),
        "run_link": text(found, "run_link"),
        "model_id": model_id,
        "tags": texts(list(found, "tags")),
        "created_ms": created,
        "updated_ms": number(found, "last_updated_timestamp").unwrap_or(created),
    })
}

/// Where the files of a version are here: what its source there was, with the ids that things have here.
///
/// `run_home` is the experiment here of the version's run, where that was imported.
pub fn version_source(
    found: &Value,
    run_home: Option<&str>,
    experiments: &BTreeMap<String, String>,
    renamed: &BTreeMap<String, String>,
) -> String {
    let source = text(found, "source");
    if let Some((name, version)) = source.strip_prefix("models:/").and_then(|rest| rest.split_once('/')) {
        let name = renamed.get(name).map_or(name, String::as_str);
        return format!("models:/{name}/{version}");
    }
    let run_id = text(found, "run_id");
    let marker = format!("/{run_id}/artifacts");
    // Wherever the run's artifacts were, they are in the server's own store now.
    if let (Some(home), false, Some((_, path))) = (run_home, run_id.is_empty(), source.split_once(&marker))
        && (path.is_empty() || path.starts_with('/'))
    {
        return format!("mlflow-artifacts:/{home}/{run_id}/artifacts{path}");
    }
    let Some(path) = source.strip_prefix("mlflow-artifacts:/") else {
        return source.to_owned();
    };
    match path.trim_start_matches('/').split_once('/') {
        Some((id, rest)) if experiments.contains_key(id) => {
            format!(
                "mlflow-artifacts:/{}/{rest}",
                experiments.get(id).map_or(id, String::as_str)
            )
        }
        _ => source.to_owned(),
    }
}

/// What something looks like, in few digits: the same in whatever order its parts are told.
pub fn fingerprint(parts: &[&Value]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(sorted(part).to_string());
        hash.update([0]);
    }
    hex::encode(hash.finalize())
}

/// The same with all lists in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => {
            // In one order, whether or not `serde_json` is built to keep that of the text.
            let fields: BTreeMap<_, _> = fields.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiments() -> BTreeMap<String, String> {
        BTreeMap::from([("1".to_owned(), "7".to_owned()), ("2".to_owned(), "8".to_owned())])
    }

    #[test]
    fn a_run_comes_with_all_that_it_has() {
        let found = json!({
            "info": {"run_uuid": "a", "run_name": "n", "status": "KILLED", "start_time": "5", "lifecycle_stage": "deleted"},
            "data": {"params": [{"key": "p", "value": "1"}], "tags": [{"key": "t", "value": "x"}],
                     "metrics": [{"key": "m", "value": 1, "timestamp": 1}, {"key": "a", "value": 2, "timestamp": 1}]},
            "inputs": {"dataset_inputs": [{"tags": [{"key": "mlflow.data.context", "value": "train"}],
                                           "dataset": {"name": "d", "digest": "0", "source_type": "s", "source": "{}"}}],
                       "model_inputs": [{"model_id": "m-1"}]},
            "outputs": {"model_outputs": [{"model_id": "m-2", "step": 3}]},
        });
        let converted = run(&found);
        assert_eq!(converted["run_id"], "a");
        assert_eq!(
            (&converted["status"], &converted["lifecycle"]),
            (&json!("KILLED"), &json!("deleted"))
        );
        assert_eq!(
            (&converted["start_ms"], &converted["end_ms"]),
            (&json!(5), &Value::Null)
        );
        assert_eq!(converted["datasets"][0]["context"], "train");
        assert_eq!(
            converted["models"][1],
            json!({"model_id": "m-2", "role": "output", "step": 3})
        );
        assert_eq!(metric_keys(&found), ["a", "m"]);
        assert!(run_ending(&found).is_some());
    }

    #[test]
    fn sources_are_followed_to_here() {
        let renamed = BTreeMap::from([("old".to_owned(), "new".to_owned())]);
        let source = |source: &str, run_id: &str, home| {
            let found = json!({"source": source, "run_id": run_id});
            version_source(&found, home, &experiments(), &renamed)
        };
        for (from, run_id, home, expected) in [
            (
                "mlflow-artifacts:/1/r/artifacts/m",
                "r",
                Some("7"),
                "mlflow-artifacts:/7/r/artifacts/m",
            ),
            (
                "/srv/mlruns/1/r/artifacts/m",
                "r",
                Some("7"),
                "mlflow-artifacts:/7/r/artifacts/m",
            ),
            (
                "s3://b/1/r/artifacts",
                "r",
                Some("7"),
                "mlflow-artifacts:/7/r/artifacts",
            ),
            ("s3://b/1/r/artifacts", "r", None, "s3://b/1/r/artifacts"),
            ("s3://b/1/r/artifactsX/m", "r", Some("7"), "s3://b/1/r/artifactsX/m"),
            (
                "mlflow-artifacts:/2/models/m-1/artifacts",
                "",
                None,
                "mlflow-artifacts:/8/models/m-1/artifacts",
            ),
            ("mlflow-artifacts:/3/x", "", None, "mlflow-artifacts:/3/x"),
            ("models:/old/3", "", None, "models:/new/3"),
            ("models:/m-1", "r", Some("7"), "models:/m-1"),
            ("runs:/r/m", "r", Some("7"), "runs:/r/m"),
            ("dummy-source", "", None, "dummy-source"),
        ] {
            assert_eq!(source(from, run_id, home), expected, "{from}");
        }
    }

    #[test]
    fn a_version_of_a_logged_model_names_it() {
        assert_eq!(version(&json!({"version": "2"}), "models:/m-1")["model_id"], "m-1");
        assert_eq!(
            version(&json!({"version": "2"}), "models:/a/1")["model_id"],
            Value::Null
        );
    }

    #[test]
    fn ids_of_experiments_become_ours() {
        assert_eq!(map_ids(",1,2,9,", &experiments()), ",7,8,");
        assert_eq!(map_ids("", &experiments()), "");
    }

    #[test]
    fn fingerprints_are_of_what_is_said_and_not_of_its_order() {
        let one = fingerprint(&[&json!({"a": [1, 2], "b": 3})]);
        assert_eq!(one, fingerprint(&[&json!({"b": 3, "a": [2, 1]})]));
        assert_ne!(one, fingerprint(&[&json!({"b": 3, "a": [2, 2]})]));
    }
}
