//! `predict`, and the story of a prediction for `describe`.

use std::{io::Read, path::PathBuf};

use anyhow::Context;
use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::{ConnectionArguments, output};

#[derive(Args)]
pub struct PredictArguments {
    /// Endpoint
    endpoint: String,
    /// File with the request as JSON: {"inputs": [{"name", "datatype", "shape", "data"}]}; `-` reads standard input
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    connection: ConnectionArguments,
}

pub async fn predict(arguments: &PredictArguments) -> anyhow::Result<()> {
    let text = if arguments.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input cannot be read")?;
        text
    } else {
        std::fs::read_to_string(&arguments.file)
            .with_context(|| format!("`{}` cannot be read", arguments.file.display()))?
    };
    let body: Value = serde_json::from_str(&text).context("the request is not JSON")?;
    let client = arguments.connection.client()?;
    let path = format!("/v2/models/{}/infer", arguments.endpoint);
    let answer = client.send(client.request(Method::POST, &path).json(&body)).await?;
    output::print_json(&answer)
}

/// The largest number up to which every whole one is a double.
const MAX_WHOLE: f64 = (1_u64 << 53) as f64;

/// A label for people. Labels that are numbers are doubles wherever they are kept, because targets may be any number; a
/// whole one is written as it was sent.
fn label_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.fract() == 0.0 && number.abs() <= MAX_WHOLE => {
                // Adding zero takes the sign from a negative zero.
                format!("{:.0}", number + 0.0)
            }
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// What is known of a prediction, for people: which version served it, what that was trained on, how it turned out.
pub fn story(found: &Value) -> String {
    let text = |value: &Value, pointer: &str| match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) if !value.is_null() => value.to_string(),
        _ => "-".to_owned(),
    };
    let mut lines = vec![format!(
        "prediction {} of endpoint {}",
        text(found, "/request_id"),
        text(found, "/endpoint")
    )];
    let none = Vec::new();
    for row in found.pointer("/rows").and_then(Value::as_array).unwrap_or(&none) {
        lines.push(format!(
            "  {} answer by {}/{} at {} ({} us over {})",
            text(row, "/role"),
            text(row, "/model"),
            text(row, "/version"),
            text(row, "/event_time"),
            text(row, "/latency_us"),
            text(row, "/protocol"),
        ));
        lines.push(format!("    inputs   {}", text(row, "/inputs")));
        lines.push(format!("    outputs  {}", text(row, "/outputs")));
        match row.pointer("/label") {
            Some(label) if !label.is_null() => lines.push(format!(
                "    label    {} (known since {})",
                label.pointer("/value").map_or_else(|| "-".to_owned(), label_text),
                text(label, "/observed_at")
            )),
            _ => lines.push("    label    not known yet".to_owned()),
        }
    }
    if let Some(version) = found.pointer("/model_version").filter(|version| !version.is_null()) {
        lines.push("served by".to_owned());
        lines.extend(output::outline(version).lines().map(|line| format!("  {line}")));
    }
    if let Some(run) = found.pointer("/run").filter(|run| !run.is_null()) {
        lines.push("trained by run".to_owned());
        lines.extend(output::outline(run).lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn label_line(label: &Value) -> String {
        let row = json!({"role": "live", "label": {"value": label, "observed_at": "2013-04-01T00:00:00Z"}});
        let story = story(&json!({"request_id": "r", "endpoint": "e", "rows": [row]}));
        let line = story.lines().find(|line| line.contains("label")).unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn labels_are_printed_as_they_were_sent() {
        for (label, text) in [
            (json!(1.0), "1"),
            (json!(0.0), "0"),
            (json!(-3.0), "-3"),
            (json!(7), "7"),
            (json!(0.25), "0.25"),
            (json!(-0.0), "0"),
            (json!("late"), "late"),
            (json!(true), "true"),
        ] {
            assert_eq!(
                label_line(&label),
                format!("label    {text} (known since 2013-04-01T00:00:00Z)")
            );
        }
    }
}
