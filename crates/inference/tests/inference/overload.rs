//! More requests than get done: who goes first, who waits, who is refused, and when workers are added.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use modelyard_inference::{BatcherOptions, Error, Predictor, Priority, Result, Terms};
use modelyard_testkit::wait::until;

use crate::{
    batcher::{BUSY_ROWS, PATIENCE, SLOW, Submitted, join, occupy, predictor, runtime, slow_rows, submit_on, taken},
    graphs,
};

/// The order in which requests on these terms are answered that come while the only worker is busy.
fn order(each: &[Terms]) -> Vec<usize> {
    let options = BatcherOptions {
        max_batch_rows: 1,
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::slow(SLOW), 1, options);
    runtime().block_on(async {
        let busy = occupy(&predictor, 1).await;
        taken(&predictor).await;
        let answered = Mutex::new(Vec::new());
        let mut waiting = Vec::new();
        for (index, terms) in each.iter().enumerate() {
            let submitted = submit_on(&predictor, *terms, slow_rows(1, index as f32)).await;
            let answered = &answered;
            waiting.push(async move {
                submitted.await.unwrap();
                answered.lock().unwrap().push(index);
            });
        }
        // One task polls them all, each woken in the order of the answers.
        let mut waiting: FuturesUnordered<_> = waiting.into_iter().collect();
        while waiting.next().await.is_some() {}
        assert!(join(busy).await.iter().all(Result::is_ok));
        drop(waiting);
        answered.into_inner().unwrap()
    })
}

#[test]
fn urgent_requests_go_first() {
    let of = |priority| Terms {
        priority,
        ..Terms::default()
    };
    let (high, normal, low) = (of(Priority::High), of(Priority::Normal), of(Priority::Low));
    assert_eq!(order(&[low, normal, low, high, normal, high]), [3, 5, 1, 4, 0, 2]);
}

#[test]
fn callers_take_turns_however_many_requests_one_sends() {
    let of = |caller| Terms {
        caller,
        ..Terms::default()
    };
    let (many, few) = (of(1), of(2));
    assert_eq!(order(&[many, many, many, many, few, few]), [0, 4, 1, 5, 2, 3]);
}

#[test]
fn a_full_queue_gives_way_to_whoever_has_least_in_it() {
    let options = BatcherOptions {
        max_batch_rows: 1,
        max_queued_requests: 4,
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::slow(SLOW), 1, options);
    let of = |caller| Terms {
        caller,
        ..Terms::default()
    };
    runtime().block_on(async {
        let busy = occupy(&predictor, 1).await;
        taken(&predictor).await;
        let mut many = Vec::new();
        for value in 0..4_u8 {
            many.push(submit_on(&predictor, of(1), slow_rows(1, f32::from(value))).await);
        }
        let error = predictor.predict_on(of(1), slow_rows(1, 9.0)).await.unwrap_err();
        assert!(matches!(error, Error::QueueFull { .. }), "{error}");
        let few = submit_on(&predictor, of(2), slow_rows(1, 7.0)).await;
        let many = join(many).await;
        assert!(matches!(many[3], Err(Error::QueueFull { .. })), "the last of the many");
        assert!(many[..3].iter().all(Result::is_ok));
        assert!(few.await.is_ok());
        assert!(join(busy).await.iter().all(Result::is_ok));
    });
    assert_eq!(predictor.statistics().rejected, 2);
}

#[test]
fn who_would_wait_too_long_is_told_at_once() {
    let options = BatcherOptions {
        max_queue_time: Duration::from_micros(10),
        ..BatcherOptions::default()
    };
    let predictor = predictor(&graphs::slow(SLOW), 1, options);
    runtime().block_on(async {
        for _ in 0..10 {
            predictor.predict(slow_rows(BUSY_ROWS, 1.0), None).await.unwrap();
        }
        assert_eq!(predictor.expected_wait(), Duration::ZERO);
        // With this one at the worker, the next has nobody before it in the queue, and the one after that has.
        let mut waiting = occupy(&predictor, 1).await;
        taken(&predictor).await;
        let mut refused = None;
        while refused.is_none() {
            match submit_or_refuse(&predictor).await {
                Ok(submitted) => waiting.push(submitted),
                Err(error) => refused = Some(error),
            }
        }
        let Some(Error::Overloaded { expected, allowed }) = refused else {
            panic!("{refused:?}")
        };
        assert!(expected > allowed && allowed == Duration::from_micros(10));
        assert!(waiting.len() <= 3, "{} were let in", waiting.len());
        assert!(join(waiting).await.iter().all(Result::is_ok));
        // With nobody before it, everybody is let in.
        predictor.predict(slow_rows(BUSY_ROWS, 1.0), None).await.unwrap();
    });
    assert_eq!(predictor.statistics().rejected, 1);
}

async fn submit_or_refuse(predictor: &Arc<Predictor>) -> Result<Submitted> {
    let predictor = Arc::clone(predictor);
    let mut submitted: Submitted = Box::pin(async move { predictor.predict(slow_rows(BUSY_ROWS, 0.0), None).await });
    match std::future::poll_fn(|context| Poll::Ready(submitted.as_mut().poll(context))).await {
        Poll::Ready(Err(error)) => Err(error),
        Poll::Ready(Ok(_)) => panic!("the worker is faster than the test takes it for"),
        Poll::Pending => Ok(submitted),
    }
}

#[test]
fn a_run_that_nobody_waits_for_is_ended() {
    // Alone it would take about so many times as long as a request that comes after it.
    const TIMES: usize = 100;
    let predictor = predictor(&graphs::slow(SLOW), 1, BatcherOptions::default());
    let within = |patience| Some(Instant::now() + patience);
    runtime().block_on(async {
        let began = Instant::now();
        predictor.predict(slow_rows(BUSY_ROWS, 1.0), None).await.unwrap();
        let usual = began.elapsed();
        let large = predictor.predict(slow_rows(TIMES * BUSY_ROWS, 1.0), within(usual));
        assert!(matches!(large.await, Err(Error::DeadlineExceeded)));
        let began = Instant::now();
        predictor.predict(slow_rows(BUSY_ROWS, 1.0), None).await.unwrap();
        let waited = began.elapsed();
        assert!(waited < usual * TIMES as u32 / 4, "{waited:?}, and usually {usual:?}");
        // The next one is not ended for it.
        predictor.predict(slow_rows(BUSY_ROWS, 1.0), None).await.unwrap();
    });
}

#[test]
fn workers_are_added_while_there_is_too_much_work() {
    let predictor = predictor(&graphs::slow(SLOW), 2, BatcherOptions::default());
    assert_eq!(predictor.workers(), 1, "more are not wanted yet");
    let before = predictor.memory_bytes();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = predictor.predict_blocking(slow_rows(BUSY_ROWS, 2.0), None).unwrap();
                    assert_eq!(answer.outputs[0].rows(), Some(BUSY_ROWS));
                }
            });
        }
        runtime().block_on(until("there are two workers", PATIENCE, || async {
            (predictor.workers() == 2).then_some(())
        }));
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(predictor.memory_bytes(), 2 * before);
}
