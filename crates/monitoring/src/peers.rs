//! The registry and the orchestrator, as monitoring calls them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use modelyard_artifacts::{Artifacts, Digest};
use modelyard_common::{
    Fault as _, Timestamp,
    error::RemoteError,
    rpc::{Channel, MAX_MESSAGE_BYTES},
};
use modelyard_proto::{
    orchestrator::v1::{
        FireTriggerRequest, ReportAlertRequest, rollout_service_client::RolloutServiceClient,
        trigger_service_client::TriggerServiceClient,
    },
    registry::v1::{
        GetModelVersionRequest, GetRunRequest, ModelVersion, Run, RunStatus, get_model_version_request::Selector,
        model_service_client::ModelServiceClient, run_service_client::RunServiceClient,
    },
};
use modelyard_stats::Profile;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use crate::{
    error::{Error, Peer, Result},
    model::{
        alert::Alert,
        prediction::{RunInput, ServedVersion, TrainingRun},
    },
    scoring::Reference,
};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a call is tried that may succeed the next time.
const ATTEMPTS: u32 = 4;
/// The wait after the first failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The largest reference profile, in bytes.
const MAX_PROFILE_BYTES: u64 = 64 << 20;
/// How many versions' references are kept in memory.
const MAX_REFERENCES: usize = 128;

/// A version of a model in a project.
type VersionKey = (String, String, u32);

/// The registry: versions, their reference profiles, runs.
pub struct Registry {
    models: ModelServiceClient<Channel>,
    runs: RunServiceClient<Channel>,
    artifacts: Artifacts,
    references: Mutex<HashMap<VersionKey, Arc<Reference>>>,
}

/// The orchestrator: triggers and rollouts.
pub struct Orchestrator {
    triggers: TriggerServiceClient<Channel>,
    rollouts: RolloutServiceClient<Channel>,
}

/// A request with its deadline.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn of_peer(peer: Peer, status: Status) -> Error {
    Error::Peer {
        peer,
        answer: RemoteError::from(status),
    }
}

