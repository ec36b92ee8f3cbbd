//! Browser sessions of names and passwords.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use modelyard_auth::{
    Caller, Via,
    http::{SESSION_COOKIE, is_same_site, refusal},
};
use modelyard_common::{error::Problem, extract::SecretBody};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::openid::{cookie, private};
use crate::{
    error::Error,
    model::identity::IdentityKind,
    service::{Origin, Registry, SESSION_LIFETIME},
};

/// A name and its password. It is not printed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordSignIn {
    /// The name of the user.
    name: String,
    /// The password.
    #[schema(write_only)]
    password: String,
}

/// Who is signed in.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignedInAs {
    /// `user:NAME`.
    principal: String,
}

/// Signs a browser in with a name and a password: the answer sets the session's cookie.
#[utoipa::path(post, path = "/auth/sign-in", tag = "auth", security(()), request_body = PasswordSignIn,
    responses((status = OK, body = SignedInAs), (status = "default", body = Problem)))]
pub async fn sign_in(
    State(registry): State<Arc<Registry>>,
    origin: Origin,
    uri: Uri,
    headers: HeaderMap,
    SecretBody(request): SecretBody<PasswordSignIn>,
) -> Result<Response, Problem> {
    // Or a page of others could sign a browser in as somebody else, to learn what its user does then.
    let says_where = headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    if says_where && !is_same_site(&Method::POST, &headers, &uri) {
        return Err(Error::Access(modelyard_auth::Error::CrossSite).into());
    }
    let token = match registry.sign_in(&request.name, &request.password, &origin).await {
        Ok(token) => token,
        // With the time to wait.
        Err(Error::Access(error)) => return Ok(refusal(&error, &headers)),
        Err(error) => return Err(error.into()),
    };
    let session = cookie(
        SESSION_COOKIE,
        token.reveal(),
        "/",
        SESSION_LIFETIME,
        registry.is_secure(),
    );
    let signed_in = SignedInAs {
        principal: IdentityKind::User.principal(&request.name).to_string(),
    };
    Ok(private(Json(signed_in).into_response(), &[session]))
}

/// Ends the browser's session, or revokes the token that the request brought.
#[utoipa::path(post, path = "/auth/sign-out", tag = "auth",
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn sign_out(State(registry): State<Arc<Registry>>, caller: Caller) -> Result<Response, Problem> {
    registry.sign_out(&caller).await?;
    let over = cookie(SESSION_COOKIE, "", "/", std::time::Duration::ZERO, registry.is_secure());
    let cookies = if caller.via() == Via::Session {
        vec![over]
    } else {
        Vec::new()
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    // What the browser keeps of the pages goes with the session.
    response
        .headers_mut()
        .insert("clear-site-data", HeaderValue::from_static("\"cache\""));
    Ok(private(response, &cookies))
}
