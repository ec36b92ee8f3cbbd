//! OpenID Connect: signing in at providers, and tokens for workloads that bring a signed token of their own.
//!
//! Pure but for [`Fetch`], behind which the network is, and a clock that is handed in. What it finds out is who somebody is;
//! making users, sessions and tokens of it is the service's part.
//!
//! - Nothing in a token counts before its signature, issuer, audience and times have been verified; `alg: none` never is,
//!   and a shared secret signs nothing unless the configuration says so.
//! - A sign-in ends in the browser that began it, at the provider that it began with, once, and within ten minutes; any
//!   process of the registry can end what another began, because the browser carries the sealed state.
//! - A provider that is away makes its own sign-ins wait, and nothing else: not the start, and not those who are signed in.

mod claims;
mod config;
mod error;
mod fetch;
mod glob;
mod issuer;
mod pending;
mod sign_in;
#[cfg(test)]
mod tests;
mod verify;
mod workload;

pub use self::{
    claims::Profile,
    config::{BINDING_PREFIX, Provider, Rule, SignIn, Workload},
    error::Error,
    fetch::{Fetch, FetchError, Network},
    pending::{COOKIE, COOKIE_PATH, MAX_AGE},
    sign_in::{Begun, Callback, SignIns},
    workload::{Accepted, Workloads},
};
