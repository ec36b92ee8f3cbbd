//! The two listeners, split by trust: public for clients, internal for services and probes.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Request, State},
    middleware,
    response::{IntoResponse, Redirect, Response},
    routing::get,
    serve::ListenerExt,
};
use http::StatusCode;
use modelyard_common::{
    Context, http as stack, lifecycle::Lifecycle, readiness::Readiness, rpc::ServerStack, telemetry,
};
use tokio::net::TcpListener;
use tonic::{Status, service::Routes};
use tower::ServiceExt;

use super::{
    api_docs,
    config::Config,
    data_dir::Addresses,
    forward::{Forwarder, is_grpc},
    guard,
    roles::Services,
};

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
    pub fn serve(self, config: &Config, context: &Context, services: Services) -> anyhow::Result<Addresses> {
        let addresses = Addresses {
            public: format!("http://{}", self.public.local_addr()?),
            internal: format!("http://{}", self.internal.local_addr()?),
            pid: std::process::id(),
        };
        let (http, mut description) = services.http.split_for_parts();
        description.info = utoipa::openapi::InfoBuilder::new()
            .title("Modelyard")
            .version(env!("CARGO_PKG_VERSION"))
            .build();
        let public = Front {
            http: public_router(context, http, services.inference_http, description),
            grpc: services.inference_grpc,
            forwarder: Forwarder::new(Arc::new(config.clone())),
        };
        let public = Router::new()
            .fallback(front)
            .with_state(Arc::new(public))
            .layer(middleware::from_fn(guard::same_machine));
        let contracts = Router::new()
            .fallback(internal_grpc)
            .with_state(Arc::new(services.internal_grpc));
        let internal =
            stack::stack(probes(context.readiness.clone()).route("/metrics", get(metrics))).fallback_service(contracts);
        spawn(&context.lifecycle, "public listener", self.public, public);
        spawn(&context.lifecycle, "internal listener", self.internal, internal);
        Ok(addresses)
    }
}

fn spawn(lifecycle: &Lifecycle, name: &'static str, listener: TcpListener, router: Router) {
    let soft = lifecycle.soft();
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
    });
    lifecycle.spawn(name, async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(soft.cancelled_owned())
            .await
    });
}

/// What answers on the public listener.
struct Front {
    http: Router,
    grpc: Option<Routes>,
    forwarder: Forwarder,
}

/// gRPC to the gateway's contract, HTTP to the routes here, and both onward when their role is elsewhere.
fn front(State(front): State<Arc<Front>>, request: Request) -> impl Future<Output = Response> + Send {
    let peer = front.forwarder.peer_of(request.uri().path());
    async move {
        if let Some(role) = peer {
            return front.forwarder.forward(role, request).await;
        }
        match (&front.grpc, is_grpc(request.headers())) {
            (Some(routes), true) => call_grpc(routes.clone(), request).await,
            (None, true) => Status::unimplemented("this process serves no gRPC to clients").into_http(),
            (_, false) => infallible(front.http.clone().oneshot(request).await),
        }
    }
}

async fn call_grpc(routes: Routes, request: Request) -> Response {
    let request = request.map(tonic::body::Body::new);
    infallible(routes.oneshot(request).await).map(axum::body::Body::new)
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

async fn internal_grpc(State(services): State<Arc<Vec<(&'static str, Routes)>>>, request: Request) -> Response {
    let path = request.uri().path();
    let Some((_, routes)) = services.iter().find(|(prefix, _)| path.starts_with(prefix)) else {
        return if is_grpc(request.headers()) {
            Status::unimplemented("this process does not have the role that answers this call").into_http()
        } else {
            stack::not_found(request).await.into_response()
        };
    };
    let request = request.map(tonic::body::Body::new);
    infallible(ServerStack::new(routes.clone()).oneshot(request).await).map(axum::body::Body::new)
}

fn public_router(
    context: &Context,
    http: Router,
    inference: Option<Router>,
    description: utoipa::openapi::OpenApi,
) -> Router {
    let described = Arc::new(description);
    let api = http
        .route("/", get(|| async { Redirect::temporary("/api/docs") }))
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
        .route(
            "/version",
            get(|| async { stack::plain(StatusCode::OK, env!("CARGO_PKG_VERSION")) }),
        )
        .route("/readyz", get(move || async move { ready(&readiness) }))
}

fn ready(readiness: &Readiness) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        return stack::plain(StatusCode::OK, "ready\n");
    }
    stack::plain(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
}

async fn metrics() -> Response {
    stack::plain(StatusCode::OK, telemetry::render_metrics())
}
