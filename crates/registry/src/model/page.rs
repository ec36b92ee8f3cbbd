//! Lists in pages.

use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// How many items a page has when the caller does not say.
pub const DEFAULT_PAGE: u32 = 50;
/// The most items of a page.
pub const MAX_PAGE: u32 = 1000;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The `cursor` of the next page; null at the end of the list.
    pub next_cursor: Option<String>,
}

/// Which part of a list is wanted. `K` is the place in the list's order.
#[derive(Debug, Clone)]
pub struct PageRequest<K> {
    /// The place of the last item that the caller has.
    pub after: Option<K>,
    /// The most items, 1 to [`MAX_PAGE`].
    pub limit: u32,
}

/// A place in a list, which a caller keeps as text.
pub trait Cursor: Sized {
    /// Reads the text; None: it is no such place.
    fn read(text: &str) -> Option<Self>;
    /// Writes the text, of characters that a URL can carry.
    fn write(&self) -> String;
}

impl Cursor for String {
    fn read(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn write(&self) -> String {
        self.clone()
    }
}

impl Cursor for u64 {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl<K: Cursor> PageRequest<K> {
    /// A request as it comes from outside.
    pub fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self> {
        let limit = limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::request(format!(
                "limit is {limit}: ask for 1 to {MAX_PAGE} items at once"
            )));
        }
        Self::up_to(limit, cursor)
    }

    /// A request for so many items, by a face with limits of its own.
    pub(crate) fn up_to(limit: u32, cursor: Option<&str>) -> Result<Self> {
        let after = cursor.map(|text| {
            K::read(text).ok_or_else(|| {
                Error::request("cursor is not one of this list: pass `next_cursor` of the page before it unchanged")
            })
        });
        Ok(Self {
            after: after.transpose()?,
            limit,
        })
    }

    /// How many rows a store reads: one more than asked for, to see whether there is a next page.
    pub(crate) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page of the rows that were read. `place` is the place of an item.
    pub(crate) fn cut<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> K) -> Page<T> {
        let more = items.len() > self.limit as usize;
        items.truncate(self.limit as usize);
        let next_cursor = items.last().filter(|_| more).map(|item| place(item).write());
        Page { items, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_names_the_next_one() {
        let request = PageRequest::<u64>::new(Some(2), None).unwrap();
        let page = request.cut(vec![7, 5, 3], |item| *item);
        assert_eq!(page.items, [7, 5]);
        assert_eq!(page.next_cursor.as_deref(), Some("5"));
        let page = request.cut(vec![3], |item| *item);
        assert_eq!(page.next_cursor, None);
    }

    #[test]
    fn limits_and_cursors_are_checked() {
        for (limit, cursor) in [(Some(0), None), (Some(MAX_PAGE + 1), None), (None, Some("x"))] {
            assert!(PageRequest::<u64>::new(limit, cursor).is_err(), "{limit:?} {cursor:?}");
        }
        assert_eq!(PageRequest::<u64>::new(None, Some("9")).unwrap().after, Some(9));
    }
}
