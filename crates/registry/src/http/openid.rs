//! Signing in at OpenID providers, and exchanging workloads' tokens. Nobody needs to be signed in for these.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use modelyard_auth::http::{SESSION_COOKIE, request_id, source};
use modelyard_common::{
    ErrorKind,
    error::Problem,
    extract::{Path, Query},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    error::Error,
    openid::{COOKIE, COOKIE_PATH, Callback, MAX_AGE},
    service::{ExchangeError, Origin, Registry, SESSION_LIFETIME},
};

/// The largest body of a request for a token, in bytes.
const BODY_LIMIT_BYTES: usize = 64 << 10;
/// After how many seconds a workload may try again.
const RETRY_SECONDS: u64 = 5;

/// RFC 8693: what is asked for.
const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// RFC 8693: what is brought.
const SUBJECT_TOKEN_TYPES: [&str; 2] = [
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
];
/// RFC 8693: what is given.
const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";

/// The routes, with their description. No middleware asks who calls.
pub fn router(registry: Arc<Registry>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list_providers))
        .routes(routes!(begin_sign_in))
        .routes(routes!(finish_sign_in))
        .routes(routes!(exchange_token))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(registry)
}

/// A provider at which people can sign in.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignInProvider {
    /// Its name.
    name: String,
    /// What to call it.
    label: String,
    /// Where a browser signs in at it; `?return_to=/...` names where to go on.
    sign_in_path: String,
}

/// The providers at which people can sign in.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignInProviders {
    /// In the order of the configuration.
    providers: Vec<SignInProvider>,
}

/// Where to go on.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReturnTo {
    /// A path of this server; `/` when it is left out.
    return_to: Option<String>,
}

/// What a provider sends back with the browser. It may send more, which is passed over.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbackQuery {
    /// The code.
    code: Option<String>,
    /// The state.
    state: Option<String>,
    /// Who answers.
    iss: Option<String>,
    /// Why there is no code.
    error: Option<String>,
}

/// A token, as in RFC 8693, 2.2.1.
#[derive(Serialize, ToSchema)]
pub struct TokenAnswer {
    /// The token.
    access_token: String,
    /// What it is: an access token.
    issued_token_type: &'static str,
    /// How it is sent: `Bearer`.
    token_type: &'static str,
    /// How many seconds it lives.
    expires_in: u64,
    /// The most that it opens, where that is less than all that the service account may.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Why there is no token, as in RFC 6749, 5.2.
#[derive(Serialize, ToSchema)]
pub struct TokenRefusal {
    /// The code.
    error: &'static str,
    /// What to do.
    error_description: &'static str,
}

/// A request for a token, as in RFC 8693, 2.1.
#[derive(Default, ToSchema)]
#[schema(as = TokenRequest)]
#[expect(dead_code, reason = "it describes the form, which is read by hand")]
pub struct TokenForm {
    /// `urn:ietf:params:oauth:grant-type:token-exchange`.
    grant_type: String,
    /// The workload's own token.
    subject_token: String,
    /// `urn:ietf:params:oauth:token-type:jwt`, or `...:id_token`.
    subject_token_type: String,
    /// Grants such as `deployer@default`, separated by spaces, to have a token that opens less.
    scope: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self {
            request_id: request_id(&parts.headers).map(str::to_owned),
            source: source(&parts.extensions),
        })
    }
}

/// The providers at which people can sign in.
#[utoipa::path(get, path = "/api/v1/auth/providers", tag = "auth", security(()),
    responses((status = OK, body = SignInProviders)))]
pub async fn list_providers(State(registry): State<Arc<Registry>>) -> Json<SignInProviders> {
    let providers = registry.sign_in_providers().map(|(name, label)| SignInProvider {
        name: name.to_owned(),
        label: label.to_owned(),
        sign_in_path: format!("{COOKIE_PATH}/{name}/sign-in"),
    });
    Json(SignInProviders {
        providers: providers.collect(),
    })
}

