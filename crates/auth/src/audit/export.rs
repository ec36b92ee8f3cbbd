//! A chain as a file: JSON Lines that anybody can verify without this program.
//!
//! The first line is a header with the public keys and where the chain begins. Each further line is an event in canonical
//! JSON, or a checkpoint right after its event. The last line is a checkpoint of the last event: without it the end was cut
//! off. All lines have one form only, so that no byte of the file can be changed unseen. A checkpoint before the last one can
//! be removed unseen, and nothing is lost by it: the last one signs the same events.

use std::io::{BufRead, Read as _};

use serde::{Deserialize, Serialize};

use super::{
    Error, Result,
    canonical::write_event as write_canonical,
    chain::Hash,
    checkpoint::{Checkpoint, PublicKey},
    event::AuditEvent,
    report::{Problem, Report},
    verify::Verifier,
};

/// The longest line, in bytes. The longest event, with every character escaped, is shorter.
pub const MAX_LINE_BYTES: usize = 256 << 10;
/// The type of such a file.
pub const CONTENT_TYPE: &str = "application/jsonl";
/// What the header calls it.
const KIND: &str = "modelyard-audit";
const VERSION: u32 = 1;
/// What the line of a checkpoint begins with; no event does.
const CHECKPOINT: &[u8] = b"{\"checkpoint\":";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: String,
    version: u32,
    public_keys: Vec<String>,
    first_seq: u64,
    prev_hash: Hash,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointLine {
    checkpoint: Checkpoint,
}

/// Writes the header of the chain from event `first_seq` on, which follows an event with the hash `prev_hash`.
///
/// # Errors
/// None that can happen: the header is JSON always.
pub fn write_header(keys: &[PublicKey], first_seq: u64, prev_hash: &Hash, out: &mut Vec<u8>) -> Result<()> {
    let header = Header {
        kind: KIND.to_owned(),
        version: VERSION,
        public_keys: keys.iter().map(PublicKey::to_pem).collect(),
        first_seq,
        prev_hash: *prev_hash,
    };
    write_line(&header, out)
}

/// Writes an event.
///
/// # Errors
/// An event that was changed so that it has no canonical form.
pub fn write_event(event: &AuditEvent, out: &mut Vec<u8>) -> Result<()> {
    write_canonical(event, out)?;
    out.push(b'\n');
    Ok(())
}

/// Writes a checkpoint; it belongs right after its event, once.
///
/// # Errors
/// None that can happen: a checkpoint is JSON always.
pub fn write_checkpoint(checkpoint: &Checkpoint, out: &mut Vec<u8>) -> Result<()> {
    let checkpoint = checkpoint.clone();
    write_line(&CheckpointLine { checkpoint }, out)
}

fn write_line(line: &impl Serialize, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    out.push(b'\n');
    Ok(())
}

/// Verifies an export. With `keys`, only what those signed counts: pass the keys that you have from somewhere else than the
/// export. Without them the export's own are used, which proves that the file is whole, but not whose it is.
///
/// # Errors
/// What is no export, cannot be read, or has an endless line. Everything else that is wrong is in the report.
pub fn verify_export(reader: impl BufRead, keys: Option<&[PublicKey]>) -> Result<Report> {
    let mut lines = Lines::new(reader);
    let Some(header) = lines.next()? else {
        return Err(Error::NotAnExport("it is empty".to_owned()));
    };
    let (header, own) = parse_header(&header)?;
    let keys = keys.map_or(own, <[PublicKey]>::to_vec);
    let mut verifier = Verifier::starting_at(keys, header.first_seq, header.prev_hash);
    while let Some(line) = lines.next()? {
        let number = line.number;
        if let Err(problem) = verify_line(&mut verifier, &line) {
            verifier.problem(Problem::Line { line: number, problem });
        }
    }
    if verifier.signed_to() != Some(verifier.last_seq()) {
        let last = verifier.last_seq();
        verifier.problem(Problem::Unsigned { last });
    }
    Ok(verifier.finish(None))
}

fn parse_header(line: &Line<'_>) -> Result<(Header, Vec<PublicKey>)> {
    let not = |problem: String| Error::NotAnExport(problem);
    let header: Header =
        serde_json::from_slice(line.text).map_err(|error| not(format!("its first line is no header: {error}")))?;
    if header.kind != KIND {
        return Err(not(format!("its first line does not say `{KIND}`")));
    }
    if header.version != VERSION {
        return Err(Error::Version(header.version));
    }
    let keys = header
        .public_keys
        .iter()
        .map(|key| PublicKey::from_pem(key))
        .collect::<Result<Vec<_>>>()?;
    let mut same = Vec::new();
    write_header(&keys, header.first_seq, &header.prev_hash, &mut same)?;
    if !line.is(&same) || header.first_seq == 0 {
        return Err(not("its first line was changed".to_owned()));
    }
    Ok((header, keys))
}

