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
    client::{Client, Level},
    kind::{KINDS, Kind, TOKEN, kind_of},
    output::{self, Format},
    prediction,
};

/// The most resources that one `apply` takes.
const MAX_RESOURCES: usize = 1000;

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
        if arguments.connection.server.output == Format::Text {
            let word = outcome.get("outcome").and_then(Value::as_str).unwrap_or("applied");
            output::print_line(&format!("{}/{} {word}", kind.singular, declaration.name))?;
        }
        applied.push(outcome);
    }
    if arguments.connection.server.output == Format::Json {
        output::print_json(&json!({ "items": applied }))?;
    }
    Ok(())
}

async fn apply_one(connection: &ConnectionArguments, kind: &Kind, declaration: &Declaration) -> anyhow::Result<Value> {
    let project = declaration.project.as_deref().unwrap_or(&connection.project);
    let client = connection.client_of(project)?;
    let request = client.request_at(kind.level, Method::PUT, &[kind.path, &declaration.name])?;
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
        let kind = KINDS
            .iter()
            .enumerate()
            .find(|(_, kind)| kind.is_declared && kind.yaml == declaration.kind);
        let Some((position, kind)) = kind else {
            let known: Vec<_> = KINDS
                .iter()
                .filter(|kind| kind.is_declared)
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
        check_level(kind, &declaration)?;
        let key = (position, declaration.project.clone(), declaration.name.clone());
        if !seen.insert(key) {
            let message = format!("{} `{}` is declared twice", declaration.kind, declaration.name);
            return Err(UsageError(message).into());
        }
        found.push((position, kind, declaration));
    }
    found.sort_by_key(|(position, ..)| *position);
    let ordered = found.into_iter().map(|(_, kind, declaration)| (kind, declaration));
    Ok(ordered.collect())
}

/// What belongs to the installation is in no project.
fn check_level(kind: &Kind, declaration: &Declaration) -> Result<(), UsageError> {
    match &declaration.project {
        Some(project) if kind.level == Level::Installation => Err(UsageError(format!(
            "`{}`: {} `{}` belongs to the whole installation: take `project: {project}` out",
            declaration.file.display(),
            kind.yaml,
            declaration.name,
        ))),
        _ => Ok(()),
    }
}

/// Runs `get`.
pub async fn get(arguments: &GetArguments) -> anyhow::Result<()> {
    let kind = kind_of(&arguments.kind)?;
    let client = arguments.connection.client()?;
    let format = arguments.connection.server.output;
    match &arguments.name {
        Some(name) => output::print_one(&get_one(&client, kind, name).await?, format),
        None => list(&client, kind, &[], format).await,
    }
}

/// Prints the list of a kind, or what the query selects of it.
pub async fn list(client: &Client, kind: &Kind, query: &[(&str, &str)], format: Format) -> anyhow::Result<()> {
    let items = client.list_at(kind.level, &[kind.path], query, None).await?;
    output::print_list(&items, kind.columns, format)
}

async fn get_one(client: &Client, kind: &Kind, name: &str) -> anyhow::Result<Value> {
    if kind.is_addressable {
        return client.get_at(kind.level, &[kind.path, name]).await;
    }
    let items = client.list_at(kind.level, &[kind.path], &[], None).await?;
    let found = find_named(&items, name).cloned();
    found.with_context(|| {
        format!(
            "{} `{name}` does not exist: `modelyard get {}` lists those that do",
            kind.singular, kind.plural
        )
    })
}

/// The item with this id, else the first with this name.
fn find_named<'a>(items: &'a [Value], name: &str) -> Option<&'a Value> {
    let by = |field| {
        items
            .iter()
            .find(|item| item.get(field).and_then(Value::as_str) == Some(name))
    };
    by("id").or_else(|| by("name"))
}

/// Runs `describe`.
pub async fn describe(arguments: &DescribeArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let format = arguments.connection.server.output;
    if arguments.kind.eq_ignore_ascii_case("prediction") {
        let found = client.get(&["predictions", &arguments.name]).await?;
        return match format {
            Format::Json => output::print_json(&found),
            Format::Text => output::print_line(&prediction::story(&found)),
        };
    }
    let kind = kind_of(&arguments.kind)?;
    // Names of users and groups may hold a slash, too.
    let found = match arguments.name.split_once('/').filter(|_| kind.is_versioned) {
        Some((name, version)) => client.get(&[kind.path, name, "versions", version]).await?,
        None => get_one(&client, kind, &arguments.name).await?,
    };
    output::print_one(&found, format)
}

/// Runs `delete`.
pub async fn delete(arguments: &DeleteArguments) -> anyhow::Result<()> {
    let kind = kind_of(&arguments.kind)?;
    let connection = &arguments.connection;
    remove(&connection.client()?, kind, &arguments.name, connection.server.output).await
}

/// Removes one of a kind by its name.
pub async fn remove(client: &Client, kind: &Kind, name: &str, format: Format) -> anyhow::Result<()> {
    if !kind.is_deletable {
        let instead = if kind.yaml == TOKEN.yaml {
            ": `modelyard token revoke ID` ends one"
        } else {
            ""
        };
        return Err(UsageError(format!("{} cannot be deleted by name{instead}", kind.plural)).into());
    }
    let request = client.request_at(kind.level, Method::DELETE, &[kind.path, name])?;
    client.send(request).await?;
    match format {
        Format::Json => output::print_json(&json!({"kind": kind.yaml, "name": name, "outcome": "deleted"})),
        Format::Text => output::print_line(&format!("{}/{name} deleted", kind.singular)),
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
    fn the_installation_comes_before_its_projects() {
        let kinds = [
            "Endpoint",
            "RoleBinding",
            "User",
            "Pipeline",
            "ServiceAccount",
            "Policy",
            "Role",
            "Project",
        ];
        let text: Vec<_> = kinds
            .iter()
            .map(|kind| format!("kind: {kind}\nname: x\nspec: {{}}\n"))
            .collect();
        let ordered = read(&text.join("---\n")).unwrap();
        let ordered: Vec<_> = ordered.iter().map(|(kind, _)| kind.yaml).collect();
        let expected = [
            "Project",
            "Role",
            "Policy",
            "ServiceAccount",
            "User",
            "RoleBinding",
            "Pipeline",
            "Endpoint",
        ];
        assert_eq!(ordered, expected);
    }

    #[test]
    fn a_token_is_found_by_id_before_name() {
        let items = [json!({"id": "1", "name": "2"}), json!({"id": "2", "name": "laptop"})];
        assert_eq!(find_named(&items, "2"), items.get(1));
        assert_eq!(find_named(&items, "laptop"), items.get(1));
        assert_eq!(find_named(&items, "3"), None);
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
            (
                "kind: User\nname: alice\nproject: default\nspec: {}",
                "User `alice` belongs to the whole installation: take `project: default` out",
            ),
            ("kind: Token\nname: laptop\nspec: {}", "`Token` is no kind"),
        ] {
            let error = format!("{:#}", read(text).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }
}
