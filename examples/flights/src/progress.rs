//! What a person, or nobody, is told while the job runs.

use crate::report::MonthRow;

/// Follows the job.
pub trait Progress: Send + Sync {
    /// A new part of the job begins.
    fn step(&self, what: &str);
    /// A new part of a month begins.
    fn month_step(&self, month: &str, what: &str);
    /// What the present part waits for, in the server's words.
    fn waiting(&self, said: &str);
    /// How far the replay of a month is; `per_second` is the rate since the month began.
    fn requests(&self, done: u64, total: u64, per_second: f64);
    /// A month is over.
    fn month(&self, row: &MonthRow);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str) {}
    fn month_step(&self, _: &str, _: &str) {}
    fn waiting(&self, _: &str) {}
    fn requests(&self, _: u64, _: u64, _: f64) {}
    fn month(&self, _: &MonthRow) {}
}
