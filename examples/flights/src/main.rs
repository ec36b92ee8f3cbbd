//! `flights`: the main job for people to watch, and the first benchmark.

mod bare_server;
mod bench;
mod demo;
mod evidence;
mod figures;
mod gateway_bench;
mod grpc;
mod load;
mod measure;
mod peer_server;
mod process;
mod registry_bench;
mod terminal;
mod wire;

use std::{
    future::Future,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

/// The main job of Modelyard on the flights of one year.
#[derive(Parser)]
#[command(name = "flights", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main job on an empty server: train, serve, watch, retrain
    Demo(DemoArguments),
    /// Compare the gateway with a bare handler that parses and answers the same bytes; or measure the gateway or the registry
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        #[command(subcommand)]
        subject: Option<BenchSubject>,
        /// Output
        #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
        output: Format,
    },
    /// The bare handler of the benchmark: prints its address and serves until it is ended
    #[command(hide = true)]
    BareHandler {
        /// The answer to every request, as JSON
        answer: String,
    },
    /// A bare handler of the gateway's benchmark: prints its address and serves until it is ended
    #[command(hide = true)]
    BareModel(gateway_bench::BareModelArguments),
    /// The plain copy of the registry's benchmark: prints its address and serves until it is ended
    #[command(hide = true)]
    BareFiles {
        /// Where the files are
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
enum BenchSubject {
    /// The gateway beside bare handlers and raw sessions; its memory; many models
    Gateway(gateway_bench::GatewayArguments),
    /// Tracking by MLflow's protocol, beside MLflow's own server; artifacts, long histories, memory and the start
    Registry(registry_bench::RegistryArguments),
}

#[derive(Args)]
struct DemoArguments {
    /// Stop the server at the end; exit code 1 when the job did not come out as it must
    #[arg(long)]
    once: bool,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    /// Folder for the server's data and log; it must be empty [default: a new one among the temporary files]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Folder with `flights.parquet` and the resources, for trying others [default: examples/flights]
    #[arg(long, value_name = "DIR")]
    resources: Option<PathBuf>,
    /// Share of the flights that take part, more than 0 and at most 1
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    sample: f64,
    /// How many months are replayed
    #[arg(long, default_value_t = 10, value_name = "MONTHS", value_parser = clap::value_parser!(u16).range(1..=10))]
    months: u16,
    /// Requests that are under way at once
    #[arg(long, default_value_t = 48, value_name = "REQUESTS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Somebody installed one already, which serves as well.
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the async runtime cannot start")?;
    runtime.block_on(async {
        match command {
            Command::Demo(arguments) => demo::run(&arguments).await,
            Command::Bench { subject, output } => tokio::select! {
                measured = bench(subject, output) => measured,
                // Servers and folders go with what is not finished.
                () = told_to_end()? => Err(anyhow!("interrupted")),
            },
            Command::BareHandler { answer } => {
                bench::serve_bare_handler(&answer, |address| print(&address.to_string())).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::BareModel(arguments) => {
                gateway_bench::serve_bare_model(arguments, |address| print(&address.to_string())).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::BareFiles { folder } => {
                registry_bench::serve_bare_files(folder, |address| print(&address.to_string())).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

async fn bench(subject: Option<BenchSubject>, output: Format) -> Result<ExitCode> {
    match subject {
        Some(BenchSubject::Gateway(arguments)) => gateway_bench::run(&arguments).await,
        Some(BenchSubject::Registry(arguments)) => registry_bench::run(&arguments).await,
        None => measure::run(output).await,
    }
}

/// Ends when this program is told to end.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Writes a line to standard output; a reader that went away is no error.
fn print(line: &str) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
fn complain(line: &str) {
    // There is nobody left to tell.
    writeln!(io::stderr(), "{line}").ok();
}

/// The program `modelyard` beside this one.
fn modelyard() -> Result<PathBuf> {
    let this = std::env::current_exe().context("this program has no path")?;
    Ok(this.with_file_name("modelyard"))
}

/// The folder of this example in the checkout that it was built from.
fn example_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
