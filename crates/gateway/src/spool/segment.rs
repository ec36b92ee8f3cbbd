//! The file that takes the records of an endpoint's log.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    iter::once,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use uuid::Uuid;

use super::{
    Limits, SEGMENT_SUFFIX,
    append::Debts,
    record::{Definition, Encoded, FORMAT, Header, definition_frame, header_frame},
    spares::Spares,
};
use crate::desired::EndpointKey;

/// Digits of the number in a segment's file name, so that names sort as numbers.
const NUMBER_DIGITS: usize = 20;

/// Frames from this size on, in bytes, are written as they are instead of being put behind others first.
const LARGE_FRAME_BYTES: usize = 64 << 10;

/// A record that is ready to be written, with what it needs to be understood.
#[derive(Debug)]
pub(crate) struct Entry {
    pub record: Encoded,
    pub definition: Arc<Definition>,
    /// The definitions of the shadows that follow a live record.
    pub owed: Vec<Arc<Definition>>,
}

impl Entry {
    fn definitions(&self) -> impl Iterator<Item = &Definition> {
        once(&self.definition).chain(&self.owed).map(|definition| &**definition)
    }
}

/// The segment that takes records.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    pub path: PathBuf,
    pub id: Uuid,
    pub bytes: u64,
    rows: u64,
    /// The live records in it.
    pub lives: u32,
    /// The definitions in it.
    defined: Vec<u32>,
    pub opened: Instant,
    pub debts: Arc<Debts>,
}

/// The number and id in a segment's file name.
pub(super) fn parse_name(name: &str) -> Option<(u64, Uuid)> {
    let (number, id) = name.split_once('-')?;
    Some((number.parse().ok()?, id.parse().ok()?))
}

fn file_name(number: u64, id: Uuid) -> String {
    format!("{number:0NUMBER_DIGITS$}-{}.{SEGMENT_SUFFIX}", id.simple())
}

impl Segment {
    pub(super) fn create(folder: &Path, number: u64, id: Uuid, key: &EndpointKey, spares: &Spares) -> io::Result<Self> {
        let path = folder.join(file_name(number, id));
        let mut file = spares.take(&path)?;
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

    /// Whether it holds as much as it should.
    pub(super) const fn is_full(&self, limits: &Limits) -> bool {
        self.rows >= limits.segment_rows || self.bytes >= limits.segment_bytes
    }

    /// How many of the entries it takes before it is full: at least one.
    pub(super) fn fitting(&self, entries: &[Entry], limits: &Limits) -> usize {
        let (mut rows, mut bytes) = (self.rows, self.bytes);
        let fills = |entry: &Entry| {
            rows += entry.record.rows as u64;
            bytes += entry.record.bytes();
            rows >= limits.segment_rows || bytes >= limits.segment_bytes
        };
        entries
            .iter()
            .position(fills)
            .map_or(entries.len(), |filling| filling + 1)
    }

    /// Writes entries at its end, small ones together; all of them or none.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), Failed> {
        let known = self.defined.len();
        match self.write(entries) {
            Ok(bytes) => {
                self.bytes += bytes;
                for entry in entries {
                    self.rows += entry.record.rows as u64;
                    self.lives += u32::from(entry.record.is_live());
                }
                Ok(())
            }
            Err(error) => {
                self.defined.truncate(known);
                // What was written of them goes, so that whole records end the file.
                let is_cut = self.file.set_len(self.bytes).is_ok();
                Err(Failed { error, is_cut })
            }
        }
    }

    fn write(&mut self, entries: &[Entry]) -> io::Result<u64> {
        let mut written = 0;
        let mut together = Vec::new();
        for entry in entries {
            for definition in entry.definitions() {
                if !self.defined.contains(&definition.key()) {
                    together.extend_from_slice(&definition_frame(definition));
                    self.defined.push(definition.key());
                }
            }
            let frame = entry.record.frame();
            if frame.len() < LARGE_FRAME_BYTES && (entries.len() > 1 || !together.is_empty()) {
                together.extend_from_slice(frame);
                continue;
            }
            for part in [&together, frame] {
                self.file.write_all(part)?;
                written += part.len() as u64;
            }
            together.clear();
        }
        self.file.write_all(&together)?;
        Ok(written + together.len() as u64)
    }
}

/// A write that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub error: io::Error,
    /// Whether nothing of it is left behind. If something is, half a record may be at the end, which a reader cuts off: nothing may
    /// come behind it. Whole ones before it were counted as lost, and are there all the same.
    pub is_cut: bool,
}
