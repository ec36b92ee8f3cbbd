//! A `modelyard serve` process of one's own.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

/// How long a server may take until it listens, and until it is ready.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// How long a server may take to end after it was told to.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// How often the start and the end are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How much of the log a failure shows, in lines.
const SHOWN_LOG_LINES: usize = 15;

/// The file in the data folder that says where the server listens.
const ADDRESSES_FILE: &str = "addresses.json";

/// How a server is started.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The program `modelyard`.
    pub binary: PathBuf,
    /// A program and its arguments that become the server by `exec`; none: it is started by itself.
    pub wrapper: Vec<String>,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The file that its log is added to.
    pub log: PathBuf,
    /// What follows `serve --data-dir DIR`.
    pub arguments: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
}

/// Where a server listens.
#[derive(Debug, Clone, Deserialize)]
pub struct Addresses {
    /// URL of the public listener.
    pub public: String,
    /// URL of the internal listener.
    pub internal: String,
    /// The process.
    pub pid: u32,
}

/// A server process in a process group of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    options: ServerOptions,
    addresses: Addresses,
}

impl Server {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// The last lines of its log, when it ends or does not listen in time.
    pub async fn start(options: ServerOptions) -> Result<Self> {
        let child = spawn(&options)?;
        let mut server = Self {
            addresses: Addresses {
                public: String::new(),
                internal: String::new(),
                pid: child.id(),
            },
            child: Some(child),
            options,
        };
        server.addresses = server.wait_listening().await?;
        Ok(server)
    }

    async fn wait_listening(&mut self) -> Result<Addresses> {
        let file = self.data_dir_seen_from_here().join(ADDRESSES_FILE);
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            // The file may still be that of a server which was killed.
            let addresses = fs::read(&file)
                .ok()
                .and_then(|text| serde_json::from_slice::<Addresses>(&text).ok());
            if let Some(addresses) = addresses.filter(|addresses| addresses.pid == self.addresses.pid) {
                return Ok(addresses);
            }
            if let Some(status) = self.ended()? {
                bail!(
                    "the server ended at its start ({}):\n{}",
                    ending(status),
                    self.last_log_lines()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the server did not listen within {START_PATIENCE:?}:\n{}",
                    self.last_log_lines()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the server says on both listeners that it is ready.
    ///
    /// # Errors
    /// What it says instead after a minute, or the last lines of its log when it has ended.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let http = reqwest::Client::builder().timeout(START_PATIENCE).build()?;
        let deadline = Instant::now() + START_PATIENCE;
        for listener in [self.addresses.public.clone(), self.addresses.internal.clone()] {
            loop {
                let said = match http.get(format!("{listener}/readyz")).send().await {
                    Ok(answer) if answer.status().is_success() => break,
                    Ok(answer) => answer.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                if let Some(status) = self.ended()? {
                    bail!("the server ended ({}):\n{}", ending(status), self.last_log_lines());
                }
                if Instant::now() > deadline {
                    bail!(
                        "the server was not ready within {START_PATIENCE:?}: {}\n{}",
                        said.trim(),
                        self.last_log_lines()
                    );
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// How it was started.
    #[must_use]
    pub fn options(&self) -> &ServerOptions {
        &self.options
    }

    /// The path to the data folder that leads there also when a wrapper gave the server file systems of its own.
    #[must_use]
    pub fn data_dir_seen_from_here(&self) -> PathBuf {
        let folder = &self.options.data_dir;
        match folder.strip_prefix("/") {
            Ok(below) if !self.options.wrapper.is_empty() => Path::new("/proc")
                .join(self.addresses.pid.to_string())
                .join("root")
                .join(below),
            _ => folder.clone(),
        }
    }

    /// Its end, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        signal(&child, Signal::KILL);
        child.wait().context("the killed server cannot be awaited")?;
        Ok(())
    }

    /// Tells it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end in time or fails at its end; the last lines of its log are in the text.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(child) = &self.child {
            signal(child, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = self.ended()? {
                self.child = None;
                if status.success() {
                    return Ok(());
                }
                bail!(
                    "the server failed at its end ({}):\n{}",
                    ending(status),
                    self.last_log_lines()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the server did not end within {STOP_PATIENCE:?}:\n{}",
                    self.last_log_lines()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Lets it run on when this program ends.
    pub fn leave(mut self) {
        self.child = None;
    }

    /// The end of its log.
    #[must_use]
    pub fn last_log_lines(&self) -> String {
        last_lines(&self.options.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without a process left there is nothing to end.
        self.kill().ok();
    }
}

fn spawn(options: &ServerOptions) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&options.log)
        .with_context(|| format!("the log file `{}` cannot be written", options.log.display()))?;
    let mut command = match options.wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&options.binary);
            command
        }
        None => Command::new(&options.binary),
    };
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(&options.data_dir)
        .args(&options.arguments)
        .envs(options.environment.iter().map(|(key, value)| (key, value)))
        // An interrupt from the terminal is for us, not for the server.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().with_context(|| {
        format!(
            "`{}` cannot be run: build it with `cargo build --workspace --bins`",
            options.binary.display()
        )
    })
}

fn signal(child: &Child, signal: Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It fails only when the process has ended already.
        kill_process_group(group, signal).ok();
    }
}

/// The end of a log file.
fn last_lines(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines
        .get(lines.len().saturating_sub(SHOWN_LOG_LINES)..)
        .unwrap_or_default();
    format!("{}\n(the whole log: {})", shown.join("\n"), file.display())
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
