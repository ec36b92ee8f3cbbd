//! The one entrance to tables and queries.

use std::{fmt, future::Future, path::PathBuf, sync::Arc};

use arrow::array::RecordBatch;
use datafusion::{
    execution::{SendableRecordBatchStream, context::SessionState},
    scalar::ScalarValue,
};
use modelyard_common::clock::SharedClock;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::runtime::Runtime;

use crate::{
    commit::{self, Appended},
    error::{Error, Result},
    file::DataFile,
    handle::Tables,
    query::{self, QueryResult, QueryTable},
    table_name::TableName,
    write,
};

/// What analytics may use of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnalyticsOptions {
    /// The memory of all queries together, in bytes. What needs more is written to `spill_dir`, or fails.
    pub memory_limit_bytes: u64,
    /// The threads that queries and commits run on. They are analytics' own, so that no query delays other work.
    pub threads: usize,
    /// Where queries that exceed the memory write to; a folder of the system's where left out.
    pub spill_dir: Option<PathBuf>,
    /// How much they may write there, in bytes.
    pub spill_limit_bytes: u64,
}

impl Default for AnalyticsOptions {
    fn default() -> Self {
        Self {
            memory_limit_bytes: 512 * 1024 * 1024,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            spill_dir: None,
            spill_limit_bytes: 10 * 1024 * 1024 * 1024,
        }
    }
}

/// Tables below a storage root, and queries over them. Cheap to clone.
#[derive(Clone)]
pub struct Analytics {
    shared: Arc<Shared>,
}

struct Shared {
    tables: Arc<Tables>,
    session: SessionState,
    clock: SharedClock,
    /// Taken when the last user is gone.
    runtime: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The last user may be an async task, where waiting for the threads to end is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Analytics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Analytics({})", self.shared.tables.store())
    }
}

impl Analytics {
    /// Analytics over the tables below the root of `store`. A local folder should be opened through
    /// `modelyard_artifacts::Storage`, whose writes survive a power cut.
    ///
    /// # Errors
    /// [`Error::Internal`]: no threads, or no folder for spilling.
    pub fn new(store: Arc<dyn ObjectStore>, options: &AnalyticsOptions, clock: SharedClock) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("analytics")
            .enable_all()
            .build()
            .map_err(|error| Error::internal("starting the threads of analytics", error))?;
        let session = query::session(Arc::clone(&store), options)?;
        let shared = Shared {
            tables: Arc::new(Tables::new(store)),
            session,
            clock,
            runtime: Some(runtime),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    fn runtime(&self) -> Result<&tokio::runtime::Handle> {
        let runtime = self.shared.runtime.as_ref().map(Runtime::handle);
        runtime.ok_or_else(|| Error::internal("analytics", "it was shut down"))
    }

    /// Runs on analytics' own threads. A caller that stops waiting does not stop a commit half-way.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let task = self.runtime()?.spawn(work);
        task.await
            .unwrap_or_else(|error| Err(Error::internal("a task of analytics", error)))
    }

    /// Adds uploaded files to a table in one commit, which creates the table where it is missing and adds the columns that
    /// it lacks. Files that are in the table, or were, are passed over: appending again after a crash is safe. The files'
    /// footers are read and checked first. `commit_id` stands in the table's history.
    ///
    /// # Errors
    /// [`Error::InvalidFile`], [`Error::TypeConflict`], [`Error::InvalidAppend`], [`Error::Contention`] or a storage error.
    /// Then nothing was committed.
    pub async fn append(&self, table: &TableName, files: Vec<DataFile>, commit_id: &str) -> Result<Appended> {
        let tables = Arc::clone(&self.shared.tables);
        let now = self.shared.clock.now();
        self.run(commit::append(tables, now, table.clone(), files, commit_id.to_owned()))
            .await
    }

    /// Writes rows as Parquet files, one for each date in `date_column`, and appends them in one commit. The same `file_id`
    /// again is the same rows again: nothing is written twice.
    ///
    /// # Errors
    /// As [`Analytics::append`].
    pub async fn write_and_append(
        &self,
        table: &TableName,
        batch: RecordBatch,
        date_column: &str,
        file_id: &str,
    ) -> Result<Appended> {
        let shared = Arc::clone(&self.shared.tables);
        let now = self.shared.clock.now();
        let (table, date_column, file_id) = (table.clone(), date_column.to_owned(), file_id.to_owned());
        let name = table.clone();
        let id = file_id.clone();
        let encoding = move || write::encode(&name, &batch, &date_column, &id);
        let encoding = self.runtime()?.spawn_blocking(encoding);
        self.run(async move {
            let encoded = encoding
                .await
                .map_err(|error| Error::internal("encoding a batch", error))??;
            let paths = encoded.iter().map(|encoded| encoded.file.path.as_str());
            let known = commit::known_files(&shared, &table, paths).await?;
            let mut files = Vec::with_capacity(encoded.len());
            for encoded in encoded {
                // A file that is in the table never changes, even if other rows arrive under its id.
                if known.files.contains(&encoded.file.path) {
                    continue;
                }
                let within = Path::from(encoded.file.path.as_str());
                let path: Path = table.path().parts().chain(within.parts()).collect();
                shared
                    .store()
                    .put(&path, encoded.content.into())
                    .await
                    .map_err(Error::of_store)?;
                files.push(encoded.file);
            }
            match known.version {
                Some(version) if files.is_empty() => Ok(Appended { version, already: true }),
                _ => commit::append(shared, now, table, files, file_id).await,
            }
        })
        .await
    }

    /// The result of one SELECT over the named tables, as it comes. Values are bound as `$name`. Dropping the stream ends
    /// the query.
    ///
    /// # Errors
    /// [`Error::InvalidQuery`], [`Error::TableNotFound`] or a storage error; in the stream also running out of memory.
    pub async fn query(
        &self,
        sql: &str,
        tables: &[QueryTable],
        params: &[(&str, ScalarValue)],
    ) -> Result<SendableRecordBatchStream> {
        let params = params
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let shared = Arc::clone(&self.shared.tables);
        let session = self.shared.session.clone();
        let started = query::start(shared, session, sql.to_owned(), tables.to_vec(), params);
        let result = self.run(started).await?;
        Ok(query::hand_over(self.runtime()?, result))
    }

    /// The whole result of one SELECT, of at most `max_rows` rows.
    ///
    /// # Errors
    /// As [`Analytics::query`], and [`Error::ResultTooLarge`].
    pub async fn query_collect(
        &self,
        sql: &str,
        tables: &[QueryTable],
        params: &[(&str, ScalarValue)],
        max_rows: usize,
    ) -> Result<QueryResult> {
        query::collect(self.query(sql, tables, params).await?, max_rows).await
    }

    /// The newest version of a table, or `None` while there is no such table.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn version(&self, table: &TableName) -> Result<Option<u64>> {
        let handle = self.shared.tables.handle(table);
        self.run(async move { Ok(handle.newest().await?.and_then(|table| table.version())) })
            .await
    }
}
