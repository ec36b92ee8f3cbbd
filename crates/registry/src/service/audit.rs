//! The audit chain: what others did is appended, the head is signed, all of it can be read and verified.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use modelyard_auth::{
    Action, Caller, ProjectScope, Resource, TokenUse,
    audit::{
        AuditEvent, Checkpoint, GENESIS, Hash, NewEvent, Operation, Problem, PublicKey, Report, SigningKey, Verifier,
        sign,
    },
};
use modelyard_common::error::Chain;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{Registry, secrets::sealed};
use crate::{
    error::{Error, Result},
    model::{
        audit::{AuditFilter, AuditKey},
        page::{Page, PageRequest},
    },
};

/// The most events that a service hands over at once.
pub const MAX_APPENDED: usize = 1000;
/// After so many events the head is signed without being asked.
const CHECKPOINT_EVENTS: u64 = 1000;
/// How often is looked whether the head has to be signed.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// How many events are read at once to be verified or exported.
const CHAIN_BATCH: u32 = 1000;
/// The most parts of the chain that are verified at the same time.
const MAX_PARTS: usize = 8;
/// What a private key is sealed for.
pub(super) const KEY_CONTEXT: &str = "audit-key";

/// What verifying the chain found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Whether every event is as it was written, and none is missing.
    pub intact: bool,
    /// The events that were looked at.
    pub events: u64,
    /// The signatures that were checked.
    pub checkpoints: u64,
    /// The last event's number.
    pub head: u64,
    /// What is wrong; the first ones.
    pub problems: Vec<String>,
}

impl Registry {
    /// Writes down that something sensitive is read, before it is.
    pub(super) async fn note_reading(&self, caller: &Caller, action: Action, resource: Resource<'_>) -> Result<()> {
        self.append(vec![caller.event(action, Operation::Read, &resource)])
            .await
    }

    /// Adds events to the chain.
    pub(super) async fn append(&self, events: Vec<NewEvent>) -> Result<()> {
        self.appender.put(events).await
    }

    /// Adds what a service with its own database did, in its order. Repeating it adds nothing.
    pub async fn append_audit_events(&self, caller: &Caller, events: Vec<NewEvent>) -> Result<()> {
        caller.authorize(Action::AuditAppend, Resource::INSTALLATION)?;
        if events.len() > MAX_APPENDED {
            return Err(Error::request(format!(
                "{} audit events are too many at once: hand over at most {MAX_APPENDED}",
                events.len()
            )));
        }
        self.append(events).await
    }

    /// What a process noticed: which tokens were used, and what it refused.
    pub async fn report_access(&self, caller: &Caller, uses: &[TokenUse], refusals: Vec<NewEvent>) -> Result<()> {
        caller.authorize(Action::AuditAppend, Resource::INSTALLATION)?;
        if uses.len().max(refusals.len()) > MAX_APPENDED {
            return Err(Error::request(format!(
                "a report has at most {MAX_APPENDED} uses and refusals"
            )));
        }
        if !uses.is_empty() {
            self.stores.tokens.note_uses(uses).await?;
        }
        if refusals.is_empty() {
            return Ok(());
        }
        self.append(refusals).await
    }

    /// The events that a filter lets through, the newest first. Who may read those of some projects only sees only those.
    pub async fn list_audit_events(
        &self,
        caller: &Caller,
        mut filter: AuditFilter,
        page: &PageRequest<u64>,
    ) -> Result<Page<AuditEvent>> {
        if let Some(projects) = &filter.projects {
            for project in projects {
                caller.authorize(Action::AuditRead, audited(project))?;
            }
        } else if !caller.may(Action::AuditRead, Resource::INSTALLATION) {
            let ProjectScope::Only(mut projects) = caller.projects() else {
                return Err(caller
                    .authorize(Action::AuditRead, Resource::INSTALLATION)
                    .map_or_else(Error::from, |()| {
                        Error::request("the audit chain cannot be read without a role")
                    }));
            };
            projects.retain(|project| caller.may(Action::AuditRead, Resource::project(project)));
            if projects.is_empty() {
                caller.authorize(Action::AuditRead, Resource::INSTALLATION)?;
            }
            filter.projects = Some(projects);
        }
        self.stores.audit.list_audit_events(&filter, page).await
    }

