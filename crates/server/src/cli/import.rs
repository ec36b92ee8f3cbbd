//! `import mlflow`: brings everything of a running MLflow server here.

mod convert;
mod files;
pub mod mlflow;
mod registry;
mod report;
mod target;
mod tracking;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::{
    mlflow::{Credential, Mlflow, text},
    report::{KINDS, Report, words},
    target::Target,
    tracking::Home,
};
use super::{
    ConnectionArguments, UsageError, client,
    output::{self, Format},
};

/// The variables that MLflow's own client reads.
const TOKEN_VARIABLE: &str = "MLFLOW_TRACKING_TOKEN";
const USERNAME_VARIABLE: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD_VARIABLE: &str = "MLFLOW_TRACKING_PASSWORD";
/// The most clashes that are told.
const MAX_CLASHES: usize = 1000;

/// Where an import comes from.
#[derive(Subcommand)]
pub enum ImportCommand {
    /// Bring experiments, runs, artifacts, models and prompts of a running MLflow server here; run it again to go on, or to
    /// bring what is new
    Mlflow(Box<MlflowArguments>),
}

/// What `import mlflow` takes.
#[derive(Args)]
pub struct MlflowArguments {
    /// URL of the MLflow server. It is asked with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    /// MLFLOW_TRACKING_PASSWORD, where these are set
    #[arg(long, value_name = "URL")]
    from: String,
    /// Only the experiment with this name; without models and prompts
    #[arg(long, value_name = "NAME")]
    experiment: Vec<String>,
    /// Give an experiment another name here
    #[arg(long, value_name = "OLD=NEW", value_parser = renaming)]
    rename_experiment: Vec<(String, String)>,
    /// Give a registered model or prompt another name here
    #[arg(long, value_name = "OLD=NEW", value_parser = renaming)]
    rename_model: Vec<(String, String)>,
    /// Write nothing: count what there is, and look for names that are taken here
    #[arg(long)]
    dry_run: bool,
    /// Workspace of the MLflow server
    #[arg(long, value_name = "NAME")]
    from_workspace: Option<String>,
    /// File with the token for the MLflow server
    #[arg(long, value_name = "FILE", conflicts_with = "from_username")]
    from_token_file: Option<PathBuf>,
    /// Who asks the MLflow server
    #[arg(long, value_name = "NAME", requires = "from_password_file")]
    from_username: Option<String>,
    /// File with the password for the MLflow server
    #[arg(long, value_name = "FILE", requires = "from_username")]
    from_password_file: Option<PathBuf>,
    /// Certificates to trust at the MLflow server, as a PEM file
    #[arg(long, value_name = "FILE")]
    from_ca_file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// An import on its way.
struct Import {
    source: Mlflow,
    target: Target,
    renamed_experiments: BTreeMap<String, String>,
    renamed_models: BTreeMap<String, String>,
    report: Mutex<Report>,
    bar: ProgressBar,
}

/// Runs one of the commands.
pub async fn run(command: &ImportCommand) -> anyhow::Result<()> {
    match command {
        ImportCommand::Mlflow(arguments) => import_mlflow(arguments).await,
    }
}

fn renaming(text: &str) -> Result<(String, String), String> {
    let parts = text
        .split_once('=')
        .filter(|(old, new)| !old.is_empty() && !new.is_empty());
    let (old, new) = parts.ok_or("write OLD=NEW")?;
    Ok((old.to_owned(), new.to_owned()))
}

fn secret_in(file: &Path) -> anyhow::Result<String> {
    let content = fs::read_to_string(file).with_context(|| format!("`{}` cannot be read", file.display()))?;
    Ok(content.trim_end_matches(['\n', '\r']).to_owned())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl MlflowArguments {
    /// Who asks the source: as the options say, else as MLflow's client would.
    fn credential(&self) -> anyhow::Result<Credential> {
        if let Some(file) = &self.from_token_file {
            return Ok(Credential::Token(secret_in(file)?));
        }
        if let (Some(name), Some(file)) = (&self.from_username, &self.from_password_file) {
            return Ok(Credential::Password(name.clone(), secret_in(file)?));
        }
        Ok(match (variable(USERNAME_VARIABLE), variable(PASSWORD_VARIABLE)) {
            (Some(name), Some(password)) => Credential::Password(name, password),
            _ => variable(TOKEN_VARIABLE).map_or(Credential::None, Credential::Token),
        })
    }

    /// The URL of the source. A password in it would be on the command line, and in what is written about the import.
    fn source_url(&self) -> anyhow::Result<reqwest::Url> {
        let url = reqwest::Url::parse(&self.from).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let url =
            url.ok_or_else(|| UsageError(format!("`{}` is not a URL: write it as http://HOST:PORT", self.from)))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UsageError(format!(
                "a URL with a password is not taken: set {USERNAME_VARIABLE} and {PASSWORD_VARIABLE}"
            ))
            .into());
        }
        Ok(url)
    }

