//! Any process is a front door: requests for a role that runs elsewhere are forwarded to it.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;
use hyper_util::{
    client::legacy::{Builder, Client},
    rt::{TokioExecutor, TokioTimer},
};
use modelyard_common::{
    error::{ErrorKind, Problem},
    tls::{ClientTls, Connection, Connector, Protocol},
};
use modelyard_gateway::MODEL_STREAM_INFER;
use tokio::sync::Semaphore;
use tonic::Status;

use super::{
    config::{Config, Role},
    origin,
};

/// Headers that speak of one connection only (RFC 9110, 7.6.1), and the host that was asked for.
const HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
];

/// How many connections to a peer calls share, each those of some clients: whoever fills one, with calls that he does not end, holds up
/// few others.
const SHARED_CONNECTIONS: usize = 8;

/// What may be on its way from a peer over a connection that calls share, in bytes: so much that clients who read their answers
/// slowly do not hold up those of others. How much each of them may have is bounded for itself.
const SHARED_WINDOW_BYTES: u32 = 1 << 30;

/// How many streams are forwarded at once.
const MAX_STREAMS: usize = 1024;

/// How often a peer that is silent is asked whether it is there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Forwards requests to the public listeners of other roles.
pub struct Forwarder {
    config: Arc<Config>,
    http1: Client<Connector, Body>,
    /// By the clients' addresses.
    http2: Vec<Client<Connector, Body>>,
    addresses: RandomState,
    /// Each with a connection of its own: what a stream does not read, or is not read of it, is nobody else's.
    streams: Client<Connector, Body>,
    free_streams: Arc<Semaphore>,
}

/// The role that owns a path of the public listener.
pub fn owner(path: &str) -> Option<Role> {
    if [
        "/v2",
        "/v1/models",
        "/endpoints",
        "/ping",
        "/inference.GRPCInferenceService",
    ]
    .iter()
    .any(|prefix| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }) {
        return Some(Role::Gateway);
    }
    if let Some(below_project) = path.strip_prefix("/projects/") {
        let rest = below_project.split_once('/').map(|(_, rest)| rest)?;
        let is_inference = ["v2/", "v1/models", "endpoints/"]
            .iter()
            .any(|prefix| rest.starts_with(prefix));
        return is_inference.then_some(Role::Gateway);
    }
    if [
        "/api/2.0/",
        "/api/3.0/",
        "/ajax-api/",
        "/get-artifact",
        "/model-versions/get-artifact",
        "/v1/traces",
    ]
    .iter()
    .any(|prefix| path.starts_with(prefix))
    {
        // MLflow's protocol.
        return Some(Role::Registry);
    }
    let mut parts = path.strip_prefix("/api/v1/")?.split('/');
    match parts.next()? {
        "projects" => match parts.nth(1) {
            Some("pipelines" | "pipeline-runs" | "rollouts" | "triggers") => Some(Role::Orchestrator),
            Some("monitors" | "alert-rules" | "alerts" | "labels" | "predictions" | "comparisons") => {
                Some(Role::Monitoring)
            }
            // Projects themselves, and everything else that is in one.
            _ => Some(Role::Registry),
        },
        "auth" | "users" | "service-accounts" | "tokens" | "roles" | "role-bindings" | "policies" | "actions"
        | "audit" | "gc" => Some(Role::Registry),
        _ => None,
    }
}

