//! Signing in at a provider: the authorization code flow with PKCE, `state` and `nonce` (OpenID Connect Core 1.0, RFC 7636,
//! RFC 9700).

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Request, StatusCode, header};
use modelyard_auth::seal::KeyRing;
use modelyard_common::{clock::SharedClock, error::Chain};
use openidconnect::{
    AsyncHttpClient, AuthType, AuthUrl, AuthenticationFlow, AuthorizationCode, ClientId, ClientSecret, CsrfToken,
    EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, TokenResponse as _, TokenUrl,
    core::{CoreClient, CoreJwsSigningAlgorithm, CoreResponseType},
};
use serde_json::{Map, Value};
use url::Url;

use super::{
    claims::{Claims, Profile, is_complete},
    config::{KeySource, Provider, SignIn, algorithms},
    error::Error,
    fetch::{Fetch, FetchError},
    issuer::{Issuer, Known},
    pending::{COOKIE_PATH, Pending, check_return_path},
    verify::{Expected, verify_of},
};

/// The longest parameter that a provider sends back, in bytes.
const MAX_PARAMETER_BYTES: usize = 4096;

type Client = CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointNotSet>;

/// Where to send the browser.
#[derive(Debug)]
pub struct Begun {
    /// The provider's address.
    pub location: String,
    /// The value of [`super::COOKIE`].
    pub cookie: String,
}

/// What a provider sent back with the browser.
#[derive(Debug, Clone, Copy, Default)]
pub struct Callback<'a> {
    /// The code.
    pub code: Option<&'a str>,
    /// The state.
    pub state: Option<&'a str>,
    /// RFC 9207: who answers.
    pub iss: Option<&'a str>,
    /// Why there is no code.
    pub error: Option<&'a str>,
}

/// Who signed in, and where to go on.
#[derive(Debug)]
pub struct Finished {
    /// Who.
    pub profile: Profile,
    /// Whether somebody new becomes a user.
    pub may_create: bool,
    /// The path to go on at.
    pub return_to: String,
}

/// The network as the library calls it.
struct Sender(Arc<dyn Fetch>);

impl<'c> AsyncHttpClient<'c> for Sender {
    type Error = FetchError;
    type Future = BoxFuture<'c, Result<HttpResponse, FetchError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.0.fetch(request)
    }
}

struct At {
    provider: Provider,
    algorithms: Vec<CoreJwsSigningAlgorithm>,
    redirect: RedirectUrl,
    issuer: Issuer,
    fetch: Arc<dyn Fetch>,
}

/// The providers at which people sign in.
pub struct SignIns {
    providers: Vec<At>,
    keys: Arc<KeyRing>,
    clock: SharedClock,
}

impl SignIns {
    /// The providers of a configuration. Nothing is asked of them yet.
    pub fn new(
        config: &SignIn,
        keys: Arc<KeyRing>,
        clock: SharedClock,
        fetch: impl Fn(&Provider) -> Result<Arc<dyn Fetch>, FetchError>,
    ) -> Result<Self, Error> {
        let mut providers = Vec::new();
        for provider in &config.providers {
            let origin = config.origin().unwrap_or_default();
            let redirect = format!("{origin}{COOKIE_PATH}/{}/callback", provider.name);
            let redirect = RedirectUrl::new(redirect).map_err(|error| Error::Config(error.to_string()))?;
            let fetch = fetch(provider).map_err(|error| Error::Config(error.to_string()))?;
            providers.push(At {
                algorithms: algorithms(&provider.algorithms).map_err(Error::Config)?,
                redirect,
                issuer: Issuer::new(
                    &provider.name,
                    &provider.issuer,
                    KeySource::Discovery,
                    Arc::clone(&fetch),
                    Arc::clone(&clock),
                ),
                fetch,
                provider: provider.clone(),
            });
        }
        Ok(Self { providers, keys, clock })
    }

    /// Their names and labels.
    pub fn list(&self) -> impl Iterator<Item = (&str, &str)> {
        self.providers
            .iter()
            .map(|at| (at.provider.name.as_str(), at.provider.label()))
    }

    fn find(&self, name: &str) -> Result<&At, Error> {
        let found = self.providers.iter().find(|at| at.provider.name == name);
        found.ok_or_else(|| Error::UnknownProvider(name.chars().take(128).flat_map(char::escape_default).collect()))
    }

