//! Serving: what every listener does with its connections, plain and with TLS.

use std::{
    convert::Infallible,
    future::{IntoFuture as _, Ready, ready},
    io,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    extract::Request,
    response::Response,
    serve::{IncomingStream, Listener},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Map},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::tls::{Connection, PlainListener, ServerTls, TlsListener};

/// An answer that is being made.
pub type Answering = BoxFuture<'static, Response>;

/// What answers the requests of a listener. It is one type whatever is behind it, so that the machinery of connections is
/// compiled, and optimized, in this crate and not once more with every program.
#[derive(Clone)]
pub struct Answers(Arc<dyn Fn(Connection, Request) -> Answering + Send + Sync>);

impl Answers {
    /// Answers as this function does, by what is known of the connection and by the request.
    pub fn new(answer: impl Fn(Connection, Request) -> Answering + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }
}

impl From<Router> for Answers {
    fn from(router: Router) -> Self {
        Self::new(move |connection, request| answer(&router, connection, request))
    }
}

/// A router's answer. Its handlers find what is known of the connection among the request's extensions.
pub fn answer(router: &Router, connection: Connection, mut request: Request) -> Answering {
    request.extensions_mut().insert(connection);
    Box::pin(router.clone().call(request).map(|Ok(response)| response))
}

/// For `axum::serve`: what answers the requests of each connection.
impl<L: Listener<Addr = Connection>> Service<IncomingStream<'_, L>> for Answers {
    type Response = OnConnection;
    type Error = Infallible;
    type Future = Ready<Result<OnConnection, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, L>) -> Self::Future {
        ready(Ok(OnConnection {
            answers: self.clone(),
            connection: *stream.remote_addr(),
        }))
    }
}

/// What answers the requests of one connection.
#[derive(Clone)]
pub struct OnConnection {
    answers: Answers,
    connection: Connection,
}

impl Service<Request> for OnConnection {
    type Response = Response;
    type Error = Infallible;
    type Future = Map<Answering, fn(Response) -> Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        (self.answers.0)(self.connection, request).map(Ok as _)
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
    let serving = axum::serve(listener, answers).with_graceful_shutdown(soft.cancelled_owned());
    serving.into_future().boxed()
}
