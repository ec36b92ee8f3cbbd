//! The two listeners, split by trust: public for clients, internal for services and probes.

use std::{convert::Infallible, future::ready, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use modelyard_common::{
    Context,
    error::{ErrorKind, Problem},
    http as stack,
    lifecycle::Lifecycle,
    readiness::Readiness,
    rpc::{self, ClusterKey, ServerStack},
    serve::{Answering, Answers, answer, serve},
    telemetry,
    tls::{Connection, ServerTls, Tls},
};
use modelyard_gateway::{Predictions, in_shape};
use modelyard_registry::mlflow::MLFLOW_VERSION;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, service::Routes};
use tower::ServiceExt;
use tracing::Instrument as _;
use utoipa::openapi::{InfoBuilder, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::{
    api_docs,
    config::{Config, Role},
    data_dir::Addresses,
    ending::{answer_until, is_endless, request_until},
    forward::{Forwarder, is_grpc, owner},
    guard,
    origin::Origins,
    roles::Services,
};

/// Calls to the internal listener that were refused because they came from no peer.
const REFUSED: &str = "modelyard_internal_calls_refused_total";

/// The header with the version of this program.
const VERSION_HEADER: &str = "modelyard-version";

/// How much of the name of an unknown method is said back, in characters.
const MAX_METHOD_CHARS: usize = 200;

const NO_PEER: &str = "only peers may call this: connect with a certificate that `tls.internal.ca_file` of this process signed, or set the same `cluster_key`";

/// Listeners that are bound and not served yet.
pub struct Listeners {
    public: TcpListener,
    internal: TcpListener,
}

/// Binds both listeners.
pub async fn bind(config: &Config) -> anyhow::Result<Listeners> {
    Ok(Listeners {
        public: bind_one(config.listen, "--listen").await?,
        internal: bind_one(config.internal_listen, "--internal-listen").await?,
    })
}

async fn bind_one(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}: stop the program that uses this port, or choose another with {flag} ADDR:PORT"
        )
    })
}

impl Listeners {
    /// Serves both until the soft end; requests that have begun are answered.
    pub fn serve(self, config: &Config, context: &Context, tls: &Tls, services: Services) -> anyhow::Result<Addresses> {
        let addresses = Addresses {
            public: url(&self.public, tls.public.as_ref())?,
            internal: url(&self.internal, tls.internal.as_ref())?,
            pid: std::process::id(),
        };
        let (http, description) = describe(services.http);
        let public = Front {
            http: public_router(context, http, services.inference_http, description),
            grpc: services.inference_grpc,
            predictions: services.predictions,
            forwarder: Forwarder::new(Arc::new(config.clone()), tls.forwarding.as_ref()),
            is_open: !config.auth.sign_in,
            origins: Origins::new(config.auth.trusted_proxies.clone()),
            soft: context.lifecycle.soft(),
            is_traced: config.telemetry.otlp_endpoint.is_some(),
        };
        let public = Arc::new(public);
        let public = Answers::new(move |connection, request| public.answer(connection, request));
        let contracts = Contracts {
            services: services.internal_grpc,
            door: Door {
                is_guarded: config.requires_peer_proof(),
                cluster_key: config.cluster_key()?,
            },
        };
        let contracts = Router::new().fallback(internal_grpc).with_state(Arc::new(contracts));
        let mut internal = stack::stack(probes(context.readiness.clone()).route("/metrics", get(render_metrics)))
            .fallback_service(contracts);
        if !config.requires_peer_proof() {
            internal = internal.layer(from_fn(from_this_machine));
        }
        let lifecycle = &context.lifecycle;
        spawn(lifecycle, "public listener", self.public, tls.public.as_ref(), public);
        spawn(
            lifecycle,
            "internal listener",
            self.internal,
            tls.internal.as_ref(),
            internal.into(),
        );
        Ok(addresses)
    }
}

fn url(listener: &TcpListener, tls: Option<&ServerTls>) -> anyhow::Result<String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{}", listener.local_addr()?))
}

