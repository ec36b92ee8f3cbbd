//! Frequencies of text values in bounded memory.
//!
//! Exact while there are at most [`MAX_VALUES`] different values. Beyond that a Misra-Gries summary (mergeable after Agarwal
//! et al. 2012): every count is at most [`TopValues::error`] under the truth, every value more frequent than that is
//! listed, and what is not listed is in [`TopValues::other`].

use std::{borrow::Cow, collections::BTreeMap, collections::HashMap};

use serde::{Deserialize, Serialize};

use crate::distinct::{DistinctSketch, hash_text};

/// Different values that a profile keeps of a column.
pub const MAX_VALUES: usize = 1_000;
/// Bytes of a value that a profile keeps; a longer one is cut and marked with its hash, so that it stays a value of its own.
pub const MAX_VALUE_BYTES: usize = 256;
/// The table may grow to this many entries before it is trimmed, so that trimming costs a constant per value.
const TABLE_LIMIT: usize = 2 * MAX_VALUES;

/// The most frequent values of a text or boolean column.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopValues {
    /// Count of each listed value.
    pub values: BTreeMap<String, u64>,
    /// Number of values that are in no count. 0 if and only if the counts are exact and complete.
    pub other: u64,
    /// A listed count may be this much under the truth.
    pub error: u64,
}

impl TopValues {
    /// Whether every value is listed with its true count.
    pub fn is_exact(&self) -> bool {
        self.other == 0
    }

    /// Number of values, listed or not.
    pub fn total(&self) -> u64 {
        self.other + self.values.values().sum::<u64>()
    }

    /// The `n` most frequent values, ties in order of the value.
    pub fn most_frequent(&self, n: usize) -> Vec<(&str, u64)> {
        let mut sorted: Vec<(&str, u64)> = self
            .values
            .iter()
            .map(|(value, &count)| (value.as_str(), count))
            .collect();
        sorted.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        sorted.truncate(n);
        sorted
    }
}

/// The table while it is being filled.
#[derive(Debug, Clone, Default)]
pub(crate) struct ValueTable {
    counts: HashMap<Box<str>, u64>,
    total: u64,
    error: u64,
    distinct: Option<DistinctSketch>,
}

impl ValueTable {
    /// Adds `weight` occurrences of a value.
    pub(crate) fn add(&mut self, value: &str, weight: u64) {
        if weight == 0 {
            return;
        }
        self.total += weight;
        let value = shorten(value);
        if let Some(count) = self.counts.get_mut(value.as_ref()) {
            *count += weight;
            return;
        }
        if let Some(distinct) = &mut self.distinct {
            distinct.insert(hash_text(&value));
        }
        self.counts.insert(value.into(), weight);
        if self.counts.len() > MAX_VALUES && self.distinct.is_none() {
            let mut distinct = DistinctSketch::default();
            for value in self.counts.keys() {
                distinct.insert(hash_text(value));
            }
            self.distinct = Some(distinct);
        }
        if self.counts.len() > TABLE_LIMIT {
            self.trim();
        }
    }

    /// Adds a finished summary.
    pub(crate) fn absorb(&mut self, top: &TopValues, distinct: Option<&DistinctSketch>) {
        if let Some(theirs) = distinct {
            let mine = self.distinct.get_or_insert_default();
            mine.merge(theirs);
            for value in self.counts.keys() {
                mine.insert(hash_text(value));
            }
        }
        // Both summaries' counts are added before one trim: trimming between would add to the error.
        for (value, &count) in &top.values {
            self.add(value, count);
        }
        self.total += top.other;
        self.error += top.error;
    }

    /// The bounded summary, and the sketch of the number of different values where the table does not tell it.
    pub(crate) fn finish(mut self) -> (TopValues, Option<DistinctSketch>) {
        self.trim();
        let values: BTreeMap<String, u64> = self
            .counts
            .into_iter()
            .map(|(value, count)| (value.into(), count))
            .collect();
        let listed: u64 = values.values().sum();
        let top = TopValues {
            values,
            other: self.total - listed,
            error: self.error,
        };
        (top, self.distinct)
    }

    /// Takes the count of the largest value that does not fit off all: at most [`MAX_VALUES`] remain.
    fn trim(&mut self) {
        if self.counts.len() <= MAX_VALUES {
            return;
        }
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let (_, &mut cut, _) = counts.select_nth_unstable_by(MAX_VALUES, |a, b| b.cmp(a));
        self.error += cut;
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(cut);
            *count > 0
        });
    }
}

/// The value as it is listed: itself, or its beginning and its hash.
pub(crate) fn shorten(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_VALUE_BYTES {
        return Cow::Borrowed(value);
    }
    let mark = format!("…{:016x}", hash_text(value));
    let mut end = MAX_VALUE_BYTES - mark.len();
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{mark}", &value[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_up_to_the_limit() {
        let mut table = ValueTable::default();
        for i in 0..10 * MAX_VALUES {
            table.add(&format!("v{}", i % MAX_VALUES), 1);
        }
        let (top, distinct) = table.finish();
        assert!(top.is_exact());
        assert!(distinct.is_none());
        assert_eq!(top.values.len(), MAX_VALUES);
        assert!(top.values.values().all(|&count| count == 10));
    }

    #[test]
    fn frequent_values_survive_a_long_tail_within_the_error() {
        let mut parts = Vec::new();
        for part in 0..4 {
            let mut table = ValueTable::default();
            for i in 0..20_000 {
                table.add(&format!("rare {part} {i}"), 1);
                if i % 4 == 0 {
                    table.add("frequent", 1);
                }
            }
            parts.push(table.finish());
        }
        let mut whole = ValueTable::default();
        for (top, distinct) in &parts {
            whole.absorb(top, distinct.as_ref());
        }
        let (top, distinct) = whole.finish();
        assert_eq!(top.total(), 100_000);
        assert!(top.values.len() <= MAX_VALUES);
        let count = top.values.get("frequent").copied().unwrap_or(0);
        assert!(count <= 20_000 && count + top.error >= 20_000, "{count} {}", top.error);
        // Misra-Gries: the error is at most the uncounted weight over the number of counters.
        assert!(top.error <= top.other / MAX_VALUES as u64 + 1);
        let distinct = distinct.map_or(0, |sketch| sketch.estimate());
        assert!((70_000..90_000).contains(&distinct), "{distinct}");
    }

    #[test]
    fn long_values_are_cut_at_a_character_and_stay_apart() {
        let long = "ä".repeat(MAX_VALUE_BYTES);
        let other = format!("{long}!");
        let (a, b) = (shorten(&long), shorten(&other));
        assert!(a.len() <= MAX_VALUE_BYTES && b.len() <= MAX_VALUE_BYTES);
        assert_ne!(a, b);
        assert_eq!(shorten("short"), "short");
        assert_eq!(shorten(&a), a);
    }

    #[test]
    fn most_frequent_orders_ties_by_value() {
        let mut table = ValueTable::default();
        for (value, weight) in [("b", 2), ("a", 2), ("c", 5), ("d", 0)] {
            table.add(value, weight);
        }
        let (top, _) = table.finish();
        assert_eq!(top.most_frequent(2), [("c", 5), ("a", 2)]);
        assert_eq!(top.values.len(), 3);
    }
}
