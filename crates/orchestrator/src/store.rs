//! Pipelines, triggers and runs in the database. One method is one transaction.

mod resources;
mod rollouts;
mod rows;
mod runs;

use std::sync::Arc;

use async_trait::async_trait;
use modelyard_auth::audit::NewEvent;
use modelyard_common::{Timestamp, id::IdSource};
use modelyard_db::Database;
use modelyard_jobs::{Claim, JobStore, Wake};
use serde_json::{Map, Value};

use crate::{
    error::Result,
    model::{
        Event, Outcome, PipelineRun, PipelineRunPage, Plan, Progress, Resource, ResourceKind, Rollout, RunState,
        RunStatus, TriggerRef,
    },
};

/// The queue of steps that only call other services.
pub(crate) const LIGHT_QUEUE: &str = "step.light";
/// The queue of steps that compute.
pub(crate) const HEAVY_QUEUE: &str = "step.heavy";

/// Which part of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The last item of the page before.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: u32,
}

/// Declared resources.
#[async_trait]
pub trait ResourceStore: Send + Sync {
    /// Stores a resource. One that is there keeps `created_at`; one that is the same keeps all.
    async fn put_resource(&self, resource: &Resource, event: &NewEvent) -> Result<(Outcome, Resource)>;
    /// A resource, if it is there.
    async fn find_resource(&self, project: &str, kind: ResourceKind, name: &str) -> Result<Option<Resource>>;
    /// Resources of one kind by name; one more than the limit says that there are more.
    async fn list_resources(&self, project: &str, kind: ResourceKind, page: Page<'_>) -> Result<Vec<Resource>>;
    /// Removes a resource; whether it was there.
    async fn delete_resource(&self, project: &str, kind: ResourceKind, name: &str, event: &NewEvent) -> Result<bool>;
}

/// A run to be made.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id.
    pub id: String,
    /// The project.
    pub project: String,
    /// The pipeline.
    pub pipeline: String,
    /// Its steps.
    pub plan: Plan,
    /// The parameters as they were given.
    pub requested: Map<String, Value>,
    /// The parameters with the defaults.
    pub parameters: Map<String, Value>,
    /// What starts it.
    pub trigger: Option<TriggerRef>,
    /// The event that fired the trigger.
    pub event: Option<Value>,
    /// A key of the caller's for this run.
    pub idempotency_key: Option<String>,
    /// For whom it works.
    pub acting_for: String,
    /// What the audit chain is told.
    pub audit: NewEvent,
    /// Now.
    pub created_at: Timestamp,
}

/// What came of making a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Started {
    /// It is new, and its first steps wait for workers.
    Created(PipelineRun),
    /// The trigger was fired with this key before, or the idempotency key is known: this is the run of then.
    Existing {
        /// The run.
        run: PipelineRun,
        /// The parameters that were given then.
        requested: Map<String, Value>,
    },
}

/// Something that happened to a run.
pub struct Transition<'a> {
    /// The run.
    pub run_id: &'a str,
    /// What happened.
    pub event: Event,
    /// What the step gave, with [`Event::StepSucceeded`].
    pub outputs: Option<&'a Value>,
    /// The job that is done with this, in the same transaction.
    pub completes: Option<Claim>,
    /// What the audit chain is told.
    pub audit: Option<&'a NewEvent>,
    /// Now.
    pub now: Timestamp,
    /// Where the ids of new jobs come from.
    pub ids: &'a dyn IdSource,
}

/// What an attempt needs to know.
#[derive(Debug, Clone)]
pub struct StepInput {
    /// The project.
    pub project: String,
    /// The pipeline.
    pub pipeline: String,
    /// All steps.
    pub plan: Plan,
    /// The parameters.
    pub parameters: Map<String, Value>,
    /// For whom the run works.
    pub acting_for: String,
    /// The outputs of the steps that this one needs, by name.
    pub outputs: Map<String, Value>,
    /// Whether this attempt is the one that counts.
    pub is_live: bool,
}

/// Which runs are listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunFilter<'a> {
    /// Of one pipeline.
    pub pipeline: Option<&'a str>,
    /// Started by one trigger.
    pub trigger: Option<&'a str>,
    /// Started with one key.
    pub trigger_key: Option<&'a str>,
    /// In one status.
    pub status: Option<RunStatus>,
}

