//! Concurrent requests: each gets its own rows, on time, or a clear no.

use std::{
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use modelyard_common::error::{ErrorKind, Fault};
use modelyard_inference::{
    BatcherOptions, Batching, Error, Prediction, Predictor, RaggedAxis, Result, Statistics, Tensor, TensorData, Terms,
};
use proptest::{prelude::*, test_runner::Config};
use tokio::task::JoinSet;

use crate::graphs;
use crate::onnx::element;

/// How long a condition may take to come true, on a machine with other work.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The multiplications of a model that keeps its worker busy for long enough to queue behind it.
pub const SLOW: usize = 200;

/// The rows of a request that keeps a worker busy.
pub const BUSY_ROWS: usize = 512;

pub fn predictor(bytes: &[u8], instances: usize, options: BatcherOptions) -> Arc<Predictor> {
    Arc::new(Predictor::start(graphs::load_with(bytes, instances).unwrap(), options).unwrap())
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap()
}

/// Rows of the slow model's input, each filled with one value.
pub fn slow_rows(rows: usize, value: f32) -> Vec<Tensor> {
    vec![Tensor::from_vec("x", vec![rows as i64, 256], vec![value; rows * 256]).unwrap()]
}

/// A prediction that is in the queue or with a worker: its future was polled once.
pub type Submitted = Pin<Box<dyn Future<Output = Result<Prediction>> + Send>>;

async fn submit(predictor: &Arc<Predictor>, inputs: Vec<Tensor>) -> Submitted {
    submit_on(predictor, Terms::default(), inputs).await
}

pub async fn submit_on(predictor: &Arc<Predictor>, terms: Terms, inputs: Vec<Tensor>) -> Submitted {
    let predictor = Arc::clone(predictor);
    let mut submitted: Submitted = Box::pin(async move { predictor.predict_on(terms, inputs).await });
    let first = std::future::poll_fn(|context| Poll::Ready(submitted.as_mut().poll(context))).await;
    assert!(first.is_pending(), "the worker is faster than the test takes it for");
    submitted
}

/// Keeps the only worker of the slow model busy, one request after the other, for long enough to queue behind them.
pub async fn occupy(predictor: &Arc<Predictor>, requests: usize) -> Vec<Submitted> {
    let mut busy = Vec::new();
    for _ in 0..requests {
        // More rows than a merged run may have: each runs alone.
        busy.push(submit(predictor, slow_rows(BUSY_ROWS, 0.0)).await);
    }
    busy
}

/// Waits until a worker has taken all that waited.
pub async fn taken(predictor: &Predictor) {
    while predictor.queued() > 0 {
        tokio::task::yield_now().await;
    }
}

pub async fn join(submitted: Vec<Submitted>) -> Vec<Result<Prediction>> {
    let mut outcomes = Vec::new();
    for prediction in submitted {
        outcomes.push(prediction.await);
    }
    outcomes
}

fn add_inputs(rows: usize, width: usize, seed: f32) -> Vec<Tensor> {
    let shape = vec![rows as i64, width as i64];
    let a: Vec<f32> = (0..rows * width).map(|index| seed + index as f32).collect();
    let who = (0..rows).map(|row| format!("{seed}/{row}")).collect();
    vec![
        Tensor::from_vec("a", shape.clone(), a).unwrap(),
        Tensor::from_vec("b", shape, vec![seed; rows * width]).unwrap(),
        Tensor::from_strings("who", vec![rows as i64], who).unwrap(),
    ]
}

/// The widths of [`graphs::add`]'s rows may differ.
fn widths() -> Vec<RaggedAxis> {
    let axis = |tensor: &str| RaggedAxis {
        tensor: tensor.to_owned(),
        axis: 1,
        fill: 0.0,
    };
    vec![axis("a"), axis("b"), axis("sum")]
}

/// `most`: the most rows that are merged.
fn check_add(prediction: &Prediction, rows: usize, width: usize, seed: f32, most: usize) {
    let sums: Vec<f32> = (0..rows * width).map(|index| seed + index as f32 + seed).collect();
    let names: Vec<String> = (0..rows).map(|row| format!("{seed}/{row}")).collect();
    assert_eq!(prediction.outputs[0].shape(), [rows as i64, width as i64]);
    assert_eq!(*prediction.outputs[0].data(), TensorData::Fp32(sums));
    assert_eq!(prediction.outputs[1].strings().unwrap(), names);
    assert!(prediction.batch_rows >= rows);
    assert!(
        prediction.batch_rows <= most.max(rows),
        "{} of {most} rows",
        prediction.batch_rows
    );
}

proptest! {
    #![proptest_config(Config { cases: 24, ..Config::default() })]
    /// Whatever the sizes, widths and limits, every caller gets exactly its own rows.
    #[test]
    fn every_caller_gets_its_own_rows(
        requests in prop::collection::vec((0_usize..5, 1_usize..4), 1..40),
        max_batch_rows in 1_usize..20,
        workers in 1_usize..3,
        delay_ms in 0_u64..3,
        raw: bool,
        ragged: bool,
    ) {
        let options = BatcherOptions {
            max_batch_rows,
            max_queue_delay: Duration::from_millis(delay_ms),
            ragged: if ragged { widths() } else { Vec::new() },
            ..BatcherOptions::default()
        };
        let predictor = predictor(&graphs::add(), workers, options);
        runtime().block_on(async {
            let mut tasks = JoinSet::new();
            for (index, (rows, width)) in requests.iter().copied().enumerate() {
                let predictor = Arc::clone(&predictor);
                tasks.spawn(async move {
                    let seed = index as f32 * 100.0;
                    let mut inputs = add_inputs(rows, width, seed);
                    if raw {
                        inputs = inputs.into_iter().map(as_raw).collect();
                    }
                    let prediction = predictor.predict(inputs, None).await.unwrap();
                    check_add(&prediction, rows, width, seed, max_batch_rows);
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
        let counted = predictor.statistics();
        prop_assert_eq!(counted.succeeded, requests.len() as u64);
        prop_assert_eq!(counted.rows, requests.iter().map(|(rows, _)| *rows as u64).sum::<u64>());
        prop_assert_eq!(counted.failed, 0);
    }
}

/// The tensor as received bytes, at an odd address.
fn as_raw(tensor: Tensor) -> Tensor {
    let (name, datatype, shape) = (tensor.name().to_owned(), tensor.datatype(), tensor.shape().to_vec());
    let mut padded = vec![0];
    padded.extend_from_slice(&tensor.into_raw().unwrap());
    Tensor::from_raw(name, datatype, shape, bytes::Bytes::from(padded).slice(1..)).unwrap()
}

#[test]
fn what_waits_is_merged_and_each_gets_its_own() {
    let predictor = predictor(&graphs::slow(SLOW), 1, BatcherOptions::default());
    runtime().block_on(async {
        let busy = occupy(&predictor, 2).await;
        let mut own = JoinSet::new();
        for caller in 1..=16_u8 {
            let predictor = Arc::clone(&predictor);
            own.spawn(async move {
                let value = f32::from(caller);
                let prediction = predictor.predict(slow_rows(1, value), None).await.unwrap();
                assert_eq!(*prediction.outputs[0].data(), TensorData::Fp32(vec![value; 256]));
                prediction.batch_rows
            });
        }
        let mut largest = 0;
        while let Some(rows) = own.join_next().await {
            largest = largest.max(rows.unwrap());
        }
        assert!(largest > 1, "nothing was merged");
        assert!(join(busy).await.iter().all(Result::is_ok));
    });
    let counted = predictor.statistics();
    assert_eq!((counted.succeeded, counted.rows), (18, 2 * BUSY_ROWS as u64 + 16));
    assert!(counted.executions < counted.succeeded);
    assert!(counted.infer_time > Duration::ZERO && counted.queue_time > Duration::ZERO);
}

#[test]
fn requests_of_unlike_lengths_are_merged_where_that_is_declared() {
    let options = |ragged| BatcherOptions {
        // A held batch merges all of these, for sure.
        max_batch_rows: 12,
        max_queue_delay: Duration::from_secs(5),
        ragged,
        ..BatcherOptions::default()
    };
    let lengths = [4, 6, 5, 4, 6, 5];
    let ask = |predictor: &Arc<Predictor>, lengths: &[usize]| {
        runtime().block_on(async {
            let each = lengths.iter().enumerate().map(|(caller, &length)| async move {
                let inputs = add_inputs(2, length, caller as f32);
                let prediction = predictor.predict(inputs, None).await.unwrap();
                check_add(&prediction, 2, length, caller as f32, 12);
                prediction.batch_rows
            });
            futures::future::join_all(each).await
        })
    };
    let merged = predictor(&graphs::add(), 1, options(widths()));
    assert_eq!(ask(&merged, &lengths), [12; 6]);
    assert_eq!(merged.statistics().executions, 1);
    // One that is so much longer that the others would be mostly filling runs alone, in the delay's time.
    let hasty = BatcherOptions {
        max_queue_delay: Duration::from_millis(50),
        ..options(widths())
    };
    let apart = predictor(&graphs::add(), 1, hasty);
    assert_eq!(ask(&apart, &[1, 100]), [2, 2]);
    let error = Predictor::start(
        graphs::load(&graphs::add()).unwrap(),
        options(vec![RaggedAxis {
            tensor: "who".to_owned(),
            axis: 1,
            fill: 0.0,
        }]),
    );
    assert!(error.unwrap_err().to_string().contains("axis 1 of `who`"));
}

#[test]
fn a_poison_request_hurts_only_itself() {
    // A held batch merges all of these, for sure.
    let options = BatcherOptions {
        max_batch_rows: 21,
        max_queue_delay: Duration::from_secs(5),
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::lookup(), 1, options);
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for caller in 0..21_i64 {
            let predictor = Arc::clone(&predictor);
            let index = if caller % 10 == 7 { 99 } else { caller % 3 };
            tasks.spawn(async move {
                let input = Tensor::from_vec("index", vec![1], vec![index]).unwrap();
                (index, predictor.predict(vec![input], None).await)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (index, outcome) = done.unwrap();
            if index == 99 {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::RunFailed { .. }), "{error}");
                assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            } else {
                let expected = vec![index as f32, index as f32 + 0.5];
                assert_eq!(*outcome.unwrap().outputs[0].data(), TensorData::Fp32(expected));
            }
        }
    });
    let counted = predictor.statistics();
    assert_eq!((counted.succeeded, counted.failed), (19, 2));
}

#[test]
fn a_full_queue_refuses_at_once() {
    let options = BatcherOptions {
        max_queued_requests: 2,
        max_batch_rows: 1,
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::slow(SLOW), 1, options);
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for value in 0..30_u8 {
            let predictor = Arc::clone(&predictor);
            tasks.spawn(async move { predictor.predict(slow_rows(16, f32::from(value)), None).await });
        }
        let (mut answered, mut refused) = (0, 0);
        while let Some(done) = tasks.join_next().await {
            match done.unwrap() {
                Ok(_) => answered += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
                    assert!(error.to_string().contains("2 requests"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(answered >= 2 && refused > 0, "{answered} answered, {refused} refused");
        assert_eq!(predictor.statistics().rejected, refused);
        // Room again: the next one is taken.
        predictor.predict(slow_rows(1, 1.0), None).await.unwrap();
    });
}

#[test]
fn elements_fill_the_queue_too_but_never_lock_out_a_large_request() {
    let options = BatcherOptions {
        max_queued_elements: 100,
        max_batch_rows: 1,
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::slow(SLOW), 1, options);
    runtime().block_on(async {
        // 256 elements are above the limit, and an idle model takes them all the same.
        predictor.predict(slow_rows(1, 1.0), None).await.unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..30 {
            let predictor = Arc::clone(&predictor);
            tasks.spawn(async move { predictor.predict(slow_rows(16, 1.0), None).await });
        }
        let outcomes = tasks.join_all().await;
        assert!(outcomes.iter().any(Result::is_ok));
        let refused: Vec<&Error> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(!refused.is_empty());
        assert!(refused.iter().all(|error| error.to_string().contains("100 elements")));
    });
}

#[test]
fn a_deadline_is_kept_and_costs_no_run() {
    let predictor = predictor(&graphs::slow(SLOW), 1, BatcherOptions::default());
    runtime().block_on(async {
        let past = Instant::now();
        let error = predictor.predict(slow_rows(1, 1.0), Some(past)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let busy = occupy(&predictor, 4).await;
        let soon = Instant::now() + Duration::from_millis(1);
        let outcome = predictor.predict(slow_rows(1, 1.0), Some(soon)).await;
        assert!(predictor.statistics().succeeded < 4, "the caller waited for the others");
        assert!(matches!(outcome, Err(Error::DeadlineExceeded)), "{outcome:?}");
        assert!(join(busy).await.iter().all(Result::is_ok));
        // Time enough is enough.
        let later = Instant::now() + PATIENCE;
        predictor.predict(slow_rows(1, 1.0), Some(later)).await.unwrap();
    });
    let counted = predictor.statistics();
    assert_eq!((counted.expired, counted.succeeded), (2, 5));
    assert_eq!(counted.rows, 4 * BUSY_ROWS as u64 + 1);
}

#[test]
fn a_caller_that_goes_away_costs_no_run() {
    let predictor = predictor(&graphs::slow(SLOW), 1, BatcherOptions::default());
    runtime().block_on(async {
        let busy = occupy(&predictor, 3).await;
        let leaver = submit(&predictor, slow_rows(7, 1.0)).await;
        drop(leaver);
        assert!(join(busy).await.iter().all(Result::is_ok));
        // Behind the one that left, so it was passed over by now.
        predictor.predict(slow_rows(1, 1.0), None).await.unwrap();
    });
    let counted = predictor.statistics();
    assert_eq!((counted.cancelled, counted.succeeded), (1, 4));
    assert_eq!(counted.rows, 3 * BUSY_ROWS as u64 + 1);
}

#[test]
fn closing_answers_what_waits_and_refuses_the_rest() {
    let predictor = predictor(&graphs::slow(SLOW), 1, BatcherOptions::default());
    runtime().block_on(async {
        let waiting = occupy(&predictor, 5).await;
        predictor.close();
        let error = predictor.predict(slow_rows(1, 1.0), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        predictor.drained().await;
        assert_eq!(predictor.queued(), 0);
        assert!(join(waiting).await.iter().all(Result::is_ok));
    });
    predictor.drained_blocking();
    assert_eq!(predictor.statistics().succeeded, 5);
}

#[test]
fn models_whose_rows_do_not_stay_apart_run_one_by_one() {
    let options = BatcherOptions {
        max_queue_delay: Duration::from_millis(50),
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::total(), 1, options);
    assert!(matches!(predictor.batching(), Batching::Never(_)));
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for caller in 0..20_u8 {
            let predictor = Arc::clone(&predictor);
            tasks.spawn(async move {
                let value = f32::from(caller);
                let input = Tensor::from_vec("x", vec![2, 2], vec![value; 4]).unwrap();
                let prediction = predictor.predict(vec![input], None).await.unwrap();
                assert_eq!(*prediction.outputs[0].data(), TensorData::Fp32(vec![4.0 * value]));
                assert_eq!(prediction.batch_rows, 2);
            });
        }
        tasks.join_all().await;
    });
    let Statistics {
        succeeded, executions, ..
    } = predictor.statistics();
    assert_eq!((succeeded, executions), (20, 20));
}

#[test]
fn blocking_callers_are_served_from_any_thread() {
    let predictor = predictor(&graphs::identity(element::INT32, &[-1]), 2, BatcherOptions::default());
    let ask = |value: i32| {
        let input = Tensor::from_vec("x", vec![1], vec![value]).unwrap();
        predictor
            .predict_blocking(vec![input], Some(Instant::now() + PATIENCE))
            .unwrap()
    };
    std::thread::scope(|scope| {
        for caller in 0..4 {
            scope.spawn(move || {
                for step in 0..100 {
                    let value = caller * 1000 + step;
                    assert_eq!(*ask(value).outputs[0].data(), TensorData::Int32(vec![value]));
                }
            });
        }
    });
    // Within a runtime as well, where tokio's own blocking calls would panic.
    runtime().block_on(async { assert_eq!(*ask(-1).outputs[0].data(), TensorData::Int32(vec![-1])) });
    let slow = super::batcher::predictor(&graphs::slow(2000), 1, BatcherOptions::default());
    let soon = Instant::now() + Duration::from_millis(1);
    let error = slow.predict_blocking(slow_rows(256, 1.0), Some(soon)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

async fn ask(predictor: Arc<Predictor>, value: i32) -> Prediction {
    let input = Tensor::from_vec("x", vec![1], vec![value]).unwrap();
    let prediction = predictor.predict(vec![input], None).await.unwrap();
    assert_eq!(*prediction.outputs[0].data(), TensorData::Int32(vec![value]));
    prediction
}

/// Asks until it is known how little the model takes.
async fn get_known(predictor: &Arc<Predictor>) -> u64 {
    const ENOUGH: u64 = 16;
    for _ in 0..ENOUGH {
        ask(Arc::clone(predictor), -1).await;
    }
    ENOUGH
}

#[test]
fn what_takes_next_to_nothing_is_done_by_those_who_ask() {
    const CALLERS: i32 = 8;
    const STEPS: i32 = 500;
    let predictor = predictor(&graphs::identity(element::INT32, &[-1]), 2, BatcherOptions::default());
    let before = runtime().block_on(async {
        let before = get_known(&predictor).await;
        let mut tasks = JoinSet::new();
        for caller in 0..CALLERS {
            let predictor = Arc::clone(&predictor);
            tasks.spawn(async move {
                for step in 0..STEPS {
                    ask(Arc::clone(&predictor), caller * STEPS + step).await;
                }
            });
        }
        tasks.join_all().await;
        before
    });
    let counted = predictor.statistics();
    let all = before + (CALLERS * STEPS) as u64;
    assert_eq!((counted.succeeded, counted.rows), (all, all));
    assert!(
        counted.executions < all,
        "what comes together is run together: {counted:?}"
    );
    predictor.close();
    predictor.drained_blocking();
    let input = Tensor::from_vec("x", vec![1], vec![1]).unwrap();
    let closed = runtime().block_on(predictor.predict(vec![input], None));
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
}

#[test]
fn nobody_waits_for_one_who_leads_and_is_gone() {
    const ROUNDS: i32 = 200;
    let predictor = predictor(&graphs::identity(element::INT32, &[-1]), 1, BatcherOptions::default());
    runtime().block_on(async {
        get_known(&predictor).await;
        for round in 0..ROUNDS {
            // The first to ask leads, the second too where the first was alone; whoever leads goes away before it has run anything.
            let gone: JoinSet<()> = (0..2)
                .map(|_| {
                    let predictor = Arc::clone(&predictor);
                    async move {
                        let input = Tensor::from_vec("x", vec![1], vec![-1]).unwrap();
                        let _ = tokio::time::timeout(Duration::ZERO, predictor.predict(vec![input], None)).await;
                    }
                })
                .collect();
            let input = Tensor::from_vec("x", vec![1], vec![round]).unwrap();
            let answer = tokio::time::timeout(PATIENCE, predictor.predict(vec![input], None)).await;
            assert!(matches!(answer, Ok(Ok(_))), "round {round}: {answer:?}");
            gone.join_all().await;
        }
    });
}

#[test]
fn what_becomes_too_much_for_those_who_ask_is_left_to_a_worker() {
    const CALLERS: usize = 64;
    const STEPS: usize = 40;
    // A row takes about as long as may be run by those who ask; sixty-four rows take much longer.
    let predictor = predictor(&graphs::slow(1), 1, BatcherOptions::default());
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..CALLERS {
            let predictor = Arc::clone(&predictor);
            tasks.spawn(async move {
                for _ in 0..STEPS {
                    predictor.predict(slow_rows(1, 1.0), None).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
    assert_eq!(predictor.statistics().succeeded, (CALLERS * STEPS) as u64);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    for (options, name) in [
        (
            BatcherOptions {
                max_batch_rows: 0,
                ..BatcherOptions::default()
            },
            "max_batch_rows is 0",
        ),
        (
            BatcherOptions {
                max_queue_delay: Duration::from_hours(1),
                ..BatcherOptions::default()
            },
            "max_queue_delay",
        ),
    ] {
        let error = Predictor::start(graphs::load(&graphs::add()).unwrap(), options).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}
