//! Authentication of what arrives over HTTP, gRPC to clients included: every router of a service stands behind
//! [`authenticate`], and its handlers take a [`Caller`]; predictions ask [`admit`] themselves.

use std::net::IpAddr;

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri, header, request::Parts, uri::Authority};
use modelyard_common::{
    error::{ErrorKind, Fault as _, Problem, to_status},
    tls::Connection,
};

use crate::{
    access::{Access, Credentials, Facts},
    caller::Caller,
    error::{Error, Result},
};

/// The cookie of a browser session.
pub const SESSION_COOKIE: &str = "modelyard_session";
/// The header with the client's own id of the request; answers carry it, too.
pub const REQUEST_ID: &str = "x-request-id";
/// The longest id of a request that is taken over, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// The longest `Authorization` header that is looked at, in bytes.
const MAX_AUTHORIZATION_BYTES: usize = 4096;

/// Middleware: finds out who sent the request, and puts the [`Caller`] among its extensions.
pub async fn authenticate(State(access): State<Access>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let source = source(&parts.extensions);
    let caller = match admit(&access, &parts, source).await {
        Ok(caller) => caller,
        Err(refused) => return refused,
    };
    let id = id_of_answer(&parts.headers);
    parts.extensions.insert(caller);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    return_id(id, &mut response);
    response
}

/// Where a request came from, by what the listener put among its extensions.
#[must_use]
pub fn source(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Connection>().map(|connection| connection.remote.ip())
}

/// Who sent a request from somewhere, for a route that cannot afford the middleware.
///
/// # Errors
/// The answer to a request that nobody is known to have sent.
pub async fn admit(access: &Access, parts: &Parts, source: Option<IpAddr>) -> Result<Caller, Response> {
    identify(access, parts, source).await.map_err(|error| {
        access.note_rejection(&error, facts(parts, source));
        refusal(&error, &parts.headers)
    })
}

/// The client's own id of a request, as its answer carries it.
#[must_use]
pub fn id_of_answer(headers: &HeaderMap) -> Option<HeaderValue> {
    request_id(headers)?;
    headers.get(REQUEST_ID).cloned()
}

/// Puts the client's own id of a request into its answer.
pub fn return_id(id: Option<HeaderValue>, response: &mut Response) {
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
}

/// Who sends the messages of a stream, asked again for each: a stream can outlive what its caller may.
#[derive(Clone)]
pub struct Again {
    access: Access,
    parts: Parts,
}

impl Again {
    /// Of the request that opened the stream.
    #[must_use]
    pub const fn new(access: Access, parts: Parts) -> Self {
        Self { access, parts }
    }

    /// Who sends it, as of now.
    ///
    /// # Errors
    /// As [`Access::authenticate`].
    pub async fn caller(&self) -> Result<Caller> {
        let source = source(&self.parts.extensions);
        let caller = identify(&self.access, &self.parts, source).await;
        caller.inspect_err(|error| self.access.note_rejection(error, facts(&self.parts, source)))
    }
}

async fn identify(access: &Access, parts: &Parts, source: Option<IpAddr>) -> Result<Caller> {
    let headers = &parts.headers;
    let credentials = credentials(headers);
    let mut decoded = String::new();
    let credentials = match credentials {
        Found::Plain(credentials) => credentials,
        Found::Encoded(text) => decode_basic(text, &mut decoded),
    };
    if matches!(credentials, Credentials::Session(_)) && !is_same_site(&parts.method, headers, &parts.uri) {
        return Err(Error::CrossSite);
    }
    access.authenticate(credentials, facts(parts, source)).await
}

fn facts(parts: &Parts, source: Option<IpAddr>) -> Facts<'_> {
    Facts {
        request_id: request_id(&parts.headers),
        source,
    }
}

/// The refusal in the words of the protocol, with what the client should do next.
#[must_use]
pub fn refusal(error: &Error, headers: &HeaderMap) -> Response {
    let is_grpc = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return to_status(error).into_http();
    }
    let mut response = Problem::from(error.clone()).into_response();
    if error.kind() == ErrorKind::Unauthenticated {
        let challenge = HeaderValue::from_static("Bearer realm=\"modelyard\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

enum Found<'a> {
    Plain(Credentials<'a>),
    /// `Basic`: name and password in Base64.
    Encoded(&'a str),
}

/// What the request brings. The header counts before the cookie, and two headers are none.
fn credentials(headers: &HeaderMap) -> Found<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Found::Plain(session(headers).map_or(Credentials::None, Credentials::Session)),
        (Some(value), None) if value.len() <= MAX_AUTHORIZATION_BYTES => {
            let Some((scheme, rest)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else {
                return Found::Plain(Credentials::Malformed);
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                Found::Plain(Credentials::Bearer(rest.trim()))
            } else if scheme.eq_ignore_ascii_case("basic") {
                Found::Encoded(rest.trim())
            } else {
                Found::Plain(Credentials::Malformed)
            }
        }
        _ => Found::Plain(Credentials::Malformed),
    }
}

fn decode_basic<'a>(encoded: &str, decoded: &'a mut String) -> Credentials<'a> {
    let bytes = BASE64_STANDARD.decode(encoded).ok();
    let Some(text) = bytes.and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return Credentials::Malformed;
    };
    *decoded = text;
    decoded
        .split_once(':')
        .map_or(Credentials::Malformed, |(name, password)| Credentials::Basic {
            name,
            password,
        })
}

fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    let pairs = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'));
    let mut found = pairs.filter_map(|pair| pair.trim().split_once('='));
    found.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value)
}

/// The client's own id, where it is a harmless one.
#[must_use]
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    (!id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES && id.chars().all(is_harmless)).then_some(id)
}

/// A browser sends its cookies with the requests of any page. What changes something must come from a page of this
/// server: browsers say so in `Sec-Fetch-Site`, older ones in `Origin`.
#[must_use]
pub fn is_same_site(method: &Method, headers: &HeaderMap, uri: &Uri) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return true;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host
        .map(str::to_owned)
        .or_else(|| uri.authority().map(ToString::to_string));
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin = origin.and_then(|origin| origin.parse::<Uri>().ok());
    let origin = origin.as_ref().and_then(Uri::authority).map(Authority::as_str);
    matches!((origin, &host), (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host))
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // A router without the middleware lets nobody in.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::Missing.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn read(pairs: &[(&'static str, &str)]) -> String {
        let headers = headers(pairs);
        let mut decoded = String::new();
        let found = match credentials(&headers) {
            Found::Plain(found) => found,
            Found::Encoded(text) => decode_basic(text, &mut decoded),
        };
        match found {
            Credentials::None => "none".to_owned(),
            Credentials::Bearer(token) => format!("bearer {token}"),
            Credentials::Basic { name, password } => format!("basic {name} {password}"),
            Credentials::Session(token) => format!("session {token}"),
            Credentials::Malformed => "malformed".to_owned(),
        }
    }

    #[test]
    fn credentials_are_read() {
        assert_eq!(read(&[]), "none");
        assert_eq!(read(&[("authorization", "Bearer abc")]), "bearer abc");
        assert_eq!(read(&[("authorization", "bearer abc")]), "bearer abc");
        assert_eq!(read(&[("authorization", "Basic YWxpY2U6YTpi")]), "basic alice a:b");
        assert_eq!(read(&[("cookie", "x=1; modelyard_session=abc; y=2")]), "session abc");
        let both = [("authorization", "Bearer abc"), ("cookie", "modelyard_session=def")];
        assert_eq!(read(&both), "bearer abc");
        for bad in ["abc", "Negotiate abc", "Basic ???", "Basic YWxpY2U="] {
            assert_eq!(read(&[("authorization", bad)]), "malformed", "{bad}");
        }
        let twice = [("authorization", "Bearer abc"), ("authorization", "Bearer def")];
        assert_eq!(read(&twice), "malformed");
    }

    #[test]
    fn changes_in_a_session_come_from_our_own_pages() {
        let same = |method: Method, pairs: &[(&'static str, &str)]| {
            is_same_site(&method, &headers(pairs), &Uri::from_static("/"))
        };
        let host = ("host", "yard.example");
        assert!(same(Method::GET, &[host]));
        assert!(!same(Method::POST, &[host]));
        assert!(same(Method::POST, &[host, ("sec-fetch-site", "same-origin")]));
        for site in ["cross-site", "same-site", "none"] {
            assert!(!same(Method::POST, &[host, ("sec-fetch-site", site)]), "{site}");
        }
        assert!(same(Method::DELETE, &[host, ("origin", "https://yard.example")]));
        for origin in ["https://evil.example", "null", "https://yard.example.evil.example"] {
            assert!(!same(Method::POST, &[host, ("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn only_harmless_request_ids_are_taken_over() {
        assert_eq!(request_id(&headers(&[(REQUEST_ID, "a-1")])), Some("a-1"));
        let long = "x".repeat(MAX_REQUEST_ID_BYTES + 1);
        for bad in ["", "a b", "<script>", long.as_str()] {
            assert_eq!(request_id(&headers(&[(REQUEST_ID, bad)])), None, "{bad}");
        }
    }
}
