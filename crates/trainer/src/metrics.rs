//! How good predictions are on rows that were not learned from.

/// Probabilities are kept this far from 0 and 1 in logarithms.
const LOG_FLOOR: f64 = 1e-15;

/// The logistic function.
pub(crate) fn sigmoid(score: f64) -> f64 {
    1.0 / (1.0 + (-score).exp())
}

/// Area under the ROC curve, ties counting half; `None` where one class has no row.
pub(crate) fn auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let positives = positive.iter().filter(|positive| **positive).count() as f64;
    let negatives = positive.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut area = 0.0;
    let mut negatives_below = 0.0;
    for tied in order.chunk_by(|&a, &b| scores[a].total_cmp(&scores[b]).is_eq()) {
        let hits = tied.iter().filter(|&&row| positive[row]).count() as f64;
        let misses = tied.len() as f64 - hits;
        area += hits * (negatives_below + misses / 2.0);
        negatives_below += misses;
    }
    Some(area / (positives * negatives))
}

/// Mean logarithmic loss. `probability_of_truth`: what each row's true class was given.
pub(crate) fn log_loss(probability_of_truth: impl Iterator<Item = f64>) -> f64 {
    mean(probability_of_truth.map(|probability| -probability.clamp(LOG_FLOOR, 1.0).ln()))
}

/// The mean; 0 of nothing.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    if count == 0.0 { 0.0 } else { sum / count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_is_the_share_of_pairs_in_order() {
        let scores = [0.1_f64, 0.4, 0.4, 0.8, 0.3];
        let positive = [false, true, false, true, true];
        let mut pairs = 0.0;
        for (good, _) in positive.iter().enumerate().filter(|(_, positive)| **positive) {
            for (bad, _) in positive.iter().enumerate().filter(|(_, positive)| !**positive) {
                pairs += match scores[good].total_cmp(&scores[bad]) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        assert!((auc(&scores, &positive).unwrap() - pairs / 6.0_f64).abs() < 1e-12);
        assert_eq!(auc(&[0.1, 0.2], &[true, true]), None);
    }

    #[test]
    fn log_loss_of_a_wrong_certainty_is_finite() {
        let loss = log_loss([0.5, 0.0].into_iter());
        assert!((loss - (0.5_f64.ln() + LOG_FLOOR.ln()) / -2.0).abs() < 1e-9);
    }
}