impl Forwarder {
    /// A forwarder to the peers of the configuration; `tls` is for those with an `https://` address.
    pub fn new(config: Arc<Config>, tls: Option<&ClientTls>) -> Self {
        let connector = |protocol| Connector::new(tls.cloned(), protocol);
        Self {
            config,
            http1: Client::builder(TokioExecutor::new()).build(connector(Protocol::Http1)),
            http2: (0..SHARED_CONNECTIONS)
                .map(|_| {
                    http2()
                        .http2_initial_connection_window_size(SHARED_WINDOW_BYTES)
                        .build(connector(Protocol::Http2))
                })
                .collect(),
            addresses: RandomState::new(),
            streams: http2().pool_max_idle_per_host(0).build(connector(Protocol::Http2)),
            free_streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    /// What carries the calls of a client.
    fn shared(&self, client: IpAddr) -> &Client<Connector, Body> {
        let place = self.addresses.hash_one(client) as usize % self.http2.len();
        self.http2.get(place).unwrap_or(&self.streams)
    }

    /// Whether a role runs in this process.
    pub fn is_here(&self, role: Role) -> bool {
        self.config.roles.contains(&role)
    }

    /// Sends the request to the role's public listener and gives its answer back.
    pub async fn forward(&self, role: Role, connection: Connection, mut request: Request) -> Response {
        let Some(public) = &self.config.peers.get(role).public else {
            let detail = format!(
                "this process does not have the role {0}: ask another, or set `peers.{0}.public`",
                role.name()
            );
            return Problem::new(ErrorKind::Unavailable, "ROLE_ELSEWHERE", detail).into_response();
        };
        let Some(uri) = target(public, request.uri()) else {
            let detail = format!(
                "`peers.{}.public` is not an address: write it as http://HOST:PORT or https://HOST:PORT",
                role.name()
            );
            return Problem::new(ErrorKind::Unavailable, "ROLE_ELSEWHERE", detail).into_response();
        };
        *request.uri_mut() = uri;
        let is_grpc = is_grpc(request.headers());
        remove_hop_headers(request.headers_mut(), is_grpc);
        origin::name(&connection, request.headers_mut());
        *request.version_mut() = if is_grpc {
            http::Version::HTTP_2
        } else {
            http::Version::HTTP_11
        };
        let is_stream = is_grpc && request.uri().path() == MODEL_STREAM_INFER;
        let place = is_stream.then(|| Arc::clone(&self.free_streams).try_acquire_owned());
        let Ok(place) = place.transpose() else {
            let full = format!("{MAX_STREAMS} streams are forwarded here already: end some, or ask another process");
            return Status::resource_exhausted(full).into_http();
        };
        let client = if is_stream {
            &self.streams
        } else if is_grpc {
            self.shared(connection.remote.ip())
        } else {
            &self.http1
        };
        match client.request(request).await {
            Ok(response) => response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    // It is held as long as the answer.
                    let _ = &place;
                    frame
                }))
            }),
            Err(error) => {
                tracing::warn!(role = role.name(), error = %modelyard_common::error::Chain(&error), "a request could not be forwarded");
                let detail = format!("the {} does not answer at present: try again", role.name());
                Problem::new(ErrorKind::Unavailable, "ROLE_AWAY", detail).into_response()
            }
        }
    }
}

fn http2() -> Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .http2_only(true)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// Whether a request speaks gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn target(base: &str, uri: &Uri) -> Option<Uri> {
    let mut parts = base.parse::<Uri>().ok()?.into_parts();
    let path = uri.path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).ok()
}

/// gRPC keeps `te: trailers`, which it asks for.
fn remove_hop_headers(headers: &mut HeaderMap, is_grpc: bool) {
    for name in HOP_HEADERS {
        if !(is_grpc && name == header::TE) {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_owner() {
        for (path, role) in [
            ("/v2/models/flight-delay/infer", Some(Role::Gateway)),
            ("/v2", Some(Role::Gateway)),
            ("/v2x", None),
            ("/inference.GRPCInferenceService/ModelInfer", Some(Role::Gateway)),
            ("/endpoints/flight-delay/invocations", Some(Role::Gateway)),
            ("/api/v1/projects/default/endpoints/flight-delay", Some(Role::Registry)),
            ("/api/v1/projects/default/pipeline-runs", Some(Role::Orchestrator)),
            ("/api/v1/projects/default/rollouts/7/abort", Some(Role::Orchestrator)),
            ("/api/v1/projects/default/endpoints/e/rollback", Some(Role::Registry)),
            ("/api/v1/projects/default/labels", Some(Role::Monitoring)),
            ("/api/v1/projects/default", Some(Role::Registry)),
            ("/api/v1/projects", Some(Role::Registry)),
            ("/api/v1/auth/me", Some(Role::Registry)),
            ("/api/2.0/mlflow/runs/create", Some(Role::Registry)),
            ("/ajax-api/3.0/mlflow/traces", Some(Role::Registry)),
            ("/v1/traces", Some(Role::Registry)),
            ("/api/v1/audit/events", Some(Role::Registry)),
            ("/projects/team/v2/models/flight-delay/infer", Some(Role::Gateway)),
            ("/projects/team", None),
            ("/projects/team/other", None),
            ("/api/v1/openapi.json", None),
        ] {
            assert_eq!(owner(path), role, "{path}");
        }
    }

    #[test]
    fn the_target_keeps_path_and_query() {
        let uri = target("http://10.0.0.7:7070", &Uri::from_static("/v2/models?x=1")).unwrap();
        assert_eq!(uri.to_string(), "http://10.0.0.7:7070/v2/models?x=1");
    }
}
