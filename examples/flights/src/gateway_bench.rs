//! `flights bench gateway`: predictions beside bare handlers that do what no server can leave out, and beside raw sessions of ONNX
//! Runtime; the server's memory under requests of many shapes; and many models of which few fit into memory.
//!
//! Every figure is a ratio within one run. Servers are processes of their own and get the same load in turns, so that what else the
//! machine does hits both.

mod bare;
mod beside;
mod encoder;
mod gateway;
mod large;
mod many;
mod memory;
mod messages;
mod mlp;
mod models;
mod onnx;
mod peers;
mod raw;
mod report;
mod small;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use self::bare::{BareModelArguments, serve_bare_model};
use self::report::{Report, show};
use crate::{Format, complain};

/// Seconds of a minute.
const MINUTE: f64 = 60.0;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub struct GatewayArguments {
    /// The parts that are measured, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// For how many minutes requests of many shapes are sent while the memory is looked at
    #[arg(long, default_value_t = 1.0, value_name = "MINUTES")]
    soak: f64,
    /// How many endpoints there are of which few fit into memory
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    models: usize,
    /// A Python that has mlflow, onnx and onnxruntime, and mlserver-mlflow for MLServer: the part `peers` needs it
    #[arg(long, value_name = "PROGRAM")]
    peers: Option<PathBuf>,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Single rows to a gradient-boosted model
    Small,
    /// Sequences to an encoder
    Encoder,
    /// Single rows to a perceptron
    Mlp,
    /// Tensors of 10 MB
    Large,
    /// Memory under requests of many shapes
    Memory,
    /// Many models of which few fit into memory
    Many,
    /// Single rows, beside other servers
    Peers,
}

/// Runs the benchmark.
pub async fn run(arguments: &GatewayArguments) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("modelyard-bench-").tempdir()?;
    let mut report = Report::default();
    let measured = measure(arguments, folder.path(), &mut report).await;
    // What was measured before something failed is told all the same.
    show(&report, arguments.output)?;
    measured?;
    Ok(if report.failed_requests() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn measure(arguments: &GatewayArguments, folder: &Path, report: &mut Report) -> Result<()> {
    let parts = if arguments.only.is_empty() {
        Part::value_variants()
    } else {
        arguments.only.as_slice()
    };
    let soak = Duration::try_from_secs_f64(arguments.soak * MINUTE);
    let soak = soak.with_context(|| format!("{} is no number of minutes", arguments.soak))?;
    for part in parts {
        match part {
            Part::Small => {
                complain("single rows to a gradient-boosted model");
                report.small = Some(Box::pin(small::measure(folder)).await.context("small")?);
            }
            Part::Encoder => {
                complain("sequences to an encoder");
                report.encoder = Some(Box::pin(encoder::measure(folder)).await.context("encoder")?);
            }
            Part::Mlp => {
                complain("single rows to a perceptron");
                report.mlp = Some(Box::pin(mlp::measure(folder)).await.context("mlp")?);
            }
            Part::Large => {
                complain("tensors of 10 MB");
                report.large = Some(Box::pin(large::measure(folder)).await.context("large")?);
            }
            Part::Memory => {
                complain(&format!("memory under requests of many shapes, {soak:?}"));
                report.memory = Some(Box::pin(memory::measure(folder, soak)).await.context("memory")?);
            }
            Part::Many => {
                complain(&format!(
                    "{} models, of which a tenth fits into memory",
                    arguments.models
                ));
                report.many = Some(
                    Box::pin(many::measure(folder, arguments.models))
                        .await
                        .context("many")?,
                );
            }
            Part::Peers => {
                let Some(python) = &arguments.peers else {
                    complain("no other servers: name a Python that has them with --peers");
                    continue;
                };
                complain("other servers");
                report.peers = Box::pin(peers::measure(folder, python)).await.context("peers")?;
            }
        }
    }
    Ok(())
}