/// The routes of all services here, and what `openapi.json` says of them.
fn describe(http: OpenApiRouter) -> (Router, OpenApi) {
    let (http, mut description) = http.split_for_parts();
    description.info = InfoBuilder::new()
        .title("Modelyard")
        .version(env!("CARGO_PKG_VERSION"))
        .build();
    (http, description)
}

fn spawn(lifecycle: &Lifecycle, name: &'static str, listener: TcpListener, tls: Option<&ServerTls>, answers: Answers) {
    lifecycle.spawn(name, serve(listener, tls.cloned(), answers, lifecycle.soft()));
}

/// Without proof only this machine reaches the internal listener, but so does a web page in a browser on it.
async fn from_this_machine(request: Request, next: Next) -> Response {
    match guard::refuse(&request) {
        Some(refused) => refused,
        None => next.run(request).await,
    }
}

/// What answers on the public listener: gRPC goes to the gateway's contract, HTTP to the routes here, and both onward when
/// their role is elsewhere.
struct Front {
    predictions: Option<Predictions>,
    http: Router,
    grpc: Option<Routes>,
    forwarder: Forwarder,
    /// Whether nobody is asked to sign in, so that pages of others must be kept away.
    is_open: bool,
    origins: Origins,
    /// Cancelled at the soft end, with which streams end.
    soft: CancellationToken,
    /// Whether spans go anywhere: what answers predictions makes none by itself.
    is_traced: bool,
}

impl Front {
    fn answer(self: &Arc<Self>, mut connection: Connection, mut request: Request) -> Answering {
        let owner = owner(request.uri().path());
        if let Some(refused) = self.receive(&mut connection, &mut request) {
            return if owner == Some(Role::Gateway) {
                Box::pin(in_shape(refused))
            } else {
                Box::pin(ready(refused))
            };
        }
        if self.is_traced && owner == Some(Role::Gateway) {
            let span = tracing::info_span!("inference", http.request.method = %request.method(), url.path = request.uri().path());
            telemetry::continue_trace(&span, request.headers());
            return Box::pin(self.route(owner, connection, request).instrument(span));
        }
        self.route(owner, connection, request)
    }

    fn route(self: &Arc<Self>, owner: Option<Role>, connection: Connection, request: Request) -> Answering {
        let peer = owner.filter(|role| !self.forwarder.is_here(*role));
        let is_grpc = is_grpc(request.headers());
        if let (None, Some(predictions)) = (peer, &self.predictions)
            && let Some(asked) = Predictions::asked(&request, is_grpc)
        {
            return predictions.answer(asked, connection.remote.ip(), request);
        }
        let is_inference = !is_grpc && owner == Some(Role::Gateway);
        if peer.is_none() && !is_grpc && !is_inference {
            return answer(&self.http, connection, request);
        }
        let is_endless = is_grpc && is_endless(request.uri().path());
        let request = if is_endless {
            request_until(&self.soft, request)
        } else {
            request
        };
        let front = Arc::clone(self);
        Box::pin(async move {
            let response = match (peer, &front.grpc) {
                (Some(role), _) => front.forwarder.forward(role, connection, request).await,
                (None, _) if !is_grpc => answer(&front.http, connection, request).await,
                (None, Some(routes)) => call_grpc(routes.clone(), connection, request).await,
                (None, None) => Status::unimplemented("this process serves no gRPC to clients").into_http(),
            };
            if is_endless {
                answer_until(&front.soft, response)
            } else if is_inference {
                in_shape(response).await
            } else {
                response
            }
        })
    }

    /// What every request of a client must pass; the answer to one that does not.
    fn receive(&self, connection: &mut Connection, request: &mut Request) -> Option<Response> {
        let foreign = if self.is_open { guard::refuse(request) } else { None };
        let refused = foreign.or_else(|| guard::refuse_nul(request.uri()));
        rpc::remove_identity(request.headers_mut());
        self.origins.apply(connection, request.headers());
        refused
    }
}

