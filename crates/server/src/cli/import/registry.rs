//! Registered models and prompts with their versions and aliases.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{
    Import, convert,
    mlflow::{list, text},
    target::Counts,
};

/// How many homes of runs are remembered.
const MAX_HOMES: usize = 10_000;

impl Import {
    /// Brings all models, then all prompts.
    pub async fn bring_registry(&self, experiments: &BTreeMap<String, String>) -> anyhow::Result<()> {
        // A version can be a copy of one of a model that comes later: what fails is tried once more at the end.
        let mut later = Vec::new();
        for prompts in [false, true] {
            let mut token: Option<String> = None;
            loop {
                let page = self.source.models(prompts, token.as_deref()).await?;
                self.bar.inc_length(page.items.len() as u64);
                for model in &page.items {
                    let brought = self.bring_model(model, prompts, experiments).await;
                    let name = text(model, "name");
                    match brought {
                        Ok(versions) => later.extend(versions.into_iter().map(|version| (name.to_owned(), version))),
                        Err(error) => self.report.lock().problem(&format!("model `{name}`"), &error),
                    }
                    self.bar.inc(1);
                }
                if page.next.is_none() || page.items.is_empty() {
                    break;
                }
                token = page.next;
            }
        }
        for (name, version) in later {
            if let Err(error) = self.bring_version(&name, &version).await {
                let number = version.get("version").map(Value::to_string).unwrap_or_default();
                let what = format!("version `{name}/{number}`");
                self.report.lock().problem(&what, &error);
            }
        }
        self.bring_aliases().await
    }

    /// Brings a model with its versions. Those that were refused, to be tried once more.
    async fn bring_model(
        &self,
        model: &Value,
        is_prompt: bool,
        experiments: &BTreeMap<String, String>,
    ) -> anyhow::Result<Vec<Value>> {
        let name = text(model, "name");
        let converted = convert::model(model, self.local_model(name), experiments);
        {
            let mut report = self.report.lock();
            report.read("models", 1);
            report.read("model_tags", list(model, "tags").len() as u64);
            report.read("aliases", list(model, "aliases").len() as u64);
        }
        let fingerprint = convert::fingerprint(&[&converted]);
        let states = self.target.states("model", &[name]).await?;
        if states.first().is_none_or(|state| state.fingerprint != fingerprint) {
            self.target.import("models", json!({"models": [converted]})).await?;
            self.target
                .finish("model", name, &fingerprint, Counts::default())
                .await?;
        }
        let mut homes = HashMap::new();
        let mut refused = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.source.versions(name, is_prompt, token.as_deref()).await?;
            for version in &page.items {
                self.report.lock().read("versions", 1);
                let home = self.home_of(text(version, "run_id"), &mut homes).await?;
                let source = convert::version_source(version, home.as_deref(), experiments, &self.renamed_models);
                let converted = convert::version(version, &source);
                if self.bring_version(name, &converted).await.is_err() {
                    refused.push(converted);
                }
            }
            if page.next.is_none() || page.items.is_empty() {
                return Ok(refused);
            }
            token = page.next;
        }
    }

    /// The experiment here of a run.
    async fn home_of(
        &self,
        run_id: &str,
        homes: &mut HashMap<String, Option<String>>,
    ) -> anyhow::Result<Option<String>> {
        if run_id.is_empty() {
            return Ok(None);
        }
        if let Some(known) = homes.get(run_id) {
            return Ok(known.clone());
        }
        let states = self.target.states("run", &[run_id]).await?;
        let is_here = states.first().is_some_and(|state| !state.id.is_empty());
        let home = if is_here {
            let run = self
                .target
                .server
                .get("api/2.0/mlflow/runs/get", &[("run_id", run_id)])
                .await?;
            let id = run.pointer("/run/info/experiment_id").and_then(Value::as_str);
            id.map(str::to_owned)
        } else {
            None
        };
        if homes.len() >= MAX_HOMES {
            homes.clear();
        }
        homes.insert(run_id.to_owned(), home.clone());
        Ok(home)
    }

    async fn bring_version(&self, name: &str, version: &Value) -> anyhow::Result<()> {
        let number = version.get("version").map(Value::to_string).unwrap_or_default();
        let id = format!("{name}/{number}");
        let fingerprint = convert::fingerprint(&[version]);
        let states = self.target.states("version", &[&id]).await?;
        if states.first().is_some_and(|state| state.fingerprint == fingerprint) {
            return Ok(());
        }
        let body = json!({"source_id": name, "model": self.local_model(name), "versions": [version]});
        self.target.import("versions", body).await?;
        self.target
            .finish("version", &id, &fingerprint, Counts::default())
            .await
    }

    /// Sets aliases when all versions are there, and counts what is here. An alias that is here stays where it points: moving it
    /// would move the endpoints that follow it.
    async fn bring_aliases(&self) -> anyhow::Result<()> {
        for prompts in [false, true] {
            let mut token: Option<String> = None;
            loop {
                let page = self.source.models(prompts, token.as_deref()).await?;
                for model in &page.items {
                    if let Err(error) = self.bring_aliases_of(model, prompts).await {
                        let what = format!("aliases of model `{}`", text(model, "name"));
                        self.report.lock().problem(&what, &error);
                    }
                }
                if page.next.is_none() || page.items.is_empty() {
                    break;
                }
                token = page.next;
            }
        }
        Ok(())
    }

    async fn bring_aliases_of(&self, model: &Value, is_prompt: bool) -> anyhow::Result<()> {
        let (source_name, name) = (text(model, "name"), self.local_model(text(model, "name")));
        // Nothing is set on a model that is not the one that was imported.
        let states = self.target.states("model", &[source_name]).await?;
        if states.first().is_none_or(|state| state.id != name) {
            return Ok(());
        }
        let Some(here) = self.target.server.find_model(name).await? else {
            return Ok(());
        };
        let mut aliases = list(&here, "aliases").len() as u64;
        for alias in list(model, "aliases") {
            let (alias, version) = (text(alias, "alias"), text(alias, "version"));
            let is_here = list(&here, "aliases").iter().any(|known| text(known, "alias") == alias);
            if !is_here {
                self.target.server.set_alias(name, alias, version).await?;
                aliases += 1;
            }
        }
        let versions = self.count_versions(name, is_prompt).await?;
        let mut report = self.report.lock();
        report.here("models", 1);
        report.here("model_tags", list(&here, "tags").len() as u64);
        report.here("aliases", aliases);
        report.here("versions", versions);
        Ok(())
    }

    async fn count_versions(&self, name: &str, is_prompt: bool) -> anyhow::Result<u64> {
        let (mut count, mut token) = (0, None::<String>);
        loop {
            let page = self.target.server.versions(name, is_prompt, token.as_deref()).await?;
            count += page.items.len() as u64;
            if page.next.is_none() || page.items.is_empty() {
                return Ok(count);
            }
            token = page.next;
        }
    }
}
