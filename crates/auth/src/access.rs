//! The handle that a process holds: who is calling, by the newest identities that it knows.

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use modelyard_common::{ErrorKind, Fault as _, Timestamp, clock::SharedClock, error::RemoteError, id::SharedIds};
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    action::Action,
    audit::{NewEvent, Outcome},
    caller::{ActingFor, Caller, Identified},
    decide::{PolicyError, Snapshot, Via},
    error::{Error, Result},
    limit::RateLimiter,
    principal::{Principal, PrincipalKind},
    remember::Remembered,
    resource::Resource,
    state::{ADMIN, Binding, Grant, Identity, Place, State, Subject},
    token::{Token, TokenKind},
};

/// Who everybody is on a server that asks nobody to sign in.
pub const LOCAL_USER: &str = "local";
/// How often the use of a token is noticed.
const USE_INTERVAL: Duration = Duration::from_mins(1);
/// The most uses and refusals that wait for being reported; more are counted with the others.
const MAX_NOTED: usize = 4096;

/// Whether callers must sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everybody who reaches the server is its admin: for loopback addresses.
    Open,
    /// Nobody does anything without being known.
    SignIn,
}

/// What a request brings to say who it is from.
#[derive(Clone, Copy)]
pub enum Credentials<'a> {
    /// Nothing.
    None,
    /// A token in the header `Authorization`.
    Bearer(&'a str),
    /// Name and password.
    Basic {
        /// The name.
        name: &'a str,
        /// The password, or a token in its place.
        password: &'a str,
    },
    /// A browser session's cookie.
    Session(&'a str),
    /// Something that cannot be read.
    Malformed,
}

/// A request as authentication sees it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The client's own id of the request.
    pub request_id: Option<&'a str>,
    /// Where it came from.
    pub source: Option<IpAddr>,
}

/// The answer of [`VerifyPassword`].
pub type Verified = Pin<Box<dyn Future<Output = Result<(), RemoteError>> + Send>>;
/// Asks the registry whether a name and a password belong together.
pub type VerifyPassword = Arc<dyn Fn(String, String, Option<IpAddr>) -> Verified + Send + Sync>;

/// The answer of [`DeliverEvents`].
pub type Delivered = Pin<Box<dyn Future<Output = Result<(), RemoteError>> + Send>>;
/// Hands audit events to the registry.
pub type DeliverEvents = Arc<dyn Fn(Vec<NewEvent>) -> Delivered + Send + Sync>;

/// Why events did not reach the chain.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Nobody knows yet where the registry is.
    #[error(transparent)]
    Starting(#[from] Error),
    /// The registry refused them, or is away.
    #[error("the registry did not take audit events: {0}")]
    Registry(#[from] RemoteError),
}

/// The use of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// The token.
    pub token_id: String,
    /// When.
    pub at: Timestamp,
}

/// What has been noticed since the last report.
#[derive(Debug, Default)]
pub struct Noted {
    /// Tokens that were used.
    pub uses: Vec<TokenUse>,
    /// Refusals; what happened again and again is one event with a count.
    pub refusals: Vec<NewEvent>,
}

/// Who is calling, and may they. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    mode: Mode,
    clock: SharedClock,
    ids: SharedIds,
    snapshot: ArcSwap<Snapshot>,
    /// Everybody, on a server that asks nobody to sign in.
    local: Arc<Identified>,
    revision: watch::Sender<u64>,
    is_known: AtomicBool,
    limiter: Option<RateLimiter>,
    verify: OnceLock<VerifyPassword>,
    deliver: OnceLock<DeliverEvents>,
    passwords: Remembered,
    uses: Mutex<HashMap<String, Timestamp>>,
    refusals: Mutex<HashMap<RefusalKey, (NewEvent, u64)>>,
    /// Refusals that the registry did not take; it knows them by their ids.
    unreported: Mutex<Vec<NewEvent>>,
}