async fn call_grpc(routes: Routes, connection: Connection, mut request: Request) -> Response {
    request.extensions_mut().insert(connection);
    let path = request.uri().path().to_owned();
    let request = request.map(tonic::body::Body::new);
    let response = infallible(routes.oneshot(request).await).map(axum::body::Body::new);
    match Status::from_header_map(response.headers()) {
        // Whoever does not know the method says nothing of it.
        Some(status) if status.code() == Code::Unimplemented && status.message().is_empty() => {
            let path: String = path.chars().take(MAX_METHOD_CHARS).collect();
            Status::unimplemented(format!("the method `{path}` is not offered here")).into_http()
        }
        _ => response,
    }
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// The services' own contracts, and who may call them.
struct Contracts {
    services: Vec<(&'static str, Routes)>,
    door: Door,
}

async fn internal_grpc(State(contracts): State<Arc<Contracts>>, mut request: Request) -> Response {
    if let Some(refused) = contracts.door.refuse(&request) {
        return refused;
    }
    // The cluster key has done its work: no handler and no log has it.
    request.headers_mut().remove(header::AUTHORIZATION);
    let path = request.uri().path();
    let Some((_, routes)) = contracts.services.iter().find(|(prefix, _)| path.starts_with(prefix)) else {
        return if is_grpc(request.headers()) {
            Status::unimplemented("this process does not have the role that answers this call").into_http()
        } else {
            stack::not_found(request).await.into_response()
        };
    };
    let request = request.map(tonic::body::Body::new);
    infallible(ServerStack::new(routes.clone()).oneshot(request).await).map(axum::body::Body::new)
}

/// Tells peers from others on the internal listener. A peer may say which service it is and for whom it works.
struct Door {
    /// Without a guard every caller counts as a peer: only this machine reaches the listener then.
    is_guarded: bool,
    cluster_key: Option<ClusterKey>,
}

impl Door {
    /// The answer to a call that does not come from a peer.
    fn refuse(&self, request: &Request) -> Option<Response> {
        if !self.is_guarded {
            return None;
        }
        let connection = request.extensions().get::<Connection>();
        let has_certificate = connection.is_some_and(|connection| connection.verified_peer);
        let has_key = || {
            self.cluster_key
                .as_ref()
                .is_some_and(|key| key.admits(request.headers()))
        };
        if has_certificate || has_key() {
            return None;
        }
        metrics::counter!(REFUSED).increment(1);
        tracing::warn!(remote = ?connection.map(|connection| connection.remote), path = request.uri().path(), "a call that does not come from a peer was refused");
        Some(if is_grpc(request.headers()) {
            Status::unauthenticated(NO_PEER).into_http()
        } else {
            Problem::new(ErrorKind::Unauthenticated, "NO_PEER", NO_PEER).into_response()
        })
    }
}

fn public_router(context: &Context, http: Router, inference: Option<Router>, description: OpenApi) -> Router {
    let described = Arc::new(description);
    let api = http
        .route("/", get(root))
        .route("/api/docs", get(api_docs::page))
        .route("/api/v1/openapi.json", get(move || async move { Json(described) }))
        .merge(probes(context.readiness.clone()))
        .fallback(stack::not_found);
    let api = stack::stack(api);
    match inference {
        // The inference routes measure themselves: the hot path pays for nothing else.
        Some(inference) => inference.fallback_service(api),
        None => api,
    }
}

fn probes<S: Clone + Send + Sync + 'static>(readiness: Readiness) -> Router<S> {
    Router::new()
        .route("/livez", get(|| async { stack::plain(StatusCode::OK, "ok\n") }))
        .route("/health", get(|| async { stack::plain(StatusCode::OK, "OK") }))
        .route("/version", get(version))
        .route("/readyz", get(move || async move { readiness_of(&readiness) }))
}

/// The client of KServe asks here whether the server is alive; people with a browser want the documentation.
async fn root(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|accepts| accepts.contains("text/html")) {
        return Redirect::temporary("/api/docs").into_response();
    }
    Json(json!({"status": "alive"})).into_response()
}

/// MLflow's clients choose by this what they use; the server's own version stands beside it.
async fn version() -> Response {
    let own = [(VERSION_HEADER, env!("CARGO_PKG_VERSION"))];
    (own, stack::plain(StatusCode::OK, MLFLOW_VERSION)).into_response()
}

