//! The rules of the source tree that no compiler checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{Workspace, say};

/// The longest source file.
const MAX_LINES: usize = 600;

/// Which of our own crates a crate may use. A service never uses another service: only its contract in `proto`.
const MAY_USE: [(&str, &[&str]); 18] = [
    ("common", &[]),
    ("proto", &[]),
    ("db", &["common"]),
    ("jobs", &["common", "db"]),
    ("artifacts", &["common"]),
    ("stats", &[]),
    ("inference", &["common"]),
    ("trainer", &[]),
    ("analytics", &["artifacts", "common"]),
    (
        "registry",
        &["artifacts", "common", "db", "jobs", "proto", "stats", "trainer"],
    ),
    (
        "orchestrator",
        &[
            "artifacts",
            "common",
            "db",
            "inference",
            "jobs",
            "proto",
            "stats",
            "trainer",
        ],
    ),
    ("gateway", &["artifacts", "common", "inference", "proto"]),
    (
        "monitoring",
        &["analytics", "artifacts", "common", "db", "jobs", "proto", "stats"],
    ),
    (
        "server",
        &[
            "artifacts",
            "common",
            "gateway",
            "monitoring",
            "orchestrator",
            "registry",
        ],
    ),
    ("testkit", &["common", "db"]),
    ("flights", &["common", "proto"]),
    ("tests", &[]),
    ("xtask", &[]),
];

/// Checks all rules and names every breach.
pub fn check(workspace: &Workspace) -> Result<()> {
    say("checking the rules of the source tree");
    let files = tracked_files(&workspace.root)?;
    let mut breaches = Vec::new();
    breaches.extend(crate_map(&workspace.metadata));
    breaches.extend(long_files(&workspace.root, &files)?);
    breaches.extend(migrations(&workspace.root, &files)?);
    breaches.extend(map_in_architecture(&workspace.root)?);
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("the source tree breaks its rules:\n  {}", breaches.join("\n  "))
}

fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git cannot be started")?;
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(text
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// The crates and what they use, against the table.
fn crate_map(metadata: &Value) -> Vec<String> {
    let none = Vec::new();
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let mut breaches = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata.get("packages").and_then(Value::as_array).unwrap_or(&none) {
        let name = short_name(package);
        let Some(may_use) = allowed.get(name) else {
            breaches.push(format!("the crate `{name}` is not in the table of xtask/src/tidy.rs"));
            continue;
        };
        seen.insert(name);
        for dependency in package.get("dependencies").and_then(Value::as_array).unwrap_or(&none) {
            let is_normal = dependency.get("kind").is_none_or(Value::is_null);
            let is_ours = dependency.get("path").is_some_and(Value::is_string);
            let used = short_name(dependency);
            if is_normal && is_ours && !may_use.contains(&used) {
                breaches.push(format!("the crate `{name}` must not use `{used}`"));
            }
        }
    }
    let missing = allowed.keys().filter(|name| !seen.contains(*name));
    breaches.extend(missing.map(|name| format!("the table names a crate `{name}` that does not exist")));
    breaches
}

fn short_name(package: &Value) -> &str {
    let name = package.get("name").and_then(Value::as_str).unwrap_or_default();
    name.strip_prefix("modelyard-").unwrap_or(name)
}

fn long_files(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for file in files {
        let is_source = file
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "py");
        let path = root.join(file);
        if !is_source || !path.is_file() {
            continue;
        }
        let lines = fs::read_to_string(&path)
            .with_context(|| format!("`{}`", file.display()))?
            .lines()
            .count();
        if lines > MAX_LINES {
            breaches.push(format!(
                "{} has {lines} lines: split it, {MAX_LINES} at most",
                file.display()
            ));
        }
    }
    Ok(breaches)
}

/// Migrations have the same names for both databases, and each is listed in the code of its owner.
fn migrations(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut names: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for file in files {
        let parts: Vec<_> = file.iter().filter_map(|part| part.to_str()).collect();
        if let ["migrations", set, dialect, name] = parts.as_slice() {
            let name = name.trim_end_matches(".sql").to_owned();
            names
                .entry((*set).to_owned())
                .or_default()
                .entry((*dialect).to_owned())
                .or_default()
                .insert(name);
        }
    }
    let mut breaches = Vec::new();
    for (set, dialects) in names {
        if dialects.get("sqlite") != dialects.get("postgres") {
            breaches.push(format!("migrations/{set}: sqlite and postgres have different files"));
        }
        let sources = sources_of(root, &set)?;
        for name in dialects.values().flatten().collect::<BTreeSet<_>>() {
            if !sources.contains(&format!("\"{name}\"")) {
                breaches.push(format!(
                    "migrations/{set}: `{name}` is listed nowhere in crates/{set}/src"
                ));
            }
        }
    }
    Ok(breaches)
}

/// The sources of a crate in one text.
fn sources_of(root: &Path, name: &str) -> Result<String> {
    let mut text = String::new();
    let mut folders = vec![root.join("crates").join(name).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("`{}`", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(path)?);
            }
        }
    }
    Ok(text)
}

/// Every crate has its line in the map of ARCHITECTURE.md.
fn map_in_architecture(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let missing = MAY_USE
        .into_iter()
        .filter(|(name, _)| !text.contains(&format!("`{name}`")));
    Ok(missing
        .map(|(name, _)| format!("ARCHITECTURE.md does not name the crate `{name}`"))
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_must_not_use_another() {
        let metadata = json!({"packages": [{
            "name": "modelyard-gateway",
            "dependencies": [
                {"name": "modelyard-proto", "path": "x", "kind": null},
                {"name": "modelyard-registry", "path": "x", "kind": null},
                {"name": "modelyard-testkit", "path": "x", "kind": "dev"},
                {"name": "serde", "kind": null},
            ],
        }]});
        let breaches = crate_map(&metadata);
        assert!(breaches.contains(&"the crate `gateway` must not use `registry`".to_owned()));
        assert!(
            !breaches
                .iter()
                .any(|breach| breach.contains("`testkit`") && breach.contains("must not"))
        );
    }
}