/// Sends a browser to a provider.
#[utoipa::path(get, path = "/api/v1/auth/openid/{provider}/sign-in", tag = "auth", security(()),
    params(("provider" = String, Path), ReturnTo),
    responses((status = SEE_OTHER, description = "To the provider."), (status = "default", body = Problem)))]
pub async fn begin_sign_in(
    State(registry): State<Arc<Registry>>,
    Path(provider): Path<String>,
    Query(query): Query<ReturnTo>,
    headers: HeaderMap,
) -> Response {
    let return_to = query.return_to.as_deref().unwrap_or("/");
    match registry.begin_sign_in(&provider, return_to).await {
        Ok(begun) => {
            let cookie = cookie(COOKIE, &begun.cookie, COOKIE_PATH, MAX_AGE, registry.is_secure());
            redirect(&begun.location, &[cookie])
        }
        Err(error) => refuse(error, &headers, None),
    }
}

/// Takes a browser back from a provider, and gives it a session.
#[utoipa::path(get, path = "/api/v1/auth/openid/{provider}/callback", tag = "auth", security(()),
    params(("provider" = String, Path), CallbackQuery),
    responses((status = SEE_OTHER, description = "To where the browser wanted to go."),
              (status = "default", body = Problem)))]
pub async fn finish_sign_in(
    State(registry): State<Arc<Registry>>,
    Path(provider): Path<String>,
    Query(query): Query<CallbackQuery>,
    headers: HeaderMap,
    origin: Origin,
) -> Response {
    let callback = Callback {
        code: query.code.as_deref(),
        state: query.state.as_deref(),
        iss: query.iss.as_deref(),
        error: query.error.as_deref(),
    };
    let is_secure = registry.is_secure();
    // Whatever comes of it, this sign-in is over.
    let over = cookie(COOKIE, "", COOKIE_PATH, Duration::ZERO, is_secure);
    let pending = find_cookie(&headers, COOKIE);
    match registry.finish_sign_in(&provider, callback, pending, &origin).await {
        Ok(session) => {
            let session_cookie = cookie(SESSION_COOKIE, session.token.reveal(), "/", SESSION_LIFETIME, is_secure);
            redirect(&session.return_to, &[over, session_cookie])
        }
        Err(error) => refuse(error, &headers, Some(&over)),
    }
}

/// Exchanges a workload's token for one of ours (RFC 8693).
#[utoipa::path(post, path = "/api/v1/auth/token", tag = "auth", security(()),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = OK, body = TokenAnswer), (status = BAD_REQUEST, body = TokenRefusal),
              (status = SERVICE_UNAVAILABLE, body = TokenRefusal), (status = "default", body = Problem)))]
pub async fn exchange_token(
    State(registry): State<Arc<Registry>>,
    origin: Origin,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (subject_token, scope) = match read_form(&headers, &body) {
        Ok(form) => form,
        Err(refusal) => return answer(StatusCode::BAD_REQUEST, &refusal),
    };
    match registry.exchange_token(&subject_token, scope.as_deref(), &origin).await {
        Ok(exchanged) => {
            let scope = exchanged
                .scope
                .map(|scope| scope.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            let token = TokenAnswer {
                access_token: exchanged.token.reveal().to_owned(),
                issued_token_type: ACCESS_TOKEN_TYPE,
                token_type: "Bearer",
                expires_in: exchanged.lifetime.as_secs(),
                scope,
            };
            answer(StatusCode::OK, &token)
        }
        Err(ExchangeError::Refused) => answer(
            StatusCode::BAD_REQUEST,
            &TokenRefusal {
                error: "invalid_request",
                error_description: "the subject token is not accepted: an admin finds the reason in the audit chain",
            },
        ),
        Err(ExchangeError::Scope) => answer(
            StatusCode::BAD_REQUEST,
            &TokenRefusal {
                error: "invalid_scope",
                error_description: "the scope asks for more than the workload may have: leave it out",
            },
        ),
        Err(ExchangeError::Later) => {
            let refusal = TokenRefusal {
                error: "temporarily_unavailable",
                error_description: "tokens cannot be exchanged right now: try again in a moment",
            };
            let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, &refusal);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
            response
        }
        Err(ExchangeError::Internal) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            &TokenRefusal {
                error: "server_error",
                error_description: "internal error: the server's log has the details",
            },
        ),
    }
}

