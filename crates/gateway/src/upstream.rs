//! Models that another server of the Open Inference Protocol runs, over gRPC. Tensors go through as they are.

use std::{
    borrow::Cow,
    error::Error as StdError,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use modelyard_common::tls::{ClientTls, Connector, Protocol};
use modelyard_inference::{
    Backend, Error as InferenceError, Model as InferenceModel, Run, Signature, Source, Tensor, TensorSpec, run_merged,
};
use modelyard_proto::codec::Unreadable;
use modelyard_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use serde::Deserialize;
use tokio::runtime::Handle;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    error::{Error, Result},
    grpc::read_tensors,
    oip::MAX_BODY_BYTES,
};

/// How many batches another server is sent at once: it has processors of its own.
const MOST_AT_ONCE: usize = 8;

/// How long a connection attempt may take, and how often an idle connection is probed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long a call without a deadline of its own may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection takes of this machine's memory, about, in bytes.
const CONNECTION_BYTES: u64 = 64 << 10;

/// What allows any other server.
const ANY: &str = "*";

/// Which model of which server a version stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    /// `grpc://HOST:PORT`, or with TLS `grpcs://HOST:PORT`.
    url: String,
    /// The model's name there.
    model: String,
    /// Its version there; empty: the one that the server chooses.
    #[serde(default)]
    version: String,
}