fn verify_line(verifier: &mut Verifier, line: &Line<'_>) -> Result<(), String> {
    const OTHER_FORM: &str = "it is not written as an export is";
    if !line.text.starts_with(CHECKPOINT) {
        let event: AuditEvent =
            serde_json::from_slice(line.text).map_err(|error| format!("it is no event: {error}"))?;
        verifier.event(&event);
        let is_same = line.is_complete && verifier.canonical() == line.text;
        return if is_same { Ok(()) } else { Err(OTHER_FORM.to_owned()) };
    }
    let parsed: CheckpointLine =
        serde_json::from_slice(line.text).map_err(|error| format!("it is no checkpoint: {error}"))?;
    let seq = parsed.checkpoint.seq;
    // At its place, and once.
    if seq != verifier.last_seq() || verifier.signed_to() == Some(seq) {
        verifier.problem(Problem::Misplaced { seq });
        return Ok(());
    }
    verifier.checkpoint(&parsed.checkpoint);
    let mut same = Vec::new();
    write_line(&parsed, &mut same).map_err(|error| error.to_string())?;
    if line.is(&same) {
        Ok(())
    } else {
        Err(OTHER_FORM.to_owned())
    }
}

/// A line without its end.
struct Line<'a> {
    number: u64,
    text: &'a [u8],
    /// Whether it had an end.
    is_complete: bool,
}

impl Line<'_> {
    /// Whether it is a line as it was written.
    fn is(&self, written: &[u8]) -> bool {
        self.is_complete && written.strip_suffix(b"\n") == Some(self.text)
    }
}

