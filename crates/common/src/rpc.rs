//! How services call each other: one erased channel, in process or over the network.
//!
//! The generated client of a service takes a [`Channel`]. [`local`] makes one of the service's own routes, without a
//! port; [`remote`] makes one of a network address. Both sides wrap the same stack: trace context, deadline and panics.
//!
//! A call says in its metadata which service it comes from ([`SERVICE`]) and for whom that service works
//! ([`ACTING_FOR`]). Only calls between services are believed: over the network a [`PeerIdentity`] proves where they come
//! from, and what comes from clients loses these headers ([`remove_identity`]).

use std::{
    any::Any,
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::AUTHORIZATION, uri::Scheme};
use subtle::ConstantTimeEq;
use tonic::{Status, body::Body, service::Routes, transport::Endpoint};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};
use tracing::Instrument;

use crate::{
    config::Secret,
    telemetry,
    tls::{ClientTls, Connector, Protocol},
};

/// The error type of tower's erased services.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The largest message between services, in bytes. Bulk data goes through the object store instead.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The longest that a call without a deadline of its own may take.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an idle connection is probed, so that a peer that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The metadata that names the calling service.
pub const SERVICE: &str = "modelyard-service";

/// The metadata that names for whom the calling service works.
pub const ACTING_FOR: &str = "modelyard-acting-for";

/// What stands in for a name that no header can carry. It names nobody, so the call is refused instead of being made in the
/// service's own name.
const NOBODY: HeaderValue = HeaderValue::from_static("?");

/// The fewest characters of a cluster key.
pub const MIN_CLUSTER_KEY_CHARS: usize = 32;

const BEARER: &str = "Bearer ";

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// A way to one service, cheap to clone.
#[derive(Clone)]
pub struct Channel {
    service: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>,
    /// Sent with every call.
    metadata: Vec<(HeaderName, HeaderValue)>,
}

impl Channel {
    fn new(service: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>) -> Self {
        Self {
            service,
            metadata: Vec::new(),
        }
    }

    /// The same way, with calls that come from the service `name`.
    #[must_use]
    pub fn as_service(&self, name: &'static str) -> Self {
        self.with(HeaderName::from_static(SERVICE), HeaderValue::from_static(name))
    }

    /// The same way, with calls that are made for `principal`.
    #[must_use]
    pub fn acting_for(&self, principal: &str) -> Self {
        let value = HeaderValue::from_str(principal).unwrap_or(NOBODY);
        self.with(HeaderName::from_static(ACTING_FOR), value)
    }

    fn with(&self, name: HeaderName, value: HeaderValue) -> Self {
        let others = self.metadata.iter().filter(|(other, _)| *other != name);
        let mut metadata: Vec<_> = others.cloned().collect();
        metadata.push((name, value));
        Self {
            service: self.service.clone(),
            metadata,
        }
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<Response<Body>, BoxError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let headers = request.headers_mut();
        for (name, value) in &self.metadata {
            headers.insert(name.clone(), value.clone());
        }
        telemetry::inject_trace(headers);
        self.service.call(request)
    }
}

/// A channel to a service in this process.
#[must_use]
pub fn local(routes: Routes) -> Channel {
    let service = ServerStack::new(routes).map_err(BoxError::from);
    Channel::new(BoxCloneSyncService::new(service))
}

/// A channel to a service at a network address such as `https://10.0.0.7:7071`. It connects when it is first used, and
/// again after a loss.
pub fn remote(address: &str, identity: &PeerIdentity) -> Result<Channel, InvalidPeer> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|source| InvalidPeer::Address {
            address: address.to_owned(),
            source,
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if endpoint.uri().scheme() == Some(&Scheme::HTTPS) && identity.tls.is_none() {
        return Err(InvalidPeer::WithoutTls {
            address: address.to_owned(),
        });
    }
    let connector = Connector::new(identity.tls.clone(), Protocol::Http2);
    let service = endpoint.connect_with_connector_lazy(connector).map_err(BoxError::from);
    let channel = Channel::new(BoxCloneSyncService::new(service));
    Ok(match &identity.cluster_key {
        Some(key) => channel.with(AUTHORIZATION, key.header.clone()),
        None => channel,
    })
}