/// Calls, and again while that may help. A peer that does not answer at all is given up after the deadline.
async fn patiently<T, F>(peer: Peer, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut wait = FIRST_WAIT;
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let answer = tokio::time::timeout(DEADLINE, call()).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 10s")));
        match answer.map_err(|status| of_peer(peer, status)) {
            Ok(response) => return Ok(response.into_inner()),
            Err(error) if left > 0 && error.kind().is_transient() => {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The answer, or `None` if the thing does not exist.
fn found<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind() == modelyard_common::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Registry {
    /// Calls the registry over a channel; profiles are read from the storage.
    #[must_use]
    pub fn new(channel: Channel, artifacts: Artifacts) -> Self {
        Self {
            models: ModelServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            runs: RunServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            artifacts,
            references: Mutex::default(),
        }
    }

    /// A version of a model; `None` if there is none.
    ///
    /// # Errors
    /// The registry does not answer.
    pub async fn find_version(&self, project: &str, model: &str, version: u32) -> Result<Option<ModelVersion>> {
        let message = GetModelVersionRequest {
            project: project.to_owned(),
            name: model.to_owned(),
            selector: Some(Selector::Version(version)),
        };
        let call = || {
            let (mut models, message) = (self.models.clone(), message.clone());
            async move { models.get_model_version(request(message)).await }
        };
        Ok(found(patiently(Peer::Registry, call).await)?.and_then(|answer| answer.model_version))
    }

    /// A run; `None` if there is none.
    ///
    /// # Errors
    /// The registry does not answer.
    pub async fn find_run(&self, project: &str, run_id: &str) -> Result<Option<Run>> {
        let message = GetRunRequest {
            project: project.to_owned(),
            run_id: run_id.to_owned(),
        };
        let call = || {
            let (mut runs, message) = (self.runs.clone(), message.clone());
            async move { runs.get_run(request(message)).await }
        };
        Ok(found(patiently(Peer::Registry, call).await)?.and_then(|answer| answer.run))
    }

    /// What a version is compared with. What is missing for good is missing in the answer, with a note.
    ///
    /// # Errors
    /// The registry or the storage does not answer.
    pub async fn reference(&self, project: &str, model: &str, version: u32) -> Result<Arc<Reference>> {
        let key = (project.to_owned(), model.to_owned(), version);
        if let Some(known) = self.references.lock().get(&key) {
            return Ok(Arc::clone(known));
        }
        let Some(found) = self.find_version(project, model, version).await? else {
            let note = format!("the registry does not know {model}/{version}: there is nothing to compare with");
            return Ok(Arc::new(Reference {
                notes: vec![note],
                ..Reference::default()
            }));
        };
        let mut notes = Vec::new();
        let profile = match self.profile(project, &found.reference_profile_digest).await? {
            Ok(profile) => Some(profile),
            Err(note) => {
                notes.push(note);
                None
            }
        };
        let metrics: BTreeMap<String, f64> = found.metrics.into_iter().collect();
        let reference = Arc::new(Reference {
            metrics: Some(metrics),
            profile,
            notes,
        });
        // Versions never change, so that what is kept is right for ever.
        let mut references = self.references.lock();
        if references.len() >= MAX_REFERENCES {
            references.clear();
        }
        references.insert(key, Arc::clone(&reference));
        Ok(reference)
    }

    /// A reference profile of a project, or why there is none.
    async fn profile(&self, project: &str, digest: &str) -> Result<Result<Arc<Profile>, String>> {
        if digest.is_empty() {
            return Ok(Err(
                "the version has no reference profile: its drift is not measured".to_owned()
            ));
        }
        let unusable = |why: &dyn std::fmt::Display| format!("the reference profile {digest} cannot be used: {why}");
        let parsed: Digest = match digest.parse() {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Err(unusable(&error))),
        };
        let artifacts = self.artifacts.project(project)?;
        let bytes = match artifacts.get_bytes(parsed, MAX_PROFILE_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind().is_transient() => return Err(error.into()),
            Err(error) => return Ok(Err(unusable(&error))),
        };
        let text = String::from_utf8_lossy(&bytes);
        Ok(Profile::from_json(&text)
            .map(Arc::new)
            .map_err(|error| unusable(&error)))
    }
}

impl Orchestrator {
    /// Calls the orchestrator over a channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            triggers: TriggerServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            rollouts: RolloutServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }

    /// Tells of an alert: rollouts of the version that is to blame are rolled back where the rule guards them. The answer
    /// names them.
    ///
    /// # Errors
    /// The orchestrator does not answer, or refuses.
    pub async fn report(&self, alert: &Alert) -> Result<Vec<String>> {
        let conditions = alert
            .conditions
            .iter()
            .map(|condition| format!("{} is {}", condition.metric, condition.value));
        let conditions: Vec<String> = conditions.collect();
        let message = ReportAlertRequest {
            project: alert.project.clone(),
            endpoint: alert.endpoint.clone(),
            rule: alert.rule.clone(),
            alert: alert.id.clone(),
            model: alert.model.clone(),
            version: alert.version,
            reason: conditions.join(", "),
        };
        let call = || {
            let (mut rollouts, message) = (self.rollouts.clone(), message.clone());
            async move { rollouts.report_alert(request(message)).await }
        };
        Ok(patiently(Peer::Orchestrator, call).await?.rollout_ids)
    }

    /// Fires the trigger of an alert, once for each alert however often it is called. The answer is the pipeline run.
    ///
    /// # Errors
    /// The orchestrator does not answer, or refuses.
    pub async fn fire(&self, alert: &Alert, trigger: &str) -> Result<String> {
        let message = FireTriggerRequest {
            project: alert.project.clone(),
            trigger: trigger.to_owned(),
            key: format!("alert:{}", alert.id),
            event_json: event(alert).to_string(),
        };
        let call = || {
            let (mut triggers, message) = (self.triggers.clone(), message.clone());
            async move { triggers.fire_trigger(request(message)).await }
        };
        Ok(patiently(Peer::Orchestrator, call).await?.pipeline_run_id)
    }
}

/// What a trigger's parameters can refer to. It is the same whenever the trigger is fired: no state, no time of firing.
fn event(alert: &Alert) -> serde_json::Value {
    let values: BTreeMap<&str, f64> = alert
        .conditions
        .iter()
        .map(|condition| (condition.metric.as_str(), condition.value))
        .collect();
    serde_json::json!({
        "alert": alert.id,
        "rule": alert.rule,
        "monitor": alert.monitor,
        "endpoint": alert.endpoint,
        "window": alert.window,
        "model": alert.model,
        "version": alert.version,
        "values": values,
        "conditions": alert.conditions,
    })
}

/// A version as the story of a prediction shows it.
#[must_use]
pub fn served_version(version: ModelVersion) -> ServedVersion {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    ServedVersion {
        model: version.name,
        version: version.version,
        aliases: version.aliases,
        metrics: version.metrics.into_iter().collect(),
        digest: version.artifact_digest,
        run_id: given(version.run_id),
        dataset: given(version.dataset),
        dataset_version: Some(version.dataset_version).filter(|version| *version > 0),
        created_at: Timestamp::from_micros(version.created_at_us),
    }
}

/// A run as the story of a prediction shows it.
#[must_use]
pub fn training_run(run: Run) -> TrainingRun {
    let status = match run.status() {
        RunStatus::Unspecified => "unknown",
        RunStatus::Running => "running",
        RunStatus::Scheduled => "scheduled",
        RunStatus::Finished => "finished",
        RunStatus::Failed => "failed",
        RunStatus::Killed => "killed",
    };
    TrainingRun {
        status,
        started_at: Timestamp::from_micros(run.start_time_us),
        ended_at: (run.end_time_us > 0).then(|| Timestamp::from_micros(run.end_time_us)),
        params: run.params.into_iter().map(|param| (param.key, param.value)).collect(),
        metrics: run
            .metrics
            .into_iter()
            .map(|metric| (metric.key, metric.value))
            .collect(),
        inputs: run
            .inputs
            .into_iter()
            .map(|input| RunInput {
                dataset: input.name,
                version: input.version,
                digest: input.digest,
                context: input.context,
            })
            .collect(),
        run_id: run.run_id,
        name: run.name,
        experiment: run.experiment,
    }
}
