//! Declaring and firing triggers.

use modelyard_auth::{
    ActingFor, Action, Caller, Kind, Resource,
    audit::{NewEvent, Operation},
};
use modelyard_common::name::check_name;
use serde_json::{Map, Value};

use super::{Orchestrator, runs::Start};
use crate::{
    error::{Error, Result},
    measure,
    model::{
        AppliedResource, MAX_EVENT_BYTES, MAX_KEY_BYTES, Resource as DeclaredResource, ResourceKind, Scope, TriggerRef,
        TriggerSpec, check_parameters, render,
    },
    store::Started,
};

struct EventScope<'a> {
    event: &'a Value,
}

impl Scope for EventScope<'_> {
    fn parameter(&self, _: &str) -> Option<&Value> {
        None
    }

    fn outputs(&self, _: &str) -> Option<&Value> {
        None
    }

    fn event(&self) -> Option<&Value> {
        Some(self.event)
    }
}

impl Orchestrator {
    /// Declares a trigger. Its pipeline need not exist yet; where it does, the parameters must fit it.
    pub(crate) async fn put_trigger(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        spec: &TriggerSpec,
    ) -> Result<AppliedResource> {
        caller.authorize(Action::TriggerWrite, Resource::named(Kind::Trigger, project, name))?;
        // What it starts works with the rights of whoever declares it.
        caller.authorize(
            Action::PipelineRun,
            Resource::named(Kind::Pipeline, project, &spec.pipeline),
        )?;
        check_name(ResourceKind::Trigger.described(), name)?;
        let mut problems = spec.problems();
        if problems.is_empty() {
            problems.extend(self.parameter_problems(project, spec).await?);
        }
        if !problems.is_empty() {
            return Err(Error::Spec {
                what: ResourceKind::Trigger.word(),
                name: name.to_owned(),
                problems,
            });
        }
        let spec = serde_json::to_value(spec).map_err(|error| Error::request(error.to_string()))?;
        self.declare(caller, project, ResourceKind::Trigger, name, spec).await
    }

    /// What is wrong with the names of the parameters, and with the values that do not come from the event.
    async fn parameter_problems(&self, project: &str, spec: &TriggerSpec) -> Result<Vec<String>> {
        let declared = match self.planned(project, &spec.pipeline).await {
            Ok((pipeline, _)) => pipeline.parameters,
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let given = spec.parameters.iter().map(|(name, value)| {
            let comes_from_event = !crate::model::references(value).0.is_empty();
            let default = || declared.get(name).cloned().unwrap_or_default();
            (name.clone(), if comes_from_event { default() } else { value.clone() })
        });
        Ok(check_parameters(&declared, &given.collect()).err().unwrap_or_default())
    }

    /// Starts the pipeline of a trigger for one event. The same key gives the same run, for ever.
    pub(crate) async fn fire_trigger(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        key: &str,
        event: &str,
    ) -> Result<String> {
        caller.authorize(Action::TriggerFire, Resource::named(Kind::Trigger, project, name))?;
        check_name(ResourceKind::Trigger.described(), name)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Error::request(format!("the key must have 1 to {MAX_KEY_BYTES} bytes")));
        }
        let trigger = TriggerRef {
            name: name.to_owned(),
            key: key.to_owned(),
        };
        // Before anything else: a repeated call must succeed, whatever has become of the trigger.
        if let Some(run_id) = self.engine.stores.runs.find_fired(project, &trigger).await? {
            measure::trigger_fired(false);
            return Ok(run_id);
        }
        let event = read_event(event)?;
        let resource = self.find_resource(project, ResourceKind::Trigger, name).await?;
        let acting_for = Self::owner_of(&resource)?;
        let invalid = |problem: String| Error::Spec {
            what: ResourceKind::Trigger.word(),
            name: name.to_owned(),
            problems: vec![problem],
        };
        let spec: TriggerSpec = serde_json::from_value(resource.spec).map_err(|error| invalid(error.to_string()))?;
        let mut parameters = Map::new();
        for (parameter, value) in &spec.parameters {
            let value = render(value, &EventScope { event: &event });
            let value = value.map_err(|error| invalid(format!("parameters.{parameter}: {error}")))?;
            parameters.insert(parameter.clone(), value);
        }
        let start = Start {
            parameters,
            trigger: Some(trigger),
            event: Some(event),
            idempotency_key: None,
            acting_for: acting_for.to_string(),
            audit: Self::fired(caller, &acting_for, project, &spec.pipeline, name)?,
        };
        let started = self.create_run(project, &spec.pipeline, start).await;
        let started = started.map_err(|error| Self::about_trigger(error, name, &spec.pipeline))?;
        measure::trigger_fired(matches!(started, Started::Created(_)));
        let (Started::Created(run) | Started::Existing { run, .. }) = started;
        Ok(run.id)
    }
}

impl Orchestrator {
    /// For whom a trigger's runs work: who declared it, as long as that one is let in.
    fn owner_of(trigger: &DeclaredResource) -> Result<ActingFor> {
        trigger
            .applied_by
            .parse()
            .map_err(|_| modelyard_db::Error::value("owner of a trigger", &trigger.applied_by).into())
    }

    /// The event of a run that a trigger starts: the owner of the trigger must still be allowed to run the pipeline.
    fn fired(caller: &Caller, owner: &ActingFor, project: &str, pipeline: &str, trigger: &str) -> Result<NewEvent> {
        let owner = caller.on_behalf_of(owner)?;
        owner.authorize(Action::PipelineRun, Resource::named(Kind::Pipeline, project, pipeline))?;
        let mut event = owner.event(
            Action::PipelineRun,
            Operation::Create,
            &Resource::named(Kind::Pipeline, project, pipeline),
        );
        event.add_detail("trigger", trigger);
        Ok(event)
    }
}

/// The event as it is sent; nothing is an event without fields.
fn read_event(text: &str) -> Result<Value> {
    if text.len() > MAX_EVENT_BYTES {
        return Err(Error::request(format!(
            "the event has {} bytes, and may have {MAX_EVENT_BYTES}",
            text.len()
        )));
    }
    if text.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_str(text) {
        Ok(event @ Value::Object(_)) => Ok(event),
        Ok(_) => Err(Error::request("the event must be a JSON object")),
        Err(error) => Err(Error::request(format!("the event is not JSON: {error}"))),
    }
}
