//! The audit chain as it is asked for.

use modelyard_common::Timestamp;

/// Which events are wanted; what is left out lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of these projects; the empty name is the installation.
    pub projects: Option<Vec<String>>,
    /// By this actor, or on behalf of it.
    pub actor: Option<String>,
    /// Of this action.
    pub action: Option<String>,
    /// On resources of this kind.
    pub resource_kind: Option<String>,
    /// On this resource.
    pub resource: Option<String>,
    /// With this outcome.
    pub outcome: Option<String>,
    /// Of this request.
    pub request_id: Option<String>,
    /// At or after this time.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

/// A key that signs the chain, or has signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditKey {
    /// Its id, which checkpoints name.
    pub id: String,
    /// The public half, as PEM.
    pub public_key: String,
    /// The private half, sealed.
    pub sealed: String,
    /// When it was made.
    pub created_at: Timestamp,
}
