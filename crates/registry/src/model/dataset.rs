//! Datasets and their immutable versions.

use std::{collections::BTreeMap, fmt};

use modelyard_artifacts::Digest;
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::column::Column,
};

/// The most files of a dataset version.
pub const MAX_FILES: usize = 10_000;
/// The longest name of a file in a dataset, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 255;
/// The longest description of a version, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 20_000;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values with a header.
    Csv,
}

impl FileFormat {
    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Parquet, Self::Csv]
            .into_iter()
            .find(|format| format.as_str() == text)
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A file of a dataset version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatasetFile {
    /// Its name in the dataset, a plain file name.
    pub name: String,
    /// Its content: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// What it is.
    pub format: FileFormat,
}

/// A dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Dataset {
    /// The project.
    pub project: String,
    /// Its name.
    pub name: String,
    /// Its newest version.
    pub latest_version: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it got its newest version.
    pub updated_at: Timestamp,
}

/// A dataset version without its list of files, as in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatasetVersionSummary {
    /// The project.
    pub project: String,
    /// The dataset.
    pub dataset: String,
    /// 1, 2, 3 and so on.
    pub version: u32,
    /// What its maker said about it.
    pub description: String,
    /// Digest of the manifest: names and contents of the files.
    pub digest: String,
    /// Rows of all files.
    pub rows: u64,
    /// Size of all files in bytes.
    pub size_bytes: u64,
    /// Its columns.
    pub columns: Vec<Column>,
    /// The blob with its profile (JSON).
    pub profile_digest: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A dataset version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatasetVersion {
    /// All but the files.
    #[serde(flatten)]
    pub summary: DatasetVersionSummary,
    /// Its files, in their order.
    pub files: Vec<DatasetFile>,
}

/// A file as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileReference {
    /// Its name in the dataset, a plain file name.
    pub name: String,
    /// Its content, uploaded before: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

/// Checks the name of a file in a dataset: it may be any text that is one plain file name.
pub fn check_file_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_control() || matches!(c, '/' | '\\');
    let good =
        !name.is_empty() && name.len() <= MAX_FILE_NAME_BYTES && !matches!(name, "." | "..") && !name.contains(bad);
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is not a name for a file: use 1 to {MAX_FILE_NAME_BYTES} bytes without slashes"
    )))
}

/// The digest of a manifest: names and contents of the files in their order.
pub fn manifest_digest<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut manifest = String::new();
    for (name, digest) in files {
        // Names have no line breaks and digests have no spaces, so that no two manifests read the same.
        manifest.push_str(digest);
        manifest.push(' ');
        manifest.push_str(name);
        manifest.push('\n');
    }
    Digest::of(manifest.as_bytes()).to_string()
}

/// Those of `added` that `present` does not have. The same name with other content is an error: a version's files never
/// change.
pub fn new_files(present: &[DatasetFile], added: &[FileReference]) -> Result<Vec<FileReference>> {
    let mut known: BTreeMap<&str, &str> = present
        .iter()
        .map(|file| (file.name.as_str(), file.digest.as_str()))
        .collect();
    let mut new = Vec::new();
    for file in added {
        match known.insert(&file.name, &file.digest) {
            None => new.push(file.clone()),
            Some(digest) if digest == file.digest => {}
            Some(_) => {
                return Err(Error::request(format!(
                    "file `{}` is there already with other content: give the new one another name",
                    file.name
                )));
            }
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str, digest: &str) -> FileReference {
        FileReference {
            name: name.to_owned(),
            digest: digest.to_owned(),
        }
    }

    #[test]
    fn what_could_be_a_path_is_no_file() {
        for good in ["2013-01.parquet", "a b.csv", "\u{e9}.csv"] {
            assert!(check_file_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_FILE_NAME_BYTES + 1);
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", long.as_str()] {
            assert!(check_file_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_file_again_is_no_change_and_another_under_its_name_is_an_error() {
        let present = DatasetFile {
            name: "a".to_owned(),
            digest: "1".to_owned(),
            size_bytes: 1,
            rows: 1,
            format: FileFormat::Csv,
        };
        let present = [present];
        assert_eq!(new_files(&present, &[reference("a", "1")]).unwrap(), []);
        let new = new_files(&present, &[reference("b", "2"), reference("b", "2")]).unwrap();
        assert_eq!(new, [reference("b", "2")]);
        assert!(new_files(&present, &[reference("a", "2")]).is_err());
        assert!(new_files(&[], &[reference("a", "1"), reference("a", "2")]).is_err());
    }

    #[test]
    fn a_manifest_is_its_names_contents_and_order() {
        let all = [
            manifest_digest([("a", "1"), ("b", "2")]),
            manifest_digest([("b", "2"), ("a", "1")]),
            manifest_digest([("a", "2"), ("b", "1")]),
            manifest_digest([("a", "1")]),
        ];
        for (index, digest) in all.iter().enumerate() {
            assert!(!all[..index].contains(digest));
        }
    }
}
