//! Runs and their steps.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::{Timestamp, id::IdSource};
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use modelyard_jobs::{JobId, JobTransaction, NewJob, audit::delivery, cancel_in, complete_in, enqueue_in};
use serde_json::{Map, Value, json};

use super::{
    HEAVY_QUEUE, LIGHT_QUEUE, LostStep, NewRun, Page, RunFilter, RunStore, SqlStore, Started, StepInput, Transition,
    rows::{RunRow, RunStateRow, StepRow, StepStateRow, count, read_json},
};
use crate::{
    error::{Error, Result},
    model::{
        Command, Event, PipelineRun, PipelineRunPage, Plan, Progress, RunState, RunStatus, StepState, TriggerRef,
        decide,
    },
};

/// How often one attempt of a step may meet a service that is away, each time for as long as an op is patient, before that
/// counts as a failure of the step.
const TRANSIENT_ATTEMPTS: u32 = 20;

/// What the queue's error is called when it gave none.
const LOST: &str = "its attempts kept ending without a word";

/// The columns of a [`RunRow`].
macro_rules! run_columns {
    () => {
        "id, project, pipeline, requested, parameters, trigger_name, trigger_key, status, error, created_at, started_at,
         finished_at"
    };
}

/// The job of an attempt.
fn step_job(run_id: &str, plan: &Plan, step: usize, attempt: u32, id: JobId, run_at: Timestamp) -> NewJob {
    let planned = plan.steps.get(step);
    let queue = if planned.is_some_and(|step| step.heavy) {
        HEAVY_QUEUE
    } else {
        LIGHT_QUEUE
    };
    let name = planned.map_or("", |step| step.name.as_str());
    let payload = json!({"run": run_id, "step": step, "attempt": attempt});
    NewJob {
        key: Some(format!("{run_id}/{name}/{attempt}")),
        max_attempts: TRANSIENT_ATTEMPTS,
        ..NewJob::new(id, queue, payload, run_at)
    }
}

/// Carries out what was decided, except for the rows of the run: enqueues and stops. The answer is each step's job.
async fn carry_out<T: JobTransaction>(
    tx: &mut T,
    run_id: &str,
    plan: &Plan,
    commands: &[Command],
    mut jobs: Vec<Option<JobId>>,
    ids: &dyn IdSource,
    now: Timestamp,
) -> Result<Vec<Option<JobId>>> {
    for command in commands {
        match command {
            Command::Enqueue { step, attempt, after } => {
                let job = step_job(run_id, plan, *step, *attempt, JobId(ids.next()), now + *after);
                let enqueued = enqueue_in(tx, &job, now).await?;
                if let Some(place) = jobs.get_mut(*step) {
                    *place = Some(enqueued.id);
                }
            }
            Command::Stop { step } => {
                if let Some(job) = jobs.get(*step).copied().flatten() {
                    cancel_in(tx, job, now).await?;
                }
            }
        }
    }
    Ok(jobs)
}

/// The statements of a run inside a transaction.
#[async_trait]
trait RunTransaction {
    async fn insert_run(&mut self, run: &NewRun, state: &RunState) -> Result<bool>;
    async fn insert_step(&mut self, run: &NewRun, step: usize, state: &StepState, job: Option<JobId>) -> Result<()>;
    async fn lock_state(&mut self, run_id: &str) -> Result<Option<(Plan, RunState, Vec<Option<JobId>>)>>;
    async fn update_run(&mut self, run_id: &str, state: &RunState) -> Result<()>;
    async fn update_step(
        &mut self,
        run_id: &str,
        step: usize,
        state: &StepState,
        job: Option<JobId>,
        outputs: Option<String>,
    ) -> Result<()>;
    async fn find_same(&mut self, run: &NewRun) -> Result<Option<RunRow>>;
    async fn steps(&mut self, run_id: &str, with_outputs: bool) -> Result<Vec<StepRow>>;
}

