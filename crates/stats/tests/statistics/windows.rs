//! Drift between profiles, as monitoring finds it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use modelyard_stats::{
    DatasetDrift, DriftOptions, DriftTest, Outcome, Profile, ProfileOptions, exact_drift, profile_drift,
};

use super::{Lcg, batch, column, floats, profile, texts, with_test};

/// Profile of a window, counted over the reference's bins.
fn window(batch: &RecordBatch, reference: &Profile) -> Profile {
    let options = ProfileOptions {
        binnings: reference.binnings(),
        ..ProfileOptions::default()
    };
    Profile::of([batch], &options).unwrap()
}

fn drift_of(reference: &RecordBatch, current: &RecordBatch, options: &DriftOptions) -> DatasetDrift {
    let reference = profile(reference);
    profile_drift(&reference, &window(current, &reference), options).unwrap()
}

#[test]
fn profiles_find_the_drift_that_the_raw_columns_have() {
    let reference = batch([("bell", floats(40_000, 1, 0.0)), ("name", texts(40_000, 2, 8.0))]);
    let current = batch([("bell", floats(30_000, 3, 0.25)), ("name", texts(30_000, 4, 16.0))]);
    for test in [
        DriftTest::Auto,
        DriftTest::JensenShannon,
        DriftTest::Hellinger,
        DriftTest::Psi,
        DriftTest::Wasserstein,
    ] {
        let mut options = with_test(test);
        if test.is_numeric_only() {
            options.columns = Some(["bell".to_owned()].into());
        }
        let sketched = drift_of(&reference, &current, &options);
        let exact = exact_drift(
            std::slice::from_ref(&reference),
            std::slice::from_ref(&current),
            &options,
        )
        .unwrap();
        assert_eq!(sketched.drifted_share, Some(1.0), "{test}: {sketched:?}");
        for (a, b) in sketched.columns.iter().zip(&exact.columns) {
            assert_eq!((a.test, a.drifted), (b.test, b.drifted), "{test}");
            let (a_value, b_value) = (a.value.unwrap(), b.value.unwrap());
            // Text is compared by value on both ways; numbers over deciles here, over equal widths there.
            let allowed = if a.column == "name" && test != DriftTest::Psi {
                1e-9
            } else {
                0.1 * b_value
            };
            assert!(
                (a_value - b_value).abs() <= allowed,
                "{test} {}: {a_value} {b_value}",
                a.column
            );
        }
    }
}

#[test]
fn unchanged_windows_of_any_size_raise_no_alarm() {
    let columns = |rows: usize, seed: u64| {
        let mut random = Lcg(seed ^ 0xabc);
        let heavy = (0..rows).map(|_| (2.0 * random.bell()).exp());
        let heavy: ArrayRef = Arc::new(Float64Array::from_iter_values(heavy.collect::<Vec<_>>()));
        batch([
            ("bell", floats(rows, seed, 0.0)),
            ("heavy", heavy),
            ("many", texts(rows, seed + 1, 100.0)),
            ("flag", column("flag", rows, seed + 2, false)),
        ])
    };
    let reference = columns(20_000, 1);
    let distances = [DriftTest::Auto, DriftTest::Psi, DriftTest::Hellinger, DriftTest::Linf];
    let mut judged = 0;
    let mut alarms = 0;
    for (round, rows) in [1, 30, 99, 100, 150, 300, 1_000, 5_000]
        .into_iter()
        .cycle()
        .take(80)
        .enumerate()
    {
        let current = columns(rows, 1_000 + 10 * round as u64);
        for test in distances {
            let drift = drift_of(&reference, &current, &with_test(test));
            assert_eq!(drift.tested == 0, drift.drifted_share.is_none());
            if rows < 100 {
                let few = |column: &modelyard_stats::ColumnDrift| column.outcome == Outcome::TooFewRows;
                assert!(drift.columns.iter().all(few));
            }
            judged += drift.tested;
            alarms += drift.drifted;
        }
    }
    assert!(judged > 600, "{judged}");
    assert!(alarms <= judged / 200, "{alarms} of {judged}");
}

#[test]
fn strong_drift_shows_in_the_smallest_window() {
    let drift = drift_of(
        &batch([("bell", floats(20_000, 1, 0.0)), ("name", texts(20_000, 2, 8.0))]),
        &batch([("bell", floats(100, 3, 1.0)), ("name", texts(100, 4, 40.0))]),
        &DriftOptions::default(),
    );
    assert_eq!((drift.tested, drift.drifted, drift.drifted_share), (2, 2, Some(1.0)));
}

