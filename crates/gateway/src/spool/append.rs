//! The hot side of a log: records go in, full segments go to the closed ones.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    REFUSED_SUFFIX, Room, SEGMENT_SUFFIX,
    record::{Definition, Encoded, FORMAT, Header, MAX_PAYLOAD_BYTES, Owed, definition_frame, header_frame},
};
use crate::{desired::EndpointKey, meters::DropReason};

/// Digits of the number in a segment's file name, so that names sort as numbers.
const NUMBER_DIGITS: usize = 20;

/// One endpoint's log.
#[derive(Debug)]
pub(crate) struct EndpointLog {
    pub(super) key: EndpointKey,
    folder: PathBuf,
    pub(super) room: Arc<Room>,
    open: Mutex<Open>,
    closed: Mutex<VecDeque<Closed>>,
    /// A segment was opened or closed.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Open {
    segment: Option<Segment>,
    next_number: u64,
}

/// The segment that takes records.
#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    id: Uuid,
    bytes: u64,
    rows: u64,
    /// The live records in it.
    lives: u32,
    /// The definitions in it.
    defined: Vec<u32>,
    opened: Instant,
    debts: Arc<Debts>,
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

/// The number and id in a segment's file name.
fn parse_name(name: &str) -> Option<(u64, Uuid)> {
    let (number, id) = name.split_once('-')?;
    Some((number.parse().ok()?, id.parse().ok()?))
}

fn file_name(number: u64, id: Uuid) -> String {
    format!("{number:0NUMBER_DIGITS$}-{}.{SEGMENT_SUFFIX}", id.simple())
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

    /// Writes a live record; `owed` are the definitions of the shadows that follow it. Gives a token for each of these;
    /// none if the record is lost, which is counted.
    pub(crate) fn append_live(
        &self,
        record: &Encoded,
        definition: &Definition,
        owed: &[&Definition],
        new_id: impl FnOnce() -> Uuid,
    ) -> Vec<OwedToken> {
        let mut definitions = Vec::with_capacity(1 + owed.len());
        definitions.push(definition);
        definitions.extend_from_slice(owed);
        let mut open = self.open.lock();
        let Some(segment) = self.write(&mut open, record, &definitions, new_id) else {
            return Vec::new();
        };
        let index = segment.lives;
        segment.lives += 1;
        let debts = Arc::clone(&segment.debts);
        let id = segment.id;
        debts.outstanding.fetch_add(owed.len(), Ordering::AcqRel);
        self.close_if_full(&mut open);
        drop(open);
        (0..owed.len())
            .map(|slot| OwedToken {
                owed: Owed {
                    segment: id,
                    index,
                    slot: slot as u8,
                },
                debts: Arc::clone(&debts),
            })
            .collect()
    }

    /// Writes a shadow's record. `false` if it is lost, which is counted.
    pub(crate) fn append_shadow(
        &self,
        record: &Encoded,
        definition: &Definition,
        new_id: impl FnOnce() -> Uuid,
    ) -> bool {
        let mut open = self.open.lock();
        let written = self.write(&mut open, record, &[definition], new_id).is_some();
        self.close_if_full(&mut open);
        written
    }

    fn write<'a>(
        &self,
        open: &'a mut Open,
        record: &Encoded,
        definitions: &[&Definition],
        new_id: impl FnOnce() -> Uuid,
    ) -> Option<&'a mut Segment> {
        if record.frame().len() > MAX_PAYLOAD_BYTES {
            self.room.lose(DropReason::SpoolFull, 1);
            return None;
        }
        match self.try_write(open, record, definitions, new_id) {
            Ok(()) => open.segment.as_mut(),
            Err(error) => {
                tracing::debug!(endpoint = %self.key, %error, "a prediction could not be logged");
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                let reason = if full {
                    DropReason::DiskFull
                } else {
                    DropReason::WriteFailed
                };
                self.room.lose(reason, 1);
                None
            }
        }
    }

    fn try_write(
        &self,
        open: &mut Open,
        record: &Encoded,
        definitions: &[&Definition],
        new_id: impl FnOnce() -> Uuid,
    ) -> io::Result<()> {
        if open.segment.is_none() {
            open.segment = Some(Segment::create(&self.folder, open.next_number, new_id(), &self.key)?);
            open.next_number += 1;
            self.room.add(open.segment.as_ref().map_or(0, |segment| segment.bytes));
            self.changed.notify_one();
        }
        let Some(segment) = &mut open.segment else {
            return Ok(());
        };
        let before = segment.bytes;
        let result = segment.append(record, definitions);
        self.room.add(segment.bytes - before);
        if result.is_err() && segment.cut().is_err() {
            // Half a record may be at the end: no more behind it. A reader cuts it off.
            self.close(open);
        }
        result
    }

    fn close_if_full(&self, open: &mut Open) {
        let limits = &self.room.limits;
        if open
            .segment
            .as_ref()
            .is_some_and(|segment| segment.rows >= limits.segment_rows || segment.bytes >= limits.segment_bytes)
        {
            self.close(open);
        }
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

impl Segment {
    fn create(folder: &Path, number: u64, id: Uuid, key: &EndpointKey) -> io::Result<Self> {
        let path = folder.join(file_name(number, id));
        let mut file = File::options().append(true).create_new(true).open(&path)?;
        let header = header_frame(&Header {
            format: FORMAT,
            segment: id,
            endpoint: key.clone(),
        });
        if let Err(error) = file.write_all(&header) {
            // Best effort: a reader takes a segment without a header for empty.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self {
            file,
            path,
            id,
            bytes: header.len() as u64,
            rows: 0,
            lives: 0,
            defined: Vec::new(),
            opened: Instant::now(),
            debts: Arc::default(),
        })
    }

    fn append(&mut self, record: &Encoded, definitions: &[&Definition]) -> io::Result<()> {
        for definition in definitions {
            if !self.defined.contains(&definition.key) {
                let frame = definition_frame(definition);
                self.file.write_all(&frame)?;
                self.bytes += frame.len() as u64;
                self.defined.push(definition.key);
            }
        }
        self.file.write_all(record.frame())?;
        self.bytes += record.frame().len() as u64;
        self.rows += record.rows as u64;
        Ok(())
    }

    /// Cuts off what a failed write has left behind the last whole record.
    fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.bytes)
    }
}
