//! The graph: its predictions, its inputs and outputs, and its ways with odd data.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::datatypes::Float64Type;
use arrow::record_batch::RecordBatch;
use modelyard_inference::DataType;
use modelyard_trainer::{
    Calibration, Encoding, Labels, Output, Predictions, Task, TrainConfig, largest_difference, train,
};
use proptest::prelude::*;

use crate::data::{Made, batch, config, made, pick, quiet};
use crate::serving::{MAX_DIFFERENCE, assert_same, load, serve};

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
            let served = serve(&load(&model), &model, data);
            let difference = largest_difference(&expected, &served).unwrap();
            prop_assert!(difference.value <= MAX_DIFFERENCE, "{difference}");
        }
    }
}

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
    let loaded = load(&model);
    let signature = loaded.signature();
    let inputs: Vec<(&str, DataType)> = signature
        .inputs
        .iter()
        .map(|spec| (spec.name.as_str(), spec.datatype))
        .collect();
    assert_eq!(
        inputs,
        [
            ("double", DataType::Fp64),
            ("single", DataType::Fp32),
            ("huge", DataType::Fp64),
            ("byte", DataType::Int8),
            ("short", DataType::Uint16),
            ("int", DataType::Int32),
            ("long", DataType::Int64),
            ("flag", DataType::Bool),
            ("text", DataType::Bytes),
        ]
    );
    assert!(signature.inputs.iter().all(|spec| spec.shape == [-1, 1]));
    let outputs: Vec<(&str, DataType)> = signature
        .outputs
        .iter()
        .map(|spec| (spec.name.as_str(), spec.datatype))
        .collect();
    assert_eq!(outputs, [("label", DataType::Bytes), ("probabilities", DataType::Fp32)]);
    let own: Vec<&str> = model.outputs().iter().map(Output::name).collect();
    assert_eq!(own, ["label", "probabilities"]);
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
        let served = serve(&load(&model), &model, &data);
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
    let loaded = load(&model);
    let Predictions::Classes { probabilities, .. } = serve(&loaded, &model, &data) else {
        panic!("no classes")
    };
    let classes = model.classes().unwrap().len();
    for row in [0_u32, 1, 17, 399] {
        let Predictions::Classes {
            probabilities: alone, ..
        } = serve(&loaded, &model, &pick(&data, std::iter::once(row)))
        else {
            panic!("no classes")
        };
        for (a, b) in alone.iter().zip(&probabilities[row as usize * classes..]) {
            assert!((a - b).abs() <= 1e-6, "{a} {b}");
        }
    }
    let none = serve(&loaded, &model, &pick(&data, std::iter::empty()));
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
fn large_numbers_are_predicted_at_their_size() {
    let data = made(Task::Regression, 400, 8);
    let small = data
        .column_by_name("target")
        .unwrap()
        .as_primitive::<Float64Type>()
        .clone();
    let mut columns = data.columns().to_vec();
    *columns.last_mut().unwrap() = Arc::new(
        small
            .iter()
            .map(|value| value.map(|value| value * 1e9 + 1e12))
            .collect::<Float64Array>(),
    );
    let data = RecordBatch::try_new(data.schema(), columns).unwrap();
    let chosen = TrainConfig {
        exclude: vec!["day".to_owned()],
        ..config("target")
    };
    let model = train(&data, &chosen, &quiet).unwrap();
    assert_same(&model, &data);
    let r2 = model
        .validation_metrics()
        .iter()
        .find(|(name, _)| name == "r2")
        .unwrap()
        .1;
    assert!(r2 > 0.5, "r2 is {r2}");
}

#[test]
fn a_class_that_the_last_slice_lacks_is_still_predicted() {
    let rows = 300;
    let target: ArrayRef = Arc::new(
        (0..rows)
            .map(|row| {
                Some(if row < 200 {
                    ["a", "b", "c"][row % 3]
                } else {
                    ["a", "b"][row % 2]
                })
            })
            .collect::<StringArray>(),
    );
    let feature = (0..rows)
        .map(|row| if row < 200 { row % 3 } else { row % 2 } as i64)
        .collect::<Int64Array>();
    let data = batch(vec![("x", Arc::new(feature) as ArrayRef), ("y", target)]);
    for calibration in [None, Some(Calibration::Isotonic), Some(Calibration::Platt)] {
        let chosen = TrainConfig {
            calibration,
            validation_share: 0.3,
            ..config("y")
        };
        let model = train(&data, &chosen, &quiet).unwrap();
        assert_same(&model, &data);
        let Predictions::Classes { labels, .. } = model.predict(&data).unwrap() else {
            panic!("no classes")
        };
        assert_eq!(labels.text(2), "c");
    }
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
    for (row, number) in numbers.iter().take(4).enumerate() {
        assert!((f64::from(*number) - row as f64).abs() < 0.05, "{number} at {row}");
    }
}
