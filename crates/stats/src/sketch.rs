//! Quantiles of a stream in bounded memory: a KLL sketch (Karnin, Lang, Liberty 2016) of finite `f64`.
//!
//! Values stand in levels; one on level `i` speaks for `2^i` values of the stream. A level that is over its capacity is
//! sorted and every second value moves up, so the total weight always equals the number of values seen. Which half moves
//! is a coin that is drawn from the values themselves: equal streams give equal sketches on every machine.

use serde::{Deserialize, Serialize};

use crate::{
    distinct::mix,
    error::{Error, Result},
};

/// Capacity of the largest level by default. It gives a rank error under 0.9 % (see [`QuantileSketch::rank_error`]) in at
/// most about 1,550 stored values a column.
pub const DEFAULT_SKETCH_SIZE: u32 = 512;
/// Smallest capacity that may be asked for: below it the error bound says nothing.
pub const MIN_SKETCH_SIZE: u32 = 32;
/// Largest capacity that may be asked for; it bounds a column's memory to about 1.3 MiB.
pub const MAX_SKETCH_SIZE: u32 = 32_768;
/// A level shrinks by this factor for every level above it, which bounds the sum over the levels.
const LEVEL_SHRINK: f64 = 2.0 / 3.0;
/// No level is smaller: compacting a handful of values adds error and saves nothing.
const MIN_LEVEL_CAPACITY: usize = 8;
/// More levels cannot occur: weights are `u64`.
const MAX_LEVELS: usize = 60;
/// Constants of the rank error that KLL reaches in 99 of 100 cases over all ranks at once, as measured by Apache
/// DataSketches for the textbook form: `2.296 / size^0.9021`. The large lowest level here makes ours smaller.
const RANK_ERROR_SCALE: f64 = 2.296;
const RANK_ERROR_EXPONENT: f64 = 0.9021;

/// Mergeable sketch of the distribution of finite `f64` values.
///
/// It is exact (every value is kept) up to `2 * size` values. Values that are not finite must not be given to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantileSketch {
    size: u32,
    count: u64,
    compactions: u64,
    levels: Vec<Vec<f64>>,
}

impl QuantileSketch {
    /// An empty sketch whose largest level holds `size` values.
    ///
    /// # Errors
    /// A size outside [`MIN_SKETCH_SIZE`] to [`MAX_SKETCH_SIZE`].
    pub fn new(size: u32) -> Result<Self> {
        if !(MIN_SKETCH_SIZE..=MAX_SKETCH_SIZE).contains(&size) {
            return Err(Error::InvalidOption {
                option: "sketch_size",
                value: size.to_string(),
                must_be: "from 32 to 32768",
            });
        }
        Ok(Self {
            size,
            count: 0,
            compactions: 0,
            levels: vec![Vec::new()],
        })
    }

    /// Number of values seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of values stored.
    pub fn stored(&self) -> usize {
        self.levels.iter().map(Vec::len).sum()
    }

    /// Whether every value seen is still stored.
    pub fn is_exact(&self) -> bool {
        self.levels.len() == 1
    }

    /// Largest difference between a true and an estimated share of values at or below a point, over all points at once,
    /// in at least 99 of 100 streams. 0 while the sketch is exact.
    pub fn rank_error(&self) -> f64 {
        if self.is_exact() {
            0.0
        } else {
            RANK_ERROR_SCALE / f64::from(self.size).powf(RANK_ERROR_EXPONENT)
        }
    }

    /// Adds finite values.
    pub fn extend(&mut self, mut values: &[f64]) {
        let full = self.capacity(0);
        self.count += values.len() as u64;
        while !values.is_empty() {
            let room = full.saturating_sub(self.levels[0].len()).max(1);
            let (now, later) = values.split_at(room.min(values.len()));
            self.levels[0].extend_from_slice(now);
            values = later;
            if !values.is_empty() {
                self.make_room();
            }
        }
        self.make_room();
    }

    /// Adds what `other` saw. The smaller of the two sizes holds afterwards.
    pub fn merge(&mut self, other: &Self) {
        self.size = self.size.min(other.size);
        self.count += other.count;
        self.compactions += other.compactions;
        if self.levels.len() < other.levels.len() {
            self.levels.resize_with(other.levels.len(), Vec::new);
        }
        for (level, values) in self.levels.iter_mut().zip(&other.levels) {
            level.extend_from_slice(values);
        }
        self.make_room();
    }

    /// Shrinks the sketch for storing: an exact one stays as it is, any other gives up its lowest level's buffer.
    pub fn seal(&mut self) {
        if !self.is_exact() && self.levels[0].len() > 1 {
            self.compact(0);
            self.make_room();
        }
        for level in &mut self.levels {
            level.sort_unstable_by(f64::total_cmp);
            level.shrink_to_fit();
        }
    }

    /// The distribution as values in ascending order, each once, with their weights; the weights add up to
    /// [`count`](Self::count).
    pub fn points(&self) -> Vec<(f64, u64)> {
        let mut points: Vec<(f64, u64)> = Vec::with_capacity(self.stored());
        for (level, values) in self.levels.iter().enumerate() {
            points.extend(values.iter().map(|&value| (value, 1_u64 << level)));
        }
        collapse(&mut points);
        points
    }

    /// Whether the stored weights add up: false for a sketch that was damaged in storage.
    pub(crate) fn is_consistent(&self) -> bool {
        let sizes = (MIN_SKETCH_SIZE..=MAX_SKETCH_SIZE).contains(&self.size);
        let levels = (1..=MAX_LEVELS).contains(&self.levels.len());
        sizes
            && levels
            && self.levels.iter().flatten().all(|value| value.is_finite())
            && self.levels.iter().enumerate().try_fold(0_u64, |sum, (level, values)| {
                (values.len() as u64)
                    .checked_mul(1 << level)
                    .and_then(|weight| sum.checked_add(weight))
            }) == Some(self.count)
    }

