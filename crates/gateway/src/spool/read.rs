//! Reading a segment back, also one that a crash has cut short.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    append::Closed,
    record::{Definition, Definitions, FRAME_HEADER_BYTES, Owed, Part, Payload, RawPrediction, read_payload},
};

/// A segment in memory.
#[derive(Debug)]
pub(super) struct Content {
    pub definitions: Definitions,
    pub predictions: Vec<RawPrediction>,
    /// The bytes up to the first frame that is not whole.
    pub whole_bytes: u64,
    /// The bytes of the file.
    pub bytes: u64,
}

/// Reads a segment up to its end, or to the first frame that is not whole.
pub(super) fn read(path: &Path) -> io::Result<Content> {
    let file = Bytes::from(fs::read(path)?);
    let mut content = Content {
        definitions: Definitions::new(),
        predictions: Vec::new(),
        whole_bytes: 0,
        bytes: file.len() as u64,
    };
    let mut rest = file;
    while let Some((payload, length)) = next_frame(&rest) {
        match read_payload(payload) {
            Some(Payload::Prediction(prediction)) => content.predictions.push(*prediction),
            Some(Payload::Definition(definition)) => {
                content.definitions.insert(definition.key, Arc::new(definition));
            }
            Some(Payload::Header(header)) if header.format != super::record::FORMAT => {
                return Err(io::Error::other(format!(
                    "the segment has format {}, and this version reads {}",
                    header.format,
                    super::record::FORMAT
                )));
            }
            Some(Payload::Header(_)) => {}
            None => break,
        }
        rest = rest.slice(length..);
        content.whole_bytes += length as u64;
    }
    Ok(content)
}

/// The first frame's payload and the frame's length; `None` if it is not whole.
fn next_frame(bytes: &Bytes) -> Option<(Bytes, usize)> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let payload = rest.get(..length)?;
    if crc32fast::hash(payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return None;
    }
    let end = FRAME_HEADER_BYTES + length;
    Some((bytes.slice(FRAME_HEADER_BYTES..end), end))
}

impl Content {
    /// The live records with their places.
    pub(super) fn lives(&self) -> impl Iterator<Item = (u32, &RawPrediction, &[u32])> {
        self.predictions
            .iter()
            .filter_map(|prediction| match &prediction.part {
                Part::Live(owed) => Some((prediction, owed.as_slice())),
                Part::Shadow(_) => None,
            })
            .enumerate()
            .map(|(index, (prediction, owed))| (index as u32, prediction, owed))
    }

    /// The live records that owe these answers, each with its definition and the shadow's; those that are not there are
    /// left out.
    pub(super) fn owing(&self, owed: &[Owed]) -> Vec<(Owed, &RawPrediction, &Arc<Definition>, &Arc<Definition>)> {
        let lives: Vec<_> = self.lives().collect();
        owed.iter()
            .filter_map(|&owed| {
                let (_, prediction, keys) = lives.get(owed.index as usize)?;
                let shadow = keys.get(usize::from(owed.slot))?;
                Some((
                    owed,
                    *prediction,
                    self.definitions.get(&prediction.definition)?,
                    self.definitions.get(shadow)?,
                ))
            })
            .collect()
    }
}

/// Reads the segments of a process before, cuts off what its end has torn, and gives for each what is still owed to it.
/// One that cannot be read is told of when it is handed over.
pub(super) fn take_over(segments: &[Closed]) -> Vec<Vec<Owed>> {
    let mut asked = Vec::with_capacity(segments.len());
    let mut answered = HashSet::new();
    for segment in segments {
        let mut owed = Vec::new();
        if let Ok(content) = read(&segment.path) {
            cut_off(segment, &content);
            for (index, _, keys) in content.lives() {
                owed.extend((0..keys.len()).map(|slot| Owed {
                    segment: segment.id,
                    index,
                    slot: slot as u8,
                }));
            }
            answered.extend(
                content
                    .predictions
                    .iter()
                    .filter_map(|prediction| match prediction.part {
                        Part::Shadow(of) => Some(of),
                        Part::Live(_) => None,
                    }),
            );
        }
        asked.push(owed);
    }
    for owed in &mut asked {
        owed.retain(|owed| !answered.contains(owed));
    }
    asked
}

/// Cuts off what is behind the last whole record.
fn cut_off(segment: &Closed, content: &Content) {
    if content.whole_bytes == content.bytes {
        return;
    }
    let cut = File::options()
        .write(true)
        .open(&segment.path)
        .and_then(|file| file.set_len(content.whole_bytes));
    tracing::warn!(
        path = %segment.path.display(),
        bytes = content.bytes - content.whole_bytes,
        // Left in place it does no harm: readers stop there.
        error = cut.err().map(|error| error.to_string()),
        "the end of a segment was torn and is cut off"
    );
}