/// Lines of a bounded length.
struct Lines<R> {
    reader: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            number: 0,
            buffer: Vec::new(),
        }
    }

    fn next(&mut self) -> Result<Option<Line<'_>>> {
        self.buffer.clear();
        self.number += 1;
        // One byte more than the longest line and its end.
        let limit = MAX_LINE_BYTES as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let is_complete = self.buffer.last() == Some(&b'\n');
        if is_complete {
            self.buffer.pop();
        }
        if self.buffer.len() > MAX_LINE_BYTES {
            return Err(Error::LineTooLong { line: self.number });
        }
        Ok(Some(Line {
            number: self.number,
            text: &self.buffer,
            is_complete,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{GENESIS, SigningKey, fixture},
        *,
    };

    /// An export with a checkpoint after every so many events, and at the end.
    fn export(key: &SigningKey, events: &[AuditEvent], every: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let first = events.first();
        let (seq, prev) = first.map_or((1, GENESIS), |event| (event.seq, event.prev_hash));
        write_header(&[key.public_key()], seq, &prev, &mut out).unwrap();
        for (index, event) in events.iter().enumerate() {
            write_event(event, &mut out).unwrap();
            if (index + 1) % every == 0 || index + 1 == events.len() {
                write_checkpoint(&fixture::checkpoint(key, event), &mut out).unwrap();
            }
        }
        out
    }

    fn is_intact(export: &[u8]) -> bool {
        verify_export(export, None).is_ok_and(|report| report.is_intact())
    }

    fn lines(export: &[u8]) -> Vec<Vec<u8>> {
        export
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect()
    }

    #[test]
    fn an_export_is_verified_with_its_keys_or_ones_own() {
        let (key, public) = fixture::key();
        let events = fixture::chain(7);
        let export = export(&key, &events, 3);
        for keys in [None, Some(&[public][..])] {
            let report = verify_export(&export[..], keys).unwrap();
            assert!(report.is_intact(), "{:?}", report.problems);
            assert_eq!((report.events, report.checkpoints, report.signed_to), (7, 3, Some(7)));
        }
        let (_, other) = fixture::key();
        let report = verify_export(&export[..], Some(&[other])).unwrap();
        assert_eq!(
            report.problems.len(),
            4,
            "three unknown keys, and so no signed end: {:?}",
            report.problems
        );
    }

    #[test]
    fn the_lines_have_the_documented_form() {
        let (key, public) = fixture::key();
        let text = String::from_utf8(export(&key, &fixture::chain(1), 1)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let pem = public.to_pem().replace('\n', "\\n");
        let zeros = "0".repeat(64);
        assert_eq!(
            lines[0],
            format!(
                r#"{{"kind":"modelyard-audit","version":1,"public_keys":["{pem}"],"first_seq":1,"prev_hash":"{zeros}"}}"#
            )
        );
        assert!(
            lines[1].starts_with(r#"{"action":"alias.write","actor":"user:alice","#),
            "{}",
            lines[1]
        );
        assert!(
            lines[2].starts_with(r#"{"checkpoint":{"seq":1,"hash":""#),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn every_flipped_byte_of_a_small_export_is_found() {
        let (key, _) = fixture::key();
        let export = export(&key, &fixture::chain(2), 1);
        assert!(is_intact(&export));
        for at in 0..export.len() {
            for bit in [0, 5] {
                let mut changed = export.clone();
                changed[at] ^= 1 << bit;
                assert!(!is_intact(&changed), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let (key, _) = fixture::key();
        let export = export(&key, &fixture::chain(2), 2);
        for length in 0..export.len() {
            assert!(!is_intact(&export[..length]), "{length} of {} bytes", export.len());
        }
        let whole = lines(&export);
        for kept in 0..whole.len() {
            assert!(!is_intact(&whole[..kept].concat()), "{kept} lines");
        }
    }

    #[test]
    fn every_removed_repeated_or_swapped_line_is_found() {
        let (key, _) = fixture::key();
        let whole = lines(&export(&key, &fixture::chain(5), 2));
        // Header, 1, 2, checkpoint, 3, 4, checkpoint, 5, checkpoint.
        assert_eq!(whole.len(), 9);
        for first in 0..whole.len() {
            let mut fewer = whole.clone();
            fewer.remove(first);
            // An earlier checkpoint adds nothing to the last one.
            assert_eq!(
                is_intact(&fewer.concat()),
                first == 3 || first == 6,
                "line {first} removed"
            );
            let mut more = whole.clone();
            more.insert(first, whole[first].clone());
            assert!(!is_intact(&more.concat()), "line {first} twice");
            for second in first + 1..whole.len() {
                let mut swapped = whole.clone();
                swapped.swap(first, second);
                assert!(!is_intact(&swapped.concat()), "lines {first} and {second} swapped");
            }
        }
    }

    #[test]
    fn a_part_and_an_empty_export_are_verified() {
        let (key, public) = fixture::key();
        let events = fixture::chain(6);
        assert!(is_intact(&export(&key, &events[3..], 9)));
        let mut empty = Vec::new();
        write_header(&[public], 1, &GENESIS, &mut empty).unwrap();
        assert!(!is_intact(&empty), "nothing signs that it is empty");
    }

    #[test]
    fn what_is_no_export_is_refused_by_name() {
        let (key, _) = fixture::key();
        let export = String::from_utf8(export(&key, &fixture::chain(1), 1)).unwrap();
        for (text, word) in [
            (String::new(), "empty"),
            ("nonsense\n".to_owned(), "no header"),
            (
                export.replacen("modelyard-audit", "modelyard-other", 1),
                "modelyard-audit",
            ),
            (export.replacen("\"version\":1", "\"version\":2", 1), "version 2"),
            (export.replacen("\"first_seq\":1", "\"first_seq\": 1", 1), "changed"),
            (export.replacen("BEGIN PUBLIC", "BEGIN PUBLICC", 1), "public key"),
            (format!("{export}{}", "x".repeat(MAX_LINE_BYTES + 10)), "line 4"),
        ] {
            let error = verify_export(text.as_bytes(), None).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn problems_name_the_line() {
        let (key, _) = fixture::key();
        let export = String::from_utf8(export(&key, &fixture::chain(3), 9)).unwrap();
        // The same JSON, written in another way.
        let spaced = export.replacen("\"seq\":2", "\"seq\": 2", 1);
        let report = verify_export(spaced.as_bytes(), None).unwrap();
        assert!(
            matches!(report.problems[..], [Problem::Line { line: 3, .. }]),
            "{:?}",
            report.problems
        );
        let broken = export.replacen("\"seq\":2", "\"seq\":two", 1);
        let report = verify_export(broken.as_bytes(), None).unwrap();
        let shown: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
        assert!(shown[0].starts_with("line 3 was changed: it is no event"), "{shown:?}");
        assert_eq!(shown[1], "event 2 is missing");
    }

    #[test]
    fn the_longest_event_fits_a_line() {
        let long = "\"".repeat(4000);
        let details = (0..100).map(|n| (format!("{n}{long}"), long.clone().into())).collect();
        let event = super::super::NewEvent {
            project: long.clone(),
            actor: long.clone(),
            on_behalf_of: Some(long.clone()),
            action: long.clone(),
            resource_kind: long.clone(),
            resource: long.clone(),
            reason: Some(long.clone()),
            before_digest: Some(long.clone()),
            after_digest: Some(long.clone()),
            request_id: Some(long.clone()),
            source_address: Some(long),
            details: serde_json::Value::Object(details),
            ..fixture::new_event(1)
        };
        let mut out = Vec::new();
        write_event(&fixture::link_all(vec![event])[0], &mut out).unwrap();
        assert!(out.len() < MAX_LINE_BYTES, "{}", out.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_export_verifies_and_any_flipped_byte_is_found(
            events in proptest::collection::vec(fixture::any_event(), 1..6), every in 1..4_usize,
            at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let (key, _) = fixture::key();
            let mut export = export(&key, &fixture::link_all(events), every);
            prop_assert!(is_intact(&export));
            let at = at.index(export.len());
            export[at] ^= 1 << bit;
            prop_assert!(!is_intact(&export), "byte {at}, bit {bit}");
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!is_intact(&bytes));
        }
    }
}