/// A step whose job was given up without a word from its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostStep {
    /// The run.
    pub run_id: String,
    /// The place of the step.
    pub step: usize,
    /// The attempt.
    pub attempt: u32,
    /// What the queue says.
    pub error: String,
}

/// Runs of pipelines.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Makes a run and enqueues its first steps, or finds the one with the same trigger key or idempotency key.
    async fn create_run(&self, run: &NewRun, ids: &dyn IdSource) -> Result<Started>;
    /// Moves a run: what [`crate::model::decide`] says is stored, and what follows is enqueued or stopped. The answer is the
    /// state after it. [`crate::Error::Stale`] when the attempt or the run is over; then nothing changes.
    async fn transition(&self, transition: &Transition<'_>) -> Result<RunState>;
    /// What an attempt of a step needs; none when the run is gone.
    async fn step_input(&self, run_id: &str, step: usize, attempt: u32) -> Result<Option<StepInput>>;
    /// Says how far an attempt is. Nothing happens when it is over.
    async fn record_progress(&self, run_id: &str, step: usize, attempt: u32, progress: &Progress) -> Result<()>;
    /// The run that a trigger started with a key.
    async fn find_fired(&self, project: &str, trigger: &TriggerRef) -> Result<Option<String>>;
    /// A run with its steps and their outputs.
    async fn find_run(&self, project: &str, id: &str) -> Result<Option<PipelineRun>>;
    /// Runs, the newest first, their steps without outputs.
    async fn list_runs(&self, project: &str, filter: RunFilter<'_>, page: Page<'_>) -> Result<PipelineRunPage>;
    /// Steps whose jobs the queue has given up because their attempts kept ending without a word.
    async fn lost_steps(&self, limit: u32) -> Result<Vec<LostStep>>;
    /// Removes at most `limit` runs that ended before `older_than`; how many.
    async fn remove_finished(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
}

/// Rollouts. Each comes with the number of its changes, which a change of it must know.
#[async_trait]
pub trait RolloutStore: Send + Sync {
    /// Makes a rollout, unless its endpoint has one of this revision.
    async fn begin_rollout(&self, rollout: &Rollout) -> Result<()>;
    /// Replaces a rollout, unless it was changed since; whether it was not. With what the audit chain is told of it, where
    /// somebody did it: what the rules do is told by the registry.
    async fn change_rollout(&self, rollout: &Rollout, change: i64, event: Option<&NewEvent>) -> Result<bool>;
    /// A rollout by its id.
    async fn find_rollout(&self, project: &str, id: &str) -> Result<Option<(Rollout, i64)>>;
    /// A rollout by the revision at which its routes came up.
    async fn find_rollout_of(&self, project: &str, endpoint: &str, revision: u64) -> Result<Option<(Rollout, i64)>>;
    /// The rollouts that are not over.
    async fn open_rollouts(&self) -> Result<Vec<(Rollout, i64)>>;
    /// Rollouts of a project, or of one endpoint, the newest first; one more than the limit says that there are more.
    async fn list_rollouts(&self, project: &str, endpoint: Option<&str>, page: Page<'_>) -> Result<Vec<Rollout>>;
}

/// The stores of an open database that has [`crate::MIGRATIONS`] and those of the queue.
#[derive(Clone)]
pub struct Stores {
    /// Pipelines and triggers.
    pub resources: Arc<dyn ResourceStore>,
    /// Runs.
    pub runs: Arc<dyn RunStore>,
    /// Rollouts.
    pub rollouts: Arc<dyn RolloutStore>,
    /// The queue.
    pub jobs: Arc<dyn JobStore>,
}

/// Opens the stores.
#[must_use]
pub fn open_stores(database: &Database) -> Stores {
    let jobs = modelyard_jobs::open(database);
    let wake = jobs.wake().clone();
    match database.clone() {
        Database::Sqlite(pools) => Stores::of(Arc::new(SqlStore { pools, wake }), jobs),
        Database::Postgres(pools) => Stores::of(Arc::new(SqlStore { pools, wake }), jobs),
    }
}

impl Stores {
    fn of<S: ResourceStore + RunStore + RolloutStore + 'static>(store: Arc<S>, jobs: Arc<dyn JobStore>) -> Self {
        Self {
            resources: Arc::clone(&store) as Arc<dyn ResourceStore>,
            rollouts: Arc::clone(&store) as Arc<dyn RolloutStore>,
            runs: store,
            jobs,
        }
    }
}

struct SqlStore<P> {
    pools: P,
    wake: Wake,
}
