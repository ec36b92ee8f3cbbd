//! The Open Inference Protocol over gRPC, with those of Triton's extensions that its clients use. Tensors are taken typed
//! or raw, and always answered raw: some clients read nothing else.

mod stream;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use http::{Request as HttpRequest, Response as HttpResponse};
use modelyard_auth::Action;
use modelyard_common::{Timestamp, error::to_status};
use modelyard_inference::{DataType, Priority, Tensor, TensorData, TensorSpec};
use modelyard_proto::{
    codec::BoundedCodec,
    inference::{
        self as proto, InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
        ModelStreamInferResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        model_infer_response::InferOutputTensor,
        model_metadata_response::TensorMetadata,
    },
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    server::{Grpc, UnaryService},
};

use self::stream::Sender;
use crate::{
    client::Client,
    error::{Error, Result},
    memory::{Counted, Share},
    oip::{
        EXTENSIONS, MAX_BODY_BYTES, MAX_TENSORS, RequestedOutput, SERVER_NAME, SERVER_VERSION, all_statistics_of,
        model_config, priority, refuse_sequence, select, statistics_of,
    },
    options::Attribute,
    predict::{Answer, Gateway, Inputs, Request as PredictRequest},
    repository::{self, Change},
    spool::Protocol,
};

/// What requests may be compressed with. Answers are not: every client says that it would take it, and few gain by it.
const ENCODINGS: [CompressionEncoding; 2] = [CompressionEncoding::Gzip, CompressionEncoding::Deflate];

/// The gRPC face.
#[derive(Clone)]
pub(crate) struct InferenceService {
    gateway: Arc<Gateway>,
}

impl InferenceService {
    pub(crate) const fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    /// What a request may take of the memory of all.
    pub(crate) fn share(&self) -> Share {
        self.gateway.memory.share()
    }

    /// What answers all calls.
    pub(crate) fn into_server(self) -> GrpcInferenceServiceServer<Self> {
        let server = GrpcInferenceServiceServer::new(self)
            .max_decoding_message_size(MAX_BODY_BYTES)
            .max_encoding_message_size(MAX_BODY_BYTES);
        ENCODINGS
            .into_iter()
            .fold(server, GrpcInferenceServiceServer::accept_compressed)
    }

    /// Answers one `ModelInfer` as the server does, without its search for the method, and without what it would have to be told by
    /// the request's extensions: that costs much beside such a call.
    pub(crate) async fn answer(self, client: Client, request: HttpRequest<Counted>) -> HttpResponse<Body> {
        let server = Grpc::new(BoundedCodec::<ModelInferResponse, ModelInferRequest>::default())
            .max_decoding_message_size(MAX_BODY_BYTES)
            .max_encoding_message_size(MAX_BODY_BYTES);
        let call = ModelInfer {
            calls: self,
            client: Some(client),
        };
        let mut server = ENCODINGS.into_iter().fold(server, Grpc::accept_compressed);
        server.unary(call, request).await
    }
}

/// One call of `ModelInfer`.
struct ModelInfer {
    calls: InferenceService,
    /// Whoever calls, until it is answered.
    client: Option<Client>,
}

impl UnaryService<ModelInferRequest> for ModelInfer {
    type Response = ModelInferResponse;
    type Future = BoxFuture<'static, Result<Response<ModelInferResponse>, Status>>;

