//! Keeps web pages of others away from a server that listens on loopback without sign-in: a page that the user has open
//! can send requests to 127.0.0.1, under its own Origin or, after rebinding its name, under its own Host.

use axum::{
    extract::Request,
    http::{HeaderMap, Uri, header, uri::Authority},
    response::{IntoResponse, Response},
};
use modelyard_common::error::{ErrorKind, Problem};

/// The answer to a request whose Host or Origin is not this machine.
pub fn refuse(request: &Request) -> Option<Response> {
    let detail = refusal(request.headers(), request.uri())?;
    Some(Problem::new(ErrorKind::PermissionDenied, "FOREIGN_ORIGIN", detail).into_response())
}

fn refusal(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let authority = match headers.get(header::HOST) {
        Some(value) => value.to_str().unwrap_or(""),
        // HTTP/2 carries the host in the request's target.
        None => uri.authority().map_or("", Authority::as_str),
    };
    if !is_loopback(without_port(authority)) {
        return Some(format!(
            "requests for the host `{}` are refused: use 127.0.0.1 or localhost",
            authority.escape_default()
        ));
    }
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or("");
    let is_origin_here = origin
        .parse::<Uri>()
        .is_ok_and(|uri| uri.host().is_some_and(is_loopback));
    (!is_origin_here).then(|| format!("requests from pages of `{}` are refused", origin.escape_default()))
}

/// The host of an authority. What has a user's name or a port that is no number is given back as it is, and is no host here.
fn without_port(authority: &str) -> &str {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) && (host.starts_with('[') || !host.contains(':')) => host,
        _ => authority,
    }
}

/// The answer to a request whose target has the character NUL: no name has it, and PostgreSQL takes no text with it.
pub fn refuse_nul(uri: &Uri) -> Option<Response> {
    let target = uri.path_and_query()?.as_str();
    let detail = "the request's path or query has the character NUL (`%00`): leave it out";
    let refused = || Problem::new(ErrorKind::InvalidArgument, "NUL_CHARACTER", detail).into_response();
    target.contains("%00").then(refused)
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        refusal(&headers, &Uri::from_static("/")).is_some()
    }

    #[test]
    fn only_this_machine_is_let_in() {
        for host in [
            "127.0.0.1:7070",
            "localhost:7070",
            "localhost",
            "[::1]:7070",
            "127.0.0.1",
            "127.0.0.1:",
            "[::1]",
        ] {
            assert!(!refused(host, None), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:7070",
            "10.0.0.1:7070",
            "",
            "localhost@evil.example",
            "evil.example@localhost:80",
            "localhost:80:evil.example",
            "::1:7070",
            "localhost:80@evil.example:80",
        ] {
            assert!(refused(host, None), "{host}");
        }
        assert!(!refused("localhost:7070", Some("http://localhost:7070")));
        for origin in ["http://evil.example", "null", "http://127.0.0.1.evil.example"] {
            assert!(refused("localhost:7070", Some(origin)), "{origin}");
        }
    }
}
