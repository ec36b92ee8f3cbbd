//! Trained models against ONNX Runtime: what the graph answers is what the trainer predicts.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array, StringArray,
    UInt16Array, UInt32Array,
};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type, Schema, UInt16Type};
use arrow::record_batch::RecordBatch;
use modelyard_trainer::{
    Calibration, Encoding, Error, FeatureKind, Labels, Phase, Predictions, Progress, Task, TrainConfig, TrainedModel,
    largest_difference, split_by_time, train,
};
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensor, Tensor, TensorElementType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

/// What the graph may differ from the trainer.
const MAX_DIFFERENCE: f64 = 1e-5;

// --- running the graph

fn runtime() -> &'static Environment {
    static RUNTIME: OnceLock<Environment> = OnceLock::new();
    RUNTIME.get_or_init(|| ort::init_from(library()).unwrap().build().unwrap())
}

/// `ORT_DYLIB_PATH`, or the library that set-up leaves in the target folder.
fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let executable = std::env::current_exe().unwrap();
    executable
        .ancestors()
        .filter_map(|folder| std::fs::read_dir(folder.join("onnxruntime")).ok())
        .flat_map(|entries| entries.map(|entry| entry.unwrap().path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        })
        .expect("ONNX Runtime's library is in the target folder: run `cargo xtask setup`")
}

fn session(model: &TrainedModel) -> Session {
    let mut builder = Session::builder(runtime()).unwrap().with_intra_threads(1).unwrap();
    builder.commit_from_memory(model.onnx()).unwrap()
}

/// The columns as the graph takes them: a missing string is empty, a missing number NaN.
fn inputs(model: &TrainedModel, data: &RecordBatch) -> Vec<(String, SessionInputValue<'static>)> {
    model
        .inputs()
        .iter()
        .map(|feature| {
            let array = data.column_by_name(&feature.name).unwrap();
            let shape = [array.len(), 1];
            let floats = |values: Vec<f32>| Tensor::from_array((shape, values)).unwrap().upcast();
            let tensor: DynTensor = match feature.kind {
                FeatureKind::Text => {
                    let texts: Vec<String> = texts(array)
                        .iter()
                        .map(|text| text.unwrap_or_default().to_owned())
                        .collect();
                    Tensor::from_string_array((shape, texts.as_slice())).unwrap().upcast()
                }
                FeatureKind::Float64 => {
                    let column = array.as_primitive::<Float64Type>();
                    let values: Vec<f64> = column.iter().map(|value| value.unwrap_or(f64::NAN)).collect();
                    Tensor::from_array((shape, values)).unwrap().upcast()
                }
                FeatureKind::Float32 => {
                    let column = array.as_primitive::<Float32Type>();
                    floats(column.iter().map(|value| value.unwrap_or(f32::NAN)).collect())
                }
                FeatureKind::Bool => {
                    let values: Vec<bool> = array.as_boolean().iter().map(Option::unwrap).collect();
                    Tensor::from_array((shape, values)).unwrap().upcast()
                }
                FeatureKind::Int8 => integers(array.as_primitive::<Int8Type>().values().to_vec()),
                FeatureKind::Int32 => integers(array.as_primitive::<Int32Type>().values().to_vec()),
                FeatureKind::Int64 => integers(array.as_primitive::<Int64Type>().values().to_vec()),
                FeatureKind::UInt16 => integers(array.as_primitive::<UInt16Type>().values().to_vec()),
                other => panic!("no test has {other:?}"),
            };
            (feature.name.clone(), tensor.into())
        })
        .collect()
}

fn integers<T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    values: Vec<T>,
) -> DynTensor {
    Tensor::from_array(([values.len(), 1], values)).unwrap().upcast()
}

