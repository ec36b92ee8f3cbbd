//! The one operation: a prediction, from its checked request to its answer, its log record and its shadows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use modelyard_common::{ErrorKind, Fault as _, Timestamp, clock::SharedClock, id::SharedIds};
use modelyard_inference::{Error as InferenceError, Prediction, Priority, Signature, Tensor, Terms};
use tokio::time::timeout_at;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cache::{Cache, Question},
    client::Client,
    error::{Error, Result},
    memory::RequestMemory,
    meters::{self, DropReason, Outcome, RouteMeters},
    repository::Commands,
    routing::{Carried, Endpoint, ShadowRoute, Table, Version},
    shadow::{ShadowJob, ShadowQueue},
    spool::{Encoded, EndpointLog, Entry, Protocol, RequestFacts},
};

/// The longest id that a request may bring, in bytes.
pub(crate) const MAX_REQUEST_ID_BYTES: usize = 256;

/// The gateway as its faces see it.
pub(crate) struct Gateway {
    pub table: ArcSwap<Table>,
    /// Whether the first state has been applied.
    pub started: AtomicBool,
    pub clock: SharedClock,
    pub ids: SharedIds,
    pub shadows: ShadowQueue,
    /// Where models are loaded and unloaded by hand.
    pub repository: Commands,
    /// The predictions that are being made.
    pub requests: TaskTracker,
    /// Cancelled when no more shall be taken; those that are being made are answered.
    pub soft: CancellationToken,
    pub request_timeout: Duration,
    /// What requests under way may take.
    pub memory: Arc<RequestMemory>,
    /// Answers that are kept.
    pub cache: Cache,
}

/// A request as all protocols have it.
pub(crate) struct Request<'a> {
    /// Who asks, and in which project.
    pub client: &'a Client,
    pub endpoint: &'a str,
    /// The version that must answer; none: the endpoint's routes decide.
    pub version: Option<&'a str>,
    pub id: Option<String>,
    pub inputs: Inputs,
    /// When what is predicted happens; none: now.
    pub event_time: Option<Timestamp>,
    /// When the request arrived.
    pub arrived: Instant,
    /// How long it may take from then.
    pub timeout: Option<Duration>,
    pub priority: Priority,
    /// What routes may depend on.
    pub carried: Carried<'a>,
    /// The outputs that the client wants; empty: all.
    pub outputs: &'a [String],
    pub protocol: Protocol,
}

/// Makes the tensors of a request for a version with this signature.
pub(crate) type MakeTensors = Box<dyn FnOnce(&Signature) -> Result<Vec<Tensor>> + Send>;

/// The tensors of a request, or how to make them of what the version takes.
pub(crate) enum Inputs {
    Tensors(Vec<Tensor>),
    Of(MakeTensors),
}

/// What the client gets.
pub(crate) struct Answer {
    pub id: String,
    pub endpoint: Arc<Endpoint>,
    pub version: Arc<Version>,
    /// In the order of the signature.
    pub outputs: Vec<Tensor>,
}

impl Gateway {
    /// The endpoint of a name.
    ///
    /// # Errors
    /// `EndpointNotFound`, or `Starting` as long as no state has arrived.
    pub(crate) fn endpoint(&self, project: &str, name: &str) -> Result<Arc<Endpoint>> {
        if let Some(endpoint) = self.table.load().find(project, name) {
            return Ok(Arc::clone(endpoint));
        }
        if !self.is_ready() {
            return Err(Error::Starting);
        }
        Err(Error::EndpointNotFound {
            project: project.chars().take(128).collect(),
            name: name.chars().take(128).collect(),
        })
    }

