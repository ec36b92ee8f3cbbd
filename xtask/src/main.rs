//! The project's own tasks: `cargo xtask demo`, `test`, `setup`, `lint`, `tidy`, `codegen`, `bench`.

mod codegen;
mod process;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::process::{Profile, Workspace, cargo};

/// Tasks of the Modelyard project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the main job on real data: train, serve, watch, retrain; leaves the server running
    Demo {
        /// Options of the demo: --once, -o json, --data-dir DIR
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run every test: unit, stores on SQLite and PostgreSQL, services, both topologies, the main job
    Test {
        /// Passed on to the test runner, for example a filter
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Fetch what the machine lacks: ONNX Runtime's library, and with --tests what the tests need
    Setup {
        /// Also PostgreSQL and the Python clients
        #[arg(long)]
        tests: bool,
    },
    /// Check formatting, lints and the rules of the source tree
    Lint,
    /// Check the rules of the source tree alone
    Tidy,
    /// Write the files of the documentation that are made of the program: configuration reference, OpenAPI
    Codegen {
        /// Only compare them; the tests do that, too
        #[arg(long)]
        check: bool,
    },
    /// Measure the services against their bars; prints ratios of one run
    Bench {
        /// Build as releases are built, which takes longer
        #[arg(long)]
        release: bool,
        /// Options of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

#[expect(clippy::print_stderr, reason = "the end of a command line program")]
fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Demo { options } => {
            setup::onnx_runtime(&workspace)?;
            process::run(cargo(&workspace).args(["build", "--workspace", "--bins"]))?;
            process::status(
                workspace
                    .binary("flights", Profile::Development)
                    .arg("demo")
                    .args(options),
            )
        }
        Task::Test { options } => test::run(&workspace, &options),
        Task::Setup { tests } => {
            setup::onnx_runtime(&workspace)?;
            if tests {
                setup::for_tests(&workspace)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Lint => {
            test::lint(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Tidy => {
            tidy::check(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Codegen { check } => {
            codegen::run(&workspace, check)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Bench { release, options } => {
            setup::onnx_runtime(&workspace)?;
            let profile = if release {
                Profile::Release
            } else {
                Profile::Development
            };
            let build = ["build", "--workspace", "--bins", "--profile", profile.name()];
            process::run(cargo(&workspace).args(build))?;
            process::status(workspace.binary("flights", profile).arg("bench").args(options))
        }
    }
}
