//! What people and judges say of traces.

use modelyard_auth::{Action, Caller, Resource};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        run::check_key,
        trace::{Assessment, AssessmentChange},
    },
    store::no_assessment,
};

/// The longest text of an assessment, in bytes.
const MAX_ASSESSMENT_BYTES: usize = 1 << 20;
/// The most metadata of an assessment.
const MAX_ASSESSMENT_METADATA: usize = 100;
/// The longest id in an assessment, in bytes.
const MAX_ID_BYTES: usize = 250;
/// The metadata with the run that made an assessment.
const SOURCE_RUN_KEY: &str = "mlflow.assessment.sourceRunId";
/// What the id of an assessment begins with.
const ID_PREFIX: &str = "a-";

fn check_size(what: &str, bytes: usize, limit: usize) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::request(format!(
        "the {what} of an assessment has {bytes} bytes: use at most {limit}"
    )))
}

fn check_change(change: &AssessmentChange) -> Result<()> {
    if let Some(name) = &change.name {
        check_key("assessment", name)?;
    }
    let values = change
        .expectation
        .iter()
        .chain(change.feedback.iter().map(|(value, _)| value));
    let errors = change.feedback.iter().filter_map(|(_, error)| error.as_ref());
    for value in values.chain(errors) {
        check_size("value", value.to_string().len(), MAX_ASSESSMENT_BYTES)?;
    }
    let rationale = change.rationale.as_deref().unwrap_or_default();
    check_size("rationale", rationale.len(), MAX_ASSESSMENT_BYTES)?;
    if change.metadata.len() > MAX_ASSESSMENT_METADATA {
        return Err(Error::request(format!(
            "an assessment has {} metadata: use at most {MAX_ASSESSMENT_METADATA}",
            change.metadata.len()
        )));
    }
    let metadata: usize = change.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    check_size("metadata", metadata, MAX_ASSESSMENT_BYTES)
}

impl Registry {
    /// Checks an assessment that a client made, and adds what it left out.
    pub(super) fn complete_assessment(&self, assessment: &mut Assessment) -> Result<()> {
        check_change(&AssessmentChange {
            name: Some(assessment.name.clone()),
            feedback: Some((assessment.value.clone(), assessment.error.clone())),
            rationale: assessment.rationale.clone(),
            metadata: assessment.metadata.clone(),
            ..AssessmentChange::default()
        })?;
        for id in [&assessment.source_id, &assessment.span_id, &assessment.overrides] {
            check_size("id", id.as_deref().map_or(0, str::len), MAX_ID_BYTES)?;
        }
        check_size("id", assessment.assessment_id.len(), MAX_ID_BYTES)?;
        if assessment.assessment_id.is_empty() {
            assessment.assessment_id = format!("{ID_PREFIX}{}", self.ids.next().simple());
        }
        if assessment.run_id.is_none() {
            assessment.run_id = assessment.metadata.get(SOURCE_RUN_KEY).cloned();
        }
        let now_ms = self.clock.now().as_millis();
        for time in [&mut assessment.created_ms, &mut assessment.updated_ms] {
            if *time == 0 {
                *time = now_ms;
            }
        }
        Ok(())
    }

    /// Adds an assessment to a trace.
    pub async fn create_assessment(
        &self,
        caller: &Caller,
        project: &str,
        mut assessment: Assessment,
    ) -> Result<Assessment> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        self.complete_assessment(&mut assessment)?;
        self.stores.assessments.create_assessment(project, &assessment).await
    }

    /// An assessment.
    pub async fn get_assessment(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
    ) -> Result<Assessment> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let assessments = &self.stores.assessments;
        if let Some(found) = assessments.find_assessment(project, trace_id, assessment_id).await? {
            return Ok(found);
        }
        self.get_trace_info(caller, project, trace_id)
            .await
            .map_err(|error| match error {
                Error::NotThere(_) => Error::NotThere(format!("Trace with request_id '{trace_id}' not found")),
                other => other,
            })?;
        Err(no_assessment(trace_id, assessment_id))
    }

    /// Changes an assessment.
    pub async fn change_assessment(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
        mut change: AssessmentChange,
    ) -> Result<Assessment> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_change(&change)?;
        change.now_ms = self.clock.now().as_millis();
        let assessments = &self.stores.assessments;
        assessments
            .change_assessment(project, trace_id, assessment_id, &change)
            .await
    }

    /// Deletes an assessment, if it is there.
    pub async fn delete_assessment(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let assessments = &self.stores.assessments;
        assessments.delete_assessment(project, trace_id, assessment_id).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_too_large_is_refused() {
        let mut change = AssessmentChange {
            name: Some("relevance".to_owned()),
            feedback: Some((json!("yes"), None)),
            ..AssessmentChange::default()
        };
        assert!(check_change(&change).is_ok());
        change.rationale = Some("x".repeat(MAX_ASSESSMENT_BYTES + 1));
        assert!(check_change(&change).is_err());
        change.rationale = None;
        change.name = Some(String::new());
        assert!(check_change(&change).is_err());
    }
}
