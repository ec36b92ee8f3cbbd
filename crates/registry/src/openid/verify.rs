//! Whether a signed token is what it says.

use std::{str::FromStr as _, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use modelyard_common::Timestamp;
use openidconnect::{
    ClaimsVerificationError, ClientId, ClientSecret, IdTokenVerifier, IssuerUrl, JsonWebTokenType, Nonce,
    SignatureVerificationError,
    core::{CoreIdToken, CoreJsonWebKey, CoreJwsSigningAlgorithm},
};
use serde_json::Value;

use super::{
    claims::Claims,
    error::Error,
    issuer::{Issuer, Known},
};

/// By how much the clocks of issuers may differ from ours.
const LEEWAY: Duration = Duration::from_mins(1);
/// What tokens call their own type. A workload's may be an access token that was made for us (RFC 9068); a person signs in
/// by an ID token only.
const JWT: &str = "JWT";
const ACCESS_TOKEN: &str = "at+jwt";
/// The largest token, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a token at all.
    #[error("it is no signed token")]
    Malformed,
    /// It was signed with a key that the issuer does not have.
    #[error("it was signed with a key that the issuer does not have")]
    UnknownKey,
    /// It is not signed, or by a procedure that is not allowed.
    #[error("it is not signed in a way that is accepted")]
    Algorithm,
    /// The signature is wrong.
    #[error("its signature is wrong")]
    Signature,
    /// Somebody else made it.
    #[error("another issuer made it")]
    Issuer,
    /// It is for somebody else.
    #[error("it was made for another audience")]
    Audience,
    /// Its time is over.
    #[error("it has ended")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet: are the clocks right?")]
    NotYet,
    /// It belongs to another sign-in.
    #[error("it belongs to another sign-in")]
    Nonce,
}

/// What a token must be.
pub(super) struct Expected<'a> {
    pub audience: &'a str,
    pub algorithms: &'a [CoreJwsSigningAlgorithm],
    /// The secret that may have signed it, where the configuration allows that.
    pub secret: Option<&'a str>,
    /// The nonce of the sign-in; none for the tokens of workloads, which come without one.
    pub nonce: Option<&'a Nonce>,
}

/// Verifies a token of an issuer. Where it names an unknown key, the issuer is asked for its keys once more.
pub(super) async fn verify_of(
    issuer: &Issuer,
    name: &str,
    token: &str,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<Claims, Error> {
    let mut known = issuer.known().await?;
    let mut result = verify(token, issuer.issuer(), &known, expected, now);
    if result == Err(Refusal::UnknownKey)
        && let Some(rotated) = issuer.rotated(&known).await
    {
        known = rotated;
        result = verify(token, issuer.issuer(), &known, expected, now);
    }
    result.map_err(|refusal| Error::Token {
        name: name.to_owned(),
        refusal,
    })
}

/// Verifies a token: signature, issuer, audience, times, nonce.
pub(super) fn verify(
    token: &str,
    issuer: &str,
    known: &Known,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::Malformed);
    }
    let parsed = CoreIdToken::from_str(token).map_err(|_| Refusal::Malformed)?;
    let verifier = verifier(issuer, known, expected, now)?;
    let check_nonce = |found: Option<&Nonce>| match (expected.nonce, found) {
        (None, _) => Ok(()),
        (Some(expected), Some(found)) if is_same(expected, found) => Ok(()),
        _ => Err("another nonce".to_owned()),
    };
    parsed.claims(&verifier, check_nonce).map_err(|error| refusal(&error))?;
    // The very bytes whose signature was just verified.
    let claims = Claims::new(payload(token).ok_or(Refusal::Malformed)?);
    check_times(&claims, now)?;
    // The one for whom the provider made it, where it was made for several (OpenID Connect Core 1.0, 3.1.3.7).
    if expected.nonce.is_some() && claims.text("azp").is_some_and(|azp| azp != expected.audience) {
        return Err(Refusal::Audience);
    }
    Ok(claims)
}

fn is_same(one: &Nonce, other: &Nonce) -> bool {
    modelyard_auth::seal::equal(one.secret().as_bytes(), other.secret().as_bytes())
}

fn verifier<'a>(
    issuer: &str,
    known: &Known,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<IdTokenVerifier<'a, CoreJsonWebKey>, Refusal> {
    let audience = ClientId::new(expected.audience.to_owned());
    let issuer = IssuerUrl::new(issuer.to_owned()).map_err(|_| Refusal::Issuer)?;
    let keys = known.keys.clone();
    let verifier = match expected.secret {
        None => IdTokenVerifier::new_public_client(audience, issuer, keys),
        Some(secret) => {
            IdTokenVerifier::new_confidential_client(audience, ClientSecret::new(secret.to_owned()), issuer, keys)
        }
    };
    let earlier = Timestamp::from_micros(now.as_micros() - LEEWAY.as_micros() as i64).to_datetime();
    let types = [Some(JWT), expected.nonce.is_none().then_some(ACCESS_TOKEN)];
    let types = types
        .into_iter()
        .flatten()
        .map(|name| JsonWebTokenType::new(name.to_owned()).normalize());
    let types: Vec<_> = types.collect::<Result<_, _>>().map_err(|_| Refusal::Malformed)?;
    Ok(verifier
        .set_allowed_jose_types(types)
        .set_allowed_algs(expected.algorithms.iter().cloned())
        .set_time_fn(move || earlier))
}

fn refusal(error: &ClaimsVerificationError) -> Refusal {
    use SignatureVerificationError as Signature;
    match error {
        ClaimsVerificationError::Expired(_) => Refusal::Expired,
        ClaimsVerificationError::InvalidAudience(_) => Refusal::Audience,
        ClaimsVerificationError::InvalidIssuer(_) => Refusal::Issuer,
        ClaimsVerificationError::InvalidNonce(_) => Refusal::Nonce,
        ClaimsVerificationError::SignatureVerification(error) => match error {
            Signature::NoMatchingKey => Refusal::UnknownKey,
            Signature::NoSignature | Signature::DisallowedAlg(_) | Signature::UnsupportedAlg(_) => Refusal::Algorithm,
            _ => Refusal::Signature,
        },
        _ => Refusal::Malformed,
    }
}

/// A time in a token: seconds since the epoch, with or without a fraction.
fn time(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64()?;
    // Beyond what RFC 3339 can write there is nothing but the end of the range.
    Some(Timestamp::from_micros((seconds * 1e6) as i64))
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
    let latest = Timestamp::from_micros(now.as_micros() + LEEWAY.as_micros() as i64);
    for name in ["nbf", "iat"] {
        match claims.get(name) {
            None => {}
            Some(value) if time(value).is_some_and(|time| time <= latest) => {}
            Some(_) => return Err(Refusal::NotYet),
        }
    }
    Ok(())
}

/// The payload of a token, not yet trusted.
pub(super) fn payload(token: &str) -> Option<serde_json::Map<String, Value>> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    match serde_json::from_slice(&bytes).ok()? {
        Value::Object(claims) => Some(claims),
        _ => None,
    }
}
