//! Tokens: what programs and browsers show to be let in.
//!
//! A token is `mdyp_` (API token), `mdys_` (browser session) or `mdyx_` (exchanged for a workload's own token), 32 random
//! characters, and 6 characters of checksum. The prefix lets secret scanners find a leaked one, the checksum lets them (and
//! us, before anything is looked up) tell a token from a text that looks like one.
//!
//! Only the SHA-256 of a token is stored. 190 random bits cannot be guessed, so that the slow hash that a password needs
//! would protect nothing here and cost every request.

use std::{fmt, str::FromStr};

use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// The regular expression by which secret scanners find tokens.
pub const TOKEN_PATTERN: &str = "mdy[psx]_[0-9A-Za-z]{38}";

/// The bytes of the prefix, such as `mdyp_`.
const PREFIX: usize = 5;
/// The random characters: 32 × log2(62) = 190 bits.
const RANDOM: usize = 32;
/// The characters of the checksum: 62^6 > 2^32.
const CHECKSUM: usize = 6;
/// The bytes of a token's text.
const LENGTH: usize = PREFIX + RANDOM + CHECKSUM;
/// The bytes that the checksum covers.
const BODY: usize = PREFIX + RANDOM;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random bytes from here on are thrown away, so that all characters are equally likely.
const UNBIASED: u8 = 62 * 4;

/// The machine has no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine gives no random bytes: see that `getrandom` and /dev/urandom work for this process")]
pub struct NoRandomBytes;

/// Fills a buffer with random bytes.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), NoRandomBytes> {
    SystemRandom::new().fill(bytes).map_err(|_| NoRandomBytes)
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// For programs and the command line, until it ends or is revoked.
    Api,
    /// A browser's session.
    Session,
    /// Short-lived, given to a workload for the signed token of its own platform.
    Exchanged,
}

impl TokenKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Api, Self::Session, Self::Exchanged];

    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Session => "session",
            Self::Exchanged => "exchanged",
        }
    }

    /// The kind of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What the text of such a token begins with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Api => "mdyp_",
            Self::Session => "mdys_",
            Self::Exchanged => "mdyx_",
        }
    }
}

/// A token as its owner has it. It is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    kind: TokenKind,
    text: [u8; LENGTH],
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn generate(kind: TokenKind) -> Result<Self, NoRandomBytes> {
        let mut text = [0; LENGTH];
        text[..PREFIX].copy_from_slice(kind.prefix().as_bytes());
        let mut random = [0; RANDOM];
        let mut filled = PREFIX;
        while filled < BODY {
            fill_random(&mut random)?;
            for byte in random {
                if filled < BODY && byte < UNBIASED {
                    text[filled] = ALPHABET[usize::from(byte) % ALPHABET.len()];
                    filled += 1;
                }
            }
        }
        let checksum = checksum(&text[..BODY]);
        text[BODY..].copy_from_slice(&checksum);
        Ok(Self { kind, text })
    }

    /// The token of a text; none: the text is no token of ours, or has a slip of the pen. Nothing is looked up.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text: [u8; LENGTH] = text.as_bytes().try_into().ok()?;
        let has_prefix = |kind: &TokenKind| text.starts_with(kind.prefix().as_bytes());
        let kind = TokenKind::ALL.into_iter().find(has_prefix)?;
        let (body, sum) = text.split_at(BODY);
        let is_well_formed = body[PREFIX..].iter().all(u8::is_ascii_alphanumeric) && sum == checksum(body);
        is_well_formed.then_some(Self { kind, text })
    }

    /// What it is for.
    #[must_use]
    pub const fn kind(&self) -> TokenKind {
        self.kind
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        let mut hash = TokenHash([0; 32]);
        hash.0.copy_from_slice(digest(&SHA256, &self.text).as_ref());
        hash
    }

    /// The text, for its owner, once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        // Both ways to a token let only ASCII in.
        std::str::from_utf8(&self.text).unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}***", self.kind.prefix())
    }
}

/// CRC-32 in base 62. It finds slips of the pen; what makes a token safe is its random part.
fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(body) as usize;
    let mut digits = [0; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    digits
}