#[trait_gen(Db -> sqlx::Sqlite, sqlx::Postgres)]
#[async_trait]
impl RunTransaction for Transaction<Db> {
    async fn insert_run(&mut self, run: &NewRun, state: &RunState) -> Result<bool> {
        let plan = serde_json::to_string(&run.plan).map_err(|_| modelyard_db::Error::value("plan", &run.id))?;
        let inserted = sqlx::query(
            "INSERT INTO pipeline_run (id, project, pipeline, plan, requested, parameters, trigger_name, trigger_key, event,
                                       idempotency_key, status, revision, created_at, acting_for)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13) ON CONFLICT DO NOTHING",
        )
        .bind(&run.id)
        .bind(&run.project)
        .bind(&run.pipeline)
        .bind(plan)
        .bind(Value::Object(run.requested.clone()).to_string())
        .bind(Value::Object(run.parameters.clone()).to_string())
        .bind(run.trigger.as_ref().map(|trigger| trigger.name.clone()))
        .bind(run.trigger.as_ref().map(|trigger| trigger.key.clone()))
        .bind(run.event.as_ref().map(Value::to_string))
        .bind(run.idempotency_key.clone())
        .bind(state.status.as_str())
        .bind(run.created_at.as_micros())
        .bind(&run.acting_for)
        .execute(&mut **self)
        .await?;
        Ok(inserted.rows_affected() > 0)
    }

    async fn insert_step(&mut self, run: &NewRun, step: usize, state: &StepState, job: Option<JobId>) -> Result<()> {
        let planned = &run.plan.steps[step];
        sqlx::query(
            "INSERT INTO pipeline_step (run_id, position, name, op, status, attempt, job_id) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&run.id)
        .bind(step as i64)
        .bind(&planned.name)
        .bind(&planned.op)
        .bind(state.status.as_str())
        .bind(i64::from(state.attempt))
        .bind(job.map(|job| job.to_string()))
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn lock_state(&mut self, run_id: &str) -> Result<Option<(Plan, RunState, Vec<Option<JobId>>)>> {
        let run: Option<RunStateRow> = sqlx::query_as(
            "UPDATE pipeline_run SET revision = revision + 1 WHERE id = $1
             RETURNING plan, status, error, started_at, finished_at",
        )
        .bind(run_id)
        .fetch_optional(&mut **self)
        .await?;
        let Some(run) = run else {
            return Ok(None);
        };
        let steps: Vec<StepStateRow> = sqlx::query_as(
            "SELECT status, attempt, error, started_at, finished_at, job_id FROM pipeline_step
             WHERE run_id = $1 ORDER BY position",
        )
        .bind(run_id)
        .fetch_all(&mut **self)
        .await?;
        let plan = read_json("plan of a run", &run.plan)?;
        let (state, jobs) = run.into_state(steps)?;
        Ok(Some((plan, state, jobs)))
    }

    async fn update_run(&mut self, run_id: &str, state: &RunState) -> Result<()> {
        sqlx::query("UPDATE pipeline_run SET status = $2, error = $3, started_at = $4, finished_at = $5 WHERE id = $1")
            .bind(run_id)
            .bind(state.status.as_str())
            .bind(state.error.clone())
            .bind(state.started_at.map(Timestamp::as_micros))
            .bind(state.finished_at.map(Timestamp::as_micros))
            .execute(&mut **self)
            .await?;
        Ok(())
    }

    async fn update_step(
        &mut self,
        run_id: &str,
        step: usize,
        state: &StepState,
        job: Option<JobId>,
        outputs: Option<String>,
    ) -> Result<()> {
        // What a step said while it worked means nothing once it has ended.
        sqlx::query(
            "UPDATE pipeline_step SET status = $3, attempt = $4, error = $5, started_at = $6, finished_at = $7, job_id = $8,
                                      outputs = COALESCE($9, outputs),
                                      progress = CASE WHEN CAST($7 AS BIGINT) IS NULL THEN progress ELSE NULL END
             WHERE run_id = $1 AND position = $2",
        )
        .bind(run_id)
        .bind(step as i64)
        .bind(state.status.as_str())
        .bind(i64::from(state.attempt))
        .bind(state.error.clone())
        .bind(state.started_at.map(Timestamp::as_micros))
        .bind(state.finished_at.map(Timestamp::as_micros))
        .bind(job.map(|job| job.to_string()))
        .bind(outputs)
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn find_same(&mut self, run: &NewRun) -> Result<Option<RunRow>> {
        let row = sqlx::query_as(concat!(
            "SELECT ",
            run_columns!(),
            " FROM pipeline_run WHERE project = $1 AND ((trigger_name = $2 AND trigger_key = $3) OR idempotency_key = $4)"
        ))
        .bind(&run.project)
        .bind(run.trigger.as_ref().map(|trigger| trigger.name.clone()))
        .bind(run.trigger.as_ref().map(|trigger| trigger.key.clone()))
        .bind(run.idempotency_key.clone())
        .fetch_optional(&mut **self)
        .await?;
        Ok(row)
    }

    async fn steps(&mut self, run_id: &str, with_outputs: bool) -> Result<Vec<StepRow>> {
        let rows = sqlx::query_as(
            "SELECT name, op, status, attempt, progress, CASE WHEN $2 = 1 THEN outputs ELSE NULL END AS outputs, error,
                    started_at, finished_at
             FROM pipeline_step WHERE run_id = $1 ORDER BY position",
        )
        .bind(run_id)
        .bind(i64::from(with_outputs))
        .fetch_all(&mut **self)
        .await?;
        Ok(rows)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl RunStore for SqlStore<P> {
    async fn create_run(&self, run: &NewRun, ids: &dyn IdSource) -> Result<Started> {
        let now = run.created_at;
        let (state, commands) =
            decide(&run.plan, &RunState::new(&run.plan), &Event::Created, now).map_err(|_| Error::Stale)?;
        let mut tx = self.pools.begin().await?;
        if !tx.insert_run(run, &state).await? {
            let row = tx
                .find_same(run)
                .await?
                .ok_or_else(|| Error::from(sqlx::Error::RowNotFound))?;
            let steps = tx.steps(&row.id, true).await?;
            let requested = row.requested()?;
            let run = row.into_run(steps)?;
            return Ok(Started::Existing { run, requested });
        }
        let jobs = vec![None; run.plan.steps.len()];
        let jobs = carry_out(&mut tx, &run.id, &run.plan, &commands, jobs, ids, now).await?;
        for (step, (step_state, job)) in state.steps.iter().zip(jobs).enumerate() {
            tx.insert_step(run, step, step_state, job).await?;
        }
        let mut event = run.audit.clone();
        event.add_detail("pipeline_run", run.id.as_str());
        enqueue_in(&mut tx, &delivery(&event)?, now).await?;
        tx.commit().await?;
        self.wake.notify();
        let created = self.find_run(&run.project, &run.id).await?;
        created
            .map(Started::Created)
            .ok_or_else(|| Error::from(sqlx::Error::RowNotFound))
    }

    async fn transition(&self, transition: &Transition<'_>) -> Result<RunState> {
        let (run_id, now) = (transition.run_id, transition.now);
        let mut tx = self.pools.begin().await?;
        let (plan, before, jobs) = tx.lock_state(run_id).await?.ok_or(Error::Stale)?;
        let (after, commands) = decide(&plan, &before, &transition.event, now).map_err(|_| Error::Stale)?;
        if let Some(claim) = &transition.completes {
            complete_in(&mut tx, claim, now).await?;
        }
        let jobs = carry_out(&mut tx, run_id, &plan, &commands, jobs, transition.ids, now).await?;
        let succeeded = match transition.event {
            Event::StepSucceeded { step, .. } => Some(step),
            _ => None,
        };
        for (step, state) in after.steps.iter().enumerate() {
            if *state != before.steps[step] {
                let outputs = transition
                    .outputs
                    .filter(|_| succeeded == Some(step))
                    .map(Value::to_string);
                tx.update_step(run_id, step, state, jobs[step], outputs).await?;
            }
        }
        if (after.status, after.started_at, after.finished_at) != (before.status, before.started_at, before.finished_at)
        {
            tx.update_run(run_id, &after).await?;
        }
        if let Some(event) = transition.audit {
            enqueue_in(&mut tx, &delivery(event)?, now).await?;
        }
        tx.commit().await?;
        if !commands.is_empty() || transition.audit.is_some() {
            self.wake.notify();
        }
        Ok(after)
    }

    async fn step_input(&self, run_id: &str, step: usize, attempt: u32) -> Result<Option<StepInput>> {
        let mut tx = self.pools.snapshot().await?;
        let run: Option<(String, String, String, String, String)> =
            sqlx::query_as("SELECT project, pipeline, plan, parameters, acting_for FROM pipeline_run WHERE id = $1")
                .bind(run_id)
                .fetch_optional(&mut *tx)
                .await?;
        let Some((project, pipeline, plan, parameters, acting_for)) = run else {
            return Ok(None);
        };
        let plan: Plan = read_json("plan of a run", &plan)?;
        let needs = plan.steps.get(step).map_or(&[][..], |step| &step.needs);
        let first = needs.iter().min().copied().unwrap_or(step).min(step);
        let last = needs.iter().max().copied().unwrap_or(step).max(step);
        let rows: Vec<(i64, String, String, i64, Option<String>)> = sqlx::query_as(
            "SELECT position, name, status, attempt, outputs FROM pipeline_step
             WHERE run_id = $1 AND position BETWEEN $2 AND $3",
        )
        .bind(run_id)
        .bind(first as i64)
        .bind(last as i64)
        .fetch_all(&mut *tx)
        .await?;
        let mut outputs = Map::new();
        let mut is_live = false;
        for (position, name, status, at, given) in rows {
            let position = position as usize;
            if position == step {
                is_live = count(at) == attempt && matches!(status.as_str(), "queued" | "running");
            }
            if let (true, Some(given)) = (needs.contains(&position), given) {
                outputs.insert(name, read_json("outputs of a step", &given)?);
            }
        }
        Ok(Some(StepInput {
            project,
            pipeline,
            parameters: read_json("parameters of a run", &parameters)?,
            acting_for,
            outputs,
            is_live,
            plan,
        }))
    }

    async fn record_progress(&self, run_id: &str, step: usize, attempt: u32, progress: &Progress) -> Result<()> {
        let text =
            serde_json::to_string(progress).map_err(|_| modelyard_db::Error::value("progress", &progress.message))?;
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "UPDATE pipeline_step SET progress = $4
             WHERE run_id = $1 AND position = $2 AND attempt = $3 AND status = 'running'",
        )
        .bind(run_id)
        .bind(step as i64)
        .bind(i64::from(attempt))
        .bind(text)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn find_fired(&self, project: &str, trigger: &TriggerRef) -> Result<Option<String>> {
        let query = sqlx::query_scalar(
            "SELECT id FROM pipeline_run WHERE project = $1 AND trigger_name = $2 AND trigger_key = $3",
        )
        .bind(project)
        .bind(&trigger.name)
        .bind(&trigger.key);
        Ok(query.fetch_optional(self.pools.reader()).await?)
    }

    async fn find_run(&self, project: &str, id: &str) -> Result<Option<PipelineRun>> {
        let mut tx = self.pools.snapshot().await?;
        let row: Option<RunRow> = sqlx::query_as(concat!(
            "SELECT ",
            run_columns!(),
            " FROM pipeline_run WHERE project = $1 AND id = $2"
        ))
        .bind(project)
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let steps = tx.steps(id, true).await?;
        row.into_run(steps).map(Some)
    }

    async fn list_runs(&self, project: &str, filter: RunFilter<'_>, page: Page<'_>) -> Result<PipelineRunPage> {
        let mut tx = self.pools.snapshot().await?;
        let mut rows: Vec<RunRow> = sqlx::query_as(concat!(
            "SELECT ",
            run_columns!(),
            " FROM pipeline_run
             WHERE project = $1 AND (CAST($2 AS TEXT) IS NULL OR pipeline = $2)
               AND (CAST($3 AS TEXT) IS NULL OR trigger_name = $3) AND (CAST($4 AS TEXT) IS NULL OR trigger_key = $4)
               AND (CAST($5 AS TEXT) IS NULL OR status = $5) AND (CAST($6 AS TEXT) IS NULL OR id < $6)
             ORDER BY id DESC LIMIT $7"
        ))
        .bind(project)
        .bind(filter.pipeline)
        .bind(filter.trigger)
        .bind(filter.trigger_key)
        .bind(filter.status.map(RunStatus::as_str))
        .bind(page.after)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&mut *tx)
        .await?;
        let more = rows.len() > page.limit as usize;
        rows.truncate(page.limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.clone());
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            let steps = tx.steps(&row.id, false).await?;
            items.push(row.into_run(steps)?);
        }
        Ok(PipelineRunPage { items, next_cursor })
    }

    async fn lost_steps(&self, limit: u32) -> Result<Vec<LostStep>> {
        let rows: Vec<(String, i64, i64, Option<String>)> = sqlx::query_as(
            "SELECT s.run_id, s.position, s.attempt, j.error FROM pipeline_step s JOIN job j ON j.id = s.job_id
             WHERE s.status IN ('queued', 'running') AND j.state = 'failed' LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        let lost = rows.into_iter().map(|(run_id, step, attempt, error)| LostStep {
            run_id,
            step: step as usize,
            attempt: count(attempt),
            error: error.unwrap_or_else(|| LOST.to_owned()),
        });
        Ok(lost.collect())
    }

    async fn remove_finished(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query(
            "DELETE FROM pipeline_run WHERE id IN (
                 SELECT id FROM pipeline_run WHERE finished_at IS NOT NULL AND finished_at < $1
                 ORDER BY finished_at LIMIT $2)",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }
}