impl Upstream {
    /// Asks the server what the model takes and gives, and tries it.
    ///
    /// # Errors
    /// `UpstreamNotAllowed` if the configuration does not name the server; `BackendAway` if it is not there or the model
    /// not ready; or what else is wrong with it.
    pub(crate) fn open(self, allowed: &[String], runtime: &Handle) -> Result<InferenceModel> {
        let (address, tls) = self.address(allowed)?;
        let endpoint = Endpoint::from_shared(address)
            .map_err(|error| self.wrong(&error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let tls = tls
            .then(ClientTls::of_machine)
            .transpose()
            .map_err(|error| self.wrong(&error.to_string()))?;
        let connector = Connector::new(tls, Protocol::Http2);
        // The channel's own tasks belong to this runtime.
        let _entered = runtime.enter();
        let channel = endpoint.connect_with_connector_lazy(connector);
        let client = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_BODY_BYTES)
            .max_encoding_message_size(MAX_BODY_BYTES);
        let server = Arc::new(Server {
            upstream: self,
            client,
            runtime: runtime.clone(),
            requests: AtomicU64::new(0),
        });
        let signature = server.describe()?;
        Ok(InferenceModel::new(
            signature,
            Arc::new(Connections(server)),
            MOST_AT_ONCE,
        )?)
    }

    /// The address as a URL of HTTP, and whether it is with TLS.
    fn address(&self, allowed: &[String]) -> Result<(String, bool)> {
        let (scheme, place) = self.url.split_once("://").unwrap_or_default();
        let is_allowed = allowed.iter().any(|entry| entry == ANY || entry == place);
        match scheme {
            "grpc" | "grpcs" if !is_allowed => Err(Error::UpstreamNotAllowed {
                server: place.to_owned(),
            }),
            "grpc" => Ok((format!("http://{place}"), false)),
            "grpcs" => Ok((format!("https://{place}"), true)),
            _ => Err(self.wrong("write grpc://HOST:PORT or grpcs://HOST:PORT")),
        }
    }

    fn wrong(&self, detail: &str) -> Error {
        Error::Upstream {
            detail: format!("`{}` cannot be called: {detail}", self.url),
        }
    }

    /// The model as messages call it.
    fn model(&self) -> String {
        format!("model `{}` of {}", self.model, self.url)
    }
}

/// One model of another server.
struct Server {
    upstream: Upstream,
    client: GrpcInferenceServiceClient<Channel>,
    runtime: Handle,
    /// Some servers want an id with each request.
    requests: AtomicU64,
}

impl Server {
    /// Does a call on the runtime, while this thread waits.
    fn call<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        call: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, InferenceError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + CALL_TIMEOUT);
        // It ends by itself, at the deadline at the latest.
        self.runtime.spawn(async move {
            let result = tokio::time::timeout_at(deadline.into(), call).await;
            // Whoever asked waits.
            let _ = answer.send(result);
        });
        match answered.recv() {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(status))) => Err(self.failure(&status, deadline)),
            Ok(Err(_)) => Err(InferenceError::DeadlineExceeded),
            // The runtime has ended.
            Err(_) => Err(InferenceError::Closed),
        }
    }

    /// What a status means to whoever asked us.
    fn failure(&self, status: &Status, deadline: Instant) -> InferenceError {
        let cause = StdError::source(status);
        if cause.is_some_and(<dyn StdError>::is::<Unreadable>) {
            return invalid_output(status.message().to_owned());
        }
        let detail = format!(
            "{} answered {:?}: {}",
            self.upstream.model(),
            status.code(),
            status.message()
        );
        // What comes of the connection and not of the server has a cause.
        let is_lost = cause.is_some() && Instant::now() < deadline;
        match status.code() {
            _ if is_lost => InferenceError::BackendAway { detail },
            Code::Unavailable
            | Code::NotFound
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::PermissionDenied => InferenceError::BackendAway { detail },
            Code::DeadlineExceeded | Code::Cancelled => InferenceError::DeadlineExceeded,
            Code::ResourceExhausted => InferenceError::QueueFull { limit: detail },
            code => InferenceError::RunFailed {
                detail,
                inputs_at_fault: matches!(code, Code::InvalidArgument | Code::OutOfRange),
            },
        }
    }

    fn describe(&self) -> Result<Signature> {
        let Upstream { model, version, .. } = &self.upstream;
        let (name, version) = (model.clone(), version.clone());
        let mut client = self.client.clone();
        let ready = ModelReadyRequest {
            name: name.clone(),
            version: version.clone(),
        };
        let asked = ModelMetadataRequest { name, version };
        let (is_ready, metadata) = self.call(None, async move {
            let ready = client.model_ready(ready).await?.into_inner();
            Ok((ready.ready, client.model_metadata(asked).await?.into_inner()))
        })?;
        if !is_ready {
            return Err(InferenceError::BackendAway {
                detail: format!("{} is not ready", self.upstream.model()),
            }
            .into());
        }
        if metadata.inputs.is_empty() || metadata.outputs.is_empty() {
            return Err(Error::Upstream {
                detail: format!(
                    "{} says nothing of its inputs or outputs: configure them there",
                    self.upstream.model()
                ),
            });
        }
        Ok(Signature {
            inputs: metadata.inputs.into_iter().map(read_spec).collect::<Result<_>>()?,
            outputs: metadata.outputs.into_iter().map(read_spec).collect::<Result<_>>()?,
        })
    }

    fn infer(
        &self,
        signature: &Signature,
        inputs: Cow<'_, [Tensor]>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, InferenceError> {
        let Upstream { model, version, .. } = &self.upstream;
        let mut message = ModelInferRequest {
            model_name: model.clone(),
            model_version: version.clone(),
            id: self.requests.fetch_add(1, Ordering::Relaxed).to_string(),
            ..ModelInferRequest::default()
        };
        for input in inputs.into_owned() {
            message.inputs.push(InferInputTensor {
                name: input.name().to_owned(),
                datatype: input.datatype().name().to_owned(),
                shape: input.shape().to_vec(),
                ..InferInputTensor::default()
            });
            message.raw_input_contents.push(input.into_raw()?);
        }
        let mut request = Request::new(message);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let mut client = self.client.clone();
        let answer = self.call(
            deadline,
            async move { Ok(client.model_infer(request).await?.into_inner()) },
        )?;
        read_answer(signature, answer)
    }
}

fn read_spec(tensor: TensorMetadata) -> Result<TensorSpec> {
    Ok(TensorSpec {
        datatype: tensor.datatype.parse()?,
        shape: tensor.shape.iter().map(|&dimension| dimension.max(-1)).collect(),
        name: tensor.name,
    })
}

