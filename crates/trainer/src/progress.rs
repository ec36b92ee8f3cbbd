//! What a training run reports while it works.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The part of a training run that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Columns are read and the rows brought into the order of time.
    Reading,
    /// String features become numbers.
    Encoding,
    /// Boosting on the rows before the last time slice.
    Boosting,
    /// Calibrators are fitted on the last time slice.
    Calibrating,
    /// Boosting on all rows, with the number of rounds that was best.
    Refitting,
    /// The graph is written.
    Exporting,
}

/// One report of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The part that is under way.
    pub phase: Phase,
    /// Steps of this part that are done.
    pub done: u32,
    /// Steps of this part; early stopping may end a part before.
    pub total: u32,
    /// The measure that early stopping watches, on the last time slice, where there is one: smaller is better.
    pub metric: Option<(&'static str, f64)>,
    /// Time since training began.
    pub elapsed: Duration,
}

/// Hands progress to the caller and turns its wish to stop into an error.
pub(crate) struct Reporter<'a> {
    on_progress: &'a dyn Fn(Progress) -> ControlFlow<()>,
    begin: Instant,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(on_progress: &'a dyn Fn(Progress) -> ControlFlow<()>) -> Self {
        Self {
            on_progress,
            begin: Instant::now(),
        }
    }

    pub(crate) fn report(&self, phase: Phase, done: u32, total: u32) -> Result<()> {
        self.report_metric(phase, done, total, None)
    }

    pub(crate) fn report_metric(
        &self,
        phase: Phase,
        done: u32,
        total: u32,
        metric: Option<(&'static str, f64)>,
    ) -> Result<()> {
        let progress = Progress {
            phase,
            done,
            total,
            metric,
            elapsed: self.begin.elapsed(),
        };
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}