    /// Whether the first state has been applied.
    pub(crate) fn is_ready(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Predicts. What is answered is in the log before this returns, if there is room for it.
    ///
    /// # Errors
    /// What is wrong with the request, or why it cannot be answered now.
    pub(crate) async fn predict(&self, request: Request<'_>) -> Result<Answer> {
        let _running = self.requests.token();
        let endpoint = self
            .endpoint(&request.client.project, request.endpoint)
            .inspect_err(|_| meters::refused_request())?;
        let id = match request.id {
            Some(id) if id.len() > MAX_REQUEST_ID_BYTES => {
                return Err(long_id(&id));
            }
            Some(id) if !id.is_empty() => id,
            _ => self.ids.next().to_string(),
        };
        let (version, meters) = endpoint
            .choose(&id, request.version, request.carried)
            .inspect_err(|_| meters::refused_request())?;
        let call = Call {
            gateway: self,
            client: request.client,
            endpoint: &endpoint,
            version,
            meters,
            id: &id,
            event_time: request.event_time,
            arrived: request.arrived,
            timeout: request.timeout,
            priority: request.priority,
            protocol: request.protocol,
        };
        let outputs = call.run(request.inputs, request.outputs).await.inspect_err(|error| {
            let outcome = outcome_of(error);
            meters.count(outcome);
            if matches!(outcome, Outcome::Failed | Outcome::Expired) {
                version.counts.failed();
            }
        })?;
        let version = Arc::clone(version);
        Ok(Answer {
            id,
            endpoint,
            version,
            outputs,
        })
    }
}

/// What is wrong with an id that is too long.
pub(crate) fn long_id(id: &str) -> Error {
    Error::invalid(format!(
        "the id has {} bytes: use at most {MAX_REQUEST_ID_BYTES}",
        id.len()
    ))
}

/// How a failed prediction is counted.
pub(crate) fn outcome_of(error: &Error) -> Outcome {
    match error.kind() {
        ErrorKind::ResourceExhausted => Outcome::Rejected,
        ErrorKind::DeadlineExceeded => Outcome::Expired,
        ErrorKind::InvalidArgument | ErrorKind::NotFound => Outcome::Invalid,
        _ => Outcome::Failed,
    }
}

/// A request that has its version.
struct Call<'a> {
    gateway: &'a Gateway,
    client: &'a Client,
    endpoint: &'a Arc<Endpoint>,
    version: &'a Arc<Version>,
    meters: &'a RouteMeters,
    id: &'a str,
    event_time: Option<Timestamp>,
    arrived: Instant,
    timeout: Option<Duration>,
    priority: Priority,
    protocol: Protocol,
}

/// A record that the answer is missing from.
struct Begun<'a> {
    log: &'a EndpointLog,
    shadows: Vec<&'a ShadowRoute>,
    encoded: Encoded,
}