fn readiness_of(readiness: &Readiness) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        return stack::plain(StatusCode::OK, "ready\n");
    }
    stack::plain(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
}

async fn render_metrics() -> Response {
    stack::plain(StatusCode::OK, telemetry::render_metrics())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use modelyard_common::{clock::SystemClock, config::Secret, id::RandomIds};
    use serde_json::Value;

    use super::*;
    use crate::{committed, serve::roles};

    /// What a server in all roles says of its API.
    async fn description() -> OpenApi {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock);
        let context = Context {
            node: "test".into(),
            data_dir: Arc::new(folder.path().to_owned()),
            ids: RandomIds::new(clock.clone()),
            clock,
            lifecycle: Lifecycle::default(),
            readiness: Readiness::default(),
        };
        let services = roles::start(&Config::default(), &context, rpc::PeerIdentity::default())
            .await
            .unwrap();
        context.lifecycle.abort();
        describe(services.http).1
    }

    #[test]
    fn the_internal_listener_tells_peers_from_others() {
        const KEY: &str = "0123456789abcdef0123456789abcdef";
        let call = |verified_peer, key: Option<&str>| {
            let remote = SocketAddr::from(([10, 0, 0, 7], 40_000));
            let mut request = Request::new(axum::body::Body::empty());
            request.extensions_mut().insert(Connection { remote, verified_peer });
            if let Some(key) = key {
                let value = format!("Bearer {key}").parse().unwrap();
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
            request
        };
        let key = ClusterKey::new(&Secret::new(KEY)).unwrap();
        let door = |is_guarded, cluster_key| Door {
            is_guarded,
            cluster_key,
        };
        assert!(door(false, None).refuse(&call(false, None)).is_none());
        let by_certificate = door(true, None);
        assert!(by_certificate.refuse(&call(true, None)).is_none());
        let refused = by_certificate.refuse(&call(false, Some(KEY))).unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let by_key = door(true, Some(key));
        assert!(by_key.refuse(&call(false, Some(KEY))).is_none());
        assert!(by_key.refuse(&call(true, None)).is_none());
        assert!(by_key.refuse(&call(false, None)).is_some());
        assert!(
            by_key
                .refuse(&call(false, Some("0123456789abcdef0123456789abcdeX")))
                .is_some()
        );
        assert!(by_key.refuse(&Request::new(axum::body::Body::empty())).is_some());
    }

    #[tokio::test]
    async fn the_description_is_as_committed() {
        let text = description().await.to_pretty_json().unwrap();
        committed::check("docs/src/openapi.json", &(text + "\n"));
    }

    #[tokio::test]
    async fn every_operation_has_an_id_of_its_own_a_tag_and_a_summary() {
        const METHODS: [&str; 5] = ["get", "put", "post", "delete", "head"];
        let description = serde_json::to_value(description().await).unwrap();
        let mut ids: BTreeMap<String, String> = BTreeMap::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(METHODS.contains(&method.as_str()), "{method} {path}");
                let place = format!("{method} {path}");
                let id = operation["operationId"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{place} has no id"));
                if let Some(other) = ids.insert(id.to_owned(), place.clone()) {
                    panic!("`{id}` is both {other} and {place}: give one of them an operation_id");
                }
                let tags = operation["tags"].as_array().map_or(0, Vec::len);
                assert_eq!(tags, 1, "{place} is in one group");
                let summary = operation["summary"].as_str().unwrap_or_default();
                assert!(
                    !summary.is_empty() && !summary.contains('\n'),
                    "{place} begins its doc comment with one line: `{summary}`"
                );
            }
        }
        assert!(ids.len() > 50, "{}", ids.len());
        assert_resolved(&description, &description);
    }

    /// Everything that is referred to is there.
    fn assert_resolved(description: &Value, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    let pointer = reference.trim_start_matches('#');
                    assert!(description.pointer(pointer).is_some(), "{reference} leads nowhere");
                }
                fields.values().for_each(|value| assert_resolved(description, value));
            }
            Value::Array(items) => items.iter().for_each(|value| assert_resolved(description, value)),
            _ => {}
        }
    }
}
