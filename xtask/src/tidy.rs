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
const MAY_USE: [(&str, &[&str]); 19] = [
    ("common", &[]),
    ("proto", &[]),
    ("db", &["common"]),
    ("jobs", &["auth", "common", "db"]),
    ("artifacts", &["common"]),
    ("auth", &["common"]),
    ("stats", &[]),
    ("inference", &["common"]),
    ("trainer", &[]),
    ("analytics", &["artifacts", "common"]),
    (
        "registry",
        &["artifacts", "auth", "common", "db", "jobs", "proto", "stats", "trainer"],
    ),
    (
        "orchestrator",
        &[
            "artifacts",
            "auth",
            "common",
            "db",
            "inference",
            "jobs",
            "proto",
            "stats",
            "trainer",
        ],
    ),
    ("gateway", &["artifacts", "auth", "common", "inference", "proto"]),
    (
        "monitoring",
        &[
            "analytics",
            "artifacts",
            "auth",
            "common",
            "db",
            "jobs",
            "proto",
            "stats",
        ],
    ),
    (
        "server",
        &[
            "artifacts",
            "auth",
            "common",
            "gateway",
            "monitoring",
            "orchestrator",
            "proto",
            "registry",
        ],
    ),
    ("testkit", &["common", "db", "auth"]),
    ("flights", &["auth", "common", "inference", "proto"]),
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
    breaches.extend(unused_dependencies(&workspace.metadata)?);
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
    sources_below(&root.join("crates").join(name).join("src"))
}

/// All Rust sources below a folder in one text; none where there is no such folder.
fn sources_below(folder: &Path) -> Result<String> {
    let mut text = String::new();
    let mut folders = vec![folder.to_owned()];
    folders.retain(|folder| folder.is_dir());
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

/// Dependencies that no source of their crate names: each costs time to build, and may be a risk.
fn unused_dependencies(metadata: &Value) -> Result<Vec<String>> {
    let none = Vec::new();
    let mut breaches = Vec::new();
    for package in metadata.get("packages").and_then(Value::as_array).unwrap_or(&none) {
        let name = short_name(package);
        let manifest = package.get("manifest_path").and_then(Value::as_str).unwrap_or_default();
        let folder = Path::new(manifest).parent().context("a package without a folder")?;
        let sources = Sources::read(folder)?;
        for dependency in package.get("dependencies").and_then(Value::as_array).unwrap_or(&none) {
            let used = dependency.get("name").and_then(Value::as_str).unwrap_or_default();
            if !sources.name(dependency) {
                breaches.push(format!(
                    "the crate `{name}` depends on `{used}`, which its sources do not name: remove it"
                ));
            }
        }
    }
    Ok(breaches)
}

/// The sources of a crate, by what may use which dependencies.
#[derive(Default)]
struct Sources {
    /// What is built for users.
    normal: String,
    /// Tests, benchmarks and examples, and what is built for users, where unit tests are.
    dev: String,
    /// The build script.
    build: String,
}

impl Sources {
    fn read(folder: &Path) -> Result<Self> {
        let normal = sources_below(&folder.join("src"))?;
        let mut dev = normal.clone();
        for part in ["tests", "benches", "examples"] {
            dev.push_str(&sources_below(&folder.join(part))?);
        }
        let script = folder.join("build.rs");
        let build = if script.is_file() {
            fs::read_to_string(script)?
        } else {
            String::new()
        };
        Ok(Self { normal, dev, build })
    }

    /// Whether they name a dependency, or what it is renamed to.
    fn name(&self, dependency: &Value) -> bool {
        let text = |key: &str| dependency.get(key).and_then(Value::as_str);
        let name = text("rename").or(text("name")).unwrap_or_default().replace('-', "_");
        let sources = match text("kind") {
            Some("dev") => &self.dev,
            Some("build") => &self.build,
            _ => &self.normal,
        };
        has_word(sources, &name)
    }
}

/// Whether a text has a word, and not only as a part of another. Comments count: a word in the wrong place costs less here
/// than a parser.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
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

    #[test]
    fn a_dependency_is_named_where_it_is_used() {
        let sources = Sources {
            normal: "use tokio::net; #[serde(with = \"x\")] fn hyper_util_like() {}".to_owned(),
            dev: "use tokio::net; proptest! {}".to_owned(),
            build: "protox::compile()".to_owned(),
        };
        let named = |name: &str, kind: Value, rename: Value| {
            sources.name(&json!({"name": name, "kind": kind, "rename": rename}))
        };
        assert!(named("tokio", Value::Null, Value::Null));
        assert!(named("serde", Value::Null, Value::Null));
        assert!(named("another-name", Value::Null, json!("tokio")));
        assert!(named("proptest", json!("dev"), Value::Null));
        assert!(named("protox", json!("build"), Value::Null));
        // A word within another, one in the tests alone, one that is nowhere.
        assert!(!named("hyper-util", Value::Null, Value::Null));
        assert!(!named("proptest", Value::Null, Value::Null));
        assert!(!named("prost", json!("build"), Value::Null));
    }

    #[test]
    fn unused_dependencies_are_breaches() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let metadata = json!({"packages": [{"name": "xtask", "manifest_path": manifest, "dependencies": [
            {"name": "anyhow", "kind": null},
            {"name": "not-used-here", "kind": null},
        ]}]});
        let breaches = unused_dependencies(&metadata).unwrap();
        let of_xtask: Vec<_> = breaches.iter().filter(|breach| breach.contains("`xtask`")).collect();
        assert_eq!(of_xtask.len(), 1, "{breaches:?}");
        assert!(of_xtask[0].contains("`not-used-here`"), "{breaches:?}");
    }
}
