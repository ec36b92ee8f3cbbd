//! Tables of the inference log and of labels: appending files to them and querying them with SQL.
//!
//! This is the only crate that knows DataFusion and Delta Lake. It owns the folders of the tables below the storage root,
//! each a Delta Lake table that Spark, DuckDB, Polars and Trino read as it is, partitioned by one date column. Its
//! invariants: a file is in a table once or not at all, however often it is appended; a commit is atomic and survives a
//! kill at any moment; nothing that would make a table unreadable (a missing or wrong file, a column of another type) is
//! committed; a query changes nothing and stays within its memory. It refuses to delete and to rewrite data.
//!
//! **Looking up one request.** A query by `request_id` should also bound the date column if it can: then only the files of
//! those days are considered. Of these, files whose range of `request_id` excludes it are skipped by the statistics in the
//! log (decisive for ids that grow with time, such as UUIDv7), and of the rest row groups are skipped by range and by bloom
//! filter. Writers of data files should therefore sort by `request_id` and write a bloom filter for it, as
//! [`Analytics::write_and_append`] does.

mod analytics;
mod commit;
mod error;
mod file;
mod handle;
mod ordered;
mod query;
mod schema;
mod table_name;
mod write;

pub use analytics::{Analytics, AnalyticsOptions};
pub use commit::{Appended, CHECKPOINT_INTERVAL, MAX_COMMIT_ATTEMPTS, MAX_FILES_PER_COMMIT};
pub use error::{Error, Result};
pub use file::DataFile;
pub use query::{MAX_COLLECTED_BYTES, MAX_SQL_BYTES, QueryResult, QueryTable};
pub use schema::MAX_COLUMNS;
pub use table_name::TableName;
pub use write::MAX_BATCH_ROWS;

/// A value of a query's parameter, and the stream of a query's result.
pub use datafusion::{execution::SendableRecordBatchStream, scalar::ScalarValue};
