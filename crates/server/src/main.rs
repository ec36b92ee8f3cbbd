//! `modelyard`: the server in all its roles, and the command line that talks to it.

mod cli;
#[cfg(test)]
mod committed;
mod serve;

use std::process::ExitCode;

use clap::Parser;

/// Requests are read on one thread, stored on another: the system's allocator spends much on memory that changes threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of wrong usage, clap's own included.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow::Error::new(error).context("the async runtime cannot start")),
    };
    let result = runtime.block_on(cli::run(arguments));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Prints an error with its causes, and chooses the exit code: 2 for wrong usage, else 1.
#[expect(clippy::print_stderr, reason = "the end of a command line program")]
fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.downcast_ref::<cli::UsageError>().is_some() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}