    /// Signs the head of the chain.
    pub async fn sign_audit_chain(&self, caller: &Caller) -> Result<Checkpoint> {
        caller.authorize(Action::AuditSign, Resource::INSTALLATION)?;
        // Signing is an event, too: the signature covers it.
        let event = caller.event(Action::AuditSign, Operation::Sign, &Resource::INSTALLATION);
        self.append(vec![event]).await?;
        self.sign_head().await
    }

    pub(super) async fn sign_head(&self) -> Result<Checkpoint> {
        let (key_id, key) = self.signing_key().await?;
        let (seq, hash) = self.stores.audit.chain_head().await?;
        let checkpoint = sign(&key, &key_id, seq, hash, self.clock.now());
        self.stores.audit.add_checkpoint(&checkpoint).await?;
        ::metrics::gauge!(crate::metrics::AUDIT_SIGNED).set(seq as f64);
        Ok(checkpoint)
    }

    async fn sign_when_due(&self) -> Result<()> {
        let (head, _) = self.stores.audit.chain_head().await?;
        let signed = self
            .stores
            .audit
            .newest_checkpoint()
            .await?
            .map_or(0, |checkpoint| checkpoint.seq);
        if head.saturating_sub(signed) >= CHECKPOINT_EVENTS {
            self.sign_head().await?;
        }
        Ok(())
    }

    /// The key that signs; made the first time.
    async fn signing_key(&self) -> Result<(String, SigningKey)> {
        if let Some(newest) = self.stores.audit.audit_keys().await?.into_iter().next() {
            let context = format!("{KEY_CONTEXT}/{}", newest.id);
            let bytes = self
                .keys
                .open(&context, &newest.sealed)
                .map_err(|error| sealed(&error))?;
            let key = SigningKey::from_pkcs8(&bytes).map_err(|error| unusable(&error))?;
            return Ok((newest.id, key));
        }
        let (key, bytes) = SigningKey::generate().map_err(|error| unusable(&error))?;
        let public = key.public_key();
        let id = public.id();
        let stored = AuditKey {
            sealed: self
                .keys
                .seal(&format!("{KEY_CONTEXT}/{id}"), &bytes)
                .map_err(|error| sealed(&error))?,
            public_key: public.to_pem(),
            id: id.clone(),
            created_at: self.clock.now(),
        };
        self.stores.audit.add_audit_key(&stored).await?;
        // Another process may have been first: the newest of all signs.
        Ok((id, key))
    }

    /// The public halves of the keys that sign or have signed, as PEM, the newest first.
    pub async fn audit_public_keys(&self, caller: &Caller) -> Result<Vec<AuditKey>> {
        caller.authorize(Action::AuditRead, Resource::INSTALLATION)?;
        self.stores.audit.audit_keys().await
    }

