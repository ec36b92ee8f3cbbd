//! The JSON Schema of the configuration, and the page of the documentation that is made of it. Both come from the types
//! alone: a section needs nothing but its derive and its doc comments.

use std::fmt::Write as _;

use modelyard_common::config::{DURATION_PATTERN, ENVIRONMENT_PREFIX, ENVIRONMENT_SEPARATOR, SIZE_PATTERN};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::serve::Config;

/// What stands before the first table.
const INTRODUCTION: &str = "\
# Configuration reference

<!-- Made by `cargo xtask codegen` of the configuration's types: change their doc comments, and run it again. -->

Every key, with the environment variable that sets it. [Configuration](configuration.md) tells where values come from, and
`modelyard config schema` prints this as JSON Schema, which editors check a file with. Durations are written as `30s`, `10m` or
`14days`, sizes as `64MiB`, and lists in the environment as `[a, b]`. A key without a default is not set.
";

/// The JSON Schema of the configuration (draft 2020-12).
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>();
    schema.insert("title".to_owned(), "The configuration of Modelyard".into());
    schema.to_value()
}

/// The page that tells all keys of a schema.
pub fn page(schema: &Value) -> String {
    let mut page = INTRODUCTION.to_owned();
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let (sections, keys): (Vec<_>, Vec<_>) = properties.iter().partition(|(_, schema)| is_table(schema));
    let mut rows = Vec::new();
    for (key, schema) in keys {
        add_rows(key, Some(key.to_uppercase()), schema, &mut rows);
    }
    add_table(&mut page, "Top level", "", &mut rows);
    for (key, schema) in sections {
        let mut rows = Vec::new();
        add_rows(key, Some(key.to_uppercase()), schema, &mut rows);
        add_table(&mut page, &format!("`{key}`"), description(schema), &mut rows);
    }
    page
}

/// A key of the configuration.
struct Row {
    key: String,
    /// Without the prefix; none where no variable leads to it.
    variable: Option<String>,
    kind: String,
    default: String,
    meaning: String,
}

fn add_table(page: &mut String, title: &str, introduction: &str, rows: &mut Vec<Row>) {
    // The schema's order depends on how a JSON library was built.
    rows.sort_by(|left, right| left.key.cmp(&right.key));
    // Writing to a string cannot fail.
    let _ = write!(page, "\n## {title}\n\n");
    if !introduction.is_empty() {
        let _ = write!(page, "{}\n\n", line(introduction));
    }
    page.push_str("| key | environment variable | type | default | meaning |\n| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let variable = row
            .variable
            .as_ref()
            .map_or_else(String::new, |name| format!("`{ENVIRONMENT_PREFIX}{name}`"));
        let cells = [
            &format!("`{}`", row.key),
            &variable,
            &row.kind,
            &row.default,
            &row.meaning,
        ];
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

/// The rows of a key, or of everything below it.
fn add_rows(key: &str, variable: Option<String>, schema: &Value, rows: &mut Vec<Row>) {
    let tables = tables_of(schema);
    if tables.is_empty() {
        rows.push(Row {
            key: key.to_owned(),
            variable,
            kind: kind(schema),
            default: default(schema),
            meaning: meaning(schema),
        });
        return;
    }
    for table in tables {
        let (below, of_names) = match table {
            Table::Named(properties) => {
                for (name, schema) in properties {
                    let variable = variable
                        .as_ref()
                        .map(|variable| format!("{variable}{ENVIRONMENT_SEPARATOR}{}", name.to_uppercase()));
                    add_rows(&format!("{key}.{name}"), variable, schema, rows);
                }
                continue;
            }
            Table::Listed(schema) => (schema, "[]"),
            Table::ByName(schema) => (schema, ".NAME"),
        };
        add_rows(&format!("{key}{of_names}"), None, below, rows);
    }
    // Variants of a table share keys.
    rows.dedup_by(|left, right| left.key == right.key && left.meaning == right.meaning);
}

/// What a key has below it.
enum Table<'a> {
    /// Keys that are known.
    Named(&'a Map<String, Value>),
    /// A list of tables.
    Listed(&'a Value),
    /// A table with names that the user chooses.
    ByName(&'a Value),
}

fn is_table(schema: &Value) -> bool {
    !tables_of(schema).is_empty()
}

/// The tables that a schema means; none where it means a plain value.
fn tables_of(schema: &Value) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        tables.push(Table::Named(properties));
    } else if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        tables.push(Table::ByName(values));
    } else if let Some(items) = schema.get("items").filter(|items| is_table(items)) {
        tables.push(Table::Listed(items));
    }
    tables.extend(variants(schema).flat_map(tables_of));
    tables
}

/// What a schema lets choose from, without nothing.
fn variants(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key));
    lists
        .filter_map(Value::as_array)
        .flatten()
        .filter(|variant| variant.get("type").and_then(Value::as_str) != Some("null"))
}

