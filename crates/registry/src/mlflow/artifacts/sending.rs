//! A file as an answer: whole, a part of it, or that the client has it.

use std::ops::Range;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::{
    mlflow::{error::Refusal, read::Tenant},
    model::artifact_file::{ArtifactFile, ArtifactPath, ByteRange, entity_tag},
    service::Registry,
};

/// What of a file is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sending {
    Whole,
    Part(Range<u64>),
    /// The client has it.
    NotModified,
    /// The file has no such bytes.
    Unsatisfiable,
}

impl Sending {
    fn of(method: &Method, headers: &HeaderMap, file: &ArtifactFile) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = entity_tag(file.digest);
        let is_same = |known: &str| matches!(known.trim(), "*") || known.trim().trim_start_matches("W/") == tag;
        if text(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(is_same)) {
            return Self::NotModified;
        }
        // Who has the beginning of another file starts anew.
        let is_wanted = *method == Method::GET && text(header::IF_RANGE).is_none_or(|known| known.trim() == tag);
        let range = text(header::RANGE).filter(|_| is_wanted).and_then(ByteRange::parse);
        match range.map(|range| range.within(file.size_bytes)) {
            None => Self::Whole,
            Some(Some(range)) => Self::Part(range),
            Some(None) => Self::Unsatisfiable,
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Whole => StatusCode::OK,
            Self::Part(_) => StatusCode::PARTIAL_CONTENT,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::Unsatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    /// The bytes of the content that are read for it.
    fn bytes(&self, file: &ArtifactFile) -> Option<Range<u64>> {
        match self {
            Self::Whole => Some(0..file.size_bytes),
            Self::Part(range) => Some(range.clone()),
            Self::NotModified | Self::Unsatisfiable => None,
        }
    }
}

/// Answers with a file, as something to be saved and never to be shown as a page of this server. The content is verified while it is
/// sent; when it is damaged the connection breaks before its end.
pub(in crate::mlflow) async fn send(
    registry: &Registry,
    tenant: &Tenant,
    path: &ArtifactPath,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let choose = |file: &ArtifactFile| match *method {
        Method::HEAD => None,
        _ => Sending::of(method, headers, file).bytes(file),
    };
    let (file, content) = registry.get_file(&tenant.caller, &tenant.project, path, choose).await?;
    let sending = Sending::of(method, headers, &file);
    let mut response = content.map_or_else(Body::empty, Body::from_stream).into_response();
    *response.status_mut() = sending.status();
    describe(response.headers_mut(), &file, &sending);
    Ok(response)
}

fn describe(headers: &mut HeaderMap, file: &ArtifactFile, sending: &Sending) {
    let mut insert = |name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    let size_bytes = file.size_bytes;
    match sending {
        Sending::Part(range) => {
            let last = range.end.saturating_sub(1);
            insert(
                header::CONTENT_RANGE,
                format!("bytes {}-{last}/{size_bytes}", range.start),
            );
        }
        Sending::Unsatisfiable => insert(header::CONTENT_RANGE, format!("bytes */{size_bytes}")),
        Sending::Whole | Sending::NotModified => {}
    }
    let length = sending.bytes(file).map_or(0, |range| range.end - range.start);
    if *sending != Sending::NotModified {
        insert(header::CONTENT_LENGTH, length.to_string());
    }
    let name = file.path.name();
    insert(header::ETAG, entity_tag(file.digest));
    insert(header::ACCEPT_RANGES, "bytes".to_owned());
    insert(header::CONTENT_TYPE, content_type(name).to_owned());
    insert(header::CONTENT_DISPOSITION, attachment(name));
    insert(header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned());
}

/// The type of a file by its name, as MLflow guesses it: what people read is plain text, what is not known is bytes.
fn content_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or(name, |(_, extension)| extension);
    match extension {
        "txt" | "log" | "err" | "cfg" | "conf" | "cnf" | "cf" | "ini" | "properties" | "prop" | "hocon" | "toml"
        | "yaml" | "yml" | "xml" | "json" | "js" | "py" | "py3" | "csv" | "tsv" | "md" | "rst" | "ipynb"
        | "MLmodel" | "MLproject" => "text/plain",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "tar" => "application/x-tar",
        "mp4" => "video/mp4",
        "mp3" => "audio/mpeg",
        "wav" => "audio/x-wav",
        _ => "application/octet-stream",
    }
}

