//! Declaring pipelines.

use modelyard_auth::{Action, Caller, Kind, Resource};
use modelyard_common::name::check_name;

use super::Orchestrator;
use crate::{
    error::{Error, Result},
    model::{AppliedResource, PipelineSpec, Plan, ResourceKind, plan},
};

impl Orchestrator {
    /// Declares a pipeline. One that cannot run is refused with everything that is wrong with it, and nothing is stored.
    pub(crate) async fn put_pipeline(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        spec: &PipelineSpec,
    ) -> Result<AppliedResource> {
        caller.authorize(Action::PipelineWrite, Resource::named(Kind::Pipeline, project, name))?;
        check_name(ResourceKind::Pipeline.described(), name)?;
        plan(spec, &self.engine.ops).map_err(|problems| Error::Spec {
            what: ResourceKind::Pipeline.word(),
            name: name.to_owned(),
            problems,
        })?;
        let spec = serde_json::to_value(spec).map_err(|error| Error::request(error.to_string()))?;
        self.declare(caller, project, ResourceKind::Pipeline, name, spec).await
    }

    /// A pipeline and its plan, as they are now.
    pub(super) async fn planned(&self, project: &str, name: &str) -> Result<(PipelineSpec, Plan)> {
        let resource = self.find_resource(project, ResourceKind::Pipeline, name).await?;
        let refuse = |problems: Vec<String>| Error::Spec {
            what: ResourceKind::Pipeline.word(),
            name: name.to_owned(),
            problems,
        };
        let spec: PipelineSpec =
            serde_json::from_value(resource.spec).map_err(|error| refuse(vec![error.to_string()]))?;
        let plan = plan(&spec, &self.engine.ops).map_err(refuse)?;
        Ok((spec, plan))
    }
}
