//! Registered models and versions as MLflow's protocol knows them, and what it refuses, in its words.

use std::collections::BTreeMap;

use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use serde::Serialize;

use super::registered_model::{MAX_TAG_BYTES, NewModelVersion};
use crate::error::{Error, Result};

/// The tag that tells prompts from models.
pub const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";
/// The tag of a logged model that lists the versions that were made of it.
pub const MODEL_VERSIONS_TAG: &str = "mlflow.modelVersions";
/// The alias that always means the newest version.
pub const LATEST_ALIAS: &str = "latest";
/// The sources of prompts, which have none.
pub const PROMPT_SOURCES: [&str; 2] = ["dummy-source", "prompt-template"];
/// The tag with the text of a prompt.
const PROMPT_TEXT_TAG: &str = "mlflow.prompt.text";

/// The longest name of a model, in characters.
const MAX_NAME_CHARS: usize = 256;
/// The longest alias, in characters.
const MAX_ALIAS_CHARS: usize = 255;
/// The longest key of a tag, in characters.
const MAX_KEY_CHARS: usize = 250;
/// The most bytes of a value of a tag: MLflow counts characters, which have up to four.
const MAX_VALUE_BYTES: usize = 4 * MAX_TAG_BYTES;
/// The most tags that a model or version is made with.
const MAX_NEW_TAGS: usize = 1000;

/// Where a version stands on its way to production. Deprecated by MLflow in favour of aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Stage {
    /// Nowhere.
    None,
    /// On trial.
    Staging,
    /// In use.
    Production,
    /// No longer in use.
    Archived,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 4] = [Self::None, Self::Staging, Self::Production, Self::Archived];

    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Staging => "Staging",
            Self::Production => "Production",
            Self::Archived => "Archived",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.as_str().eq_ignore_ascii_case(text))
    }

    /// A stage as a client writes it, in any case.
    pub fn read(text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| {
            Error::request(format!(
                "Invalid Model Version stage: {}. Value must be one of None, Staging, Production, Archived.",
                shown(text)
            ))
        })
    }

    /// Whether versions are in use in this stage, so that a new one takes the place of the others.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Staging | Self::Production)
    }
}

/// Whether a version can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum VersionStatus {
    /// It can.
    Ready,
    /// Not yet.
    Pending,
    /// It never will.
    Failed,
}

impl VersionStatus {
    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Pending => "PENDING_REGISTRATION",
            Self::Failed => "FAILED_REGISTRATION",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Ready, Self::Pending, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A version as MLflow's clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionEntry {
    /// The project.
    pub project: String,
    /// The model.
    pub model: String,
    /// 1, 2, 3 and so on.
    pub version: u32,
    /// What it is.
    pub description: String,
    /// Who made it, as its client said; empty: that was not said.
    pub user_id: String,
    /// Where it stands.
    pub stage: Stage,
    /// Where it came from; empty: it was registered as a file.
    pub source: String,
    /// Where its files are; empty: at its source.
    pub storage_location: String,
    /// The file that is served; empty: there is none.
    pub artifact_digest: String,
    /// The run that made it, which need not be one of this server.
    pub run_id: Option<String>,
    /// A link to that run.
    pub run_link: String,
    /// Whether it can be used.
    pub status: VersionStatus,
    /// Why not.
    pub status_message: String,
    /// The logged model that was registered.
    pub model_id: Option<String>,
    /// The aliases that point at it.
    pub aliases: Vec<String>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// A registered model as MLflow's clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelEntry {
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Its aliases with their versions.
    pub aliases: Vec<(String, u32)>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// The newest version of each stage.
    pub latest: Vec<VersionEntry>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl VersionEntry {
    /// Where clients find its files.
    #[must_use]
    pub fn download_uri(&self) -> Option<&str> {
        [&self.storage_location, &self.source]
            .into_iter()
            .find(|uri| !uri.is_empty())
            .map(String::as_str)
    }
}

impl ModelEntry {
    /// Whether it is a prompt.
    #[must_use]
    pub fn is_prompt(&self) -> bool {
        is_prompt(&self.tags)
    }