#[test]
fn small_references_are_tested_for_significance() {
    let reference = batch([
        ("bell", floats(800, 1, 0.0)),
        ("flag", column("flag", 800, 2, false)),
        ("name", texts(800, 3, 8.0)),
    ]);
    let same = batch([
        ("bell", floats(700, 4, 0.0)),
        ("flag", column("flag", 700, 5, false)),
        ("name", texts(700, 6, 8.0)),
    ]);
    let moved = batch([
        ("bell", floats(700, 4, 0.3)),
        (
            "flag",
            Arc::new(Int64Array::from_iter_values((0..700).map(|i| i % 2))) as ArrayRef,
        ),
        ("name", texts(700, 6, 14.0)),
    ]);
    let options = DriftOptions::default();
    let (same, moved) = (
        drift_of(&reference, &same, &options),
        drift_of(&reference, &moved, &options),
    );
    let tests: Vec<DriftTest> = same.columns.iter().map(|column| column.test).collect();
    assert_eq!(tests, [DriftTest::Ks, DriftTest::Z, DriftTest::ChiSquare]);
    assert_eq!((same.drifted_share, moved.drifted_share), (Some(0.0), Some(1.0)));
    // Up to 1,024 values the sketch holds all of them: the p-value is that of the raw columns.
    let exact = exact_drift(
        &[batch([("bell", floats(800, 1, 0.0))])],
        &[batch([("bell", floats(700, 4, 0.3))])],
        &options,
    )
    .unwrap();
    assert_eq!(moved.find_column("bell").unwrap().value, exact.columns[0].value);
}

#[test]
fn columns_without_a_verdict_say_why() {
    let rows = 2_000;
    let ids = |from: usize| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            (from..from + rows).map(|i| format!("id {i}")),
        ))
    };
    let times: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(
        (0..rows as i64).map(|i| i * 1_000),
    ));
    let empty: ArrayRef = Arc::new(Float64Array::from(vec![None::<f64>; rows]));
    let reference = batch([
        ("gone", floats(rows, 1, 0.0)),
        ("id", ids(0)),
        ("time", times.clone()),
        ("kind", floats(rows, 2, 0.0)),
        ("empty", floats(rows, 3, 0.0)),
        ("kept", floats(rows, 4, 0.0)),
    ]);
    let current = batch([
        ("id", ids(500)),
        ("time", times),
        ("kind", texts(rows, 2, 3.0)),
        ("empty", empty),
        ("kept", floats(rows, 5, 0.0)),
        ("new", floats(rows, 6, 0.0)),
    ]);
    let drift = drift_of(&reference, &current, &DriftOptions::default());
    let outcome = |name: &str| drift.find_column(name).unwrap().outcome;
    assert_eq!(outcome("gone"), Outcome::OnlyInReference);
    assert_eq!(outcome("new"), Outcome::OnlyInCurrent);
    assert_eq!(outcome("id"), Outcome::TooManyValues);
    assert_eq!(outcome("time"), Outcome::Timestamp);
    assert_eq!(outcome("kind"), Outcome::KindChanged);
    assert_eq!(outcome("empty"), Outcome::TooFewRows);
    assert_eq!(outcome("kept"), Outcome::Tested);
    assert_eq!((drift.tested, drift.drifted_share), (1, Some(0.0)));
    let empty = drift.find_column("empty").unwrap();
    assert_eq!((empty.missing_change, empty.missing_drifted), (Some(1.0), true));
    assert!(!drift.find_column("kept").unwrap().missing_drifted);
    let exact = exact_drift(&[reference], &[current], &DriftOptions::default()).unwrap();
    let outcomes = |drift: &DatasetDrift| {
        let named = |name: &str| drift.find_column(name).unwrap().outcome;
        ["gone", "new", "time", "kind", "empty", "kept"].map(named)
    };
    assert_eq!(outcomes(&exact), outcomes(&drift));
    let json = serde_json::to_string(&drift).unwrap();
    assert_eq!(serde_json::from_str::<DatasetDrift>(&json).unwrap(), drift);
}

#[test]
fn tests_of_numbers_are_refused_for_text() {
    let batch = batch([("name", texts(2_000, 1, 8.0))]);
    let reference = profile(&batch);
    let error = profile_drift(&reference, &reference, &with_test(DriftTest::Ks)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`ks` is not defined for column `name` of kind text")
    );
}

#[test]
fn windows_counted_over_the_reference_bins_agree_with_their_sketches() {
    let reference = profile(&batch([("x", floats(50_000, 1, 0.0))]));
    let current = batch([("x", floats(20_000, 2, 0.1))]);
    let options = with_test(DriftTest::Psi);
    let value = |window: &Profile| {
        profile_drift(&reference, window, &options).unwrap().columns[0]
            .value
            .unwrap()
    };
    let (counted, sketched) = (value(&window(&current, &reference)), value(&profile(&current)));
    assert!((counted - sketched).abs() < 0.01, "{counted} {sketched}");
    assert!(counted > 0.0);
}
