//! How much a page holds: items may be large, so that a count alone does not bound an answer.

use std::collections::BTreeMap;

/// The most bytes of names and texts in a page; its first item is there however large it is.
const PAGE_BYTES: usize = 32 << 20;
/// How many items are read first, when nothing is known of their sizes.
const FIRST_GROUP: usize = 8;
/// The most items that one statement reads.
const LARGEST_GROUP: usize = 400;

/// What of a page is taken already.
pub(super) struct PageRoom {
    taken: usize,
    bytes: usize,
    is_full: bool,
}

impl PageRoom {
    pub(super) const fn new() -> Self {
        Self {
            taken: 0,
            bytes: 0,
            is_full: false,
        }
    }

    /// How many items are on the page.
    pub(super) const fn taken(&self) -> usize {
        self.taken
    }

    /// The ids to read next, of all that were found; none: the page is full, or there are no more.
    pub(super) fn next_group<'a, K>(&self, ids: &'a [K]) -> Option<&'a [K]> {
        let left = ids.get(self.taken..).filter(|left| !left.is_empty() && !self.is_full)?;
        let average = (self.bytes / self.taken.max(1)).max(1);
        let fits = if self.taken == 0 {
            FIRST_GROUP
        } else {
            ((PAGE_BYTES - self.bytes) / average).clamp(1, LARGEST_GROUP)
        };
        left.get(..fits.min(left.len()))
    }

    /// The items of a group of ids that are on the page, in the order of the ids.
    pub(super) fn take<K: Ord, T>(
        &mut self,
        group: &[K],
        mut items: BTreeMap<K, T>,
        size: impl Fn(&T) -> usize,
    ) -> Vec<T> {
        let mut page = Vec::with_capacity(group.len());
        for id in group {
            let item = items.remove(id);
            let bytes = self.bytes.saturating_add(item.as_ref().map_or(0, &size));
            if bytes > PAGE_BYTES && self.taken > 0 {
                self.is_full = true;
                break;
            }
            self.taken += 1;
            self.bytes = bytes.min(PAGE_BYTES);
            page.extend(item);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_page_holds_items_in_order_until_it_is_full(sizes in proptest::collection::vec(1_usize..PAGE_BYTES * 2, 0..40),
                                                        small in 0_usize..2000) {
            let sizes: Vec<usize> = std::iter::repeat_n(100, small).chain(sizes).collect();
            let ids: Vec<usize> = (0..sizes.len()).collect();
            let mut room = PageRoom::new();
            let mut page = Vec::new();
            while let Some(group) = room.next_group(&ids) {
                prop_assert!(group.len() <= LARGEST_GROUP);
                let items = group.iter().map(|id| (*id, sizes[*id])).collect();
                page.extend(room.take(group, items, |size| *size));
            }
            prop_assert_eq!(page.len(), room.taken());
            prop_assert!(sizes.starts_with(&page));
            prop_assert!(page.len() <= 1 || page.iter().sum::<usize>() <= PAGE_BYTES);
            if let Some(next) = sizes.get(page.len()) {
                prop_assert!(!page.is_empty());
                prop_assert!(page.iter().sum::<usize>() + next > PAGE_BYTES);
            }
        }
    }
}
