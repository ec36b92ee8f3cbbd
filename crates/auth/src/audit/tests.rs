//! What an attacker tries with a chain, and how it is found.

use std::io::Cursor;

use modelyard_common::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;

fn event(number: u64, text: &str) -> NewEvent {
    NewEvent {
        id: Uuid::from_u128(u128::from(number)),
        at: Timestamp::from_micros(1_362_096_000_000_000 + i64::try_from(number).unwrap()),
        project: "default".to_owned(),
        actor: "user:alice".to_owned(),
        on_behalf_of: None,
        action: "alias.set".to_owned(),
        resource_kind: "model".to_owned(),
        resource: text.to_owned(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: Some("sha256:00".to_owned()),
        request_id: Some(format!("request-{number}")),
        source_address: Some("127.0.0.1".to_owned()),
        details: json!({"version": number, "alias": "champion"}),
    }
}

fn chain(texts: &[String]) -> Vec<AuditEvent> {
    let mut events: Vec<AuditEvent> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let seq = index as u64 + 1;
        let prev = events.last().map_or(Hash::GENESIS, |last| last.hash);
        events.push(link(&prev, event(seq, text), seq).unwrap());
    }
    events
}

fn at() -> Timestamp {
    "2013-03-01T00:00:00Z".parse().unwrap()
}

/// An export with a checkpoint after every third event and after the last.
fn export(events: &[AuditEvent], key: &SigningKey) -> Vec<String> {
    let mut lines = vec![Exporter::header(&[key.public_key()], 0, Hash::GENESIS).unwrap()];
    for event in events {
        lines.push(Exporter::event(event).unwrap());
        if event.seq % 3 == 0 || event.seq == events.len() as u64 {
            lines.push(Exporter::checkpoint(&sign(key, event.seq, event.hash, at())).unwrap());
        }
    }
    lines
}

fn verify(lines: &[String], key: &SigningKey) -> Report {
    let keys = [key.public_key()];
    verify_export(Cursor::new(lines.concat()), Some(&keys)).unwrap()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("model-{number}")).collect()
}

#[test]
fn an_untouched_export_is_intact() {
    let (key, _) = SigningKey::generate().unwrap();
    let lines = export(&chain(&texts(7)), &key);
    let report = verify(&lines, &key);
    assert!(report.is_intact(), "{:?}", report.problems);
    assert_eq!((report.events, report.checkpoints, report.last), (7, 3, 7));
    assert!(verify_export(Cursor::new(lines.concat()), None).unwrap().is_intact());
}

#[test]
fn every_flipped_bit_is_found() {
    let (key, _) = SigningKey::generate().unwrap();
    let whole = export(&chain(&texts(3)), &key).concat().into_bytes();
    let keys = [key.public_key()];
    for place in 0..whole.len() {
        for bit in [0, 5] {
            let mut changed = whole.clone();
            changed[place] ^= 1 << bit;
            let report = verify_export(Cursor::new(changed), Some(&keys)).unwrap();
            assert!(!report.is_intact(), "byte {place}, bit {bit}");
        }
    }
}

#[test]
fn missing_moved_and_cut_lines_are_found() {
    let (key, _) = SigningKey::generate().unwrap();
    let lines = export(&chain(&texts(7)), &key);
    for place in 0..lines.len() {
        let mut without = lines.clone();
        let removed = without.remove(place);
        let is_inner_checkpoint = removed.starts_with("{\"checkpoint\"") && place + 1 < lines.len();
        // A signature in the middle is covered by the one at the end.
        assert_eq!(verify(&without, &key).is_intact(), is_inner_checkpoint, "without line {place}");
        for other in place + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(place, other);
            assert!(!verify(&swapped, &key).is_intact(), "{place} and {other} swapped");
        }
        assert!(!verify(&lines[..place], &key).is_intact() || is_end_of_a_signed_part(&lines, place), "cut at {place}");
    }
    let whole = lines.concat();
    let cut = &whole[..whole.len() - 1];
    assert!(!verify_export(Cursor::new(cut), None).unwrap().is_intact());
}

