//! The HTTP faces of prediction: the Open Inference Protocol, MLflow's scoring, TensorFlow Serving's.
//!
//! This is the hot path: no span and no log line a request; the metrics are the gateway's own.

mod extensions;

use std::{borrow::Cow, convert::Infallible, net::IpAddr, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body as HttpBody,
    extract::{DefaultBodyLimit, FromRequestParts, Request, State, rejection::BytesRejection},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use modelyard_auth::{
    Access, Action,
    http::{admit, authenticate, id_of_answer, return_id, source},
};
use modelyard_common::{
    error::{Fault as _, Problem},
    extract::Path,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    client::Client,
    error::{Error, Result},
    memory::Share,
    meters,
    oip::{
        self, Body, EXTENSIONS, Encoding, MAX_BODY_BYTES, RequestInputs, SERVER_NAME, SERVER_VERSION, compress,
        decompress,
    },
    options::Attribute,
    predict::{Gateway, Inputs, Request as PredictRequest},
    scoring,
    spool::Protocol,
};

/// How many bytes of a body are JSON.
static HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The longest problem that is put into another shape, in bytes.
const MAX_PROBLEM_BYTES: usize = 64 << 10;

/// Where elements of any datatype can be read, in bytes.
const ALIGNMENT: usize = 16;

/// Before the paths of endpoints, where these name the project.
const IN_PROJECT: &str = "/projects/{project}";

static JSON: HeaderValue = HeaderValue::from_static("application/json");
static BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

type Shared = State<Arc<Gateway>>;
pub(crate) type Received = Result<Bytes, BytesRejection>;

/// All routes of prediction. Those that [`crate::Predictions`] does not answer first come here.
pub(crate) fn router(gateway: Arc<Gateway>, access: Access) -> Router {
    let predictions = Router::new()
        .route("/v2/models/{model}/infer", post(infer_routed))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer_routed))
        .with_state((Arc::clone(&gateway), access.clone()));
    let models = Router::new()
        .route("/v2/models", get(models))
        .route("/v2/models/{model}", get(model))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/config", get(extensions::config))
        .route("/v2/models/{model}/stats", get(extensions::statistics))
        .route("/v2/models/stats", get(extensions::all_statistics))
        .route("/v2/models/{model}/versions/{version}", get(model))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/config", get(extensions::config))
        .route(
            "/v2/models/{model}/versions/{version}/stats",
            get(extensions::statistics),
        )
        .route("/v2/repository/index", post(extensions::index))
        .route("/v2/repository/{repository}/index", post(extensions::index))
        .route("/v2/repository/models/{model}/load", post(extensions::load))
        .route("/v2/repository/models/{model}/unload", post(extensions::unload))
        .route(
            "/v2/repository/{repository}/models/{model}/load",
            post(extensions::load),
        )
        .route(
            "/v2/repository/{repository}/models/{model}/unload",
            post(extensions::unload),
        )
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(scoring::model_status).post(scoring::predict))
        .route(
            "/v1/models/{model}/versions/{version}",
            get(scoring::model_status).post(scoring::predict),
        )
        .route("/endpoints/{model}/invocations", post(scoring::invocations))
        .route_layer(from_fn_with_state(access, authenticate));
    Router::new()
        .merge(models.clone())
        .nest(IN_PROJECT, models)
        .route("/v2", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/ping", get(ping))
        .route(
            "/v2/systemsharedmemory/{*rest}",
            get(no_shared_memory).post(no_shared_memory),
        )
        .route(
            "/v2/cudasharedmemory/{*rest}",
            get(no_shared_memory).post(no_shared_memory),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(gateway)
        .merge(predictions.clone())
        .nest(IN_PROJECT, predictions)
        .method_not_allowed_fallback(wrong_method)
}

/// An error in the protocol's shape.
pub(crate) fn refuse(error: Error) -> Response {
    refuse_with(error, |problem| json!({ "error": problem.detail }))
}

/// An error in some protocol's shape, with when to ask again.
pub(crate) fn refuse_with(error: Error, shape: impl FnOnce(Problem) -> Value) -> Response {
    let (status, wait) = (error.status(), error.retry_after());
    let mut response = json_response(status, &shape(Problem::from(error)));
    if let Some(wait) = wait {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn refuse_as(status: StatusCode, message: &str) -> Response {
    json_response(status, &json!({ "error": message }))
}

/// A problem as everybody else here tells it, in the shape in which clients of the inference protocols read it; any other answer as
/// it is.
pub async fn in_shape(response: Response) -> Response {
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes() == Problem::MEDIA_TYPE.as_bytes());
    if !is_problem {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let problem = axum::body::to_bytes(body, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    let problem: Value = serde_json::from_slice(&problem).unwrap_or_default();
    let message = ["detail", "title"].iter().find_map(|field| problem[field].as_str());
    let body = json!({ "error": message.unwrap_or("the request failed") });
    parts.headers.insert(header::CONTENT_TYPE, JSON.clone());
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, HttpBody::from(body.to_string()))
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, JSON.clone())], body.to_string()).into_response()
}

