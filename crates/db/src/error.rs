//! What can go wrong with a database, in the product's words.

use std::{io, path::PathBuf};

use modelyard_common::error::{ErrorKind, Fault};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the database. `?` turns every `sqlx::Error` into one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("{message}")]
    Config {
        /// What is wrong with which setting, and the remedy.
        message: String,
    },
    /// The folder of the database cannot be made.
    #[error("the folder `{}` cannot be created: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("the database `{database}` cannot be opened: {source}")]
    Open {
        /// The file, or the server without its password.
        database: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The file holds something else, or is damaged.
    #[error("{place} is not a database, or is damaged: move it away, or restore it from a backup")]
    Damaged {
        /// The file, in quotes; where it is not known, `the database`.
        place: String,
        /// What the database says.
        source: sqlx::Error,
    },
    /// A newer version of the program has changed the tables.
    #[error(
        "the database `{database}` was written by a newer version (migration {migration:04} of `{set}`): run that version or newer"
    )]
    Newer {
        /// The file, or the server without its password.
        database: String,
        /// The name of the set of migrations.
        set: &'static str,
        /// The newest migration that the database has and this program does not.
        migration: i64,
    },
    /// A migration differs from what was once applied.
    #[error(
        "migration {migration:04} of `{set}` differs from the one that the database `{database}` has had: run the version that made the database, or restore a backup"
    )]
    Changed {
        /// The file, or the server without its password.
        database: String,
        /// The name of the set of migrations.
        set: &'static str,
        /// The migration.
        migration: i64,
    },
    /// A migration failed; it left nothing behind.
    #[error("the database `{database}` cannot be brought up to date with the migrations of `{set}`: {source}")]
    Migration {
        /// The file, or the server without its password.
        database: String,
        /// The name of the set of migrations.
        set: &'static str,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// A row with the same unique key is there already.
    #[error("a row with the same `{key}` exists already")]
    Duplicate {
        /// The unique index (PostgreSQL) or its columns (SQLite).
        key: String,
        /// What the database says.
        source: sqlx::Error,
    },
    /// A foreign key has no other end.
    #[error(
        "a row that this one refers to does not exist, or this one is still referred to: change the other one first"
    )]
    Reference {
        /// What the database says.
        source: sqlx::Error,
    },
    /// Another transaction was in the way.
    #[error("another transaction was in the way: try again")]
    Conflict {
        /// What the database says.
        source: sqlx::Error,
    },
    /// A statement ran longer than it may.
    #[error("a statement of the database took too long and was stopped: try again, or ask for less")]
    Timeout {
        /// What the database says.
        source: sqlx::Error,
    },
    /// The database cannot be reached, or all connections are taken.
    #[error("the database cannot be reached: {source}: check that it runs and takes connections")]
    Unavailable {
        /// Why not.
        source: sqlx::Error,
    },
    /// No space is left.
    #[error("the disk of {place} is full: free space on it, then try again")]
    DiskFull {
        /// The file, or the server without its password, in quotes; where it is not known, `the database`.
        place: String,
        /// What the database says.
        source: sqlx::Error,
    },
    /// A stored value that this program did not write, or wrote wrongly.
    #[error("the stored value `{value}` is no {what}")]
    Value {
        /// What it should have been.
        what: &'static str,
        /// What it is, cut short.
        value: String,
    },
    /// A fault of ours: a statement that the database does not take, a column that is not there.
    #[error("a statement failed: {source}")]
    Statement {
        /// What the database says.
        source: sqlx::Error,
    },
}

/// How much of a stored value an error shows, in characters.
const SHOWN_VALUE_CHARS: usize = 64;

impl Error {
    /// A stored value that cannot be read back as a `what`.
    pub fn value(what: &'static str, value: &str) -> Self {
        Self::Value {
            what,
            value: value.chars().take(SHOWN_VALUE_CHARS).collect(),
        }
    }

    /// Whether a unique key was the reason, so that a service can name the thing in its own words.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate { .. })
    }

    /// The same error, naming the database where the message has room for it.
    pub(crate) fn at(self, location: &str) -> Self {
        let database = location.to_owned();
        let place = format!("`{location}`");
        match self {
            Self::DiskFull { source, .. } => Self::DiskFull { place, source },
            Self::Damaged { source, .. } => Self::Damaged { place, source },
            Self::Unavailable { source } | Self::Statement { source } => Self::Open { database, source },
            other => other,
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } => ErrorKind::InvalidArgument,
            Self::Open { .. } | Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Folder { .. }
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Changed { .. }
            | Self::Reference { .. } => ErrorKind::FailedPrecondition,
            Self::Duplicate { .. } => ErrorKind::AlreadyExists,
            Self::Conflict { .. } => ErrorKind::Aborted,
            Self::Timeout { .. } => ErrorKind::DeadlineExceeded,
            Self::DiskFull { .. } => ErrorKind::ResourceExhausted,
            Self::Migration { .. } | Self::Value { .. } | Self::Statement { .. } => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Config { .. } => "DATABASE_CONFIG",
            Self::Folder { .. } => "DATABASE_FOLDER",
            Self::Open { .. } => "DATABASE_OPEN",
            Self::Damaged { .. } => "DATABASE_DAMAGED",
            Self::Newer { .. } => "DATABASE_NEWER",
            Self::Changed { .. } => "DATABASE_MIGRATION_CHANGED",
            Self::Migration { .. } => "DATABASE_MIGRATION",
            Self::Duplicate { .. } => "DATABASE_DUPLICATE",
            Self::Reference { .. } => "DATABASE_REFERENCE",
            Self::Conflict { .. } => "DATABASE_CONFLICT",
            Self::Timeout { .. } => "DATABASE_TIMEOUT",
            Self::Unavailable { .. } => "DATABASE_UNAVAILABLE",
            Self::DiskFull { .. } => "DATABASE_DISK_FULL",
            Self::Value { .. } => "DATABASE_VALUE",
            Self::Statement { .. } => "DATABASE_STATEMENT",
        }
    }
}

