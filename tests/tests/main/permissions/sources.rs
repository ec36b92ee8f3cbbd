//! What can be asked, read from the sources, so that nothing new can be left out of the table.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::repository;

/// The routes of the gateway's router, as its source has them.
pub fn inference_routes() -> Result<BTreeSet<String>> {
    let source = fs::read_to_string(repository().join("crates/gateway/src/http.rs"))?;
    let mut routes = BTreeSet::new();
    for piece in source.split(".route(").skip(1) {
        let Some((path, rest)) = piece
            .trim_start()
            .strip_prefix('"')
            .and_then(|piece| piece.split_once('"'))
        else {
            continue;
        };
        // To the end of the call: its parentheses are balanced.
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let handlers = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        for method in ["get", "post", "put", "delete", "patch", "any"] {
            if handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}(")) {
                routes.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    Ok(routes)
}

/// The routes of MLflow's protocol, as the source has them: those for pages are the same below another beginning.
pub fn mlflow_routes() -> Result<BTreeSet<String>> {
    let folder = repository().join("crates/registry/src");
    let source = fs::read_to_string(folder.join("mlflow.rs"))?;
    let mut routes: BTreeSet<String> = source
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .filter_map(|(path, rest)| {
            // `, get(handler))`
            let (method, _) = rest.split_once('(')?;
            let method = method.trim_matches([',', ' ']).to_uppercase();
            Some(format!("{method} {path}"))
        })
        .collect();
    // `("/2.0/mlflow", runs::ROUTES),`
    for line in source.lines().filter(|line| line.contains("::ROUTES)")) {
        let mut words = line
            .split(['"', ',', ' ', ':'])
            .filter(|word| !word.is_empty() && *word != "(");
        let (group, module) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let module = fs::read_to_string(folder.join("mlflow").join(format!("{module}.rs")))?;
        let (_, table) = module
            .split_once("routes! {")
            .with_context(|| format!("{line} has no table"))?;
        for entry in table.lines().take_while(|line| *line != "}") {
            // `post "/runs/create" => create,`
            let mut parts = entry.trim().splitn(3, '"');
            if let (Some(method), Some(path)) = (parts.next(), parts.next()) {
                routes.insert(format!("{} /api{group}{path}", method.trim().to_uppercase()));
            }
        }
    }
    Ok(routes)
}

/// The methods of all contracts below a folder.
pub fn methods(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            methods(&path, found)?;
            continue;
        }
        let (mut package, mut service) = (String::new(), String::new());
        for line in fs::read_to_string(&path)?.lines() {
            let line = line.trim();
            let word = |prefix: &str| {
                let rest = line.strip_prefix(prefix)?;
                rest.split(['(', ' ', ';', '{']).next().map(str::to_owned)
            };
            package = word("package ").unwrap_or(package);
            service = word("service ").unwrap_or(service);
            if let Some(method) = word("rpc ") {
                found.insert(format!("{package}.{service}/{method}"));
            }
        }
    }
    Ok(())
}