    fn capacity(&self, level: usize) -> usize {
        let size = self.size as usize;
        if level == 0 {
            // The lowest level sees every value: a large one is sorted less often and loses less.
            return 2 * size;
        }
        let above = (self.levels.len() - 1).saturating_sub(level);
        let shrunk = f64::from(self.size) * LEVEL_SHRINK.powi(above as i32);
        (shrunk.ceil() as usize).max(MIN_LEVEL_CAPACITY)
    }

    fn make_room(&mut self) {
        // A new level on top shrinks the ones below it, hence the search from the bottom until nothing is over.
        while let Some(level) = (0..self.levels.len()).find(|&level| self.levels[level].len() > self.capacity(level)) {
            self.compact(level);
        }
    }

    fn compact(&mut self, level: usize) {
        if level + 1 == self.levels.len() {
            self.levels.push(Vec::new());
        }
        let mut values = std::mem::take(&mut self.levels[level]);
        values.sort_unstable_by(f64::total_cmp);
        // Pairs only, so that the weight is kept; an odd value waits.
        let waiting = if values.len() % 2 == 1 { values.pop() } else { None };
        let seed = values.first().map_or(0, |value| value.to_bits());
        let coin = (mix(seed ^ mix(self.compactions)) & 1) as usize;
        self.compactions += 1;
        self.levels[level + 1].extend(values.iter().skip(coin).step_by(2));
        values.clear();
        values.extend(waiting);
        self.levels[level] = values;
    }
}

/// Sorts weighted values and makes equal ones into one with their common weight.
pub(crate) fn collapse(points: &mut Vec<(f64, u64)>) {
    points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    points.dedup_by(|next, kept| {
        let same = next.0.total_cmp(&kept.0).is_eq();
        if same {
            kept.1 += next.1;
        }
        same
    });
}

/// Smallest value with at least the share `q` (0 to 1) of the weight at or below it; `None` for no points.
/// `points` are sorted by value.
pub fn quantile(points: &[(f64, u64)], q: f64) -> Option<f64> {
    let total: u64 = points.iter().map(|point| point.1).sum();
    let wanted = (q.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    points
        .iter()
        .find(|point| {
            seen += point.1;
            seen >= wanted
        })
        .or(points.last())
        .map(|point| point.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_at_or_below(points: &[(f64, u64)], value: f64) -> f64 {
        let total: u64 = points.iter().map(|point| point.1).sum();
        let below: u64 = points
            .iter()
            .filter(|point| point.0 <= value)
            .map(|point| point.1)
            .sum();
        below as f64 / total as f64
    }

    /// Largest rank error of a sketch of 0..n, fed in an order given by `step` (coprime to n).
    fn worst_error(n: u64, step: u64, parts: usize) -> f64 {
        let values: Vec<f64> = (0..n).map(|i| ((i * step) % n) as f64).collect();
        let mut whole = QuantileSketch::new(DEFAULT_SKETCH_SIZE).unwrap();
        for part in values.chunks(values.len().div_ceil(parts)) {
            let mut sketch = QuantileSketch::new(DEFAULT_SKETCH_SIZE).unwrap();
            sketch.extend(part);
            sketch.seal();
            whole.merge(&sketch);
        }
        assert!(whole.is_consistent());
        assert!(whole.stored() < 5 * DEFAULT_SKETCH_SIZE as usize);
        let points = whole.points();
        (0..100)
            .map(|i| n * i / 100)
            .map(|v| (share_at_or_below(&points, v as f64) - (v + 1) as f64 / n as f64).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn small_streams_are_kept_whole() {
        let mut sketch = QuantileSketch::new(32).unwrap();
        let values: Vec<f64> = (0..64).rev().map(f64::from).collect();
        sketch.extend(&values);
        assert!(sketch.is_exact());
        assert!(sketch.rank_error() < f64::EPSILON);
        assert_eq!(quantile(&sketch.points(), 0.5), Some(31.0));
        sketch.extend(&[100.0]);
        assert!(!sketch.is_exact());
    }

    #[test]
    fn ranks_stay_within_the_named_error_sorted_shuffled_and_merged() {
        let bound = RANK_ERROR_SCALE / f64::from(DEFAULT_SKETCH_SIZE).powf(RANK_ERROR_EXPONENT);
        for (step, parts) in [(1, 1), (99_999, 1), (61_803, 1), (61_803, 40), (1, 40)] {
            let error = worst_error(200_000, step, parts);
            assert!(error < bound, "step {step}, {parts} parts: {error}");
        }
    }

    #[test]
    fn equal_streams_give_equal_sketches() {
        let values: Vec<f64> = (0..50_000).map(|i| f64::from(i * 7919 % 50_021)).collect();
        let sketch = |chunk: usize| {
            let mut sketch = QuantileSketch::new(64).unwrap();
            values.chunks(chunk).for_each(|part| sketch.extend(part));
            sketch
        };
        assert_eq!(sketch(50_000), sketch(50_000));
        assert_eq!(sketch(50_000).points(), sketch(997).points());
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(QuantileSketch::new(8).is_err());
        assert!(QuantileSketch::new(1 << 20).is_err());
    }

    #[test]
    fn quantiles_of_weighted_points() {
        let points = [(1.0, 3), (2.0, 1), (9.0, 6)];
        assert_eq!(quantile(&points, 0.0), Some(1.0));
        assert_eq!(quantile(&points, 0.3), Some(1.0));
        assert_eq!(quantile(&points, 0.4), Some(2.0));
        assert_eq!(quantile(&points, 0.41), Some(9.0));
        assert_eq!(quantile(&points, 1.0), Some(9.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
