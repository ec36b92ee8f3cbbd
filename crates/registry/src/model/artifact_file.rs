//! Artifacts by path, as MLflow's clients name them, and uploads in parts.
//!
//! A path is a key in the database and never a path of a disk here; but clients make paths of their disks from it, so that one that
//! could lead out of its folder is refused.

use std::{fmt, ops::Range};

use modelyard_artifacts::{BlockDigests, Digest};
use modelyard_auth::token::TokenHash;
use modelyard_common::Timestamp;

use super::page::Cursor;
use crate::error::{Error, Result};

/// The longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 1000;
/// The most names of a path.
pub const MAX_PATH_DEPTH: usize = 64;
/// The most parts of an upload.
pub const MAX_PARTS: u32 = 10_000;
/// The largest part, in bytes.
pub const MAX_PART_BYTES: u64 = 5 << 30;
/// The most uploads of a project that are going on.
pub const MAX_OPEN_UPLOADS: i64 = 1000;
/// How often a path is decoded, at most: MLflow decodes until nothing changes.
const MAX_DECODINGS: usize = 10;
/// What follows `/` in the order of bytes: where the range of a folder ends.
const AFTER_SLASH: char = '0';
/// The least character that a path can have.
const LEAST: char = ' ';

/// The path of an artifact, such as `1/RUN/artifacts/model/MLmodel`: names with `/` between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactPath(String);

/// Paths are refused in MLflow's words, which its clients know, and what would be right is added.
fn invalid_path() -> Error {
    Error::request(format!(
        "Invalid path: use names with `/` between them, {MAX_PATH_BYTES} bytes and {MAX_PATH_DEPTH} names at most, without `..`, \
         empty names, `\\`, `#` and control characters"
    ))
}

/// Whether a character may be in a path. The greatest one is kept for the end of ranges.
const fn is_allowed(character: char) -> bool {
    !matches!(character, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\\' | '#' | char::MAX)
}

fn is_drive(name: &str) -> bool {
    matches!(name.as_bytes(), [letter, b':'] if letter.is_ascii_alphabetic())
}

impl ArtifactPath {
    /// Reads a path as a client sends it. What is still percent-encoded is decoded until nothing changes, as MLflow does, and what
    /// comes out is what is checked and used.
    pub fn parse(text: &str) -> Result<Self> {
        // Encoded, it is three times as long.
        if text.len() > 3 * MAX_PATH_BYTES {
            return Err(invalid_path());
        }
        let mut path = text.to_owned();
        let mut decodings = 0;
        loop {
            let decoded = decode(&path).ok_or_else(invalid_path)?;
            if decoded == path {
                break;
            }
            path = decoded;
            decodings += 1;
            if decodings > MAX_DECODINGS {
                return Err(invalid_path());
            }
        }
        let is_good_name = |name: &str| !matches!(name, "" | "." | "..");
        let is_good = path.len() <= MAX_PATH_BYTES
            && path.chars().all(is_allowed)
            && path.split('/').all(is_good_name)
            && path.split('/').count() <= MAX_PATH_DEPTH
            && !path.split('/').next().is_some_and(is_drive);
        if is_good { Ok(Self(path)) } else { Err(invalid_path()) }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// The folders that it is in, the outermost first.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').filter_map(|(at, _)| self.0.get(..at))
    }
}

impl fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decodes `%41` to `A`; what is no such thing stays. None: it is no text.
fn decode(text: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let decoded = match tail {
            [high, low, after @ ..] if *first == b'%' => digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| (high * 16 + low, after)),
            _ => None,
        };
        let (byte, after) = decoded.unwrap_or((*first, tail));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// A folder of artifacts: the root of a project, or what has files below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactFolder(Option<ArtifactPath>);

impl ArtifactFolder {
    /// Where all artifacts of a project are.
    pub const ROOT: Self = Self(None);

    /// Reads a folder as a client sends it: empty is the root, and `/` at its end is left out.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::ROOT);
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        ArtifactPath::parse(path).map(Self::from)
    }

    /// What is below this one.
    pub fn join(&self, below: &str) -> Result<Self> {
        match (&self.0, below) {
            (_, "") => Ok(self.clone()),
            (None, _) => Self::parse(below),
            // Checked alone first: it must not lead out of this folder, however both are read together.
            (Some(own), _) => match Self::parse(below)?.0 {
                Some(below) => ArtifactPath::parse(&format!("{own}/{below}")).map(Self::from),
                None => Ok(self.clone()),
            },
        }
    }

    /// A file in this folder.
    pub fn file(&self, name: &str) -> Result<ArtifactPath> {
        let name = ArtifactPath::parse(name)?;
        match &self.0 {
            None => Ok(name),
            Some(own) => ArtifactPath::parse(&format!("{own}/{name}")),
        }
    }

    /// Its name where decisions and messages name it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or("/", ArtifactPath::as_str)
    }

    /// What the paths below it begin with.
    pub(crate) fn prefix(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |path| format!("{path}/"))
    }

    /// The text before which the paths below it end.
    pub(crate) fn end(&self) -> String {
        self.0
            .as_ref()
            .map_or_else(|| char::MAX.to_string(), |path| format!("{path}{AFTER_SLASH}"))
    }

    /// The text from which its list goes on.
    pub(crate) fn start(&self, after: Option<&FolderPlace>) -> String {
        let prefix = self.prefix();
        match after {
            None => prefix,
            Some(FolderPlace(place)) => match place.strip_suffix('/') {
                Some(folder) => format!("{prefix}{folder}{AFTER_SLASH}"),
                None => format!("{prefix}{place}{LEAST}"),
            },
        }
    }
}

