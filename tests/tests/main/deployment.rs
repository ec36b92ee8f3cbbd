//! Servers of a test: all roles in one process or one process a role, on SQLite or PostgreSQL.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use modelyard_flights::{MainJob, Server, ServerOptions};
use modelyard_testkit::postgres::TestDatabase;
use rand::RngExt as _;
use tempfile::TempDir;

/// The lowest port that is tried. Above the ports of the system, and up to those that it gives to outgoing connections:
/// those could take the port of a server between its end and its next start.
const LOWEST_PORT: u16 = 10_000;

/// Where the system says which ports it gives to outgoing connections, and what it does by default.
const OUTGOING_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const DEFAULT_LOWEST_OUTGOING_PORT: u16 = 32_768;

/// How often a free port is looked for.
const PORT_ATTEMPTS: u32 = 200;

/// The gateway hands predictions over often, so that tests wait less.
const FLUSH_INTERVAL: &str = "300ms";

/// How the roles are spread over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One process with all roles.
    AllInOne,
    /// One process a role.
    Split,
}

/// Where the services keep their tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A file a service in its data folder.
    Sqlite,
    /// One database with a schema a service.
    Postgres,
}

/// The roles in the order in which they start.
const ROLES: [&str; 4] = ["registry", "orchestrator", "monitoring", "gateway"];

/// Running servers with a folder of their own; all end when this is dropped.
pub struct Deployment {
    processes: Vec<Process>,
    // Last: the folder goes when the servers are gone.
    folder: TempDir,
    _database: Option<TestDatabase>,
}

struct Process {
    options: ServerOptions,
    public: String,
    internal: String,
    server: Option<Server>,
}

impl Deployment {
    /// Starts the servers and waits until all are ready.
    pub async fn start(topology: Topology, engine: Engine) -> Result<Self> {
        Self::start_with(topology, engine, "").await
    }

    /// The same, with lines of TOML of the test's own in every configuration.
    pub async fn start_with(topology: Topology, engine: Engine, extra: &str) -> Result<Self> {
        Self::start_in(topology, engine, extra, &[]).await
    }

    /// The same, with variables of the environment.
    pub async fn start_in(
        topology: Topology,
        engine: Engine,
        extra: &str,
        environment: &[(String, String)],
    ) -> Result<Self> {
        use_tls();
        let folder = tempfile::Builder::new().prefix("modelyard-test-").tempdir()?;
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(TestDatabase::postgres().await?.context(
                "TEST_POSTGRES_URL is not set: run the tests by `cargo xtask test`, which starts a PostgreSQL server",
            )?),
        };
        let groups: Vec<Vec<&str>> = match topology {
            Topology::AllInOne => vec![ROLES.to_vec()],
            Topology::Split => ROLES.iter().map(|role| vec![*role]).collect(),
        };
        let mut processes = Vec::new();
        for roles in &groups {
            processes.push(Process::new(folder.path(), &roles.join("-"), environment)?);
        }
        let url = database.as_ref().and_then(|database| database.url.as_deref());
        for (process, roles) in processes.iter().zip(&groups) {
            let mut text = configuration(roles, url);
            if !extra.contains("[storage]") {
                writeln!(text, "storage.url = '{}'", folder.path().join("objects").display())?;
            }
            for (peer, roles) in processes.iter().zip(&groups) {
                for role in roles {
                    writeln!(
                        text,
                        "peers.{role} = {{ internal = '{}', public = '{}' }}",
                        peer.internal, peer.public
                    )?;
                }
            }
            text.push_str(extra);
            fs::write(process.configuration_file(), text)?;
        }
        let mut deployment = Self {
            processes,
            folder,
            _database: database,
        };
        for index in 0..deployment.processes.len() {
            deployment.restart(index).await?;
        }
        for process in &mut deployment.processes {
            if let Some(server) = &mut process.server {
                server.wait_ready().await?;
            }
        }
        Ok(deployment)
    }

    /// URL of the public listener that clients use: the gateway's.
    pub fn url(&self) -> &str {
        self.processes.last().map_or("", |process| &process.public)
    }

    /// URLs of all internal listeners.
    pub fn internal_urls(&self) -> Vec<&str> {
        self.processes.iter().map(|process| process.internal.as_str()).collect()
    }

    /// How many processes there are.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// The main job on these servers.
    pub fn main_job(&self, months: usize, sample: f64, away: Duration) -> MainJob {
        MainJob {
            url: self.url().to_owned(),
            grpc_url: self.url().to_owned(),
            binary: binary(),
            folder: example_folder(),
            months,
            sample,
            concurrency: 32,
            away,
        }
    }

    /// Kills a process as a crash would.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let process = self.processes.get_mut(index).context("there is no such process")?;
        match process.server.take() {
            Some(mut server) => server.kill(),
            None => Ok(()),
        }
    }

    /// Starts a process on its folder and ports, and waits until it listens.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let process = self.processes.get_mut(index).context("there is no such process")?;
        process.server = Some(Server::start(process.options.clone()).await?);
        Ok(())
    }

    /// Changes a variable of the environment in which a process is started again.
    pub fn set_variable(&mut self, index: usize, name: &str, value: &str) -> Result<()> {
        let process = self.processes.get_mut(index).context("there is no such process")?;
        process.options.environment.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Ends all processes as an operator would, the last one first, and fails when one does.
    pub async fn stop(mut self) -> Result<()> {
        for index in (0..self.len()).rev() {
            self.stop_one(index).await?;
        }
        Ok(())
    }

    /// Ends one of them, if it runs.
    pub async fn stop_one(&mut self, index: usize) -> Result<()> {
        match self.processes.get_mut(index).and_then(|process| process.server.take()) {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }

    /// Runs a command of `modelyard` against these servers.
    pub fn modelyard(&self, arguments: &[&str]) -> Result<Output> {
        modelyard(arguments, &[("MODELYARD_URL", self.url())])
    }

    /// What `modelyard` prints, which must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let output = self.modelyard(arguments)?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The folder of the servers.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The ends of all logs, for a failure's text.
    pub fn logs(&self) -> String {
        let ends = self.processes.iter().filter_map(|process| process.server.as_ref());
        ends.map(Server::last_log_lines).collect::<Vec<_>>().join("\n")
    }

    /// Keeps the folder after the test, for looking into it.
    pub fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }
}

