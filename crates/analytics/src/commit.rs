//! Appending files to a table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use deltalake::{
    DeltaTable, TableProperty,
    checkpoints::{cleanup_metadata, create_checkpoint},
    kernel::{
        Action, MetadataExt as _,
        transaction::{CommitBuilder, CommitProperties},
    },
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use modelyard_common::Timestamp;
use serde_json::Value;

use crate::{
    error::{Error, Result, lost_race},
    file::{DataFile, PreparedFile, prepare},
    handle::{CommitState, TableHandle, Tables},
    schema,
    table_name::TableName,
};

/// The most files of one commit.
pub const MAX_FILES_PER_COMMIT: usize = 1000;
/// How often a commit is tried when other processes commit to the same table.
pub const MAX_COMMIT_ATTEMPTS: usize = 20;
/// After this many commits the table's state is written down, so that readers need not read the log from its beginning.
pub const CHECKPOINT_INTERVAL: u64 = 50;
/// How long the log keeps old versions that a checkpoint has made unnecessary.
const LOG_RETENTION: &str = "interval 1 days";
/// How many footers are read at once.
const FOOTERS_IN_FLIGHT: usize = 8;
/// The wait after a lost race, in milliseconds, times the number of races lost.
const BACKOFF_MS: u64 = 10;
/// Where a commit's id stands in the log.
const COMMIT_ID_KEY: &str = "modelyard.commitId";
const MAX_COMMIT_ID_BYTES: usize = 256;

/// What an append came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The table's version that has all the files.
    pub version: u64,
    /// Whether all files were in the table before, so that nothing was committed.
    pub already: bool,
}

/// The files of one commit, checked among each other.
struct Batch {
    table: TableName,
    commit_id: String,
    partition_column: String,
    files: Vec<PreparedFile>,
}

pub(crate) async fn append(
    tables: Arc<Tables>,
    now: Timestamp,
    table: TableName,
    files: Vec<DataFile>,
    commit_id: String,
) -> Result<Appended> {
    let mut batch = check(&tables, table, files, commit_id).await?;
    for file in &mut batch.files {
        file.add.modification_time = now.as_micros() / 1000;
    }
    let handle = tables.handle(&batch.table);
    let mut state = handle.commit.lock().await;
    for attempt in 1..=MAX_COMMIT_ATTEMPTS {
        if let Some(appended) = try_commit(&handle, &mut state, &batch).await? {
            return Ok(appended);
        }
        tracing::debug!(table = %batch.table, attempt, "another writer was faster");
        tokio::time::sleep(Duration::from_millis(BACKOFF_MS * attempt as u64)).await;
    }
    Err(Error::Contention {
        table: batch.table,
        attempts: MAX_COMMIT_ATTEMPTS,
    })
}

/// Which files of a table were in it at a version.
pub(crate) struct KnownFiles {
    pub(crate) version: Option<u64>,
    pub(crate) files: HashSet<String>,
}

/// Which of the paths are in the table, or were.
pub(crate) async fn known_files(
    tables: &Tables,
    table: &TableName,
    paths: impl Iterator<Item = &str>,
) -> Result<KnownFiles> {
    let handle = tables.handle(table);
    let mut state = handle.commit.lock().await;
    let Some(newest) = handle.newest().await? else {
        return Ok(KnownFiles {
            version: None,
            files: HashSet::new(),
        });
    };
    let files = state.known(table, &newest, &paths.collect()).await?;
    Ok(KnownFiles {
        version: newest.version(),
        files,
    })
}

async fn check(tables: &Tables, table: TableName, files: Vec<DataFile>, commit_id: String) -> Result<Batch> {
    let refuse = |problem: String| Error::InvalidAppend {
        table: table.clone(),
        problem,
    };
    if files.is_empty() || files.len() > MAX_FILES_PER_COMMIT {
        let problem = format!(
            "{} files arrived, and 1 to {MAX_FILES_PER_COMMIT} can be appended at once",
            files.len()
        );
        return Err(refuse(problem));
    }
    if commit_id.is_empty() || commit_id.len() > MAX_COMMIT_ID_BYTES {
        return Err(refuse(format!(
            "its commit id must have 1 to {MAX_COMMIT_ID_BYTES} bytes"
        )));
    }
    let mut paths = HashSet::new();
    if let Some(twice) = files.iter().find(|file| !paths.insert(file.path.as_str())) {
        return Err(refuse(format!("file `{}` is there twice", twice.path.escape_default())));
    }
    let files: Vec<PreparedFile> = stream::iter(files)
        .map(|file| prepare(tables.store(), table.clone(), file))
        .buffered(FOOTERS_IN_FLIGHT)
        .try_collect()
        .await?;
    let columns: HashSet<&str> = files.iter().map(|file| file.partition.column.as_str()).collect();
    let mut columns = columns.into_iter();
    let (Some(partition_column), None) = (columns.next(), columns.next()) else {
        return Err(refuse("its files are partitioned by different columns".to_owned()));
    };
    Ok(Batch {
        partition_column: partition_column.to_owned(),
        table: table.clone(),
        commit_id,
        files,
    })
}

