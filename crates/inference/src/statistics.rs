//! What a predictor counted, for the metrics of its user.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Totals since the predictor started. Durations are sums over requests, except those of the parts of a run, which are
/// sums over runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
}

macro_rules! counters {
    ($($name:ident),* ; $($duration:ident),*) => {
        /// The running totals behind [`Statistics`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub $name: Counter,)*
            $(pub $duration: Counter,)*
        }

        impl Counters {
            /// The totals now. Each is exact; they are not read at one instant.
            pub(crate) fn snapshot(&self) -> Statistics {
                Statistics {
                    $($name: self.$name.get(),)*
                    $($duration: Duration::from_nanos(self.$duration.get()),)*
                }
            }
        }
    };
}

counters!(succeeded, failed, rejected, expired, cancelled, rows, executions; queue_time, input_time, infer_time, output_time);

/// A total that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn add_time(&self, time: Duration) {
        // 584 years of nanoseconds fit.
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
