//! What the commands print.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

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

/// Writes a line for people to standard error, beside the output. That nobody reads it is no error.
pub fn hint(line: &str) {
    // Nothing is left to be done about it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A column of a list: its title, and its text in the row of an item.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// What stands in it.
    pub text: fn(&Value) -> String,
}

/// A column.
pub const fn column(title: &'static str, text: fn(&Value) -> String) -> Column {
    Column { title, text }
}

/// The items of a list, as JSON or as a table with these columns.
pub fn print_list(items: &[Value], columns: &[Column], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return print_json(&json!({ "items": items }));
    }
    let titles: Vec<_> = columns.iter().map(|column| column.title).collect();
    let rows = items
        .iter()
        .map(|item| columns.iter().map(|column| (column.text)(item)).collect());
    print_line(&table(&titles, rows))
}

/// One thing, as JSON or as an outline.
pub fn print_one(value: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(value),
        Format::Text => print_line(&outline(value)),
    }
}

/// The first of the values at these JSON pointers that says something in a word or a list of words; else `-`.
pub fn text_at(item: &Value, pointers: &[&str]) -> String {
    let mut found = pointers.iter().filter_map(|pointer| words(item.pointer(pointer)?));
    found.next().unwrap_or_else(|| "-".to_owned())
}

fn words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Array(items) if !items.is_empty() => {
            let words: Option<Vec<_>> = items.iter().map(words).collect();
            Some(words?.join(", "))
        }
        _ => None,
    }
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

/// Facts for people, a line each, beginning with their names.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines: Vec<_> = facts
        .iter()
        .map(|(name, fact)| format!("{name:width$}  {fact}"))
        .collect();
    lines.join("\n")
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
            // In one order, whether or not `serde_json` is built to keep that of the text.
            let fields: BTreeMap<_, _> = fields.iter().collect();
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
    use super::*;

    #[test]
    fn cells_are_words() {
        let item = json!({
            "empty": "", "none": null, "name": "alice", "count": 3, "yes": true, "no": false,
            "groups": ["a", "b"], "nobody": [], "spec": {"place": "*"}, "nested": [[], {}],
        });
        for (pointers, expected) in [
            (&["/name"][..], "alice"),
            (&["/empty", "/none", "/missing", "/count"], "3"),
            (&["/yes"], "yes"),
            (&["/no", "/yes"], "no"),
            (&["/groups"], "a, b"),
            (&["/spec", "/spec/place"], "*"),
            (&["/nobody", "/nested", "/spec"], "-"),
        ] {
            assert_eq!(text_at(&item, pointers), expected, "{pointers:?}");
        }
    }

    #[test]
    fn an_outline_reads_like_a_form() {
        let value =
            json!({"name": "m", "tags": {}, "shape": [1, 2], "routes": [{"model": "a", "weight": 1}, {"model": "b"}]});
        let expected = "name: m\nroutes:\n  - model: a\n    weight: 1\n  - model: b\nshape: 1, 2\ntags: none";
        assert_eq!(outline(&value), expected);
    }
}
