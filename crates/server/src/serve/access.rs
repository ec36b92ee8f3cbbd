//! Who may do what, as this process knows it: the registry's own state where the registry is here, else followed and kept
//! on disk, so that a gateway lets its callers in while the registry is away.

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use modelyard_auth::{Access, Mode, State, audit::NewEvent};
use modelyard_common::{
    Context,
    error::Chain,
    readiness::Gate,
    rpc::{Channel, MAX_MESSAGE_BYTES},
};
use modelyard_proto::registry::v1::{
    AppendEventsRequest, ReportAccessRequest, TokenUse, VerifyPasswordRequest, WatchAccessRequest,
    access_service_client::AccessServiceClient, audit_service_client::AuditServiceClient,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

/// A watch that is silent for this long is taken for broken; the registry sends a sign of life every five seconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// The wait before the watch is begun again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a call to the registry may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the registry is told which tokens were used and what was refused.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// The most that is told at once.
const REPORT_BATCH: usize = 500;
/// The largest state, in bytes.
const MAX_STATE_BYTES: usize = 64 << 20;
/// Where the last good state is kept.
const FILE: &str = "access.json";

/// The state as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    revision: u64,
    state: State,
}

/// A state until it is on disk: there is no use in a second one in memory.
type Newest = Arc<Mutex<Option<Kept>>>;

/// A handle for this process, with what was known when it ended last.
pub fn open(mode: Mode, requests_per_second: Option<u32>, context: &Context) -> anyhow::Result<Access> {
    let (clock, ids) = (Arc::clone(&context.clock), Arc::clone(&context.ids));
    Access::new(mode, requests_per_second, clock, ids).context("the access policies cannot be read")
}

/// Joins the handle to the registry: passwords are verified there, events delivered, and what was noticed is reported.
pub fn join(access: &Access, registry: &Channel, context: &Context) {
    let accounts = AccessServiceClient::new(registry.clone());
    let verify = accounts.clone();
    access.verify_passwords_by(Arc::new(move |name, password, source| {
        let mut client = verify.clone();
        Box::pin(async move {
            let request = VerifyPasswordRequest {
                name,
                password,
                source_address: source.map(|source| source.to_string()).unwrap_or_default(),
            };
            client.verify_password(within(request)).await?;
            Ok(())
        })
    }));
    let audit = AuditServiceClient::new(registry.clone());
    access.deliver_events_by(Arc::new(move |events| {
        let mut client = audit.clone();
        Box::pin(async move {
            let events = texts(&events);
            client.append_events(within(AppendEventsRequest { events })).await?;
            Ok(())
        })
    }));
    let lifecycle = &context.lifecycle;
    lifecycle.spawn("access report", report(access.clone(), accounts, lifecycle.soft()));
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn texts(events: &[NewEvent]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| serde_json::to_string(event).ok())
        .collect()
}

/// Tells the registry now and then what was noticed, a last time at the soft end. What it does not take is told again.
async fn report(
    access: Access,
    mut registry: AccessServiceClient<Channel>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(REPORT_INTERVAL) => {}
            () = soft.cancelled() => {}
        }
        let noted = access.take_noted();
        let uses: Vec<TokenUse> = noted.uses.iter().map(proto_use).collect();
        let refusals = texts(&noted.refusals);
        let parts = uses.len().max(refusals.len()).div_ceil(REPORT_BATCH);
        for part in 0..parts {
            let request = ReportAccessRequest {
                uses: uses
                    .iter()
                    .skip(part * REPORT_BATCH)
                    .take(REPORT_BATCH)
                    .cloned()
                    .collect(),
                refusals: refusals
                    .iter()
                    .skip(part * REPORT_BATCH)
                    .take(REPORT_BATCH)
                    .cloned()
                    .collect(),
            };
            if let Err(status) = registry.report_access(within(request)).await {
                tracing::warn!(error = %status.message(), "the registry was not told what was refused: it is told again");
                access.note_again(noted);
                break;
            }
        }
        if soft.is_cancelled() {
            return Ok(());
        }
    }
}

fn proto_use(used: &modelyard_auth::TokenUse) -> TokenUse {
    TokenUse {
        token_id: used.token_id.clone(),
        used_at: used.at.as_micros(),
    }
}

