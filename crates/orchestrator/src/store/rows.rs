//! Rows of runs and steps, and the types that they mean.

use modelyard_common::Timestamp;
use modelyard_jobs::JobId;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    error::Result,
    model::{PipelineRun, RunState, RunStatus, StepRun, StepState, StepStatus, TriggerRef},
};

pub(super) fn read_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    Ok(serde_json::from_str(text).map_err(|_| modelyard_db::Error::value(what, text))?)
}

pub(super) fn read_optional<T: DeserializeOwned>(what: &'static str, text: Option<&String>) -> Result<Option<T>> {
    text.map(|text| read_json(what, text)).transpose()
}

/// Numbers of steps and attempts are small and not negative.
pub(super) fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn time(micros: Option<i64>) -> Option<Timestamp> {
    micros.map(Timestamp::from_micros)
}

fn run_status(word: &str) -> Result<RunStatus> {
    Ok(RunStatus::parse(word).ok_or_else(|| modelyard_db::Error::value("status of a run", word))?)
}

fn step_status(word: &str) -> Result<StepStatus> {
    Ok(StepStatus::parse(word).ok_or_else(|| modelyard_db::Error::value("status of a step", word))?)
}

/// A run without its plan.
#[derive(sqlx::FromRow)]
pub(super) struct RunRow {
    pub(super) id: String,
    project: String,
    pipeline: String,
    requested: String,
    parameters: String,
    trigger_name: Option<String>,
    trigger_key: Option<String>,
    status: String,
    error: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

impl RunRow {
    pub(super) fn requested(&self) -> Result<Map<String, Value>> {
        read_json("parameters of a run", &self.requested)
    }

    pub(super) fn into_run(self, steps: Vec<StepRow>) -> Result<PipelineRun> {
        Ok(PipelineRun {
            parameters: read_json("parameters of a run", &self.parameters)?,
            status: run_status(&self.status)?,
            trigger: self
                .trigger_name
                .zip(self.trigger_key)
                .map(|(name, key)| TriggerRef { name, key }),
            created_at: Timestamp::from_micros(self.created_at),
            started_at: time(self.started_at),
            finished_at: time(self.finished_at),
            error: self.error,
            steps: steps.into_iter().map(StepRow::into_step).collect::<Result<_>>()?,
            id: self.id,
            project: self.project,
            pipeline: self.pipeline,
        })
    }
}

/// A step as it is shown.
#[derive(sqlx::FromRow)]
pub(super) struct StepRow {
    name: String,
    op: String,
    status: String,
    attempt: i64,
    progress: Option<String>,
    outputs: Option<String>,
    error: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

impl StepRow {
    fn into_step(self) -> Result<StepRun> {
        Ok(StepRun {
            status: step_status(&self.status)?,
            attempt: count(self.attempt),
            progress: read_optional("progress of a step", self.progress.as_ref())?,
            outputs: read_optional("outputs of a step", self.outputs.as_ref())?,
            error: self.error,
            started_at: time(self.started_at),
            finished_at: time(self.finished_at),
            name: self.name,
            op: self.op,
        })
    }
}

/// What deciding needs of a run.
#[derive(sqlx::FromRow)]
pub(super) struct RunStateRow {
    pub(super) plan: String,
    status: String,
    error: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

/// What deciding needs of a step.
#[derive(sqlx::FromRow)]
pub(super) struct StepStateRow {
    status: String,
    attempt: i64,
    error: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    job_id: Option<String>,
}

impl RunStateRow {
    /// The state, and the job of each step's latest attempt.
    pub(super) fn into_state(self, steps: Vec<StepStateRow>) -> Result<(RunState, Vec<Option<JobId>>)> {
        let mut jobs = Vec::with_capacity(steps.len());
        let mut states = Vec::with_capacity(steps.len());
        for step in steps {
            let job = step.job_id.as_ref().map(|id| {
                id.parse::<JobId>()
                    .map_err(|_| modelyard_db::Error::value("id of a job", id))
            });
            jobs.push(job.transpose()?);
            states.push(StepState {
                status: step_status(&step.status)?,
                attempt: count(step.attempt),
                error: step.error,
                started_at: time(step.started_at),
                finished_at: time(step.finished_at),
            });
        }
        let state = RunState {
            status: run_status(&self.status)?,
            error: self.error,
            started_at: time(self.started_at),
            finished_at: time(self.finished_at),
            steps: states,
        };
        Ok((state, jobs))
    }
}