fn or_refuse(result: Result<Value>) -> Response {
    match result {
        Ok(body) => json_response(StatusCode::OK, &body),
        Err(error) => refuse(error),
    }
}

/// The body, without its compression.
///
/// # Errors
/// `BodyTooLarge`, `MemoryFull`, `UnsupportedMedia`, or `InvalidRequest` if it broke off.
pub(crate) fn received(headers: &HeaderMap, body: Received, share: &Share) -> Result<Bytes> {
    let body = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            too_large()
        } else {
            Error::invalid(rejection.body_text())
        }
    })?;
    share.add(body.len())?;
    unpacked(headers, body, share)
}

fn unpacked(headers: &HeaderMap, body: Bytes, share: &Share) -> Result<Bytes> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(body);
    };
    let unpacked = decompress(Some(encoding), body)?;
    share.add(unpacked.len())?;
    Ok(unpacked)
}

async fn wrong_method() -> Response {
    refuse_as(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path takes another method: predictions are POST, everything else is GET",
    )
}

async fn server() -> Response {
    json_response(
        StatusCode::OK,
        &json!({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS}),
    )
}

async fn live() -> Response {
    json_response(StatusCode::OK, &json!({"live": true}))
}

async fn ready(State(gateway): Shared) -> Response {
    let ready = gateway.is_ready();
    json_response(ready_status(ready), &json!({"ready": ready}))
}

async fn ping(State(gateway): Shared) -> Response {
    let ready = gateway.is_ready();
    modelyard_common::http::plain(ready_status(ready), "\n")
}

pub(crate) const fn ready_status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn models(State(gateway): Shared, client: Client) -> Response {
    let mut names = gateway.table.load().names(&client.project);
    names.retain(|name| client.sees(name));
    json_response(StatusCode::OK, &json!({"models": names}))
}

async fn no_shared_memory() -> Response {
    refuse_as(
        StatusCode::NOT_IMPLEMENTED,
        "shared memory is not offered: send tensors in the request",
    )
}

/// What a path names, refused in the protocol's shape if it is no text.
pub(crate) struct InPath<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let named = Path::from_request_parts(parts, state).await;
        named
            .map(|Path(named)| Self(named))
            .map_err(|problem| refuse(Error::invalid(problem.detail)))
    }
}

/// The parts of a path below `/v2/models`.
#[derive(Deserialize)]
pub(crate) struct Named {
    /// The endpoint's project, where the path names it.
    pub(crate) project: Option<String>,
    /// The endpoint.
    pub(crate) model: String,
    /// The version that must answer.
    pub(crate) version: Option<String>,
}

async fn model(State(gateway): Shared, client: Client, InPath(named): InPath<Named>) -> Response {
    or_refuse(describe(&gateway, &client, &named))
}

fn describe(gateway: &Gateway, client: &Client, named: &Named) -> Result<Value> {
    client.authorize(Action::EndpointRead, &named.model)?;
    let endpoint = gateway.endpoint(&client.project, &named.model)?;
    let described = endpoint.describe(named.version.as_deref())?;
    Ok(json!({
        "name": named.model,
        "versions": endpoint.versions(),
        "platform": described.platform().name(),
        "inputs": described.signature().inputs,
        "outputs": described.signature().outputs,
    }))
}

