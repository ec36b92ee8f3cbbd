//! Passwords: Argon2id, and what a new one must be like.
//!
//! Verifying takes tens of milliseconds and 19 MiB on purpose: callers run it on a blocking thread and limit how many run at
//! once. Whether a user exists is not told by how long it takes: [`verify_nobody`] takes as long.

use std::{fmt, hint::black_box};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{CustomizedPasswordHasher as _, PasswordVerifier as _, phc},
};

use crate::token::{NoRandomBytes, fill_random};

/// Memory of one hash in KiB: 19 MiB, as OWASP's Password Storage Cheat Sheet recommends for Argon2id with two passes.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over the memory, by the same source.
const PASSES: u32 = 2;
/// Lanes, by the same source.
const LANES: u32 = 1;
/// The bytes of a salt, as RFC 9106 recommends.
const SALT: usize = 16;
/// The bytes of a hash.
const OUTPUT: usize = 32;
/// The most memory that verifying a stored hash may ask for, in KiB: a stored text must not be able to take the machine's.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
/// The most passes that verifying a stored hash may ask for.
const MAX_PASSES: u32 = 16;

/// The shortest password, in characters.
pub const MIN_PASSWORD_CHARS: usize = 12;
/// The longest password, in bytes.
pub const MAX_PASSWORD_BYTES: usize = 1024;
/// A name of fewer characters may be part of a password: it says too little.
const MIN_TELLING_CHARS: usize = 4;

/// A password that cannot be used, or could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too short.
    #[error(
        "the password has fewer than {MIN_PASSWORD_CHARS} characters: take a longer one, several words are easy to keep in mind"
    )]
    TooShort,
    /// Too long.
    #[error("the password has more than {MAX_PASSWORD_BYTES} bytes: take a shorter one")]
    TooLong,
    /// It contains the name of its user.
    #[error("the password contains the user's name, which is guessed first: take another one")]
    ContainsName,
    /// No salt.
    #[error(transparent)]
    NoRandomBytes(#[from] NoRandomBytes),
    /// The hash failed.
    #[error("the password could not be hashed: {0}")]
    Hash(String),
}

/// Checks a new password of a user.
///
/// # Errors
/// Why it cannot be used, and what to do.
pub fn check_password(password: &str, user: &str) -> Result<(), PasswordError> {
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(PasswordError::TooLong);
    }
    if password.chars().count() < MIN_PASSWORD_CHARS {
        return Err(PasswordError::TooShort);
    }
    let password = password.to_lowercase();
    let user = user.to_lowercase();
    // Of a mail address, the part before the `@` is the name.
    let (local, _) = user.split_once('@').unwrap_or((&user, ""));
    let contains = |name: &str| name.chars().count() >= MIN_TELLING_CHARS && password.contains(name);
    if contains(local) || contains(&user) {
        return Err(PasswordError::ContainsName);
    }
    Ok(())
}

/// What is stored of a password: a PHC string with its parameters and salt. It is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// From what was stored. A text that is no hash opens to no password.
    #[must_use]
    pub fn from_stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the hash of the password.
    #[must_use]
    pub fn verify(&self, password: &str) -> bool {
        if password.len() > MAX_PASSWORD_BYTES {
            return false;
        }
        let Some((hash, _)) = self.parsed() else {
            return verify_nobody(password);
        };
        hasher().is_ok_and(|hasher| hasher.verify_password(password.as_bytes(), &hash).is_ok())
    }

    /// Whether it was made with parameters of an earlier version: hash the password again when it is shown the next time.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.parsed().is_none_or(|(_, params)| {
            (params.m_cost(), params.t_cost(), params.p_cost()) != (MEMORY_KIB, PASSES, LANES)
        })
    }

    fn parsed(&self) -> Option<(phc::PasswordHash, Params)> {
        let hash = phc::PasswordHash::new(&self.0).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let is_bounded = params.m_cost() <= MAX_MEMORY_KIB && params.t_cost() <= MAX_PASSES;
        // Without a salt and a hash it would be refused at once, which tells that the user exists.
        let is_whole = hash.salt.is_some() && hash.hash.is_some();
        (is_bounded && is_whole).then_some((hash, params))
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(***)")
    }
}

