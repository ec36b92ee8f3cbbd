//! A durable queue of work inside each service's own database, so that storing a state and asking for what follows from
//! it is one transaction. It owns the tables `job` and `job_attempt`; what a payload means, its queues' owners know.
//!
//! - A job is claimed for a lease, which heartbeats renew. A lease that has run out can be claimed by anybody, and a node
//!   that starts anew gives its own leases back at once ([`JobStore::release_node`]).
//! - Every claim counts [`Claim::attempt`] up. Whoever reports must name the present number; one who was away too long is
//!   told [`Error::Stale`], and changes nothing. So a job can be *started* twice, but only one report counts. An effect
//!   in the same database becomes exactly one when the handler completes its job in the transaction of the effect
//!   ([`complete_in`], [`Outcome::Settled`]); any other effect must be idempotent.
//! - An attempt that ends with an error is tried again until `max_attempts`; one that ends without a word (a crash, a lost
//!   lease) until [`MAX_LOSSES`], because that is rarely the job's fault. Then the job is failed.
//! - A key is unique among the unfinished jobs of a queue: enqueuing again finds the one that is there. A handler that
//!   enqueues its own successor under the same key must complete its job first, in the same transaction.
//! - Polling is the truth. [`Wake`] is a hint that makes it quick: [`JobStore::enqueue`] gives it by itself; after a
//!   commit with [`enqueue_in`] the caller does.
//!
//! ```text
//! // In a store, stamped for both databases:
//! let mut tx = self.pools.begin().await?;
//! // .. store the new state ..
//! modelyard_jobs::enqueue_in(&mut tx, &NewJob::new(JobId::from(ids.next()), "step", payload, now), now).await?;
//! tx.commit().await?;
//! self.jobs.wake().notify();
//!
//! // At the start of a service:
//! database.migrate(&[modelyard_jobs::MIGRATIONS, MIGRATIONS]).await?;
//! let jobs = modelyard_jobs::open(&database);
//! jobs.release_node(&ctx.node, ctx.clock.now()).await?;
//! let worker = Worker::new(jobs.clone(), handler, ctx.clock.clone(), &ctx.node, WorkerConfig::new(["step"]));
//! ctx.lifecycle.spawn("steps", worker.run(ctx.lifecycle.soft()));
//! ctx.lifecycle.spawn("job retention", retain(jobs, ctx.clock.clone(), KEEP_FINISHED, ctx.lifecycle.soft()));
//! ```

pub mod audit;
mod backoff;
mod error;
mod measure;
mod model;
mod retention;
mod store;
mod transaction;
mod wake;
mod worker;

use modelyard_db::{Migrations, migrations};

pub use backoff::Backoff;
pub use error::{Error, Result};
pub use model::{
    AttemptEvent, Claim, ClaimRequest, Counts, DEFAULT_MAX_ATTEMPTS, Enqueued, Event, Job, JobId, JobRecord,
    MAX_ATTEMPTS, MAX_ERROR_BYTES, MAX_KEY_BYTES, MAX_LOSSES, MAX_PAYLOAD_BYTES, MAX_QUEUE_BYTES, NewJob, State,
};
pub use retention::{KEEP_FINISHED, retain};
pub use store::{JobStore, open};
pub use transaction::{JobTransaction, cancel_in, complete_in, enqueue_in};
pub use wake::Wake;
pub use worker::{Handler, IDLE_POLL, MAX_CONCURRENCY, Outcome, Running, Worker, WorkerConfig};

/// The tables of the queue, for the database of each service that has one.
pub const MIGRATIONS: Migrations = migrations!("jobs", ["0001_job"]);
