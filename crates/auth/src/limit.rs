//! How many requests a token may send a second, and how often somebody may try to sign in.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The most keys that are counted at once; when there are more, those that have rested are forgotten.
const MAX_KEYS: usize = 65_536;

/// A bucket of requests for each key, filled at a steady rate; a second's worth may come at once.
pub(crate) struct RateLimiter {
    per_second: u32,
    buckets: Mutex<HashMap<String, Bucket>>,
}

struct Bucket {
    left: f64,
    filled_at: Instant,
}

impl RateLimiter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            buckets: Mutex::default(),
        }
    }

    pub(crate) const fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes one request out of the key's bucket, if there is one left.
    pub(crate) fn take(&self, key: &str, now: Instant) -> bool {
        let full = f64::from(self.per_second);
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_KEYS && !buckets.contains_key(key) {
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.filled_at) < Duration::from_secs(1));
        }
        let Some(bucket) = buckets.get_mut(key) else {
            let bucket = Bucket {
                left: full - 1.0,
                filled_at: now,
            };
            buckets.insert(key.to_owned(), bucket);
            return true;
        };
        let rested = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        bucket.left = rested.mul_add(full, bucket.left).min(full);
        bucket.filled_at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

/// How many failures cost nothing.
const FREE_FAILURES: u32 = 5;
/// The wait after the first failure that costs; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_mins(15);
/// After so long without a failure, all is forgotten.
const MEMORY: Duration = Duration::from_hours(1);

/// Slows down those who guess: every failure beyond the first few makes the next attempt wait twice as long. One for
/// accounts and one for addresses.
pub struct Throttle<K> {
    failures: Mutex<HashMap<K, Failures>>,
}

struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    fn wait(&self) -> Duration {
        match self.count.checked_sub(FREE_FAILURES) {
            None | Some(0) => Duration::ZERO,
            Some(extra) => FIRST_WAIT
                .saturating_mul(2_u32.saturating_pow(extra.min(20) - 1))
                .min(LONGEST_WAIT),
        }
    }
}

impl<K> Default for Throttle<K> {
    fn default() -> Self {
        Self {
            failures: Mutex::default(),
        }
    }
}

impl<K: Hash + Eq> Throttle<K> {
    /// How long the next attempt has to wait; none: it may come now.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let failures = self.failures.lock();
        let found = failures.get(key)?;
        let passed = now.saturating_duration_since(found.last);
        found.wait().checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// An attempt failed.
    pub fn failed(&self, key: K, now: Instant) {
        let mut failures = self.failures.lock();
        if failures.len() >= MAX_KEYS {
            failures.retain(|_, failures| now.saturating_duration_since(failures.last) < MEMORY);
        }
        if failures.len() >= MAX_KEYS {
            failures.clear();
        }
        let entry = failures.entry(key).or_insert(Failures { count: 0, last: now });
        if now.saturating_duration_since(entry.last) >= MEMORY {
            entry.count = 0;
        }
        entry.count = entry.count.saturating_add(1);
        entry.last = now;
    }

    /// An attempt succeeded: what was before is forgiven.
    pub fn succeeded(&self, key: &K) {
        self.failures.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_its_rate_allows() {
        let limiter = RateLimiter::new(3);
        let start = Instant::now();
        let taken = (0..5).filter(|_| limiter.take("a", start)).count();
        assert_eq!(taken, 3);
        assert!(limiter.take("b", start));
        assert!(!limiter.take("a", start + Duration::from_millis(300)));
        assert!(limiter.take("a", start + Duration::from_millis(700)));
    }

    #[test]
    fn guessing_gets_slower_and_success_forgives() {
        let throttle = Throttle::default();
        let start = Instant::now();
        for _ in 0..FREE_FAILURES {
            assert_eq!(throttle.wait(&"alice", start), None);
            throttle.failed("alice", start);
        }
        throttle.failed("alice", start);
        assert_eq!(throttle.wait(&"alice", start), Some(FIRST_WAIT));
        throttle.failed("alice", start);
        assert_eq!(throttle.wait(&"alice", start), Some(FIRST_WAIT * 2));
        assert_eq!(throttle.wait(&"alice", start + FIRST_WAIT * 2), None);
        assert_eq!(throttle.wait(&"bob", start), None);
        for _ in 0..40 {
            throttle.failed("alice", start);
        }
        assert_eq!(throttle.wait(&"alice", start), Some(LONGEST_WAIT));
        throttle.succeeded(&"alice");
        assert_eq!(throttle.wait(&"alice", start), None);
    }
}
