//! The spool of the inference log: predictions on this machine's disk until monitoring has taken them over.
//!
//! Each endpoint has a folder of segments. One is open and takes records as they come, with plain writes, which
//! survive the death of this process; a closed one becomes Parquet files in the storage, is handed to monitoring, and
//! is removed when that has answered. Segments are handed over in the order of their making and only when no shadow's
//! answer is owed to them any more, so that what is left on disk always tells what is still to be done.

mod append;
mod convert;
mod read;
mod record;
mod segment;
mod ship;
mod spares;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) use append::{EndpointLog, OwedToken};
pub(crate) use convert::Converter;
use metrics::Gauge;
use parking_lot::Mutex;
pub(crate) use record::{Definition, Encoded, Owed, Protocol, RawPrediction, RequestFacts, read_live};
pub(crate) use segment::Entry;
pub(crate) use ship::Shipping;
use spares::Spares;

use crate::{
    desired::EndpointKey,
    error::{Error, Result},
    meters::{self, DropReason},
};

/// How often lost records are told of in the log, at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// How often the free disk space is looked at.
pub(crate) const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What a segment's file is called, and one that monitoring refused for good.
const SEGMENT_SUFFIX: &str = "segment";
const REFUSED_SUFFIX: &str = "refused";

/// The folder of spare files beside those of projects, whose names begin otherwise.
const SPARES_FOLDER: &str = ".spares";

/// When a segment is closed, and how much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub segment_rows: u64,
    pub segment_bytes: u64,
    pub segment_age: Duration,
    pub spool_bytes: u64,
    pub min_free_bytes: u64,
}

impl Limits {
    /// The largest segment, in rows: what one Parquet file holds at most, but for the rows of its last request.
    const SEGMENT_ROWS: u64 = 20_000;
    /// The largest segment, in bytes, but for its last record.
    const SEGMENT_BYTES: u64 = 32 << 20;

    pub(crate) const fn new(segment_age: Duration, spool_bytes: u64, min_free_bytes: u64) -> Self {
        Self {
            segment_rows: Self::SEGMENT_ROWS,
            segment_bytes: Self::SEGMENT_BYTES,
            segment_age,
            spool_bytes,
            min_free_bytes,
        }
    }
}

/// What all endpoints' logs share: the room that they have, and files.
#[derive(Debug)]
pub(crate) struct Room {
    limits: Limits,
    spares: Spares,
    bytes: AtomicU64,
    disk_full: AtomicBool,
    /// Shows the bytes.
    shown: Gauge,
    complaint: Mutex<Complaint>,
}

#[derive(Debug, Default)]
struct Complaint {
    last: Option<Instant>,
    records: u64,
}

impl Room {
    fn new(limits: Limits, spares: Spares) -> Self {
        Self {
            limits,
            spares,
            bytes: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
            shown: meters::spool_bytes(),
            complaint: Mutex::default(),
        }
    }

    /// Why a record cannot be taken, if it cannot.
    fn obstacle(&self) -> Option<DropReason> {
        if self.disk_full.load(Ordering::Relaxed) {
            return Some(DropReason::DiskFull);
        }
        (self.bytes.load(Ordering::Relaxed) >= self.limits.spool_bytes).then_some(DropReason::SpoolFull)
    }

    /// Whether the log is so far behind that shadows, which are thrown away first, get no more of the room.
    pub(crate) fn is_tight(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed) || self.bytes.load(Ordering::Relaxed) >= self.limits.spool_bytes / 2
    }

    fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shown.set((before + bytes) as f64);
    }

    fn remove(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shown.set(before.saturating_sub(bytes) as f64);
    }

    /// Counts lost records, and tells of them now and then.
    pub(crate) fn lose(&self, reason: DropReason, records: u64) {
        meters::dropped(reason, records);
        let mut complaint = self.complaint.lock();
        complaint.records += records;
        if complaint.last.is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            return;
        }
        let lost = std::mem::take(&mut complaint.records);
        complaint.last = Some(Instant::now());
        drop(complaint);
        tracing::warn!(
            reason = reason.label(),
            records = lost,
            spool_bytes = self.bytes.load(Ordering::Relaxed),
            "predictions are served and not logged: free disk space, or see whether monitoring answers"
        );
    }
}

/// All endpoints' logs on this machine.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    room: Arc<Room>,
    logs: Mutex<HashMap<EndpointKey, Arc<EndpointLog>>>,
}

impl Spool {
    /// Opens the spool in a folder, with the segments that a process before has left.
    ///
    /// # Errors
    /// `Io` if the folder cannot be read or made.
    pub(crate) fn open(folder: PathBuf, limits: Limits) -> Result<Self> {
        let spares = Spares::open(folder.join(SPARES_FOLDER)).map_err(Error::io(&folder))?;
        let spool = Self {
            room: Arc::new(Room::new(limits, spares)),
            logs: Mutex::default(),
            folder,
        };
        for project in folders(&spool.folder).map_err(Error::io(&spool.folder))? {
            if project == SPARES_FOLDER {
                continue;
            }
            for name in folders(&spool.folder.join(&project)).map_err(Error::io(&spool.folder))? {
                let key = EndpointKey {
                    project: project.clone(),
                    name,
                };
                spool.log(&key)?;
            }
        }
        spool.check_disk();
        Ok(spool)
    }

    /// The log of an endpoint, and whether this made it.
    ///
    /// # Errors
    /// `Io` if its folder cannot be read or made.
    pub(crate) fn log(&self, key: &EndpointKey) -> Result<(Arc<EndpointLog>, bool)> {
        let mut logs = self.logs.lock();
        if let Some(log) = logs.get(key) {
            return Ok((Arc::clone(log), false));
        }
        // Names are checked where the specification arrives, so that they are no paths.
        let folder = self.folder.join(&key.project).join(&key.name);
        let log = EndpointLog::open(key.clone(), folder.clone(), Arc::clone(&self.room)).map_err(Error::io(folder))?;
        let log = Arc::new(log);
        logs.insert(key.clone(), Arc::clone(&log));
        Ok((log, true))
    }

    /// The logs that there are.
    pub(crate) fn logs(&self) -> Vec<Arc<EndpointLog>> {
        self.logs.lock().values().cloned().collect()
    }

    /// Looks at the free disk space.
    pub(crate) fn check_disk(&self) {
        match rustix::fs::statvfs(&self.folder) {
            Ok(space) => {
                let free = space.f_bavail.saturating_mul(space.f_frsize);
                let full = free < self.room.limits.min_free_bytes;
                self.room.disk_full.store(full, Ordering::Relaxed);
            }
            // Without an answer the writes themselves will tell.
            Err(error) => tracing::debug!(%error, "the free disk space is unknown"),
        }
    }
}

/// The names of the folders in a folder.
fn folders(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}
