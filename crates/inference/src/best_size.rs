//! How many rows a run should have, learned from runs: where a row costs least.

use std::time::Duration;

/// The share that what was known of a size keeps with each new run of it: the last ten or so count.
const MEMORY: f64 = 0.9;

/// Below this many runs of a size nothing is said of it.
const MIN_RUNS: u32 = 5;

/// One in so many runs tries another size of which nothing is known, and one of which something is: models may be slow, and one
/// that is not looked at early costs too much for long.
const TRY_UNKNOWN_EVERY: u32 = 2;
const TRY_KNOWN_EVERY: u32 = 16;

/// How many halvings others are tried away from the size that would be taken: the next one may cost more than either side of it.
const STEPS: [isize; 4] = [1, -1, 2, -2];

/// A size is better than a larger one if a row costs at most this share of what it costs there: what is less is noise.
const BETTER: f64 = 0.98;

/// Below a size in which a row costs more than so many times what it costs at best, nothing is looked for.
const POOR: f64 = 1.2;

/// Sizes are the most rows that a run may have, half of it, and so on, down to one.
const MAX_HALVINGS: usize = 16;

/// The best number of rows in a run of a model. More rows share what a run costs once, but the caches hold fewer of them.
#[derive(Debug, Default)]
pub(crate) struct BestSize {
    /// What is known of each size, the largest first.
    sizes: [Size; MAX_HALVINGS],
    /// The index of the largest one that is worth it.
    best: usize,
    runs: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    runs: u32,
    /// How often it was tried because it was unknown.
    tries: u32,
    seconds_per_row: f64,
}

impl Size {
    /// Whether it is worth trying early. Requests that have more rows each never make a smaller run, however often it is tried.
    const fn is_unknown(&self) -> bool {
        self.runs < MIN_RUNS && self.tries < 2 * MIN_RUNS
    }
}

impl BestSize {
    /// Learns from a run of so many rows.
    pub(crate) fn observe(&mut self, rows: usize, took: Duration, max_rows: usize) {
        let Some(size) = self.sizes.get_mut(index_of(rows, max_rows)) else {
            return;
        };
        let seconds = took.as_secs_f64() / rows.max(1) as f64;
        size.seconds_per_row = if size.runs == 0 {
            seconds
        } else {
            size.seconds_per_row * MEMORY + seconds * (1.0 - MEMORY)
        };
        size.runs = size.runs.saturating_add(1);
        self.choose();
    }

    /// What a row costs in the size where it costs least, of those that are known.
    fn least(&self) -> f64 {
        let known = self.sizes.iter().filter(|size| size.runs >= MIN_RUNS);
        known.map(|size| size.seconds_per_row).fold(f64::INFINITY, f64::min)
    }

    /// Whether a size is so much worse than the best that smaller ones need not be looked at.
    fn is_poor(&self, index: usize) -> bool {
        let size = self.sizes.get(index).filter(|size| size.runs >= MIN_RUNS);
        size.is_some_and(|size| size.seconds_per_row > self.least() * POOR)
    }

    /// The largest size that no smaller one is better than. As long as the largest one that is known is as good as any, there is
    /// no limit to what may turn out to be better.
    fn choose(&mut self) {
        let known = || self.sizes.iter().enumerate().filter(|(_, size)| size.runs >= MIN_RUNS);
        let least = self.least();
        let is_good = |size: &Size| size.seconds_per_row * BETTER < least;
        let largest = known().next().map(|(index, _)| index);
        let best = known().find(|(_, size)| is_good(size)).map(|(index, _)| index);
        self.best = best.filter(|_| best != largest).unwrap_or(0);
    }

    /// The most rows that a run should have now, if so many wait.
    pub(crate) fn next(&mut self, waiting: usize, max_rows: usize) -> usize {
        self.runs = self.runs.wrapping_add(1);
        let tried = self.tried(index_of(waiting, max_rows), index_of(1, max_rows));
        rows_of(tried.unwrap_or(self.best), max_rows)
    }

    /// The size to try now instead of the best, if it is time: one near it, between the largest that what waits fills and the
    /// smallest.
    fn tried(&mut self, largest: usize, smallest: usize) -> Option<usize> {
        let taken = self.best.max(largest);
        let near = |step: isize| {
            let index = taken.checked_add_signed(step);
            index.filter(|index| (largest..=smallest).contains(index))
        };
        let mut unknown = (largest..=smallest).take_while(|&index| index <= taken || !self.is_poor(index - 1));
        if let Some(index) = unknown.find(|&index| self.sizes.get(index).is_some_and(Size::is_unknown)) {
            if !self.runs.is_multiple_of(TRY_UNKNOWN_EVERY) {
                return None;
            }
            self.sizes.get_mut(index)?.tries += 1;
            return Some(index);
        }
        if !self.runs.is_multiple_of(TRY_KNOWN_EVERY) {
            return None;
        }
        let turn = (self.runs / TRY_KNOWN_EVERY) as usize % STEPS.len();
        STEPS.get(turn).copied().and_then(near)
    }