async fn model_ready(State(gateway): Shared, client: Client, InPath(named): InPath<Named>) -> Response {
    let described = client
        .authorize(Action::EndpointRead, &named.model)
        .and_then(|()| gateway.endpoint(&client.project, &named.model))
        .and_then(|endpoint| endpoint.describe(named.version.as_deref()).map(|_| ()));
    let name = &named.model;
    match described {
        Ok(()) => json_response(StatusCode::OK, &json!({"name": name, "ready": true})),
        Err(error @ Error::NotReady { .. }) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"name": name, "ready": false, "error": error.to_string()}),
        ),
        Err(error) => refuse(error),
    }
}

async fn infer_routed(
    State((gateway, access)): State<(Arc<Gateway>, Access)>,
    named: Result<InPath<Named>, Response>,
    request: Request,
) -> Response {
    let source = source(request.extensions());
    let named = named.map(|InPath(named)| named);
    infer(gateway, access, named, source, request).await
}

/// A prediction, or the answer to what names none. It asks by hand who sent it, and how long its body is, because each layer and
/// extension costs it dearly.
pub(crate) async fn infer(
    gateway: Arc<Gateway>,
    access: Access,
    named: Result<Named, Response>,
    source: Option<IpAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let admitted = admit(&access, &parts, source).await;
    let (caller, named) = match (admitted, named) {
        (Ok(caller), Ok(named)) => (caller, named),
        (Err(refused), _) => return in_shape(refused).await,
        (_, Err(refused)) => return refused,
    };
    let arrived = Instant::now();
    let headers = parts.headers;
    let client = Client::new(caller, named.project.as_deref(), &headers);
    let header_bytes = header_bytes(&headers);
    let share = gateway.memory.share();
    let body = whole(
        body,
        header_bytes.as_ref().map_or(0, |bytes| bytes.unwrap_or(0)),
        &share,
    )
    .await;
    let accepted = Encoding::accepted(headers.get(header::ACCEPT_ENCODING));
    let received = body.and_then(|body| Ok((unpacked(&headers, body, &share)?, header_bytes?)));
    let mut response = match run(&gateway, &client, &named, &headers, received, arrived).await {
        Ok(body) => respond(body, accepted),
        Err(error) => refuse(error),
    };
    return_id(id_of_answer(&headers), &mut response);
    response
}

/// The body in one piece. What is behind its first `header_bytes` lies such that its elements can be read in place.
async fn whole(mut body: HttpBody, header_bytes: usize, share: &Share) -> Result<Bytes> {
    // Most bodies come in one piece, and are taken as they are.
    let first = next_piece(&mut body).await?.unwrap_or_default();
    share.add(first.len())?;
    if first.len() > MAX_BODY_BYTES {
        return Err(too_large());
    }
    let second = if body.is_end_stream() {
        None
    } else {
        next_piece(&mut body).await?
    };
    let Some(second) = second else {
        return Ok(first);
    };
    // Whatever length is said, which is not checked yet.
    let padding = (ALIGNMENT - header_bytes % ALIGNMENT) % ALIGNMENT;
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    // Memory is taken from the system as the pieces come, whatever was announced.
    let mut whole = Vec::with_capacity(padding + first.len() + second.len() + announced.min(MAX_BODY_BYTES));
    whole.resize(padding, 0);
    whole.extend_from_slice(&first);
    let mut next = Some(second);
    while let Some(piece) = next {
        share.add(piece.len())?;
        if whole.len() - padding + piece.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        whole.extend_from_slice(&piece);
        next = next_piece(&mut body).await?;
    }
    Ok(Bytes::from(whole).slice(padding..))
}