/// What a value is, for people.
fn kind(schema: &Value) -> String {
    let words = choices(schema);
    if !words.is_empty() {
        return any_of(&words);
    }
    let kinds: Vec<String> = variants(schema).map(kind).collect();
    if !kinds.is_empty() {
        return any_of(&kinds);
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.and_then(Value::as_str),
    };
    match kind {
        Some("string") if schema.get("writeOnly").is_some() => "secret".to_owned(),
        Some("string") if text("pattern") == Some(DURATION_PATTERN) => "duration".to_owned(),
        Some("string") if text("pattern") == Some(SIZE_PATTERN) => "size".to_owned(),
        Some("string") => "text".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("number") => "number".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => {
            let items = schema.get("items").map(kind_of_item).unwrap_or_default();
            format!("list of {items}")
        }
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    }
}

fn kind_of_item(schema: &Value) -> String {
    match kind(schema).as_str() {
        "text" => "texts".to_owned(),
        kind => kind.to_owned(),
    }
}

/// The words that are allowed, where a value is one of some words.
fn choices(schema: &Value) -> Vec<String> {
    let quoted = |word: &Value| word.as_str().map(|word| format!("`{word}`"));
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let described = variants(schema).flat_map(|variant| {
        let listed = variant.get("enum").and_then(Value::as_array).into_iter().flatten();
        variant.get("const").into_iter().chain(listed)
    });
    let own = schema.get("const").into_iter();
    own.chain(listed).chain(described).filter_map(quoted).collect()
}

fn any_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn default(schema: &Value) -> String {
    match schema.get("default") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    }
}

fn description(schema: &Value) -> &str {
    schema.get("description").and_then(Value::as_str).unwrap_or_default()
}

/// The description, with those of the words that can be chosen.
fn meaning(schema: &Value) -> String {
    let mut meaning = line(description(schema));
    let items = schema.get("items").into_iter();
    for variant in items.flat_map(variants).chain(variants(schema)) {
        if let Some(word) = variant.get("const").and_then(Value::as_str) {
            let _ = write!(meaning, " `{word}`: {}", line(description(variant)));
        }
    }
    meaning.trim().to_owned()
}

/// A text of several lines on one.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::committed;

    #[test]
    fn the_page_is_as_committed() {
        committed::check("docs/src/configuration-reference.md", &page(&schema()));
    }

    /// Calls `visit` with every schema of a value and the keys that lead to it.
    fn visit_values(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, schema);
        for (name, schema) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            visit_values(&format!("{path}.{name}"), schema, visit);
        }
        for below in variants(schema).chain(schema.get("items")) {
            visit_values(path, below, visit);
        }
    }

    #[test]
    fn every_key_is_described_and_unknown_ones_are_refused() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        visit_values("", &schema, &mut |path, schema| {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                assert_eq!(schema["additionalProperties"], false, "{path}");
                for (name, schema) in properties {
                    assert!(!description(schema).is_empty(), "{path}.{name} has no doc comment");
                }
            }
        });
    }

    /// Whether the schema has a key, and everything below it that a value has.
    fn assert_known(path: &str, schema: &Value, value: &Value) {
        let Some(fields) = value.as_object() else { return };
        for (name, value) in fields {
            let path = format!("{path}.{name}");
            let mut tables = vec![schema];
            tables.extend(variants(schema));
            let found = tables.iter().find_map(|schema| schema.get("properties")?.get(name));
            assert_known(
                &path,
                found.unwrap_or_else(|| panic!("{path} is not in the schema")),
                value,
            );
        }
    }

    #[test]
    fn the_schema_has_everything_that_is_printed() {
        let config = Config {
            storage: Some(modelyard_artifacts::StorageConfig::memory()),
            ..Config::default()
        };
        assert_known("", &schema(), &serde_json::to_value(config).unwrap());
    }

    #[test]
    fn secrets_durations_and_sizes_are_texts() {
        let schema = schema();
        let at = |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("{path}"));
        let interval = at("/properties/gateway/properties/flush_interval");
        assert_eq!(
            (&interval["type"], &interval["default"]),
            (&json!("string"), &json!("5s"))
        );
        assert_eq!(interval["pattern"], DURATION_PATTERN);
        assert_eq!(
            at("/properties/gateway/properties/spool_max_bytes")["pattern"],
            SIZE_PATTERN
        );
        let url = at("/properties/registry/properties/database/properties/url");
        let page = page(&schema);
        assert_eq!(kind(url), "secret");
        assert!(
            page.contains("| `gateway.flush_interval` | `MODELYARD__GATEWAY__FLUSH_INTERVAL` | duration | `5s` |"),
            "{page}"
        );
    }

    #[test]
    fn lists_and_tables_by_name_are_told_too() {
        let provider = json!({"properties": {"issuer": {"type": "string", "description": "Whose."}}});
        let schema = json!({"properties": {
            "auth": {"description": "Who.", "properties": {
                "providers": {"type": "array", "items": provider},
                "groups": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
                "session": {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"type": "null"}], "default": null},
            }},
        }});
        let page = page(&schema);
        for row in [
            "| `auth.groups.NAME` |  | list of texts |  |  |",
            "| `auth.providers[].issuer` |  | text |  | Whose. |",
            "| `auth.session` | `MODELYARD__AUTH__SESSION` | duration |  |  |",
        ] {
            assert!(page.contains(row), "{row} in {page}");
        }
    }
}
