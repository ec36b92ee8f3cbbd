//! The hot side of a log: records go in, full segments go to the closed ones.

use std::{
    collections::VecDeque,
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::yield_now};
use uuid::Uuid;

use super::{
    REFUSED_SUFFIX, Room, SEGMENT_SUFFIX,
    record::{MAX_PAYLOAD_BYTES, Owed},
    segment::{Entry, Failed, Segment, parse_name},
};
use crate::{desired::EndpointKey, meters::DropReason};

/// One endpoint's log.
#[derive(Debug)]
pub(crate) struct EndpointLog {
    pub(super) key: EndpointKey,
    folder: PathBuf,
    pub(super) room: Arc<Room>,
    open: Mutex<Open>,
    waiting: Mutex<Waiting>,
    /// How many of those that waited have been written, or lost.
    written: AtomicU64,
    closed: Mutex<VecDeque<Closed>>,
    /// A segment was opened or closed.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Open {
    segment: Option<Segment>,
    next_number: u64,
}

/// Live records that wait for being written together.
#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    /// How many came before them.
    before: u64,
}

/// Whoever brought a record that waits. When this is dropped, the record has been written by somebody.
struct Brought<'a, F: Fn() -> Uuid> {
    log: &'a EndpointLog,
    /// How many had come with this one.
    number: u64,
    new_id: F,
}

impl<F: Fn() -> Uuid> Drop for Brought<'_, F> {
    fn drop(&mut self) {
        if self.log.written.load(Ordering::Acquire) < self.number {
            self.log.write_waiting(&self.new_id);
        }
    }
}

/// A segment that takes no more.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    pub path: PathBuf,
    pub id: Uuid,
    pub bytes: u64,
    /// What is owed to it; none for a segment of a process before, which its content tells.
    pub debts: Option<Arc<Debts>>,
}

/// The shadows' answers that are owed to a segment.
#[derive(Debug, Default)]
pub(super) struct Debts {
    outstanding: AtomicUsize,
    /// Those that there was no time for; they are computed from the file.
    postponed: Mutex<Vec<Owed>>,
    settled: Notify,
}

impl Debts {
    /// Waits until every answer is written, given up or postponed; gives those postponed.
    pub(super) async fn settled(&self) -> Vec<Owed> {
        loop {
            let settled = self.settled.notified();
            if self.outstanding.load(Ordering::Acquire) == 0 {
                return std::mem::take(&mut *self.postponed.lock());
            }
            settled.await;
        }
    }
}

/// One owed answer. When it is dropped, the answer was written or given up.
#[derive(Debug)]
pub(crate) struct OwedToken {
    owed: Owed,
    debts: Arc<Debts>,
}

impl OwedToken {
    /// Which answer it is.
    pub(crate) const fn owed(&self) -> Owed {
        self.owed
    }

    /// Leaves the answer for later, when the segment is handed over.
    pub(crate) fn postpone(self) {
        self.debts.postponed.lock().push(self.owed);
    }
}

impl Drop for OwedToken {
    fn drop(&mut self) {
        if self.debts.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The one waiter looks again if it has not begun to wait.
            self.debts.settled.notify_one();
        }
    }
}

