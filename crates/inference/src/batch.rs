//! Requests that wait, and those that run together.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{
    batcher::Prediction,
    error::Result,
    model::ModelFacts,
    options::{BatcherOptions, Terms},
    ragged::Ragged,
    tensor::Tensor,
};

/// A filled up batch has at most so many elements for each two of its requests' own.
const MAX_FILLED_FOR_TWO: usize = 3;

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Job {
    /// Arranged by the signature.
    pub inputs: Vec<Tensor>,
    /// Its rows, where the model's requests can be merged.
    pub rows: Option<usize>,
    /// Its length along the ragged axes.
    pub length: Option<usize>,
    pub elements: usize,
    pub terms: Terms,
    pub enqueued: Instant,
    pub reply: oneshot::Sender<Result<Prediction>>,
}

impl Job {
    /// How much work it is: its rows, or itself.
    pub fn work(&self) -> usize {
        self.rows.unwrap_or(1).max(1)
    }

    fn row_elements(&self) -> usize {
        self.elements.div_ceil(self.work())
    }
}

/// Requests that run together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub jobs: Vec<Job>,
    pub rows: usize,
    /// The elements of the largest row.
    row_elements: usize,
    /// The longest request, and all lengths together, each as often as it has rows.
    longest: usize,
    lengths: usize,
}

impl Batch {
    pub fn of(job: Job) -> Self {
        let mut batch = Self {
            jobs: Vec::with_capacity(1),
            rows: 0,
            row_elements: 0,
            longest: 0,
            lengths: 0,
        };
        batch.add(job);
        batch
    }

    pub fn add(&mut self, job: Job) {
        self.rows = self.rows.saturating_add(job.work());
        self.row_elements = self.row_elements.max(job.row_elements());
        let length = job.length.unwrap_or(0);
        self.longest = self.longest.max(length);
        self.lengths = self.lengths.saturating_add(length.saturating_mul(job.work()));
        self.jobs.push(job);
    }

    /// Whether one more request can run with these, as so many rows at most.
    pub fn takes(
        &self,
        job: &Job,
        most_rows: usize,
        facts: &ModelFacts,
        options: &BatcherOptions,
        ragged: &Ragged,
    ) -> bool {
        let (Some(first), Some(own_rows)) = (self.jobs.first(), job.rows) else {
            return false;
        };
        let rows = self.rows.saturating_add(own_rows);
        let elements = rows.saturating_mul(self.row_elements.max(job.row_elements()));
        if own_rows == 0 || rows > most_rows || elements > options.max_batch_elements {
            return false;
        }
        if facts.rows_are_fixed || have_same_rows(first, job) {
            return true;
        }
        let (Some(_), Some(length)) = (first.length, job.length) else {
            return false;
        };
        let filled = rows.saturating_mul(self.longest.max(length));
        let own = self.lengths.saturating_add(length.saturating_mul(own_rows));
        filled.saturating_mul(2) <= own.saturating_mul(MAX_FILLED_FOR_TWO)
            && ragged.are_alike(&first.inputs, &job.inputs)
    }

    /// Until when the batch may be held: its oldest request's delay, cut short by the nearest deadline.
    pub fn hold_until(&self, delay: Duration) -> Option<Instant> {
        let oldest = self.jobs.iter().map(|job| job.enqueued).min()?;
        self.jobs
            .iter()
            .filter_map(|job| job.terms.deadline)
            .chain([oldest + delay])
            .min()
    }
}

fn have_same_rows(one: &Job, other: &Job) -> bool {
    one.inputs
        .iter()
        .zip(&other.inputs)
        .all(|(one, other)| one.shape().get(1..) == other.shape().get(1..))
}