    /// Begins a sign-in.
    pub async fn begin(&self, provider: &str, return_to: &str) -> Result<Begun, Error> {
        let at = self.find(provider)?;
        check_return_path(return_to)?;
        let client = at.client(&*at.issuer.known().await?)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = AuthenticationFlow::<CoreResponseType>::AuthorizationCode;
        let mut request = client.authorize_url(flow, CsrfToken::new_random, Nonce::new_random);
        for scope in &at.provider.scopes {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        let (location, state, nonce) = request.set_pkce_challenge(challenge).url();
        let pending = Pending {
            provider: at.provider.name.clone(),
            state: state.secret().clone(),
            nonce: nonce.secret().clone(),
            verifier: verifier.secret().clone(),
            return_to: return_to.to_owned(),
            began_at: self.clock.now(),
        };
        Ok(Begun {
            location: location.into(),
            cookie: pending.seal(&self.keys)?,
        })
    }

    /// Ends a sign-in: the code becomes a token, the token is verified, and says who it is.
    pub async fn finish(
        &self,
        provider: &str,
        callback: Callback<'_>,
        cookie: Option<&str>,
    ) -> Result<Finished, Error> {
        let at = self.find(provider)?;
        let parameters = [callback.code, callback.state, callback.iss, callback.error];
        if parameters
            .into_iter()
            .flatten()
            .any(|text| text.len() > MAX_PARAMETER_BYTES)
        {
            return Err(Error::State);
        }
        let now = self.clock.now();
        let state = callback.state.unwrap_or_default();
        let pending = Pending::open(&self.keys, cookie.ok_or(Error::NotBegun)?, provider, state, now)?;
        let known = at.issuer.known().await?;
        // Another provider may have been made to send its answer here.
        let must_name_itself = known.metadata.authorization_response_iss_parameter_supported;
        match callback.iss {
            Some(iss) if iss != at.provider.issuer => return Err(Error::Issuer),
            None if must_name_itself => return Err(Error::Issuer),
            _ => {}
        }
        if let Some(error) = callback.error {
            return Err(at.refused(error));
        }
        let code = callback.code.ok_or_else(|| at.refused("it sent no code"))?;
        let (id_token, access_token) = at.redeem(&known, code, pending.verifier).await?;
        let nonce = Nonce::new(pending.nonce);
        let secret = at
            .provider
            .client_secret
            .as_ref()
            .map(modelyard_common::config::Secret::reveal);
        let expected = Expected {
            audience: &at.provider.client_id,
            algorithms: &at.algorithms,
            secret,
            nonce: Some(&nonce),
        };
        let mut claims = verify_of(&at.issuer, &at.provider.name, &id_token, &expected, self.clock.now()).await?;
        if !is_complete(&at.provider, &claims)
            && let Some(endpoint) = &known.metadata.userinfo_endpoint
        {
            let more = at.user_info(endpoint, &access_token, &claims).await?;
            claims.fill(more);
        }
        Ok(Finished {
            profile: Profile::read(&at.provider, &claims)?,
            may_create: at.provider.create_users,
            return_to: pending.return_to,
        })
    }
}

impl At {
    fn unavailable(&self, problem: impl Into<String>) -> Error {
        Error::Unavailable {
            name: self.provider.name.clone(),
            problem: problem.into(),
        }
    }

    /// The provider's refusal, of which only what OAuth allows in an error is repeated.
    fn refused(&self, code: &str) -> Error {
        let is_plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
        Error::Refused {
            name: self.provider.name.clone(),
            code: code.chars().filter(is_plain).take(200).collect(),
        }
    }

    fn client(&self, known: &Known) -> Result<Client, Error> {
        let metadata = &known.metadata;
        let missing = |what: &str| self.unavailable(format!("it does not say where its {what} is"));
        let authorize = metadata.authorization_endpoint.clone();
        let authorize = authorize.ok_or_else(|| missing("authorization endpoint"))?;
        let token = metadata
            .token_endpoint
            .clone()
            .ok_or_else(|| missing("token endpoint"))?;
        let issuer = IssuerUrl::new(self.provider.issuer.clone()).map_err(|error| Error::Config(error.to_string()))?;
        let client_id = ClientId::new(self.provider.client_id.clone());
        let mut client = CoreClient::new(client_id, issuer, known.keys.clone())
            .set_auth_uri(AuthUrl::from_url(authorize))
            .set_token_uri(TokenUrl::from_url(token))
            .set_redirect_uri(self.redirect.clone());
        if let Some(secret) = &self.provider.client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.reveal().to_owned()));
        }
        // In the header where the provider does not say otherwise.
        let methods = &metadata.token_endpoint_auth_methods_supported;
        let has = |method: &str| methods.iter().any(|supported| supported == method);
        if !has("client_secret_basic") && has("client_secret_post") {
            client = client.set_auth_type(AuthType::RequestBody);
        }
        Ok(client)
    }

    /// Exchanges the code for tokens: the ID token and the access token.
    async fn redeem(&self, known: &Known, code: &str, verifier: String) -> Result<(String, String), Error> {
        let client = self.client(known)?;
        let sender = Sender(Arc::clone(&self.fetch));
        let request = client.exchange_code(AuthorizationCode::new(code.to_owned()));
        let request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier));
        let answer = request.request_async(&sender).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(refusal) => self.refused(&refusal.to_string()),
            RequestTokenError::Request(error) => self.unavailable(error.to_string()),
            // The answer itself has tokens in it: it is not repeated.
            RequestTokenError::Parse(error, _) => self.unavailable(format!("its answer cannot be read: {error}")),
            RequestTokenError::Other(problem) => self.unavailable(problem),
        })?;
        let id_token = answer.id_token().ok_or_else(|| self.refused("it sent no ID token"))?;
        Ok((id_token.to_string(), answer.access_token().secret().clone()))
    }

    /// What the provider tells about the user beside the token (OpenID Connect Core 1.0, 5.3).
    async fn user_info(
        &self,
        endpoint: &Url,
        access_token: &str,
        claims: &Claims,
    ) -> Result<Map<String, Value>, Error> {
        let request = Request::get(endpoint.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {access_token}"))
            .body(Vec::new())
            .map_err(|_| self.refused("its access token cannot be sent"))?;
        let answer = self.fetch.fetch(request).await;
        let answer = answer.map_err(|error| self.unavailable(Chain(&error).to_string()))?;
        if answer.status() != StatusCode::OK {
            return Err(self.unavailable(format!("{endpoint} answers {}", answer.status())));
        }
        let Ok(Value::Object(more)) = serde_json::from_slice(answer.body()) else {
            return Err(self.unavailable(format!("{endpoint} does not answer with JSON")));
        };
        // An access token of somebody else may have been slipped in.
        if more.get("sub").and_then(Value::as_str) != claims.subject() {
            return Err(self.refused("its user information is about somebody else"));
        }
        Ok(more)
    }
}
