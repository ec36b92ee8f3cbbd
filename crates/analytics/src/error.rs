//! What can go wrong with tables and queries.

use std::io;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use deltalake::{DeltaTableError, kernel::transaction::TransactionError};
use modelyard_common::{ErrorKind, Fault};

use crate::table_name::TableName;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a table or query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no table.
    #[error(
        "`{name}` is not a table: write its folders with `/` between them, each of letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
    )]
    InvalidTableName {
        /// The text.
        name: String,
    },
    /// There is no such table.
    #[error("table {table} does not exist yet: it begins with the first file that is appended")]
    TableNotFound {
        /// The table.
        table: TableName,
    },
    /// A file cannot be appended.
    #[error("file `{path}` cannot be appended to table {table}: {problem}")]
    InvalidFile {
        /// The table.
        table: TableName,
        /// The file, relative to the table's folder.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A column has another type than in the table.
    #[error(
        "column `{column}` of table {table} is {table_type}, but {found_type} arrived: give the column another name, or send the table's type"
    )]
    TypeConflict {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// The column's type in the table.
        table_type: String,
        /// The type that arrived.
        found_type: String,
    },
    /// What was handed over can never be appended.
    #[error("nothing was appended to table {table}: {problem}")]
    InvalidAppend {
        /// The table.
        table: TableName,
        /// What is wrong.
        problem: String,
    },
    /// Other writers won every time.
    #[error("table {table} changed {attempts} times while a commit was tried: try again")]
    Contention {
        /// The table.
        table: TableName,
        /// How often it was tried.
        attempts: usize,
    },
    /// The query cannot be run as it is.
    #[error("the query cannot be run: {problem}")]
    InvalidQuery {
        /// What is wrong with it.
        problem: String,
    },
    /// The result is larger than asked for.
    #[error("the query's result has more than {limit}: narrow it, aggregate it, or add a LIMIT")]
    ResultTooLarge {
        /// The limit with its unit.
        limit: String,
    },
    /// The query needs more memory than it may have.
    #[error(
        "the query needs more memory than analytics may use: narrow it, or raise the limits of memory and of spilling ({problem})"
    )]
    OutOfMemory {
        /// What asked for more.
        problem: String,
    },
    /// No space is left.
    #[error("storage is full: free some space or enlarge it")]
    StorageFull {
        /// The storage's answer.
        source: Source,
    },
    /// The storage cannot be reached, or failed.
    #[error("storage failed: check that it is reachable and that the server may read and write there")]
    Storage {
        /// The storage's answer.
        source: Source,
    },
    /// A fault of ours, or of a table that was damaged.
    #[error("{context} failed")]
    Internal {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: Source,
    },
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidTableName { .. }
            | Self::InvalidFile { .. }
            | Self::InvalidAppend { .. }
            | Self::InvalidQuery { .. } => ErrorKind::InvalidArgument,
            Self::TableNotFound { .. } => ErrorKind::NotFound,
            Self::TypeConflict { .. } => ErrorKind::FailedPrecondition,
            Self::Contention { .. } => ErrorKind::Aborted,
            Self::ResultTooLarge { .. } | Self::OutOfMemory { .. } | Self::StorageFull { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::Storage { .. } => ErrorKind::Unavailable,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::InvalidTableName { .. } => "INVALID_TABLE_NAME",
            Self::TableNotFound { .. } => "TABLE_NOT_FOUND",
            Self::InvalidFile { .. } => "INVALID_DATA_FILE",
            Self::TypeConflict { .. } => "COLUMN_TYPE_CONFLICT",
            Self::InvalidAppend { .. } => "INVALID_APPEND",
            Self::Contention { .. } => "TABLE_CONTENTION",
            Self::InvalidQuery { .. } => "INVALID_QUERY",
            Self::ResultTooLarge { .. } => "RESULT_TOO_LARGE",
            Self::OutOfMemory { .. } => "QUERY_OUT_OF_MEMORY",
            Self::StorageFull { .. } => "STORAGE_FULL",
            Self::Storage { .. } => "STORAGE_UNAVAILABLE",
            Self::Internal { .. } => "ANALYTICS_INTERNAL",
        }
    }
}

/// The first error of type `T` among an error and its sources.
fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What ran out, if memory or the space for spilling did. Objects are read through the object store, which has its own
/// errors: an I/O error of a query is one of its spilling.
fn exhausted(error: &DataFusionError) -> Option<String> {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(problem) => Some(problem.clone()),
        DataFusionError::IoError(error) => Some(error.to_string()),
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::IoError(problem, _) => Some(problem.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether it was the storage that failed, and how.
fn of_storage(source: Source) -> Result<Error, Source> {
    let error = source.as_ref();
    match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => return Ok(Error::StorageFull { source }),
        // An object that is not there is a table that lacks a file, not a storage that fails.
        Some(io::ErrorKind::NotFound) => return Err(source),
        _ => {}
    }
    match find::<object_store::Error>(error) {
        Some(object_store::Error::NotFound { .. }) | None => Err(source),
        Some(_) => Ok(Error::Storage { source }),
    }
}

impl Error {
    pub(crate) fn internal(context: impl Into<String>, source: impl Into<Source>) -> Self {
        of_storage(source.into()).unwrap_or_else(|source| Self::Internal {
            context: context.into(),
            source,
        })
    }

    pub(crate) fn of_store(source: object_store::Error) -> Self {
        Self::internal("reading or writing an object", source)
    }

    pub(crate) fn of_delta(table: &TableName, doing: &str, source: DeltaTableError) -> Self {
        Self::internal(format!("{doing} table {table}"), source)
    }

    /// An error of planning or running a query: the caller's fault, unless the storage or memory is to blame.
    pub(crate) fn of_query(error: DataFusionError) -> Self {
        if let Some(problem) = exhausted(&error) {
            let problem = problem.lines().next().unwrap_or_default().to_owned();
            return Self::OutOfMemory { problem };
        }
        match error.find_root() {
            DataFusionError::ObjectStore(_)
            | DataFusionError::ParquetError(_)
            | DataFusionError::Internal(_)
            | DataFusionError::External(_)
            | DataFusionError::ExecutionJoin(_) => return Self::internal("the query", error),
            _ => {}
        }
        Self::InvalidQuery {
            problem: error.strip_backtrace(),
        }
    }
}

/// Whether a commit failed because another writer was faster, so that it is tried again on the newer version.
pub(crate) fn lost_race(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction {
                source: TransactionError::VersionAlreadyExists(_)
                    | TransactionError::MaxCommitAttempts(_)
                    | TransactionError::CommitConflict(_),
            }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_errors_are_found_below_others() {
        let full = object_store::Error::Generic {
            store: "local",
            source: io::Error::from(io::ErrorKind::StorageFull).into(),
        };
        let error = Error::internal("a commit", DeltaTableError::ObjectStore { source: full });
        assert_eq!(error.reason(), "STORAGE_FULL");
        let down = object_store::Error::Generic {
            store: "S3",
            source: "connection refused".into(),
        };
        assert_eq!(Error::of_store(down).kind(), ErrorKind::Unavailable);
        let missing = object_store::Error::NotFound {
            path: "x".to_owned(),
            source: "404".into(),
        };
        assert_eq!(Error::of_store(missing).kind(), ErrorKind::Internal);
    }
}
