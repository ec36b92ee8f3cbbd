//! Names that users give to things.

use crate::error::{ErrorKind, Fault};

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{name}` is not a name for {what}: use 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

impl Fault for InvalidName {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    fn reason(&self) -> &'static str {
        "INVALID_NAME"
    }
}

/// Checks the name of a thing (`what`: `an endpoint`, `a dataset`): letters, digits, `-`, `_` and `.`, beginning with a
/// letter or digit, so that it can stand in a URL, a resource file and below a folder without harm.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= MAX_NAME_BYTES && name.chars().all(allowed) {
        return Ok(());
    }
    Err(InvalidName {
        what,
        name: name
            .chars()
            .take(MAX_NAME_BYTES)
            .flat_map(char::escape_default)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_a_path_is_no_name() {
        for good in ["a", "flight-delay", "v1.2_x", "9"] {
            assert!(check_name("a model", good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in [
            "",
            "..",
            "../x",
            "a/b",
            "a b",
            ".hidden",
            "a\nb",
            "\u{e9}",
            long.as_str(),
        ] {
            assert!(check_name("a model", bad).is_err(), "{bad}");
        }
    }
}
