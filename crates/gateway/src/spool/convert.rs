//! Makes Parquet of segments, one after the other, on one thread: however many endpoints there are, one segment at most is in memory,
//! and the allocator keeps what one conversion needs and not what each of many threads once needed.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
};

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    read::read,
    ship::Failure,
    table::{self, TableFiles},
};
use crate::error::Result;

/// The conversions that wait in the channel; those who want more wait before it.
const WAITING: usize = 16;

struct Job {
    path: PathBuf,
    segment: Uuid,
    reply: oneshot::Sender<Result<TableFiles, Failure>>,
}

/// The thread that converts. It ends with this.
pub(crate) struct Converter {
    jobs: mpsc::Sender<Job>,
}

impl Converter {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Inference` if the system refuses a thread.
    pub(crate) fn start() -> Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            while let Some(job) = waiting.blocking_recv() {
                // A segment that makes it panic is one that cannot be handed over; the others still can.
                let made = catch_unwind(AssertUnwindSafe(|| convert(&job.path, job.segment)));
                // Nobody waits any more at the end of the server; the segment stays for the next start.
                let _ = job.reply.send(made.unwrap_or(Err(Failure::Interrupted)));
            }
        };
        let thread = thread::Builder::new().name("log-convert".to_owned()).spawn(work);
        thread.map_err(|source| modelyard_inference::Error::Thread { source })?;
        Ok(Self { jobs })
    }

    /// The files of a segment.
    pub(super) async fn convert(&self, path: PathBuf, segment: Uuid) -> Result<TableFiles, Failure> {
        let (reply, files) = oneshot::channel();
        let job = Job { path, segment, reply };
        self.jobs.send(job).await.map_err(|_| Failure::Interrupted)?;
        files.await.map_err(|_| Failure::Interrupted)?
    }
}

/// Makes a segment durable, then Parquet of it.
fn convert(path: &Path, segment: Uuid) -> Result<TableFiles, Failure> {
    // Once it is uploaded the file goes; until then it may be all there is.
    File::open(path)?.sync_all()?;
    Ok(table::files(&read(path)?, segment)?)
}