    /// What the source is called here: everything that comes from it is found again by this.
    fn source_name(&self, url: &reqwest::Url) -> String {
        let url = url.as_str().trim_end_matches('/');
        match &self.from_workspace {
            Some(workspace) => format!("{url} workspace {workspace}"),
            None => url.to_owned(),
        }
    }

    fn open(&self) -> anyhow::Result<Import> {
        let url = self.source_url()?;
        let target_url = &self.connection.server.url;
        let target_url =
            reqwest::Url::parse(target_url).map_err(|_| UsageError(format!("`{target_url}` is not a URL")))?;
        let project = self.connection.project.clone();
        let token = self
            .connection
            .server
            .token
            .as_deref()
            .filter(|token| !token.is_empty());
        let credential = token.map_or(Credential::None, |token| Credential::Token(token.to_owned()));
        let target = Target {
            server: Mlflow::new(
                client::http_client(self.connection.server.ca_file.as_deref())?,
                target_url,
                credential,
                Some(project.clone()),
            ),
            source: self.source_name(&url),
            project,
        };
        let http = client::http_client(self.from_ca_file.as_deref())?;
        let template = "{msg} {wide_bar} {pos}/{len}";
        Ok(Import {
            source: Mlflow::new(http, url, self.credential()?, self.from_workspace.clone()),
            target,
            renamed_experiments: self.rename_experiment.iter().cloned().collect(),
            renamed_models: self.rename_model.iter().cloned().collect(),
            report: Mutex::default(),
            bar: output::progress(self.connection.server.output, template, 0),
        })
    }
}

async fn import_mlflow(arguments: &MlflowArguments) -> anyhow::Result<()> {
    let import = arguments.open()?;
    let experiments = import.find_experiments(&arguments.experiment).await?;
    let with_registry = arguments.experiment.is_empty();
    let clashes = import.find_clashes(&experiments, with_registry).await?;
    if !clashes.is_empty() {
        bail!(
            "nothing was imported, because names are taken: {}; give them other names with --rename-experiment OLD=NEW and \
             --rename-model OLD=NEW",
            clashes.join("; ")
        );
    }
    let format = arguments.connection.server.output;
    if arguments.dry_run {
        return import.plan(&experiments, with_registry, format).await;
    }
    import.bring(&experiments, with_registry).await?;
    import.bar.finish_and_clear();
    import.conclude(format)
}