fn serve(session: &mut Session, model: &TrainedModel, data: &RecordBatch) -> Predictions {
    let outputs = session.run(inputs(model, data)).unwrap();
    let rows = data.num_rows() as i64;
    let Some(classes) = model.classes() else {
        let (shape, numbers) = outputs["prediction"].try_extract_tensor::<f32>().unwrap();
        assert_eq!(shape[..], [rows, 1]);
        return Predictions::Numbers(numbers.to_vec());
    };
    let (shape, probabilities) = outputs["probabilities"].try_extract_tensor::<f32>().unwrap();
    assert_eq!(shape[..], [rows, classes.len() as i64]);
    let label = &outputs["label"];
    assert_eq!(label.shape()[..], [rows]);
    let labels = match classes {
        Labels::Bool(_) => Labels::Bool(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Int32(_) => Labels::Int32(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Int64(_) => Labels::Int64(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Float32(_) => Labels::Float32(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Float64(_) => Labels::Float64(label.try_extract_tensor().unwrap().1.to_vec()),
        Labels::Text(_) => Labels::Text(label.try_extract_strings().unwrap().1),
    };
    Predictions::Classes {
        labels,
        probabilities: probabilities.to_vec(),
    }
}

fn assert_same(model: &TrainedModel, data: &RecordBatch) {
    let expected = model.predict(data).unwrap();
    let served = serve(&mut session(model), model, data);
    let difference = largest_difference(&expected, &served).unwrap();
    assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
}

// --- data

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn texts(array: &ArrayRef) -> StringArray {
    cast(array, &DataType::Utf8).unwrap().as_string::<i32>().clone()
}

fn pick(data: &RecordBatch, rows: impl Iterator<Item = u32>) -> RecordBatch {
    take_record_batch(data, &UInt32Array::from(rows.collect::<Vec<u32>>())).unwrap()
}

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn config(target: &str) -> TrainConfig {
    TrainConfig {
        target: target.to_owned(),
        trees: 20,
        max_depth: 4,
        ..TrainConfig::default()
    }
}

/// A small deterministic source of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn unit(&mut self) -> f64 {
        self.next() as f64 / f64::from(1_u32 << 31)
    }
}

/// Rows with every kind of feature; `target` is made from them with some noise. `gaps`: share of missing values.
/// Integers and booleans have none, since serving knows none.
struct Made {
    rows: usize,
    seed: u64,
    gaps: f64,
    /// Categories of the string column; more than in training are unseen.
    categories: u64,
    task: Task,
}

impl Made {
    fn batch(&self) -> RecordBatch {
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

fn made(task: Task, rows: usize, seed: u64) -> RecordBatch {
    Made {
        rows,
        seed,
        gaps: 0.1,
        categories: 12,
        task,
    }
    .batch()
}

fn flights(months: &[&str]) -> RecordBatch {
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

fn flight_config() -> TrainConfig {
    TrainConfig {
        target: "late".to_owned(),
        time_column: Some("time_hour".to_owned()),
        exclude: vec!["flight".to_owned()],
        ..TrainConfig::default()
    }
}

/// Share of pairs of a positive and a negative row that are in order, ties counting half.
fn auc(predictions: &Predictions, data: &RecordBatch) -> f64 {
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
    for tied in rows.chunk_by(|a, b| a.0 == b.0) {
        let hits = tied.iter().filter(|row| row.1).count() as f64;
        let misses = tied.len() as f64 - hits;
        area += hits * (below + misses / 2.0);
        below += misses;
        positives += hits;
    }
    area / (positives * below)
}

// --- the main example

#[test]
fn flights_of_january_and_february_predict_march() {
    let data = flights(&["2013-01", "2013-02"]);
    let model = train(&data, &flight_config(), &quiet).unwrap();
    assert_eq!(model.task(), Task::Binary);
    assert_eq!(model.calibration(), Calibration::Isotonic);
    assert_eq!(model.train_rows(), data.num_rows());
    assert_eq!(model.inputs().len(), 12);
    let march = flights(&["2013-03"]);
    let predictions = model.predict(&march).unwrap();
    let served = serve(&mut session(&model), &model, &march);
    let difference = largest_difference(&predictions, &served).unwrap();
    assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
    let area = auc(&served, &march);
    println!("AUC in March {area:.4}, validation {:?}", model.validation_metrics());
    assert!(area >= 0.70, "AUC in March is {area}");
    assert!(model.importance()[0].1 > 0.05 && model.importance().len() == 12);
    // Enough rows for work to be split: the number of threads must not change a sum.
    let alone = TrainConfig {
        threads: Some(1),
        ..flight_config()
    };
    assert_eq!(train(&data, &alone, &quiet).unwrap().onnx(), model.onnx());
}

// --- by property

fn any_encoding() -> impl Strategy<Value = Option<Encoding>> {
    prop_oneof![
        Just(None),
        Just(Some(Encoding::Ordinal)),
        (0.0_f64..50.0).prop_map(|smoothing| Some(Encoding::TargetMean { smoothing })),
    ]
}

fn any_calibration() -> impl Strategy<Value = Option<Calibration>> {
    prop_oneof![
        Just(None),
        Just(Some(Calibration::None)),
        Just(Some(Calibration::Platt)),
        Just(Some(Calibration::Isotonic)),
    ]
}

fn any_task() -> impl Strategy<Value = Task> {
    prop_oneof![Just(Task::Binary), Just(Task::Multiclass), Just(Task::Regression)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_graph_predicts_as_the_trainer(
        task in any_task(),
        encoding in any_encoding(),
        calibration in any_calibration(),
        rows in 200_usize..900,
        seed in any::<u64>(),
        gaps in prop_oneof![Just(0.0), 0.0_f64..0.6],
        trees in 1_u32..40,
        max_depth in 1_u32..7,
        timed in any::<bool>(),
        early_stopping_rounds in prop_oneof![Just(None), Just(Some(3))],
    ) {
        let data = Made { rows, seed, gaps, categories: 9, task }.batch();
        let config = TrainConfig {
            target: "target".to_owned(),
            task,
            time_column: timed.then(|| "day".to_owned()),
            exclude: vec!["day".to_owned()],
            trees,
            max_depth,
            learning_rate: 0.3,
            validation_share: 0.3,
            early_stopping_rounds,
            encoding,
            calibration,
            seed,
            ..TrainConfig::default()
        };
        let model = train(&data, &config, &quiet).unwrap();
        let new = Made { rows: 300, seed: !seed, gaps, categories: 14, task }.batch();
        for data in [&data, &new] {
            let expected = model.predict(data).unwrap();
            let served = serve(&mut session(&model), &model, data);
            let difference = largest_difference(&expected, &served).unwrap();
            prop_assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
        }
    }
}

// --- the graph's face

#[test]
fn inputs_have_the_types_of_the_columns_and_outputs_that_of_the_target() {
    let data = made(Task::Binary, 300, 1);
    let model = train(
        &data,
        &TrainConfig {
            exclude: vec!["day".to_owned()],
            ..config("target")
        },
        &quiet,
    )
    .unwrap();
    let session = session(&model);
    let found: Vec<(&str, TensorElementType)> = session
        .inputs()
        .iter()
        .map(|input| (input.name(), input.dtype().tensor_type().unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("double", TensorElementType::Float64),
            ("single", TensorElementType::Float32),
            ("huge", TensorElementType::Float64),
            ("byte", TensorElementType::Int8),
            ("short", TensorElementType::Uint16),
            ("int", TensorElementType::Int32),
            ("long", TensorElementType::Int64),
            ("flag", TensorElementType::Bool),
            ("text", TensorElementType::String),
        ]
    );
    for input in session.inputs() {
        assert_eq!(input.dtype().tensor_shape().unwrap()[..], [-1, 1]);
    }
    let outputs: Vec<(&str, TensorElementType)> = session
        .outputs()
        .iter()
        .map(|output| (output.name(), output.dtype().tensor_type().unwrap()))
        .collect();
    assert_eq!(
        outputs,
        [
            ("label", TensorElementType::String),
            ("probabilities", TensorElementType::Float32)
        ]
    );
    assert_eq!(
        model.outputs().iter().map(|output| output.name()).collect::<Vec<_>>(),
        ["label", "probabilities"]
    );
    let metadata = session.metadata().unwrap();
    assert_eq!(metadata.custom("target").as_deref(), Some("target"));
    assert_eq!(metadata.custom("task").as_deref(), Some("\"binary\""));
    assert_eq!(
        metadata.custom("classes").as_deref(),
        Some(r#"{"type":"text","values":["no","yes"]}"#)
    );
    assert_eq!(metadata.producer().as_deref(), Some("modelyard-trainer"));
}

#[test]
fn every_label_type_is_served_in_kind() {
    let data = made(Task::Regression, 200, 5);
    let signal = data
        .column_by_name("target")
        .unwrap()
        .as_primitive::<Float64Type>()
        .clone();
    let high: Vec<bool> = signal.values().iter().map(|value| *value > 0.4).collect();
    let targets: Vec<(ArrayRef, Labels)> = vec![
        (
            Arc::new(BooleanArray::from(high.clone())),
            Labels::Bool(vec![false, true]),
        ),
        (
            Arc::new(
                high.iter()
                    .map(|high| if *high { 7_i32 } else { -7 })
                    .collect::<Int32Array>(),
            ),
            Labels::Int32(vec![-7, 7]),
        ),
        (
            Arc::new(high.iter().map(|high| i64::from(*high) << 40).collect::<Int64Array>()),
            Labels::Int64(vec![0, 1 << 40]),
        ),
        (
            Arc::new(
                high.iter()
                    .map(|high| if *high { 0.5_f32 } else { -0.5 })
                    .collect::<Float32Array>(),
            ),
            Labels::Float32(vec![-0.5, 0.5]),
        ),
        (
            Arc::new(
                high.iter()
                    .map(|high| if *high { 0.1 } else { 0.3 })
                    .collect::<Float64Array>(),
            ),
            Labels::Float64(vec![0.1, 0.3]),
        ),
        (
            Arc::new(
                high.iter()
                    .map(|high| Some(if *high { "ja" } else { "nein" }))
                    .collect::<StringArray>(),
            ),
            Labels::Text(vec!["ja".to_owned(), "nein".to_owned()]),
        ),
    ];
    for (target, classes) in targets {
        let data = batch(vec![
            ("x", data.column_by_name("double").unwrap().clone()),
            ("y", target),
        ]);
        let model = train(&data, &config("y"), &quiet).unwrap();
        assert_eq!(model.classes(), Some(&classes));
        let served = serve(&mut session(&model), &model, &data);
        let Predictions::Classes { labels, .. } = &served else {
            panic!("no classes")
        };
        assert_eq!(labels.len(), 200);
        let difference = largest_difference(&model.predict(&data).unwrap(), &served).unwrap();
        assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
    }
}

#[test]
fn a_row_is_answered_alike_alone_and_in_a_batch() {
    let data = made(Task::Multiclass, 400, 9);
    let model = train(
        &data,
        &TrainConfig {
            exclude: vec!["day".to_owned()],
            trees: 120,
            ..config("target")
        },
        &quiet,
    )
    .unwrap();
    let mut session = session(&model);
    let Predictions::Classes { probabilities, .. } = serve(&mut session, &model, &data) else {
        panic!("no classes")
    };
    let classes = model.classes().unwrap().len();
    for row in [0_u32, 1, 17, 399] {
        let Predictions::Classes {
            probabilities: alone, ..
        } = serve(&mut session, &model, &pick(&data, std::iter::once(row)))
        else {
            panic!("no classes")
        };
        for (a, b) in alone.iter().zip(&probabilities[row as usize * classes..]) {
            assert!((a - b).abs() <= 1e-6, "{a} {b}");
        }
    }
    let none = serve(&mut session, &model, &pick(&data, std::iter::empty()));
    assert_eq!(none.rows(), 0);
    assert_eq!(model.predict(&pick(&data, std::iter::empty())).unwrap().rows(), 0);
}

#[test]
fn odd_columns_and_names_do_no_harm() {
    let rows = 120;
    let target: ArrayRef = Arc::new((0..rows).map(|row| i64::from(row % 3 == 0)).collect::<Int64Array>());
    let data = batch(vec![
        (
            "model/0/Cast",
            Arc::new((0..rows).map(|row| f64::from(row % 3)).collect::<Float64Array>()) as ArrayRef,
        ),
        ("constant", Arc::new(Float64Array::from(vec![3.5; rows as usize]))),
        (
            "all missing",
            Arc::new(Float64Array::from(vec![None::<f64>; rows as usize])),
        ),
        (
            "no text",
            Arc::new(StringArray::from(vec![None::<&str>; rows as usize])),
        ),
        ("one text", Arc::new(StringArray::from(vec!["ü"; rows as usize]))),
        ("y", target),
    ]);
    for encoding in [Encoding::Ordinal, Encoding::TargetMean { smoothing: 1.0 }] {
        let model = train(
            &data,
            &TrainConfig {
                encoding: Some(encoding),
                ..config("y")
            },
            &quiet,
        )
        .unwrap();
        assert_eq!(model.importance()[0], ("model/0/Cast".to_owned(), 1.0));
        assert_same(&model, &data);
    }
    // Nothing to split: the model is the base rate.
    let flat = TrainConfig {
        features: Some(vec!["constant".to_owned(), "no text".to_owned()]),
        ..config("y")
    };
    let model = train(&data, &flat, &quiet).unwrap();
    assert_same(&model, &data);
    assert!(model.importance().iter().all(|(_, share)| *share == 0.0));
}

#[test]
fn infinite_values_go_where_the_largest_ones_go() {
    let rows = 200;
    let wide = |row: i32| match row % 4 {
        0 => f64::INFINITY,
        1 => f64::NEG_INFINITY,
        2 => f64::NAN,
        _ => f64::from(row),
    };
    let data = batch(vec![
        ("x", Arc::new((0..rows).map(wide).collect::<Float64Array>()) as ArrayRef),
        (
            "y",
            Arc::new((0..rows).map(|row| f64::from(row % 4)).collect::<Float64Array>()),
        ),
    ]);
    let regression = TrainConfig {
        task: Task::Regression,
        learning_rate: 0.5,
        ..config("y")
    };
    let model = train(&data, &regression, &quiet).unwrap();
    assert_same(&model, &data);
    let Predictions::Numbers(numbers) = model.predict(&data).unwrap() else {
        panic!("no numbers")
    };
    for row in 0..4 {
        assert!(
            (f64::from(numbers[row]) - row as f64).abs() < 0.05,
            "{} at {row}",
            numbers[row]
        );
    }
}

// --- determinism

#[test]
fn the_same_data_and_config_give_the_same_bytes() {
    for task in [Task::Binary, Task::Multiclass, Task::Regression] {
        let data = made(task, 500, 3);
        let config = TrainConfig {
            task,
            time_column: Some("day".to_owned()),
            ..config("target")
        };
        let bytes = |data: &RecordBatch, threads| {
            let config = TrainConfig {
                threads: Some(threads),
                ..config.clone()
            };
            train(data, &config, &quiet).unwrap().onnx().to_vec()
        };
        let first = bytes(&data, 1);
        assert_eq!(first, bytes(&data, 4), "another number of threads");
        // 211 is coprime to 500: all rows in another order.
        let shuffled = pick(&data, (0..500).map(|row| row * 211 % 500));
        assert_eq!(first, bytes(&shuffled, 2), "another order of rows");
        let seeded = |seed| {
            let config = TrainConfig {
                seed,
                time_column: None,
                exclude: vec!["day".to_owned()],
                encoding: Some(Encoding::TargetMean { smoothing: 5.0 }),
                ..config.clone()
            };
            train(&data, &config, &quiet).unwrap().onnx().to_vec()
        };
        assert_eq!(seeded(1), seeded(1), "the same seed");
        assert_ne!(seeded(1), seeded(2), "another seed");
    }
}

// --- quality

#[test]
fn early_stopping_finds_that_noise_has_nothing_to_learn() {
    let mut random = Random(11);
    let x: Float64Array = (0..600).map(|_| random.unit()).collect();
    let y: Int64Array = (0..600).map(|_| random.below(2) as i64).collect();
    let data = batch(vec![("x", Arc::new(x) as ArrayRef), ("y", Arc::new(y))]);
    let stopping = TrainConfig {
        trees: 300,
        early_stopping_rounds: Some(5),
        validation_share: 0.3,
        ..config("y")
    };
    let model = train(&data, &stopping, &quiet).unwrap();
    assert!(model.best_iteration() < 60, "{} rounds", model.best_iteration());
    assert_eq!(model.trees(), model.best_iteration());
    assert_eq!(model.validation_rows(), 180);
}

#[test]
fn models_learn_what_is_there() {
    let metric = |model: &TrainedModel, name: &str| {
        model
            .validation_metrics()
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| *value)
            .unwrap()
    };
    let train_on = |task, encoding| {
        let data = made(task, 3_000, 21);
        let config = TrainConfig {
            task,
            encoding,
            trees: 80,
            exclude: vec!["day".to_owned()],
            ..config("target")
        };
        train(&data, &config, &quiet).unwrap()
    };
    for encoding in [None, Some(Encoding::Ordinal)] {
        assert!(metric(&train_on(Task::Binary, encoding), "auc") > 0.9);
        assert!(metric(&train_on(Task::Multiclass, encoding), "accuracy") > 0.6);
        assert!(metric(&train_on(Task::Regression, encoding), "r2") > 0.8);
    }
}

// --- progress

#[test]
fn progress_is_told_and_a_run_can_be_cancelled() {
    let data = made(Task::Binary, 300, 2);
    let config = TrainConfig {
        time_column: Some("day".to_owned()),
        ..config("target")
    };
    let told = RefCell::new(Vec::new());
    let listen = |progress: Progress| {
        assert!(progress.done <= progress.total);
        told.borrow_mut().push(progress);
        ControlFlow::Continue(())
    };
    train(&data, &config, &listen).unwrap();
    let told = told.into_inner();
    let mut phases: Vec<Phase> = told.iter().map(|progress| progress.phase).collect();
    phases.dedup();
    let expected = [
        Phase::Reading,
        Phase::Encoding,
        Phase::Boosting,
        Phase::Calibrating,
        Phase::Encoding,
        Phase::Refitting,
        Phase::Exporting,
    ];
    assert_eq!(phases, expected);
    let rounds: Vec<&Progress> = told
        .iter()
        .filter(|progress| progress.phase == Phase::Boosting && progress.done > 0)
        .collect();
    assert_eq!(rounds.len(), 20);
    assert!(rounds.iter().all(|progress| {
        progress
            .metric
            .is_some_and(|(name, value)| name == "log_loss" && value > 0.0)
    }));
    assert!(told.windows(2).all(|pair| pair[0].elapsed <= pair[1].elapsed));

    let stop = |progress: Progress| {
        if progress.phase == Phase::Boosting && progress.done == 3 {
            ControlFlow::Break(())
        } else {
            assert!(progress.done <= 3, "went on after the wish to stop");
            ControlFlow::Continue(())
        }
    };
    assert!(matches!(train(&data, &config, &stop), Err(Error::Cancelled)));
}

// --- refusals

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let data = made(Task::Binary, 100, 4);
    let refused = |data: &RecordBatch, config: TrainConfig, message: &str| {
        let error = train(data, &config, &quiet).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused(
        &data,
        config("lat"),
        "unknown column `lat` as target: the dataset has columns `double`, `single`, `huge`, `byte`",
    );
    refused(
        &data,
        config("target"),
        "column `day` has type Date32, which is neither number, boolean nor string",
    );
    let timeless = TrainConfig {
        time_column: Some("when".to_owned()),
        ..config("target")
    };
    refused(&data, timeless, "unknown column `when` as the time column");
    let timed = TrainConfig {
        time_column: Some("text".to_owned()),
        exclude: vec!["day".to_owned()],
        ..config("target")
    };
    refused(&data, timed, "column `text` is");
    let timed = TrainConfig {
        time_column: Some("day".to_owned()),
        ..config("target")
    };
    refused(
        &pick(&data, 0..10),
        timed.clone(),
        "the dataset has 10 rows: training needs at least 20",
    );
    refused(
        &pick(&data, std::iter::empty()),
        timed.clone(),
        "the dataset has 0 rows",
    );
    let same_time = pick(&data, std::iter::repeat_n(0, 30).chain(std::iter::repeat_n(1, 30)));
    let two_classes = {
        let labels: ArrayRef = Arc::new((0..60).map(|row| i64::from(row % 2)).collect::<Int64Array>());
        let mut columns = same_time.columns().to_vec();
        let last = columns.len() - 1;
        columns[last] = labels;
        let names = same_time.schema();
        let names: Vec<String> = names.fields().iter().map(|field| field.name().clone()).collect();
        RecordBatch::try_from_iter_with_nullable(
            names.into_iter().zip(columns).map(|(name, array)| (name, array, true)),
        )
        .unwrap()
    };
    refused(&two_classes, timed.clone(), "`validation_share` finds no last slice");
    let renamed = {
        let fields: Vec<_> = data
            .schema()
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                "double" => field.as_ref().clone().with_name("label"),
                _ => field.as_ref().clone(),
            })
            .collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), data.columns().to_vec()).unwrap()
    };
    refused(
        &renamed,
        timed.clone(),
        "column `label` is a feature with the name of a model's output",
    );
    let everything = data
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect::<Vec<_>>();
    let nothing = TrainConfig {
        exclude: everything.into_iter().filter(|name| name != "target").collect(),
        ..config("target")
    };
    refused(&data, nothing, "leaves no column to learn from");
}

#[test]
fn predicting_needs_the_columns_of_training() {
    let data = made(Task::Regression, 100, 6);
    let model = train(
        &data,
        &TrainConfig {
            exclude: vec!["day".to_owned()],
            ..config("target")
        },
        &quiet,
    )
    .unwrap();
    let without = data.project(&[0, 1]).unwrap();
    let error = model.predict(&without).unwrap_err().to_string();
    assert!(error.contains("unknown column `huge` as a feature"), "{error}");
}

#[test]
fn flights_are_split_by_time() {
    let (before, slice) = split_by_time(&flights(&["2013-01"]), "time_hour", Duration::from_secs(7 * 86_400)).unwrap();
    let time = |data: &RecordBatch, row| texts(data.column_by_name("time_hour").unwrap()).value(row).to_owned();
    assert!(time(&before, before.num_rows() - 1) < time(&slice, 0));
    assert!(time(&slice, 0).starts_with("2013-01-25"), "{}", time(&slice, 0));
}
