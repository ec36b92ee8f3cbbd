//! Signing in at OpenID providers, and exchanging workloads' tokens.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use modelyard_auth::{
    Grant, Kind, Principal,
    audit::{NewEvent, Outcome, clean_text},
    seal::KeyRing,
    token::{Token, TokenKind},
};
use modelyard_common::{ErrorKind, Fault as _, Timestamp, clock::SharedClock, id::SharedIds};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Registry, passwords::SIGN_IN};
use crate::{
    error::{Error, Result},
    openid::{self, Accepted, Begun, Callback, Fetch, FetchError, Network, SignIn, SignIns, Workloads},
    store::{ExchangedAs, NewExchange, NewSignIn, SignedIn, Stores},
};

/// How long a browser's session lasts.
pub const SESSION_LIFETIME: Duration = Duration::from_hours(12);
/// How many failures a minute are written into the audit chain; the others are counted with the next one.
const AUDITED_FAILURES: u32 = 60;
/// The action in the audit chain.
const EXCHANGE: &str = "token.exchange";
/// How much of what a stranger says is logged, in bytes.
const MAX_LOGGED: usize = 1000;
/// The longest scope that is asked for, in grants.
const MAX_WANTED: usize = 64;

/// Where a request came from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The client's own id of the request.
    pub request_id: Option<String>,
    /// Its address.
    pub source: Option<IpAddr>,
}

/// A session that was made.
#[derive(Debug)]
pub struct NewSession {
    /// The value of the cookie.
    pub token: Token,
    /// The path to go on at.
    pub return_to: String,
}

/// A token that was exchanged.
#[derive(Debug)]
pub struct Exchanged {
    /// The token.
    pub token: Token,
    /// How long it lives.
    pub lifetime: Duration,
    /// The most that it opens; none: all that the service account may.
    pub scope: Option<Vec<Grant>>,
}

/// Why a token is not exchanged, in the words of OAuth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExchangeError {
    /// Not accepted. Why is in the audit chain, and told to nobody who may be guessing.
    Refused,
    /// More was asked for than the rule gives.
    Scope,
    /// The issuer's keys cannot be had right now, or there are too many tokens.
    Later,
    /// A fault of ours, which was logged.
    Internal,
}

/// Signing in elsewhere, as configured.
pub(crate) struct OpenId {
    sign_ins: SignIns,
    workloads: Workloads,
    failures: Mutex<Failures>,
    /// Whether browsers come by TLS, so that cookies travel by it only.
    is_secure: bool,
}

impl OpenId {
    /// Reads certificates; asks no provider.
    pub(crate) fn open(config: &SignIn, keys: &Arc<KeyRing>, clock: &SharedClock) -> Result<Self> {
        let connect = |ca_file: &Option<PathBuf>| {
            let network = Network::new(ca_file.as_deref())?;
            Ok::<_, FetchError>(Arc::new(network) as Arc<dyn Fetch>)
        };
        let sign_ins = SignIns::new(config, Arc::clone(keys), Arc::clone(clock), |provider| {
            connect(&provider.ca_file)
        })?;
        let workloads = Workloads::new(config, Arc::clone(clock), |workload| connect(&workload.ca_file))?;
        Ok(Self {
            sign_ins,
            workloads,
            failures: Mutex::default(),
            is_secure: config
                .public_url
                .as_deref()
                .is_some_and(|url| url.starts_with("https:")),
        })
    }
}

/// Makes the roles of groups those of the configuration.
pub(crate) async fn set_group_roles(
    config: &SignIn,
    stores: &Stores,
    clock: &SharedClock,
    ids: &SharedIds,
) -> Result<()> {
    let now = clock.now();
    let mut event = anonymous_event(ids, now, "access.write", &Origin::default());
    event.actor = Principal::service("registry").to_string();
    "the configuration".clone_into(&mut event.resource);
    let changed = stores.openid.set_group_roles(&config.bindings(), &event, now).await?;
    if changed {
        tracing::info!("the roles of groups became those of the configuration");
    }
    Ok(())
}

/// Bounds what failures write: whoever knocks all the time shall not fill the audit chain.
#[derive(Default)]
struct Failures {
    minute: Option<Instant>,
    written: u32,
    passed_over: u64,
}

