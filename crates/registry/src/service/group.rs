//! Group commit: what many hand over at the same time shares one transaction, and so one wait for the disk.

use std::{convert::Infallible, sync::Arc, time::Duration};

use async_trait::async_trait;
use modelyard_auth::audit::NewEvent;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    model::{
        run::{NewRun, Run, RunBatch},
        trace::SpanBatch,
    },
    store::{AuditStore, RunLogStore, RunStore, TraceStore},
};

/// The most that wait.
const QUEUE: usize = 4096;
/// How long those are waited for who came the last time.
const PATIENCE: Duration = Duration::from_millis(1);
/// The most rows, about, of one transaction.
const ROWS: usize = 16_000;

/// Makes things last, all of them or none.
#[async_trait]
pub(crate) trait Commit<T>: Send + Sync + 'static {
    /// What is told of each.
    type Done: Send + 'static;
    /// The rows, about, that a thing takes.
    fn rows(&self, item: &T) -> usize;
    /// Stores them in one transaction, and tells of each in its order.
    async fn commit(&self, items: &[T]) -> Result<Vec<Self::Done>>;
}

struct Request<T, D> {
    item: T,
    answer: oneshot::Sender<Result<D>>,
}

/// Hands things to the one who commits.
pub(crate) struct Group<T, D = ()> {
    requests: mpsc::Sender<Request<T, D>>,
}

impl<T, D> Clone for Group<T, D> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
        }
    }
}

impl<T, D> Group<T, D> {
    /// Stores something. It is on the disk when this returns.
    pub(crate) async fn put(&self, item: T) -> Result<D> {
        let stopped = || Error::Stopping;
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(Request { item, answer })
            .await
            .map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// The two ends: hand over to the first, run the second as a task.
pub(crate) fn group<T: Send + Sync + 'static, C: Commit<T>>(
    store: C,
    soft: CancellationToken,
) -> (
    Group<T, C::Done>,
    impl Future<Output = Result<(), Infallible>> + Send + 'static,
) {
    let (requests, received) = mpsc::channel(QUEUE);
    (Group { requests }, run(store, received, soft))
}

async fn run<T: Send + Sync, C: Commit<T>>(
    store: C,
    mut received: mpsc::Receiver<Request<T, C::Done>>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut waiting = Vec::new();
    let mut expected = 1;
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
        gather(&mut received, &mut waiting, (expected, PATIENCE)).await;
        expected = waiting.len();
        while !waiting.is_empty() {
            let mut rows = 0;
            let take = waiting.iter().take_while(|request| {
                rows += store.rows(&request.item);
                rows <= ROWS
            });
            let take = take.count().max(1);
            commit(&store, waiting.drain(..take).collect()).await;
        }
    }
}

/// Lets those hand over who are about to: each transaction costs the same, however many share it. Tasks that can run at
/// once are waited for, and, for a moment, as many as came the last time: who got an answer then may well come again. One who
/// comes alone waits for nobody.
async fn gather<T, D>(
    received: &mut mpsc::Receiver<Request<T, D>>,
    waiting: &mut Vec<Request<T, D>>,
    (expected, patience): (usize, Duration),
) {
    loop {
        tokio::task::yield_now().await;
        let before = waiting.len();
        while waiting.len() < QUEUE
            && let Ok(request) = received.try_recv()
        {
            waiting.push(request);
        }
        if waiting.len() == before {
            break;
        }
    }
    let missing = async {
        while waiting.len() < expected.min(QUEUE) {
            let Some(request) = received.recv().await else {
                return;
            };
            waiting.push(request);
        }
    };
    // Those who do not come are not expected again.
    let _ = tokio::time::timeout(patience, missing).await;
}

/// Stores what several handed over. If that fails, each is tried alone, so that nobody fails for another.
async fn commit<T: Send + Sync, C: Commit<T>>(store: &C, requests: Vec<Request<T, C::Done>>) {
    let (items, answers): (Vec<T>, Vec<_>) = requests
        .into_iter()
        .map(|request| (request.item, request.answer))
        .unzip();
    if items.len() > 1
        && let Ok(done) = store.commit(&items).await
    {
        for (answer, done) in answers.into_iter().zip(done) {
            // Who does not wait any more finds it there.
            let _ = answer.send(Ok(done));
        }
        return;
    }
    for (item, answer) in items.into_iter().zip(answers) {
        let stored = store.commit(std::slice::from_ref(&item)).await;
        let untold = || Error::State("what was stored was not told".to_owned());
        let _ = answer.send(stored.and_then(|mut done| done.pop().ok_or_else(untold)));
    }
}

/// Appends events to the audit chain; those that are in it already are passed over.
pub(crate) struct Chain(pub(crate) Arc<dyn AuditStore>);

#[async_trait]
impl Commit<Vec<NewEvent>> for Chain {
    type Done = ();

