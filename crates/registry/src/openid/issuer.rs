//! What an issuer says of itself, and its keys: fetched when they are first needed, kept, and fetched again when they are
//! old or when a token names a key that is not among them.

use std::{path::Path, sync::Arc, time::Duration};

use http::{Request, StatusCode, header};
use modelyard_common::{Timestamp, clock::SharedClock, error::Chain};
use openidconnect::core::CoreJsonWebKeySet;
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::{
    config::{KeySource, is_safe},
    error::Error,
    fetch::{Fetch, MAX_ANSWER_BYTES},
};

/// After so long, everything is fetched again.
const REFRESH: Duration = Duration::from_hours(1);
/// After so long without a fetch that succeeded, the keys count no more: one that was withdrawn may be among them.
const MAX_AGE: Duration = Duration::from_hours(24);
/// The time from one fetch to the next that a token with an unknown key can bring about.
const ROTATION_INTERVAL: Duration = Duration::from_secs(30);
/// The time from a fetch that failed to the next one.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Where issuers describe themselves.
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// What an issuer says of itself (OpenID Connect Discovery 1.0). Issuers of workloads' tokens leave out the endpoints.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Metadata {
    issuer: String,
    jwks_uri: Option<Url>,
    pub authorization_endpoint: Option<Url>,
    pub token_endpoint: Option<Url>,
    pub userinfo_endpoint: Option<Url>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
    /// RFC 9207: whether its answers name it.
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

/// What is known of an issuer.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub metadata: Arc<Metadata>,
    pub keys: CoreJsonWebKeySet,
}

#[derive(Default)]
struct Cached {
    known: Option<Arc<Known>>,
    /// When it was fetched.
    at: Option<Timestamp>,
    /// When fetching was last tried, and why it failed.
    tried: Option<(Timestamp, Option<String>)>,
}

/// An issuer.
pub(super) struct Issuer {
    /// What it is called in messages.
    name: String,
    /// What it calls itself.
    iss: String,
    source: KeySource,
    fetch: Arc<dyn Fetch>,
    clock: SharedClock,
    cached: RwLock<Cached>,
    /// Held while something is fetched: one does, the others wait or go on with what there is.
    fetching: Mutex<()>,
}

impl Issuer {
    pub(super) fn new(name: &str, issuer: &str, source: KeySource, fetch: Arc<dyn Fetch>, clock: SharedClock) -> Self {
        Self {
            name: name.to_owned(),
            iss: issuer.to_owned(),
            source,
            fetch,
            clock,
            cached: RwLock::default(),
            fetching: Mutex::default(),
        }
    }

    /// Its name of itself.
    pub(super) fn issuer(&self) -> &str {
        &self.iss
    }

    fn unavailable(&self, problem: impl Into<String>) -> Error {
        Error::Unavailable {
            name: self.name.clone(),
            problem: problem.into(),
        }
    }

    fn age(&self, since: Timestamp) -> Duration {
        self.clock.now().since(since)
    }

    /// What is known, and whether it should be fetched again.
    fn cached(&self) -> Option<(Arc<Known>, bool)> {
        let cached = self.cached.read();
        let (known, at) = (cached.known.clone()?, cached.at?);
        let age = self.age(at);
        (age < MAX_AGE).then(|| (known, age >= REFRESH))
    }

    /// The failure of a moment ago, which would only be repeated.
    fn failed_just_now(&self) -> Option<String> {
        let cached = self.cached.read();
        let (at, failure) = cached.tried.as_ref()?;
        (self.age(*at) < RETRY_INTERVAL).then(|| failure.clone()).flatten()
    }

    /// What is known of it.
    pub(super) async fn known(&self) -> Result<Arc<Known>, Error> {
        if let Some((known, is_old)) = self.cached() {
            if is_old
                && self.failed_just_now().is_none()
                && let Ok(guard) = self.fetching.try_lock()
            {
                let fetched = self.fetch_all().await;
                drop(guard);
                return Ok(fetched.unwrap_or(known));
            }
            return Ok(known);
        }
        let _guard = self.fetching.lock().await;
        // Whoever held it before may have fetched it, or found that it cannot be.
        if let Some((known, _)) = self.cached() {
            return Ok(known);
        }
        if let Some(problem) = self.failed_just_now() {
            return Err(self.unavailable(problem));
        }
        self.fetch_all().await.map_err(|problem| self.unavailable(problem))
    }

