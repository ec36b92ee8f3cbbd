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
use modelyard_inference::{Signature, Tensor};
use tokio_util::task::TaskTracker;

use crate::{
    error::{Error, Result},
    meters::{self, DropReason, Outcome, RouteMeters},
    routing::{Endpoint, ShadowRoute, Table, Version},
    shadow::{ShadowJob, ShadowQueue},
    spool::{Encoded, EndpointLog, Protocol, RequestFacts},
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
    /// The predictions that are being made.
    pub requests: TaskTracker,
    pub request_timeout: Duration,
}

/// A request as all protocols have it.
pub(crate) struct Request<'a> {
    pub project: &'a str,
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
            .endpoint(request.project, request.endpoint)
            .inspect_err(|_| meters::refused_request())?;
        let id = match request.id {
            Some(id) if id.len() > MAX_REQUEST_ID_BYTES => {
                return Err(Error::invalid(format!(
                    "the id has {} bytes: use at most {MAX_REQUEST_ID_BYTES}",
                    id.len()
                )));
            }
            Some(id) if !id.is_empty() => id,
            _ => self.ids.next().to_string(),
        };
        let (version, meters) = endpoint
            .choose(&id, request.version)
            .inspect_err(|_| meters::refused_request())?;
        let call = Call {
            gateway: self,
            endpoint: &endpoint,
            version,
            meters,
            id: &id,
        };
        let outputs = call
            .run(
                request.inputs,
                request.outputs,
                request.event_time,
                request.arrived,
                request.timeout,
                request.protocol,
            )
            .await
            .inspect_err(|error| meters.count(outcome_of(error)))?;
        let version = Arc::clone(version);
        Ok(Answer {
            id,
            endpoint,
            version,
            outputs,
        })
    }
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
    endpoint: &'a Arc<Endpoint>,
    version: &'a Arc<Version>,
    meters: &'a RouteMeters,
    id: &'a str,
}

impl Call<'_> {
    async fn run(
        &self,
        inputs: Inputs,
        wanted: &[String],
        event_time: Option<Timestamp>,
        arrived: Instant,
        timeout: Option<Duration>,
        protocol: Protocol,
    ) -> Result<Vec<Tensor>> {
        let signature = self.version.signature();
        check_outputs(signature, wanted)?;
        let inputs = match inputs {
            Inputs::Tensors(inputs) => inputs,
            Inputs::Of(make) => make(signature)?,
        };
        let inputs = signature.arrange(inputs)?;
        let log = self.endpoint.log.as_deref().filter(|log| log.has_room());
        let record = log.map(|log| {
            let received_at_us = self.gateway.clock.now().as_micros();
            let facts = RequestFacts {
                id: self.id,
                protocol,
                event_time_us: event_time.map_or(received_at_us, Timestamp::as_micros),
                received_at_us,
            };
            let shadows: Vec<&ShadowRoute> = self.endpoint.shadows_for(self.id).collect();
            let owed: Vec<u32> = shadows.iter().map(|route| route.version.definition.key()).collect();
            let encoded = Encoded::live(&self.version.definition, &facts, &inputs, &owed);
            (log, shadows, encoded)
        });
        let allowed = timeout.unwrap_or(self.gateway.request_timeout);
        let predictor = &self.version.model.predictor;
        let deadline = arrived.checked_add(allowed);
        let prediction = predictor.predict(inputs, deadline).await?;
        let latency = arrived.elapsed();
        self.meters.answered(latency, prediction.batch_rows);
        if let Some((log, shadows, encoded)) = record {
            self.log(log, &shadows, encoded, latency, &prediction.outputs);
        }
        Ok(prediction.outputs)
    }

    /// Writes the record, and has the shadows that it owes computed.
    fn log(
        &self,
        log: &EndpointLog,
        shadows: &[&ShadowRoute],
        encoded: Encoded,
        latency: Duration,
        outputs: &[Tensor],
    ) {
        let definition = &self.version.definition;
        let Some(encoded) = encoded.finish(definition, latency.as_micros() as u64, outputs) else {
            log.room().lose(DropReason::Shape, 1);
            return;
        };
        let owed: Vec<_> = shadows.iter().map(|route| &*route.version.definition).collect();
        let tokens = log.append_live(&encoded, definition, &owed, || self.gateway.ids.next());
        let Some(shared) = self.endpoint.log.as_ref().filter(|_| !tokens.is_empty()) else {
            return;
        };
        let record = encoded.into_payload();
        for (owed, route) in tokens.into_iter().zip(shadows) {
            self.gateway.shadows.push(ShadowJob {
                record: record.clone(),
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
