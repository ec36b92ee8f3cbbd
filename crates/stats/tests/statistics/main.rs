//! Profiles and drift through the public interface.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use modelyard_stats::{DriftOptions, DriftTest, Profile, ProfileOptions};

mod exact;
mod profiles;
mod windows;

/// The generator of the expected numbers: 31 random bits as a fraction, exact in every language.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1_u32 << 31)
    }

    fn bell(&mut self) -> f64 {
        self.next() + self.next() + self.next() + self.next() - 2.0
    }
}

fn floats(rows: usize, seed: u64, shift: f64) -> ArrayRef {
    let mut random = Lcg(seed);
    Arc::new(Float64Array::from_iter_values((0..rows).map(|_| random.bell() + shift)))
}

fn texts(rows: usize, seed: u64, spread: f64) -> ArrayRef {
    let mut random = Lcg(seed);
    let name = |_| format!("c{}", (random.next() * random.next() * spread) as u32);
    Arc::new(StringArray::from_iter_values((0..rows).map(name)))
}

/// One column of the comparison with Evidently, before or after the shift.
fn column(name: &str, rows: usize, seed: u64, shifted: bool) -> ArrayRef {
    let mut random = Lcg(seed);
    let pick = |before: f64, after: f64| if shifted { after } else { before };
    let mut whole = |make: &mut dyn FnMut(&mut Lcg) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..rows).map(|_| make(&mut random))))
    };
    match name {
        "bell" => floats(rows, seed, pick(0.0, 0.25)),
        "whole" => whole(&mut |r| (r.next() * r.next() * pick(40.0, 48.0)) as i64),
        "few" => whole(&mut |r| ((r.next() * pick(4.0, 4.25)) as i64).min(4)),
        "flag" => whole(&mut |r| i64::from(r.next() < pick(0.3125, 0.375))),
        _ => texts(rows, seed, pick(8.0, 9.0)),
    }
}

fn batch(columns: impl IntoIterator<Item = (&'static str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn profile(batch: &RecordBatch) -> Profile {
    Profile::of([batch], &ProfileOptions::default()).unwrap()
}

fn with_test(test: DriftTest) -> DriftOptions {
    DriftOptions {
        test,
        ..DriftOptions::default()
    }
}