/// Follows the registry of another process, and begins with what is kept on disk.
pub fn follow(access: &Access, registry: Channel, context: &Context) {
    let gate = context.readiness.gate("access");
    let file = context.data_dir.join(FILE);
    match load(&file) {
        Ok(Some(kept)) => match access.set(kept.revision, kept.state) {
            Ok(()) => gate.open(),
            Err(error) => tracing::warn!(%error, "the identities that were kept cannot be used"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, file = %file.display(), "the identities that were kept cannot be read"),
    }
    let (newest, to_keep) = watch::channel(Newest::default());
    let watcher = Watcher {
        access: access.clone(),
        client: AccessServiceClient::new(registry).max_decoding_message_size(MAX_MESSAGE_BYTES),
        node: context.node.to_string(),
        newest,
        gate,
    };
    let lifecycle = &context.lifecycle;
    lifecycle.spawn("access file", keep(file, to_keep));
    lifecycle.spawn("access watch", watcher.run(lifecycle.soft()));
}

struct Watcher {
    access: Access,
    client: AccessServiceClient<Channel>,
    node: String,
    /// The newest state, for the disk: what counts from now on does not wait for what counted before to be written.
    newest: watch::Sender<Newest>,
    gate: Gate,
}

impl Watcher {
    async fn run(mut self, soft: CancellationToken) -> Result<(), Infallible> {
        let mut away = false;
        loop {
            let ended = tokio::select! {
                ended = self.stream(&mut away) => ended,
                () = soft.cancelled() => return Ok(()),
            };
            if !away {
                away = true;
                let revision = self.access.snapshot().revision();
                tracing::warn!(error = %ended.message(), revision, "the registry's identities are not followed: the last good ones stay");
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = soft.cancelled() => return Ok(()),
            }
        }
    }

    /// One watch, until it breaks.
    async fn stream(&mut self, away: &mut bool) -> Status {
        let silent = |_| Status::unavailable("the registry is silent");
        let request = WatchAccessRequest {
            node: self.node.clone(),
            since_revision: self.access.snapshot().revision(),
        };
        let mut updates = match timeout(SILENCE_LIMIT, self.client.watch_access(request))
            .await
            .map_err(silent)
        {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) | Err(status) => return status,
        };
        let mut whole = Vec::new();
        loop {
            let update = match timeout(SILENCE_LIMIT, updates.message()).await.map_err(silent) {
                Ok(Ok(Some(update))) => update,
                Ok(Ok(None)) => return Status::unavailable("the registry closed the watch"),
                Ok(Err(status)) | Err(status) => return status,
            };
            if std::mem::take(away) {
                tracing::info!(
                    revision = update.revision,
                    "the registry's identities are followed again"
                );
            }
            if whole.len() + update.part.len() > MAX_STATE_BYTES {
                return Status::resource_exhausted("the registry's identities are larger than this version takes");
            }
            whole.extend_from_slice(&update.part);
            if update.is_last_part
                && let Err(error) = self.take(update.revision, &std::mem::take(&mut whole))
            {
                tracing::error!(%error, revision = update.revision, "identities are refused: the last good ones stay");
            }
        }
    }

    /// Takes a whole state. A bad one changes nothing.
    fn take(&self, revision: u64, whole: &[u8]) -> anyhow::Result<()> {
        let state: State =
            serde_json::from_slice(whole).context("the state cannot be read: run the same version of both")?;
        self.access.set(revision, state.clone())?;
        self.gate.open();
        self.newest
            .send_replace(Arc::new(Mutex::new(Some(Kept { revision, state }))));
        Ok(())
    }
}

/// Keeps the newest state on disk, until the watch has ended and what it said last is written.
async fn keep(file: PathBuf, mut newest: watch::Receiver<Newest>) -> Result<(), Infallible> {
    while newest.changed().await.is_ok() {
        let Some(kept) = newest.borrow_and_update().lock().take() else {
            continue;
        };
        let file = file.clone();
        let saved = spawn_blocking(move || save(&file, &kept)).await;
        if let Err(error) = saved.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            tracing::warn!(error = %Chain(&error), "the identities cannot be kept on disk");
        }
    }
    Ok(())
}

fn load(file: &Path) -> anyhow::Result<Option<Kept>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the file whole or not at all, for nobody else to read: `tempfile` makes it so.
fn save(file: &Path, kept: &Kept) -> io::Result<()> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let mut partial = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut partial, kept)?;
    partial.flush()?;
    partial.as_file().sync_all()?;
    partial.persist(file)?;
    Ok(())
}
