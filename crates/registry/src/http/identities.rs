//! Users, service accounts and their tokens.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use modelyard_auth::{Caller, Principal};
use modelyard_common::{
    error::Problem,
    extract::{Body, Path, Query, SecretBody},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Declared, page::PageQuery};
use crate::{
    error::Error,
    model::{
        identity::{Identity, IdentityKind, IdentitySpec},
        page::{Page, PageRequest},
        token::AccessToken,
    },
    service::{Registry, TokenOrder},
};

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The new one.
    #[schema(write_only)]
    password: String,
    /// The present one, for who changes their own.
    #[serde(default)]
    #[schema(write_only)]
    present_password: Option<String>,
}

/// Which tokens are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TokenQuery {
    /// Whose: `user:NAME` or `service-account:NAME`.
    owner: Option<String>,
    /// The most items, 1 to 1000; 50 when it is left out.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A token that was made, with its text.
#[derive(Serialize, ToSchema)]
pub struct MadeToken {
    /// The text. It is told once.
    token: String,
    /// What is listed of it.
    #[serde(flatten)]
    entry: AccessToken,
}

/// The users by name.
#[utoipa::path(get, path = "/users", tag = "identities", params(PageQuery),
    responses((status = OK, body = Page<Identity>), (status = "default", body = Problem)))]
pub async fn list_users(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Identity>>, Problem> {
    Ok(Json(
        registry
            .list_identities(&caller, IdentityKind::User, &page.request()?)
            .await?,
    ))
}

/// A user.
#[utoipa::path(get, path = "/users/{name}", tag = "identities", params(("name" = String, Path)),
    responses((status = OK, body = Identity), (status = "default", body = Problem)))]
pub async fn get_user(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Identity>, Problem> {
    Ok(Json(registry.get_identity(&caller, IdentityKind::User, &name).await?))
}

/// Makes or changes a user. Disabling one ends its sessions and tokens.
#[utoipa::path(put, path = "/users/{name}", tag = "identities", params(("name" = String, Path)),
    request_body = IdentitySpec,
    responses((status = OK, body = Declared<Identity>), (status = "default", body = Problem)))]
pub async fn put_user(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(spec): Body<IdentitySpec>,
) -> Result<Json<Declared<Identity>>, Problem> {
    let (outcome, resource) = registry.put_identity(&caller, IdentityKind::User, &name, &spec).await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a user, with its tokens, sessions and role bindings.
#[utoipa::path(delete, path = "/users/{name}", tag = "identities", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_user(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    registry.remove_identity(&caller, IdentityKind::User, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets a user's password, and ends its other sessions.
#[utoipa::path(put, path = "/users/{name}/password", tag = "identities", params(("name" = String, Path)),
    request_body = NewPassword, responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn set_password(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    SecretBody(new): SecretBody<NewPassword>,
) -> Result<StatusCode, Problem> {
    let present = new.present_password.as_deref();
    registry.set_password(&caller, &name, &new.password, present).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The service accounts by name.
#[utoipa::path(get, path = "/service-accounts", tag = "identities", params(PageQuery),
    responses((status = OK, body = Page<Identity>), (status = "default", body = Problem)))]
pub async fn list_service_accounts(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Identity>>, Problem> {
    let page = page.request()?;
    Ok(Json(
        registry
            .list_identities(&caller, IdentityKind::ServiceAccount, &page)
            .await?,
    ))
}

/// A service account.
#[utoipa::path(get, path = "/service-accounts/{name}", tag = "identities", params(("name" = String, Path)),
    responses((status = OK, body = Identity), (status = "default", body = Problem)))]
pub async fn get_service_account(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Identity>, Problem> {
    Ok(Json(
        registry
            .get_identity(&caller, IdentityKind::ServiceAccount, &name)
            .await?,
    ))
}

/// Makes or changes a service account. Disabling one ends its tokens.
#[utoipa::path(put, path = "/service-accounts/{name}", tag = "identities", params(("name" = String, Path)),
    request_body = IdentitySpec,
    responses((status = OK, body = Declared<Identity>), (status = "default", body = Problem)))]
pub async fn put_service_account(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(spec): Body<IdentitySpec>,
) -> Result<Json<Declared<Identity>>, Problem> {
    let (outcome, resource) = registry
        .put_identity(&caller, IdentityKind::ServiceAccount, &name, &spec)
        .await?;
    Ok(Json(Declared { outcome, resource }))
}

/// Removes a service account, with its tokens and role bindings.
#[utoipa::path(delete, path = "/service-accounts/{name}", tag = "identities", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn delete_service_account(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    registry
        .remove_identity(&caller, IdentityKind::ServiceAccount, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The API tokens, the newest first: one's own, or those of all for an admin.
#[utoipa::path(get, path = "/tokens", tag = "identities", params(TokenQuery),
    responses((status = OK, body = Page<AccessToken>), (status = "default", body = Problem)))]
pub async fn list_tokens(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(query): Query<TokenQuery>,
) -> Result<Json<Page<AccessToken>>, Problem> {
    let page = PageRequest::new(query.limit, query.cursor.as_deref())?;
    let owner: Option<Principal> = match query.owner.as_deref().map(str::parse) {
        None => None,
        Some(Ok(owner)) => Some(owner),
        Some(Err(error)) => {
            let error: modelyard_auth::InvalidPrincipal = error;
            return Err(Error::request(error.to_string()).into());
        }
    };
    Ok(Json(registry.list_tokens(&caller, owner.as_ref(), &page).await?))
}

/// Makes an API token: one's own, or as an admin a service account's. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = "/tokens", tag = "identities", request_body = TokenOrder,
    responses((status = CREATED, body = MadeToken), (status = "default", body = Problem)))]
pub async fn create_token(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Body(order): Body<TokenOrder>,
) -> Result<(StatusCode, Json<MadeToken>), Problem> {
    let (token, entry) = registry.create_token(&caller, &order).await?;
    let token = token.reveal().to_owned();
    Ok((StatusCode::CREATED, Json(MadeToken { token, entry })))
}

/// Revokes a token.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "identities", params(("id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = Problem)))]
pub async fn revoke_token(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    registry.revoke_token(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
