//! Why somebody cannot sign in.

use modelyard_common::error::{ErrorKind, Fault};

use super::verify::Refusal;

/// Why somebody cannot sign in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A provider that is not configured.
    #[error("there is no provider `{0}` to sign in at: `registry.sign_in.providers` names those that there are")]
    UnknownProvider(String),
    /// A provider, or issuer, that cannot be reached or answers nonsense.
    #[error("`{name}` cannot be asked right now: {problem}; try again in a moment")]
    Unavailable {
        /// Which.
        name: String,
        /// What happened.
        problem: String,
    },
    /// An address to go to afterwards that is not ours.
    #[error("the address to return to is not one of this server: begin it with one `/`")]
    ReturnPath,
    /// A sign-in that was not begun here, or too long ago.
    #[error("this sign-in was not begun in this browser, or more than ten minutes ago: begin again")]
    NotBegun,
    /// An answer that belongs to another sign-in.
    #[error("the answer belongs to another sign-in: begin again, in one window only")]
    State,
    /// An answer of another issuer.
    #[error("the answer comes from another provider than the sign-in began with: begin again")]
    Issuer,
    /// The provider said no.
    #[error("the provider `{name}` refused: {code}")]
    Refused {
        /// Which.
        name: String,
        /// The error in the words of OAuth.
        code: String,
    },
    /// A token that cannot be trusted.
    #[error("the token of `{name}` is not accepted: {refusal}")]
    Token {
        /// Of whom.
        name: String,
        /// Why not.
        refusal: Refusal,
    },
    /// Nobody to call by a name.
    #[error("the provider `{name}` does not say how to call you: {problem}")]
    NoName {
        /// Which.
        name: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// Not a member of any group that is let in.
    #[error("you are in no group that may sign in here: ask an admin")]
    NotAllowed,
    /// The name belongs to another.
    #[error("the name `{0}` belongs to another user here: ask an admin to rename one of you")]
    NameTaken(String),
    /// The user is not let in.
    #[error("the user `{0}` is disabled: ask an admin")]
    Disabled(String),
    /// Nobody who came in before.
    #[error("there is no user for you here yet, and none is made by signing in: ask an admin")]
    NoUser,
    /// No rule fits.
    #[error("no rule of `{0}` fits the token's claims")]
    NoRule(String),
    /// The rule names a service account that is not there.
    #[error(
        "the service account `{0}` does not exist, or is disabled: create it with `modelyard service-accounts create`"
    )]
    NoServiceAccount(String),
    /// The machine gives no random bytes, or the keys are broken.
    #[error("the state of the sign-in cannot be sealed: {0}")]
    Seal(String),
    /// A setting that cannot be used.
    #[error("{0}")]
    Config(String),
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownProvider(_) => ErrorKind::NotFound,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::ReturnPath | Self::NotBegun | Self::State | Self::Issuer => ErrorKind::InvalidArgument,
            Self::Refused { .. } | Self::Token { .. } => ErrorKind::Unauthenticated,
            Self::NoName { .. }
            | Self::NotAllowed
            | Self::NameTaken(_)
            | Self::Disabled(_)
            | Self::NoUser
            | Self::NoRule(_)
            | Self::NoServiceAccount(_) => ErrorKind::PermissionDenied,
            Self::Seal(_) | Self::Config(_) => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::UnknownProvider(_) => "UNKNOWN_PROVIDER",
            Self::Unavailable { .. } => "PROVIDER_UNAVAILABLE",
            Self::ReturnPath => "INVALID_RETURN_PATH",
            Self::NotBegun => "SIGN_IN_NOT_BEGUN",
            Self::State => "SIGN_IN_STATE",
            Self::Issuer => "SIGN_IN_ISSUER",
            Self::Refused { .. } => "SIGN_IN_REFUSED",
            Self::Token { .. } => "INVALID_ID_TOKEN",
            Self::NoName { .. } => "NO_USER_NAME",
            Self::NotAllowed => "NOT_IN_ALLOWED_GROUP",
            Self::NameTaken(_) => "USER_NAME_TAKEN",
            Self::Disabled(_) => "USER_DISABLED",
            Self::NoUser => "NO_USER",
            Self::NoRule(_) => "NO_RULE",
            Self::NoServiceAccount(_) => "NO_SERVICE_ACCOUNT",
            Self::Seal(_) => "SEAL",
            Self::Config(_) => "SIGN_IN_CONFIG",
        }
    }
}
