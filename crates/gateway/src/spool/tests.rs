//! The spool without a gateway around it.
use std::{fs::File, path::Path};

use modelyard_artifacts::Digest;
use modelyard_inference::{DataType, Signature, Tensor, TensorSpec};
use uuid::Uuid;

use super::{read::take_over, record::Owed, *};
use crate::desired::VersionRef;

const LIMITS: Limits = Limits {
    segment_rows: 10,
    segment_bytes: 1 << 20,
    segment_age: Duration::from_hours(1),
    spool_bytes: 1 << 20,
    min_free_bytes: 0,
};

fn open(folder: &Path, limits: Limits) -> Arc<EndpointLog> {
    let key = EndpointKey {
        project: "default".to_owned(),
        name: "e".to_owned(),
    };
    Spool::open(folder.to_owned(), limits).unwrap().log(&key).unwrap().0
}

fn definition(version: u32) -> Arc<Definition> {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, 1],
    };
    let version = VersionRef {
        model: "m".to_owned(),
        version,
        digest: Digest::of(&version.to_le_bytes()),
        bundle: None,
    };
    let signature = Signature {
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
    };
    Arc::new(Definition::new(&version, &signature, true, &[]))
}

const FACTS: RequestFacts<'static> = RequestFacts {
    id: "a",
    protocol: Protocol::Http,
    event_time_us: 0,
    received_at_us: 0,
};

fn tensor(name: &str, rows: i64) -> Vec<Tensor> {
    vec![Tensor::zeros(name, DataType::Fp32, vec![rows, 1]).unwrap()]
}

fn new_id() -> Uuid {
    Uuid::from_u128(rand::random())
}

fn entry(live: &Arc<Definition>, shadows: &[&Arc<Definition>], rows: i64) -> Entry {
    let keys: Vec<u32> = shadows.iter().map(|shadow| shadow.key()).collect();
    let record = Encoded::live(live, &FACTS, &tensor("x", rows), &keys);
    Entry {
        record: record.finish(live, 1, &tensor("y", rows)).unwrap(),
        definition: Arc::clone(live),
        owed: shadows.iter().map(|&shadow| Arc::clone(shadow)).collect(),
    }
}

fn live(log: &EndpointLog, live: &Arc<Definition>, shadows: &[&Arc<Definition>], rows: i64) -> Vec<OwedToken> {
    log.append_live(entry(live, shadows, rows), new_id)
}

fn answer(log: &EndpointLog, shadow: &Arc<Definition>, owed: Owed) {
    let record = Encoded::shadow(shadow, &FACTS, &tensor("x", 1), owed);
    let entry = Entry {
        record: record.finish(shadow, 1, &tensor("y", 1)).unwrap(),
        definition: Arc::clone(shadow),
        owed: Vec::new(),
    };
    assert!(log.append_shadow(entry, new_id));
}

/// How many predictions each of the log's closed segments has.
fn closed(log: &EndpointLog) -> Vec<usize> {
    log.close_aged(true);
    let mut counts = Vec::new();
    while let Some(oldest) = log.oldest() {
        counts.push(read::read(&oldest.path).unwrap().predictions.len());
        log.forget_oldest();
    }
    counts
}

#[tokio::test]
async fn records_that_come_together_are_written_by_whose_turn_is_first() {
    let folder = tempfile::tempdir().unwrap();
    let main = definition(1);
    let log = open(folder.path(), LIMITS);
    // More than two segments hold.
    let mut waiting: Vec<_> = (0..25)
        .map(|_| by_hand(log.append_with_others(entry(&main, &[], 1), new_id)))
        .collect();
    for one in &mut waiting {
        assert!(one.pending());
    }
    // The others are stuck, or gone.
    assert!(!waiting.pop().unwrap().pending());
    assert_eq!(closed(&log), [10, 10, 5]);
    // Nothing is written twice.
    for one in &mut waiting {
        assert!(!one.pending());
    }
    assert!(closed(&log).is_empty());
}

#[tokio::test]
async fn nobody_waits_for_one_who_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let (main, shadow) = (definition(1), definition(2));
    let log = open(folder.path(), LIMITS);
    let append = || by_hand(log.append_with_others(entry(&main, &[], 1), new_id));
    let (mut stuck, mut next) = (append(), append());
    assert!(stuck.pending() && next.pending());
    assert!(!next.pending());
    let mut later = append();
    assert!(later.pending() && !later.pending());
    // Its place is counted with those that waited.
    let tokens = live(&log, &main, &[&shadow], 1);
    assert_eq!(tokens[0].owed().index, 3);
    drop(tokens);
    assert_eq!(closed(&log), [4]);
    // Who is gone is written.
    let mut gone = append();
    assert!(gone.pending());
    drop(gone);
    assert_eq!(closed(&log), [1]);
    drop(stuck);
}

#[test]
fn a_large_record_between_small_ones_keeps_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let main = definition(1);
    let spares = Spares::open(folder.path().join("spares")).unwrap();
    let mut log = segment::Segment::create(
        folder.path(),
        0,
        new_id(),
        &EndpointKey {
            project: "default".to_owned(),
            name: "e".to_owned(),
        },
        &spares,
    )
    .unwrap();
    let rows = [1, 20_000, 3];
    let entries: Vec<Entry> = rows.iter().map(|&rows| entry(&main, &[], rows)).collect();
    log.append(&entries).unwrap();
    let content = read::read(&log.path).unwrap();
    assert_eq!(content.bytes, log.bytes);
    let read: Vec<i64> = content
        .lives()
        .map(|(_, live, _)| live.inputs(&main).unwrap()[0].shape()[0])
        .collect();
    assert_eq!(read, rows);
}

