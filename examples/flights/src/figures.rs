//! Medians, ratios and bars, as all benchmarks tell them.

use serde::Serialize;

/// A ratio by round, and the median of all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// Of each round.
    pub rounds: Vec<f64>,
}

impl Ratio {
    /// Of what each round gave.
    pub fn of(rounds: Vec<f64>) -> Self {
        Self {
            median: median(&rounds),
            rounds,
        }
    }

    /// The rounds, for a line of text.
    pub fn shown(&self) -> String {
        let rounds: Vec<String> = self.rounds.iter().map(|round| format!("{round:.2}")).collect();
        rounds.join(" ")
    }
}

/// The middle value; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that a share of all are not above; NaN of none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place.min(last)).copied().unwrap_or(f64::NAN)
}

/// The bar of what shall be large, and whether it is met.
pub fn at_least(value: f64, bar: f64) -> String {
    format!("bar: {bar}{}", if value >= bar { "" } else { ", not met" })
}

/// The bar of what shall be small, and whether it is met.
pub fn at_most(value: f64, bar: f64, unit: &str) -> String {
    format!("bar: {bar}{unit}{}", if value <= bar { "" } else { ", not met" })
}