impl From<ArtifactPath> for ArtifactFolder {
    fn from(path: ArtifactPath) -> Self {
        Self(Some(path))
    }
}

/// A place in the list of a folder: a name, with `/` at its end for a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderPlace(String);

impl Cursor for FolderPlace {
    fn read(text: &str) -> Option<Self> {
        let is_good = text.len() <= MAX_PATH_BYTES + 1 && !text.is_empty() && text.chars().all(is_allowed);
        is_good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// A place in the list of all files below a folder: a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlace(ArtifactPath);

impl FilePlace {
    /// The text from which the list goes on.
    pub(crate) fn start(&self) -> String {
        format!("{}{LEAST}", self.0)
    }
}

impl Cursor for FilePlace {
    fn read(text: &str) -> Option<Self> {
        ArtifactPath::parse(text).ok().map(Self)
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactFile {
    /// The project.
    pub project: String,
    /// Its path.
    pub path: ArtifactPath,
    /// The digest of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What parts of its content are verified by, if that is known and there is more than one.
    pub blocks: Option<BlockDigests>,
    /// When it was written last.
    pub created_at: Timestamp,
}

impl ArtifactFile {
    /// Its place in the list of all files.
    pub(crate) fn place(&self) -> FilePlace {
        FilePlace(self.path.clone())
    }
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its name, relative to where was asked.
    pub path: String,
    /// The size of a file in bytes; none: it is a folder.
    pub size_bytes: Option<u64>,
}

impl FolderEntry {
    /// Whether it is a folder.
    #[must_use]
    pub const fn is_folder(&self) -> bool {
        self.size_bytes.is_none()
    }

    /// Its place in the list of its folder.
    pub(crate) fn place(&self) -> FolderPlace {
        FolderPlace(match self.size_bytes {
            Some(_) => self.path.clone(),
            None => format!("{}/", self.path),
        })
    }

    /// The entry of a folder that the first path in it shows.
    pub(crate) fn of_path(prefix: &str, path: &str, size_bytes: u64) -> Self {
        let below = path.strip_prefix(prefix).unwrap_or(path);
        match below.split_once('/') {
            Some((folder, _)) => Self {
                path: folder.to_owned(),
                size_bytes: None,
            },
            None => Self {
                path: below.to_owned(),
                size_bytes: Some(size_bytes),
            },
        }
    }
}

/// A file that arrives in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub upload_id: String,
    /// The project.
    pub project: String,
    /// What the file will be.
    pub path: ArtifactPath,
    /// How many parts it has.
    pub part_count: u32,
    /// What is stored of the secret that opens it for parts.
    pub secret_hash: TokenHash,
    /// When it began.
    pub created_at: Timestamp,
    /// Whether the file is there.
    pub is_complete: bool,
}

/// A part that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadPart {
    /// Its number, from 1.
    pub number: u32,
    /// The digest of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A part as a client names it to complete an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenPart {
    /// Its number.
    pub number: u32,
    /// What the server answered when it arrived; none: the client did not keep it.
    pub tag: Option<String>,
}

/// The tag of a content, as HTTP writes it.
#[must_use]
pub fn entity_tag(digest: Digest) -> String {
    format!("\"{digest}\"")
}

/// The parts of a file in order: those that were chosen, if they have arrived as the client believes.
pub fn choose_parts(chosen: &[ChosenPart], arrived: &[UploadPart]) -> Result<Vec<UploadPart>> {
    let mut parts = Vec::with_capacity(chosen.len().min(arrived.len()));
    let mut before = 0;
    for ChosenPart { number, tag } in chosen {
        if *number <= before {
            return Err(Error::request(format!(
                "part {number} stands after part {before}: name each part once, in order"
            )));
        }
        before = *number;
        let found = arrived.iter().find(|part| part.number == *number);
        let part = found.ok_or_else(|| Error::request(format!("part {number} has not arrived: upload it first")))?;
        let is_same = |tag: &String| tag.trim_matches('"') == part.digest.to_string();
        if !tag.as_ref().is_none_or(is_same) {
            return Err(Error::request(format!(
                "part {number} has the tag {}, not the one that is named: upload it again",
                entity_tag(part.digest)
            )));
        }
        parts.push(*part);
    }
    Ok(parts)
}

/// Some bytes of a file, as a client asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first to the last, or to the end.
    From(u64, Option<u64>),
    /// The last ones.
    Last(u64),
}

impl ByteRange {
    /// Reads a header `Range`. None: it is none, or asks for several ranges at once, and the whole file is answered.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, range) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().unwrap_or(u64::MAX))
        };
        match range.trim().split_once('-')? {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(|first| Self::From(first, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The bytes in a file of a size. None: it has none of them.
    #[must_use]
    pub fn within(self, size_bytes: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(size_bytes, |last| last.saturating_add(1).min(size_bytes)),
            Self::Last(count) => size_bytes.saturating_sub(count)..size_bytes,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_lead_out_of_a_folder_is_no_path() {
        for good in [
            "a",
            "1/2f/artifacts/model/MLmodel",
            "a b/ü.txt",
            "100%.txt",
            "..a/b..",
            "C:x",
            "a+b",
        ] {
            assert_eq!(ArtifactPath::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(ArtifactPath::parse("a%20b").unwrap().as_str(), "a b");
        let (long, deep) = ("x".repeat(MAX_PATH_BYTES + 1), "x/".repeat(MAX_PATH_DEPTH) + "x");
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "a\\..\\b",
            "\\\\server\\share",
            "C:/x",
            "C:",
            "a#b",
            "a\0b",
            "a\nb",
            "%2e%2e/a",
            "%252e%252e/a",
            "a%2f..%2fb",
            "%5cx",
            "%2Fetc",
            "%00",
            "%ff",
            "file:///etc/passwd",
            "a\u{10ffff}",
            &long,
            &deep,
        ] {
            let error = ArtifactPath::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("Invalid path"), "{bad}: {error}");
        }
    }

    #[test]
    fn folders_hold_what_is_below_them_and_nothing_else() {
        let folder = ArtifactFolder::parse("a/b/").unwrap();
        assert_eq!((folder.prefix().as_str(), folder.end().as_str()), ("a/b/", "a/b0"));
        assert_eq!(folder.join("c").unwrap(), ArtifactFolder::parse("a/b/c").unwrap());
        assert_eq!(folder.join("").unwrap(), folder);
        assert_eq!(folder.file("c.txt").unwrap().as_str(), "a/b/c.txt");
        for bad in ["..", "../c", "/c", "%2e%2e"] {
            assert!(folder.join(bad).is_err() && folder.file(bad).is_err(), "{bad}");
        }
        let path = ArtifactPath::parse("a/b/c").unwrap();
        assert_eq!(path.folders().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(path.name(), "c");
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let within = |header: &str| ByteRange::parse(header).map(|range| range.within(10));
        assert_eq!(within("bytes=2-4"), Some(Some(2..5)));
        assert_eq!(within("bytes=2-"), Some(Some(2..10)));
        assert_eq!(within("bytes=2-99999999999999999999"), Some(Some(2..10)));
        assert_eq!(within("bytes=-3"), Some(Some(7..10)));
        assert_eq!(within("bytes=-30"), Some(Some(0..10)));
        for nothing in ["bytes=10-", "bytes=-0", "bytes=18446744073709551615-"] {
            assert_eq!(within(nothing), Some(None), "{nothing}");
        }
        for no_range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=4-2",
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=+1-2",
        ] {
            assert_eq!(within(no_range), None, "{no_range}");
        }
    }

    #[test]
    fn a_file_is_made_of_the_parts_that_have_arrived() {
        let part = |number, text: &[u8]| UploadPart {
            number,
            digest: Digest::of(text),
            size_bytes: 1,
        };
        let arrived = [part(1, b"a"), part(3, b"c")];
        let choose = |numbers: &[(u32, Option<String>)]| {
            let chosen: Vec<_> = numbers
                .iter()
                .map(|(number, tag)| ChosenPart {
                    number: *number,
                    tag: tag.clone(),
                })
                .collect();
            choose_parts(&chosen, &arrived)
        };
        assert_eq!(
            choose(&[(1, Some(entity_tag(Digest::of(b"a")))), (3, None)]).unwrap(),
            arrived
        );
        for (numbers, problem) in [
            (vec![(2, None)], "has not arrived"),
            (vec![(3, None), (1, None)], "in order"),
            (vec![(1, None), (1, None)], "once"),
            (vec![(0, None)], "in order"),
            (vec![(1, Some("\"x\"".to_owned()))], "the tag"),
        ] {
            let error = choose(&numbers).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    /// Texts of what attacks are made of, and of anything.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("..".to_owned()),
            Just(".".to_owned()),
            Just("/".to_owned()),
            Just("\\".to_owned()),
            Just("%2e".to_owned()),
            Just("%2F".to_owned()),
            Just("%25".to_owned()),
            Just("%5c".to_owned()),
            Just("C:".to_owned()),
            "[a-z%0-9]{1,3}",
            any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_below_its_root(text in texts(), folder in texts()) {
            if let Ok(path) = ArtifactPath::parse(&text) {
                let is_below = |text: &str| {
                    !text.is_empty() && Path::new(text).components().all(|part| matches!(part, Component::Normal(_)))
                };
                prop_assert!(is_below(path.as_str()), "{path}");
                prop_assert!(!path.as_str().contains(['\\', '\0']));
                // Whoever decodes it once more finds the same.
                prop_assert_eq!(decode(path.as_str()), Some(path.to_string()));
                prop_assert_eq!(&ArtifactPath::parse(path.as_str()).unwrap(), &path);
                prop_assert!(path.as_str() >= "" && path.as_str() < ArtifactFolder::ROOT.end().as_str());
                if let Ok(folder) = ArtifactFolder::parse(&folder)
                    && let Ok(file) = folder.file(&text)
                {
                    prop_assert!(file.as_str().starts_with(&folder.prefix()));
                    prop_assert!(folder.prefix().as_str() <= file.as_str() && file.as_str() < folder.end().as_str());
                    prop_assert_eq!(file.as_str().len(), folder.prefix().len() + path.as_str().len());
                }
            }
        }

        #[test]
        fn a_list_goes_on_after_each_entry(first in "[ -.0-~/]{1,6}", second in "[ -.0-~/]{1,6}") {
            if let (Ok(first), Ok(second)) = (ArtifactPath::parse(&first), ArtifactPath::parse(&second)) {
                let entry = FolderEntry::of_path("", first.as_str(), 1);
                let start = ArtifactFolder::ROOT.start(Some(&entry.place()));
                let other = FolderEntry::of_path("", second.as_str(), 1);
                prop_assert_eq!(second.as_str() >= start.as_str(), other != entry && second > first);
            }
        }
    }
}