/// What ends with a signature is a whole export of less; that it is not all only the server can tell, by its head.
fn is_end_of_a_signed_part(lines: &[String], place: usize) -> bool {
    place > 0 && lines[place - 1].starts_with("{\"checkpoint\"")
}

#[test]
fn a_cut_chain_is_found_by_its_head_and_by_later_signatures() {
    let (key, _) = SigningKey::generate().unwrap();
    let events = chain(&texts(5));
    let head = (5, events[4].hash);
    let mut verifier = Verifier::new([key.public_key()]);
    for event in &events[..3] {
        verifier.event(event);
    }
    let report = verifier.finish(Some(head));
    assert_eq!(report.problems, [Problem::Truncated { last: 3, expected: 5 }]);
    let mut verifier = Verifier::new([key.public_key()]);
    for event in &events[..3] {
        verifier.event(event);
    }
    verifier.checkpoint(&sign(&key, 5, events[4].hash, at()));
    assert!(!verifier.finish(None).is_intact());
}

#[test]
fn a_chain_that_was_written_anew_is_found_by_its_signature() {
    let (key, _) = SigningKey::generate().unwrap();
    let (thief, _) = SigningKey::generate().unwrap();
    let forged = chain(&["nothing happened".to_owned()]);
    let keys = [key.public_key()];
    let by_thief = export(&forged, &thief).concat();
    assert!(!verify_export(Cursor::new(by_thief), Some(&keys)).unwrap().is_intact());
    let mut pretending = export(&forged, &thief);
    pretending[0] = Exporter::header(&keys, 0, Hash::GENESIS).unwrap();
    assert!(!verify(&pretending, &key).is_intact());
}

#[test]
fn keys_are_read_as_they_are_written() {
    let (key, bytes) = SigningKey::generate().unwrap();
    let pem = key.public_key().to_pem();
    assert_eq!(PublicKey::from_pem(&pem).unwrap(), key.public_key());
    assert_eq!(SigningKey::from_pkcs8(&bytes).unwrap().public_key(), key.public_key());
    assert!(PublicKey::from_pem("nonsense").is_err());
    assert!(SigningKey::from_pkcs8(&bytes[1..]).is_err());
    assert_eq!(format!("{key:?}"), "SigningKey(***)");
}

#[test]
fn events_are_written_in_the_words_of_ocsf() {
    let mut changed = event(1, "flight-delay");
    changed.on_behalf_of = Some("user:alice".to_owned());
    changed.actor = "service:orchestrator".to_owned();
    let written = to_ocsf(&link(&Hash::GENESIS, changed, 1).unwrap());
    assert_eq!(written["class_uid"], 6003);
    assert_eq!(written["type_uid"], 600_303);
    assert_eq!(written["actor"]["user"]["name"], "alice");
    assert_eq!(written["src_endpoint"]["ip"], "127.0.0.1");
    let mut failed = event(2, "alice");
    failed.action = "sign-in".to_owned();
    failed.outcome = Outcome::Failed;
    failed.resource_kind = "user".to_owned();
    let written = to_ocsf(&link(&Hash::GENESIS, failed, 2).unwrap());
    assert_eq!((&written["class_uid"], &written["activity_id"]), (&json!(3002), &json!(1)));
    assert_eq!((&written["status_id"], &written["severity_id"]), (&json!(2), &json!(3)));
    for required in ["category_uid", "time", "metadata", "severity_id", "type_uid", "user", "actor"] {
        assert!(written.get(required).is_some(), "{required}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_events_say_their_export_is_intact_and_any_change_is_found(
        texts in prop::collection::vec(".{0,40}", 1..8), place in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let (key, _) = SigningKey::generate().unwrap();
        let lines = export(&chain(&texts), &key);
        prop_assert!(verify(&lines, &key).is_intact());
        let mut changed = lines.concat().into_bytes();
        let place = place.index(changed.len());
        changed[place] ^= 1 << bit;
        let keys = [key.public_key()];
        prop_assert!(!verify_export(Cursor::new(changed), Some(&keys)).unwrap().is_intact());
    }
}
