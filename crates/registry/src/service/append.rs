//! Group commit of the audit chain: what many hand over at the same time shares one transaction, and so one wait for the
//! disk.

use std::{convert::Infallible, sync::Arc};

use modelyard_auth::audit::NewEvent;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    store::AuditStore,
};

/// The most requests that wait.
const QUEUE: usize = 4096;
/// The most events of one transaction.
const BATCH: usize = 4000;

struct Request {
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<()>>,
}

/// Hands events to the one who appends.
#[derive(Clone)]
pub(crate) struct Appender {
    requests: mpsc::Sender<Request>,
}

impl Appender {
    /// Adds events to the chain; those that are in it already are passed over. They are on the disk when this returns.
    pub(crate) async fn append(&self, events: Vec<NewEvent>) -> Result<()> {
        let stopped = || Error::State("the server is stopping: try again".to_owned());
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(Request { events, answer })
            .await
            .map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// The two ends: hand over to the first, run the second as a task.
pub(crate) fn appender(
    store: Arc<dyn AuditStore>,
    soft: CancellationToken,
) -> (Appender, impl Future<Output = Result<(), Infallible>> + Send + 'static) {
    let (requests, received) = mpsc::channel(QUEUE);
    (Appender { requests }, run(store, received, soft))
}

async fn run(
    store: Arc<dyn AuditStore>,
    mut received: mpsc::Receiver<Request>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            count = received.recv_many(&mut waiting, QUEUE) => if count == 0 {
                return Ok(());
            },
            () = soft.cancelled() => {
                // What waits is still taken; nothing new comes.
                received.close();
                if received.recv_many(&mut waiting, QUEUE).await == 0 {
                    return Ok(());
                }
            }
        }
        while !waiting.is_empty() {
            let mut count = 0;
            let take = waiting.iter().take_while(|request| {
                count += request.events.len();
                count <= BATCH
            });
            let take = take.count().max(1);
            commit(&*store, waiting.drain(..take).collect()).await;
        }
    }
}

/// Appends what several handed over. If that fails, each is tried alone, so that nobody fails for another.
async fn commit(store: &dyn AuditStore, batch: Vec<Request>) {
    if batch.len() > 1 {
        let events: Vec<NewEvent> = batch
            .iter()
            .flat_map(|request| request.events.iter().cloned())
            .collect();
        if store.append_events(&events).await.is_ok() {
            for request in batch {
                // Who does not wait any more finds them there.
                let _ = request.answer.send(Ok(()));
            }
            return;
        }
    }
    for request in batch {
        let appended = store.append_events(&request.events).await.map(drop);
        let _ = request.answer.send(appended);
    }
}
