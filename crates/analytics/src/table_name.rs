//! The name of a table: its folder below the storage root.

use std::{fmt, str::FromStr};

use object_store::path::Path;
use url::Url;

use crate::error::{Error, Result};

/// The most folders a table lies below.
const MAX_SEGMENTS: usize = 8;
/// The longest name of a folder, in bytes.
const MAX_SEGMENT_BYTES: usize = 128;

/// A table's folder below the storage root, such as `inference-log/default/flight-delay`. Its parts are letters, digits,
/// `-`, `_` and `.` and begin with a letter or digit, so that no name leaves the root or enters a table's own log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName(String);

/// Whether a text can be one part of a path.
pub(crate) fn is_segment(text: &str) -> bool {
    text.len() <= MAX_SEGMENT_BYTES
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

impl TableName {
    /// The table in the folder that the parts name, outermost first.
    ///
    /// # Errors
    /// [`Error::InvalidTableName`].
    pub fn new(parts: &[&str]) -> Result<Self> {
        let name = parts.join("/");
        if parts.is_empty() || parts.len() > MAX_SEGMENTS || !parts.iter().all(|part| is_segment(part)) {
            let name = name
                .chars()
                .take(MAX_SEGMENT_BYTES)
                .flat_map(char::escape_default)
                .collect();
            return Err(Error::InvalidTableName { name });
        }
        Ok(Self(name))
    }

    /// The folder.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder in the object store.
    pub(crate) fn path(&self) -> Path {
        self.0.split('/').collect()
    }

    /// The address that Delta Lake knows the table by: the same wherever the storage is, so that nothing below our object
    /// store takes it for a path of the machine.
    pub(crate) fn url(&self) -> Result<Url> {
        let mut url = root_url()?;
        url.set_path(&format!("/{}/", self.0));
        Ok(url)
    }
}

/// The address of the storage root.
pub(crate) fn root_url() -> Result<Url> {
    Url::parse("modelyard://storage/").map_err(|error| Error::internal("address of the storage root", error))
}

impl FromStr for TableName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(&text.split('/').collect::<Vec<_>>())
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_the_root() {
        let table: TableName = "inference-log/default/flight-delay.v2".parse().unwrap();
        assert_eq!(
            table.url().unwrap().as_str(),
            "modelyard://storage/inference-log/default/flight-delay.v2/"
        );
        assert_eq!(table.path().as_ref(), table.as_str());
        let deep = ["a"; MAX_SEGMENTS + 1].join("/");
        let long = "x".repeat(MAX_SEGMENT_BYTES + 1);
        for wrong in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/..",
            "a/_delta_log",
            "a b",
            "a%2Fb",
            "a#1",
            "\u{e9}",
            &deep,
            &long,
        ] {
            assert!(wrong.parse::<TableName>().is_err(), "{wrong}");
        }
    }
}
