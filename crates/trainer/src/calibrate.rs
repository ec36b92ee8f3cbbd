//! Calibration: a monotone map from the score of a class to its log odds, fitted on rows that were not learned from.
//!
//! All calibrators work on log odds and none is steeper than [`MAX_SLOPE`]. So the few last bits in which two float32
//! sums of the same trees differ stay a few last bits in the probability, which a step function would turn into a step.

use crate::config::{Calibration, refuse};
use crate::error::Result;
use crate::metrics::sigmoid;

/// Log odds are kept within plus and minus this: beyond it float32 has no different probabilities.
pub(crate) const LOG_ODDS_LIMIT: f32 = 30.0;
/// Change of log odds per change of the score at most; 1 would be a model that needs no calibration.
const MAX_SLOPE: f64 = 4.0;
/// By default isotonic calibration needs that many rows, and [`MIN_ISOTONIC_CLASS_ROWS`] of each class: it has many
/// degrees of freedom.
const MIN_ISOTONIC_ROWS: usize = 1_000;
const MIN_ISOTONIC_CLASS_ROWS: usize = 100;
/// By default Platt's line needs that many rows of each class.
const MIN_PLATT_CLASS_ROWS: usize = 10;
/// Rows in one block of the isotonic curve at least, where there are as many.
const MIN_BLOCK_ROWS: usize = 50;
/// Blocks of the isotonic curve at most: each costs a few operations per prediction.
const MAX_BLOCKS: usize = 64;
/// How far beyond its outer blocks the curve goes on, so that extreme scores keep their ranking.
const EXTENSION: f64 = 8.0;
/// Newton steps of Platt's line at most; it converges in about ten.
const MAX_NEWTON_STEPS: usize = 100;

/// A monotone map from a score to log odds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Calibrator {
    /// The score is the log odds.
    Identity,
    Line {
        slope: f32,
        offset: f32,
    },
    /// Linear between knots of (score, log odds), both increasing; constant outside. At least two knots.
    Curve(Vec<(f32, f32)>),
}

impl Calibrator {
    pub(crate) fn log_odds(&self, score: f32) -> f64 {
        let log_odds = match self {
            Self::Identity => f64::from(score),
            Self::Line { slope, offset } => f64::from(score) * f64::from(*slope) + f64::from(*offset),
            Self::Curve(knots) => interpolate(knots, score),
        };
        let limit = f64::from(LOG_ODDS_LIMIT);
        log_odds.clamp(-limit, limit)
    }
}

fn interpolate(knots: &[(f32, f32)], score: f32) -> f64 {
    let after = knots.partition_point(|knot| knot.0 <= score);
    if after == 0 {
        return f64::from(knots[0].1);
    }
    let (left, Some(right)) = (knots[after - 1], knots.get(after)) else {
        return f64::from(knots[after - 1].1);
    };
    let (x, y) = (f64::from(left.0), f64::from(left.1));
    let slope = (f64::from(right.1) - y) / (f64::from(right.0) - x);
    y + (f64::from(score) - x) * slope
}

/// Fits one class against the rest. `wanted`: what the config asks for; by default the rows decide. An explicit wish
/// that cannot be fulfilled is an error.
pub(crate) fn fit(wanted: Option<Calibration>, scores: &[f32], positive: &[bool]) -> Result<(Calibration, Calibrator)> {
    let positives = positive.iter().filter(|positive| **positive).count();
    let rarer = positives.min(positive.len() - positives);
    let chosen = wanted.unwrap_or({
        if positive.len() >= MIN_ISOTONIC_ROWS && rarer >= MIN_ISOTONIC_CLASS_ROWS {
            Calibration::Isotonic
        } else if rarer >= MIN_PLATT_CLASS_ROWS {
            Calibration::Platt
        } else {
            Calibration::None
        }
    });
    if chosen != Calibration::None && rarer == 0 {
        return Err(refuse(
            "calibration",
            "needs rows of both classes in the last time slice: raise `validation_share` or set it to none",
        ));
    }
    let calibrator = match chosen {
        Calibration::None => Calibrator::Identity,
        Calibration::Platt => platt(scores, positive, positives as f64),
        Calibration::Isotonic => isotonic(scores, positive),
    };
    Ok((chosen, calibrator))
}

