//! Where a model version comes from: URIs as MLflow's clients write them, and which of them are refused.

use super::{mlflow_registry::shown, tracking::PROXY_SCHEME};
use crate::error::{Error, Result};

/// The longest source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 4096;
/// How often a text is decoded before it is refused: each time costs a pass over it.
const MAX_DECODINGS: usize = 16;
/// The path below which this server's artifacts are reached by HTTP.
const PROXY_ROUTE: [&str; 4] = ["api", "2.0", "mlflow-artifacts", "artifacts"];

/// A URI in its parts, without query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// In lower case; empty: it is a path.
    pub scheme: String,
    /// The host; often empty.
    pub authority: String,
    /// The path, as it is written.
    pub path: String,
}

impl Uri {
    /// Splits a text.
    #[must_use]
    pub fn split(text: &str) -> Self {
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        };
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => (String::new(), text),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        Self {
            scheme,
            authority: authority.to_ascii_lowercase(),
            path: path.to_owned(),
        }
    }

    /// Whether it is on the machine of whoever reads it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.scheme.is_empty() || self.scheme == "file"
    }

    /// Whether it is in the artifact store of an MLflow server.
    #[must_use]
    pub fn is_proxied(&self) -> bool {
        if self.scheme == "mlflow-artifacts" {
            return true;
        }
        let parts: Vec<String> = self.parts().collect();
        matches!(self.scheme.as_str(), "http" | "https")
            && parts.windows(PROXY_ROUTE.len()).any(|window| window == PROXY_ROUTE)
    }

    fn parts(&self) -> impl Iterator<Item = String> {
        self.path.split('/').filter(|part| !part.is_empty()).map(decode_fully)
    }

    /// Whether it is `root` or below it.
    #[must_use]
    pub fn is_within(&self, root: &Self) -> bool {
        let same_place =
            self.authority == root.authority && (self.scheme == root.scheme || (self.is_local() && root.is_local()));
        let mut parts = self.parts();
        let mut length = 0_usize;
        let is_below = root.parts().all(|part| {
            length += 1;
            parts.next().is_some_and(|own| own == part)
        });
        same_place && is_below && length > 0
    }

    /// The path with its names decoded.
    pub(crate) fn decoded_path(&self) -> String {
        self.parts().collect::<Vec<_>>().join("/")
    }

    /// The path in this server's artifact store, if it is there.
    #[must_use]
    pub fn proxied_path(&self) -> Option<String> {
        let is_ours = format!("{}:/", self.scheme) == PROXY_SCHEME && self.authority.is_empty();
        is_ours.then(|| self.parts().collect::<Vec<_>>().join("/"))
    }
}

/// One pass of percent decoding; bytes that are no text are shown as such.
fn decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn decode_fully(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_DECODINGS {
        let decoded = decode(&text);
        if decoded == text {
            break;
        }
        text = decoded;
    }
    text
}

/// Refuses a source that is too long or that hides a way out of its place: `..`, however it is encoded.
pub fn check_source(source: &str) -> Result<()> {
    let refuse = || {
        Error::request(format!(
            "Invalid model version source: '{}'. If supplying a source as an http, https, local file path, ftp, \
             objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path references \
             present. Please provide an absolute path.",
            shown(source)
        ))
    };
    if source.len() > MAX_SOURCE_BYTES {
        return Err(Error::request(format!(
            "the source has {} bytes: use at most {MAX_SOURCE_BYTES}",
            source.len()
        )));
    }
    let decoded = decode_fully(&source.replace('+', " "));
    // What is still encoded after so many passes was made to deceive.
    if decode(&decoded) != decoded || decoded.contains('\0') {
        return Err(refuse());
    }
    let path = Uri::split(&decoded).path;
    let path = path.trim_end_matches('/');
    let is_relative = |text: &str| text.split(['/', '\\']).any(|part| part == "..");
    if is_relative(&decoded) || !path.starts_with('/') || path.split('/').any(|part| part == ".") {
        return Err(refuse());
    }
    Ok(())
}

/// What a `models:` URI means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelUri {
    /// A logged model.
    Logged(String),
    /// A version of a registered model.
    Version(String, String),
    /// The newest version.
    Latest(String),
    /// The newest version of a stage.
    Stage(String, String),
    /// The version that an alias points at.
    Alias(String, String),
}

impl ModelUri {
    /// Reads the path of a `models:` URI; None: it means nothing.
    #[must_use]
    pub fn read(uri: &Uri) -> Option<Self> {
        let path = uri.path.strip_prefix('/')?.trim_start_matches('/');
        let mut parts = path.split('/');
        let (name, suffix) = (parts.next()?, parts.next());
        if name.trim().is_empty() || parts.next().is_some() {
            return None;
        }
        let owned = str::to_owned;
        Some(match suffix {
            Some(suffix) if suffix.trim().is_empty() => return None,
            Some(suffix) if suffix.bytes().all(|byte| byte.is_ascii_digit()) => {
                Self::Version(owned(name), owned(suffix))
            }
            Some(suffix) if suffix.eq_ignore_ascii_case("latest") => Self::Latest(owned(name)),
            Some(suffix) => Self::Stage(owned(name), owned(suffix)),
            None => match name.rsplit_once('@') {
                Some((_, alias)) if alias.trim().is_empty() => return None,
                Some((name, alias)) => Self::Alias(owned(name), owned(alias)),
                None => Self::Logged(owned(name)),
            },
        })
    }
}

