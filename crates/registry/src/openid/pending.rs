//! A sign-in between its beginning and its end. The browser carries it, sealed: any process of the registry can end what
//! another began, and nobody reads or changes it on the way.

use std::time::Duration;

use modelyard_auth::seal::{KeyRing, equal};
use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::Error;

/// The cookie that carries it.
pub const COOKIE: &str = "modelyard_sign_in";
/// To which addresses the browser sends it.
pub const COOKIE_PATH: &str = "/api/v1/auth/openid";
/// How long there is to sign in.
pub const MAX_AGE: Duration = Duration::from_mins(10);
/// What it is sealed for.
const CONTEXT: &str = "sign-in";
/// The longest address to return to, in bytes.
const MAX_PATH_BYTES: usize = 2048;
/// The longest cookie that is looked at, in bytes.
const MAX_COOKIE_BYTES: usize = 8 << 10;

/// A sign-in that was begun.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub provider: String,
    pub state: String,
    pub nonce: String,
    pub verifier: String,
    pub return_to: String,
    pub began_at: Timestamp,
}

impl Pending {
    pub(super) fn seal(&self, keys: &KeyRing) -> Result<String, Error> {
        let plain = serde_json::to_vec(self).map_err(|error| Error::Seal(error.to_string()))?;
        keys.seal(CONTEXT, &plain)
            .map_err(|error| Error::Seal(error.to_string()))
    }

    /// Opens the cookie of a browser that came back, and checks that it belongs to the provider and to the state that came
    /// with it.
    pub(super) fn open(
        keys: &KeyRing,
        sealed: &str,
        provider: &str,
        state: &str,
        now: Timestamp,
    ) -> Result<Self, Error> {
        if sealed.len() > MAX_COOKIE_BYTES {
            return Err(Error::NotBegun);
        }
        let plain = keys.open(CONTEXT, sealed).map_err(|_| Error::NotBegun)?;
        let pending: Self = serde_json::from_slice(&plain).map_err(|_| Error::NotBegun)?;
        if now.since(pending.began_at) >= MAX_AGE {
            return Err(Error::NotBegun);
        }
        if pending.provider != provider || !equal(pending.state.as_bytes(), state.as_bytes()) {
            return Err(Error::State);
        }
        Ok(pending)
    }
}

/// Checks that an address is one of this server, so that signing in sends nobody elsewhere: a path, which no browser takes
/// for the name of a host.
pub(super) fn check_return_path(path: &str) -> Result<(), Error> {
    let is_plain = |c: char| c.is_ascii_graphic() && c != '\\';
    let is_path = path.starts_with('/') && !path.starts_with("//");
    if is_path && path.len() <= MAX_PATH_BYTES && path.chars().all(is_plain) {
        return Ok(());
    }
    Err(Error::ReturnPath)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_server_are_returned_to() {
        for path in ["/", "/models", "/models?tab=1&x=%2F#y", "/a//b", "/%2F%2Fevil.example"] {
            assert_eq!(check_return_path(path), Ok(()), "{path}");
        }
        let long = format!("/{}", "x".repeat(MAX_PATH_BYTES));
        for path in [
            "",
            "models",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/\n",
            "https://evil.example",
            "javascript:alert(1)",
            " /x",
            "/ü",
            long.as_str(),
        ] {
            assert_eq!(check_return_path(path), Err(Error::ReturnPath), "{path}");
        }
    }

    #[test]
    fn a_sign_in_is_opened_where_and_when_it_belongs() {
        let keys = KeyRing::generate().unwrap();
        let begin = Timestamp::from_millis(1_000_000);
        let pending = Pending {
            provider: "okta".to_owned(),
            state: "s".to_owned(),
            nonce: "n".to_owned(),
            verifier: "v".to_owned(),
            return_to: "/".to_owned(),
            began_at: begin,
        };
        let sealed = pending.seal(&keys).unwrap();
        let open = |provider, state, now| Pending::open(&keys, &sealed, provider, state, now);
        assert_eq!(open("okta", "s", begin), Ok(pending));
        assert_eq!(open("okta", "t", begin), Err(Error::State));
        assert_eq!(open("google", "s", begin), Err(Error::State));
        let late = Timestamp::from_micros(begin.as_micros() + MAX_AGE.as_micros() as i64);
        assert_eq!(open("okta", "s", late), Err(Error::NotBegun));
        let other = KeyRing::generate().unwrap();
        assert_eq!(Pending::open(&other, &sealed, "okta", "s", begin), Err(Error::NotBegun));
        let elsewhere = keys.seal("secret/x", b"{}").unwrap();
        assert_eq!(
            Pending::open(&keys, &elsewhere, "okta", "s", begin),
            Err(Error::NotBegun)
        );
    }
}
