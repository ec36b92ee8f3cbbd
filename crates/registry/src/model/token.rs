//! Tokens as they are listed: never their text.

use modelyard_auth::{Grant, Principal, token::TokenKind};
use modelyard_common::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// A token, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AccessToken {
    /// Its id, by which it is revoked.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// `api`, `session` or `exchanged`.
    pub kind: TokenKind,
    /// Whose it is: `user:NAME` or `service-account:NAME`.
    #[schema(value_type = String)]
    pub owner: Principal,
    /// The most that it opens, as `ROLE@PLACE`; null: all that its owner may.
    #[schema(value_type = Option<Vec<String>>)]
    pub scope: Option<Vec<Grant>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends; null: when it is revoked.
    pub expires_at: Option<Timestamp>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}