    /// The most rows that are worth it, by what is known.
    pub(crate) fn rows(&self, max_rows: usize) -> usize {
        rows_of(self.best, max_rows)
    }
}

/// The rows of a size.
fn rows_of(index: usize, max_rows: usize) -> usize {
    max_rows.checked_shr(index as u32).unwrap_or(0).max(1)
}

/// The size that a run of so many rows is one of: it has more than half of the size's rows.
fn index_of(rows: usize, max_rows: usize) -> usize {
    let is_it = |index: &usize| rows_of(*index, max_rows) == 1 || rows_of(index + 1, max_rows) < rows;
    (0..MAX_HALVINGS).find(is_it).unwrap_or(MAX_HALVINGS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows that are best after many runs, with so many always waiting, of a model whose run takes so many microseconds.
    fn settled(max_rows: usize, waiting: usize, took: impl Fn(usize) -> f64) -> usize {
        let mut best = BestSize::default();
        for _ in 0..4000 {
            let rows = best.next(waiting, max_rows).min(waiting);
            best.observe(rows, Duration::from_secs_f64(took(rows) / 1e6), max_rows);
        }
        best.rows(max_rows)
    }

    #[test]
    fn the_size_is_found_where_a_row_costs_least() {
        // A run costs something once: the more rows, the better.
        assert_eq!(settled(64, 200, |rows| 100.0 + 10.0 * rows as f64), 64);
        // Beyond sixteen rows the caches are too small.
        let with_caches = |rows: usize| 100.0 + rows as f64 * if rows > 16 { 60.0 } else { 50.0 };
        assert_eq!(settled(64, 200, with_caches), 16);
        assert_eq!(settled(48, 200, with_caches), 12);
        // Each row costs as much wherever it is: nothing is better than what is.
        assert_eq!(settled(64, 200, |rows| 50.0 * rows as f64), 64);
        assert_eq!(settled(1, 200, |rows| 50.0 * rows as f64), 1);
    }

    #[test]
    fn what_changes_is_learned_anew() {
        let mut best = BestSize::default();
        let mut run = |cost: fn(usize) -> f64| {
            for _ in 0..4000 {
                let rows = best.next(1000, 64);
                best.observe(rows, Duration::from_secs_f64(cost(rows) / 1e6), 64);
            }
            best.rows(64)
        };
        assert_eq!(run(|rows| (rows * rows) as f64 + 10.0), 4);
        assert_eq!(run(|rows| 1000.0 + rows as f64), 64);
    }

    #[test]
    fn what_never_waits_is_not_needed_to_know_what_is_better() {
        // As many rows as may run never wait.
        assert_eq!(
            settled(64, 30, |rows| 100.0 + rows as f64 * if rows > 8 { 80.0 } else { 50.0 }),
            8
        );
        // Nothing is said against more than wait.
        assert_eq!(settled(64, 30, |rows| 100.0 + rows as f64), 64);
    }

    #[test]
    fn a_slow_model_is_known_after_few_runs() {
        let mut best = BestSize::default();
        for _ in 0..100 {
            let rows = best.next(40, 64).min(40);
            best.observe(
                rows,
                Duration::from_millis(if rows > 8 { 6 } else { 5 } * rows as u64),
                64,
            );
        }
        assert_eq!(best.rows(64), 8);
    }

    #[test]
    fn requests_of_many_rows_are_not_kept_apart_for_long() {
        let mut best = BestSize::default();
        let mut alone = 0;
        for _ in 0..1000 {
            // Each has forty rows, and one of them at least is run.
            let rows = (best.next(200, 128) / 40).max(1) * 40;
            alone += usize::from(rows == 40);
            best.observe(rows, Duration::from_micros(1000 + rows as u64), 128);
        }
        assert!(alone < 100, "{alone}");
    }

    #[test]
    fn a_run_is_of_the_size_that_it_fills_by_more_than_half() {
        for (rows, index) in [(64, 0), (33, 0), (32, 1), (17, 1), (16, 2), (2, 5), (1, 6), (500, 0)] {
            assert_eq!(index_of(rows, 64), index, "{rows}");
        }
    }
}