impl Failures {
    /// Whether this one is written, and how many were not before it.
    fn next(&mut self, now: Instant) -> Option<u64> {
        let is_new = self
            .minute
            .is_none_or(|minute| now.saturating_duration_since(minute) >= Duration::from_mins(1));
        if is_new {
            self.minute = Some(now);
            self.written = 0;
        }
        if self.written >= AUDITED_FAILURES {
            self.passed_over += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.passed_over))
    }
}

/// The event of somebody who is not known, or not yet.
pub(super) fn anonymous_event(ids: &SharedIds, now: Timestamp, action: &str, origin: &Origin) -> NewEvent {
    NewEvent {
        id: ids.next(),
        at: now,
        project: String::new(),
        actor: Principal::anonymous().to_string(),
        on_behalf_of: None,
        action: action.to_owned(),
        resource_kind: Kind::Installation.word().to_owned(),
        resource: String::new(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: None,
        request_id: Some(origin.request_id.clone().unwrap_or_else(|| ids.next().to_string())),
        source_address: origin.source.map(|source| source.to_string()),
        details: json!({}),
    }
}

impl Registry {
    /// The names and labels of the providers at which people can sign in.
    pub fn sign_in_providers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.openid.sign_ins.list()
    }

    /// Whether browsers come by TLS.
    pub fn is_secure(&self) -> bool {
        self.openid.is_secure
    }

    /// Sends a browser to a provider.
    pub async fn begin_sign_in(&self, provider: &str, return_to: &str) -> Result<Begun> {
        Ok(self.openid.sign_ins.begin(provider, return_to).await?)
    }

    /// Takes a browser back from a provider: whoever it is becomes a user, or is known again, and has a session.
    pub async fn finish_sign_in(
        &self,
        provider: &str,
        callback: Callback<'_>,
        cookie: Option<&str>,
        origin: &Origin,
    ) -> Result<NewSession> {
        let finished = match self.openid.sign_ins.finish(provider, callback, cookie).await {
            Ok(finished) => finished,
            Err(error) => {
                let details = json!({"via": "openid", "provider": provider});
                self.note_refusal(SIGN_IN, &error, origin, details).await;
                return Err(error.into());
            }
        };
        let now = self.clock.now();
        let profile = &finished.profile;
        let token = Token::generate(TokenKind::Session).map_err(|error| Error::State(error.to_string()))?;
        let row = self.token_row(
            &token,
            format!("sign-in at {provider}"),
            None,
            Some(now + SESSION_LIFETIME),
        );
        let mut event = anonymous_event(&self.ids, now, SIGN_IN, origin);
        "user".clone_into(&mut event.resource_kind);
        event.details = json!({
            "via": "openid", "provider": provider, "issuer": profile.issuer, "subject": profile.subject, "token": row.id,
        });
        let new = NewSignIn {
            profile,
            may_create: finished.may_create,
            token: row,
            event,
            now,
        };
        match self.stores.openid.sign_in(&new).await? {
            SignedIn::As { name, revision } => {
                tracing::info!(user = name, provider, "signed in");
                self.know(revision).await;
                Ok(NewSession {
                    token,
                    return_to: finished.return_to,
                })
            }
            SignedIn::Refused(error) => {
                self.note_refusal(SIGN_IN, &error, origin, new.event.details).await;
                Err(error.into())
            }
        }
    }

    /// Exchanges a workload's token for one of ours (RFC 8693).
    pub async fn exchange_token(
        &self,
        subject_token: &str,
        scope: Option<&str>,
        origin: &Origin,
    ) -> Result<Exchanged, ExchangeError> {
        let accepted = match self.openid.workloads.accept(subject_token).await {
            Ok(accepted) => accepted,
            Err(error) => {
                self.note_refusal(EXCHANGE, &error, origin, json!({"via": "exchange"}))
                    .await;
                return Err(match error.kind() {
                    ErrorKind::Unavailable => ExchangeError::Later,
                    _ => ExchangeError::Refused,
                });
            }
        };
        let details = json!({
            "via": "exchange", "workload": accepted.workload, "subject": accepted.subject,
            "service_account": accepted.service_account,
        });
        let accepted = match scope.map(grants) {
            None => accepted,
            Some(wanted) => wanted
                .and_then(|wanted| accepted.narrowed(wanted))
                .ok_or(ExchangeError::Scope)?,
        };
        match self.make_exchanged(&accepted, details.clone(), origin).await {
            Ok((ExchangedAs::Made(revision), exchanged)) => {
                self.know(revision).await;
                Ok(exchanged)
            }
            Ok((ExchangedAs::NoServiceAccount, _)) => {
                let error = openid::Error::NoServiceAccount(accepted.service_account);
                self.note_refusal(EXCHANGE, &error, origin, details).await;
                Err(ExchangeError::Refused)
            }
            Ok((ExchangedAs::TooMany, _)) => {
                tracing::warn!(service_account = accepted.service_account, "too many exchanged tokens");
                Err(ExchangeError::Later)
            }
            Err(error) if error.kind().is_transient() => Err(ExchangeError::Later),
            Err(error) => {
                tracing::error!(error = %modelyard_common::error::Chain(&error), "a token cannot be exchanged");
                Err(ExchangeError::Internal)
            }
        }
    }

    async fn make_exchanged(
        &self,
        accepted: &Accepted,
        details: Value,
        origin: &Origin,
    ) -> Result<(ExchangedAs, Exchanged)> {
        let now = self.clock.now();
        let token = Token::generate(TokenKind::Exchanged).map_err(|error| Error::State(error.to_string()))?;
        let name = format!("exchange of {}", accepted.workload);
        let row = self.token_row(&token, name, accepted.scope.clone(), Some(now + accepted.lifetime));
        let mut event = anonymous_event(&self.ids, now, EXCHANGE, origin);
        event.actor = Principal::service_account(&accepted.service_account).to_string();
        "service-account".clone_into(&mut event.resource_kind);
        event.resource.clone_from(&accepted.service_account);
        event.details = details;
        event.add_detail("token", row.id.as_str());
        let new = NewExchange {
            service_account: &accepted.service_account,
            token: row,
            event,
            now,
        };
        let made = self.stores.openid.exchange(&new).await?;
        let exchanged = Exchanged {
            token,
            lifetime: accepted.lifetime,
            scope: accepted.scope.clone(),
        };
        Ok((made, exchanged))
    }

    async fn note_refusal(&self, action: &str, error: &openid::Error, origin: &Origin, details: Value) {
        self.note_failure(action, error.reason(), &error.to_string(), origin, details)
            .await;
    }

    /// Writes down that somebody was not let in. The answer does not wait for the reason that it could not be written.
    pub(super) async fn note_failure(
        &self,
        action: &str,
        reason: &str,
        problem: &str,
        origin: &Origin,
        details: Value,
    ) {
        let Some(passed_over) = self.openid.failures.lock().next(Instant::now()) else {
            return;
        };
        let said = clean_text(&details.to_string(), MAX_LOGGED);
        tracing::warn!(
            action,
            problem = clean_text(problem, MAX_LOGGED),
            details = said,
            "not let in"
        );
        let mut event = anonymous_event(&self.ids, self.clock.now(), action, origin);
        event.outcome = Outcome::Failed;
        event.reason = Some(reason.to_owned());
        event.details = details;
        event.add_detail("problem", problem);
        if passed_over > 0 {
            event.add_detail("passed_over", passed_over);
        }
        if let Err(error) = self.append(vec![event]).await {
            tracing::error!(error = %modelyard_common::error::Chain(&error), "a failure to sign in is not in the audit chain");
        }
    }
}

/// The grants in a scope, which OAuth separates by spaces.
fn grants(scope: &str) -> Option<Vec<Grant>> {
    let words: Vec<&str> = scope
        .split(' ')
        .filter(|word| !word.is_empty())
        .take(MAX_WANTED + 1)
        .collect();
    if words.len() > MAX_WANTED {
        return None;
    }
    words.into_iter().map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_where_they_are_not_written() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let written = (0..100).filter_map(|_| failures.next(start)).count();
        assert_eq!(written, AUDITED_FAILURES as usize);
        assert_eq!(failures.next(start + Duration::from_mins(1)), Some(40));
        assert_eq!(failures.next(start + Duration::from_mins(1)), Some(0));
    }

    #[test]
    fn a_scope_is_a_list_of_grants() {
        assert_eq!(grants("viewer@default  deployer@*").map(|grants| grants.len()), Some(2));
        assert_eq!(grants("openid"), None);
        assert_eq!(grants(&"viewer@default ".repeat(MAX_WANTED + 1)), None);
    }
}