    /// Its newest version.
    #[must_use]
    pub fn newest(&self) -> Option<&VersionEntry> {
        self.latest.iter().max_by_key(|version| version.version)
    }
}

/// A registered model to be created.
#[derive(Debug, Clone)]
pub struct NewModelEntry {
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Notes.
    pub tags: BTreeMap<String, String>,
    /// What the audit chain is told.
    pub event: NewEvent,
}

/// A version to be created.
#[derive(Debug, Clone)]
pub struct NewVersionEntry {
    /// What every version has. An empty digest: it has no file that could be served.
    pub version: NewModelVersion,
    /// Where it came from.
    pub source: String,
    /// Where its files are; empty: at its source.
    pub storage_location: String,
    /// The run that made it, as the client named it.
    pub run_id: Option<String>,
    /// A link to that run.
    pub run_link: String,
    /// Why it cannot be served, where one would expect that it can.
    pub status_message: String,
    /// The logged model that is registered.
    pub model_id: Option<String>,
}

/// A logged model as far as a version that is made of it needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedSource {
    /// Where its files are.
    pub artifact_location: String,
    /// The run that logged it.
    pub run_id: Option<String>,
}

/// Whether tags are those of a prompt.
#[must_use]
pub fn is_prompt(tags: &BTreeMap<String, String>) -> bool {
    tags.get(PROMPT_TAG)
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// A text in a message: bounded, on one line.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// A missing model.
pub(crate) fn no_model(name: &str) -> Error {
    Error::NotThere(format!("Registered Model with name={} not found", shown(name)))
}

/// A missing version.
pub(crate) fn no_version(name: &str, version: impl std::fmt::Display) -> Error {
    Error::NotThere(format!(
        "Model Version (name={}, version={version}) not found",
        shown(name)
    ))
}

/// A path as POSIX shortens it, without looking at any folder.
fn normal_path(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Refuses a name that is another name when it is used as a path.
fn check_path(parameter: &str, name: &str) -> Result<()> {
    let normal = normal_path(name);
    if normal == name && normal != "." && !normal.starts_with("..") && !normal.starts_with('/') {
        return Ok(());
    }
    Err(Error::request(format!(
        "Invalid value {} for parameter '{parameter}' supplied: Names may be treated as files in certain cases, and must \
         not resolve to other names when treated as such. This name would resolve to '{}'",
        quoted(name),
        shown(&normal)
    )))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(shown(text)).to_string()
}

fn check_length(what: &str, text: &str, limit_chars: usize) -> Result<()> {
    if text.chars().count() <= limit_chars {
        return Ok(());
    }
    Err(Error::request(format!(
        "'{what}' exceeds the maximum length of {limit_chars} characters"
    )))
}

/// Checks the name of a model, given as `parameter`.
pub fn check_model_name(parameter: &str, name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::request(format!(
            "Missing value for required parameter '{parameter}'."
        )));
    }
    if name.contains(['/', ':']) {
        return Err(Error::request(format!(
            "Invalid model name '{}'. Names cannot contain '/' or ':'.",
            shown(name)
        )));
    }
    check_path("name", name)?;
    check_length(parameter, name, MAX_NAME_CHARS)?;
    if name.chars().any(char::is_control) {
        return Err(Error::request(format!(
            "Invalid model name '{}'. Names are written on one line.",
            shown(name)
        )));
    }
    Ok(())
}

/// Checks an alias.
pub fn check_alias_name(alias: &str) -> Result<()> {
    if alias.is_empty() {
        return Err(Error::request("Registered model alias name cannot be empty."));
    }
    if !alias.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        return Err(Error::request(format!(
            "Invalid alias name: '{}'. Names may only contain alphanumerics, underscores (_), and dashes (-).",
            shown(alias)
        )));
    }
    check_length("Registered model alias name", alias, MAX_ALIAS_CHARS)
}

/// Refuses aliases that mean versions.
pub fn check_alias_free(alias: &str) -> Result<()> {
    if alias.eq_ignore_ascii_case(LATEST_ALIAS) {
        return Err(Error::request("'latest' alias name (case insensitive) is reserved."));
    }
    let is_version = alias
        .strip_prefix(['v', 'V'])
        .is_some_and(|digits| !digits.is_empty() && digits.chars().all(char::is_numeric));
    if is_version {
        return Err(Error::request(format!("Version alias name '{alias}' is reserved.")));
    }
    Ok(())
}

/// Checks the key of a tag.
pub fn check_tag_key(key: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | ':' | '/');
    if !key.chars().all(is_allowed) {
        return Err(Error::request(format!(
            "Invalid value {} for parameter 'key' supplied: Names may only contain alphanumerics, underscores (_), dashes \
             (-), periods (.), spaces ( ), colon(:) and slashes (/).",
            quoted(key)
        )));
    }
    check_path("key", key)?;
    check_length("key", key, MAX_KEY_CHARS)
}

