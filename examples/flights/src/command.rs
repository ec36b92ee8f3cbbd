//! The commands of `modelyard` that a newcomer types.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// How long one command may take, the training of all flights included.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(10);

/// The pause before a command is given again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// What the command line says when the server is away.
const AWAY_WORDS: [&str; 4] = [
    "no server answers at",
    "the request to",
    "the answer broke off",
    "try again in a moment",
];

/// The command line with its server.
pub struct CommandLine {
    binary: PathBuf,
    url: String,
    away: Duration,
}

/// What a command came to.
pub struct Outcome {
    /// Whether it exited with code 0.
    pub is_success: bool,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub complaint: String,
}

impl CommandLine {
    /// Runs `binary` against the server at `url`; a command is given again for `away` while the server is away.
    pub fn new(binary: &Path, url: &str, away: Duration) -> Self {
        Self {
            binary: binary.to_owned(),
            url: url.to_owned(),
            away,
        }
    }

    /// Runs a command, which must succeed, and gives its standard output. It must be one that may be given again.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.try_run(arguments).await?;
        if outcome.is_success {
            return Ok(outcome.output);
        }
        bail!(
            "`modelyard {}` failed: {}",
            arguments.join(" "),
            outcome.complaint.trim()
        )
    }

    /// Runs a command until it ends for another reason than that the server is away.
    pub async fn try_run(&self, arguments: &[&str]) -> Result<Outcome> {
        let deadline = Instant::now() + self.away;
        loop {
            let outcome = self.run_once(arguments).await?;
            let is_away = !outcome.is_success && AWAY_WORDS.iter().any(|words| outcome.complaint.contains(words));
            if !is_away || Instant::now() > deadline {
                return Ok(outcome);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn run_once(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("MODELYARD_URL", &self.url)
            .env_remove("MODELYARD_TOKEN")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output()).await;
        let output = output
            .with_context(|| {
                format!(
                    "`modelyard {}` took longer than {COMMAND_TIMEOUT:?}",
                    arguments.join(" ")
                )
            })?
            .with_context(|| format!("`{}` cannot be run: build it first", self.binary.display()))?;
        Ok(Outcome {
            is_success: output.status.success(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            complaint: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