fn hasher() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(OUTPUT));
    let params = params.map_err(|error| PasswordError::Hash(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes a password that [`check_password`] let pass.
///
/// # Errors
/// A password that is too long, or no random bytes.
pub fn hash(password: &str) -> Result<PasswordHash, PasswordError> {
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(PasswordError::TooLong);
    }
    let mut salt = [0; SALT];
    fill_random(&mut salt)?;
    let hasher = hasher()?;
    let params = hasher.params().clone();
    let hash: phc::PasswordHash = hasher
        .hash_password_with_params(password.as_bytes(), &salt, params)
        .map_err(|error| PasswordError::Hash(error.to_string()))?;
    Ok(PasswordHash(hash.to_string()))
}

/// Takes as long as [`PasswordHash::verify`], for a user who does not exist or has no password. Never true.
#[must_use]
pub fn verify_nobody(password: &str) -> bool {
    if password.len() <= MAX_PASSWORD_BYTES
        && let Ok(hasher) = hasher()
    {
        let mut output = [0; OUTPUT];
        let hashed = hasher.hash_password_into(password.as_bytes(), &[0; SALT], &mut output);
        // The work must be done, though nobody looks at what came out.
        let _ = black_box((hashed, output));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_opens_its_own_hash_only() {
        let first = hash("correct horse battery").unwrap();
        let second = hash("correct horse battery").unwrap();
        assert_ne!(first, second, "each has its own salt");
        assert!(first.verify("correct horse battery"));
        assert!(!first.verify("correct horse batterx"));
        assert!(!first.verify(""));
        assert!(!verify_nobody("correct horse battery"));
        let stored = PasswordHash::from_stored(first.as_str());
        assert!(stored.verify("correct horse battery"));
        assert!(!stored.is_outdated());
    }

    #[test]
    fn the_parameters_are_in_the_text() {
        let text = hash("correct horse battery").unwrap().as_str().to_owned();
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
    }

    #[test]
    fn older_parameters_still_open() {
        let weaker = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(1024, 1, 1, Some(OUTPUT)).unwrap(),
        );
        let params = weaker.params().clone();
        let text: phc::PasswordHash = weaker
            .hash_password_with_params(b"correct horse battery", b"saltsaltsaltsalt", params)
            .unwrap();
        let stored = PasswordHash::from_stored(text.to_string());
        assert!(stored.verify("correct horse battery"));
        assert!(stored.is_outdated());
    }

    #[test]
    fn what_is_no_hash_opens_to_nobody() {
        for text in [
            "",
            "secret",
            "$argon2id$",
            "$argon2id$v=19$m=4294967295,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            let stored = PasswordHash::from_stored(text);
            assert!(!stored.verify("correct horse battery"), "{text}");
            assert!(stored.is_outdated(), "{text}");
        }
    }

    #[test]
    fn new_passwords_have_limits() {
        let long = "x".repeat(MAX_PASSWORD_BYTES);
        for (user, password) in [
            ("alice", "correct horse"),
            ("bob", "bobsled in winter"),
            ("alice", &long),
            ("", "twelve chars"),
        ] {
            check_password(password, user).unwrap();
        }
        let too_long = format!("{long}x");
        for (user, password, word) in [
            ("alice", "", "fewer than 12"),
            ("alice", "eleven char", "fewer than 12"),
            ("alice", "ééééééé", "fewer than 12"),
            ("alice", &too_long, "more than 1024"),
            ("alice", "Alice in Wonderland", "user's name"),
            ("alice@example.org", "alice and the rest", "user's name"),
            ("correct-horse", "correct-horse", "user's name"),
        ] {
            let error = check_password(password, user).unwrap_err().to_string();
            assert!(error.contains(word), "{user} {password}: {error}");
            assert!(password.is_empty() || !error.contains(password), "{error}");
        }
        assert!(hash(&too_long).is_err());
    }

    #[test]
    fn a_hash_is_never_printed() {
        assert_eq!(
            format!("{:?}", PasswordHash::from_stored("$argon2id$x")),
            "PasswordHash(***)"
        );
    }
}