/// Checks a tag of a model or version.
pub fn check_tag(key: &str, value: &str) -> Result<()> {
    check_tag_key(key)?;
    if key == PROMPT_TEXT_TAG && value.chars().count() > MAX_TAG_BYTES {
        return Err(Error::request(format!(
            "Prompt text exceeds max length of {MAX_TAG_BYTES} characters."
        )));
    }
    check_length("value", value, MAX_TAG_BYTES)?;
    super::run::check_text("tag", key, value, MAX_VALUE_BYTES)
}

/// The tags of something new; the last of several with one key counts.
pub fn collect_tags(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>> {
    if pairs.len() > MAX_NEW_TAGS {
        return Err(Error::request(format!(
            "{} tags are too many at once: send at most {MAX_NEW_TAGS}",
            pairs.len()
        )));
    }
    for (key, value) in &pairs {
        check_tag(key, value)?;
    }
    Ok(pairs.into_iter().collect())
}

/// The number of a version. None: there is certainly no such version.
pub fn read_version(text: &str) -> Result<Option<u32>> {
    let number: i64 = text.trim().parse().map_err(|_| {
        Error::request(format!(
            "Parameter 'version' must be an integer, got '{}'.",
            shown(text)
        ))
    })?;
    Ok(u32::try_from(number).ok().filter(|number| *number > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths() {
        for good in ["a", "my model", "\u{e9}t\u{e9}", "a@b", "v1", "\u{1f600}", ".hidden"] {
            assert!(check_model_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", " ", "a/b", "a:b", ".", "..", "..a", "a\nb", "a\0"] {
            assert!(check_model_name("name", bad).is_err(), "{bad:?}");
        }
        assert!(check_model_name("name", &"x".repeat(257)).is_err());
        let refused = check_model_name("new_name", "").unwrap_err();
        assert_eq!(refused.to_string(), "Missing value for required parameter 'new_name'.");
        let refused = check_model_name("name", "a/b").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Invalid model name 'a/b'. Names cannot contain '/' or ':'."
        );
    }

    #[test]
    fn paths_are_shortened_as_posix_does() {
        for (path, normal) in [
            ("a/b", "a/b"),
            ("a//b/", "a/b"),
            ("./a", "a"),
            ("a/../b", "b"),
            ("../a", "../a"),
            ("../../a", "../../a"),
            ("/../a", "/a"),
            ("", "."),
            ("a/..", "."),
        ] {
            assert_eq!(normal_path(path), normal, "{path}");
        }
    }

    #[test]
    fn keys_of_tags_are_checked() {
        for good in ["a", "mlflow.prompt.is_prompt", "a/b", "a: b", "_x-y"] {
            assert!(check_tag(good, "").is_ok(), "{good}");
        }
        for bad in ["", "a/../b", "/a", "a//b", "a%b", "a\n", &"k".repeat(251)] {
            assert!(check_tag(bad, "").is_err(), "{bad:?}");
        }
        assert!(check_tag("k", &"\u{e9}".repeat(MAX_TAG_BYTES)).is_ok());
        assert!(check_tag("k", &"x".repeat(MAX_TAG_BYTES + 1)).is_err());
        assert!(check_tag("k", "a\0").is_err());
    }

    #[test]
    fn aliases_are_words() {
        for good in ["champion", "v", "v1x", "a_b-c", "latest-good", "_"] {
            assert!(
                check_alias_name(good).and_then(|()| check_alias_free(good)).is_ok(),
                "{good}"
            );
        }
        for bad in ["", "a.b", "a b", "@", "latest", "LATEST", "v1", "V22"] {
            assert!(
                check_alias_name(bad).and_then(|()| check_alias_free(bad)).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn stages_and_versions_are_read_leniently() {
        assert_eq!(Stage::read("production").unwrap(), Stage::Production);
        assert_eq!(
            Stage::read("live").unwrap_err().to_string(),
            "Invalid Model Version stage: live. Value must be one of None, Staging, Production, Archived."
        );
        assert_eq!(read_version(" 7 ").unwrap(), Some(7));
        for nowhere in ["0", "-1", "99999999999"] {
            assert_eq!(read_version(nowhere).unwrap(), None);
        }
        assert_eq!(
            read_version("x").unwrap_err().to_string(),
            "Parameter 'version' must be an integer, got 'x'."
        );
    }
}
