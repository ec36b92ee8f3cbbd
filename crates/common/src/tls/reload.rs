//! Values that are made of files, and made anew when the files change.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::certificate::{PemFile, Read, TlsError};
use crate::error::Chain;

/// 1 while the files of a part are not usable and those before them serve on, else 0.
pub const RELOAD_FAILED: &str = "modelyard_tls_reload_failed";

/// When the certificate of a part expires, in seconds since 1970.
pub const EXPIRY: &str = "modelyard_tls_certificate_expiry_timestamp_seconds";

/// What was made of files.
pub(super) struct Loaded<T> {
    pub(super) value: T,
    /// When its certificate expires, in seconds since 1970.
    pub(super) expires: Option<i64>,
}

/// A value made of files, the newest that was good.
pub(super) struct Watched<T> {
    part: &'static str,
    files: Vec<PemFile>,
    make: fn(&[Read]) -> Result<Loaded<T>, TlsError>,
    seen: Mutex<Contents>,
    live: ArcSwap<T>,
}

/// What the files had when they were looked at last; nothing for one that could not be read. The files are small, so they
/// are compared whole: neither a clock nor the file system's times matter.
type Contents = Vec<Option<Vec<u8>>>;

/// Something that looks at its files when it is told to.
pub(super) trait Refresh: Send + Sync {
    /// Takes up what has changed. Reads files.
    fn refresh(&self);
}

impl<T> Watched<T> {
    /// Makes the value for the first time.
    pub(super) fn open(
        part: &'static str,
        files: Vec<PemFile>,
        make: fn(&[Read]) -> Result<Loaded<T>, TlsError>,
    ) -> Result<Self, TlsError> {
        let read = read(&files).into_iter().collect::<Result<Vec<_>, _>>()?;
        let loaded = make(&read)?;
        note(part, &files, &loaded);
        Ok(Self {
            part,
            files,
            make,
            seen: Mutex::new(read.into_iter().map(|read| Some(read.content)).collect()),
            live: ArcSwap::from_pointee(loaded.value),
        })
    }

    /// The value as it is now.
    pub(super) fn current(&self) -> Arc<T> {
        self.live.load_full()
    }
}

impl<T: Send + Sync> Refresh for Watched<T> {
    fn refresh(&self) {
        let read = read(&self.files);
        let contents: Contents = read
            .iter()
            .map(|read| read.as_ref().ok().map(|read| read.content.clone()))
            .collect();
        let mut seen = self.seen.lock();
        if *seen == contents {
            return;
        }
        *seen = contents;
        let read: Result<Vec<_>, _> = read.into_iter().collect();
        match read.and_then(|read| (self.make)(&read)) {
            Ok(loaded) => {
                note(self.part, &self.files, &loaded);
                self.live.store(Arc::new(loaded.value));
                tracing::info!(
                    part = self.part,
                    "the certificates have changed: new connections use them"
                );
            }
            Err(error) => {
                metrics::gauge!(RELOAD_FAILED, "part" => self.part).set(1.0);
                tracing::error!(part = self.part, error = %Chain(&error), "the certificates have changed and cannot be used: those before them stay");
            }
        }
    }
}

/// Tells the world of what was made.
fn note<T>(part: &'static str, files: &[PemFile], loaded: &Loaded<T>) {
    files.iter().for_each(PemFile::warn_of_readers);
    metrics::gauge!(RELOAD_FAILED, "part" => part).set(0.0);
    if let Some(expires) = loaded.expires {
        metrics::gauge!(EXPIRY, "part" => part).set(expires as f64);
    }
}

fn read(files: &[PemFile]) -> Vec<Result<Read, TlsError>> {
    let read = |file: &PemFile| {
        let content = file.read()?;
        Ok(Read {
            file: file.clone(),
            content,
        })
    };
    files.iter().map(read).collect()
}

/// Looks at the files every `interval` and at SIGHUP, until the soft end.
pub(super) async fn watch(
    watched: Vec<Arc<dyn Refresh>>,
    interval: Duration,
    soft: CancellationToken,
) -> Result<(), io::Error> {
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = hangup.recv() => tracing::info!("told to look at the certificates"),
            () = soft.cancelled() => return Ok(()),
        }
        let watched = watched.clone();
        let refresh = move || watched.iter().for_each(|watched| watched.refresh());
        tokio::task::spawn_blocking(refresh).await?;
    }
}
