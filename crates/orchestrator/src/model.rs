//! What pipelines, runs, triggers and rollouts are. Pure: no database, no network, no time of its own.

mod pipeline;
mod plan;
mod resource;
mod rollout;
mod run;
mod state;
mod template;
mod trigger;

pub use pipeline::{
    MAX_ATTEMPTS, MAX_PARAMETERS, MAX_PARAMETERS_BYTES, MAX_SPEC_BYTES, MAX_STEPS, PipelineSpec, RetrySpec, StepSpec,
    check_parameters,
};
pub(crate) use plan::parse_duration;
pub use plan::{OpCatalog, OpShape, Plan, PlannedStep, plan};
pub use resource::{AppliedResource, Outcome, Resource, ResourceKind, ResourcePage};
pub use rollout::{Counts, Decision, Rollout, RolloutGuard, RolloutPage, RolloutRules, RolloutState, Traffic};
pub use run::{MAX_OUTPUT_BYTES, PipelineRun, PipelineRunPage, Progress, RunStatus, StepRun, StepStatus, TriggerRef};
pub use state::{Command, Event, RunState, StepState, decide};
pub use template::{Reference, Scope, TemplateError, references, render};
pub use trigger::{MAX_EVENT_BYTES, MAX_KEY_BYTES, TriggerSpec};
