//! What can be done to jobs inside the transaction of a store, so that it happens together with the store's own change.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::Transaction;

use crate::{
    error::{Error, Result},
    model::{Claim, Enqueued, Event, JobId, NewJob, State, shorten},
};

/// How often a job is looked for that has the key when inserting finds it taken, and then it is gone.
const ENQUEUE_ATTEMPTS: u32 = 3;

/// A transaction of a database that has the tables of the queue: `Transaction<Sqlite>` and `Transaction<Postgres>`.
/// Stores call the functions of this crate instead: [`enqueue_in`], [`complete_in`], [`cancel_in`].
#[async_trait]
pub trait JobTransaction: Send {
    #[doc(hidden)]
    async fn enqueue_job(&mut self, job: &NewJob, now: Timestamp) -> Result<Enqueued>;
    #[doc(hidden)]
    async fn end_attempt(&mut self, claim: &Claim, end: End<'_>, now: Timestamp) -> Result<()>;
    #[doc(hidden)]
    async fn cancel_job(&mut self, job: JobId, now: Timestamp) -> Result<bool>;
    #[doc(hidden)]
    async fn log_event(&mut self, claim: &Claim, event: Event, note: Note<'_>, now: Timestamp) -> Result<()>;
}

/// Enqueues a job in the caller's transaction. After the commit, [`crate::Wake::notify`] makes it start at once.
pub async fn enqueue_in<T: JobTransaction>(tx: &mut T, job: &NewJob, now: Timestamp) -> Result<Enqueued> {
    tx.enqueue_job(job, now).await
}

/// Completes the job of a running handler in the transaction that stores its effect: both last, or neither. The handler
/// then returns [`crate::Outcome::Settled`]. After [`Error::Stale`] the transaction must be dropped.
pub async fn complete_in<T: JobTransaction>(tx: &mut T, claim: &Claim, now: Timestamp) -> Result<()> {
    tx.end_attempt(claim, End::DONE, now).await
}

/// Calls a job off, running or not; whether it was unfinished. A running handler is stopped at its next heartbeat.
pub async fn cancel_in<T: JobTransaction>(tx: &mut T, job: JobId, now: Timestamp) -> Result<bool> {
    tx.cancel_job(job, now).await
}

/// How an attempt ends.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub(crate) event: Event,
    pub(crate) state: State,
    /// When to try again; without it the time stays.
    pub(crate) run_at: Option<Timestamp>,
    /// Counted among the failures.
    pub(crate) error: Option<&'a str>,
}

impl End<'_> {
    pub(crate) const DONE: Self = Self {
        event: Event::Done,
        state: State::Done,
        run_at: None,
        error: None,
    };
}

/// What the log of attempts says beside the event.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Note<'a> {
    pub(crate) node: Option<&'a str>,
    pub(crate) error: Option<&'a str>,
}

#[trait_gen(Db -> sqlx::Sqlite, sqlx::Postgres)]
#[async_trait]
impl JobTransaction for Transaction<Db> {
    async fn enqueue_job(&mut self, job: &NewJob, now: Timestamp) -> Result<Enqueued> {
        let payload = job.check()?;
        for _ in 0..ENQUEUE_ATTEMPTS {
            let inserted = sqlx::query(
                "INSERT INTO job (id, queue, unique_key, payload, trace, priority, state, attempt, failures,
                                  max_attempts, losses, run_at, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, 'ready', 0, 0, $7, 0, $8, $9)
                 ON CONFLICT (queue, unique_key) WHERE finished_at IS NULL DO NOTHING",
            )
            .bind(job.id.to_string())
            .bind(&job.queue)
            .bind(job.key.as_deref())
            .bind(&payload)
            .bind(job.trace.as_deref())
            .bind(job.priority)
            .bind(i64::from(job.max_attempts))
            .bind(job.run_at.as_micros())
            .bind(now.as_micros())
            .execute(&mut **self)
            .await?;
            if inserted.rows_affected() > 0 {
                return Ok(Enqueued {
                    id: job.id,
                    created: true,
                });
            }
            let existing: Option<String> =
                sqlx::query_scalar("SELECT id FROM job WHERE queue = $1 AND unique_key = $2 AND finished_at IS NULL")
                    .bind(&job.queue)
                    .bind(job.key.as_deref())
                    .fetch_optional(&mut **self)
                    .await?;
            if let Some(id) = existing {
                let id = parse_id(&id)?;
                return Ok(Enqueued { id, created: false });
            }
        }
        let key = job.key.clone().unwrap_or_default();
        Err(Error::Contended { key })
    }

    async fn end_attempt(&mut self, claim: &Claim, end: End<'_>, now: Timestamp) -> Result<()> {
        let error = end.error.map(shorten);
        let finished_at = if end.state.is_finished() {
            Some(now.as_micros())
        } else {
            None
        };
        let ended = sqlx::query(
            "UPDATE job SET state = $3, finished_at = $4, run_at = COALESCE($5, run_at), error = COALESCE($6, error),
                            failures = failures + $7, node = NULL, lease_until = NULL
             WHERE id = $1 AND attempt = $2 AND state = 'running'",
        )
        .bind(claim.job.to_string())
        .bind(claim.attempt)
        .bind(end.state.as_str())
        .bind(finished_at)
        .bind(end.run_at.map(Timestamp::as_micros))
        .bind(error)
        .bind(i64::from(error.is_some()))
        .execute(&mut **self)
        .await?;
        if ended.rows_affected() == 0 {
            return Err(Error::Stale(*claim));
        }
        self.log_event(claim, end.event, Note { node: None, error }, now).await
    }

    async fn cancel_job(&mut self, job: JobId, now: Timestamp) -> Result<bool> {
        let attempt: Option<i64> = sqlx::query_scalar(
            "UPDATE job SET state = 'cancelled', finished_at = $2, node = NULL, lease_until = NULL
             WHERE id = $1 AND finished_at IS NULL RETURNING attempt",
        )
        .bind(job.to_string())
        .bind(now.as_micros())
        .fetch_optional(&mut **self)
        .await?;
        match attempt {
            Some(attempt) => {
                let claim = Claim { job, attempt };
                self.log_event(&claim, Event::Cancelled, Note::default(), now).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn log_event(&mut self, claim: &Claim, event: Event, note: Note<'_>, now: Timestamp) -> Result<()> {
        sqlx::query(
            "INSERT INTO job_attempt (job_id, attempt, event, at, node, error) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(claim.job.to_string())
        .bind(claim.attempt)
        .bind(event.as_str())
        .bind(now.as_micros())
        .bind(note.node)
        .bind(note.error)
        .execute(&mut **self)
        .await?;
        Ok(())
    }
}

pub(crate) fn parse_id(text: &str) -> Result<JobId> {
    text.parse()
        .map_err(|_| modelyard_db::Error::value("id of a job", text).into())
}
