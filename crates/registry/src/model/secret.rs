//! Secrets as they are listed: nobody is told their values but the services that use them.

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest value, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 << 10;
/// The most secrets of a project.
pub const MAX_SECRETS: i64 = 1000;

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SecretEntry {
    /// Its name.
    pub name: String,
    /// When it was set first.
    pub created_at: Timestamp,
    /// When it was set last.
    pub updated_at: Timestamp,
}

/// A secret's value, on its way in. It is not printed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretValue {
    /// The value.
    #[schema(write_only)]
    pub value: String,
}
