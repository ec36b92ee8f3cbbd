//! Who is calling, may they, and proof of what they did.
//!
//! Without I/O of its own: the registry owns the identities and the audit chain, every process holds the newest
//! [`Snapshot`] of them in an [`Access`] and decides by itself. Nothing on a request's path touches a database; only a name
//! with a password that was not seen for a minute asks the registry.
//!
//! - Default deny: what no policy permits is refused. Decisions are Cedar's, over the schema and the policies in
//!   `crates/auth/policies`, which an admin can read and extend.
//! - A token may do what its owner may and its own scope allows.
//! - A project in which a caller has no role and one that does not exist are told apart by nobody.
//! - Secrets (passwords, tokens, sealed values) are never printed and are compared in constant time.
//!
//! It refuses to know what models, pipelines or endpoints are beyond their names.

mod access;
mod action;
pub mod audit;
mod caller;
mod decide;
mod error;
pub mod http;
mod limit;
pub mod password;
mod principal;
mod remember;
mod resource;
pub mod rpc;
pub mod seal;
mod state;
pub mod token;

pub use access::{
    Access, Credentials, DeliverEvents, Delivered, DeliveryError, Facts, LOCAL_USER, Mode, Noted, TokenUse, Verified,
    VerifyPassword,
};
pub use action::Action;
pub use caller::{ActingFor, Caller, InvalidActingFor, ProjectScope};
pub use decide::{
    BUILT_IN_POLICIES, Decision, MAX_POLICY_BYTES, PolicyError, Question, SCHEMA, Snapshot, Via,
    actions_of_built_in_role, check_policy, check_role, is_built_in_role,
};
pub use error::{Error, Result};
pub use limit::Throttle;
pub use principal::{
    InvalidIdentityName, InvalidPrincipal, MAX_IDENTITY_BYTES, Principal, PrincipalKind, check_identity_name,
};
pub use resource::{Kind, Resource};
pub use state::{
    ADMIN, BUILT_IN_ROLES, Binding, Grant, Identity, InvalidGrant, InvalidSubject, Place, ResourceKey, State, Subject,
    TokenEntry,
};

/// Metric: refusals, by `action`.
pub const REFUSALS: &str = "modelyard_access_refusals_total";
