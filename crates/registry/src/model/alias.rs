//! Aliases, and references to model versions.

use std::{fmt, str::FromStr};

use modelyard_common::{Timestamp, name::check_name};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// The alias that foreign clients mean the newest version by.
const LATEST: &str = "latest";

/// Where an alias points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Alias {
    /// The model.
    pub model: String,
    /// The alias.
    pub alias: String,
    /// The version that it points at.
    pub version: u32,
    /// Since when.
    pub updated_at: Timestamp,
}

/// A change of an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AliasChange {
    /// Its place in the order of all changes.
    pub revision: u64,
    /// Where it pointed before; null: it was new.
    pub previous_version: Option<u32>,
    /// Where it points since; null: it was removed.
    pub version: Option<u32>,
    /// Who changed it.
    pub changed_by: String,
    /// When.
    pub at: Timestamp,
}

/// Where an alias pointed at a time, and who had it so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AliasAt {
    /// The model.
    pub model: String,
    /// The alias.
    pub alias: String,
    /// The time that was asked for.
    pub at: Timestamp,
    /// The version that it pointed at; null: it had been removed.
    pub version: Option<u32>,
    /// Since when.
    pub since: Timestamp,
    /// Until when; null: it is so now.
    pub until: Option<Timestamp>,
    /// Who pointed it there, or removed it.
    pub changed_by: String,
    /// Who changed it next; null: nobody did.
    pub ended_by: Option<String>,
}

/// Checks an alias: a name, but not `latest` and not `v1`, which mean versions to clients of MLflow.
pub fn check_alias(alias: &str) -> Result<()> {
    check_name("an alias", alias)?;
    let number = alias
        .strip_prefix(['v', 'V'])
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    if number || alias.eq_ignore_ascii_case(LATEST) {
        return Err(Error::request(format!(
            "`{alias}` is reserved and cannot be an alias: `latest` and `v` with a number mean versions"
        )));
    }
    Ok(())
}

/// Which version of a model is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The one that the alias points at.
    Alias(String),
    /// This one.
    Version(u32),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => write!(f, "@{alias}"),
            Self::Version(version) => write!(f, "/{version}"),
        }
    }
}

/// A reference to a model version: `flight-delay@champion` or `flight-delay/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The model.
    pub model: String,
    /// Which of its versions.
    pub selector: Selector,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.model, self.selector)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (model, selector) = if let Some((model, alias)) = text.split_once('@') {
            check_alias(alias)?;
            (model, Selector::Alias(alias.to_owned()))
        } else {
            let version = text.split_once('/').and_then(|(model, version)| {
                let number = version.parse::<u32>().ok().filter(|number| *number > 0)?;
                // `007` and `+7` would be second names of version 7.
                (number.to_string() == version).then_some((model, Selector::Version(number)))
            });
            version.ok_or_else(|| {
                let shown: String = text.chars().take(128).flat_map(char::escape_default).collect();
                Error::request(format!(
                    "`{shown}` names no model version: write MODEL@ALIAS or MODEL/VERSION"
                ))
            })?
        };
        check_name("a model", model)?;
        Ok(Self {
            model: model.to_owned(),
            selector,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_two_forms() {
        for good in ["flight-delay@champion", "flight-delay/1", "m@v1x", "m/12"] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "m",
            "m/",
            "m/0",
            "m/01",
            "m/+1",
            "m/x",
            "m@",
            "@a",
            "/1",
            "m@latest",
            "m@v3",
            "m@a@b",
            "a/b/1",
            "../m/1",
            "m/-1",
            "m/4294967296",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_versions_are_no_aliases() {
        for bad in ["latest", "Latest", "v1", "V22", "", "a b", "../x"] {
            assert!(check_alias(bad).is_err(), "{bad}");
        }
        for good in ["champion", "v", "version1", "v1.0", "latest-good"] {
            assert!(check_alias(good).is_ok(), "{good}");
        }
    }
}
