//! Hands closed segments over to monitoring, each endpoint's in the order of their making.

use std::{collections::HashMap, convert::Infallible, io, sync::Arc, time::Duration};

use modelyard_artifacts::Storage;
use modelyard_common::{
    ErrorKind, Fault as _,
    error::{Chain, RemoteError},
    id::SharedIds,
    lifecycle::Lifecycle,
    rpc::{Channel, MAX_MESSAGE_BYTES},
};
use modelyard_proto::monitoring::v1::{CommitSegmentRequest, segment_service_client::SegmentServiceClient};
use object_store::{ObjectStoreExt as _, path::Path as ObjectPath};
use tokio::{
    task::spawn_blocking,
    time::{timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    Spool,
    append::{Closed, EndpointLog},
    convert::Converter,
    read::{Content, read, take_over},
    record::{Definition, Owed},
    table::{TableError, TableFiles},
};
use crate::{
    desired::{EndpointKey, VersionRef},
    error::{Error, Result},
    loader::Loader,
    meters::{self, DropReason},
    routing::Version,
    shadow,
    watch::Backoff,
};

/// Where the log's tables lie below the storage's root.
const LOG_FOLDER: &str = "inference-log";

/// How long one upload or one commit may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The waits between attempts: doubled from the first to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// How many owed answers are computed at once.
const SETTLE_CONCURRENCY: usize = 32;

/// How often a version that is owed an answer is fetched before the answer is given up.
const LOAD_ATTEMPTS: u32 = 10;

/// What handing over needs.
pub(crate) struct Shipping {
    pub spool: Spool,
    pub converter: Converter,
    pub storage: Storage,
    pub monitoring: Channel,
    pub loader: Arc<Loader>,
    pub ids: SharedIds,
    pub lifecycle: Lifecycle,
    /// The predictions that are being made.
    pub requests: TaskTracker,
}

/// Why a segment was not handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot read the segment: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("cannot upload: {0}")]
    Upload(#[from] object_store::Error),
    #[error("monitoring does not take the segment: {0}")]
    Commit(#[from] RemoteError),
    #[error("{0} took too long")]
    TimedOut(&'static str),
    #[error("the conversion was interrupted")]
    Interrupted,
}

impl Failure {
    /// Whether trying again cannot help.
    fn is_final(&self) -> bool {
        match self {
            Self::Read(error) => error.kind() == io::ErrorKind::Other,
            Self::Table(_) => true,
            Self::Commit(error) => matches!(
                error.kind(),
                ErrorKind::InvalidArgument
                    | ErrorKind::NotFound
                    | ErrorKind::AlreadyExists
                    | ErrorKind::FailedPrecondition
            ),
            Self::Upload(_) | Self::TimedOut(_) | Self::Interrupted => false,
        }
    }
}

/// What is owed to segments and will not come by itself.
type Debts = HashMap<Uuid, Vec<Owed>>;

impl Shipping {
    /// Hands over what a process before has left.
    pub(crate) fn start(self: &Arc<Self>) {
        for log in self.spool.logs() {
            self.spawn(log);
        }
    }

    /// The log of an endpoint, whose segments are handed over from now on.
    ///
    /// # Errors
    /// `Io` if its folder cannot be read or made.
    pub(crate) fn log(self: &Arc<Self>, key: &EndpointKey) -> Result<Arc<EndpointLog>> {
        let (log, new) = self.spool.log(key)?;
        if new {
            self.spawn(Arc::clone(&log));
        }
        Ok(log)
    }

    fn spawn(self: &Arc<Self>, log: Arc<EndpointLog>) {
        let shipping = Arc::clone(self);
        self.lifecycle
            .spawn("gateway.log", async move { shipping.run(&log).await });
    }

    async fn run(&self, log: &EndpointLog) -> Result<(), Infallible> {
        let soft = self.lifecycle.soft();
        let mut debts = left_over(log).await;
        loop {
            tokio::select! {
                () = self.step(log, &mut debts) => {}
                () = soft.cancelled() => break,
            }
        }
        self.drain(log, &mut debts).await;
        Ok(())
    }

    /// Hands over the oldest segment, or waits for one.
    async fn step(&self, log: &EndpointLog, debts: &mut Debts) {
        if let Some(closed) = log.oldest() {
            self.hand_over(log, &closed, debts).await;
            return;
        }
        let changed = log.changed.notified();
        match log.close_aged(false) {
            // Either nothing is open, or what was has just been closed, which notifies.
            None => changed.await,
            Some(due) => {
                // On time or for a change: the next step looks.
                let _ = timeout_at(due.into(), changed).await;
            }
        }
    }

    /// Hands a segment over, however long that takes.
    async fn hand_over(&self, log: &EndpointLog, closed: &Closed, debts: &mut Debts) {
        if let Some(own) = &closed.debts {
            let postponed = own.settled().await;
            if !postponed.is_empty() {
                debts.entry(closed.id).or_default().extend(postponed);
            }
        }
        if let Some(owed) = debts.get_mut(&closed.id) {
            self.settle(log, closed, owed).await;
            debts.remove(&closed.id);
        }
        let mut backoff = Backoff::new(FIRST_BACKOFF, LAST_BACKOFF);
        let mut told = false;
        loop {
            let error = match self.try_hand_over(log, closed).await {
                Ok(()) => return,
                Err(error) => error,
            };
            meters::segment("failed");
            if error.is_final() {
                tracing::error!(endpoint = %log.key, segment = %closed.id, %error,
                    "a segment of the inference log is set aside: it is tried again at the next start");
                meters::segment("refused");
                if let Err(error) = log.set_aside_oldest() {
                    tracing::error!(endpoint = %log.key, segment = %closed.id, %error, "the segment cannot be renamed");
                }
                return;
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(endpoint = %log.key, segment = %closed.id, %error,
                    "a segment of the inference log is not handed over yet: trying again");
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn try_hand_over(&self, log: &EndpointLog, closed: &Closed) -> Result<(), Failure> {
        let TableFiles { files, damaged } = self.converter.convert(closed.path.clone(), closed.id).await?;
        let mut descriptions = Vec::with_capacity(files.len());
        for file in files {
            let folder = [LOG_FOLDER, &log.key.project, &log.key.name];
            let path: ObjectPath = folder.into_iter().chain(file.description.path.split('/')).collect();
            timeout(CALL_TIMEOUT, self.storage.store().put(&path, file.content.into()))
                .await
                .map_err(|_| Failure::TimedOut("the upload"))??;
            descriptions.push(file.description);
        }
        if !descriptions.is_empty() {
            self.commit(log, closed, descriptions).await?;
        }
        let (room, path) = (Arc::clone(&log.room), closed.path.clone());
        if let Ok(Err(error)) = spawn_blocking(move || room.spares.give(&path)).await {
            // It will be handed over again, which changes nothing.
            tracing::warn!(path = %closed.path.display(), %error, "a segment cannot be removed");
        }
        if damaged > 0 {
            log.room.lose(DropReason::Damaged, damaged);
        }
        log.forget_oldest();
        meters::segment("committed");
        Ok(())
    }

    async fn commit(
        &self,
        log: &EndpointLog,
        closed: &Closed,
        files: Vec<modelyard_proto::monitoring::v1::SegmentFile>,
    ) -> Result<(), Failure> {
        let request = CommitSegmentRequest {
            project: log.key.project.clone(),
            endpoint: log.key.name.clone(),
            segment_id: closed.id.to_string(),
            files,
        };
        let mut client =
            SegmentServiceClient::new(self.monitoring.clone()).max_encoding_message_size(MAX_MESSAGE_BYTES);
        timeout(CALL_TIMEOUT, client.commit_segment(request))
            .await
            .map_err(|_| Failure::TimedOut("the commit"))?
            .map_err(RemoteError::from)?;
        Ok(())
    }

    /// Computes what is owed to a segment, from the inputs that it holds.
    async fn settle(&self, log: &EndpointLog, closed: &Closed, owed: &mut Vec<Owed>) {
        let path = closed.path.clone();
        let Ok(Ok(content)) = spawn_blocking(move || read(&path)).await else {
            // Handing over will meet the same error, and tell it.
            return;
        };
        let count = owed.len();
        let mut versions: HashMap<VersionRef, Option<Arc<Version>>> = HashMap::new();
        while !owed.is_empty() {
            let part: Vec<Owed> = owed.iter().copied().take(SETTLE_CONCURRENCY).collect();
            self.settle_part(log, &content, &part, &mut versions).await;
            owed.drain(..part.len());
        }
        tracing::info!(endpoint = %log.key, segment = %closed.id, answers = count,
            "shadow answers were computed from the log");
    }

    async fn settle_part(
        &self,
        log: &EndpointLog,
        content: &Content,
        part: &[Owed],
        versions: &mut HashMap<VersionRef, Option<Arc<Version>>>,
    ) {
        let owing = content.owing(part);
        for (_, _, _, shadow) in &owing {
            if !versions.contains_key(shadow.version()) {
                let version = self.version(&log.key, shadow).await;
                versions.insert(shadow.version().clone(), version);
            }
        }
        let answers = owing.into_iter().map(|(owed, prediction, live, shadow)| {
            let version = versions.get(shadow.version()).cloned().flatten();
            async move {
                match version {
                    Some(version) => {
                        shadow::answer(prediction, live, &version, None, log, owed, &self.ids).await;
                    }
                    None => log.room.lose(DropReason::ShadowFailed, 1),
                }
            }
        });
        futures::future::join_all(answers).await;
    }

    /// A version that is owed an answer; none if it is gone for good.
    async fn version(&self, endpoint: &EndpointKey, shadow: &Definition) -> Option<Arc<Version>> {
        let name = shadow.version();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LAST_BACKOFF);
        let mut last = None;
        for _ in 0..LOAD_ATTEMPTS {
            match self.loader.load(name.model_key(endpoint), None).await {
                Ok(model) => return Some(Version::new(name.clone(), model, shadow.redacted())),
                Err(error) if error.kind().is_transient() => last = Some(error),
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
        let error = last.as_ref().map(|error: &Error| Chain(error).to_string());
        tracing::error!(version = %name, error, "a shadow's answers are given up: its version cannot be loaded");
        None
    }

    /// The soft end: what is there is handed over, once, as far as nothing is owed to it.
    async fn drain(&self, log: &EndpointLog, debts: &mut Debts) {
        self.requests.close();
        self.requests.wait().await;
        log.close_aged(true);
        while let Some(closed) = log.oldest() {
            if let Some(own) = &closed.debts {
                let postponed = own.settled().await;
                if !postponed.is_empty() {
                    debts.entry(closed.id).or_default().extend(postponed);
                }
            }
            if debts.contains_key(&closed.id) {
                break;
            }
            if let Err(error) = self.try_hand_over(log, &closed).await {
                tracing::info!(endpoint = %log.key, segment = %closed.id, %error,
                    "a segment of the inference log stays for the next start");
                break;
            }
        }
    }
}

/// What is owed to the segments of a process before.
async fn left_over(log: &EndpointLog) -> Debts {
    let segments = log.left_over();
    let ids: Vec<Uuid> = segments.iter().map(|segment| segment.id).collect();
    let owed = spawn_blocking(move || take_over(&segments)).await.unwrap_or_default();
    ids.into_iter().zip(owed).filter(|(_, owed)| !owed.is_empty()).collect()
}