/// Platt's method with his smoothed labels, by Newton's method. The slope is never negative: calibration must not turn
/// the ranking around.
fn platt(scores: &[f32], positive: &[bool], positives: f64) -> Calibrator {
    let negatives = positive.len() as f64 - positives;
    let line = Line {
        scores,
        positive,
        label: [1.0 / (negatives + 2.0), (positives + 1.0) / (positives + 2.0)],
    };
    let (slope, offset) = line.fit(1.0, true);
    let (slope, offset) = if (0.0..=MAX_SLOPE).contains(&slope) {
        (slope, offset)
    } else {
        line.fit(slope.clamp(0.0, MAX_SLOPE), false)
    };
    Calibrator::Line {
        slope: slope as f32,
        offset: offset as f32,
    }
}

struct Line<'a> {
    scores: &'a [f32],
    positive: &'a [bool],
    /// Smoothed labels of the negative and the positive class.
    label: [f64; 2],
}

impl Line<'_> {
    fn rows(&self) -> impl Iterator<Item = (f64, f64)> {
        self.scores
            .iter()
            .zip(self.positive)
            .map(|(&score, &positive)| (f64::from(score), self.label[usize::from(positive)]))
    }

    /// Cross entropy, written so that large log odds do not overflow.
    fn loss(&self, slope: f64, offset: f64) -> f64 {
        self.rows()
            .map(|(score, label)| {
                let odds = slope * score + offset;
                odds.max(0.0) - odds * label + (-odds.abs()).exp().ln_1p()
            })
            .sum()
    }

    /// Minimises the loss over the offset, and over the slope if it is free.
    fn fit(&self, mut slope: f64, free_slope: bool) -> (f64, f64) {
        let mut offset = 0.0;
        let mut loss = self.loss(slope, offset);
        for _ in 0..MAX_NEWTON_STEPS {
            let (d_slope, d_offset) = self.newton_step(slope, offset, free_slope);
            // The loss is convex: halving the step finds an improvement unless the minimum is reached.
            let mut share = 1.0;
            let mut improved = false;
            while share > 1e-10 {
                let (next_slope, next_offset) = (slope - share * d_slope, offset - share * d_offset);
                let next = self.loss(next_slope, next_offset);
                if next < loss {
                    improved = loss - next > 1e-12 * loss;
                    (slope, offset, loss) = (next_slope, next_offset, next);
                    break;
                }
                share /= 2.0;
            }
            if !improved {
                break;
            }
        }
        (slope, offset)
    }

    fn newton_step(&self, slope: f64, offset: f64, free_slope: bool) -> (f64, f64) {
        // Scores without any spread leave the slope undetermined; this keeps the equations solvable.
        const RIDGE: f64 = 1e-6;
        let (mut g_slope, mut g_offset) = (0.0, 0.0);
        let (mut h_ss, mut h_so, mut h_oo) = (RIDGE, 0.0, RIDGE);
        for (score, label) in self.rows() {
            let share = sigmoid(slope * score + offset);
            let weight = share * (1.0 - share);
            g_slope += (share - label) * score;
            g_offset += share - label;
            h_ss += weight * score * score;
            h_so += weight * score;
            h_oo += weight;
        }
        if !free_slope {
            return (0.0, g_offset / h_oo);
        }
        let determinant = h_ss * h_oo - h_so * h_so;
        (
            (h_oo * g_slope - h_so * g_offset) / determinant,
            (h_ss * g_offset - h_so * g_slope) / determinant,
        )
    }
}

/// Neighbouring rows, sorted by score, that share one level.
#[derive(Debug, Clone, Copy)]
struct Block {
    rows: f64,
    scores: f64,
    positives: f64,
}

impl Block {
    fn share(self) -> f64 {
        self.positives / self.rows
    }

    fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.scores += other.scores;
        self.positives += other.positives;
    }

    /// The centre of the block; half a row of each class keeps the log odds finite.
    fn knot(self) -> (f32, f32) {
        let share = (self.positives + 0.5) / (self.rows + 1.0);
        ((self.scores / self.rows) as f32, (share / (1.0 - share)).ln() as f32)
    }
}

