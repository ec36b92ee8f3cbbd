//! `apply`, `get`, `describe` and `delete`: resources that are declared, and things that are looked at.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, UsageError,
    client::Client,
    output::{self, Format},
    prediction,
};

/// The most resources that one `apply` takes.
const MAX_RESOURCES: usize = 1000;

/// A kind of resource: its name in YAML, on the command line and in the API.
struct Kind {
    yaml: &'static str,
    singular: &'static str,
    plural: &'static str,
    /// Whether it is declared by `apply`, or comes into being otherwise.
    declared: bool,
}

const fn kind(yaml: &'static str, singular: &'static str, plural: &'static str, declared: bool) -> Kind {
    Kind {
        yaml,
        singular,
        plural,
        declared,
    }
}

/// All kinds; declared ones stand in the order in which they are applied.
const KINDS: [Kind; 10] = [
    kind("Pipeline", "pipeline", "pipelines", true),
    kind("Trigger", "trigger", "triggers", true),
    kind("Endpoint", "endpoint", "endpoints", true),
    kind("Monitor", "monitor", "monitors", true),
    kind("AlertRule", "alert-rule", "alert-rules", true),
    kind("Alert", "alert", "alerts", false),
    kind("PipelineRun", "pipeline-run", "pipeline-runs", false),
    kind("Dataset", "dataset", "datasets", false),
    kind("Model", "model", "models", false),
    kind("Run", "run", "runs", false),
];

#[derive(Args)]
pub struct ApplyArguments {
    /// YAML file with one or more resources, or a folder of such files
    #[arg(short, long, value_name = "FILE_OR_FOLDER", required = true)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

#[derive(Args)]
pub struct GetArguments {
    /// Kind, for example `endpoints`
    kind: String,
    /// Name or id; all without it
    name: Option<String>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

#[derive(Args)]
pub struct DescribeArguments {
    /// Kind, for example `endpoint`, `model` or `prediction`
    kind: String,
    /// Name, NAME/VERSION or id
    name: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

#[derive(Args)]
pub struct DeleteArguments {
    /// Kind, for example `endpoint`
    kind: String,
    /// Name
    name: String,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// A resource as it stands in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    kind: String,
    name: String,
    project: Option<String>,
    spec: Value,
    #[serde(skip)]
    file: PathBuf,
}

/// Applies all resources of the files. All files are read and checked before the first is sent.
pub async fn apply(arguments: &ApplyArguments) -> anyhow::Result<()> {
    let mut declarations = Vec::new();
    for path in &arguments.file {
        for file in files_of(path)? {
            declarations.extend(read_declarations(&file)?);
        }
    }
    let ordered = in_order(declarations)?;
    let mut applied = Vec::new();
    for (kind, declaration) in &ordered {
        let outcome = apply_one(&arguments.connection, kind, declaration).await?;
        if arguments.connection.output == Format::Text {
            let word = outcome.get("outcome").and_then(Value::as_str).unwrap_or("applied");
            output::print_line(&format!("{}/{} {word}", kind.singular, declaration.name))?;
        }
        applied.push(outcome);
    }
    if arguments.connection.output == Format::Json {
        output::print_json(&json!({ "items": applied }))?;
    }
    Ok(())
}

async fn apply_one(connection: &ConnectionArguments, kind: &Kind, declaration: &Declaration) -> anyhow::Result<Value> {
    let project = declaration.project.as_deref().unwrap_or(&connection.project);
    let client = Client::new(&connection.url, connection.token.as_deref(), project)?;
    let request = client.project_request(Method::PUT, &[kind.plural, &declaration.name])?;
    client.send(request.json(&declaration.spec)).await.with_context(|| {
        format!(
            "{} `{}` of `{}` was refused",
            kind.singular,
            declaration.name,
            declaration.file.display()
        )
    })
}

/// Applies the resources of one file and gives the name of its only pipeline.
pub async fn apply_pipeline(connection: &ConnectionArguments, file: &Path) -> anyhow::Result<String> {
    let ordered = in_order(read_declarations(file)?)?;
    let mut names = Vec::new();
    for (kind, declaration) in &ordered {
        if kind.yaml == "Pipeline" {
            names.push(declaration.name.clone());
        }
    }
    let [name] = names.as_slice() else {
        let found = names.len();
        return Err(UsageError(format!("`{}` must have one pipeline and has {found}", file.display())).into());
    };
    for (kind, declaration) in &ordered {
        apply_one(connection, kind, declaration).await?;
    }
    Ok(name.clone())
}

/// The YAML files that a path stands for, in the order of their names.
fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("`{}` cannot be read", path.display()))? {
        let file = entry?.path();
        let is_yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(UsageError(format!("the folder `{}` has no .yaml file", path.display())).into());
    }
    files.sort();
    Ok(files)
}

fn read_declarations(file: &Path) -> anyhow::Result<Vec<Declaration>> {
    let text = fs::read_to_string(file).with_context(|| format!("`{}` cannot be read", file.display()))?;
    let mut declarations = Vec::new();
    for document in serde_norway::Deserializer::from_str(&text) {
        let value = Value::deserialize(document).with_context(|| format!("`{}` is not YAML", file.display()))?;
        if value.is_null() {
            continue;
        }
        let mut declaration: Declaration = serde_json::from_value(value)
            .with_context(|| format!("`{}` is not a resource with kind, name and spec", file.display()))?;
        file.clone_into(&mut declaration.file);
        declarations.push(declaration);
    }
    Ok(declarations)
}

/// Checks kinds and names, and sorts so that what is referred to comes first.
fn in_order(declarations: Vec<Declaration>) -> anyhow::Result<Vec<(&'static Kind, Declaration)>> {
    if declarations.len() > MAX_RESOURCES {
        return Err(UsageError(format!(
            "{} resources are too many: apply {MAX_RESOURCES} at most",
            declarations.len()
        ))
        .into());
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for declaration in declarations {
        let position = KINDS
            .iter()
            .position(|kind| kind.declared && kind.yaml == declaration.kind);
        let Some(position) = position else {
            let known: Vec<_> = KINDS
                .iter()
                .filter(|kind| kind.declared)
                .map(|kind| kind.yaml)
                .collect();
            let file = declaration.file.display();
            let message = format!(
                "`{file}`: `{}` is no kind of resource: use {}",
                declaration.kind,
                known.join(", ")
            );
            return Err(UsageError(message).into());
        };
        let key = (position, declaration.project.clone(), declaration.name.clone());
        if !seen.insert(key) {
            let message = format!("{} `{}` is declared twice", declaration.kind, declaration.name);
            return Err(UsageError(message).into());
        }
        found.push((position, declaration));
    }
    found.sort_by_key(|(position, _)| *position);
    let known = found
        .into_iter()
        .filter_map(|(position, declaration)| Some((KINDS.get(position)?, declaration)));
    Ok(known.collect())
}

/// The kind that a word on the command line means.
fn kind_of(word: &str) -> anyhow::Result<&'static Kind> {
    let lower = word.to_lowercase();
    KINDS
        .iter()
        .find(|kind| kind.plural == lower || kind.singular == lower || kind.yaml.to_lowercase() == lower)
        .ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().map(|kind| kind.plural).collect();
            UsageError(format!("`{word}` is no kind: use {}", known.join(", "))).into()
        })
}

