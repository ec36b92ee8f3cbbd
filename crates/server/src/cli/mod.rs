//! The command line. Output is for people, or JSON with `-o json`, and then nothing else on standard output.

mod audit;
mod auth;
mod client;
mod config;
mod data;
mod deploy;
mod file;
mod gc;
mod import;
mod input;
mod keys;
mod kind;
mod lineage;
mod model_import;
mod model_sign;
mod output;
mod pipeline;
mod prediction;
mod reference;
mod resource;
mod secrets;
mod sensitive;
mod token;

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::{client::Client, output::Format};
use crate::serve;

/// Takes machine-learning models from lab to launch and keeps them healthy there.
#[derive(Parser)]
#[command(name = "modelyard", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// A mistake in how the program was called; exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

#[derive(Subcommand)]
enum Command {
    /// Start the server
    Serve(ServeArguments),
    /// Declare resources from YAML files, or from all in a folder
    Apply(resource::ApplyArguments),
    /// List resources of a kind, or print one
    Get(resource::GetArguments),
    /// Print everything about one thing: a resource, `model NAME/VERSION`, `dataset NAME/VERSION`, `prediction ID`
    Describe(resource::DescribeArguments),
    /// Remove a resource
    Delete(resource::DeleteArguments),
    /// Print what something was made from, and what was made from it
    Lineage(lineage::LineageArguments),
    /// Register models, and see what their aliases meant
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Bring what is on another server here
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Datasets and their versions
    #[command(subcommand)]
    Data(DataCommand),
    /// Point an endpoint at a model version or alias
    Deploy(deploy::DeployArguments),
    /// Bring back what an endpoint served before
    Rollback(deploy::RollbackArguments),
    /// Change the rollout that an endpoint is in
    #[command(subcommand)]
    Rollout(deploy::RolloutCommand),
    /// Send one request in the Open Inference Protocol's JSON form to an endpoint
    Predict(prediction::PredictArguments),
    /// Run a pipeline by name, or apply it from a file and run it
    Run(pipeline::RunArguments),
    /// Free what deletion left behind: runs, experiments, logged models, and content that nothing names
    Gc(gc::GcArguments),
    /// How much a project stores and may store
    Quota(gc::QuotaArguments),
    /// Tokens, which let programs and the command line in
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Who you are, and who may do what
    #[command(subcommand)]
    Auth(auth::AuthCommand),
    /// Secrets of a project; nobody reads their values
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// What in a project is marked sensitive
    #[command(subcommand)]
    Sensitive(sensitive::SensitiveCommand),
    /// Who did what, and the proof of it
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The keys that secrets are sealed with
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// The server's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum ModelsCommand {
    /// Register an ONNX file or a model's folder as a new version; prints NAME/VERSION
    Import(model_import::ImportArguments),
    /// Sign the files of a version, or keep a signature that was made elsewhere; prints NAME/VERSION
    Sign(model_sign::SignArguments),
    /// Check that the files of a version are those that a key has signed
    Verify(model_sign::VerifyArguments),
    /// Print where an alias pointed at a time, since and until when and by whom, or all its changes
    Alias(lineage::AliasArguments),
}

#[derive(Subcommand)]
enum DataCommand {
    /// Make a new version of a dataset from Parquet or CSV files; prints NAME/VERSION
    Push(data::PushArguments),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the configuration that `serve` would run with; secrets are redacted
    Print(ServeArguments),
    /// Print the JSON Schema of the configuration, for editors and other tools
    Schema,
    /// Print the page of the documentation that tells every key
    Reference,
}

/// How the server is started.
#[derive(Args)]
struct ServeArguments {
    /// Folder for databases, spool and caches
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the public listener [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address of the internal listener [default: 127.0.0.1:7071]
    #[arg(long, value_name = "ADDR:PORT")]
    internal_listen: Option<SocketAddr>,
    /// Roles of this process: registry, orchestrator, gateway, monitoring [default: all]
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    roles: Option<Vec<serve::Role>>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The server that a client command talks to, and what it prints.
#[derive(Args)]
struct ServerArguments {
    /// URL of the server
    #[arg(
        long,
        env = "MODELYARD_URL",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL"
    )]
    url: String,
    /// Access token
    #[arg(long, env = "MODELYARD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Certificates to trust beside those of this machine, as a PEM file
    #[arg(long, env = "MODELYARD_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

impl ServerArguments {
    fn client(&self) -> anyhow::Result<Client> {
        // A variable that a script set to nothing is none.
        let token = self.token.as_deref().filter(|token| !token.is_empty());
        Client::new(&self.url, token, self.ca_file.as_deref())
    }
}

/// Where and for which project a client command works.
#[derive(Args)]
struct ConnectionArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Project
    #[arg(long, default_value = "default", value_name = "NAME")]
    project: String,
}

impl ConnectionArguments {
    fn client_of(&self, project: &str) -> anyhow::Result<Client> {
        Ok(self.server.client()?.in_project(project))
    }

    fn client(&self) -> anyhow::Result<Client> {
        self.client_of(&self.project)
    }
}

/// Runs one command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Serve(arguments) => serve::run(config::load(&arguments)?).await,
        Command::Apply(arguments) => resource::apply(&arguments).await,
        Command::Get(arguments) => resource::get(&arguments).await,
        Command::Describe(arguments) => resource::describe(&arguments).await,
        Command::Delete(arguments) => resource::delete(&arguments).await,
        Command::Models(ModelsCommand::Import(arguments)) => model_import::import(&arguments).await,
        Command::Models(ModelsCommand::Sign(arguments)) => model_sign::sign(&arguments).await,
        Command::Models(ModelsCommand::Verify(arguments)) => model_sign::verify(&arguments).await,
        Command::Import(command) => import::run(&command).await,
        Command::Models(ModelsCommand::Alias(arguments)) => lineage::alias(&arguments).await,
        Command::Lineage(arguments) => lineage::lineage(&arguments).await,
        Command::Data(DataCommand::Push(arguments)) => data::push(&arguments).await,
        Command::Deploy(arguments) => deploy::deploy(&arguments).await,
        Command::Rollback(arguments) => deploy::roll_back(&arguments).await,
        Command::Rollout(command) => deploy::change_rollout(&command).await,
        Command::Predict(arguments) => prediction::predict(&arguments).await,
        Command::Run(arguments) => pipeline::run(&arguments).await,
        Command::Gc(arguments) => gc::run(&arguments).await,
        Command::Quota(arguments) => gc::quota(&arguments).await,
        Command::Token(command) => token::run(&command).await,
        Command::Auth(command) => auth::run(&command).await,
        Command::Secrets(command) => secrets::run(&command).await,
        Command::Sensitive(command) => sensitive::run(&command).await,
        Command::Audit(command) => audit::run(&command).await,
        Command::Keys(command) => keys::run(&command),
        Command::Config(ConfigCommand::Print(arguments)) => config::print(&arguments),
        Command::Config(ConfigCommand::Schema) => output::print_json(&reference::schema()),
        Command::Config(ConfigCommand::Reference) => {
            output::print_line(reference::page(&reference::schema()).trim_end())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "modelyard", &mut io::stdout());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