impl Call<'_> {
    async fn run(&self, inputs: Inputs, wanted: &[String]) -> Result<Vec<Tensor>> {
        let signature = self.version.signature();
        check_outputs(signature, wanted)?;
        let inputs = match inputs {
            Inputs::Tensors(inputs) => inputs,
            Inputs::Of(make) => make(signature)?,
        };
        let inputs = signature.arrange(inputs)?;
        self.version.model.shapes().look(&inputs);
        let now = self.gateway.clock.now();
        let record = self.begin_record(now, &inputs);
        let limits = &self.endpoint.options.limits;
        let allowed = self.timeout.or(limits.timeout).unwrap_or(self.gateway.request_timeout);
        let deadline = self.arrived.checked_add(allowed);
        let prediction = match self.endpoint.options.cache {
            None => self.predict(inputs, deadline).await?,
            // What few need shall not make the future of all large.
            Some(time_to_live) => Box::pin(self.recall(inputs, deadline, time_to_live)).await?,
        };
        let latency = self.arrived.elapsed();
        self.meters.answered(latency, prediction.batch_rows);
        self.version.answered(now);
        self.version.counts.answered(latency);
        if let Some(record) = record {
            self.log(record, latency, &prediction.outputs).await;
        }
        Ok(prediction.outputs)
    }

    /// The record of a request that is to be logged, if there is room for it.
    fn begin_record(&self, now: Timestamp, inputs: &[Tensor]) -> Option<Begun<'_>> {
        let log = self.endpoint.log.as_deref().filter(|log| log.has_room())?;
        if !self.endpoint.is_logged(self.id) {
            return None;
        }
        let received_at_us = now.as_micros();
        let facts = RequestFacts {
            id: self.id,
            protocol: self.protocol,
            event_time_us: self.event_time.map_or(received_at_us, Timestamp::as_micros),
            received_at_us,
        };
        let shadows: Vec<&ShadowRoute> = self.endpoint.shadows_for(self.id).collect();
        let owed: Vec<u32> = shadows.iter().map(|route| route.version.definition.key()).collect();
        Some(Begun {
            log,
            encoded: Encoded::live(&self.version.definition, &facts, inputs, &owed),
            shadows,
        })
    }

    async fn predict(&self, inputs: Vec<Tensor>, deadline: Option<Instant>) -> Result<Prediction> {
        let terms = Terms {
            deadline,
            priority: self.priority,
            caller: self.client.number(),
        };
        let model = &self.version.model;
        // A model that has to be loaded first is waited for as long as the request may take.
        let predictor = match (model.at_hand(), deadline) {
            (Some(predictor), _) => predictor,
            (None, None) => Box::pin(model.predictor()).await?,
            (None, Some(deadline)) => timeout_at(deadline.into(), Box::pin(model.predictor()))
                .await
                .map_err(|_| InferenceError::DeadlineExceeded)??,
        };
        Ok(predictor.predict_on(terms, inputs).await?)
    }

    /// The answer that is kept, or one that is made and kept.
    async fn recall(
        &self,
        inputs: Vec<Tensor>,
        deadline: Option<Instant>,
        time_to_live: Duration,
    ) -> Result<Prediction> {
        let caller = self.client.caller.acting_for().to_string();
        let question = Question {
            caller: &caller,
            endpoint: &self.endpoint.key,
            version: &self.version.name,
            inputs: &inputs,
        };
        let cache = &self.gateway.cache;
        let answer = cache.answer(cache.key(&question), time_to_live, || {
            self.predict(inputs.clone(), deadline)
        });
        let (prediction, was_kept) = match deadline {
            None => answer.await?,
            Some(deadline) => timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| InferenceError::DeadlineExceeded)??,
        };
        self.version.asked_cache(was_kept);
        Ok(Arc::unwrap_or_clone(prediction))
    }

    /// Writes the record, and has the shadows that it owes computed.
    async fn log(&self, record: Begun<'_>, latency: Duration, outputs: &[Tensor]) {
        let Begun { log, shadows, encoded } = record;
        let definition = &self.version.definition;
        let Some(encoded) = encoded.finish(definition, latency.as_micros() as u64, outputs) else {
            log.room().lose(DropReason::Shape, 1);
            return;
        };
        let most = self.endpoint.options.log.max_record_bytes;
        if most.is_some_and(|most| encoded.bytes() > most) {
            log.room().lose(DropReason::TooLarge, 1);
            return;
        }
        let new_id = || self.gateway.ids.next();
        let entry = |record, owed| Entry {
            record,
            definition: Arc::clone(definition),
            owed,
        };
        if shadows.is_empty() {
            // Whatever else runs may be about to bring a record; who is alone does not wait for any.
            if self.gateway.requests.len() > 1 {
                log.append_with_others(entry(encoded, Vec::new()), new_id).await;
            } else {
                log.append_live(entry(encoded, Vec::new()), new_id);
            }
            return;
        }
        // Shadows repeat what is written.
        let payload = encoded.payload();
        let owed = shadows.iter().map(|route| Arc::clone(&route.version.definition));
        let tokens = log.append_live(entry(encoded, owed.collect()), new_id);
        let Some(shared) = &self.endpoint.log else {
            return;
        };
        for (owed, route) in tokens.into_iter().zip(shadows) {
            self.gateway.shadows.push(ShadowJob {
                record: payload.clone(),
                live: Arc::clone(definition),
                shadow: Arc::clone(&route.version),
                meters: Arc::clone(&route.meters),
                log: Arc::clone(shared),
                owed,
            });
        }
    }
}

/// Refuses outputs that the model does not have, before it runs.
fn check_outputs(signature: &Signature, wanted: &[String]) -> Result<()> {
    for name in wanted {
        if !signature.outputs.iter().any(|spec| spec.name == *name) {
            let known: Vec<&str> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "the model has no output `{}`: it has {}",
                name.chars().take(128).collect::<String>(),
                known.join(", ")
            )));
        }
    }
    Ok(())
}