/// The header that names a file to be saved (RFC 6266). Who cannot read the name gets what is ASCII of it.
fn attachment(name: &str) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$&'*+-.^_`|~%".contains(c);
    let ascii: String = name.chars().filter(|c| matches!(c, ' '..='~')).collect();
    let quoted = match ascii.trim() {
        "" => "download".to_owned(),
        text if text.chars().all(is_token) => text.to_owned(),
        text => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    };
    if ascii == name {
        return format!("attachment; filename={quoted}");
    }
    format!("attachment; filename={quoted}; filename*=UTF-8''{}", encode(name))
}

/// Percent-encodes all but what RFC 5987 lets stand.
fn encode(text: &str) -> String {
    let digit = |four: u8| char::from_digit(u32::from(four), 16).map_or('0', |digit| digit.to_ascii_uppercase());
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use modelyard_artifacts::Digest;
    use modelyard_common::Timestamp;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn a_part_is_sent_only_of_what_the_client_has_begun() {
        let file = ArtifactFile {
            project: "default".to_owned(),
            path: ArtifactPath::parse("a/b.txt").unwrap(),
            digest: Digest::of(b"0123456789"),
            size_bytes: 10,
            blocks: None,
            created_at: Timestamp::from_micros(0),
        };
        let tag = entity_tag(file.digest);
        let of = |pairs: &[(HeaderName, &str)]| Sending::of(&Method::GET, &headers(pairs), &file);
        assert_eq!(of(&[]), Sending::Whole);
        assert_eq!(of(&[(header::RANGE, "bytes=2-4")]), Sending::Part(2..5));
        assert_eq!(of(&[(header::RANGE, "bytes=10-")]), Sending::Unsatisfiable);
        assert_eq!(
            of(&[(header::RANGE, "bytes=5-"), (header::IF_RANGE, &tag)]),
            Sending::Part(5..10)
        );
        assert_eq!(
            of(&[(header::RANGE, "bytes=5-"), (header::IF_RANGE, "\"x\"")]),
            Sending::Whole
        );
        assert_eq!(
            of(&[(header::IF_NONE_MATCH, &format!("\"x\", {tag}"))]),
            Sending::NotModified
        );
        let head = Sending::of(&Method::HEAD, &headers(&[(header::RANGE, "bytes=2-4")]), &file);
        assert_eq!(head, Sending::Whole);

        let mut described = HeaderMap::new();
        describe(&mut described, &file, &Sending::Part(2..5));
        assert_eq!(described[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(described[header::CONTENT_LENGTH], "3");
        assert_eq!(described[header::CONTENT_TYPE], "text/plain");
        assert_eq!(described[header::CONTENT_DISPOSITION], "attachment; filename=b.txt");
    }

    #[test]
    fn names_are_written_so_that_headers_can_carry_them() {
        for (name, expected) in [
            ("model.pkl", "attachment; filename=model.pkl"),
            ("a b.txt", "attachment; filename=\"a b.txt\""),
            ("a\"b", "attachment; filename=\"a\\\"b\""),
            (
                "日本.txt",
                "attachment; filename=.txt; filename*=UTF-8''%E6%97%A5%E6%9C%AC.txt",
            ),
            (
                "日本",
                "attachment; filename=download; filename*=UTF-8''%E6%97%A5%E6%9C%AC",
            ),
        ] {
            assert_eq!(attachment(name), expected);
            assert!(HeaderValue::try_from(attachment(name)).is_ok());
        }
        assert_eq!(content_type("MLmodel"), "text/plain");
        assert_eq!(content_type("weights.safetensors"), "application/octet-stream");
    }
}