/// The run and the path below its artifacts that a `runs:` URI means.
#[must_use]
pub fn read_run_uri(uri: &Uri) -> Option<(&str, &str)> {
    let path = uri.path.strip_prefix('/')?;
    let (run_id, path) = path.split_once('/').unwrap_or((path, ""));
    (!run_id.is_empty()).then_some((run_id, path))
}

/// A source that is not part of what `parameter` names.
pub(crate) fn unproven(source: &str, parameter: &str) -> Error {
    Error::request(format!(
        "Invalid model version source: '{}'. The {parameter} request parameter must identify the resource that contains \
         the source.",
        shown(source)
    ))
}

/// A local path that is not below the artifacts of what `parameter` names.
pub(crate) fn unproven_path(source: &str, parameter: &str) -> Error {
    Error::request(format!(
        "Invalid model version source: '{}'. To use a local path as a model version source, the {parameter} request \
         parameter has to be specified and the local path has to be contained within the artifact directory of the run \
         specified by the {parameter}.",
        shown(source)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_out_are_refused_however_they_are_written() {
        for good in [
            "mlflow-artifacts:/0/abc/artifacts/model",
            "mlflow-artifacts://host:5000/0/abc",
            "s3://bucket/models/1",
            "runs:/abc/model",
            "models:/m-123",
            "dbfs:/models/a b",
            "https://host/a..b/c",
        ] {
            assert!(check_source(good).is_ok(), "{good}");
        }
        for bad in [
            "mlflow-artifacts://host:9000/../../../../",
            "mlflow-artifacts:/0/../1",
            "mlflow-artifacts://host:9000/..%2f..%2f..%2f",
            "mlflow-artifacts:/0/%252e%252e/1",
            "mlflow-artifacts:/0/..%5c..%5c1",
            "http://host/api/2.0/mlflow-artifacts/artifacts%00",
            "http://host/api/2.0/mlflow-artifacts/artifacts%00/../../../",
            "s3://bucket",
            "s3:bucket/a",
            "s3://bucket/./a",
            "../a",
            "",
        ] {
            assert!(check_source(bad).is_err(), "{bad}");
        }
        let deep = format!("mlflow-artifacts:/0/%{}2e%2e/1", "25".repeat(40));
        assert!(check_source(&deep).is_err());
        assert!(check_source(&format!("s3://b/{}", "x".repeat(MAX_SOURCE_BYTES))).is_err());
    }

    #[test]
    fn a_source_is_below_its_root_or_not() {
        let within = |source: &str, root: &str| Uri::split(source).is_within(&Uri::split(root));
        let root = "mlflow-artifacts:/0/abc/artifacts";
        assert!(within("mlflow-artifacts:/0/abc/artifacts/model", root));
        assert!(within("mlflow-artifacts:/0/abc/%61rtifacts", root));
        assert!(within("/tmp/x/model", "file:///tmp/x"));
        for other in [
            "mlflow-artifacts:/0/abc/artifact",
            "mlflow-artifacts:/0/abcd/artifacts/model",
            "mlflow-artifacts://host/0/abc/artifacts",
            "s3:/0/abc/artifacts",
        ] {
            assert!(!within(other, root), "{other}");
        }
        assert!(
            !within("mlflow-artifacts:/0", "mlflow-artifacts:/"),
            "everything is no root"
        );
    }

    #[test]
    fn places_are_told_apart() {
        for local in ["/a/b", "a", "file:///a", "file:a"] {
            assert!(Uri::split(local).is_local(), "{local}");
        }
        assert!(!Uri::split("s3://a").is_local());
        assert!(Uri::split("https://h/x/api/2.0/mlflow-artifacts/artifacts/1").is_proxied());
        assert!(!Uri::split("https://h/api/2.0/other").is_proxied());
        assert_eq!(
            Uri::split("mlflow-artifacts:/0/a%20b/c/").proxied_path().as_deref(),
            Some("0/a b/c")
        );
        assert_eq!(Uri::split("mlflow-artifacts://h/0").proxied_path(), None);
    }

    #[test]
    fn uris_of_models_have_five_meanings() {
        let read = |text: &str| ModelUri::read(&Uri::split(text));
        let own = str::to_owned;
        assert_eq!(read("models:/m-1"), Some(ModelUri::Logged(own("m-1"))));
        assert_eq!(read("models:/a/3"), Some(ModelUri::Version(own("a"), own("3"))));
        assert_eq!(read("models:/a/Latest"), Some(ModelUri::Latest(own("a"))));
        assert_eq!(read("models:/a/prod"), Some(ModelUri::Stage(own("a"), own("prod"))));
        assert_eq!(read("models:/a@b@c"), Some(ModelUri::Alias(own("a@b"), own("c"))));
        for bad in [
            "models:",
            "models:/",
            "models:a",
            "models:/a/",
            "models:/a/1/2",
            "models:/a@",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read_run_uri(&Uri::split("runs:/r/a/b")), Some(("r", "a/b")));
        assert_eq!(read_run_uri(&Uri::split("runs:/r")), Some(("r", "")));
        assert_eq!(read_run_uri(&Uri::split("runs:/")), None);
    }
}
