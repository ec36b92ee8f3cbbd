//! What a service is given when it starts.

use std::{path::PathBuf, sync::Arc};

use crate::{clock::SharedClock, id::SharedIds, lifecycle::Lifecycle, readiness::Readiness};

/// The surroundings of a service: handed down, never global.
#[derive(Clone)]
pub struct Context {
    /// The name of this process in leases and reports; stays the same over restarts on the same data folder.
    pub node: Arc<str>,
    /// The folder for databases, spool and caches.
    pub data_dir: Arc<PathBuf>,
    /// The time.
    pub clock: SharedClock,
    /// New ids.
    pub ids: SharedIds,
    /// Tasks and shutdown.
    pub lifecycle: Lifecycle,
    /// Where a service says that it is ready.
    pub readiness: Readiness,
}
