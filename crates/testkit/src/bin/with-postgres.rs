//! Runs a command with a PostgreSQL server beside it: `TEST_POSTGRES_URL` names the server, which ends with the command.

use std::process::{Command, ExitCode};

use anyhow::Context;
use modelyard_testkit::postgres::Postgres;

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with-postgres PROGRAM [ARGUMENTS]")?;
    let server = Postgres::start().context("PostgreSQL cannot be started for the tests")?;
    let status = Command::new(&program)
        .args(arguments)
        .env("TEST_POSTGRES_URL", server.url())
        .status()
        .with_context(|| format!("`{}` cannot be started", program.display()))?;
    drop(server);
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