impl Process {
    fn new(folder: &Path, name: &str, environment: &[(String, String)]) -> Result<Self> {
        let data_dir = folder.join(name);
        let configuration = folder.join(format!("{name}.toml"));
        let (public, internal) = (free_port()?, free_port()?);
        let arguments = vec![
            "--config".to_owned(),
            configuration.display().to_string(),
            "--listen".to_owned(),
            format!("127.0.0.1:{public}"),
            "--internal-listen".to_owned(),
            format!("127.0.0.1:{internal}"),
        ];
        Ok(Self {
            options: ServerOptions {
                binary: binary(),
                wrapper: Vec::new(),
                log: folder.join(format!("{name}.log")),
                data_dir,
                arguments,
                environment: environment.to_vec(),
            },
            public: format!("http://127.0.0.1:{public}"),
            internal: format!("http://127.0.0.1:{internal}"),
            server: None,
        })
    }

    fn configuration_file(&self) -> PathBuf {
        self.options.data_dir.with_extension("toml")
    }
}

fn configuration(roles: &[&str], database_url: Option<&str>) -> String {
    let mut text = format!("roles = {roles:?}\ngateway.flush_interval = '{FLUSH_INTERVAL}'\n");
    if let Some(url) = database_url {
        for role in ["registry", "orchestrator", "monitoring"] {
            let _ = writeln!(text, "{role}.database.url = '{url}'");
        }
    }
    text
}

/// A port that nobody listens on now, and that the system gives to no outgoing connection.
pub fn free_port() -> Result<u16> {
    let range = fs::read_to_string(OUTGOING_PORTS).unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|port| port.parse().ok());
    let end = end
        .filter(|end| *end > LOWEST_PORT)
        .unwrap_or(DEFAULT_LOWEST_OUTGOING_PORT);
    for _ in 0..PORT_ATTEMPTS {
        let port = rand::rng().random_range(LOWEST_PORT..end);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port was found between {LOWEST_PORT} and {end}")
}

/// The built program: the tests lie in `deps/` beside it.
pub fn binary() -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    this.ancestors().nth(2).unwrap_or(Path::new("")).join("modelyard")
}

/// The folder of the example.
pub fn example_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/flights")
}

/// Runs a command of `modelyard` with variables of the environment.
pub fn modelyard(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    let binary = binary();
    std::process::Command::new(&binary)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| {
            format!(
                "`{}` cannot be run: build it with `cargo build --workspace --bins`",
                binary.display()
            )
        })
}

/// Checks that a command failed with this exit code and that its message has all the words.
pub fn check_refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "exit code {:?} instead of {code}: {text}",
        output.status.code()
    );
    for word in words {
        ensure!(text.contains(word), "the message lacks `{word}`: {text}");
    }
    ensure!(!text.contains("panicked"), "it panicked: {text}");
    Ok(())
}

/// Installs the TLS provider that HTTP clients ask for; a second time is no error.
pub fn use_tls() {
    rustls::crypto::ring::default_provider().install_default().ok();
}
