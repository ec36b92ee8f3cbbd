//! Why somebody is not let in, or may not do something.

use std::time::Duration;

use modelyard_common::error::{ErrorKind, Fault};

use crate::{action::Action, principal::Principal};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why somebody is not let in, or may not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No credentials.
    #[error("sign in first: send a token as `Authorization: Bearer TOKEN`, or set MODELYARD_TOKEN")]
    Missing,
    /// Credentials that cannot be read.
    #[error("the header `Authorization` cannot be read: send `Bearer TOKEN`, or `Basic` with name and password")]
    Malformed,
    /// A token that opens nothing. Why not is not told.
    #[error("the token is not valid: it was never made, has ended or was revoked; ask for another")]
    Token,
    /// A wrong name or password. Which of the two is not told.
    #[error("the name or the password is wrong")]
    Password,
    /// Too many attempts to sign in.
    #[error("too many attempts to sign in: wait {} seconds", wait.as_secs().max(1))]
    Throttled {
        /// How long.
        wait: Duration,
    },
    /// Too many requests.
    #[error("too many requests with this token: at most {per_second} a second are answered")]
    RateLimited {
        /// The limit.
        per_second: u32,
    },
    /// A page of another site.
    #[error("requests with this browser's session come from this server's own pages only")]
    CrossSite,
    /// Identities are not known yet.
    #[error("this process does not know yet who may do what: it waits for the registry; try again in a moment")]
    Starting,
    /// A service that does not say which one it is.
    #[error("calls between services name the service: run the same version of both")]
    NoService,
    /// A project that does not exist, or in which the caller has no role: told apart by nobody.
    #[error("project `{0}` does not exist, or you have no role in it: ask its admin for one")]
    Project(String),
    /// No policy permits it, or one forbids it.
    #[error(
        "{principal} may not do `{action}` on {resource}: ask an admin for a role that may; `modelyard auth explain` tells why"
    )]
    Denied {
        /// Who.
        principal: Principal,
        /// What.
        action: Action,
        /// On what.
        resource: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing | Self::Malformed | Self::Token | Self::Password | Self::NoService => {
                ErrorKind::Unauthenticated
            }
            Self::Throttled { .. } | Self::RateLimited { .. } => ErrorKind::ResourceExhausted,
            Self::CrossSite | Self::Denied { .. } => ErrorKind::PermissionDenied,
            Self::Starting => ErrorKind::Unavailable,
            Self::Project(_) => ErrorKind::NotFound,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Missing | Self::Malformed => "SIGN_IN_FIRST",
            Self::Token => "INVALID_TOKEN",
            Self::Password => "INVALID_PASSWORD",
            Self::Throttled { .. } => "SIGN_IN_THROTTLED",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::CrossSite => "CROSS_SITE",
            Self::Starting => "ACCESS_UNKNOWN",
            Self::NoService => "NO_SERVICE",
            Self::Project(_) => "NOT_FOUND",
            Self::Denied { .. } => "PERMISSION_DENIED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { wait } => Some(*wait),
            Self::RateLimited { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}