impl Import {
    /// What a model is called here.
    fn local_model<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed_models.get(name).map_or(name, String::as_str)
    }

    fn local_experiment(&self, found: &Value) -> Value {
        let name = text(found, "name");
        let name = self.renamed_experiments.get(name).map_or(name, String::as_str);
        // One that was deleted can have a name that MLflow made up from its own.
        convert::experiment(found, name)
    }

    /// The wanted experiments of the source, all of them where none is named.
    async fn find_experiments(&self, wanted: &[String]) -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.source.experiments(token.as_deref()).await?;
            let done = page.next.is_none() || page.items.is_empty();
            let is_wanted = |item: &Value| wanted.is_empty() || wanted.iter().any(|name| name == text(item, "name"));
            found.extend(page.items.into_iter().filter(is_wanted));
            if done {
                break;
            }
            token = page.next;
        }
        for name in wanted {
            if !found.iter().any(|item| text(item, "name") == name) {
                bail!("experiment `{name}` does not exist at {}", self.target.source);
            }
        }
        // In the order in which they were made, so that they get their numbers in that order.
        found.sort_by_key(|item| mlflow::number(item, "experiment_id"));
        Ok(found)
    }

    /// Which names are taken here by something else.
    async fn find_clashes(&self, experiments: &[Value], with_registry: bool) -> anyhow::Result<Vec<String>> {
        let mut clashes = Vec::new();
        for experiment in experiments {
            let body = json!({"experiments": [self.local_experiment(experiment)], "dry_run": true});
            self.note_clash("experiments", body, &mut clashes).await?;
        }
        if !with_registry {
            return Ok(clashes);
        }
        for prompts in [false, true] {
            let mut token: Option<String> = None;
            loop {
                let page = self.source.models(prompts, token.as_deref()).await?;
                for model in &page.items {
                    let model = convert::model(model, self.local_model(text(model, "name")), &BTreeMap::new());
                    let body = json!({"models": [model], "dry_run": true});
                    self.note_clash("models", body, &mut clashes).await?;
                }
                if page.next.is_none() || page.items.is_empty() {
                    break;
                }
                token = page.next;
            }
        }
        Ok(clashes)
    }

    async fn note_clash(&self, what: &str, body: Value, clashes: &mut Vec<String>) -> anyhow::Result<()> {
        let Err(error) = self.target.import(what, body).await else {
            return Ok(());
        };
        match mlflow::refusal(&error) {
            Some(words) if clashes.len() < MAX_CLASHES => clashes.push(words.to_owned()),
            Some(_) => {}
            None => return Err(error),
        }
        Ok(())
    }

    /// Says what an import would bring.
    async fn plan(&self, experiments: &[Value], with_registry: bool, format: Format) -> anyhow::Result<()> {
        let mut plan = BTreeMap::from([("experiments", experiments.len() as u64)]);
        for experiment in experiments {
            let mut token: Option<String> = None;
            loop {
                let page = self
                    .source
                    .runs(text(experiment, "experiment_id"), token.as_deref())
                    .await?;
                *plan.entry("runs").or_default() += page.items.len() as u64;
                if page.next.is_none() || page.items.is_empty() {
                    break;
                }
                token = page.next;
            }
        }
        for prompts in [false, true].into_iter().filter(|_| with_registry) {
            let mut token: Option<String> = None;
            loop {
                let page = self.source.models(prompts, token.as_deref()).await?;
                *plan.entry("models").or_default() += page.items.len() as u64;
                if page.next.is_none() || page.items.is_empty() {
                    break;
                }
                token = page.next;
            }
        }
        match format {
            Format::Json => output::print_json(&json!({"dry_run": true, "found": plan})),
            Format::Text => {
                for (kind, count) in plan {
                    output::print_line(&format!("{count} {} would be imported", words(kind)))?;
                }
                Ok(())
            }
        }
    }

    /// Brings everything.
    async fn bring(&self, experiments: &[Value], with_registry: bool) -> anyhow::Result<()> {
        let mut ids = BTreeMap::new();
        for experiment in experiments {
            self.report.lock().read("experiments", 1);
            let body = json!({"experiments": [self.local_experiment(experiment)]});
            let made = self.target.import("experiments", body).await?;
            let id = made.into_iter().next().context("the server named no experiment")?;
            self.report.lock().here("experiments", 1);
            ids.insert(text(experiment, "experiment_id").to_owned(), id);
        }
        for experiment in experiments {
            let (name, source_id) = (text(experiment, "name"), text(experiment, "experiment_id"));
            let Some(id) = ids.get(source_id) else {
                continue;
            };
            let home = Home {
                source_id: source_id.to_owned(),
                id: id.clone(),
            };
            self.bar.set_message(format!("experiment {name}"));
            if let Err(error) = self.bring_experiment(&home).await {
                self.report.lock().problem(&format!("experiment `{name}`"), &error);
            }
        }
        if with_registry {
            self.bar.set_message("models and prompts");
            if let Err(error) = self.bring_registry(&ids).await {
                self.report.lock().problem("the model registry", &error);
            }
        }
        Ok(())
    }

    async fn bring_experiment(&self, home: &Home) -> anyhow::Result<()> {
        self.bring_runs(home).await?;
        self.bring_logged_models(home).await?;
        let totals = self.target.totals(&home.id).await?;
        self.report.lock().add_totals(&totals);
        Ok(())
    }

    /// Says what was read and what is here, and fails where they differ.
    fn conclude(&self, format: Format) -> anyhow::Result<()> {
        let report = self.report.lock();
        let differences = report.differences();
        match format {
            Format::Json => output::print_json(&*report)?,
            Format::Text => {
                let rows = KINDS.map(|kind| {
                    let count = report.count(kind);
                    vec![words(kind), count.read.to_string(), count.here.to_string()]
                });
                output::print_line(&output::table(&["what", "there", "here"], rows))?;
            }
        }
        for problem in report.problems() {
            output::hint(&format!("not imported: {problem}"));
        }
        if report.problem_count() > 0 {
            bail!(
                "{} things were not imported, each is named above: run the command again when the cause is gone",
                report.problem_count()
            );
        }
        if !differences.is_empty() {
            let differences: Vec<String> = differences.into_iter().map(words).collect();
            bail!(
                "the counts of {} differ: something changed at the source or here meanwhile; run the command again",
                differences.join(", ")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: MlflowArguments,
    }

    fn parse(words: &str) -> Result<MlflowArguments, String> {
        let words = std::iter::once("mlflow").chain(words.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(command.arguments)
    }

    #[test]
    fn a_source_is_called_by_its_url() {
        let name = |words: &str| {
            let arguments = parse(words).unwrap();
            let url = arguments.source_url().unwrap();
            arguments.source_name(&url)
        };
        assert_eq!(name("--from http://a:1/"), "http://a:1");
        assert_eq!(name("--from http://a:1 --from-workspace w"), "http://a:1 workspace w");
    }

    #[test]
    fn mistakes_are_named() {
        for (words, expected) in [
            ("", "--from"),
            ("--from http://a --rename-experiment x", "OLD=NEW"),
            ("--from http://a --from-username u", "--from-password-file"),
        ] {
            let error = parse(words).map(drop).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        }
        for (url, expected) in [
            ("ftp://a", "not a URL"),
            ("x", "not a URL"),
            ("http://u:p@a", "password"),
        ] {
            let error = parse(&format!("--from {url}")).unwrap().source_url().unwrap_err();
            assert!(error.to_string().contains(expected), "{url}: {error}");
        }
    }
}