impl EndpointLog {
    /// Opens a log with the segments that are in its folder, which is made if it is missing. Segments that were refused
    /// get another chance.
    pub(super) fn open(key: EndpointKey, folder: PathBuf, room: Arc<Room>) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let mut path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == REFUSED_SUFFIX) {
                let again = path.with_extension(SEGMENT_SUFFIX);
                fs::rename(&path, &again)?;
                path = again;
            }
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(parse_name);
            if let (Some((number, id)), Some(SEGMENT_SUFFIX)) = (name, path.extension().and_then(|name| name.to_str()))
            {
                let bytes = fs::metadata(&path)?.len();
                room.add(bytes);
                let debts = None;
                found.push((number, Closed { path, id, bytes, debts }));
            }
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        let next_number = found.last().map_or(0, |(number, _)| number + 1);
        Ok(Self {
            key,
            folder,
            room,
            open: Mutex::new(Open {
                segment: None,
                next_number,
            }),
            waiting: Mutex::default(),
            written: AtomicU64::new(0),
            closed: Mutex::new(found.into_iter().map(|(_, closed)| closed).collect()),
            changed: Notify::new(),
        })
    }

    /// Whether a record would be taken now; if not, it is counted as lost.
    pub(crate) fn has_room(&self) -> bool {
        match self.room.obstacle() {
            Some(reason) => {
                self.room.lose(reason, 1);
                false
            }
            None => true,
        }
    }

    /// The room that this log shares with others.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// Writes a live record that shadows follow. Gives a token for each of these; none if the record is lost, which is counted.
    pub(crate) fn append_live(&self, entry: Entry, new_id: impl Fn() -> Uuid) -> Vec<OwedToken> {
        let mut tokens = Vec::new();
        if self.takes(&entry) {
            let count = entry.owed.len();
            let tell = &mut |segment: &Segment| tokens = owe(segment, count);
            self.write(&mut self.open.lock(), vec![entry], &new_id, tell);
        }
        tokens
    }

    /// Writes a live record that no shadow follows, after a turn of this thread in which others may bring theirs: one write for
    /// many costs each of them less. Nobody waits for another, who may be stuck: whose turn is first writes them all. A record that
    /// is lost is counted. It is written even if this is dropped before its turn.
    pub(crate) async fn append_with_others(&self, entry: Entry, new_id: impl Fn() -> Uuid + Send) {
        if !self.takes(&entry) {
            return;
        }
        let number = {
            let mut waiting = self.waiting.lock();
            waiting.entries.push(entry);
            waiting.before + waiting.entries.len() as u64
        };
        let brought = Brought {
            log: self,
            number,
            new_id,
        };
        yield_now().await;
        drop(brought);
    }

    /// Whether a record is of a size that can be read again; if not, it is counted as lost.
    fn takes(&self, entry: &Entry) -> bool {
        let takes = entry.record.frame().len() <= MAX_PAYLOAD_BYTES;
        if !takes {
            self.room.lose(DropReason::SpoolFull, 1);
        }
        takes
    }

    /// Writes the live records that wait.
    fn write_waiting(&self, new_id: &dyn Fn() -> Uuid) {
        // Who takes them from those that wait has the segment already, so that whoever has it next finds them written.
        let mut open = self.open.lock();
        let (entries, written) = {
            let mut waiting = self.waiting.lock();
            waiting.before += waiting.entries.len() as u64;
            (std::mem::take(&mut waiting.entries), waiting.before)
        };
        self.write(&mut open, entries, new_id, &mut |_| {});
        self.written.store(written, Ordering::Release);
    }

    /// Writes a shadow's record. `false` if it is lost, which is counted.
    pub(crate) fn append_shadow(&self, entry: Entry, new_id: impl Fn() -> Uuid) -> bool {
        let mut is_written = false;
        if self.takes(&entry) {
            self.write(&mut self.open.lock(), vec![entry], &new_id, &mut |_| is_written = true);
        }
        is_written
    }

    /// Writes entries to as many segments as they fill, and tells of each part of them in which segment it is. If they cannot be
    /// written together, each is tried alone; what is lost is counted.
    fn write(
        &self,
        open: &mut Open,
        mut entries: Vec<Entry>,
        new_id: &dyn Fn() -> Uuid,
        tell: &mut dyn FnMut(&Segment),
    ) {
        while !entries.is_empty() {
            let segment = match self.segment(open, new_id) {
                Ok(segment) => segment,
                Err(error) => return self.lose(&error, entries.len()),
            };
            let later = entries.split_off(segment.fitting(&entries, &self.room.limits));
            let before = segment.bytes;
            match segment.append(&entries) {
                Ok(()) => {
                    self.room.add(segment.bytes - before);
                    tell(segment);
                    if segment.is_full(&self.room.limits) {
                        self.close(open);
                    }
                }
                Err(Failed { is_cut: true, .. }) if entries.len() > 1 => {
                    for entry in entries {
                        self.write(open, vec![entry], new_id, tell);
                    }
                }
                Err(Failed { error, is_cut }) => {
                    self.lose(&error, entries.len());
                    if !is_cut {
                        self.close(open);
                    }
                }
            }
            entries = later;
        }
    }

    /// The segment that takes records, a new one if there is none.
    fn segment<'a>(&self, open: &'a mut Open, new_id: &dyn Fn() -> Uuid) -> io::Result<&'a mut Segment> {
        if open.segment.is_none() {
            let segment = Segment::create(&self.folder, open.next_number, new_id(), &self.key, &self.room.spares)?;
            open.next_number += 1;
            self.room.add(segment.bytes);
            self.changed.notify_one();
            open.segment = Some(segment);
        }
        open.segment.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn lose(&self, error: &io::Error, records: usize) {
        tracing::debug!(endpoint = %self.key, %error, records, "predictions could not be logged");
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let reason = if is_full {
            DropReason::DiskFull
        } else {
            DropReason::WriteFailed
        };
        self.room.lose(reason, records as u64);
    }

    fn close(&self, open: &mut Open) {
        if let Some(segment) = open.segment.take() {
            self.closed.lock().push_back(Closed {
                path: segment.path,
                id: segment.id,
                bytes: segment.bytes,
                debts: Some(segment.debts),
            });
            self.changed.notify_one();
        }
    }

    /// Closes the open segment if it is as old as a segment may be, or at any age; gives the time when it will be.
    pub(super) fn close_aged(&self, any_age: bool) -> Option<Instant> {
        let mut open = self.open.lock();
        let due = open.segment.as_ref()?.opened + self.room.limits.segment_age;
        if any_age || due <= Instant::now() {
            self.close(&mut open);
            return None;
        }
        Some(due)
    }

    /// The oldest closed segment.
    pub(super) fn oldest(&self) -> Option<Closed> {
        self.closed.lock().front().cloned()
    }

    /// The closed segments of a process before, oldest first.
    pub(super) fn left_over(&self) -> Vec<Closed> {
        let closed = self.closed.lock();
        closed.iter().filter(|closed| closed.debts.is_none()).cloned().collect()
    }

    /// The oldest closed segment is done with.
    pub(super) fn forget_oldest(&self) {
        let done = self.closed.lock().pop_front();
        self.room.remove(done.map_or(0, |closed| closed.bytes));
    }

    /// The oldest closed segment stays on disk until the next start.
    pub(super) fn set_aside_oldest(&self) -> io::Result<()> {
        if let Some(refused) = self.closed.lock().pop_front() {
            fs::rename(&refused.path, refused.path.with_extension(REFUSED_SUFFIX))?;
        }
        Ok(())
    }
}

/// Counts what is owed to the last live record of a segment.
fn owe(segment: &Segment, count: usize) -> Vec<OwedToken> {
    let debts = &segment.debts;
    debts.outstanding.fetch_add(count, Ordering::AcqRel);
    (0..count)
        .map(|slot| OwedToken {
            owed: Owed {
                segment: segment.id,
                index: segment.lives - 1,
                slot: slot as u8,
            },
            debts: Arc::clone(debts),
        })
        .collect()
}
