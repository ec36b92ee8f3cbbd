//! What cannot be trained, predicted or split.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use modelyard_trainer::{Task, TrainConfig, split_by_time, train};

use crate::data::{config, flights, made, pick, quiet, texts};

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
        timed,
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
    let (before, slice) = split_by_time(&flights(&["2013-01"]), "time_hour", Duration::from_hours(7 * 24)).unwrap();
    let time = |data: &RecordBatch, row| texts(data.column_by_name("time_hour").unwrap()).value(row).to_owned();
    assert!(time(&before, before.num_rows() - 1) < time(&slice, 0));
    assert!(time(&slice, 0).starts_with("2013-01-25"), "{}", time(&slice, 0));
}