/// The SHA-256 of a token's text: what is stored, and looked up. How long comparing two takes tells nothing about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// A text that is no hash of a token.
#[derive(Debug, thiserror::Error)]
#[error("the hash of a token has 64 hex digits")]
pub struct InvalidTokenHash;

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for TokenHash {
    type Err = InvalidTokenHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = Self([0; 32]);
        hex::decode_to_slice(text, &mut hash.0).map_err(|_| InvalidTokenHash)?;
        Ok(hash)
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_made() {
        for kind in TokenKind::ALL {
            let token = Token::generate(kind).unwrap();
            let again = Token::parse(token.reveal()).unwrap();
            assert_eq!(again.reveal(), token.reveal());
            assert_eq!(again.kind(), kind);
            assert_eq!(again.hash(), token.hash());
            assert_eq!(TokenKind::parse(kind.as_str()), Some(kind));
            assert_ne!(Token::generate(kind).unwrap().reveal(), token.reveal());
        }
    }

    #[test]
    fn a_known_token_keeps_its_checksum_and_hash() {
        // A stored hash must open for the same text in every later version.
        let body = "mdyp_0123456789ABCDEFGHIJKLMNOPQRSTUV";
        let sum = checksum(body.as_bytes());
        let text = format!("{body}{}", std::str::from_utf8(&sum).unwrap());
        let token = Token::parse(&text).unwrap();
        let hash = hex::encode(digest(&SHA256, text.as_bytes()));
        assert_eq!(token.hash().to_string(), hash);
        assert_eq!(checksum(b"123456789"), *b"3jZRME");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = Token::generate(TokenKind::Api).unwrap().reveal().to_owned();
        for (what, bad) in [
            ("nothing", String::new()),
            ("another prefix", text.replacen("mdyp_", "mdyq_", 1)),
            ("another kind", text.replacen("mdyp_", "mdys_", 1)),
            ("shorter", text[..LENGTH - 1].to_owned()),
            ("longer", format!("{text}a")),
            ("a space", format!(" {text}")),
            ("not ASCII", format!("{}é", &text[..LENGTH - 2])),
            ("a password", "correct horse battery staple and some more!".to_owned()),
        ] {
            assert!(Token::parse(&bad).is_none(), "{what}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::generate(TokenKind::Session).unwrap();
        assert_eq!(format!("{token:?}"), "mdys_***");
    }

    #[test]
    fn hashes_are_keys_in_json() {
        let hash = Token::generate(TokenKind::Api).unwrap().hash();
        let json = serde_json::to_string(&HashMap::from([(hash, 1)])).unwrap();
        let back: HashMap<TokenHash, i32> = serde_json::from_str(&json).unwrap();
        assert_eq!(back[&hash], 1);
        assert!("00".parse::<TokenHash>().is_err());
    }

    #[test]
    fn all_characters_are_used() {
        let mut seen = [0_u32; 128];
        for _ in 0..400 {
            let token = Token::generate(TokenKind::Api).unwrap();
            for byte in &token.text[PREFIX..BODY] {
                seen[usize::from(*byte)] += 1;
            }
        }
        // 12,800 characters: each of the 62 is expected 206 times, and missing once in e^206 runs.
        assert!(ALPHABET.iter().all(|c| seen[usize::from(*c)] > 0));
    }

    #[test]
    fn the_pattern_of_scanners_is_the_form_of_tokens() {
        assert_eq!(TOKEN_PATTERN, format!("mdy[psx]_[0-9A-Za-z]{{{}}}", RANDOM + CHECKSUM));
        assert!(TokenKind::ALL.iter().all(|kind| kind.prefix().len() == PREFIX));
    }

    proptest! {
        #[test]
        fn what_fits_the_pattern_is_a_token_with_the_right_checksum(text in TOKEN_PATTERN) {
            let sum = checksum(&text.as_bytes()[..BODY]);
            let right = format!("{}{}", &text[..BODY], std::str::from_utf8(&sum).unwrap());
            prop_assert!(Token::parse(&right).is_some());
            prop_assert_eq!(Token::parse(&text).is_some(), text == right);
        }

        #[test]
        fn one_wrong_byte_is_noticed(at in 0..LENGTH, bit in 0..8_u8) {
            let mut text = *Token::generate(TokenKind::Exchanged).unwrap().reveal().as_bytes().first_chunk::<LENGTH>().unwrap();
            text[at] ^= 1 << bit;
            if let Ok(text) = std::str::from_utf8(&text) {
                prop_assert!(Token::parse(text).is_none());
            }
        }

        #[test]
        fn any_text_is_looked_at_without_harm(text in ".{0,60}") {
            prop_assert!(Token::parse(&text).is_none());
        }
    }
}
