//! Where ids come from: injected, so that tests can foresee them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use uuid::Uuid;

use crate::clock::SharedClock;

/// A source of new ids.
pub trait IdSource: Send + Sync + 'static {
    /// A UUID of version 7: unique, and sorted by the time of its making.
    fn next(&self) -> Uuid;
}

/// A source of ids shared by the parts of a process.
pub type SharedIds = Arc<dyn IdSource>;

/// UUIDs of version 7 from the clock and the machine's randomness.
pub struct RandomIds {
    clock: SharedClock,
}

impl RandomIds {
    /// Ids stamped with the time of `clock`.
    #[must_use]
    pub fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { clock })
    }
}

impl IdSource for RandomIds {
    fn next(&self) -> Uuid {
        let millis = u64::try_from(self.clock.now().as_micros() / 1000).unwrap_or(0);
        // This thread's generator, seeded by the machine: asking the machine each time costs a call into its kernel.
        uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
    }
}

/// Ids that count up from one.
#[derive(Debug, Default)]
pub struct CountingIds {
    last: AtomicU64,
}

impl CountingIds {
    /// A source whose first id ends in 1.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

impl IdSource for CountingIds {
    fn next(&self) -> Uuid {
        let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        Uuid::from_u128((0x7 << 76) | (0x2 << 62) | u128::from(number))
    }
}