/// The body's next bytes.
async fn next_piece(body: &mut HttpBody) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::invalid(format!("the body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

const fn too_large() -> Error {
    Error::BodyTooLarge {
        limit_bytes: MAX_BODY_BYTES,
    }
}

async fn run(
    gateway: &Gateway,
    client: &Client,
    named: &Named,
    headers: &HeaderMap,
    received: Result<(Bytes, Option<usize>)>,
    arrived: Instant,
) -> Result<Body> {
    client.authorize(Action::EndpointPredict, &named.model)?;
    let read = received
        .and_then(|(body, header_bytes)| oip::read(&body, header_bytes))
        .inspect_err(|_| meters::refused_request())?;
    let names: Vec<String> = read.outputs.iter().map(|output| output.name.clone()).collect();
    let others = read.others;
    let answer = gateway
        .predict(PredictRequest {
            client,
            endpoint: &named.model,
            version: named.version.as_deref(),
            id: read.id,
            inputs: match read.inputs {
                RequestInputs::Tensors(inputs) => Inputs::Tensors(inputs),
                RequestInputs::Whole(body) => Inputs::Of(Box::new(|signature| oip::whole_body(signature, body))),
            },
            event_time: read.event_time,
            arrived,
            timeout: read.timeout,
            priority: read.priority,
            carried: &|attribute| match attribute {
                Attribute::Header(name) => header_value(headers, name),
                Attribute::Parameter(name) => {
                    let found = others.iter().find(|(other, _)| other == name);
                    found.map(|(_, value)| Cow::Borrowed(value.as_str()))
                }
            },
            outputs: &names,
            protocol: Protocol::Http,
        })
        .await?;
    oip::write(answer, &read.outputs, read.binary)
}

/// A header's value, where it is text.
pub(crate) fn header_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    headers.get(name)?.to_str().ok().map(Cow::Borrowed)
}

fn header_bytes(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(&HEADER_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Error::invalid("Inference-Header-Content-Length is no number of bytes"))
}

fn respond(body: Body, accepted: Option<Encoding>) -> Response {
    let compressed = accepted.and_then(|encoding| Some((compress(&body.parts.concat(), encoding)?, encoding)));
    let mut response = Response::new(HttpBody::empty());
    let headers = response.headers_mut();
    match body.header_bytes {
        None => {
            headers.insert(header::CONTENT_TYPE, JSON.clone());
        }
        Some(bytes) => {
            headers.insert(header::CONTENT_TYPE, BINARY.clone());
            headers.insert(&HEADER_LENGTH, HeaderValue::from(bytes));
        }
    }
    let body = if let Some((bytes, encoding)) = compressed {
        headers.insert(header::CONTENT_ENCODING, encoding.header());
        HttpBody::from(bytes)
    } else {
        let length = body.length();
        let mut parts = body.parts;
        if parts.len() > 1 {
            headers.insert(header::CONTENT_LENGTH, length.into());
            HttpBody::from_stream(stream::iter(parts.into_iter().map(Ok::<_, Infallible>)))
        } else {
            HttpBody::from(parts.pop().unwrap_or_default())
        }
    };
    *response.body_mut() = body;
    response
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::memory::RequestMemory;

    fn share() -> Share {
        RequestMemory::new(u64::MAX).share()
    }

    fn in_pieces(pieces: &[&'static [u8]]) -> HttpBody {
        HttpBody::from_stream(stream::iter(pieces.to_vec()).map(Ok::<_, Infallible>))
    }

    #[tokio::test]
    async fn a_body_in_pieces_becomes_one_with_its_tensors_aligned() {
        for header_bytes in [0, 1, 3, 7, 16, 21, usize::MAX] {
            let body = in_pieces(&[b"{ \"a\": 1 }", b"", b"0123456789", b"abcdefghij"]);
            let whole = whole(body, header_bytes, &share()).await.unwrap();
            assert_eq!(whole, "{ \"a\": 1 }0123456789abcdefghij");
            if let Some(tensors) = whole.get(header_bytes..) {
                assert_eq!(tensors.as_ptr().addr() % align_of::<f64>(), 0, "{header_bytes}");
            }
        }
        for (pieces, expected) in [(&[][..], ""), (&[b"one".as_slice()][..], "one")] {
            assert_eq!(whole(in_pieces(pieces), 2, &share()).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_body_that_grows_beyond_the_limit_is_refused() {
        static PIECE: [u8; 1 << 20] = [0; 1 << 20];
        let endless = stream::repeat(PIECE.as_slice()).map(Ok::<_, Infallible>);
        let refused = whole(HttpBody::from_stream(endless), 0, &share()).await.unwrap_err();
        assert!(matches!(refused, Error::BodyTooLarge { .. }), "{refused}");
        let little = RequestMemory::new(5 << 20);
        let endless = stream::repeat(PIECE.as_slice()).map(Ok::<_, Infallible>);
        let refused = whole(HttpBody::from_stream(endless), 0, &little.share())
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::MemoryFull { .. }), "{refused}");
    }
}