/// A peer's address that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPeer {
    /// It is no address.
    #[error("`{address}` is not the address of a peer: write it as http://HOST:PORT or https://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// It asks for TLS, and there is none.
    #[error("`{address}` asks for TLS, for which this process has no certificates: set `tls.internal`")]
    WithoutTls {
        /// What was given.
        address: String,
    },
}

/// How a process proves to its peers that it is one of them.
#[derive(Clone, Default)]
pub struct PeerIdentity {
    tls: Option<ClientTls>,
    cluster_key: Option<ClusterKey>,
}

impl PeerIdentity {
    /// By a certificate where a peer's address is `https://`, and by the cluster key where there is one.
    #[must_use]
    pub const fn new(tls: Option<ClientTls>, cluster_key: Option<ClusterKey>) -> Self {
        Self { tls, cluster_key }
    }
}

/// A secret that all processes share, and that lets calls in at their internal listeners.
#[derive(Clone)]
pub struct ClusterKey {
    /// `Bearer KEY`, marked as a secret for whoever prints headers.
    header: HeaderValue,
}

impl ClusterKey {
    /// Checks the key.
    pub fn new(key: &Secret) -> Result<Self, InvalidClusterKey> {
        let key = key.reveal();
        let is_sendable = key.chars().all(|c| c.is_ascii_graphic());
        if !is_sendable || key.len() < MIN_CLUSTER_KEY_CHARS {
            return Err(InvalidClusterKey);
        }
        let mut header = HeaderValue::from_str(&format!("{BEARER}{key}")).map_err(|_| InvalidClusterKey)?;
        header.set_sensitive(true);
        Ok(Self { header })
    }

    /// Whether a call brings this key, and no other beside it. How long the answer takes does not depend on where they
    /// differ.
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.as_bytes().ct_eq(self.header.as_bytes()).into(),
            _ => false,
        }
    }
}

/// A cluster key that is none. The key itself is not in the text.
#[derive(Debug, thiserror::Error)]
#[error(
    "`cluster_key` must have at least {MIN_CLUSTER_KEY_CHARS} characters, of ASCII letters, digits and punctuation: make one with `openssl rand -hex 32`, the same for all processes"
)]
pub struct InvalidClusterKey;

/// Removes what only a service may say of itself from the headers of a client's request.
pub fn remove_identity(headers: &mut HeaderMap) {
    let is_identity = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with(SERVICE) || name.starts_with(ACTING_FOR)
    };
    // Nearly always there is none, and then nothing is allocated.
    while let Some(name) = headers.keys().find(|name| is_identity(name)).cloned() {
        headers.remove(name);
    }
}

/// The server's side of every call: continues the caller's trace, keeps its deadline, answers a panic with INTERNAL.
#[derive(Clone)]
pub struct ServerStack<S> {
    inner: S,
}

