//! What the commands print.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes a line to standard output; a reader that went away is no error.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value as JSON to standard output.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// A table for people.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// A value as indented `key: value` lines for people.
pub fn outline(value: &Value) -> String {
    let mut lines = Vec::new();
    write_outline(value, 0, &mut lines);
    lines.join("\n")
}

fn write_outline(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if let Some(text) = scalar(value) {
                    lines.push(format!("{indent}{key}: {text}"));
                } else {
                    lines.push(format!("{indent}{key}:"));
                    write_outline(value, depth + 1, lines);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if let Some(text) = scalar(item) {
                    lines.push(format!("{indent}- {text}"));
                } else {
                    let mut inner = Vec::new();
                    write_outline(item, 0, &mut inner);
                    for (index, line) in inner.iter().enumerate() {
                        let bullet = if index == 0 { "- " } else { "  " };
                        lines.push(format!("{indent}{bullet}{line}"));
                    }
                }
            }
        }
        _ => lines.extend(scalar(value).map(|text| format!("{indent}{text}"))),
    }
}

/// A value that fits on its key's line.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Array(items) if items.is_empty() => Some("none".to_owned()),
        Value::Object(fields) if fields.is_empty() => Some("none".to_owned()),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            Some(items.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
        }
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// A progress bar on standard error, drawn only on a terminal and not beside JSON.
pub fn progress(format: Format, template: &str, length: u64) -> ProgressBar {
    let visible = format == Format::Text && std::io::stderr().is_terminal();
    let target = if visible {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_outline_reads_like_a_form() {
        let value =
            json!({"name": "m", "tags": {}, "shape": [1, 2], "routes": [{"model": "a", "weight": 1}, {"model": "b"}]});
        let expected = "name: m\nroutes:\n  - model: a\n    weight: 1\n  - model: b\nshape: 1, 2\ntags: none";
        assert_eq!(outline(&value), expected);
    }
}