/// The outputs of an answer, in the order of the signature.
pub(crate) fn read_answer(signature: &Signature, answer: ModelInferResponse) -> Result<Vec<Tensor>, InferenceError> {
    // Outputs are carried as inputs are.
    let tensors = answer
        .outputs
        .into_iter()
        .map(|output: InferOutputTensor| InferInputTensor {
            name: output.name,
            datatype: output.datatype,
            shape: output.shape,
            parameters: output.parameters,
            contents: output.contents,
        });
    let outputs = read_tensors(tensors.collect(), answer.raw_output_contents);
    signature.arrange_outputs(outputs.map_err(|error| invalid_output(error.to_string()))?)
}

fn invalid_output(detail: String) -> InferenceError {
    InferenceError::InvalidOutput {
        output: "of the other server".to_owned(),
        detail,
    }
}

/// Ways to a server: all share its connection, which carries many calls at once.
struct Connections(Arc<Server>);

impl Source for Connections {
    fn open(&self) -> Result<Box<dyn Backend>, InferenceError> {
        Ok(Box::new(Connection(Arc::clone(&self.0))))
    }

    fn memory_bytes(&self) -> u64 {
        CONNECTION_BYTES
    }

    fn takes_any_bytes(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }
}

struct Connection(Arc<Server>);

impl Backend for Connection {
    fn run(
        &mut self,
        signature: &Signature,
        requests: &[&[Tensor]],
        deadline: Option<Instant>,
    ) -> Result<Run, InferenceError> {
        run_merged(requests, |inputs| self.0.infer(signature, inputs, deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(url: &str) -> Upstream {
        Upstream {
            url: url.to_owned(),
            model: "m".to_owned(),
            version: String::new(),
        }
    }

    #[test]
    fn only_servers_that_are_named_are_called() {
        let allowed = |url: &str, allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
            upstream(url).address(&allowed)
        };
        let found = allowed("grpc://triton:8001", &["triton:8001"]).unwrap();
        assert_eq!(found, ("http://triton:8001".to_owned(), false));
        assert_eq!(
            allowed("grpcs://t:1", &["*"]).unwrap(),
            ("https://t:1".to_owned(), true)
        );
        for entries in [&[][..], &["triton"], &["triton:80"], &["other:8001"]] {
            let error = allowed("grpc://triton:8001", entries).unwrap_err().to_string();
            assert!(
                error.contains("`triton:8001`") && error.contains("gateway.upstreams"),
                "{error}"
            );
        }
        for url in ["", "triton:8001", "http://triton:8001"] {
            let error = allowed(url, &["*"]).unwrap_err().to_string();
            assert!(error.contains("grpc://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn outputs_are_put_in_order_and_must_all_be_there() {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: modelyard_inference::DataType::Int32,
            shape: vec![-1],
        };
        let signature = Signature {
            inputs: Vec::new(),
            outputs: vec![spec("a"), spec("b")],
        };
        let answer = |names: &[&str]| ModelInferResponse {
            outputs: names
                .iter()
                .map(|name| InferOutputTensor {
                    name: (*name).to_owned(),
                    datatype: "INT32".to_owned(),
                    shape: vec![1],
                    ..InferOutputTensor::default()
                })
                .collect(),
            raw_output_contents: names.iter().map(|_| vec![7, 0, 0, 0].into()).collect(),
            ..ModelInferResponse::default()
        };
        let outputs = read_answer(&signature, answer(&["extra", "b", "a"])).unwrap();
        let names: Vec<&str> = outputs.iter().map(Tensor::name).collect();
        assert_eq!(names, ["a", "b"]);
        let error = read_answer(&signature, answer(&["a"])).unwrap_err().to_string();
        assert!(error.contains("`b`"), "{error}");
        let mut torn = answer(&["a", "b"]);
        torn.raw_output_contents[1] = vec![1].into();
        assert!(read_answer(&signature, torn).is_err());
    }
}