/// What the code of a database error means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Duplicate,
    Reference,
    Conflict,
    Timeout,
    Unavailable,
    DiskFull,
    Damaged,
    Statement,
}

/// The low byte of SQLite's extended result codes is the primary code.
const SQLITE_PRIMARY: i32 = 0xff;

/// SQLite's primary result codes, where they are not a fault of the statement.
fn sqlite_meaning(code: i32) -> Meaning {
    match code & SQLITE_PRIMARY {
        5 | 6 => Meaning::Conflict,
        11 | 26 => Meaning::Damaged,
        13 => Meaning::DiskFull,
        _ => Meaning::Statement,
    }
}

/// PostgreSQL's SQLSTATEs, where they are not a fault of the statement.
fn postgres_meaning(code: &str) -> Meaning {
    match code {
        "40001" | "40P01" | "55P03" => Meaning::Conflict,
        "57014" => Meaning::Timeout,
        "53100" => Meaning::DiskFull,
        "53300" | "57P01" | "57P02" | "57P03" | "25P03" => Meaning::Unavailable,
        "XX001" | "XX002" => Meaning::Damaged,
        _ if code.starts_with("08") => Meaning::Unavailable,
        _ => Meaning::Statement,
    }
}

fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
    match error.kind() {
        sqlx::error::ErrorKind::UniqueViolation => return Meaning::Duplicate,
        sqlx::error::ErrorKind::ForeignKeyViolation => return Meaning::Reference,
        _ => {}
    }
    let code = error.code().unwrap_or_default();
    // A SQLSTATE always has five characters; the codes of SQLite that we know have four at most.
    match code.parse::<i32>() {
        Ok(number) if code.len() < 5 => sqlite_meaning(number),
        _ => postgres_meaning(&code),
    }
}

/// The name of the unique key: PostgreSQL gives the index, SQLite the columns, in its message after a colon.
fn duplicate_key(error: &dyn sqlx::error::DatabaseError) -> String {
    if let Some(index) = error.constraint() {
        return index.to_owned();
    }
    let message = error.message();
    message
        .rsplit_once(": ")
        .map_or(message, |(_, columns)| columns)
        .to_owned()
}

/// What a failing statement calls its database: it does not know its name.
const UNNAMED: &str = "the database";

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        let meaning = match &source {
            sqlx::Error::Database(error) => meaning(&**error),
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => Meaning::DiskFull,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Meaning::Unavailable,
            _ => Meaning::Statement,
        };
        let key = source.as_database_error().map(duplicate_key).unwrap_or_default();
        let place = UNNAMED.to_owned();
        match meaning {
            Meaning::Duplicate => Self::Duplicate { key, source },
            Meaning::Reference => Self::Reference { source },
            Meaning::Conflict => Self::Conflict { source },
            Meaning::Timeout => Self::Timeout { source },
            Meaning::Unavailable => Self::Unavailable { source },
            Meaning::DiskFull => Self::DiskFull { place, source },
            Meaning::Damaged => Self::Damaged { place, source },
            Meaning::Statement => Self::Statement { source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_are_nobodys_fault_are_told_apart() {
        let sqlite = [
            (5, Meaning::Conflict),
            (517, Meaning::Conflict),
            (6, Meaning::Conflict),
            (13, Meaning::DiskFull),
            (26, Meaning::Damaged),
            (11, Meaning::Damaged),
            (1, Meaning::Statement),
        ];
        for (code, expected) in sqlite {
            assert_eq!(sqlite_meaning(code), expected, "{code}");
        }
        let postgres = [
            ("40001", Meaning::Conflict),
            ("40P01", Meaning::Conflict),
            ("57014", Meaning::Timeout),
            ("53100", Meaning::DiskFull),
            ("08006", Meaning::Unavailable),
            ("57P01", Meaning::Unavailable),
            ("42601", Meaning::Statement),
        ];
        for (code, expected) in postgres {
            assert_eq!(postgres_meaning(code), expected, "{code}");
        }
    }

    #[test]
    fn a_full_disk_is_named_and_has_a_remedy() {
        let full = sqlx::Error::Io(io::Error::from(io::ErrorKind::StorageFull));
        let error = Error::from(full).at("/data/registry.db");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        assert_eq!(
            error.to_string(),
            "the disk of `/data/registry.db` is full: free space on it, then try again"
        );
    }

    #[test]
    fn a_lost_connection_can_be_tried_again() {
        for source in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::Io(io::Error::from(io::ErrorKind::ConnectionReset)),
        ] {
            assert!(Error::from(source).kind().is_transient());
        }
    }
}
