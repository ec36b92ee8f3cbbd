//! Training: its quality, its determinism and its progress.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use arrow::record_batch::RecordBatch;
use modelyard_trainer::{
    Calibration, Encoding, Error, Phase, Progress, Task, TrainConfig, TrainedModel, largest_difference, train,
};

use crate::data::{Random, auc, batch, config, flight_config, flights, made, pick, quiet};
use crate::serving::{MAX_DIFFERENCE, load, serve};

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
    let served = serve(&load(&model), &model, &march);
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
