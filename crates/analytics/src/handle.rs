//! Opened tables, kept so that a query reads only what is new in the log.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use deltalake::{
    DeltaTable,
    logstore::{StorageConfig, default_logstore},
};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, prefix::PrefixStore};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    commit::CHECKPOINT_INTERVAL,
    error::{Error, Result},
    ordered::Ordered,
    table_name::TableName,
};

/// How many tables are kept open. One more closes the one that was unused for longest.
const MAX_OPEN_TABLES: usize = 256;

/// An opened table.
pub(crate) struct TableHandle {
    pub(crate) name: TableName,
    store: Arc<dyn ObjectStore>,
    /// The newest version that was seen; `None` while there is no such table.
    current: AsyncMutex<Option<Opened>>,
    /// One commit at a time in this process.
    pub(crate) commit: AsyncMutex<CommitState>,
}

/// A table as it was read.
struct Opened {
    table: DeltaTable,
    /// The version that was read from the log's last checkpoint. What came later was added piece by piece, which makes
    /// reading it slower with every piece.
    read_from: u64,
}

impl Opened {
    fn new(table: DeltaTable) -> Self {
        let read_from = table.version().unwrap_or(0);
        Self { table, read_from }
    }

    fn pieces(&self) -> u64 {
        self.table.version().unwrap_or(0).saturating_sub(self.read_from)
    }
}

/// What commits of this process know beside the table itself.
#[derive(Default)]
pub(crate) struct CommitState {
    /// The version that `retired` belongs to.
    version: Option<u64>,
    /// The files that were in the table once, and were removed by another writer (by compacting them, say).
    retired: HashSet<String>,
}

impl TableHandle {
    /// A handle that has not looked at the table yet.
    fn unopened(&self) -> Result<DeltaTable> {
        let location = self.name.url()?;
        let below: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&self.store), self.name.path()));
        let log_store = default_logstore(below, Arc::clone(&self.store), &location, &StorageConfig::default());
        Ok(DeltaTable::new(log_store))
    }

    /// The newest version of the table, or `None` while there is no such table.
    pub(crate) async fn newest(&self) -> Result<Option<DeltaTable>> {
        let mut current = self.current.lock().await;
        if let Some(opened) = current.as_mut().filter(|opened| opened.pieces() < CHECKPOINT_INTERVAL) {
            match opened.table.update_incremental(None).await {
                Ok(()) => return Ok(Some(opened.table.clone())),
                // The log may have been removed, or replaced by another.
                Err(error) => tracing::warn!(table = %self.name, %error, "table is opened again"),
            }
        }
        *current = None;
        let mut table = self.unopened()?;
        let failed = |error| Error::of_delta(&self.name, "opening", error);
        if !table.verify_deltatable_existence().await.map_err(failed)? {
            return Ok(None);
        }
        table.load().await.map_err(failed)?;
        *current = Some(Opened::new(table.clone()));
        Ok(Some(table))
    }

    /// A table to be created.
    pub(crate) fn missing(&self) -> Result<DeltaTable> {
        self.unopened()
    }

    /// Remembers what a commit made of the table.
    pub(crate) async fn advance(&self, table: &DeltaTable) {
        let mut current = self.current.lock().await;
        match current.as_mut() {
            Some(opened) if opened.table.version() < table.version() => opened.table = table.clone(),
            Some(_) => {}
            None => *current = Some(Opened::new(table.clone())),
        }
    }
}

impl CommitState {
    /// Which of the paths were in the table before. The log's removals are read only where another writer changed it.
    pub(crate) async fn known(
        &mut self,
        name: &TableName,
        table: &DeltaTable,
        paths: &HashSet<&str>,
    ) -> Result<HashSet<String>> {
        let failed = |error| Error::of_delta(name, "reading", error);
        let state = table.snapshot().map_err(failed)?;
        if self.version != Some(state.version()) {
            let log_store = table.log_store();
            let removed = state.all_tombstones(log_store.as_ref());
            self.retired = removed
                .map_ok(|file| file.path().into_owned())
                .try_collect()
                .await
                .map_err(failed)?;
            self.version = Some(state.version());
        }
        let active = state.log_data();
        let mut known: HashSet<String> = paths
            .iter()
            .filter(|path| self.retired.contains(**path))
            .map(|path| (*path).to_owned())
            .collect();
        for file in active.iter() {
            if let Some(path) = paths.get(&*file.path()) {
                known.insert((*path).to_owned());
            }
        }
        Ok(known)
    }

    /// Tells that this process's own commit made the next version, which removed nothing.
    pub(crate) fn committed(&mut self, version: u64) {
        self.version = Some(version);
    }
}

/// The opened tables.
pub(crate) struct Tables {
    store: Arc<dyn ObjectStore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    tables: HashMap<TableName, (Arc<TableHandle>, u64)>,
    uses: u64,
}

impl Tables {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store: Arc::new(Ordered(store)),
            open: Mutex::default(),
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    pub(crate) fn handle(&self, name: &TableName) -> Arc<TableHandle> {
        let mut open = self.open.lock();
        open.uses += 1;
        let uses = open.uses;
        if let Some((handle, used)) = open.tables.get_mut(name) {
            *used = uses;
            return Arc::clone(handle);
        }
        if open.tables.len() >= MAX_OPEN_TABLES {
            open.close_oldest();
        }
        let handle = Arc::new(TableHandle {
            name: name.clone(),
            store: Arc::clone(&self.store),
            current: AsyncMutex::default(),
            commit: AsyncMutex::default(),
        });
        open.tables.insert(name.clone(), (Arc::clone(&handle), uses));
        handle
    }
}

impl Open {
    /// Closes the table that was unused for longest. One in use is kept: a second handle would commit beside it.
    fn close_oldest(&mut self) {
        let idle = self
            .tables
            .iter()
            .filter(|(_, (handle, _))| Arc::strong_count(handle) == 1);
        let oldest = idle.min_by_key(|(_, (_, used))| *used).map(|(name, _)| name.clone());
        if let Some(name) = oldest {
            self.tables.remove(&name);
        }
    }
}