#[test]
fn what_is_owed_after_a_crash_is_what_has_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (main, first, second) = (definition(1), definition(2), definition(3));
    let log = open(folder.path(), LIMITS);
    let mut open_debts = Vec::new();
    // More than a segment holds, so that answers lie in other segments than what they answer.
    for index in 0..25 {
        for token in live(&log, &main, &[&first, &second], 1) {
            let owed = token.owed();
            if index % 3 == usize::from(owed.slot) {
                answer(&log, if owed.slot == 0 { &first } else { &second }, owed);
            } else {
                open_debts.push(owed);
            }
            // The crash: no token is ever dropped.
            std::mem::forget(token);
        }
    }
    drop(log);
    let log = open(folder.path(), LIMITS);
    let segments = log.left_over();
    assert!(segments.len() > 3, "{segments:?}");
    let found = take_over(&segments);
    assert_eq!(found.len(), segments.len());
    assert_eq!(found.concat(), open_debts);
    // The definitions of another process are told apart from this one's.
    let content = read::read(&segments[0].path).unwrap();
    let owing = content.owing(&found[0]);
    assert_eq!(owing.len(), found[0].len());
    for (owed, _, live, shadow) in owing {
        assert_eq!(live.version().version, 1);
        assert_eq!(shadow.version().version, if owed.slot == 0 { 2 } else { 3 });
    }
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_torn() {
    let folder = tempfile::tempdir().unwrap();
    let main = definition(1);
    let log = open(folder.path(), LIMITS);
    let _ = live(&log, &main, &[], 1);
    log.close_aged(true);
    let path = log.oldest().unwrap().path;
    let one = fs::read(&path).unwrap().len();
    drop(log);
    let log = open(folder.path(), LIMITS);
    let whole = fs::read(&path).unwrap();
    // The same record again, of which ever less is there.
    let record = {
        let record = Encoded::live(&main, &FACTS, &tensor("x", 1), &[]);
        record.finish(&main, 1, &tensor("y", 1)).unwrap()
    };
    for end in 0..=record.frame().len() {
        fs::write(&path, [&whole, &record.frame()[..end]].concat()).unwrap();
        take_over(&log.left_over());
        let content = read::read(&path).unwrap();
        let is_whole = end == record.frame().len();
        assert_eq!(content.predictions.len(), if is_whole { 2 } else { 1 });
        assert_eq!(content.bytes, content.whole_bytes);
        assert_eq!(content.bytes as usize, if is_whole { one + end } else { one });
    }
    // A flipped bit is found, and what is behind it is not believed.
    let mut flipped = [&whole, record.frame()].concat();
    flipped[one + 12] ^= 1;
    fs::write(&path, flipped).unwrap();
    assert_eq!(read::read(&path).unwrap().predictions.len(), 1);
}

#[test]
fn segments_are_bounded_by_rows_and_bytes_and_the_spool_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let main = definition(1);
    let limits = Limits {
        segment_bytes: 4096,
        spool_bytes: 16_384,
        ..LIMITS
    };
    let log = open(folder.path(), limits);
    let closed = || fs::read_dir(folder.path().join("default/e")).unwrap().count();
    for _ in 0..2 {
        let _ = live(&log, &main, &[], 5);
    }
    assert!(
        log.close_aged(true).is_none() && closed() == 1,
        "ten rows close a segment"
    );
    let _ = live(&log, &main, &[], 2000);
    assert!(
        log.close_aged(true).is_none() && closed() == 2,
        "many bytes close a segment"
    );
    while log.has_room() {
        let _ = live(&log, &main, &[], 1);
    }
    let on_disk = || -> u64 {
        let files = fs::read_dir(folder.path().join("default/e")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    assert!((16_384..20_000).contains(&on_disk()), "{}", on_disk());
    assert!(log.room().is_tight());
    // A restart counts what is there.
    drop(log);
    let log = open(folder.path(), limits);
    assert!(!log.has_room());
    while let Some(oldest) = log.oldest() {
        fs::remove_file(oldest.path).unwrap();
        log.forget_oldest();
    }
    assert!(log.has_room() && on_disk() == 0);
}

#[tokio::test]
async fn a_segment_is_settled_when_every_answer_is_written_given_up_or_postponed() {
    let folder = tempfile::tempdir().unwrap();
    let (main, first, second) = (definition(1), definition(2), definition(3));
    let log = open(folder.path(), LIMITS);
    let mut tokens = live(&log, &main, &[&first, &second], 1);
    log.close_aged(true);
    let debts = log.oldest().unwrap().debts.unwrap();
    let mut settled = by_hand(debts.settled());
    assert!(settled.pending());
    drop(tokens.pop());
    assert!(settled.pending());
    let last = tokens.pop().unwrap();
    let owed = last.owed();
    last.postpone();
    assert_eq!(settled.ready(), Some(vec![owed]));
}

/// Polls a future by hand.
struct ByHand<F: Future>(std::pin::Pin<Box<F>>);

fn by_hand<F: Future>(future: F) -> ByHand<F> {
    ByHand(Box::pin(future))
}

impl<F: Future> ByHand<F> {
    fn ready(&mut self) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match self.0.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn pending(&mut self) -> bool {
        self.ready().is_none()
    }
}

#[test]
fn a_segment_of_a_newer_format_is_not_read_as_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let header = record::Header {
        format: record::FORMAT + 1,
        segment: Uuid::nil(),
        endpoint: EndpointKey {
            project: "default".to_owned(),
            name: "e".to_owned(),
        },
    };
    fs::write(&path, record::header_frame(&header)).unwrap();
    let message = read::read(&path).unwrap_err().to_string();
    assert!(message.contains("format 2"), "{message}");
    File::create(&path).unwrap();
    assert!(read::read(&path).unwrap().predictions.is_empty());
}