/// Commits to the newest version; `None` if another writer was faster.
async fn try_commit(handle: &TableHandle, state: &mut CommitState, batch: &Batch) -> Result<Option<Appended>> {
    let mut table = match handle.newest().await? {
        Some(table) => table,
        None => match create(handle, batch).await? {
            Some(table) => table,
            None => return Ok(None),
        },
    };
    let failed = |error| Error::of_delta(&batch.table, "committing to", error);
    let paths = batch.files.iter().map(|file| file.add.path.as_str()).collect();
    let known = state.known(&batch.table, &table, &paths).await?;
    let new: Vec<&PreparedFile> = batch
        .files
        .iter()
        .filter(|file| !known.contains(&file.add.path))
        .collect();
    let snapshot = table.snapshot().map_err(failed)?;
    if new.is_empty() {
        let version = snapshot.version();
        return Ok(Some(Appended { version, already: true }));
    }
    let partitioned_by = snapshot.metadata().partition_columns();
    if *partitioned_by != [batch.partition_column.as_str()] {
        return Err(Error::InvalidAppend {
            table: batch.table.clone(),
            problem: format!(
                "the table is partitioned by {partitioned_by:?}, its files by `{}`",
                batch.partition_column
            ),
        });
    }
    let schema = snapshot.schema();
    let mut wider = None;
    for file in &new {
        let merged = schema::merge(&batch.table, wider.as_ref().unwrap_or(&schema), &file.columns)?;
        wider = merged.or(wider);
    }
    let mut actions = Vec::with_capacity(new.len() + 1);
    if let Some(wider) = wider {
        let metadata = snapshot
            .metadata()
            .clone()
            .with_schema(&wider)
            .map_err(|error| failed(error.into()))?;
        actions.push(Action::Metadata(metadata));
    }
    actions.extend(new.into_iter().map(|file| Action::Add(file.add.clone())));
    let operation = DeltaOperation::Write {
        mode: SaveMode::Append,
        partition_by: Some(vec![batch.partition_column.clone()]),
        predicate: None,
    };
    let committed = CommitBuilder::from(properties(&batch.commit_id))
        .with_actions(actions)
        .build(Some(snapshot), table.log_store(), operation)
        .await;
    let committed = match committed {
        Ok(committed) => committed,
        Err(error) if lost_race(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let version = committed.version();
    table.state = Some(committed.snapshot());
    state.committed(version);
    handle.advance(&table).await;
    if (version + 1).is_multiple_of(CHECKPOINT_INTERVAL) {
        keep_house(&batch.table, &table).await;
    }
    Ok(Some(Appended {
        version,
        already: false,
    }))
}

/// Creates the table without files; `None` if another writer was faster.
async fn create(handle: &TableHandle, batch: &Batch) -> Result<Option<DeltaTable>> {
    let columns = batch
        .files
        .first()
        .map(|file| file.columns.as_slice())
        .unwrap_or_default();
    let schema = schema::create(&batch.table, &batch.partition_column, columns)?;
    let created = CreateBuilder::new()
        .with_log_store(handle.missing()?.log_store())
        .with_columns(schema.fields().cloned())
        .with_partition_columns([batch.partition_column.as_str()])
        .with_save_mode(SaveMode::ErrorIfExists)
        .with_configuration_property(TableProperty::CheckpointInterval, Some(CHECKPOINT_INTERVAL.to_string()))
        .with_configuration_property(TableProperty::LogRetentionDuration, Some(LOG_RETENTION))
        .with_commit_properties(properties(&batch.commit_id))
        .await;
    match created {
        Ok(table) => {
            handle.advance(&table).await;
            Ok(Some(table))
        }
        // Between the look and the creation somebody else may have created it.
        Err(error) if lost_race(&error) || handle.newest().await?.is_some() => Ok(None),
        Err(error) => Err(Error::of_delta(&batch.table, "creating", error)),
    }
}

/// Each attempt is one of ours, on the version that was checked: the library would try again without looking whether the
/// files have arrived meanwhile. Checkpoints are ours, too: its own would report a failed one as a failed commit.
fn properties(commit_id: &str) -> CommitProperties {
    CommitProperties::default()
        .with_max_retries(0)
        .with_create_checkpoint(false)
        .with_cleanup_expired_logs(Some(false))
        .with_metadata(HashMap::from([(COMMIT_ID_KEY.to_owned(), Value::from(commit_id))]))
}

/// Writes a checkpoint and removes what it makes unnecessary. The commit stands without it, so that a failure is only told.
async fn keep_house(name: &TableName, table: &DeltaTable) {
    let kept = match create_checkpoint(table, None).await {
        Ok(()) => cleanup_metadata(table, None).await,
        Err(error) => Err(error),
    };
    match kept {
        Ok(removed) => tracing::debug!(table = %name, version = table.version(), removed, "checkpoint written"),
        Err(error) => tracing::warn!(table = %name, %error, "checkpoint not written: the next one is tried later"),
    }
}