type RefusalKey = (String, Option<IpAddr>, &'static str, String, String);

impl Access {
    /// A handle that knows nobody yet.
    ///
    /// # Errors
    /// The built-in policies cannot be read.
    pub fn new(
        mode: Mode,
        requests_per_second: Option<u32>,
        clock: SharedClock,
        ids: SharedIds,
    ) -> Result<Self, PolicyError> {
        Ok(Self {
            inner: Arc::new(Inner {
                mode,
                clock,
                ids,
                snapshot: ArcSwap::from_pointee(Snapshot::new(0, State::default())?),
                local: Arc::new(local()),
                revision: watch::Sender::new(0),
                is_known: AtomicBool::new(false),
                limiter: requests_per_second.map(RateLimiter::new),
                verify: OnceLock::new(),
                deliver: OnceLock::new(),
                passwords: Remembered::new(),
                uses: Mutex::default(),
                refusals: Mutex::default(),
                unreported: Mutex::default(),
            }),
        })
    }

    /// A handle for which everybody is an admin of the given projects: for tests of a service alone.
    ///
    /// # Errors
    /// The built-in policies cannot be read.
    pub fn open<'a>(
        projects: impl IntoIterator<Item = &'a str>,
        clock: SharedClock,
        ids: SharedIds,
    ) -> Result<Self, PolicyError> {
        let access = Self::new(Mode::Open, None, clock, ids)?;
        let projects = projects.into_iter().map(str::to_owned).collect();
        access.set(
            1,
            State {
                projects,
                ..State::default()
            },
        )?;
        Ok(access)
    }

    /// Whether callers must sign in.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.inner.mode
    }

    /// How passwords are verified. Set once, when the registry can be reached.
    pub fn verify_passwords_by(&self, verify: VerifyPassword) {
        if self.inner.verify.set(verify).is_err() {
            tracing::debug!("passwords are verified in the first way that was set");
        }
    }

    /// How audit events reach the chain. Set once, when the registry can be reached.
    pub fn deliver_events_by(&self, deliver: DeliverEvents) {
        if self.inner.deliver.set(deliver).is_err() {
            tracing::debug!("audit events are delivered in the first way that was set");
        }
    }

    /// Hands audit events to the chain, which knows them by their ids: repeating it adds nothing.
    ///
    /// # Errors
    /// The registry's, or [`Error::Starting`] as long as it is not known where the registry is.
    pub async fn deliver(&self, events: Vec<NewEvent>) -> Result<(), DeliveryError> {
        let deliver = self.inner.deliver.get().ok_or(Error::Starting)?;
        Ok(deliver(events).await?)
    }

    /// Takes a new state. An error leaves the one before.
    ///
    /// # Errors
    /// A policy that this version does not understand.
    pub fn set(&self, revision: u64, mut state: State) -> Result<(), PolicyError> {
        if self.inner.mode == Mode::Open {
            let local = Principal::user(LOCAL_USER);
            let identity = Identity {
                enabled: true,
                groups: [].into(),
                password_revision: 0,
            };
            state.identities.insert(local.clone(), identity);
            state.bindings.push(Binding {
                name: LOCAL_USER.to_owned(),
                subject: Subject::Principal(local),
                grant: Grant {
                    role: ADMIN.to_owned(),
                    place: Place::Installation,
                },
            });
        }
        let snapshot = Snapshot::new(revision, state)?;
        self.inner.snapshot.store(Arc::new(snapshot));
        self.inner.is_known.store(true, Ordering::Release);
        self.inner.revision.send_replace(revision);
        Ok(())
    }

    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshot.load_full()
    }

    /// Whether any state has come.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.inner.is_known.load(Ordering::Acquire)
    }

    /// Waits until the state of a revision, or a later one, is here; for `patience` at most. Whether it is.
    pub async fn wait_for(&self, revision: u64, patience: Duration) -> bool {
        let mut revisions = self.inner.revision.subscribe();
        let reached = revisions.wait_for(|present| *present >= revision);
        tokio::time::timeout(patience, reached)
            .await
            .is_ok_and(|reached| reached.is_ok())
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    pub(crate) fn next_id(&self) -> Uuid {
        self.inner.ids.next()
    }

    /// Finds out who sent a request.
    ///
    /// # Errors
    /// Credentials that are missing, wrong or have ended, and limits. A name and a password are verified by the registry
    /// and remembered for a moment; everything else is decided here.
    pub async fn authenticate(&self, credentials: Credentials<'_>, facts: Facts<'_>) -> Result<Caller> {
        let snapshot = self.snapshot();
        let identified = match (self.inner.mode, credentials) {
            (Mode::Open, _) => Arc::clone(&self.inner.local),
            (Mode::SignIn, _) if !self.is_known() => return Err(Error::Starting),
            (_, Credentials::None) => return Err(Error::Missing),
            (_, Credentials::Malformed) => return Err(Error::Malformed),
            (_, Credentials::Bearer(text)) => {
                self.by_token(&snapshot, text, &[TokenKind::Api, TokenKind::Exchanged])?
            }
            (_, Credentials::Session(text)) => self.by_token(&snapshot, text, &[TokenKind::Session])?,
            (_, Credentials::Basic { name, password }) => match Token::parse(password) {
                Some(_) => self.by_token(&snapshot, password, &[TokenKind::Api, TokenKind::Exchanged])?,
                // Boxed, because tokens and sessions need none of its future, which everything that is asked would carry.
                None => Box::pin(self.by_password(&snapshot, name, password, facts.source)).await?,
            },
        };
        self.check_rate(&identified)?;
        Ok(self.caller(snapshot, identified, facts))
    }

    fn caller(&self, snapshot: Arc<Snapshot>, identified: Arc<Identified>, facts: Facts<'_>) -> Caller {
        let request_id = facts.request_id.map(str::to_owned);
        Caller::new(self.clone(), snapshot, identified, request_id, facts.source)
    }

    fn by_token(&self, snapshot: &Snapshot, text: &str, kinds: &[TokenKind]) -> Result<Arc<Identified>> {
        let token = Token::parse(text).ok_or(Error::Token)?;
        let live = snapshot.token(&token.hash()).ok_or(Error::Token)?;
        let entry = &live.entry;
        let now = self.now();
        if !kinds.contains(&entry.kind) || entry.expires_at.is_some_and(|end| end <= now) {
            return Err(Error::Token);
        }
        let noticed = live.noticed.load(Ordering::Relaxed);
        if now.since(Timestamp::from_micros(noticed)) >= USE_INTERVAL {
            live.noticed.store(now.as_micros(), Ordering::Relaxed);
            let mut uses = self.inner.uses.lock();
            if uses.len() < MAX_NOTED {
                uses.insert(entry.id.clone(), now);
            }
        }
        Ok(Arc::clone(&live.identified))
    }

    async fn by_password(
        &self,
        snapshot: &Snapshot,
        name: &str,
        password: &str,
        source: Option<IpAddr>,
    ) -> Result<Arc<Identified>> {
        let principal = Principal::user(name);
        let identity = snapshot.state().identities.get(&principal);
        let revision = identity.map_or(0, |identity| identity.password_revision);
        let is_remembered = identity.is_some_and(|identity| identity.enabled)
            && self.inner.passwords.has(name, password, revision, Instant::now());
        if !is_remembered {
            let verify = self.inner.verify.get().ok_or(Error::Starting)?;
            verify(name.to_owned(), password.to_owned(), source)
                .await
                .map_err(|error| match error.kind() {
                    ErrorKind::Unauthenticated => Error::Password,
                    ErrorKind::ResourceExhausted => Error::Throttled {
                        wait: error.retry_after().unwrap_or(Duration::from_mins(1)),
                    },
                    _ => Error::Starting,
                })?;
            self.inner.passwords.add(name, password, revision, Instant::now());
        }
        Ok(Arc::new(Identified {
            principal,
            scope: None,
            via: Via::Password,
            service: None,
            token_id: None,
        }))
    }

    /// The caller behind a call between services: the service itself, or somebody for whom it works.
    ///
    /// # Errors
    /// The call names no service, or nobody who is let in.
    pub fn authenticate_service(
        &self,
        service: Option<&str>,
        acting_for: Option<&str>,
        facts: Facts<'_>,
    ) -> Result<Caller> {
        let service = service.ok_or(Error::NoService)?;
        if !self.is_known() {
            return Err(Error::Starting);
        }
        let snapshot = self.snapshot();
        let identified = match acting_for {
            None => Identified {
                principal: Principal::service(service),
                scope: None,
                via: Via::Service,
                service: Some(service.to_owned()),
                token_id: None,
            },
            Some(text) => {
                let acting_for: ActingFor = text.parse().map_err(|_| Error::Malformed)?;
                let is_service = acting_for.principal.kind() == PrincipalKind::Service;
                if is_service || !snapshot.is_enabled(&acting_for.principal) {
                    return Err(Error::Token);
                }
                Identified {
                    principal: acting_for.principal,
                    scope: acting_for.scope,
                    via: Via::Service,
                    service: Some(service.to_owned()),
                    token_id: None,
                }
            }
        };
        Ok(self.caller(snapshot, Arc::new(identified), facts))
    }

    /// What a principal would be decided about, without being there: for explanations.
    #[must_use]
    pub fn as_if(&self, principal: Principal, scope: Option<Vec<Grant>>, via: Via) -> Caller {
        let identified = Identified {
            principal,
            scope,
            via,
            service: None,
            token_id: None,
        };
        let facts = Facts {
            request_id: None,
            source: None,
        };
        self.caller(self.snapshot(), Arc::new(identified), facts)
    }

    fn check_rate(&self, identified: &Identified) -> Result<()> {
        let Some(limiter) = &self.inner.limiter else {
            return Ok(());
        };
        let key = identified
            .token_id
            .as_deref()
            .unwrap_or_else(|| identified.principal.name());
        if limiter.take(key, Instant::now()) {
            return Ok(());
        }
        Err(Error::RateLimited {
            per_second: limiter.per_second(),
        })
    }

    /// Keeps a refusal for the audit chain. What is refused again and again is one event with a count, so that nobody can
    /// flood the chain.
    pub(crate) fn note_refusal(&self, caller: &Caller, action: Action, resource: &Resource<'_>) {
        let key = (
            caller.principal().to_string(),
            caller.source(),
            action.as_str(),
            resource.project_name().to_owned(),
            resource.name().to_owned(),
        );
        let mut refusals = self.inner.refusals.lock();
        if let Some((_, count)) = refusals.get_mut(&key) {
            *count += 1;
            return;
        }
        metrics::counter!(crate::REFUSALS, "action" => action.as_str()).increment(1);
        if refusals.len() < MAX_NOTED {
            refusals.insert(key, (caller.refused(action, resource), 1));
        }
    }

    /// Keeps for the audit chain that somebody was not let in. Wrong passwords are the registry's to write down, and who
    /// brings nothing has tried nothing.
    pub(crate) fn note_rejection(&self, error: &Error, facts: Facts<'_>) {
        if !matches!(error, Error::Token | Error::CrossSite | Error::Malformed) {
            return;
        }
        let reason = error.reason().to_owned();
        let key = (reason.clone(), facts.source, "sign-in", String::new(), String::new());
        let mut refusals = self.inner.refusals.lock();
        if let Some((_, count)) = refusals.get_mut(&key) {
            *count += 1;
            return;
        }
        if refusals.len() < MAX_NOTED {
            let event = NewEvent {
                id: self.next_id(),
                at: self.now(),
                project: String::new(),
                actor: Principal::anonymous().to_string(),
                on_behalf_of: None,
                action: "sign-in".to_owned(),
                resource_kind: Resource::INSTALLATION.kind().word().to_owned(),
                resource: String::new(),
                outcome: Outcome::Failed,
                reason: Some(reason),
                before_digest: None,
                after_digest: None,
                request_id: facts.request_id.map(str::to_owned),
                source_address: facts.source.map(|source| source.to_string()),
                details: serde_json::json!({}),
            };
            refusals.insert(key, (event, 1));
        }
    }

    /// Keeps again what could not be reported.
    pub fn note_again(&self, noted: Noted) {
        let mut uses = self.inner.uses.lock();
        for used in noted.uses {
            if uses.len() < MAX_NOTED {
                uses.entry(used.token_id).or_insert(used.at);
            }
        }
        drop(uses);
        let mut unreported = self.inner.unreported.lock();
        let room = MAX_NOTED.saturating_sub(unreported.len());
        unreported.extend(noted.refusals.into_iter().take(room));
    }

    /// Takes what has been noticed since the last call.
    #[must_use]
    pub fn take_noted(&self) -> Noted {
        let uses = std::mem::take(&mut *self.inner.uses.lock());
        let refusals = std::mem::take(&mut *self.inner.refusals.lock());
        let refusals = refusals.into_values().map(|(mut event, count)| {
            event.add_detail("count", count);
            event
        });
        Noted {
            uses: uses
                .into_iter()
                .map(|(token_id, at)| TokenUse { token_id, at })
                .collect(),
            refusals: std::mem::take(&mut *self.inner.unreported.lock())
                .into_iter()
                .chain(refusals)
                .collect(),
        }
    }
}

fn local() -> Identified {
    Identified {
        principal: Principal::user(LOCAL_USER),
        scope: None,
        via: Via::Local,
        service: None,
        token_id: None,
    }
}
