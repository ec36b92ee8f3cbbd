//! Serving: what every listener does with its connections, plain and with TLS.

use std::{
    convert::Infallible,
    future::IntoFuture as _,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, extract::Request, response::Response, serve::Listener};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Map},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::tls::{Connection, PlainListener, ServerTls, TlsListener, WithConnection};

/// An answer that is being made.
pub type Answering = BoxFuture<'static, Response>;

/// What answers the requests of a listener. It is one type whatever is behind it, so that the machinery of connections is
/// compiled, and optimized, in this crate and not once more with every program.
#[derive(Clone)]
pub struct Answers(Arc<dyn Fn(Request) -> Answering + Send + Sync>);

impl Answers {
    /// Answers as this function does.
    pub fn new(answer: impl Fn(Request) -> Answering + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }
}

impl From<Router> for Answers {
    fn from(router: Router) -> Self {
        Self::new(move |request| answer(&router, request))
    }
}

/// A router's answer.
pub fn answer(router: &Router, request: Request) -> Answering {
    Box::pin(router.clone().call(request).map(|Ok(response)| response))
}

impl Service<Request> for Answers {
    type Response = Response;
    type Error = Infallible;
    type Future = Map<Answering, fn(Response) -> Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        (self.0)(request).map(Ok as _)
    }
}

/// Serves until the token is cancelled; requests that have begun are answered.
///
/// # Errors
/// What the listener failed with.
pub fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    answers: Answers,
    soft: CancellationToken,
) -> BoxFuture<'static, io::Result<()>> {
    match tls {
        Some(tls) => on(TlsListener::new(listener, tls), answers, soft),
        None => on(PlainListener::new(listener), answers, soft),
    }
}

fn on(
    listener: impl Listener<Addr = Connection>,
    answers: Answers,
    soft: CancellationToken,
) -> BoxFuture<'static, io::Result<()>> {
    let serving = axum::serve(listener, WithConnection(answers)).with_graceful_shutdown(soft.cancelled_owned());
    serving.into_future().boxed()
}