impl<S> ServerStack<S> {
    /// Wraps a service.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<Request<Body>> for ServerStack<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let span = tracing::info_span!("rpc.call", rpc.system = "grpc", rpc.method = request.uri().path());
        telemetry::continue_trace(&span, request.headers());
        let deadline = deadline(request.headers());
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        let work = async move {
            let call = AssertUnwindSafe(inner.oneshot(request)).catch_unwind();
            match tokio::time::timeout(deadline, call).await {
                Ok(Ok(response)) => response,
                Ok(Err(panic)) => {
                    tracing::error!(panic = panic_text(&*panic), "a handler panicked");
                    Ok(Status::internal("internal error: the server's log has the details").into_http())
                }
                Err(_) => Ok(Status::deadline_exceeded("the call took longer than its deadline").into_http()),
            }
        };
        Box::pin(work.instrument(span))
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The deadline that the caller sent, or the default. Streams answer at once and live on after it.
fn deadline(headers: &HeaderMap<HeaderValue>) -> Duration {
    headers
        .get(GRPC_TIMEOUT)
        .and_then(|value| value.to_str().ok())
        .and_then(parse_grpc_timeout)
        .map_or(DEFAULT_DEADLINE, |asked| asked.min(DEFAULT_DEADLINE))
}

/// Reads `grpc-timeout` as gRPC over HTTP/2 defines it: up to eight digits and a unit, one of H, M, S, m, u, n.
fn parse_grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(parse_grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_grpc_timeout("1H"), Some(Duration::from_hours(1)));
        for bad in ["", "m", "12", "123456789S", "x1S", "1\u{e9}"] {
            assert_eq!(parse_grpc_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_peer_without_an_address_is_refused() {
        let refused = |address| remote(address, &PeerIdentity::default()).err().unwrap().to_string();
        assert_eq!(
            refused("not an address"),
            "`not an address` is not the address of a peer: write it as http://HOST:PORT or https://HOST:PORT"
        );
        let error = refused("https://10.0.0.7:7071");
        assert!(error.contains("set `tls.internal`"), "{error}");
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn bearing(keys: &[&str]) -> HeaderMap {
        let values = keys.iter().map(|key| HeaderValue::from_str(key).unwrap());
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    #[test]
    fn only_the_cluster_key_lets_in() {
        let key = ClusterKey::new(&Secret::new(KEY)).unwrap();
        let right = format!("Bearer {KEY}");
        assert!(key.admits(&bearing(&[&right])));
        let longer = format!("{right}0");
        for wrong in [
            &["Bearer x"][..],
            &[KEY],
            &["Bearer "],
            &[&longer],
            &[&right, &right],
            &[],
        ] {
            assert!(!key.admits(&bearing(wrong)), "{wrong:?}");
        }
        assert!(!format!("{:?}", key.header).contains(KEY));
    }

    #[test]
    fn weak_and_unsendable_keys_are_refused_without_being_told() {
        for bad in [
            "",
            "short",
            &format!("{KEY}\n"),
            &format!("{KEY} "),
            &"\u{e9}".repeat(32),
        ] {
            let error = ClusterKey::new(&Secret::new(bad)).err().unwrap().to_string();
            assert!(error.contains("openssl rand"), "{error}");
        }
    }

    #[test]
    fn clients_cannot_speak_as_services() {
        let mut headers = HeaderMap::new();
        for name in [
            SERVICE,
            ACTING_FOR,
            "modelyard-service-x",
            "modelyard-acting-for-x",
            "modelyard",
            "accept",
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        remove_identity(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "modelyard"]);
    }

    #[tokio::test]
    async fn a_channel_says_whose_call_it_is() {
        let echo = tower::service_fn(|request: Request<Body>| async move {
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = request.headers().clone();
            Ok::<_, BoxError>(response)
        });
        let channel = Channel::new(BoxCloneSyncService::new(echo)).as_service("gateway");
        let said = async |channel: Channel| {
            let headers = channel
                .oneshot(Request::new(Body::empty()))
                .await
                .unwrap()
                .headers()
                .clone();
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text(SERVICE), text(ACTING_FOR))
        };
        let gateway = Some("gateway".to_owned());
        assert_eq!(said(channel.clone()).await, (gateway.clone(), None));
        let alice = channel.acting_for("user:alice");
        assert_eq!(
            said(alice.clone()).await,
            (gateway.clone(), Some("user:alice".to_owned()))
        );
        let nobody = alice.acting_for("user:\n").as_service("monitoring");
        assert_eq!(
            said(nobody).await,
            (Some("monitoring".to_owned()), Some("?".to_owned()))
        );
        assert_eq!(said(channel).await, (gateway, None));
    }
}
