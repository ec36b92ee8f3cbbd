//! Keys and tokens, honest ones and forged ones. The keys are made by each run.

use std::sync::OnceLock;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use openidconnect::{
    JsonWebKeyId, PrivateSigningKey,
    core::{CoreJwsSigningAlgorithm, CoreRsaPrivateSigningKey},
};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use rsa::{RsaPrivateKey, pkcs1::EncodeRsaPrivateKey, pkcs8::LineEnding};
use serde_json::{Value, json};

/// A key that signs.
pub enum Key {
    Rsa(&'static str),
    Ec(&'static str, EcdsaKeyPair),
    Ed(&'static str, Ed25519KeyPair),
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// One RSA key for all tests: making it takes a while.
fn rsa_pem() -> &'static str {
    static PEM: OnceLock<String> = OnceLock::new();
    PEM.get_or_init(|| {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        key.to_pkcs1_pem(LineEnding::LF).unwrap().to_string()
    })
}

fn rsa(kid: &str) -> CoreRsaPrivateSigningKey {
    CoreRsaPrivateSigningKey::from_pem(rsa_pem(), Some(JsonWebKeyId::new(kid.to_owned()))).unwrap()
}

impl Key {
    pub fn ec(kid: &'static str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self::Ec(kid, pair)
    }

    pub fn ed(kid: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(kid, Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    pub fn kid(&self) -> &'static str {
        match self {
            Self::Rsa(kid) | Self::Ec(kid, _) | Self::Ed(kid, _) => kid,
        }
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(..) => "ES256",
            Self::Ed(..) => "EdDSA",
        }
    }

    /// The public half, as an issuer shows it.
    pub fn jwk(&self) -> Value {
        match self {
            Self::Rsa(kid) => serde_json::to_value(rsa(kid).as_verification_key()).unwrap(),
            Self::Ec(kid, pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": kid,
                       "x": encode(&point[1..33]), "y": encode(&point[33..])})
            }
            Self::Ed(kid, pair) => json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid,
                                          "x": encode(pair.public_key())}),
        }
    }

    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(kid) => {
                let algorithm: CoreJwsSigningAlgorithm = serde_json::from_value(json!(algorithm)).unwrap();
                rsa(kid).sign(&algorithm, message).unwrap()
            }
            Self::Ec(_, pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Ed(_, pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// An honest token.
    pub fn token(&self, claims: &Value) -> String {
        self.token_by(self.algorithm(), claims)
    }

    pub fn token_by(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({"alg": algorithm, "kid": self.kid(), "typ": "JWT"});
        assemble(&header, claims, |message| self.sign(algorithm, message))
    }
}

/// A token of any parts.
pub fn assemble(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// A signature with a secret that both sides have.
pub fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message)
        .as_ref()
        .to_vec()
}

/// Tokens that nobody may accept, made from the claims of one that would be: what was done, and the token.
pub fn forgeries(key: &Key, claims: &Value) -> Vec<(&'static str, String)> {
    let honest = key.token(claims);
    let [header, payload, signature] = honest.split('.').collect::<Vec<_>>().try_into().unwrap();
    let mut other = claims.clone();
    other["sub"] = json!("root");
    let tampered = encode(other.to_string());
    let none = |name: &str| encode(json!({"alg": name, "typ": "JWT"}).to_string());
    let hs = |secret: &[u8], kid: &str| {
        let header = json!({"alg": "HS256", "kid": kid, "typ": "JWT"});
        assemble(&header, claims, |message| hs256(secret, message))
    };
    let public = key.jwk();
    let public_text = public.to_string();
    let modulus = public.get("n").or(public.get("x")).and_then(Value::as_str).unwrap();
    let impostor = Key::ec(key.kid());
    let embedded = json!({"alg": "ES256", "typ": "JWT", "kid": key.kid(), "jwk": impostor.jwk(),
                          "jku": "https://evil.example/keys"});
    vec![
        ("alg none, no signature", format!("{}.{payload}.", none("none"))),
        (
            "alg none, signature kept",
            format!("{}.{payload}.{signature}", none("none")),
        ),
        ("alg None", format!("{}.{payload}.", none("None"))),
        ("alg NONE", format!("{}.{payload}.", none("NONE"))),
        (
            "no alg",
            format!("{}.{payload}.{signature}", encode(r#"{"typ":"JWT"}"#)),
        ),
        ("HS256 with the public key", hs(public_text.as_bytes(), key.kid())),
        ("HS256 with the modulus", hs(modulus.as_bytes(), key.kid())),
        ("HS256 with nothing", hs(b"", key.kid())),
        ("payload changed", format!("{header}.{tampered}.{signature}")),
        ("signature left out", format!("{header}.{payload}.")),
        (
            "signature cut",
            format!("{header}.{payload}.{}", &signature[..signature.len() / 2]),
        ),
        ("signature of zeros", format!("{header}.{payload}.{}", encode([0; 64]))),
        ("another's key under the same id", impostor.token(claims)),
        (
            "a key that the token brings",
            assemble(&embedded, claims, |message| impostor.sign("ES256", message)),
        ),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{honest}.{signature}")),
        ("padded", format!("{header}=.{payload}=.{signature}=")),
        (
            "critical header",
            assemble(
                &json!({"alg": key.algorithm(), "kid": key.kid(), "crit": ["exp"], "exp": 1}),
                claims,
                |message| key.sign(key.algorithm(), message),
            ),
        ),
        (
            "an access token",
            assemble(
                &json!({"alg": key.algorithm(), "kid": key.kid(), "typ": "at+jwt"}),
                claims,
                |message| key.sign(key.algorithm(), message),
            ),
        ),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
        ("not Base64", "a!.b!.c!".to_owned()),
        ("huge", format!("{header}.{}.{signature}", "A".repeat(20_000))),
    ]
}