/// Isotonic regression by pooling adjacent violators, its blocks made large and flat enough, then joined by lines
/// between their centres.
fn isotonic(scores: &[f32], positive: &[bool]) -> Calibrator {
    let mut blocks = pool_violators(scores, positive);
    merge_small(&mut blocks, scores.len());
    merge_steep(&mut blocks);
    let mut knots: Vec<(f32, f32)> = blocks.into_iter().map(Block::knot).collect();
    let (first, last) = (knots[0], knots[knots.len() - 1]);
    let slope_of = |pair: Option<&[(f32, f32)]>| match pair {
        // The curve goes on as steep as it was, but no steeper than an uncalibrated model.
        Some([left, right]) => slope(*left, *right).min(1.0),
        _ => 0.0,
    };
    let (begin, end) = (
        slope_of(knots.windows(2).next()),
        slope_of(knots.windows(2).next_back()),
    );
    let extend = |knot: (f32, f32), by: f64, slope: f64| {
        ((f64::from(knot.0) + by) as f32, (f64::from(knot.1) + by * slope) as f32)
    };
    knots.insert(0, extend(first, -EXTENSION, begin));
    knots.push(extend(last, EXTENSION, end));
    Calibrator::Curve(knots)
}

fn slope(left: (f32, f32), right: (f32, f32)) -> f64 {
    (f64::from(right.1) - f64::from(left.1)) / (f64::from(right.0) - f64::from(left.0))
}

fn pool_violators(scores: &[f32], positive: &[bool]) -> Vec<Block> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut blocks: Vec<Block> = Vec::new();
    for tied in order.chunk_by(|&a, &b| scores[a].total_cmp(&scores[b]).is_eq()) {
        let mut block = Block {
            rows: tied.len() as f64,
            scores: tied.iter().map(|&row| f64::from(scores[row])).sum(),
            positives: tied.iter().filter(|&&row| positive[row]).count() as f64,
        };
        while let Some(before) = blocks.pop_if(|before| before.share() >= block.share()) {
            block.merge(before);
        }
        blocks.push(block);
    }
    blocks
}

/// Merges neighbours until each block has enough rows; so there are at most [`MAX_BLOCKS`].
fn merge_small(blocks: &mut Vec<Block>, rows: usize) {
    let least = MIN_BLOCK_ROWS.max(rows.div_ceil(MAX_BLOCKS)) as f64;
    let mut merged: Vec<Block> = Vec::new();
    for &block in blocks.iter() {
        match merged.last_mut() {
            Some(last) if last.rows < least => last.merge(block),
            _ => merged.push(block),
        }
    }
    if merged.len() > 1
        && let Some(rest) = merged.pop_if(|last| last.rows < least)
        && let Some(last) = merged.last_mut()
    {
        last.merge(rest);
    }
    *blocks = merged;
}

