//! What the server's answers say: versions, windows, alerts and steps read from JSON.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    job::{MODEL, NEVER_RETRAINED},
    report::MonthRow,
};

pub fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// A whole number, also where it stands as text.
pub fn number(value: &Value, pointer: &str) -> Option<u64> {
    let value = value.pointer(pointer)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

pub fn items<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The one version that all gateways serve.
pub fn served(endpoint: &Value) -> Option<u64> {
    let mut nodes = endpoint.pointer("/status/nodes")?.as_array()?.iter();
    let first = nodes.next()?.get("serving")?;
    if !nodes.all(|node| node.get("serving") == Some(first)) {
        return None;
    }
    let [reference] = first.as_array()?.as_slice() else {
        return None;
    };
    reference.as_str()?.strip_prefix(MODEL)?.strip_prefix('/')?.parse().ok()
}

/// The answers of a role and version in a window.
pub fn group<'v>(window: &'v Value, role: &str, version: u64) -> Option<&'v Value> {
    items(window, "groups")
        .find(|group| text(group, "/role") == Some(role) && number(group, "/version") == Some(version))
}

pub fn live_row(prediction: &Value) -> Option<&Value> {
    items(prediction, "rows").find(|row| text(row, "/role") == Some("live"))
}

pub fn row_of(name: &str, version: u64, window: &Value) -> Result<MonthRow> {
    let live = group(window, "live", version);
    let live = live.with_context(|| format!("the window has no live answers of version {version}: {window}"))?;
    let shadow = group(window, "shadow", NEVER_RETRAINED);
    let shadow = shadow.with_context(|| format!("the window has no answers of the shadow: {window}"))?;
    let auc = |group: &Value| {
        let auc = group.pointer("/performance/auc").and_then(Value::as_f64);
        auc.with_context(|| format!("there is no AUC in {group}"))
    };
    let drift_share = live.pointer("/drift/share").and_then(Value::as_f64);
    Ok(MonthRow {
        month: name.to_owned(),
        requests: number(window, "/requests").context("the window counts no requests")?,
        version,
        auc: auc(live)?,
        auc_never_retrained: auc(shadow)?,
        drift_share: drift_share.with_context(|| format!("there is no drift in {live}"))?,
        alert: None,
        retrained_to: None,
    })
}

pub fn conditions(alert: &Value) -> String {
    let texts: Vec<&str> = items(alert, "conditions")
        .filter_map(|condition| text(condition, "/text"))
        .collect();
    texts.join("; ")
}

pub fn running_step(run: &Value) -> String {
    let running = items(run, "steps").find(|step| text(step, "/status") == Some("running"));
    let Some(step) = running else {
        return text(run, "/status").unwrap_or("unknown").to_owned();
    };
    let name = text(step, "/name").unwrap_or_default();
    let message = text(step, "/progress/message").unwrap_or_default();
    match (number(step, "/progress/done"), number(step, "/progress/total")) {
        (Some(done), Some(total)) => format!("{name}: {message} {done}/{total}"),
        _ => format!("{name} runs"),
    }
}

pub fn failed_steps(run: &Value) -> String {
    let failed = items(run, "steps").filter(|step| text(step, "/status") == Some("failed"));
    let texts: Vec<String> = failed
        .map(|step| {
            let name = text(step, "/name").unwrap_or_default();
            format!("step {name}: {}", text(step, "/error").unwrap_or("no reason given"))
        })
        .collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_serves_a_version_when_all_gateways_do() {
        let endpoint = |nodes: Value| json!({"status": {"nodes": nodes}});
        let one = json!({"serving": ["flight-delay/2"]});
        assert_eq!(served(&endpoint(json!([one]))), Some(2));
        assert_eq!(served(&endpoint(json!([one, one]))), Some(2));
        for nodes in [
            json!([]),
            json!([one, {"serving": ["flight-delay/1"]}]),
            json!([{"serving": ["flight-delay/1", "flight-delay/2"]}]),
            json!([{"serving": ["other/2"]}]),
        ] {
            assert_eq!(served(&endpoint(nodes.clone())), None, "{nodes}");
        }
    }

    #[test]
    fn a_month_is_read_from_its_window() {
        let group = |role: &str, version: Value, auc: f64| json!({"role": role, "version": version, "performance": {"auc": auc}, "drift": {"share": 0.25}});
        let window = json!({
            "requests": 10,
            "groups": [group("live", json!(2), 0.75), group("live", json!(3), 0.9), group("shadow", json!("1"), 0.7)],
        });
        let row = row_of("2013-04", 2, &window).unwrap();
        assert_eq!((row.requests, row.version), (10, 2));
        assert!((row.auc - 0.75).abs() < 1e-12 && (row.auc_never_retrained - 0.7).abs() < 1e-12);
        assert!(row_of("2013-04", 4, &window).is_err());
    }
}
