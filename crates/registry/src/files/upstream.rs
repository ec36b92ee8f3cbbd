//! Descriptions of models that another server runs.

use std::{fs::File, io::Read as _, path::Path};

use serde::Deserialize;
use url::Url;

use crate::error::{Error, Result};

/// The longest description, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// The longest name of a model or version of another server, in bytes.
const MAX_NAME_BYTES: usize = 1024;

/// What is written down of a model of another server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    upstream: Upstream,
}

/// Which model of which server of the Open Inference Protocol.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    url: String,
    model: String,
    #[serde(default)]
    version: String,
}

/// Checks the description at `path` of a model that another server runs. `digest` names it in errors.
pub fn check_upstream(path: &Path, digest: &str) -> Result<()> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    let refuse = |problem: &str| {
        Error::request(format!(
            "artifact {digest} describes no model of another server: {problem}"
        ))
    };
    let Description { upstream } = serde_json::from_slice(&text).map_err(|error| {
        refuse(&format!(
            r#"{error}; write {{"upstream": {{"url": "grpc://HOST:PORT", "model": "NAME", "version": "VERSION"}}}}"#
        ))
    })?;
    let is_server = Url::parse(&upstream.url).is_ok_and(|url| {
        matches!(url.scheme(), "grpc" | "grpcs")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.port().is_some()
            && matches!(url.path(), "" | "/")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if !is_server || upstream.url.ends_with('/') {
        return Err(refuse("`url` is not grpc://HOST:PORT, or with TLS grpcs://HOST:PORT"));
    }
    let is_name = |name: &str| name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control);
    if upstream.model.is_empty() || !is_name(&upstream.model) || !is_name(&upstream.version) {
        return Err(refuse(&format!(
            "`model` and `version` are names of at most {MAX_NAME_BYTES} bytes; only the version may be left out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("description");
        std::fs::write(&path, text).unwrap();
        check_upstream(&path, "sha256:00")
    }

    #[test]
    fn what_names_a_model_of_a_server_is_taken() {
        for text in [
            r#"{"upstream": {"url": "grpc://triton:8001", "model": "resnet"}}"#,
            r#"{"upstream": {"url": "grpcs://[::1]:443", "model": "a/b", "version": "3"}}"#,
        ] {
            check(text).unwrap();
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_wrong() {
        let url = |url: &str| format!(r#"{{"upstream": {{"url": "{url}", "model": "m"}}}}"#);
        for bad in [
            "http://t:1",
            "grpc://t",
            "grpc://:1",
            "grpc://t:1/",
            "grpc://t:1/m",
            "grpc://u@t:1",
            "grpc://t:1?a",
            "t:1",
        ] {
            let error = check(&url(bad)).unwrap_err().to_string();
            assert!(error.contains("`url` is not grpc://HOST:PORT"), "{bad}: {error}");
        }
        for (text, expected) in [
            ("", "write {\"upstream\""),
            ("{}", "missing field `upstream`"),
            (
                r#"{"upstream": {"url": "grpc://t:1", "model": "m", "x": 1}}"#,
                "unknown field `x`",
            ),
            (
                r#"{"upstream": {"url": "grpc://t:1", "model": ""}}"#,
                "only the version",
            ),
            (
                r#"{"upstream": {"url": "grpc://t:1", "model": "a\u0000b"}}"#,
                "are names",
            ),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(
                error.contains("sha256:00") && error.contains(expected),
                "{text}: {error}"
            );
        }
    }
}