/// Merges neighbours whose centres are too close for their difference in log odds.
fn merge_steep(blocks: &mut Vec<Block>) {
    let mut index = 0;
    while index + 1 < blocks.len() {
        let (left, right) = (blocks[index].knot(), blocks[index + 1].knot());
        let rises = right.0 > left.0 && right.1 > left.1;
        if rises && slope(left, right) <= MAX_SLOPE {
            index += 1;
            continue;
        }
        let next = blocks.remove(index + 1);
        blocks[index].merge(next);
        // The merged block may now be too close to the one before.
        index = index.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "the numbers are exact")]

    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{log_loss, mean};

    /// Rows whose true log odds are `truth(score)`.
    fn rows(count: usize, truth: impl Fn(f64) -> f64) -> (Vec<f32>, Vec<bool>) {
        (0..count)
            .map(|row| {
                let score = row as f64 / count as f64 * 6.0 - 3.0;
                // A low-discrepancy sequence in place of a random number.
                let uniform = (row as f64 * 0.618_033_988_749_895).fract();
                (score as f32, uniform < sigmoid(truth(score)))
            })
            .unzip()
    }

    fn loss(calibrator: &Calibrator, scores: &[f32], positive: &[bool]) -> f64 {
        log_loss(scores.iter().zip(positive).map(|(&score, &positive)| {
            let share = sigmoid(calibrator.log_odds(score));
            if positive { share } else { 1.0 - share }
        }))
    }

    #[test]
    fn platt_finds_the_line() {
        let (scores, positive) = rows(20_000, |score| 0.5 * score - 1.0);
        let (_, Calibrator::Line { slope, offset }) = fit(Some(Calibration::Platt), &scores, &positive).unwrap() else {
            panic!("no line")
        };
        assert!(
            (slope - 0.5).abs() < 0.03 && (offset + 1.0).abs() < 0.03,
            "{slope} {offset}"
        );
    }

    #[test]
    fn platt_never_turns_the_ranking_around() {
        let (scores, positive) = rows(2_000, |score| -score);
        let (_, Calibrator::Line { slope, offset }) = fit(Some(Calibration::Platt), &scores, &positive).unwrap() else {
            panic!("no line")
        };
        assert_eq!(slope, 0.0);
        let share = mean(positive.iter().map(|positive| f64::from(u8::from(*positive))));
        assert!((sigmoid(f64::from(offset)) - share).abs() < 1e-3);
    }

    #[test]
    fn separable_rows_have_a_bounded_line() {
        let scores: Vec<f32> = (0..100).map(|row| row as f32 / 1_000.0).collect();
        let positive: Vec<bool> = (0..100).map(|row| row >= 50).collect();
        let (_, Calibrator::Line { slope, offset }) = fit(Some(Calibration::Platt), &scores, &positive).unwrap() else {
            panic!("no line")
        };
        assert_eq!(slope, 4.0);
        assert!(offset.is_finite());
    }

    #[test]
    fn isotonic_follows_what_no_line_can() {
        let truth = |score: f64| {
            if score < 0.0 {
                -2.0 + 0.1 * score
            } else {
                1.5 + 0.1 * score
            }
        };
        let (scores, positive) = rows(20_000, truth);
        let (_, curve) = fit(Some(Calibration::Isotonic), &scores, &positive).unwrap();
        let (_, line) = fit(Some(Calibration::Platt), &scores, &positive).unwrap();
        for score in [-2.5_f32, -1.0, 1.0, 2.5] {
            let error = curve.log_odds(score) - truth(f64::from(score));
            assert!(error.abs() < 0.2, "{error} at {score}");
        }
        assert!(loss(&curve, &scores, &positive) < loss(&line, &scores, &positive));
    }

    #[test]
    fn the_slice_decides_by_default() {
        let (scores, positive) = rows(2_000, |score| score);
        assert_eq!(fit(None, &scores, &positive).unwrap().0, Calibration::Isotonic);
        let (scores, positive) = rows(500, |score| score);
        assert_eq!(fit(None, &scores, &positive).unwrap().0, Calibration::Platt);
        assert_eq!(fit(None, &[0.5, 1.0], &[true, true]).unwrap().0, Calibration::None);
        let error = fit(Some(Calibration::Platt), &[0.5, 1.0], &[true, true]).unwrap_err();
        assert!(error.to_string().contains("both classes"), "{error}");
    }

    proptest! {
        #[test]
        fn curves_rise_gently(
            rows in prop::collection::vec((-3.0_f32..3.0, any::<bool>()), 1..600),
            grid in 0.01_f32..0.5,
        ) {
            // Scores on a grid, so that ties occur.
            let (scores, positive): (Vec<f32>, Vec<bool>) =
                rows.into_iter().map(|(score, positive)| ((score / grid).round() * grid, positive)).unzip();
            let Calibrator::Curve(knots) = isotonic(&scores, &positive) else { panic!("no curve") };
            for pair in knots.windows(2) {
                prop_assert!(pair[1].0 > pair[0].0);
                prop_assert!((0.0..=MAX_SLOPE + 1e-6).contains(&slope(pair[0], pair[1])));
            }
            let curve = Calibrator::Curve(knots);
            let mut last = f64::NEG_INFINITY;
            for step in -200..200 {
                let value = curve.log_odds(step as f32 / 10.0);
                prop_assert!(value >= last && value.is_finite());
                last = value;
            }
        }
    }
}
