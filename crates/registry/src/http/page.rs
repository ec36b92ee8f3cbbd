//! Which part of a list is wanted.

use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    error::Result,
    model::page::{Cursor, PageRequest},
};

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The most items, 1 to 1000; 50 when it is left out.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// The request for that part.
    pub fn request<K: Cursor>(&self) -> Result<PageRequest<K>> {
        PageRequest::new(self.limit, self.cursor.as_deref())
    }
}