    /// Verifies the whole chain up to its present end: parts of it at the same time, and then how they fit together.
    pub async fn verify_audit_chain(self: &Arc<Self>, caller: &Caller) -> Result<Verification> {
        caller.authorize(Action::AuditRead, Resource::INSTALLATION)?;
        let keys = self.public_keys().await?;
        let (head, head_hash) = self.stores.audit.chain_head().await?;
        let parts = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_PARTS) as u64);
        let length = head.div_ceil(parts).max(u64::from(CHAIN_BATCH));
        let mut running = JoinSet::new();
        for part in 0..parts {
            let first = part * length + 1;
            // Whatever comes after the head is looked at, too.
            let last = (part + 1 < parts).then_some(first + length - 1);
            let expected = last.is_none().then_some((head, head_hash));
            let verifying = Arc::clone(self).verify_part(keys.clone(), first, last, expected);
            running.spawn(async move { (first, verifying.await) });
        }
        let mut verified = BTreeMap::new();
        while let Some(ended) = running.join_next().await {
            let (first, part) = ended?;
            verified.insert(first, part?);
        }
        let nothing = Verifier::new(keys).finish(None);
        let report = verified
            .into_values()
            .flatten()
            .fold(nothing, |report, (prev, part)| report.join(&prev, part));
        let mut problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        if report.last_seq < head {
            let lost = Problem::Truncated {
                last: report.last_seq,
                known: head,
            };
            problems.push(lost.to_string());
        }
        Ok(Verification {
            intact: problems.is_empty(),
            events: report.events,
            checkpoints: report.checkpoints,
            head,
            problems,
        })
    }

    /// Verifies the events from `first` to `last` by themselves, with what the first one of them says that it follows. None:
    /// there are none, and no signature over any.
    async fn verify_part(
        self: Arc<Self>,
        keys: Vec<PublicKey>,
        first: u64,
        last: Option<u64>,
        expected: Option<(u64, Hash)>,
    ) -> Result<Option<(Hash, Report)>> {
        let end = last.unwrap_or(u64::MAX);
        let mut after = first - 1;
        let mut part: Option<(Hash, Verifier)> = None;
        while after < end {
            let mut batch = self.stores.audit.chain_after(after, CHAIN_BATCH).await?;
            batch.retain(|(seq, _)| *seq <= end);
            let (Some((begin, event)), Some(newest)) = (batch.first(), batch.last().map(|(seq, _)| *seq)) else {
                break;
            };
            let (prev, verifier) = part.take().unwrap_or_else(|| {
                let prev = event.as_ref().map_or(GENESIS, |event| event.prev_hash);
                (prev, Verifier::starting_at(keys.clone(), *begin, prev))
            });
            let checkpoints = self.stores.audit.checkpoints(after + 1, newest).await?;
            let verifier = tokio::task::spawn_blocking(move || verify(verifier, &batch, &checkpoints)).await?;
            part = Some((prev, verifier));
            after = newest;
        }
        // Signatures over events that are not there any more.
        let left = self.stores.audit.checkpoints(after + 1, end).await?;
        if part.is_none() && left.is_empty() {
            return Ok(None);
        }
        let (prev, mut verifier) = part.unwrap_or_else(|| (GENESIS, Verifier::starting_at(keys, first, GENESIS)));
        for checkpoint in left {
            verifier.checkpoint(&checkpoint);
        }
        Ok(Some((prev, verifier.finish(expected))))
    }

    pub(crate) async fn public_keys(&self) -> Result<Vec<PublicKey>> {
        let keys = self.stores.audit.audit_keys().await?;
        let parse = |key: &AuditKey| PublicKey::from_pem(&key.public_key).map_err(|error| unusable(&error));
        keys.iter().map(parse).collect()
    }
}

/// What the events of a project are read as.
fn audited(project: &str) -> Resource<'_> {
    if project.is_empty() {
        Resource::INSTALLATION
    } else {
        Resource::project(project)
    }
}

/// A key of the chain that does not do its work.
fn unusable(error: &modelyard_auth::audit::Error) -> Error {
    Error::State(error.to_string())
}

/// Verifies a piece of the chain with the signatures that belong to it.
fn verify(mut verifier: Verifier, events: &[(u64, Result<AuditEvent>)], checkpoints: &[Checkpoint]) -> Verifier {
    let mut checkpoints = checkpoints.iter().peekable();
    for (seq, event) in events {
        match event {
            Ok(event) => verifier.event(event),
            Err(error) => verifier.unreadable(*seq, error.to_string()),
        }
        while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.seq <= *seq) {
            verifier.checkpoint(checkpoint);
        }
    }
    verifier
}

/// Signs the head whenever enough has come since the last signature, until `soft` is cancelled.
pub(crate) async fn run_checkpoints(registry: Arc<Registry>, soft: CancellationToken) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(CHECKPOINT_INTERVAL) => {}
        }
        if let Err(error) = registry.sign_when_due().await {
            tracing::error!(error = %Chain(&error), "the audit chain could not be signed: trying again");
        }
    }
}
