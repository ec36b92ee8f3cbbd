//! A PostgreSQL server of one's own for tests, and fresh databases on it.

use std::{
    env,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{
        fs::chown,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

/// The environment variable that names the server for tests: `postgres://USER@HOST:PORT/DATABASE`, of a user that may
/// create databases.
pub const SERVER_VARIABLE: &str = "TEST_POSTGRES_URL";
/// The environment variable that, set to `1`, makes a test fail rather than leave PostgreSQL out.
pub const REQUIRE_VARIABLE: &str = "MODELYARD_REQUIRE_POSTGRES";

/// How long the server may take to start, or to stop.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often the start is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often a start is tried: another process can take the free port before the server does.
const START_ATTEMPTS: u32 = 5;
/// Enough for all tests of the workspace at once, each with its own pools.
const MAX_CONNECTIONS: u32 = 400;
/// How much of the server's log a failure shows, in lines.
const SHOWN_LOG_LINES: usize = 20;
/// The superuser of the server.
const USER: &str = "modelyard";

/// Runs the server, and stops it when our end of the standard input closes, which it does when this process ends in any
/// way, killed too.
const KEEPER: &str = r#"
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ read -r _ <&3; kill -INT "$server"; } &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"#;

/// A server that lives as long as this value, in a temporary folder, reachable on 127.0.0.1 without a password.
#[derive(Debug)]
pub struct Postgres {
    keeper: Child,
    port: u16,
    // Last: the folder goes when the server is gone.
    folder: TempDir,
}

impl Postgres {
    /// Creates and starts a server. As root it runs as the user `postgres` or `nobody`, since it refuses to be root.
    pub fn start() -> Result<Self> {
        let programs = find_programs()?;
        let user = unprivileged_user()?;
        let folder = tempfile::Builder::new().prefix("modelyard-postgres-").tempdir()?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let mut initdb = Command::new(programs.join("initdb"));
        initdb
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .args([
                "--username",
                USER,
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .current_dir(folder.path())
            .stdin(Stdio::null());
        run_as(&mut initdb, user);
        let made = initdb.output().context("initdb cannot be run")?;
        ensure!(
            made.status.success(),
            "initdb failed ({}): {}",
            made.status,
            String::from_utf8_lossy(&made.stderr).trim()
        );
        let mut folder = folder;
        for attempt in 1..=START_ATTEMPTS {
            match Self::launch(&programs, user, folder)? {
                Launch::Ready(server) => return Ok(server),
                Launch::PortTaken(back) if attempt < START_ATTEMPTS => folder = back,
                Launch::PortTaken(_) => break,
            }
        }
        bail!("PostgreSQL found no free port in {START_ATTEMPTS} attempts")
    }

    fn launch(programs: &Path, user: Option<(u32, u32)>, folder: TempDir) -> Result<Launch> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let log = fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", KEEPER, "postgres-keeper"])
            .arg(programs.join("postgres"))
            .arg("-D")
            .arg(folder.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &port.to_string()])
            .args(settings().iter().flat_map(|setting| ["-c", setting.as_str()]))
            .current_dir(folder.path())
            // An interrupt from the terminal is for us; we end the server when the tests are over.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        run_as(&mut command, user);
        let keeper = command.spawn().context("/bin/sh cannot be run")?;
        let mut server = Self { keeper, port, folder };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = server.log();
            if text.contains("database system is ready to accept connections") {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("PostgreSQL says it is ready, and is not")?;
                return Ok(Launch::Ready(server));
            }
            if let Some(status) = server.keeper.try_wait()? {
                if text.contains("could not bind") || text.contains("could not create any TCP/IP sockets") {
                    return Ok(Launch::PortTaken(server.into_folder()?));
                }
                bail!("PostgreSQL did not start ({}):\n{}", ending(status), tail(&text));
            }
            if Instant::now() > deadline {
                bail!("PostgreSQL was not ready within {PATIENCE:?}:\n{}", tail(&text));
            }
            thread::sleep(POLL);
        }
    }

    /// The folder of a server that has ended, for another attempt.
    fn into_folder(mut self) -> Result<TempDir> {
        // What is left behind is dropped with an empty folder.
        Ok(std::mem::replace(&mut self.folder, TempDir::new()?))
    }

    /// What the server has written so far.
    fn log(&self) -> String {
        fs::read(self.folder.path().join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database that exists from the start, of a user that may do everything.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Creates an empty database and returns its URL.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        create_database(&self.url(), name).await
    }
}

enum Launch {
    Ready(Postgres),
    PortTaken(TempDir),
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The keeper sees the end of its input, and ends the server.
        drop(self.keeper.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.keeper.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                self.keeper.kill().ok();
                self.keeper.wait().ok();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// Durability is off: a crash of the machine may lose the database of a test.
fn settings() -> Vec<String> {
    vec![
        "fsync=off".to_owned(),
        "synchronous_commit=off".to_owned(),
        "full_page_writes=off".to_owned(),
        // No socket file: its path could be longer than the system allows.
        "unix_socket_directories=".to_owned(),
        format!("max_connections={MAX_CONNECTIONS}"),
        "shared_buffers=64MB".to_owned(),
        "logging_collector=off".to_owned(),
    ]
}

/// The folder with `initdb` and `postgres`: Debian's place (the newest version), then PATH, then what `pg_config` says.
fn find_programs() -> Result<PathBuf> {
    let has_programs = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let on_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let configured = Command::new("pg_config")
        .arg("--bindir")
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let newest_first = versions.into_iter().rev().map(|(_, folder)| folder);
    newest_first
        .chain(on_path)
        .chain(configured)
        .find(has_programs)
        .context("PostgreSQL is not installed: on Debian, apt-get install postgresql")
}

/// The user and group to run as, where this process is root.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").context("the accounts of the machine cannot be read")?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name);
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            found.then_some((uid, gid))
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .context("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`")
}

fn run_as(command: &mut Command, user: Option<(u32, u32)>) {
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..].join("\n")
}

/// Creates an empty database on the server of `server_url` and returns its URL.
pub async fn create_database(server_url: &str, name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    ensure!(
        !name.is_empty() && name.chars().all(plain),
        "`{name}` cannot name a database of a test"
    );
    let mut connection = PgConnection::connect(server_url)
        .await
        .with_context(|| format!("the server of {SERVER_VARIABLE} cannot be reached"))?;
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    let (address, query) = match server_url.split_once('?') {
        Some((address, query)) => (address, Some(query)),
        None => (server_url, None),
    };
    // The path begins after the `//` of the scheme.
    let authority = address.find("://").map_or(0, |position| position + 3);
    let end = address[authority..]
        .find('/')
        .map_or(address.len(), |position| authority + position);
    let mut url = format!("{}/{name}", &address[..end]);
    if let Some(query) = query {
        write!(url, "?{query}")?;
    }
    Ok(url)
}

/// A fresh place for the databases of one test: an empty folder and, for PostgreSQL, an empty database.
#[derive(Debug)]
pub struct TestDatabase {
    /// `sqlite` or `postgres`.
    pub name: &'static str,
    /// The empty PostgreSQL database; none for SQLite, whose file belongs into the data folder.
    pub url: Option<String>,
    folder: TempDir,
}

impl TestDatabase {
    /// A place for a SQLite file.
    pub fn sqlite() -> Result<Self> {
        Ok(Self {
            name: "sqlite",
            url: None,
            folder: TempDir::new()?,
        })
    }

    /// An empty database on the server that the environment names. None when it names none; an error when it also says
    /// that PostgreSQL must not be left out.
    pub async fn postgres() -> Result<Option<Self>> {
        let server = env::var(SERVER_VARIABLE).ok().filter(|url| !url.is_empty());
        let Some(server) = server else {
            let required = env::var(REQUIRE_VARIABLE).is_ok_and(|value| value == "1");
            ensure!(
                !required,
                "{REQUIRE_VARIABLE} is 1 and {SERVER_VARIABLE} is not set: name a PostgreSQL server"
            );
            return Ok(None);
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "other processes make databases on the server too: a foreseen name could be taken"
        )]
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let url = create_database(&server, &name).await?;
        Ok(Some(Self {
            name: "postgres",
            url: Some(url),
            folder: TempDir::new()?,
        }))
    }

    /// The empty data folder; gone when this value is dropped.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.folder.path()
    }
}

/// A fresh place on each database that can be tested: SQLite always, PostgreSQL where the environment names a server.
/// A test runs the same suite on each.
pub async fn test_databases() -> Result<Vec<TestDatabase>> {
    let mut places = vec![TestDatabase::sqlite()?];
    places.extend(TestDatabase::postgres().await?);
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_starts_gives_out_databases_and_ends() {
        let server = Postgres::start().unwrap();
        let port = server.port();
        let url = server.create_database("orchard").await.unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let name: String = sqlx::query_scalar("SELECT current_database()::text")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(name, "orchard");
        connection.close().await.unwrap();
        assert!(server.create_database("no such; name").await.is_err());
        drop(server);
        assert!(
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(),
            "the server still runs"
        );
    }
}