pub async fn get(arguments: &GetArguments) -> anyhow::Result<()> {
    let kind = kind_of(&arguments.kind)?;
    let client = arguments.connection.client()?;
    let format = arguments.connection.output;
    if let Some(name) = &arguments.name {
        let found = client.get(&[kind.plural, name]).await?;
        return print_one(&found, format);
    }
    let items = client.list(&[kind.plural]).await?;
    if format == Format::Json {
        return output::print_json(&json!({ "items": items }));
    }
    let rows = items.iter().map(|item| {
        let name = text_of(item, &["name", "id", "run_id"]);
        let state = match item.pointer("/status/ready").and_then(Value::as_bool) {
            Some(ready) => if ready { "ready" } else { "not ready" }.to_owned(),
            None => text_of(item, &["status", "state", "latest_version", "version"]),
        };
        let time = text_of(item, &["updated_at", "created_at", "fired_at", "started_at"]);
        vec![name, state, time]
    });
    output::print_line(&output::table(&["name", "state", "time"], rows))
}

/// The first of the fields that has a plain value.
fn text_of(item: &Value, fields: &[&str]) -> String {
    let plain = fields
        .iter()
        .filter_map(|field| item.get(field))
        .find_map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
    plain.unwrap_or_else(|| "-".to_owned())
}

fn print_one(value: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::print_json(value),
        Format::Text => output::print_line(&output::outline(value)),
    }
}

pub async fn describe(arguments: &DescribeArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let format = arguments.connection.output;
    if arguments.kind.eq_ignore_ascii_case("prediction") {
        let found = client.get(&["predictions", &arguments.name]).await?;
        return match format {
            Format::Json => output::print_json(&found),
            Format::Text => output::print_line(&prediction::story(&found)),
        };
    }
    let kind = kind_of(&arguments.kind)?;
    let found = match arguments.name.split_once('/') {
        Some((name, version)) => client.get(&[kind.plural, name, "versions", version]).await?,
        None => client.get(&[kind.plural, &arguments.name]).await?,
    };
    print_one(&found, format)
}

pub async fn delete(arguments: &DeleteArguments) -> anyhow::Result<()> {
    let kind = kind_of(&arguments.kind)?;
    if !kind.declared {
        return Err(UsageError(format!("{} cannot be deleted by name", kind.plural)).into());
    }
    let client = arguments.connection.client()?;
    let request = client.project_request(Method::DELETE, &[kind.plural, &arguments.name])?;
    client.send(request).await?;
    match arguments.connection.output {
        Format::Json => output::print_json(&json!({"kind": kind.yaml, "name": arguments.name, "outcome": "deleted"})),
        Format::Text => output::print_line(&format!("{}/{} deleted", kind.singular, arguments.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Vec<(&'static Kind, Declaration)>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resources.yaml");
        fs::write(&file, text).unwrap();
        in_order(read_declarations(&file)?)
    }

    #[test]
    fn what_is_referred_to_comes_first() {
        let ordered = read(
            "kind: AlertRule\nname: a\nspec: {}\n---\nkind: Endpoint\nname: e\nspec: {}\n---\nkind: Pipeline\nname: p\nspec: {}\n",
        );
        let names: Vec<_> = ordered
            .unwrap()
            .into_iter()
            .map(|(_, declaration)| declaration.name)
            .collect();
        assert_eq!(names, ["p", "e", "a"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("kind: Endpiont\nname: x\nspec: {}", "`Endpiont` is no kind"),
            (
                "kind: Endpoint\nname: x\nspec: {}\n---\nkind: Endpoint\nname: x\nspec: {}",
                "declared twice",
            ),
            ("kind: Endpoint\nname: x", "missing field `spec`"),
            ("kind: Endpoint\nname: x\nspec: {}\nextra: 1", "unknown field `extra`"),
            ("kind: [", "is not YAML"),
        ] {
            let error = format!("{:#}", read(text).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }
}
