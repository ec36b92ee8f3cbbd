//! What verifying a chain found.

use super::chain::Hash;

/// The most problems that are listed; more are counted.
pub const MAX_PROBLEMS: usize = 100;

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An event that does not give its hash.
    #[error("event {seq} was changed: its content does not give its hash")]
    Changed {
        /// Its number.
        seq: u64,
    },
    /// An event that could not have been written.
    #[error("event {seq} was changed: {problem}")]
    Unwritable {
        /// Its number.
        seq: u64,
        /// Why not.
        problem: String,
    },
    /// Events that are not there.
    #[error("{} missing", range(*first, *last))]
    Missing {
        /// The first one.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// An event after a later one.
    #[error("event {seq} stands after event {after}: the order was changed, or it is there twice")]
    OutOfOrder {
        /// Its number.
        seq: u64,
        /// The number of the event before it.
        after: u64,
    },
    /// An event that follows another one than that before it.
    #[error("event {seq} does not follow the event before it: one of them was replaced")]
    Unlinked {
        /// Its number.
        seq: u64,
    },
    /// A checkpoint of an event with another hash.
    #[error("the checkpoint of event {seq} signs another hash: the chain up to it was replaced")]
    SignedOther {
        /// The event's number.
        seq: u64,
    },
    /// A checkpoint without its event.
    #[error("the checkpoint of event {seq} does not stand by its event")]
    Misplaced {
        /// The event's number.
        seq: u64,
    },
    /// A checkpoint by a key that is not known.
    #[error("the checkpoint of event {seq} is signed with key `{key_id}`, which is not among the given ones")]
    UnknownKey {
        /// The event's number.
        seq: u64,
        /// The key's id.
        key_id: String,
    },
    /// A wrong signature.
    #[error("the signature of the checkpoint of event {seq} is wrong: it was changed, or made with another key")]
    WrongSignature {
        /// The event's number.
        seq: u64,
    },
    /// Fewer events than there were.
    #[error("the chain ends with event {last}, and event {known} was there: the end was cut off")]
    Truncated {
        /// The last event.
        last: u64,
        /// An event that was there.
        known: u64,
    },
    /// Another last event.
    #[error("event {seq} is not the one that was known as the last: the end was replaced")]
    OtherHead {
        /// The event's number.
        seq: u64,
    },
    /// An export that does not end with a checkpoint.
    #[error("no checkpoint signs the last event, {last}: the end was cut off or changed")]
    Unsigned {
        /// The last event.
        last: u64,
    },
    /// A line that cannot be read.
    #[error("line {line} was changed: {problem}")]
    Line {
        /// The line, from one.
        line: u64,
        /// What is wrong.
        problem: String,
    },
}

fn range(first: u64, last: u64) -> String {
    if first == last {
        format!("event {first} is")
    } else {
        format!("events {first} to {last} are")
    }
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The number of the first event.
    pub first_seq: u64,
    /// The number of the last event; one less than the first where there was none.
    pub last_seq: u64,
    /// The hash of the last event.
    pub last_hash: Hash,
    /// The events that were looked at.
    pub events: u64,
    /// The checkpoints with a right signature.
    pub checkpoints: u64,
    /// Up to which event the chain is signed.
    pub signed_to: Option<u64>,
    /// What is wrong, in the order in which it was found; [`MAX_PROBLEMS`] at most.
    pub problems: Vec<Problem>,
    /// How many problems more there are.
    pub more_problems: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }

    /// The report on this part of the chain and on the next one, which was verified by itself from an event on that follows
    /// an event with the hash `next_prev`.
    #[must_use]
    pub fn join(mut self, next_prev: &Hash, next: Self) -> Self {
        if next.first_seq > self.last_seq + 1 {
            self.add(Problem::Missing {
                first: self.last_seq + 1,
                last: next.first_seq - 1,
            });
        } else if next.first_seq <= self.last_seq {
            self.add(Problem::OutOfOrder {
                seq: next.first_seq,
                after: self.last_seq,
            });
        } else if *next_prev != self.last_hash {
            self.add(Problem::Unlinked { seq: next.first_seq });
        }
        for problem in next.problems {
            self.add(problem);
        }
        self.more_problems += next.more_problems;
        self.events += next.events;
        self.checkpoints += next.checkpoints;
        self.signed_to = self.signed_to.max(next.signed_to);
        self.last_seq = next.last_seq;
        self.last_hash = next.last_hash;
        self
    }

    pub(super) fn add(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}