    /// The keys after a token named one that is not among them; none where that cannot help, or was tried just now.
    pub(super) async fn rotated(&self, before: &Arc<Known>) -> Option<Arc<Known>> {
        let _guard = self.fetching.lock().await;
        if let Some((known, _)) = self.cached()
            && !Arc::ptr_eq(&known, before)
        {
            return Some(known);
        }
        let tried = self.cached.read().tried.as_ref().map(|(at, _)| *at);
        if tried.is_some_and(|at| self.age(at) < ROTATION_INTERVAL) {
            return None;
        }
        self.fetch_all().await.ok()
    }

    /// Fetches everything, and keeps it.
    async fn fetch_all(&self) -> Result<Arc<Known>, String> {
        let result = self.load().await;
        let now = self.clock.now();
        let mut cached = self.cached.write();
        match result {
            Ok(known) => {
                let known = Arc::new(known);
                cached.known = Some(Arc::clone(&known));
                cached.at = Some(now);
                cached.tried = Some((now, None));
                Ok(known)
            }
            Err(problem) => {
                tracing::warn!(
                    issuer = self.iss,
                    problem,
                    "what an issuer says of itself, or its keys, cannot be fetched"
                );
                cached.tried = Some((now, Some(problem.clone())));
                Err(problem)
            }
        }
    }

    async fn load(&self) -> Result<Known, String> {
        let (metadata, keys) = match &self.source {
            KeySource::Discovery => {
                let metadata = self.discover().await?;
                let uri = metadata.jwks_uri.as_ref().ok_or("it does not say where its keys are")?;
                check_address(uri)?;
                let keys = self.get(uri).await?;
                (metadata, keys)
            }
            KeySource::Address(address) => (Metadata::default(), self.get(address).await?),
            KeySource::File(path) => (Metadata::default(), read(path).await?),
        };
        let keys: CoreJsonWebKeySet =
            serde_json::from_slice(&keys).map_err(|error| format!("its keys cannot be read: {error}"))?;
        if keys.keys().is_empty() {
            return Err("it has no key that can verify a signature".to_owned());
        }
        Ok(Known {
            metadata: Arc::new(metadata),
            keys,
        })
    }

    async fn discover(&self) -> Result<Metadata, String> {
        let address = format!("{}{WELL_KNOWN}", self.iss.trim_end_matches('/'));
        let address = Url::parse(&address).map_err(|error| format!("its issuer is no address: {error}"))?;
        let body = self.get(&address).await?;
        let metadata: Metadata = serde_json::from_slice(&body)
            .map_err(|error| format!("what it says of itself at {address} cannot be read: {error}"))?;
        if metadata.issuer != self.iss {
            return Err(format!(
                "it calls itself `{}`, and is configured as `{}`: write the issuer as it does",
                metadata.issuer.escape_debug(),
                self.iss
            ));
        }
        let endpoints = [
            &metadata.authorization_endpoint,
            &metadata.token_endpoint,
            &metadata.userinfo_endpoint,
        ];
        for endpoint in endpoints.into_iter().flatten() {
            check_address(endpoint)?;
        }
        Ok(metadata)
    }

    async fn get(&self, address: &Url) -> Result<Vec<u8>, String> {
        let request = Request::get(address.as_str()).header(header::ACCEPT, "application/json");
        let request = request.body(Vec::new()).map_err(|error| error.to_string())?;
        let answer = self.fetch.fetch(request).await;
        let answer = answer.map_err(|error| format!("{address}: {}", Chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{address} answers {}", answer.status()));
        }
        Ok(answer.into_body())
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if size > MAX_ANSWER_BYTES as u64 {
        return Err(format!("{} is larger than {MAX_ANSWER_BYTES} bytes", path.display()));
    }
    tokio::fs::read(path).await.map_err(failed)
}

/// Codes, secrets and keys travel over TLS, except within this machine.
fn check_address(address: &Url) -> Result<(), String> {
    if is_safe(address) {
        return Ok(());
    }
    Err(format!("its address {address} is not one of https://"))
}
