//! What a run of a model takes, learned from its runs.

use std::time::Duration;

/// The share that what was known keeps with each new run: the last twenty or so count.
const MEMORY: f64 = 0.95;

/// Below this many runs nothing is said.
const MIN_RUNS: u32 = 8;

/// A line through the recent runs: a time for each run, and a time for each row in it.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    runs: u32,
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
}

impl Cost {
    /// Learns from a run.
    pub(crate) fn observe(&mut self, rows: usize, took: Duration) {
        let (rows, seconds) = (rows.max(1) as f64, took.as_secs_f64());
        self.runs = self.runs.saturating_add(1);
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_squared, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ] {
            *sum = *sum * MEMORY + value;
        }
    }

    /// How long one worker takes for so many rows, at most `max_rows` a run; none as long as too few runs were seen.
    pub(crate) fn estimate(&self, rows: usize, max_rows: usize) -> Option<Duration> {
        if self.runs < MIN_RUNS || rows == 0 {
            return None;
        }
        let (a_run, a_row) = self.line();
        let runs = rows.div_ceil(max_rows.max(1)) as f64;
        Duration::try_from_secs_f64(a_run * runs + a_row * rows as f64).ok()
    }

    /// The least squares of seconds over rows, neither part below zero.
    fn line(&self) -> (f64, f64) {
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let variance = self.rows_squared / self.weight - rows * rows;
        let covariance = self.rows_seconds / self.weight - rows * seconds;
        // Runs of one size say nothing of others: more rows are taken to cost nothing, until some were seen. Nobody is
        // refused on a guess.
        let a_row = if variance > 0.01 * rows * rows {
            (covariance / variance).clamp(0.0, seconds / rows)
        } else {
            0.0
        };
        ((seconds - a_row * rows).max(0.0), a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(runs: &[(usize, u64)]) -> Cost {
        let mut cost = Cost::default();
        for &(rows, micros) in runs {
            cost.observe(rows, Duration::from_micros(micros));
        }
        cost
    }

    fn micros(cost: &Cost, rows: usize, max_rows: usize) -> Option<u128> {
        Some(cost.estimate(rows, max_rows)?.as_micros())
    }

    #[test]
    fn the_line_is_found_in_the_runs() {
        let runs: Vec<(usize, u64)> = (1..=16).map(|rows| (rows, 100 + 10 * rows as u64)).collect();
        let cost = learned(&runs);
        for (rows, max_rows, expected) in [(1, 64, 110), (64, 64, 740), (128, 64, 1480), (65, 64, 850)] {
            let found = micros(&cost, rows, max_rows).unwrap();
            assert!(
                found.abs_diff(expected) <= 2,
                "{rows} rows: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn little_is_said_of_what_was_not_seen() {
        assert_eq!(micros(&learned(&[(1, 100); 7]), 10, 64), None);
        assert_eq!(micros(&learned(&[(1, 100); 8]), 0, 64), None);
        // One size only: a full run is taken to cost as much.
        let found = micros(&learned(&[(1, 100); 8]), 64, 64).unwrap();
        assert!(found.abs_diff(100) <= 1, "{found}");
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut cost = learned(&[(4, 1_000_000); 50]);
        for _ in 0..200 {
            cost.observe(4, Duration::from_micros(100));
        }
        let found = micros(&cost, 4, 4).unwrap();
        assert!(found < 200, "{found}");
    }
}
