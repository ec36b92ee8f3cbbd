//! How long to wait before the next attempt.

use std::time::Duration;

/// Waits that double with every error, up to a longest one, each shortened by a random part of up to a half, so that
/// what failed together is not tried together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first error.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_mins(1),
        }
    }
}

/// More doublings than this are the longest wait for certain.
const MAX_DOUBLINGS: u32 = 30;

impl Backoff {
    /// The wait after `failures` errors (0 is the first), where `jitter` is a random number from 0 to 1.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.min(MAX_DOUBLINGS));
        doubled.min(self.longest).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(10),
        };
        let waits: Vec<u64> = (0..6).map(|failures| backoff.delay(failures, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.delay(u32::MAX, 0.0), backoff.longest);
        assert_eq!(backoff.delay(0, 1.0), Duration::from_millis(500));
    }
}
