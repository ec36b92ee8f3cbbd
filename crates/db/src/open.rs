//! Opening a database.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    Connection, PgConnection, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::{
    config::DatabaseConfig,
    error::{Error, Result},
    migrate::Migrations,
    pools::{PostgresPools, SqlitePools},
};

/// How long a caller waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long SQLite waits for a lock that another process holds (a backup, a person with a shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What the writer keeps of a SQLite file in memory: 32 MiB, in negative KiB.
const WRITER_CACHE: &str = "-32768";
/// After how many pages of 4 KiB the write-ahead log is merged into its file: a page that is written often is merged once.
const CHECKPOINT_PAGES: &str = "4096";
/// The write-ahead log is cut back to this after a checkpoint, in bytes.
const WAL_LIMIT_BYTES: &str = "67108864";
/// How long one statement may run on PostgreSQL.
const STATEMENT_TIMEOUT: &str = "30s";
/// How long a statement waits for a lock on PostgreSQL.
const LOCK_TIMEOUT: &str = "10s";
/// How long a transaction may stand idle on PostgreSQL before the server ends it: it holds locks.
const IDLE_TRANSACTION_TIMEOUT: &str = "60s";

/// An open database.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file in the data folder.
    Sqlite(SqlitePools),
    /// A schema on a server.
    Postgres(PostgresPools),
}

impl Database {
    /// Opens the database of `service` (a word in lower case: it names the SQLite file and the PostgreSQL schema), and
    /// creates it where it is not there. It has no tables before [`migrate`](Self::migrate).
    pub async fn open(config: &DatabaseConfig, data_dir: &Path, service: &'static str) -> Result<Self> {
        config.validate()?;
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
        if service.is_empty() || !service.chars().all(is_word) {
            return Err(Error::Config {
                message: format!("`{service}` cannot name a database: use lower case letters and `_`"),
            });
        }
        match &config.url {
            Some(url) => open_postgres(url.reveal(), config.max_connections, service).await,
            None => open_sqlite(data_dir, config.max_connections, service).await,
        }
    }

    /// Applies the migrations that are missing. Each set has its own table of what was applied, so that several can
    /// share one database. A database that a newer version wrote is refused before anything is changed.
    pub async fn migrate(&self, sets: &[Migrations]) -> Result<()> {
        match self {
            Self::Sqlite(pools) => pools.migrate(sets).await,
            Self::Postgres(pools) => pools.migrate(sets).await,
        }
    }

    /// The file, or the server without its password: for messages.
    pub fn location(&self) -> String {
        match self {
            Self::Sqlite(pools) => pools.file.display().to_string(),
            Self::Postgres(pools) => pools.location.to_string(),
        }
    }

    /// Whether the database answers; for readiness.
    pub async fn check(&self) -> Result<()> {
        let probe = "SELECT 1";
        match self {
            Self::Sqlite(pools) => sqlx::query(probe).execute(&pools.reader).await.map(drop)?,
            Self::Postgres(pools) => sqlx::query(probe).execute(&pools.pool).await.map(drop)?,
        }
        Ok(())
    }

    /// Waits until the connections are back, and closes them; SQLite's write-ahead log is then merged into its file.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(pools) => {
                // The writer last: the last connection to a file merges the log, and a reader may not write.
                pools.reader.close().await;
                pools.writer.close().await;
            }
            Self::Postgres(pools) => pools.pool.close().await,
        }
    }
}

async fn open_sqlite(data_dir: &Path, readers: u32, service: &str) -> Result<Database> {
    std::fs::create_dir_all(data_dir).map_err(|source| Error::Folder {
        path: data_dir.to_owned(),
        source,
    })?;
    let file: PathBuf = data_dir.join(format!("{service}.db"));
    let location = file.display().to_string();
    let base = SqliteConnectOptions::new()
        .filename(&file)
        .foreign_keys(true)
        // The operator REGEXP, in linear time.
        .with_regexp()
        .busy_timeout(BUSY_TIMEOUT);
    let writing = base
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", WAL_LIMIT_BYTES);
    let reading = base.pragma("query_only", "ON");
    // The writer first: it creates the file and switches it to write-ahead logging.
    let writer = sqlite_pool(1, writing).await.map_err(|error| error.at(&location))?;
    let reader = sqlite_pool(readers, reading)
        .await
        .map_err(|error| error.at(&location))?;
    let file = file.into();
    Ok(Database::Sqlite(SqlitePools { writer, reader, file }))
}

async fn sqlite_pool(connections: u32, options: SqliteConnectOptions) -> Result<SqlitePool> {
    let pool = SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A connection to a file does not go stale, and opening one costs more than keeping it.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        // On a full disk SQLite undoes the transaction by itself, and sqlx goes on believing in it: it would refuse every
        // later one. Such a connection is replaced; one that comes back healthy has no transaction.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }));
    Ok(pool.connect_with(options).await?)
}

async fn open_postgres(url: &str, connections: u32, schema: &'static str) -> Result<Database> {
    let options = PgConnectOptions::from_str(url).map_err(|_| Error::Config {
        message: "database.url cannot be read: write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned(),
    })?;
    let location = location(&options, schema);
    let options = options.application_name(&format!("modelyard-{schema}")).options([
        ("search_path", schema),
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_TRANSACTION_TIMEOUT),
    ]);
    // Alone and first, because a pool keeps trying and then says only that it gave up.
    prepare_schema(&options, schema)
        .await
        .map_err(|error| error.at(&location))?;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options);
    let location = location.into();
    Ok(Database::Postgres(PostgresPools { pool, schema, location }))
}

/// The server, the database and the schema, without user and password.
fn location(options: &PgConnectOptions, schema: &str) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!(
        "postgres://{}:{}/{database}?schema={schema}",
        options.get_host(),
        options.get_port()
    )
}

/// Creates the schema where it is not there. It looks first: PostgreSQL asks for the right to create schemas even when
/// there is nothing to create, and a careful operator does not give it.
async fn prepare_schema(options: &PgConnectOptions, schema: &'static str) -> Result<()> {
    let connecting = tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(options));
    let mut connection = connecting.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    let mut tx = connection.begin().await?;
    // Two nodes that start together would both find nothing, and one would fail.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(schema_lock(schema))
        .execute(&mut *tx)
        .await?;
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *tx)
        .await?;
    if !exists {
        // The name is a word of ours, checked above.
        let statement = sqlx::AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\""));
        sqlx::query(statement).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(connection.close().await?)
}

/// The advisory lock that start-up of a schema holds: a constant of ours, mixed with the schema's name (FNV-1a).
pub(crate) fn schema_lock(schema: &str) -> i64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = b"modelyard:"
        .iter()
        .chain(schema.as_bytes())
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    i64::from_ne_bytes(hash.to_ne_bytes())
}
