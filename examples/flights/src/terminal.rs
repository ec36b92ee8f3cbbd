//! The job as a person follows it on standard error.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use modelyard_flights::{MonthRow, Progress};

use crate::complain;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// One line that moves, and above it what is done. Where standard error is no terminal, only what is done.
pub struct Terminal {
    bar: ProgressBar,
    step: Mutex<Option<(String, Instant)>>,
}

impl Terminal {
    /// Begins to follow.
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            step: Mutex::new(None),
        }
    }

    /// Ends it, leaving what is done on the screen.
    pub fn finish(&self) {
        self.end_step();
        self.bar.finish_and_clear();
    }

    fn line(&self, line: &str) {
        self.bar.suspend(|| complain(line));
    }

    /// Says that the present step is done, when there is one.
    fn end_step(&self) {
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((what, started)) = step {
            self.line(&format!("  done  {what} ({:.1} s)", started.elapsed().as_secs_f64()));
        }
    }

    fn spin(&self, what: &str) {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_prefix(what.to_owned());
        self.bar.set_message("");
    }
}

impl Progress for Terminal {
    fn step(&self, what: &str) {
        self.end_step();
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some((what.to_owned(), Instant::now()));
        self.spin(what);
    }

    fn month_step(&self, month: &str, what: &str) {
        self.end_step();
        self.spin(&format!("{month}: {what}"));
    }

    fn waiting(&self, said: &str) {
        self.bar.set_message(said.to_owned());
    }

    fn requests(&self, done: u64, total: u64, per_second: f64) {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_bar} {pos}/{len} {msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(format!("{per_second:.0}/s"));
    }

    fn month(&self, row: &MonthRow) {
        let outcome = match (&row.alert, row.retrained_to) {
            (None, _) => "no alert".to_owned(),
            (Some(alert), Some(version)) => format!("{alert}: retrained to version {version}"),
            (Some(alert), None) => format!("{alert}: the retrained model is not better"),
        };
        self.line(&format!(
            "  {}  {} predictions by version {}, AUC {:.4}, {outcome}",
            row.month, row.requests, row.version, row.auc
        ));
    }
}
