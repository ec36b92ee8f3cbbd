//! Data to train on: made up, and the flights.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array, StringArray,
    UInt16Array, UInt32Array,
};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use modelyard_trainer::{Predictions, Progress, Task, TrainConfig};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

pub(crate) fn texts(array: &ArrayRef) -> StringArray {
    cast(array, &DataType::Utf8).unwrap().as_string::<i32>().clone()
}

pub(crate) fn pick(data: &RecordBatch, rows: impl Iterator<Item = u32>) -> RecordBatch {
    take_record_batch(data, &UInt32Array::from(rows.collect::<Vec<u32>>())).unwrap()
}

pub(crate) fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn config(target: &str) -> TrainConfig {
    TrainConfig {
        target: target.to_owned(),
        trees: 20,
        max_depth: 4,
        ..TrainConfig::default()
    }
}

/// A small deterministic source of numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn unit(&mut self) -> f64 {
        self.next() as f64 / f64::from(1_u32 << 31)
    }
}

/// Rows with every kind of feature; `target` is made from them with some noise. `gaps`: share of missing values.
/// Integers and booleans have none, since serving knows none.
pub(crate) struct Made {
    pub(crate) rows: usize,
    pub(crate) seed: u64,
    pub(crate) gaps: f64,
    /// Categories of the string column; more than in training are unseen.
    pub(crate) categories: u64,
    pub(crate) task: Task,
}

impl Made {
    pub(crate) fn batch(&self) -> RecordBatch {
        let mut random = Random(self.seed);
        let gap = |value: f64, random: &mut Random| (random.unit() >= self.gaps).then_some(value);
        let mut columns: [Vec<Option<f64>>; 3] = Default::default();
        let (mut bytes, mut shorts, mut ints, mut longs, mut flags) = (vec![], vec![], vec![], vec![], vec![]);
        let (mut texts, mut signal, mut days) = (vec![], vec![], vec![]);
        for row in 0..self.rows {
            let double = random.unit() * 4.0 - 2.0;
            let single = random.unit() * 1e-3;
            let huge = [1e300, -1e300, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1.0][random.below(6) as usize];
            let long = random.next() as i64 * 1_000_003 - (1 << 50);
            let category = random.below(self.categories);
            let flag = random.below(2) == 1;
            let effect = (category as f64 * 0.7).sin();
            signal.push(double + effect + f64::from(u8::from(flag)) + random.unit() * 0.5);
            columns[0].push(gap(double, &mut random));
            columns[1].push(gap(single, &mut random));
            columns[2].push(gap(huge, &mut random));
            bytes.push((random.below(200) as i64 - 100) as i8);
            shorts.push(random.below(60_000) as u16);
            ints.push(random.below(7) as i32 - 3);
            longs.push(long);
            flags.push(flag);
            texts.push(match random.below(20) {
                0 => None,
                1 => Some(String::new()),
                _ => Some(format!("Kategorie {category} ✓")),
            });
            days.push((row / 3) as i32);
        }
        let mut made = vec![
            ("double", Arc::new(Float64Array::from(columns[0].clone())) as ArrayRef),
            (
                "single",
                Arc::new(
                    columns[1]
                        .iter()
                        .map(|value| value.map(|value| value as f32))
                        .collect::<Float32Array>(),
                ),
            ),
            ("huge", Arc::new(Float64Array::from(columns[2].clone()))),
            ("byte", Arc::new(Int8Array::from(bytes))),
            ("short", Arc::new(UInt16Array::from(shorts))),
            ("int", Arc::new(Int32Array::from(ints))),
            ("long", Arc::new(Int64Array::from(longs))),
            ("flag", Arc::new(BooleanArray::from(flags))),
            ("text", Arc::new(StringArray::from(texts))),
            ("day", Arc::new(arrow::array::Date32Array::from(days))),
        ];
        made.push(("target", self.target(&signal)));
        batch(made)
    }

    fn target(&self, signal: &[f64]) -> ArrayRef {
        match self.task {
            Task::Regression => Arc::new(Float64Array::from(signal.to_vec())),
            Task::Binary => {
                let labels = signal.iter().map(|signal| if *signal > 0.5 { "yes" } else { "no" });
                Arc::new(StringArray::from_iter_values(labels))
            }
            _ => {
                let labels = signal
                    .iter()
                    .map(|signal| (signal.clamp(-1.0, 2.0) * 1.3).floor() as i64 * 10);
                Arc::new(Int64Array::from_iter_values(labels))
            }
        }
    }
}

pub(crate) fn made(task: Task, rows: usize, seed: u64) -> RecordBatch {
    Made {
        rows,
        seed,
        gaps: 0.1,
        categories: 12,
        task,
    }
    .batch()
}

pub(crate) fn flights(months: &[&str]) -> RecordBatch {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/flights/flights.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap())
        .unwrap()
        .build()
        .unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let all = concat_batches(&batches[0].schema(), &batches).unwrap();
    let times = texts(all.column_by_name("time_hour").unwrap());
    let rows = (0..all.num_rows() as u32).filter(|row| {
        let time = times.value(*row as usize);
        months.iter().any(|month| time.starts_with(month))
    });
    pick(&all, rows)
}

pub(crate) fn flight_config() -> TrainConfig {
    TrainConfig {
        target: "late".to_owned(),
        time_column: Some("time_hour".to_owned()),
        exclude: vec!["flight".to_owned()],
        ..TrainConfig::default()
    }
}

/// Share of pairs of a positive and a negative row that are in order, ties counting half.
pub(crate) fn auc(predictions: &Predictions, data: &RecordBatch) -> f64 {
    let Predictions::Classes { probabilities, .. } = predictions else {
        panic!("no classes")
    };
    let labels = data.column_by_name("late").unwrap().as_primitive::<Int64Type>();
    let mut rows: Vec<(f32, bool)> = probabilities
        .chunks(2)
        .zip(labels.values())
        .map(|(of_row, label)| (of_row[1], *label == 1))
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut area, mut below, mut positives) = (0.0, 0.0, 0.0);
    for tied in rows.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let hits = tied.iter().filter(|row| row.1).count() as f64;
        let misses = tied.len() as f64 - hits;
        area += hits * (below + misses / 2.0);
        below += misses;
        positives += hits;
    }
    area / (positives * below)
}
