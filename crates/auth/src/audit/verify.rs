//! Verifying a chain, event by event.

use std::collections::{BTreeMap, VecDeque};

use super::{
    chain::{GENESIS, Hash, hash_of},
    checkpoint::{Checkpoint, PublicKey},
    event::AuditEvent,
    report::{Problem, Report},
};

/// So many events back, a checkpoint may come after its event: those who verify a database read both in batches.
const REMEMBERED: usize = 4096;
/// The most checkpoints that wait for their events.
const MAX_WAITING: usize = 4096;

/// Verifies a chain that is shown to it from the first to the last event. Its memory does not grow with the chain.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<(String, PublicKey)>,
    report: Report,
    /// The last events, for checkpoints that come after them.
    remembered: VecDeque<(u64, Hash)>,
    /// Signed hashes of events that have not come yet.
    waiting: BTreeMap<u64, Hash>,
    buffer: Vec<u8>,
}

impl Verifier {
    /// For a chain from its beginning. Only checkpoints by these keys prove anything.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self::starting_at(keys, 1, GENESIS)
    }

    /// For a part of a chain: its first event has this number and follows an event with this hash. That they are right is
    /// proven by the first checkpoint, which signs everything before it.
    #[must_use]
    pub fn starting_at(keys: Vec<PublicKey>, first_seq: u64, prev_hash: Hash) -> Self {
        let last_seq = first_seq.saturating_sub(1);
        Self {
            keys: keys.into_iter().map(|key| (key.id(), key)).collect(),
            report: Report {
                first_seq,
                last_seq,
                last_hash: prev_hash,
                events: 0,
                checkpoints: 0,
                signed_to: None,
                problems: Vec::new(),
                more_problems: 0,
            },
            remembered: VecDeque::from([(last_seq, prev_hash)]),
            waiting: BTreeMap::new(),
            buffer: Vec::with_capacity(1024),
        }
    }

    /// The next event.
    pub fn event(&mut self, event: &AuditEvent) {
        let seq = event.seq;
        self.report.events += 1;
        match hash_of(event, &mut self.buffer) {
            Ok(hash) if hash == event.hash => {}
            Ok(_) => self.report.add(Problem::Changed { seq }),
            Err(error) => self.report.add(Problem::Unwritable {
                seq,
                problem: error.to_string(),
            }),
        }
        let last = self.report.last_seq;
        if !self.is_next(seq) {
            return;
        }
        if seq - last == 1 && event.prev_hash != self.report.last_hash {
            self.report.add(Problem::Unlinked { seq });
        }
        self.advance(seq, event.hash);
    }

    /// The next event, where nobody can read what it says. The one after it cannot be linked to it.
    pub fn unreadable(&mut self, seq: u64, problem: String) {
        self.report.events += 1;
        self.report.add(Problem::Unwritable { seq, problem });
        if self.is_next(seq) {
            self.advance(seq, GENESIS);
        }
    }

    /// Whether the event stands behind those before it; notes which are missing between them.
    fn is_next(&mut self, seq: u64) -> bool {
        let last = self.report.last_seq;
        if seq <= last {
            self.report.add(Problem::OutOfOrder { seq, after: last });
        } else if seq - last > 1 {
            self.report.add(Problem::Missing {
                first: last + 1,
                last: seq - 1,
            });
        }
        seq > last
    }

    fn advance(&mut self, seq: u64, hash: Hash) {
        self.report.last_seq = seq;
        self.report.last_hash = hash;
        if self.remembered.len() >= REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back((seq, hash));
        while let Some(entry) = self.waiting.first_entry() {
            match (*entry.key(), entry.remove()) {
                (waiting, signed) if waiting == seq => self.compare(seq, signed, hash),
                (waiting, _) if waiting < seq => self.report.add(Problem::Misplaced { seq: waiting }),
                (waiting, signed) => {
                    self.waiting.insert(waiting, signed);
                    break;
                }
            }
        }
    }

    fn compare(&mut self, seq: u64, signed: Hash, hash: Hash) {
        if signed == hash {
            self.report.signed_to = self.report.signed_to.max(Some(seq));
        } else {
            self.report.add(Problem::SignedOther { seq });
        }
    }

    /// A checkpoint: best right after its event. It may come earlier, too, such as one that was kept elsewhere, or a few
    /// events later.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let seq = checkpoint.seq;
        let Some((_, key)) = self.keys.iter().find(|(id, _)| *id == checkpoint.key_id) else {
            let key_id = super::clean_text(&checkpoint.key_id, 64);
            self.report.add(Problem::UnknownKey { seq, key_id });
            return;
        };
        if !key.has_signed(checkpoint) {
            self.report.add(Problem::WrongSignature { seq });
            return;
        }
        self.report.checkpoints += 1;
        if seq > self.report.last_seq {
            self.wait(seq, checkpoint.hash);
        } else if let Ok(at) = self.remembered.binary_search_by_key(&seq, |(seq, _)| *seq) {
            let (_, hash) = self.remembered[at];
            self.compare(seq, checkpoint.hash, hash);
        } else {
            self.report.add(Problem::Misplaced { seq });
        }
    }

    fn wait(&mut self, seq: u64, signed: Hash) {
        if self.waiting.len() >= MAX_WAITING {
            self.report.add(Problem::Misplaced { seq });
        } else if self.waiting.insert(seq, signed).is_some_and(|other| other != signed) {
            self.report.add(Problem::SignedOther { seq });
        }
    }

    /// Ends. `expected_head` is the last event that is known from elsewhere: the chain may have gone on since.
    #[must_use]
    pub fn finish(mut self, expected_head: Option<(u64, Hash)>) -> Report {
        let last = self.report.last_seq;
        let newest_signed = self.waiting.last_key_value().map(|(seq, _)| *seq);
        let expected = expected_head.map(|(seq, _)| seq);
        if let Some(known) = newest_signed.max(expected).filter(|known| *known > last) {
            self.report.add(Problem::Truncated { last, known });
        }
        if let Some((seq, hash)) = expected_head
            && let Ok(at) = self.remembered.binary_search_by_key(&seq, |(seq, _)| *seq)
            && self.remembered[at].1 != hash
        {
            self.report.add(Problem::OtherHead { seq });
        }
        self.report
    }

    /// Notes a problem that only the reader of the chain sees.
    pub(super) fn problem(&mut self, problem: Problem) {
        self.report.add(problem);
    }

    /// The canonical form of the event that was shown last.
    pub(super) fn canonical(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.report.last_seq
    }

    pub(super) fn signed_to(&self) -> Option<u64> {
        self.report.signed_to
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::{
        super::{MAX_PROBLEMS, NewEvent, SigningKey, fixture, link},
        *,
    };

    /// Events first.
    fn show(verifier: &mut Verifier, events: &[AuditEvent], checkpoints: &[Checkpoint]) {
        for event in events {
            verifier.event(event);
        }
        for checkpoint in checkpoints {
            verifier.checkpoint(checkpoint);
        }
    }

    /// The report on the events in two parts, each verified by itself.
    fn in_two(public: &PublicKey, events: &[AuditEvent], first: u64) -> Report {
        let (head, tail) = events.split_at(events.partition_point(|event| event.seq < first));
        let mut before = Verifier::new(vec![public.clone()]);
        show(&mut before, head, &[]);
        let before = before.finish(None);
        let Some(begin) = tail.first() else {
            return before;
        };
        let mut after = Verifier::starting_at(vec![public.clone()], begin.seq, begin.prev_hash);
        show(&mut after, tail, &[]);
        before.join(&begin.prev_hash, after.finish(None))
    }

    #[test]
    fn parts_that_were_verified_apart_find_the_same() {
        let (key, _) = SigningKey::generate().unwrap();
        let public = key.public_key();
        let events = fixture::chain(9);
        for first in 1..11 {
            let joined = in_two(&public, &events, first);
            assert_eq!(joined, report(&public, &events, &[]), "{first}");
            // Each event missing, changed, or in another's place.
            for at in 0..events.len() {
                let mut missing = events.clone();
                missing.remove(at);
                let is_last = at + 1 == events.len();
                assert_eq!(in_two(&public, &missing, first).is_intact(), is_last, "{first} {at}");
                let mut changed = events.clone();
                changed[at].actor = "user:mallory".to_owned();
                assert!(!in_two(&public, &changed, first).is_intact(), "{first} {at}");
                if at > 0 {
                    let mut other = events.clone();
                    other[at] = link(&GENESIS, fixture::new_event(77), at as u64 + 1).unwrap();
                    assert!(!in_two(&public, &other, first).is_intact(), "{first} {at}");
                }
            }
        }
    }

    fn report(public: &PublicKey, events: &[AuditEvent], checkpoints: &[Checkpoint]) -> Report {
        let mut verifier = Verifier::new(vec![public.clone()]);
        for event in events {
            verifier.event(event);
            for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.seq == event.seq) {
                verifier.checkpoint(checkpoint);
            }
        }
        let last = events.last().map_or(0, |event| event.seq);
        for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.seq > last) {
            verifier.checkpoint(checkpoint);
        }
        verifier.finish(None)
    }

    fn signed(length: u64) -> (SigningKey, PublicKey, Vec<AuditEvent>, Vec<Checkpoint>) {
        let (key, public) = fixture::key();
        let events = fixture::chain(length);
        let checkpoints = events.iter().map(|event| fixture::checkpoint(&key, event)).collect();
        (key, public, events, checkpoints)
    }

    #[test]
    fn an_intact_chain_is_intact() {
        let (_, public, events, checkpoints) = signed(5);
        let found = report(&public, &events, &checkpoints);
        assert!(found.is_intact(), "{:?}", found.problems);
        assert_eq!(
            (found.first_seq, found.last_seq, found.last_hash),
            (1, 5, events[4].hash)
        );
        assert_eq!((found.events, found.checkpoints, found.signed_to), (5, 5, Some(5)));
        let unsigned = report(&public, &events, &[]);
        assert!(unsigned.is_intact());
        assert_eq!(unsigned.signed_to, None);
    }

    #[test]
    fn an_empty_chain_is_intact() {
        let (key, public) = fixture::key();
        let mut verifier = Verifier::new(vec![public.clone()]);
        let checkpoint = super::super::sign(&key, &public.id(), 0, GENESIS, modelyard_common::Timestamp::default());
        verifier.checkpoint(&checkpoint);
        let found = verifier.finish(Some((0, GENESIS)));
        assert!(found.is_intact(), "{:?}", found.problems);
        assert_eq!(found.last_seq, 0);
    }

    #[test]
    fn every_changed_field_is_found() {
        let (_, public, events, _) = signed(3);
        let changes: [fn(&mut AuditEvent); 19] = [
            |event| event.id = uuid::Uuid::nil(),
            |event| event.at = modelyard_common::Timestamp::default(),
            |event| event.project.push('x'),
            |event| event.actor = "user:mallory".to_owned(),
            |event| event.on_behalf_of = Some(String::new()),
            |event| event.action.push('x'),
            |event| event.resource_kind.push('x'),
            |event| event.resource.push('x'),
            |event| event.outcome = super::super::Outcome::Denied,
            |event| event.reason = Some("null".to_owned()),
            |event| event.before_digest = event.after_digest.take(),
            |event| event.after_digest = None,
            |event| event.request_id = None,
            |event| event.source_address = None,
            |event| event.details["count"] = "2".into(),
            |event| event.details["count"] = 0.5.into(),
            |event| event.details = serde_json::Value::Null,
            |event| event.prev_hash = event.hash,
            |event| event.hash = event.prev_hash,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut events = events.clone();
            change(&mut events[1]);
            let found = report(&public, &events, &[]);
            let first = found.problems.first();
            let names = matches!(
                first,
                Some(Problem::Changed { seq: 2 } | Problem::Unwritable { seq: 2, .. })
            );
            assert!(names, "change {index}: {:?}", found.problems);
        }
    }

    #[test]
    fn missing_and_moved_events_are_named() {
        let (_, public, events, _) = signed(6);
        let mut missing = events.clone();
        missing.drain(2..4);
        assert_eq!(
            report(&public, &missing, &[]).problems,
            [Problem::Missing { first: 3, last: 4 }]
        );
        let found = report(&public, &events[1..], &[]);
        assert_eq!(found.problems, [Problem::Missing { first: 1, last: 1 }]);
        let mut swapped = events.clone();
        swapped.swap(2, 3);
        let expected = [
            Problem::Missing { first: 3, last: 3 },
            Problem::OutOfOrder { seq: 3, after: 4 },
        ];
        assert_eq!(report(&public, &swapped, &[]).problems, expected);
        let mut twice = events.clone();
        twice.insert(2, events[1].clone());
        assert_eq!(
            report(&public, &twice, &[]).problems,
            [Problem::OutOfOrder { seq: 2, after: 2 }]
        );
    }

    #[test]
    fn an_unreadable_event_is_named_and_does_not_hide_the_rest() {
        let (_, public, mut events, checkpoints) = signed(6);
        events[4].actor.push('x');
        let mut verifier = Verifier::new(vec![public]);
        for event in &events {
            if event.seq == 2 {
                verifier.unreadable(2, "it has no outcome".to_owned());
            } else {
                verifier.event(event);
            }
        }
        verifier.checkpoint(&checkpoints[5]);
        let found = verifier.finish(None);
        let unwritable = Problem::Unwritable {
            seq: 2,
            problem: "it has no outcome".to_owned(),
        };
        let expected = [unwritable, Problem::Unlinked { seq: 3 }, Problem::Changed { seq: 5 }];
        assert_eq!(found.problems, expected);
        assert_eq!((found.events, found.last_seq), (6, 6));
    }

    #[test]
    fn a_rewritten_chain_is_found_by_its_checkpoints() {
        let (_, public, events, checkpoints) = signed(6);
        let mut rewritten = events[..2].to_vec();
        for number in 3..=6 {
            let forged = NewEvent {
                actor: "user:mallory".to_owned(),
                ..fixture::new_event(number)
            };
            let prev = rewritten.last().unwrap().hash;
            rewritten.push(link(&prev, forged, number).unwrap());
        }
        assert!(
            report(&public, &rewritten, &[]).is_intact(),
            "without checkpoints it looks right"
        );
        let found = report(&public, &rewritten, &checkpoints[3..4]);
        assert_eq!(found.problems, [Problem::SignedOther { seq: 4 }]);
        let found = report(&public, &rewritten, &checkpoints[5..]);
        assert_eq!(found.problems, [Problem::SignedOther { seq: 6 }]);
    }

    #[test]
    fn a_chain_that_was_cut_off_is_found() {
        let (_, public, events, checkpoints) = signed(6);
        let found = report(&public, &events[..4], &checkpoints);
        assert_eq!(found.problems, [Problem::Truncated { last: 4, known: 6 }]);
        let finish = |shown: &[AuditEvent], head| {
            let mut verifier = Verifier::new(vec![public.clone()]);
            show(&mut verifier, shown, &[]);
            verifier.finish(head).problems
        };
        assert_eq!(
            finish(&events[..4], Some((6, events[5].hash))),
            [Problem::Truncated { last: 4, known: 6 }]
        );
        assert_eq!(
            finish(&events, Some((6, events[4].hash))),
            [Problem::OtherHead { seq: 6 }]
        );
        assert_eq!(
            finish(&events, Some((4, events[4].hash))),
            [Problem::OtherHead { seq: 4 }]
        );
        assert_eq!(finish(&events, Some((4, events[3].hash))), []);
        assert_eq!(
            finish(&[], Some((6, events[5].hash))),
            [Problem::Truncated { last: 0, known: 6 }]
        );
    }

    #[test]
    fn only_the_given_keys_prove_anything() {
        let (_, public, events, mut checkpoints) = signed(3);
        let (mallory, mallorys) = fixture::key();
        let found = report(&mallorys, &events, &checkpoints[..1]);
        assert_eq!(
            found.problems,
            [Problem::UnknownKey {
                seq: 1,
                key_id: public.id()
            }]
        );
        assert_eq!(found.signed_to, None);
        checkpoints[1] = super::super::sign(&mallory, &public.id(), 2, events[1].hash, events[1].at);
        let found = report(&public, &events, &checkpoints);
        assert_eq!(found.problems, [Problem::WrongSignature { seq: 2 }]);
    }

    #[test]
    fn checkpoints_may_come_in_batches() {
        let (_, public, events, checkpoints) = signed(6);
        for checkpoints_first in [true, false] {
            let mut verifier = Verifier::new(vec![public.clone()]);
            if checkpoints_first {
                show(&mut verifier, &[], &checkpoints);
            }
            show(&mut verifier, &events, &[]);
            if !checkpoints_first {
                show(&mut verifier, &[], &checkpoints);
            }
            let found = verifier.finish(None);
            assert!(found.is_intact(), "{:?}", found.problems);
            assert_eq!((found.checkpoints, found.signed_to), (6, Some(6)));
        }
        let mut without = events;
        without.remove(2);
        let mut verifier = Verifier::new(vec![public]);
        verifier.checkpoint(&checkpoints[2]);
        show(&mut verifier, &without, &[]);
        let expected = [Problem::Missing { first: 3, last: 3 }, Problem::Misplaced { seq: 3 }];
        assert_eq!(verifier.finish(None).problems, expected);
    }

    #[test]
    fn a_part_is_verified_from_where_it_begins() {
        let (_, public, events, checkpoints) = signed(6);
        let mut verifier = Verifier::starting_at(vec![public.clone()], 4, events[2].hash);
        show(&mut verifier, &events[3..], &[]);
        verifier.checkpoint(&checkpoints[5]);
        assert!(verifier.finish(None).is_intact());
        let mut verifier = Verifier::starting_at(vec![public], 4, events[1].hash);
        show(&mut verifier, &events[3..], &[]);
        assert_eq!(verifier.finish(None).problems, [Problem::Unlinked { seq: 4 }]);
    }

    #[test]
    fn problems_are_bounded() {
        let (_, public, mut events, _) = signed(300);
        for event in &mut events {
            event.actor.clear();
        }
        let found = report(&public, &events, &[]);
        assert_eq!(found.problems.len(), MAX_PROBLEMS);
        assert_eq!(found.more_problems, 200);
    }

    /// For people who look: how long it takes is asserted nowhere.
    #[test]
    fn how_many_events_are_verified_in_a_second() {
        let (key, public) = fixture::key();
        let events = fixture::chain(20_000);
        let checkpoint = fixture::checkpoint(&key, &events[events.len() - 1]);
        let mut verifier = Verifier::new(vec![public]);
        let began = Instant::now();
        show(&mut verifier, &events, &[]);
        verifier.checkpoint(&checkpoint);
        let took = began.elapsed();
        assert!(verifier.finish(None).is_intact());
        println!("{} events verified in {took:?}", events.len());
    }

    proptest! {
        #[test]
        fn any_chain_verifies_and_any_removed_or_swapped_event_is_found(
            events in proptest::collection::vec(fixture::any_event(), 2..12), first in any::<prop::sample::Index>(),
            second in any::<prop::sample::Index>(),
        ) {
            let (key, public) = fixture::key();
            let chain = fixture::link_all(events);
            let head = [fixture::checkpoint(&key, chain.last().unwrap())];
            prop_assert!(report(&public, &chain, &head).is_intact());
            let (first, second) = (first.index(chain.len()), second.index(chain.len()));
            let mut fewer = chain.clone();
            fewer.remove(first);
            prop_assert!(!report(&public, &fewer, &head).is_intact());
            if first != second {
                let mut swapped = chain;
                swapped.swap(first, second);
                prop_assert!(!report(&public, &swapped, &head).is_intact());
            }
        }
    }
}
