//! What a predictor counted, for the metrics of its user.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::backend::RunTimes;

/// The most different sizes of batches that are told apart; runs of further sizes count in the totals only.
const MAX_BATCH_SIZES: usize = 256;

/// Totals since the predictor started. Durations are sums over requests: a run that several requests were part of counts
/// for each of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests that were answered with outputs.
    pub succeeded: u64,
    /// Requests that were answered with a model's error.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
    /// Requests dropped from the queue because their deadline had passed.
    pub expired: u64,
    /// Requests dropped from the queue because nobody waited for them any more.
    pub cancelled: u64,
    /// Rows in successful runs.
    pub rows: u64,
    /// Successful runs of the model; fewer than requests where they were merged.
    pub executions: u64,
    /// Time that answered requests waited in the queue.
    pub queue_time: Duration,
    /// Time spent merging and handing over inputs.
    pub input_time: Duration,
    /// Time spent in the graph.
    pub infer_time: Duration,
    /// Time spent copying outputs.
    pub output_time: Duration,
    /// Time from the arrival of requests to a model's error.
    pub failed_time: Duration,
    /// Time that workers spent on successful runs, once a run.
    pub busy_time: Duration,
    /// Successful runs by the rows in them, the fewest first.
    pub batches: Vec<BatchStatistics>,
}

/// Totals over the runs with one number of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchStatistics {
    /// The rows.
    pub rows: usize,
    /// The runs.
    pub executions: u64,
    /// Time spent merging and handing over inputs, once a run.
    pub input_time: Duration,
    /// Time spent in the graph, once a run.
    pub infer_time: Duration,
    /// Time spent copying outputs, once a run.
    pub output_time: Duration,
}

macro_rules! counters {
    ($($name:ident),* ; $($duration:ident),*) => {
        /// The running totals behind [`Statistics`].
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(crate) $name: Counter,)*
            $(pub(crate) $duration: Counter,)*
            batches: Mutex<BTreeMap<usize, BatchStatistics>>,
        }

        impl Counters {
            /// The totals now. Each is exact; they are not read at one instant.
            pub fn snapshot(&self) -> Statistics {
                Statistics {
                    $($name: self.$name.get(),)*
                    $($duration: Duration::from_nanos(self.$duration.get()),)*
                    batches: self.batches.lock().values().copied().collect(),
                }
            }
        }
    };
}

counters!(
    succeeded, failed, rejected, expired, cancelled, rows, executions;
    queue_time, input_time, infer_time, output_time, failed_time, busy_time
);

impl Counters {
    /// Time that workers spent on successful runs.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_time.get())
    }

    /// Counts a successful run of so many requests and rows.
    pub(crate) fn ran(&self, requests: usize, rows: usize, times: RunTimes) {
        let requests = requests as u64;
        self.succeeded.add(requests);
        self.rows.add(rows as u64);
        self.executions.add(1);
        self.busy_time.add_time(times.total());
        self.input_time.add(nanos(times.input).saturating_mul(requests));
        self.infer_time.add(nanos(times.infer).saturating_mul(requests));
        self.output_time.add(nanos(times.output).saturating_mul(requests));
        let mut batches = self.batches.lock();
        if batches.len() >= MAX_BATCH_SIZES && !batches.contains_key(&rows) {
            return;
        }
        let batch = batches.entry(rows).or_insert_with(|| BatchStatistics {
            rows,
            ..BatchStatistics::default()
        });
        batch.executions += 1;
        batch.input_time += times.input;
        batch.infer_time += times.infer;
        batch.output_time += times.output;
    }
}

fn nanos(time: Duration) -> u64 {
    // 584 years of nanoseconds fit.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A total that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn add_time(&self, time: Duration) {
        self.add(nanos(time));
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_their_run_each_and_batches_once() {
        let counters = Counters::default();
        let micros = Duration::from_micros;
        let times = RunTimes {
            input: micros(1),
            infer: micros(10),
            output: micros(2),
        };
        counters.ran(3, 4, times);
        counters.ran(1, 4, times);
        counters.ran(1, 1, times);
        let counted = counters.snapshot();
        assert_eq!((counted.succeeded, counted.rows, counted.executions), (5, 9, 3));
        assert_eq!(
            (counted.input_time, counted.infer_time, counted.output_time),
            (micros(5), micros(50), micros(10))
        );
        let of_batch = |batch: &BatchStatistics| (batch.rows, batch.executions, batch.infer_time);
        let batches: Vec<_> = counted.batches.iter().map(of_batch).collect();
        assert_eq!(batches, [(1, 1, micros(10)), (4, 2, micros(20))]);
        for rows in 0..2 * MAX_BATCH_SIZES {
            counters.ran(1, rows, times);
        }
        assert_eq!(counters.snapshot().batches.len(), MAX_BATCH_SIZES);
    }
}