    fn rows(&self, events: &Vec<NewEvent>) -> usize {
        events.len()
    }

    async fn commit(&self, items: &[Vec<NewEvent>]) -> Result<Vec<()>> {
        match items {
            [events] => self.0.append_events(events).await?,
            items => self.0.append_events(&items.concat()).await?,
        };
        Ok(vec![(); items.len()])
    }
}

/// Adds what runs log.
pub(crate) struct RunLog(pub(crate) Arc<dyn RunLogStore>);

#[async_trait]
impl Commit<RunBatch> for RunLog {
    type Done = ();

    fn rows(&self, item: &RunBatch) -> usize {
        let batch = &item.batch;
        batch.params.len() + 2 * batch.metrics.len() + batch.tags.len() + batch.model_metrics.len()
    }

    async fn commit(&self, items: &[RunBatch]) -> Result<Vec<()>> {
        self.0.log_batches(items).await?;
        Ok(vec![(); items.len()])
    }
}

/// Creates runs that nobody creates twice.
pub(crate) struct NewRuns(pub(crate) Arc<dyn RunStore>);

#[async_trait]
impl Commit<NewRun> for NewRuns {
    type Done = Run;

    fn rows(&self, run: &NewRun) -> usize {
        2 + run.tags.len()
    }

    async fn commit(&self, items: &[NewRun]) -> Result<Vec<Run>> {
        self.0.create_runs(items).await
    }
}

/// Adds spans.
pub(crate) struct Spans(pub(crate) Arc<dyn TraceStore>);

#[async_trait]
impl Commit<SpanBatch> for Spans {
    type Done = ();

    fn rows(&self, item: &SpanBatch) -> usize {
        let traces = item.traces.iter();
        traces
            .map(|trace| 3 + trace.summary.tags.len() + trace.spans.len())
            .sum()
    }

    async fn commit(&self, items: &[SpanBatch]) -> Result<Vec<()>> {
        self.0.log_spans(items).await?;
        Ok(vec![(); items.len()])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::*;

    /// Refuses everything with a 13 in it, and keeps what it stored together.
    #[derive(Default)]
    struct Superstitious(Arc<Mutex<Vec<Vec<u32>>>>);

    #[async_trait]
    impl Commit<u32> for Superstitious {
        type Done = u32;

        fn rows(&self, _: &u32) -> usize {
            ROWS / 4
        }

        async fn commit(&self, items: &[u32]) -> Result<Vec<u32>> {
            if items.contains(&13) {
                return Err(Error::State("unlucky".to_owned()));
            }
            self.0.lock().push(items.to_vec());
            Ok(items.to_vec())
        }
    }

    #[tokio::test]
    async fn as_many_as_came_the_last_time_are_waited_for_and_only_for_a_moment() {
        let (requests, mut received) = mpsc::channel(QUEUE);
        let hand_over = |item: u32| {
            let (answer, _) = oneshot::channel::<Result<()>>();
            requests.try_send(Request { item, answer }).is_ok()
        };
        let mut waiting = Vec::new();
        assert!(hand_over(1));
        received.recv_many(&mut waiting, QUEUE).await;
        gather(&mut received, &mut waiting, (1, Duration::MAX)).await;
        assert_eq!(waiting.len(), 1, "alone");
        let later = async {
            // After all that can run at once has run.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            hand_over(2)
        };
        let ((), is_there) = tokio::join!(gather(&mut received, &mut waiting, (2, Duration::MAX)), later);
        assert!(is_there);
        assert_eq!(waiting.len(), 2, "with one more");
        let start = Instant::now();
        gather(&mut received, &mut waiting, (3, PATIENCE)).await;
        assert_eq!(waiting.len(), 2, "nobody else came");
        assert!(start.elapsed() >= PATIENCE);
    }

    #[tokio::test]
    async fn many_share_a_commit_and_nobody_fails_for_another() {
        let store = Superstitious::default();
        let stored = Arc::clone(&store.0);
        let soft = CancellationToken::new();
        let (group, running) = group(store, soft.clone());
        // They wait before anything runs.
        let puts = (8..18).map(|number| {
            let group = group.clone();
            async move { (number, group.put(number).await.ok()) }
        });
        let puts = futures::future::join_all(puts);
        let end = async {
            let answers = puts.await;
            soft.cancel();
            answers
        };
        let (answers, ended) = tokio::join!(end, running);
        ended.unwrap();
        assert!(
            answers
                .iter()
                .all(|(number, told)| *told == Some(*number).filter(|number| *number != 13))
        );
        let stored = stored.lock().clone();
        assert_eq!(stored.concat().len(), 9);
        assert!(stored.iter().any(|items| items.len() == 4), "{stored:?}");
        assert!(stored.iter().all(|items| items.len() <= 4), "{stored:?}");
        assert!(group.put(1).await.is_err(), "it has ended");
    }
}
