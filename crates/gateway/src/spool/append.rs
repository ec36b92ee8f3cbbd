//! The hot side of a log: records go in, full segments go to the closed ones.

use std::{
    collections::VecDeque,
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    task::yield_now,
};
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
    closed: Mutex<VecDeque<Closed>>,
    /// A segment was opened or closed.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Open {
    segment: Option<Segment>,
    next_number: u64,
}

/// Live records that wait for being written, with whom to tell.
#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    written: Vec<oneshot::Sender<Untaken>>,
}

/// Tokens on their way to a request. If that is gone by then, they are postponed.
#[derive(Debug)]
struct Untaken(Vec<OwedToken>);

impl Drop for Untaken {
    fn drop(&mut self) {
        self.0.drain(..).for_each(OwedToken::postpone);
    }
}

/// Whoever writes the records that wait. They are written when it is dropped.
struct Writer<'a, F: Fn() -> Uuid> {
    log: &'a EndpointLog,
    new_id: F,
}

impl<F: Fn() -> Uuid> Drop for Writer<'_, F> {
    fn drop(&mut self) {
        self.log.write_waiting(&self.new_id);
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

    /// Writes a live record, with those that others bring meanwhile if there are any who are about to: one write for many costs
    /// each of them less. It is written when this returns. Gives a token for each shadow that follows it; none if the record
    /// is lost, which is counted.
    pub(crate) async fn append_live(
        &self,
        entry: Entry,
        with_others: bool,
        new_id: impl Fn() -> Uuid + Send,
    ) -> Vec<OwedToken> {
        if !self.takes(&entry) {
            return Vec::new();
        }
        let (written, tokens) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting.lock();
            waiting.entries.push(entry);
            waiting.written.push(written);
            waiting.entries.len() == 1
        };
        if is_first {
            // The first writes for all who wait, even if it is dropped.
            let writer = Writer { log: self, new_id };
            if with_others {
                yield_now().await;
            }
            drop(writer);
        }
        let untaken = tokens.await.ok();
        untaken.map_or_else(Vec::new, |mut untaken| std::mem::take(&mut untaken.0))
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
    fn write_waiting(&self, new_id: impl Fn() -> Uuid) {
        let mut open = self.open.lock();
        let Waiting { entries, written } = std::mem::take(&mut *self.waiting.lock());
        let mut written = written.into_iter();
        self.write(&mut open, entries, new_id, |mut segment, entries| {
            for (entry, written) in entries.iter().zip(&mut written) {
                // Those in no segment are lost, and nothing is owed to them.
                let tokens = segment.as_deref_mut().map(|segment| tokens(segment, entry));
                let _ = written.send(Untaken(tokens.unwrap_or_default()));
            }
        });
    }

    /// Writes a shadow's record. `false` if it is lost, which is counted.
    pub(crate) fn append_shadow(&self, entry: Entry, new_id: impl Fn() -> Uuid) -> bool {
        if !self.takes(&entry) {
            return false;
        }
        let mut is_written = false;
        self.write(&mut self.open.lock(), vec![entry], new_id, |segment, _| {
            is_written = segment.is_some();
        });
        is_written
    }

    /// Writes entries to as many segments as they fill. Tells of each part of them in which segment it is; those in none are
    /// lost, which is counted.
    fn write(
        &self,
        open: &mut Open,
        mut entries: Vec<Entry>,
        new_id: impl Fn() -> Uuid,
        mut tell: impl FnMut(Option<&mut Segment>, &[Entry]),
    ) {
        while !entries.is_empty() {
            let fitting = match self.segment(open, &new_id) {
                Ok(segment) => segment.fitting(&entries, &self.room.limits),
                Err(error) => {
                    self.lose(&error, entries.len());
                    return tell(None, &entries);
                }
            };
            let later = entries.split_off(fitting);
            let Some(segment) = &mut open.segment else { return };
            let before = segment.bytes;
            match segment.append(&entries) {
                Ok(()) => {
                    self.room.add(segment.bytes - before);
                    tell(Some(&mut *segment), &entries);
                    if segment.is_full(&self.room.limits) {
                        self.close(open);
                    }
                }
                Err(Failed { error, is_cut }) => {
                    self.lose(&error, entries.len());
                    tell(None, &entries);
                    if !is_cut {
                        self.close(open);
                    }
                }
            }
            entries = later;
        }
    }

    /// The segment that takes records, a new one if there is none.
    fn segment<'a>(&self, open: &'a mut Open, new_id: impl Fn() -> Uuid) -> io::Result<&'a mut Segment> {
        if open.segment.is_none() {
            let segment = Segment::create(&self.folder, open.next_number, new_id(), &self.key)?;
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

/// Counts a live record that was written, and what is owed to it.
fn tokens(segment: &mut Segment, entry: &Entry) -> Vec<OwedToken> {
    let index = segment.lives;
    segment.lives += 1;
    let debts = &segment.debts;
    debts.outstanding.fetch_add(entry.owed.len(), Ordering::AcqRel);
    (0..entry.owed.len())
        .map(|slot| OwedToken {
            owed: Owed {
                segment: segment.id,
                index,
                slot: slot as u8,
            },
            debts: Arc::clone(debts),
        })
        .collect()
}
