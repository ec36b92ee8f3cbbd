//! How services call each other: one erased channel, in process or over the network.
//!
//! The generated client of a service takes a [`Channel`]. [`local`] makes one of the service's own routes, without a
//! port; [`remote`] makes one of a network address. Both sides wrap the same stack: trace context, deadline and panics.

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
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::{Status, body::Body, service::Routes, transport::Endpoint};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};
use tracing::Instrument;

use crate::telemetry;

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

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// A way to one service, cheap to clone.
#[derive(Clone)]
pub struct Channel(BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<Response<Body>, BoxError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        telemetry::inject_trace(request.headers_mut());
        self.0.call(request)
    }
}

/// A channel to a service in this process.
#[must_use]
pub fn local(routes: Routes) -> Channel {
    let service = ServerStack::new(routes).map_err(BoxError::from);
    Channel(BoxCloneSyncService::new(service))
}

/// A channel to a service at a network address such as `http://10.0.0.7:7071`. It connects when it is first used, and
/// again after a loss.
pub fn remote(address: &str) -> Result<Channel, InvalidPeer> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|source| InvalidPeer {
            address: address.to_owned(),
            source,
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let service = endpoint.connect_lazy().map_err(BoxError::from);
    Ok(Channel(BoxCloneSyncService::new(service)))
}

/// A peer's address that is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not the address of a peer: write it as http://HOST:PORT")]
pub struct InvalidPeer {
    address: String,
    source: tonic::transport::Error,
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
        let error = remote("not an address").err().map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some("`not an address` is not the address of a peer: write it as http://HOST:PORT")
        );
    }
}
