//! Signing in and exchanging tokens against a provider within the process, which can be made to do everything wrong.

mod forge;
mod sign_in;
mod workload;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use modelyard_auth::seal::KeyRing;
use modelyard_common::{
    Timestamp,
    clock::{Clock as _, ManualClock},
    config::Secret,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::Url;

use self::forge::{Key, encode};
use super::{
    config::{Provider, SignIn},
    fetch::{Fetch, FetchError},
    sign_in::SignIns,
};

pub const ISSUER: &str = "https://id.example";
pub const CLIENT: &str = "modelyard";
pub const SECRET: &str = "a secret of more than thirty-two bytes";
const START: &str = "2013-03-01T00:00:00Z";

pub fn clock() -> Arc<ManualClock> {
    ManualClock::at(START.parse::<Timestamp>().unwrap())
}

/// Seconds since the epoch, from now.
pub fn seconds(clock: &ManualClock, offset: i64) -> i64 {
    clock.now().as_millis() / 1000 + offset
}

/// What belongs to a code that was given out.
struct Issued {
    challenge: String,
    nonce: String,
    redirect_uri: String,
}

/// Makes a token of a key and the claims of an honest one.
type Forgery = Box<dyn Fn(&Key, &Value) -> String + Send>;

/// A provider that can be made to do everything wrong.
pub struct FakeProvider {
    pub clock: Arc<ManualClock>,
    pub keys: Mutex<Vec<Key>>,
    pub is_away: AtomicBool,
    pub checks_pkce: AtomicBool,
    /// Put into what it says of itself.
    pub metadata: Mutex<Value>,
    /// Put into its ID tokens; null takes a claim out.
    pub claims: Mutex<Value>,
    pub user_info: Mutex<Value>,
    /// What it sends in place of an honest token, made of that one's claims.
    pub token: Mutex<Option<Forgery>>,
    pub requests: AtomicU32,
    pub user_info_requests: AtomicU32,
    codes: Mutex<HashMap<String, Issued>>,
}

fn patch(value: &mut Value, changes: &Value) {
    for (name, change) in changes.as_object().into_iter().flatten() {
        if change.is_null() {
            value.as_object_mut().unwrap().remove(name);
        } else {
            value[name] = change.clone();
        }
    }
}

impl FakeProvider {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: clock(),
            keys: Mutex::new(vec![Key::ec("k1")]),
            is_away: AtomicBool::new(false),
            checks_pkce: AtomicBool::new(true),
            metadata: Mutex::new(json!({})),
            claims: Mutex::new(json!({})),
            user_info: Mutex::new(json!({"sub": "0001", "groups": ["ml-team"]})),
            token: Mutex::new(None),
            requests: AtomicU32::new(0),
            user_info_requests: AtomicU32::new(0),
            codes: Mutex::default(),
        })
    }

    /// The claims of an honest token.
    pub fn honest_claims(&self, nonce: &str) -> Value {
        let mut claims = json!({
            "iss": ISSUER, "aud": CLIENT, "sub": "0001", "nonce": nonce, "preferred_username": "alice",
            "name": "Alice Liddell", "groups": ["ml-team", "/staff", "no good name"],
            "iat": seconds(&self.clock, 0), "exp": seconds(&self.clock, 300),
        });
        patch(&mut claims, &self.claims.lock());
        claims
    }

    /// What a person does in the browser: sign in, and be sent back. The code and the state.
    pub fn authorize(&self, location: &str) -> (String, String) {
        let url = Url::parse(location).unwrap();
        assert!(location.starts_with("https://id.example/authorize?"), "{location}");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["client_id"], CLIENT);
        assert_eq!(query["code_challenge_method"], "S256");
        assert_eq!(query["scope"], "openid profile email");
        assert_eq!(
            query["redirect_uri"],
            "https://yard.example/api/v1/auth/openid/okta/callback"
        );
        let mut codes = self.codes.lock();
        let code = format!("code-{}", codes.len());
        codes.insert(
            code.clone(),
            Issued {
                challenge: query["code_challenge"].clone(),
                nonce: query["nonce"].clone(),
                redirect_uri: query["redirect_uri"].clone(),
            },
        );
        (code, query["state"].clone())
    }

    fn redeem(&self, request: &Request<Vec<u8>>) -> (StatusCode, Value) {
        let refused = |error: &str| (StatusCode::BAD_REQUEST, json!({"error": error}));
        let form: HashMap<String, String> = url::form_urlencoded::parse(request.body()).into_owned().collect();
        let authorization = request
            .headers()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if !authorization.is_some_and(|value| value.starts_with("Basic ")) {
            return refused("invalid_client");
        }
        // A code is good once.
        let Some(issued) = self.codes.lock().get_mut(&form["code"]).map(|issued| {
            std::mem::replace(
                issued,
                Issued {
                    challenge: String::new(),
                    nonce: String::new(),
                    redirect_uri: String::new(),
                },
            )
        }) else {
            return refused("invalid_grant");
        };
        let challenge = encode(Sha256::digest(form["code_verifier"].as_bytes()));
        let is_proven = challenge == issued.challenge || !self.checks_pkce.load(Ordering::Relaxed);
        if issued.nonce.is_empty() || issued.redirect_uri != form["redirect_uri"] || !is_proven {
            return refused("invalid_grant");
        }
        let claims = self.honest_claims(&issued.nonce);
        let keys = self.keys.lock();
        let key = keys.last().unwrap();
        let token = match &*self.token.lock() {
            Some(make) => make(key, &claims),
            None => key.token(&claims),
        };
        let answer = json!({"access_token": "at", "token_type": "Bearer", "expires_in": 300, "id_token": token});
        (StatusCode::OK, answer)
    }

    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Fetch for FakeProvider {
    async fn fetch(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(FetchError::Network("connection refused".to_owned()));
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (status, body) = match request.uri().path() {
            "/.well-known/openid-configuration" => {
                let mut metadata = json!({
                    "issuer": ISSUER,
                    "authorization_endpoint": "https://id.example/authorize",
                    "token_endpoint": "https://id.example/token",
                    "userinfo_endpoint": "https://id.example/userinfo",
                    "jwks_uri": "https://id.example/keys",
                });
                patch(&mut metadata, &self.metadata.lock());
                (StatusCode::OK, metadata)
            }
            "/keys" => {
                let keys: Vec<Value> = self.keys.lock().iter().map(Key::jwk).collect();
                (StatusCode::OK, json!({"keys": keys}))
            }
            "/token" => self.redeem(&request),
            "/userinfo" => {
                self.user_info_requests.fetch_add(1, Ordering::Relaxed);
                assert_eq!(request.headers()["authorization"], "Bearer at");
                (StatusCode::OK, self.user_info.lock().clone())
            }
            path => panic!("nobody asks for {path}"),
        };
        let response = Response::builder()
            .status(status)
            .header("content-type", "application/json");
        Ok(response.body(body.to_string().into_bytes()).unwrap())
    }
}

/// A provider in the configuration.
pub fn provider() -> Provider {
    Provider {
        name: "okta".to_owned(),
        issuer: ISSUER.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret: Some(Secret::new(SECRET)),
        ..Provider::default()
    }
}

/// The configuration with one provider.
pub fn config(provider: Provider) -> SignIn {
    SignIn {
        public_url: Some("https://yard.example/".to_owned()),
        providers: vec![provider],
        workloads: Vec::new(),
    }
}

pub fn sign_ins(fake: &Arc<FakeProvider>, provider: Provider) -> SignIns {
    let config = config(provider);
    assert_eq!(config.problems(), Vec::<String>::new());
    let keys = Arc::new(KeyRing::generate().unwrap());
    SignIns::new(
        &config,
        keys,
        fake.clock.clone(),
        |_| Ok(fake.clone() as Arc<dyn Fetch>),
    )
    .unwrap()
}

pub const MINUTE: Duration = Duration::from_mins(1);
