//! The registry's operations: check, store, tell those who watch.

mod access;
mod artifact_files;
mod artifacts;
mod assessments;
mod audit;
mod audit_export;
mod bundles;
mod collections;
mod collector;
mod datasets;
mod desired;
mod endpoints;
mod evaluation_datasets;
mod experiments;
mod first_admin;
mod follow;
mod group;
mod identities;
mod imports;
mod known;
mod lineage;
mod logged_models;
mod model_registry;
mod model_versions;
mod models;
mod openid;
mod passwords;
mod projects;
mod retention;
mod rollouts;
mod runs;
mod saved_models;
mod scorers;
mod secrets;
mod tokens;
mod trace_search;
mod traces;
mod tracking;
mod version_changes;
mod webhooks;

use std::{path::Path, sync::Arc, time::Instant};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_auth::{Access, Action, Caller, Resource, audit::NewEvent, seal::KeyRing};
use modelyard_common::{clock::SharedClock, id::SharedIds};
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use self::passwords::Guessing;
pub use self::{
    access::{AccessAnswer, AccessQuestion, Me},
    artifact_files::{MAX_LISTED, PRESIGNED_LIFETIME},
    artifacts::ARTIFACT_LIMIT_BYTES,
    audit::Verification,
    audit_export::ExportFormat,
    datasets::{DatasetVersionRequest, MAX_PROFILE_BYTES},
    desired::Update,
    evaluation_datasets::EvaluationDatasetQuery,
    follow::{HEARTBEAT, POLL},
    logged_models::LoggedModelOrderForm,
    model_registry::EntryQuery,
    model_versions::VersionOrder,
    models::ModelVersionRequest,
    openid::{ExchangeError, Origin, SESSION_LIFETIME},
    runs::{InputRequest, RunRequest},
    tokens::TokenOrder,
    trace_search::CorrelationForm,
    traces::TraceDeletionForm,
    webhooks::WebhookTrial,
};
pub(crate) use self::{
    audit::run_checkpoints,
    collector::run_collections,
    desired::Desired,
    first_admin::NAME as FIRST_ADMIN,
    group::{Chain, Group, NewRuns, RunLog, Spans, group},
    known::{AccessUpdate, Known},
    openid::{OpenId, set_group_roles},
    retention::run_retention,
};
use crate::{
    error::{Error, Result},
    files::folder::ImportFolders,
    metrics,
    model::{
        run::{NewRun, Run, RunBatch},
        trace::SpanBatch,
    },
    store::Stores,
    webhooks::Webhooks,
};

/// How many uploaded files are read at the same time.
const IMPORTS: usize = 2;
/// How many large requests with spans are in memory at the same time.
const LARGE_REQUESTS: usize = 4;
/// How many passwords are hashed at the same time; each takes 19 MiB for a moment.
const HASHINGS: usize = 2;

/// The registry.
pub struct Registry {
    stores: Stores,
    blobs: Artifacts,
    clock: SharedClock,
    ids: SharedIds,
    folders: ImportFolders,
    imports: Semaphore,
    desired: Arc<Desired>,
    access: Access,
    keys: Arc<KeyRing>,
    openid: OpenId,
    known: Arc<Known>,
    appender: Group<Vec<NewEvent>>,
    run_log: Group<RunBatch>,
    new_runs: Group<NewRun, Run>,
    spans: Group<SpanBatch>,
    large_requests: Semaphore,
    guessing: Guessing,
    hashing: Semaphore,
    webhooks: Webhooks,
    soft: CancellationToken,
    /// Wakes whoever works at collections.
    collections: Notify,
}

/// What a registry is made of.
pub(crate) struct Parts {
    pub(crate) stores: Stores,
    pub(crate) blobs: Artifacts,
    pub(crate) clock: SharedClock,
    pub(crate) ids: SharedIds,
    pub(crate) folders: ImportFolders,
    pub(crate) desired: Arc<Desired>,
    pub(crate) access: Access,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) openid: OpenId,
    pub(crate) known: Arc<Known>,
    pub(crate) appender: Group<Vec<NewEvent>>,
    pub(crate) run_log: Group<RunBatch>,
    pub(crate) new_runs: Group<NewRun, Run>,
    pub(crate) spans: Group<SpanBatch>,
    pub(crate) webhooks: Webhooks,
    pub(crate) soft: CancellationToken,
}

impl Registry {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            stores: parts.stores,
            blobs: parts.blobs,
            clock: parts.clock,
            ids: parts.ids,
            folders: parts.folders,
            imports: Semaphore::new(IMPORTS),
            desired: parts.desired,
            access: parts.access,
            keys: parts.keys,
            openid: parts.openid,
            known: parts.known,
            appender: parts.appender,
            run_log: parts.run_log,
            new_runs: parts.new_runs,
            spans: parts.spans,
            large_requests: Semaphore::new(LARGE_REQUESTS),
            guessing: Guessing::default(),
            hashing: Semaphore::new(HASHINGS),
            webhooks: parts.webhooks,
            soft: parts.soft,
            collections: Notify::new(),
        }
    }

    /// Who may do what.
    pub(crate) const fn access(&self) -> &Access {
        &self.access
    }

    /// The beginning of every operation: may the caller do this? Reading what is marked sensitive is written down before
    /// anything is given out.
    async fn enter(&self, caller: &Caller, action: Action, resource: Resource<'_>) -> Result<()> {
        caller.authorize(action, resource)?;
        if action.is_read() && caller.is_sensitive(resource) {
            self.note_reading(caller, action, resource).await?;
        }
        Ok(())
    }

    /// The size of a blob that a request refers to.
    async fn blob_size(&self, project: &str, what: &str, digest: &str) -> Result<(Digest, u64)> {
        let digest: Digest = digest.parse()?;
        let size = self.blobs.project(project)?.size(digest).await?;
        let size = size
            .ok_or_else(|| Error::request(format!("{what} {digest} is not in the artifact store: upload it first")))?;
        Ok((digest, size))
    }

    /// Lets `read` look at a local copy of a blob, on a thread that may block. Few do so at a time.
    async fn import<T: Send + 'static>(
        &self,
        kind: &'static str,
        project: &str,
        digest: Digest,
        read: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _slot = self.imports.acquire().await;
        let started = Instant::now();
        let (folders, id) = (self.folders.clone(), self.ids.next());
        let folder = spawn_blocking(move || folders.create(id)).await??;
        let copy = self.blobs.project(project)?.open_local(digest, folder.path()).await?;
        let result = spawn_blocking(move || {
            let result = read(&copy);
            // Not before: the folder goes with it.
            drop(folder);
            result
        })
        .await?;
        ::metrics::histogram!(metrics::IMPORT_DURATION, metrics::KIND => kind).record(started.elapsed().as_secs_f64());
        result
    }
}
