//! The queue on its two databases.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Database, Pools, PostgresPools, SqlitePools, Transaction};

use crate::{
    error::{Error, Result},
    model::{
        AttemptEvent, Claim, ClaimRequest, Counts, Enqueued, Event, Job, JobId, JobRecord, MAX_LOSSES, NewJob, State,
    },
    transaction::{End, JobTransaction, Note, parse_id},
    wake::Wake,
};

/// The most jobs that one claim takes.
const MAX_CLAIMS: usize = 256;
/// How many leases that ran out one claim takes back in each queue.
const MAX_EXPIRED: i64 = 64;
/// What a job says that was given up because its attempts ended without a word.
const LOST: &str = "the attempts of this job keep ending without a word: it may bring its node down";

/// The queue. Every method is one transaction; times come from the caller.
#[async_trait]
pub trait JobStore: Send + Sync {
    /// Enqueues a job and wakes the workers of this process. In a store's own transaction: [`crate::enqueue_in`].
    async fn enqueue(&self, job: &NewJob, now: Timestamp) -> Result<Enqueued>;
    /// Takes jobs that are due, the queues in the order asked for, in each the greatest priority first, then the
    /// earliest. Leases that have run out are taken back first.
    async fn claim(&self, request: &ClaimRequest<'_>, now: Timestamp) -> Result<Vec<Job>>;
    /// Renews the lease to `now + lease`. [`Error::Stale`] when the claim is over: stop working.
    async fn heartbeat(&self, claim: &Claim, lease: Duration, now: Timestamp) -> Result<()>;
    /// The work is done.
    async fn complete(&self, claim: &Claim, now: Timestamp) -> Result<()>;
    /// The attempt ended with an error: the job is ready again at `run_at`, or failed if this was its last attempt. The
    /// answer says which.
    async fn retry(&self, claim: &Claim, run_at: Timestamp, error: &str, now: Timestamp) -> Result<State>;
    /// The job cannot succeed.
    async fn fail(&self, claim: &Claim, error: &str, now: Timestamp) -> Result<()>;
    /// Gives a job back unfinished, at a soft end: it is ready at once, and nothing is held against it.
    async fn release(&self, claim: &Claim, now: Timestamp) -> Result<()>;
    /// Gives back all jobs that `node` held before it started anew. Call it once, before the node's workers start. How
    /// many they were.
    async fn release_node(&self, node: &str, now: Timestamp) -> Result<u64>;
    /// Calls a job off, running or not; whether it was unfinished.
    async fn cancel(&self, job: JobId, now: Timestamp) -> Result<bool>;
    /// Removes at most `limit` jobs that ended before `older_than`, with their attempts; how many.
    async fn remove_finished(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
    /// How many jobs are in which state, in one queue or in all.
    async fn count(&self, queue: Option<&str>) -> Result<Counts>;
    /// When there is next something to claim, past times included. None when nothing is unfinished.
    async fn next_run_at(&self, queues: &[String]) -> Result<Option<Timestamp>>;
    /// A job as it stands.
    async fn find(&self, job: JobId) -> Result<Option<JobRecord>>;
    /// As [`find`](Self::find), with [`Error::NotFound`].
    async fn get(&self, job: JobId) -> Result<JobRecord> {
        self.find(job).await?.ok_or(Error::NotFound(job))
    }
    /// The log of a job's attempts, oldest first. Bounded, because attempts are.
    async fn attempts(&self, job: JobId) -> Result<Vec<AttemptEvent>>;
    /// The hint to this process's workers.
    fn wake(&self) -> &Wake;
}

/// The queue in an open database that has [`crate::MIGRATIONS`].
#[must_use]
pub fn open(database: &Database) -> Arc<dyn JobStore> {
    let wake = Wake::default();
    match database.clone() {
        Database::Sqlite(pools) => Arc::new(SqlJobStore { pools, wake }),
        Database::Postgres(pools) => Arc::new(SqlJobStore { pools, wake }),
    }
}

struct SqlJobStore<P> {
    pools: P,
    wake: Wake,
}

/// The statements that differ: on PostgreSQL several nodes claim at once and must step around each other's rows; on
/// SQLite one writes at a time.
trait Dialect {
    /// Takes back leases of the queue $1 that ran out at $2; $3 is the limit, $4 the most losses, $5 the error.
    const EXPIRE: &'static str;
    /// Claims jobs of the queue $1 that are due at $2; $3 is the limit, $4 the node, $5 the end of the lease.
    const CLAIM: &'static str;
}

macro_rules! expire {
    ($lock:literal) => {
        concat!(
            "WITH expired AS (
                 SELECT id FROM job WHERE queue = $1 AND state = 'running' AND lease_until <= $2
                 ORDER BY lease_until LIMIT $3 ",
            $lock,
            ")
             UPDATE job SET losses = losses + 1, node = NULL, lease_until = NULL,
                            state = CASE WHEN losses >= $4 THEN 'failed' ELSE 'ready' END,
                            finished_at = CASE WHEN losses >= $4 THEN $2 ELSE NULL END,
                            error = CASE WHEN losses >= $4 THEN $5 ELSE error END
             WHERE id IN (SELECT id FROM expired) RETURNING id, attempt"
        )
    };
}

macro_rules! claim {
    ($lock:literal) => {
        concat!(
            "WITH due AS (
                 SELECT id FROM job WHERE queue = $1 AND state = 'ready' AND run_at <= $2
                 ORDER BY priority DESC, run_at, id LIMIT $3 ",
            $lock,
            ")
             UPDATE job SET state = 'running', attempt = attempt + 1, node = $4, lease_until = $5
             WHERE id IN (SELECT id FROM due)
             RETURNING id, queue, unique_key, payload, trace, priority, attempt, failures, max_attempts, run_at,
                       created_at"
        )
    };
}

impl Dialect for SqlitePools {
    const EXPIRE: &'static str = expire!("");
    const CLAIM: &'static str = claim!("");
}

impl Dialect for PostgresPools {
    const EXPIRE: &'static str = expire!("FOR UPDATE SKIP LOCKED");
    const CLAIM: &'static str = claim!("FOR UPDATE SKIP LOCKED");
}

#[derive(sqlx::FromRow)]
struct JobRow {
    id: String,
    queue: String,
    unique_key: Option<String>,
    payload: String,
    trace: Option<String>,
    priority: i64,
    attempt: i64,
    failures: i64,
    max_attempts: i64,
    run_at: i64,
    created_at: i64,
}

impl JobRow {
    fn into_job(self) -> Result<Job> {
        let payload = serde_json::from_str(&self.payload)
            .map_err(|_| modelyard_db::Error::value("payload of a job", &self.payload))?;
        Ok(Job {
            id: parse_id(&self.id)?,
            queue: self.queue,
            key: self.unique_key,
            payload,
            trace: self.trace,
            priority: self.priority,
            attempt: self.attempt,
            failures: count("failures", self.failures)?,
            max_attempts: count("max_attempts", self.max_attempts)?,
            run_at: Timestamp::from_micros(self.run_at),
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct RecordRow {
    #[sqlx(flatten)]
    job: JobRow,
    state: String,
    losses: i64,
    node: Option<String>,
    lease_until: Option<i64>,
    finished_at: Option<i64>,
    error: Option<String>,
}

impl RecordRow {
    fn into_record(self) -> Result<JobRecord> {
        Ok(JobRecord {
            job: self.job.into_job()?,
            state: State::parse(&self.state)?,
            losses: count("losses", self.losses)?,
            node: self.node,
            lease_until: self.lease_until.map(Timestamp::from_micros),
            finished_at: self.finished_at.map(Timestamp::from_micros),
            error: self.error,
        })
    }
}

fn count(what: &'static str, number: i64) -> Result<u32> {
    u32::try_from(number).map_err(|_| modelyard_db::Error::value(what, &number.to_string()).into())
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlJobStore<P> {
    async fn take_back(tx: &mut Transaction<<P as Pools>::Db>, queue: &str, now: Timestamp) -> Result<()> {
        let expired: Vec<(String, i64)> = sqlx::query_as(<P as Dialect>::EXPIRE)
            .bind(queue)
            .bind(now.as_micros())
            .bind(MAX_EXPIRED)
            .bind(i64::from(MAX_LOSSES))
            .bind(LOST)
            .fetch_all(&mut **tx)
            .await?;
        for (id, attempt) in expired {
            let job = parse_id(&id)?;
            tracing::warn!(job.id = %job, job.queue = queue, job.attempt = attempt, "the lease of a job ran out");
            tx.log_event(&Claim { job, attempt }, Event::Expired, Note::default(), now)
                .await?;
        }
        Ok(())
    }

    async fn end(&self, claim: &Claim, end: End<'_>, now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        tx.end_attempt(claim, end, now).await?;
        Ok(tx.commit().await?)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl JobStore for SqlJobStore<P> {
    async fn enqueue(&self, job: &NewJob, now: Timestamp) -> Result<Enqueued> {
        let mut tx = self.pools.begin().await?;
        let enqueued = tx.enqueue_job(job, now).await?;
        tx.commit().await?;
        self.wake.notify();
        Ok(enqueued)
    }

    async fn claim(&self, request: &ClaimRequest<'_>, now: Timestamp) -> Result<Vec<Job>> {
        let limit = request.limit.min(MAX_CLAIMS);
        let lease_until = now + request.lease;
        let mut claimed: Vec<Job> = Vec::new();
        let mut tx = self.pools.begin().await?;
        for queue in request.queues {
            if claimed.len() >= limit {
                break;
            }
            Self::take_back(&mut tx, queue, now).await?;
            let rows: Vec<JobRow> = sqlx::query_as(<P as Dialect>::CLAIM)
                .bind(queue)
                .bind(now.as_micros())
                .bind((limit - claimed.len()) as i64)
                .bind(request.node)
                .bind(lease_until.as_micros())
                .fetch_all(&mut *tx)
                .await?;
            let mut jobs = Vec::with_capacity(rows.len());
            for row in rows {
                jobs.push(row.into_job()?);
            }
            // RETURNING promises no order.
            jobs.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.run_at, job.id));
            claimed.extend(jobs);
        }
        let note = Note {
            node: Some(request.node),
            error: None,
        };
        for job in &claimed {
            tx.log_event(&job.claim(), Event::Claimed, note, now).await?;
        }
        tx.commit().await?;
        Ok(claimed)
    }

    async fn heartbeat(&self, claim: &Claim, lease: Duration, now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let renewed =
            sqlx::query("UPDATE job SET lease_until = $3 WHERE id = $1 AND attempt = $2 AND state = 'running'")
                .bind(claim.job.to_string())
                .bind(claim.attempt)
                .bind((now + lease).as_micros())
                .execute(&mut *tx)
                .await?;
        if renewed.rows_affected() == 0 {
            return Err(Error::Stale(*claim));
        }
        Ok(tx.commit().await?)
    }

    async fn complete(&self, claim: &Claim, now: Timestamp) -> Result<()> {
        self.end(claim, End::DONE, now).await
    }

    async fn retry(&self, claim: &Claim, run_at: Timestamp, error: &str, now: Timestamp) -> Result<State> {
        let mut tx = self.pools.begin().await?;
        let counts: Option<(i64, i64)> =
            sqlx::query_as("SELECT failures, max_attempts FROM job WHERE id = $1 AND attempt = $2")
                .bind(claim.job.to_string())
                .bind(claim.attempt)
                .fetch_optional(&mut *tx)
                .await?;
        let (failures, max_attempts) = counts.ok_or(Error::Stale(*claim))?;
        // Nobody else changes the failures of an attempt that is ours; whether it still is, the update checks.
        let end = if failures + 1 < max_attempts {
            End {
                event: Event::Retried,
                state: State::Ready,
                run_at: Some(run_at),
                error: Some(error),
            }
        } else {
            End {
                event: Event::Failed,
                state: State::Failed,
                run_at: None,
                error: Some(error),
            }
        };
        tx.end_attempt(claim, end, now).await?;
        tx.commit().await?;
        Ok(end.state)
    }

    async fn fail(&self, claim: &Claim, error: &str, now: Timestamp) -> Result<()> {
        let end = End {
            event: Event::Failed,
            state: State::Failed,
            run_at: None,
            error: Some(error),
        };
        self.end(claim, end, now).await
    }

    async fn release(&self, claim: &Claim, now: Timestamp) -> Result<()> {
        let end = End {
            event: Event::Released,
            state: State::Ready,
            run_at: None,
            error: None,
        };
        self.end(claim, end, now).await?;
        self.wake.notify();
        Ok(())
    }

    async fn release_node(&self, node: &str, now: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let released: Vec<(String, i64)> = sqlx::query_as(
            "UPDATE job SET losses = losses + 1, node = NULL, lease_until = NULL,
                            state = CASE WHEN losses >= $2 THEN 'failed' ELSE 'ready' END,
                            finished_at = CASE WHEN losses >= $2 THEN $3 ELSE NULL END,
                            error = CASE WHEN losses >= $2 THEN $4 ELSE error END
             WHERE state = 'running' AND node = $1 RETURNING id, attempt",
        )
        .bind(node)
        .bind(i64::from(MAX_LOSSES))
        .bind(now.as_micros())
        .bind(LOST)
        .fetch_all(&mut *tx)
        .await?;
        let note = Note {
            node: Some(node),
            error: None,
        };
        for (id, attempt) in &released {
            let claim = Claim {
                job: parse_id(id)?,
                attempt: *attempt,
            };
            tx.log_event(&claim, Event::Released, note, now).await?;
        }
        tx.commit().await?;
        self.wake.notify();
        Ok(released.len() as u64)
    }

    async fn cancel(&self, job: JobId, now: Timestamp) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let cancelled = tx.cancel_job(job, now).await?;
        tx.commit().await?;
        Ok(cancelled)
    }

    async fn remove_finished(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query(
            "DELETE FROM job WHERE id IN (
                 SELECT id FROM job WHERE finished_at IS NOT NULL AND finished_at < $1 ORDER BY finished_at LIMIT $2)",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }

    async fn count(&self, queue: Option<&str>) -> Result<Counts> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT state, COUNT(*) FROM job WHERE CAST($1 AS TEXT) IS NULL OR queue = $1 GROUP BY state",
        )
        .bind(queue)
        .fetch_all(self.pools.reader())
        .await?;
        let mut counts = Counts::default();
        for (state, number) in rows {
            *counts.of(State::parse(&state)?) = u64::try_from(number).unwrap_or(0);
        }
        Ok(counts)
    }

    async fn next_run_at(&self, queues: &[String]) -> Result<Option<Timestamp>> {
        let mut next: Option<i64> = None;
        for queue in queues {
            let at: Option<i64> = sqlx::query_scalar(
                "SELECT MIN(at) FROM (
                     SELECT MIN(run_at) AS at FROM job WHERE queue = $1 AND state = 'ready'
                     UNION ALL
                     SELECT MIN(lease_until) AS at FROM job WHERE queue = $1 AND state = 'running') AS times",
            )
            .bind(queue)
            .fetch_one(self.pools.reader())
            .await?;
            next = [next, at].into_iter().flatten().min();
        }
        Ok(next.map(Timestamp::from_micros))
    }

    async fn find(&self, job: JobId) -> Result<Option<JobRecord>> {
        let row: Option<RecordRow> = sqlx::query_as(
            "SELECT id, queue, unique_key, payload, trace, priority, attempt, failures, max_attempts, run_at,
                    created_at, state, losses, node, lease_until, finished_at, error
             FROM job WHERE id = $1",
        )
        .bind(job.to_string())
        .fetch_optional(self.pools.reader())
        .await?;
        row.map(RecordRow::into_record).transpose()
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<AttemptEvent>> {
        let rows: Vec<(i64, String, i64, Option<String>, Option<String>)> = sqlx::query_as(
            "SELECT attempt, event, at, node, error FROM job_attempt WHERE job_id = $1
             ORDER BY attempt, CASE WHEN event = 'claimed' THEN 0 ELSE 1 END",
        )
        .bind(job.to_string())
        .fetch_all(self.pools.reader())
        .await?;
        let mut events = Vec::with_capacity(rows.len());
        for (attempt, event, at, node, error) in rows {
            let event = Event::parse(&event)?;
            let at = Timestamp::from_micros(at);
            events.push(AttemptEvent {
                attempt,
                event,
                at,
                node,
                error,
            });
        }
        Ok(events)
    }

    fn wake(&self) -> &Wake {
        &self.wake
    }
}
