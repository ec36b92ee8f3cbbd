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

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The place of the last item that the caller has.
    pub after: Option<String>,
    /// The most items, 1 to [`MAX_PAGE`].
    pub limit: u32,
}

impl PageRequest {
    /// A request as it comes from outside.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn new(limit: Option<u32>, cursor: Option<String>) -> Result<Self> {
        let limit = limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::request(format!(
                "limit is {limit}: ask for 1 to {MAX_PAGE} items at once"
            )));
        }
        Ok(Self { after: cursor, limit })
    }

    /// The cursor as a number, where the list is in the order of one.
    ///
    /// # Errors
    /// The cursor is not of such a list.
    pub fn number(&self) -> Result<Option<i64>> {
        let read = |text: &String| {
            text.parse().map_err(|_| {
                Error::request("cursor is not one of this list: pass `next_cursor` of the page before it unchanged")
            })
        };
        self.after.as_ref().map(read).transpose()
    }

    /// How many rows a store reads: one more than asked for, to see whether there is a next page.
    pub(crate) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page of the rows that were read. `place` is the cursor of an item.
    pub(crate) fn cut<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> String) -> Page<T> {
        let more = items.len() > self.limit as usize;
        items.truncate(self.limit as usize);
        let next_cursor = items.last().filter(|_| more).map(place);
        Page { items, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_names_the_next_one() {
        let request = PageRequest::new(Some(2), None).unwrap();
        let page = request.cut(vec![7, 5, 3], ToString::to_string);
        assert_eq!((page.items, page.next_cursor.as_deref()), (vec![7, 5], Some("5")));
        assert_eq!(request.cut(vec![3], ToString::to_string).next_cursor, None);
    }

    #[test]
    fn limits_and_cursors_are_checked() {
        assert!(PageRequest::new(Some(0), None).is_err());
        assert!(PageRequest::new(Some(MAX_PAGE + 1), None).is_err());
        let request = PageRequest::new(None, Some("x".to_owned())).unwrap();
        assert!(request.number().is_err());
        assert_eq!(request.limit, DEFAULT_PAGE);
    }
}