    fn call(&mut self, request: Request<ModelInferRequest>) -> Self::Future {
        let (calls, client) = (self.calls.clone(), self.client.take());
        async move {
            let client = client.ok_or_else(|| Status::internal("the call has been answered"))?;
            calls.infer_unary(&client, request).await
        }
        .boxed()
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        let ready = self.gateway.is_ready();
        Ok(Response::new(proto::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let endpoint = client
            .authorize(Action::EndpointRead, &request.name)
            .and_then(|()| self.gateway.endpoint(&client.project, &request.name))
            .map_err(|error| to_status(&error))?;
        let ready = match endpoint.describe(non_empty(&request.version)) {
            Ok(_) => true,
            Err(Error::NotReady { .. }) => false,
            Err(error) => return Err(to_status(&error)),
        };
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        Ok(Response::new(proto::ServerMetadataResponse {
            name: SERVER_NAME.to_owned(),
            version: SERVER_VERSION.to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let endpoint = client
            .authorize(Action::EndpointRead, &request.name)
            .and_then(|()| self.gateway.endpoint(&client.project, &request.name))
            .map_err(|error| to_status(&error))?;
        let version = endpoint
            .describe(non_empty(&request.version))
            .map_err(|error| to_status(&error))?;
        let tensors = |specs: &[TensorSpec]| {
            let each = specs.iter().map(|spec| TensorMetadata {
                name: spec.name.clone(),
                datatype: spec.datatype.name().to_owned(),
                shape: spec.shape.clone(),
            });
            each.collect()
        };
        Ok(Response::new(proto::ModelMetadataResponse {
            name: request.name,
            versions: endpoint.versions(),
            platform: version.platform().name().to_owned(),
            inputs: tensors(&version.signature().inputs),
            outputs: tensors(&version.signature().outputs),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        self.infer_unary(&client, request).await
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let (metadata, mut extensions, requests) = request.into_parts();
        let sender = Sender {
            again: extensions
                .remove()
                .ok_or_else(|| to_status(&modelyard_auth::Error::Missing))?,
            project: client.project,
            metadata,
        };
        Ok(Response::new(stream::infer(self.clone(), sender, requests)))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let config = model_config(&self.gateway, &client, &request.name, non_empty(&request.version));
        let config = Some(config.map_err(|error| to_status(&error))?);
        Ok(Response::new(proto::ModelConfigResponse { config }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let model_stats = match non_empty(&request.name) {
            None => all_statistics_of(&self.gateway, &client),
            Some(name) => statistics_of(&self.gateway, &client, name, non_empty(&request.version))
                .map_err(|error| to_status(&error))?,
        };
        Ok(Response::new(proto::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let models = repository::index(&self.gateway, &client, request.get_ref().ready);
        Ok(Response::new(proto::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let parameters = request.parameters.keys().map(String::as_str);
        repository::change(&self.gateway, &client, &request.model_name, Change::Load, parameters)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(proto::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        let client = Client::of(&request).map_err(|error| to_status(&error))?;
        let request = request.into_inner();
        let parameters = request.parameters.keys().map(String::as_str);
        repository::change(&self.gateway, &client, &request.model_name, Change::Unload, parameters)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(proto::RepositoryModelUnloadResponse {}))
    }
}

impl InferenceService {
    async fn infer_unary(
        &self,
        client: &Client,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let arrived = Instant::now();
        let (metadata, _, request) = request.into_parts();
        self.infer(client, request, &metadata, grpc_timeout(&metadata), arrived)
            .await
            .map(Response::new)
            .map_err(|error| to_status(&error))
    }

    async fn infer(
        &self,
        client: &Client,
        request: ModelInferRequest,
        metadata: &MetadataMap,
        call_timeout: Option<Duration>,
        arrived: Instant,
    ) -> Result<ModelInferResponse> {
        client.authorize(Action::EndpointPredict, &request.model_name)?;
        let parameters = Parameters::read(&request.parameters)?;
        if request.outputs.len() > MAX_TENSORS {
            return Err(Error::invalid(format!("at most {MAX_TENSORS} outputs are possible")));
        }
        let wanted = request.outputs.into_iter().map(requested).collect::<Result<Vec<_>>>()?;
        let outputs: Vec<String> = wanted.iter().map(|output| output.name.clone()).collect();
        let inputs = read_tensors(request.inputs, request.raw_input_contents)?;
        let given = request.parameters;
        let answer = self
            .gateway
            .predict(PredictRequest {
                client,
                endpoint: &request.model_name,
                version: non_empty(&request.model_version),
                id: Some(request.id),
                inputs: Inputs::Tensors(inputs),
                event_time: parameters.event_time,
                arrived,
                timeout: nearest(parameters.timeout, call_timeout),
                priority: parameters.priority,
                carried: &|attribute| match attribute {
                    Attribute::Header(name) => {
                        let value = metadata.get(name.as_str())?.to_str().ok();
                        value.map(Cow::Borrowed)
                    }
                    Attribute::Parameter(name) => parameter_text(choice(&given, name)?),
                },
                outputs: &outputs,
                protocol: Protocol::Grpc,
            })
            .await?;
        respond(request.model_name, answer, &wanted)
    }
}

/// An output that is wanted.
fn requested(output: InferRequestedOutputTensor) -> Result<RequestedOutput> {
    let classes = match choice(&output.parameters, "classification") {
        None => None,
        Some(choice) => Some(
            count(choice)
                .and_then(|count| usize::try_from(count).ok())
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "output `{}`: classification is no number of classes",
                        output.name
                    ))
                })?,
        ),
    };
    if choice(&output.parameters, "shared_memory_region").is_some() {
        return Err(Error::invalid(format!(
            "output `{}`: shared memory is not offered: leave `shared_memory_region` out",
            output.name
        )));
    }
    Ok(RequestedOutput {
        name: output.name,
        binary: None,
        classes,
    })
}

fn choice<'a>(given: &'a HashMap<String, InferParameter>, name: &str) -> Option<&'a ParameterChoice> {
    given.get(name)?.parameter_choice.as_ref()
}

/// A parameter's value as a number of something.
fn count(choice: &ParameterChoice) -> Option<u64> {
    match choice {
        ParameterChoice::Int64Param(count) => u64::try_from(*count).ok(),
        ParameterChoice::Uint64Param(count) => Some(*count),
        _ => None,
    }
}

/// A parameter's value as text.
fn parameter_text(choice: &ParameterChoice) -> Option<Cow<'_, str>> {
    Some(match choice {
        ParameterChoice::BoolParam(value) => value.to_string().into(),
        ParameterChoice::Int64Param(value) => value.to_string().into(),
        ParameterChoice::Uint64Param(value) => value.to_string().into(),
        // As JSON writes it, so that the same condition holds over both protocols.
        ParameterChoice::DoubleParam(value) => serde_json::Number::from_f64(*value)?.to_string().into(),
        ParameterChoice::StringParam(value) => value.as_str().into(),
    })
}

fn nearest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// The parameters that mean something here.
struct Parameters {
    event_time: Option<Timestamp>,
    timeout: Option<Duration>,
    priority: Priority,
}

impl Parameters {
    fn read(given: &HashMap<String, InferParameter>) -> Result<Self> {
        let choice = |name: &str| choice(given, name);
        let is_of_sequence = match choice("sequence_id") {
            None => false,
            Some(ParameterChoice::Int64Param(id)) => *id != 0,
            Some(ParameterChoice::Uint64Param(id)) => *id != 0,
            Some(ParameterChoice::StringParam(id)) => !id.is_empty(),
            Some(_) => true,
        };
        let is_end = |name: &str| !matches!(choice(name), None | Some(ParameterChoice::BoolParam(false)));
        if is_of_sequence || is_end("sequence_start") || is_end("sequence_end") {
            return Err(refuse_sequence());
        }
        let event_time = match choice("event_time") {
            None => None,
            Some(ParameterChoice::StringParam(text)) => {
                let time = text.parse::<Timestamp>();
                Some(time.map_err(|error| Error::invalid(format!("parameter event_time: {error}")))?)
            }
            Some(_) => return Err(Error::invalid("parameter event_time is no string")),
        };
        let timeout = match choice("timeout") {
            None => None,
            Some(choice) => {
                let micros = match choice {
                    ParameterChoice::StringParam(text) => text.parse().ok(),
                    other => count(other),
                };
                Some(micros.ok_or_else(|| Error::invalid("parameter timeout is no number of microseconds"))?)
            }
        };
        let level = match choice("priority") {
            None => 0,
            Some(choice) => {
                count(choice).ok_or_else(|| Error::invalid("parameter priority is no number of zero or more"))?
            }
        };
        Ok(Self {
            event_time,
            priority: priority(level),
            timeout: timeout.map(Duration::from_micros),
        })
    }
}

/// The time that the call's header allows.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    // At most eight digits, says the protocol, so that nothing overflows.
    if digits.len() > 8 {
        return None;
    }
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Tensors, typed or raw.
pub(crate) fn read_tensors(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> Result<Vec<Tensor>> {
    if inputs.len() > MAX_TENSORS {
        return Err(Error::invalid(format!("at most {MAX_TENSORS} inputs are possible")));
    }
    if raw.is_empty() {
        return inputs.into_iter().map(typed_input).collect();
    }
    if raw.len() != inputs.len() {
        return Err(Error::invalid(format!(
            "raw_input_contents has {} entries for {} inputs: send one each, or none at all",
            raw.len(),
            inputs.len()
        )));
    }
    inputs
        .into_iter()
        .zip(raw)
        .map(|(input, raw)| {
            check_input(&input)?;
            if input.contents.is_some() {
                return Err(Error::invalid(format!(
                    "input `{}` has both contents and raw_input_contents: send one",
                    input.name
                )));
            }
            let datatype: DataType = input.datatype.parse()?;
            Ok(Tensor::from_raw(input.name, datatype, input.shape, raw)?)
        })
        .collect()
}

fn check_input(input: &InferInputTensor) -> Result<()> {
    if choice(&input.parameters, "shared_memory_region").is_some() {
        return Err(Error::invalid(format!(
            "input `{}`: shared memory is not offered: send the data",
            input.name
        )));
    }
    Ok(())
}

fn typed_input(input: InferInputTensor) -> Result<Tensor> {
    check_input(&input)?;
    let datatype: DataType = input.datatype.parse()?;
    let contents = input.contents.unwrap_or_default();
    let data = typed_data(&input.name, datatype, contents)?;
    Ok(Tensor::new(input.name, input.shape, data)?)
}

fn typed_data(name: &str, datatype: DataType, contents: InferTensorContents) -> Result<TensorData> {
    fn narrow<From: Copy + std::fmt::Display, To: TryFrom<From>>(
        name: &str,
        datatype: DataType,
        values: &[From],
    ) -> Result<Vec<To>> {
        let each = values.iter().map(|&value| {
            To::try_from(value)
                .map_err(|_| Error::invalid(format!("input `{name}`: {value} is out of the range of {datatype}")))
        });
        each.collect()
    }
    Ok(match datatype {
        DataType::Bool => TensorData::Bool(contents.bool_contents),
        DataType::Int8 => TensorData::Int8(narrow(name, datatype, &contents.int_contents)?),
        DataType::Int16 => TensorData::Int16(narrow(name, datatype, &contents.int_contents)?),
        DataType::Int32 => TensorData::Int32(contents.int_contents),
        DataType::Int64 => TensorData::Int64(contents.int64_contents),
        DataType::Uint8 => TensorData::Uint8(narrow(name, datatype, &contents.uint_contents)?),
        DataType::Uint16 => TensorData::Uint16(narrow(name, datatype, &contents.uint_contents)?),
        DataType::Uint32 => TensorData::Uint32(contents.uint_contents),
        DataType::Uint64 => TensorData::Uint64(contents.uint64_contents),
        DataType::Fp32 => TensorData::Fp32(contents.fp32_contents),
        DataType::Fp64 => TensorData::Fp64(contents.fp64_contents),
        DataType::Bytes => TensorData::Bytes(contents.bytes_contents),
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Error::invalid(format!(
                "input `{name}`: {datatype} has no typed contents: send it in raw_input_contents"
            )));
        }
    })
}

fn respond(model_name: String, mut answer: Answer, wanted: &[RequestedOutput]) -> Result<ModelInferResponse> {
    let outputs = select(&mut answer, wanted)?;
    let mut response = ModelInferResponse {
        model_name,
        model_version: answer.version.text.clone(),
        id: answer.id,
        outputs: Vec::with_capacity(outputs.len()),
        raw_output_contents: Vec::with_capacity(outputs.len()),
        ..ModelInferResponse::default()
    };
    for (output, _) in outputs {
        response.outputs.push(InferOutputTensor {
            name: output.name().to_owned(),
            datatype: output.datatype().name().to_owned(),
            shape: output.shape().to_vec(),
            ..InferOutputTensor::default()
        });
        response.raw_output_contents.push(output.into_raw()?);
    }
    Ok(response)
}