/// The subject token and the scope in a form. What is there twice is refused, as OAuth asks for.
fn read_form(headers: &HeaderMap, body: &[u8]) -> Result<(String, Option<String>), TokenRefusal> {
    let invalid = |error_description| TokenRefusal {
        error: "invalid_request",
        error_description,
    };
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(invalid("send a form: content-type: application/x-www-form-urlencoded"));
    }
    let (mut grant_type, mut subject_token, mut subject_token_type, mut scope) = (None, None, None, None);
    for (name, value) in url::form_urlencoded::parse(body) {
        let place = match name.as_ref() {
            "grant_type" => &mut grant_type,
            "subject_token" => &mut subject_token,
            "subject_token_type" => &mut subject_token_type,
            "scope" => &mut scope,
            "actor_token" => return Err(invalid("an actor token is not taken: send the subject token alone")),
            _ => continue,
        };
        if place.replace(value.into_owned()).is_some() {
            return Err(invalid("a parameter is there twice"));
        }
    }
    if grant_type.as_deref() != Some(GRANT_TYPE) {
        return Err(TokenRefusal {
            error: "unsupported_grant_type",
            error_description: "the grant_type is urn:ietf:params:oauth:grant-type:token-exchange",
        });
    }
    if !subject_token_type.is_some_and(|name: String| SUBJECT_TOKEN_TYPES.contains(&name.as_str())) {
        return Err(invalid(
            "the subject_token_type is urn:ietf:params:oauth:token-type:jwt",
        ));
    }
    let subject_token = subject_token.ok_or_else(|| invalid("the subject_token is missing"))?;
    Ok((subject_token, scope.filter(|scope: &String| !scope.trim().is_empty())))
}

/// An answer of OAuth, which nobody keeps.
fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
    ];
    (status, headers, Json(body)).into_response()
}

/// A cookie that scripts do not see and that other sites' requests do not carry, but for following a link.
pub(super) fn cookie(name: &str, value: &str, path: &str, max_age: Duration, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!(
        "{name}={value}; Path={path}; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        max_age.as_secs()
    )
}

fn find_cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let values = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut pairs = values
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// Puts headers on an answer that must be kept by nobody, and whose address must be told to nobody: it can carry a code.
pub(super) fn private(mut response: Response, cookies: &[String]) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    for cookie in cookies {
        if let Ok(value) = HeaderValue::from_str(cookie) {
            headers.append(header::SET_COOKIE, value);
        }
    }
    response
}

fn redirect(location: &str, cookies: &[String]) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => private(
            (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
            cookies,
        ),
        Err(_) => Problem::new(
            ErrorKind::Internal,
            "REDIRECT",
            "the address to go on at cannot be sent",
        )
        .into_response(),
    }
}

/// The refusal: a small page for a browser, a problem for everybody else.
fn refuse(error: Error, headers: &HeaderMap, over: Option<&String>) -> Response {
    let problem = Problem::from(error);
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let response = if accepted.contains("text/html") {
        page(&problem)
    } else {
        problem.into_response()
    };
    private(response, over.map_or(&[], std::slice::from_ref))
}

fn page(problem: &Problem) -> Response {
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Not signed in</title>\
         <style>body{{font:1rem/1.5 system-ui;max-width:36rem;margin:4rem auto;padding:0 1rem}}</style>\
         <h1>Not signed in</h1><p>{}</p><p><small>{}</small></p><p><a href=\"/\">Back</a></p></html>",
        escape(&problem.detail),
        escape(&problem.reason)
    );
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers: [(HeaderName, HeaderValue); 2] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
    ];
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, headers, text).into_response()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
