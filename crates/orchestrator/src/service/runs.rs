//! Starting, watching and cancelling runs.

use modelyard_auth::{
    Action, Caller, Kind, Resource,
    audit::{NewEvent, Operation},
};
use modelyard_common::error::{ErrorKind, Fault};
use serde_json::{Map, Value};

use super::{Orchestrator, page};
use crate::{
    error::{Error, Result},
    model::{
        MAX_PARAMETERS_BYTES, PipelineRun, PipelineRunPage, ResourceKind, RunStatus, TriggerRef, check_parameters,
    },
    store::{NewRun, RunFilter, Started},
};

/// The longest idempotency key.
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;

/// What a run is started with, apart from its pipeline.
pub(super) struct Start {
    pub(super) parameters: Map<String, Value>,
    pub(super) trigger: Option<TriggerRef>,
    pub(super) event: Option<Value>,
    pub(super) idempotency_key: Option<String>,
    /// For whom the run works.
    pub(super) acting_for: String,
    /// What the audit chain is told.
    pub(super) audit: NewEvent,
}

/// Which runs a caller wants to see.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunQuery {
    pub(crate) pipeline: Option<String>,
    pub(crate) trigger: Option<String>,
    pub(crate) trigger_key: Option<String>,
    pub(crate) status: Option<RunStatus>,
    pub(crate) limit: Option<u32>,
    pub(crate) cursor: Option<String>,
}

impl Orchestrator {
    /// Starts a pipeline; whether the run is new, or the one of an earlier call with the same idempotency key.
    pub(crate) async fn start_run(
        &self,
        caller: &Caller,
        project: &str,
        pipeline: &str,
        parameters: Map<String, Value>,
        idempotency_key: Option<String>,
    ) -> Result<(bool, PipelineRun)> {
        let resource = Resource::named(Kind::Pipeline, project, pipeline);
        caller.authorize(Action::PipelineRun, resource)?;
        if idempotency_key
            .as_ref()
            .is_some_and(|key| key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY_BYTES)
        {
            return Err(Error::request(format!(
                "idempotency_key must have 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes: leave it out, or send another"
            )));
        }
        let start = Start {
            parameters: parameters.clone(),
            trigger: None,
            event: None,
            idempotency_key: idempotency_key.clone(),
            acting_for: caller.acting_for().to_string(),
            audit: caller.event(Action::PipelineRun, Operation::Create, &resource),
        };
        match self.create_run(project, pipeline, start).await? {
            Started::Created(run) => Ok((true, run)),
            Started::Existing { run, requested } if run.pipeline == pipeline && requested == parameters => {
                Ok((false, run))
            }
            Started::Existing { .. } => Err(Error::KeyReused(idempotency_key.unwrap_or_default())),
        }
    }

    pub(super) async fn create_run(&self, project: &str, pipeline: &str, start: Start) -> Result<Started> {
        let size = Value::Object(start.parameters.clone()).to_string().len();
        if size > MAX_PARAMETERS_BYTES {
            return Err(Error::request(format!(
                "the parameters have {size} bytes, and may have {MAX_PARAMETERS_BYTES}: store what is large as an artifact"
            )));
        }
        let (spec, plan) = self.planned(project, pipeline).await?;
        let parameters =
            check_parameters(&spec.parameters, &start.parameters).map_err(|problems| Error::Parameters {
                pipeline: pipeline.to_owned(),
                problems,
            })?;
        let run = NewRun {
            id: self.engine.ids.next().to_string(),
            project: project.to_owned(),
            pipeline: pipeline.to_owned(),
            plan,
            requested: start.parameters,
            parameters,
            trigger: start.trigger,
            event: start.event,
            idempotency_key: start.idempotency_key,
            acting_for: start.acting_for,
            audit: start.audit,
            created_at: self.engine.clock.now(),
        };
        let started = self.engine.stores.runs.create_run(&run, &*self.engine.ids).await?;
        if let Started::Created(run) = &started {
            tracing::info!(run = run.id, pipeline, "pipeline run created");
        }
        Ok(started)
    }

    /// A run.
    pub(crate) async fn get_run(&self, caller: &Caller, project: &str, id: &str) -> Result<PipelineRun> {
        caller.authorize(Action::PipelineRead, Resource::named(Kind::PipelineRun, project, id))?;
        self.find_run(project, id).await
    }

    async fn find_run(&self, project: &str, id: &str) -> Result<PipelineRun> {
        let found = self.engine.stores.runs.find_run(project, id).await?;
        found.ok_or_else(|| Error::NotFound {
            what: "pipeline run",
            name: id.chars().take(64).collect(),
            remedy: "list the runs with GET pipeline-runs; old ones are removed after a while",
        })
    }

    /// Runs, the newest first.
    pub(crate) async fn list_runs(&self, caller: &Caller, project: &str, query: &RunQuery) -> Result<PipelineRunPage> {
        caller.authorize(Action::PipelineRead, Resource::project(project))?;
        let page = page(query.limit, query.cursor.as_deref())?;
        let filter = RunFilter {
            pipeline: query.pipeline.as_deref(),
            trigger: query.trigger.as_deref(),
            trigger_key: query.trigger_key.as_deref(),
            status: query.status,
        };
        self.engine.stores.runs.list_runs(project, filter, page).await
    }

    /// Calls a run off. Cancelling a cancelled run changes nothing.
    pub(crate) async fn cancel_run(&self, caller: &Caller, project: &str, id: &str) -> Result<PipelineRun> {
        let resource = Resource::named(Kind::PipelineRun, project, id);
        caller.authorize(Action::PipelineRun, resource)?;
        let run = self.find_run(project, id).await?;
        let audit = caller.event(Action::PipelineRun, Operation::Cancel, &resource);
        match self.engine.call_off(&run.id, &audit).await {
            Ok(_) => {
                self.engine.cancellations.cancel(&run.id);
                self.find_run(project, id).await
            }
            // It has ended, perhaps since it was read.
            Err(Error::Stale) => {
                let run = self.find_run(project, id).await?;
                if run.status == RunStatus::Cancelled {
                    return Ok(run);
                }
                Err(Error::Finished {
                    id: run.id,
                    status: run.status.as_str(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The pipeline of a trigger is not there: that is about the trigger, not about the caller's request.
    pub(super) fn about_trigger(error: Error, trigger: &str, pipeline: &str) -> Error {
        match error {
            Error::NotFound { what, .. } if what == ResourceKind::Pipeline.word() => Error::NoPipeline {
                trigger: trigger.to_owned(),
                pipeline: pipeline.to_owned(),
            },
            error => {
                debug_assert!(error.kind() != ErrorKind::NotFound, "only the pipeline is looked for");
                error
            }
        }
    }
}
