//! Passwords that were verified a moment ago, so that a client that sends its own with each request is not slowed down by
//! a hash that is slow on purpose.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ring::{hmac, rand::SystemRandom};

/// How long a verified password is remembered.
const LIFETIME: Duration = Duration::from_mins(1);
/// The most that are remembered; when there are more, all are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// Keeps no password: a keyed digest under a key that this process made and nobody else has.
pub(crate) struct Remembered {
    /// None: the machine gives no random bytes, and nothing is remembered.
    key: Option<hmac::Key>,
    entries: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Remembered {
    pub(crate) fn new() -> Self {
        Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok(),
            entries: Mutex::default(),
        }
    }

    fn digest(&self, name: &str, password: &str, revision: u64) -> Option<[u8; 32]> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        context.update(&(name.len() as u64).to_be_bytes());
        context.update(name.as_bytes());
        context.update(&revision.to_be_bytes());
        context.update(password.as_bytes());
        context.sign().as_ref().try_into().ok()
    }

    pub(crate) fn has(&self, name: &str, password: &str, revision: u64, now: Instant) -> bool {
        let Some(digest) = self.digest(name, password, revision) else {
            return false;
        };
        let until = self.entries.lock().get(&digest).copied();
        until.is_some_and(|until| now < until)
    }

    pub(crate) fn add(&self, name: &str, password: &str, revision: u64, now: Instant) {
        let Some(digest) = self.digest(name, password, revision) else {
            return;
        };
        let mut entries = self.entries.lock();
        if entries.len() >= MAX_REMEMBERED {
            entries.clear();
        }
        entries.insert(digest, now + LIFETIME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_remembered_for_a_moment_and_until_it_changes() {
        let remembered = Remembered::new();
        let now = Instant::now();
        remembered.add("alice", "correct horse", 1, now);
        assert!(remembered.has("alice", "correct horse", 1, now));
        assert!(!remembered.has("alice", "correct horse", 2, now));
        assert!(!remembered.has("alice", "correct hors", 1, now));
        assert!(!remembered.has("alic", "ecorrect horse", 1, now));
        assert!(!remembered.has("alice", "correct horse", 1, now + LIFETIME));
    }
}
