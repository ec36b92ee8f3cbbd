//! How requests wait and are merged.

use std::time::{Duration, Instant};

use crate::{
    error::{Error, Result},
    ragged::RaggedAxis,
    tensor::MAX_ELEMENTS,
};

/// The most rows, requests or elements that any option may ask for.
const MAX_OPTION: usize = 1 << 30;

/// The longest that a request may be held back for others to join it.
const MAX_QUEUE_DELAY: Duration = Duration::from_secs(10);

/// How a predictor queues and merges.
#[derive(Debug, Clone, PartialEq)]
pub struct BatcherOptions {
    /// The most rows in one merged run. A single request may have more and runs alone.
    pub max_batch_rows: usize,
    /// The most elements, over all inputs, in one merged run.
    pub max_batch_elements: usize,
    /// The most requests that wait.
    pub max_queued_requests: usize,
    /// The most elements, over all inputs, that wait.
    pub max_queued_elements: usize,
    /// How long a worker holds a batch that is not full for more to come. Zero, the default, adds no delay: batches
    /// grow by themselves while workers are busy.
    pub max_queue_delay: Duration,
    /// A request that would wait longer than this is refused at once, by what the runs before it took.
    pub max_queue_time: Duration,
    /// Axes along which requests may differ and be merged all the same.
    pub ragged: Vec<RaggedAxis>,
}

/// How urgent a request is. More urgent ones go first; within a priority callers take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Before all others.
    High,
    /// What is not said to be another.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

/// On what terms a request waits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
    /// How urgent it is.
    pub priority: Priority,
    /// Who asks: requests with the same number are one caller's.
    pub caller: u64,
}

impl Default for BatcherOptions {
    fn default() -> Self {
        Self {
            max_batch_rows: 64,
            max_batch_elements: 1 << 22,
            max_queued_requests: 1024,
            max_queued_elements: 1 << 26,
            max_queue_delay: Duration::ZERO,
            max_queue_time: Duration::from_secs(30),
            ragged: Vec::new(),
        }
    }
}

impl BatcherOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// `InvalidOptions` naming the first one out of range.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("max_batch_rows", self.max_batch_rows, MAX_OPTION),
            // A merged input is one tensor, so it is bound by a tensor's limit.
            ("max_batch_elements", self.max_batch_elements, MAX_ELEMENTS),
            ("max_queued_requests", self.max_queued_requests, MAX_OPTION),
            ("max_queued_elements", self.max_queued_elements, MAX_OPTION),
        ];
        for (what, value, most) in counts {
            if !(1..=most).contains(&value) {
                return Err(Error::InvalidOptions {
                    detail: format!("{what} is {value}: choose 1 to {most}"),
                });
            }
        }
        if self.max_queue_delay > MAX_QUEUE_DELAY {
            return Err(Error::InvalidOptions {
                detail: format!(
                    "max_queue_delay is {:?}: choose at most {MAX_QUEUE_DELAY:?}",
                    self.max_queue_delay
                ),
            });
        }
        Ok(())
    }
}
