//! Listeners for `axum::serve`, plain and with TLS. Both tell handlers what is known of the connection.

use std::{io, net::SocketAddr, time::Duration};

use axum::serve::Listener;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::ServerTls;

/// How many handshakes of one listener may be under way. More connections wait in the system's queue.
pub const MAX_HANDSHAKES: usize = 1024;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent client is asked after a minute whether it is there, and is gone if it has not answered within another: a stream would
/// otherwise be held for one whose machine is away.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// What is known of a connection; routers find it among the extensions of each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The other side's address.
    pub remote: SocketAddr,
    /// Whether the other side showed a certificate of the authorities in `tls.internal.ca_file`.
    pub verified_peer: bool,
}

impl Connection {
    const fn unverified(remote: SocketAddr) -> Self {
        Self {
            remote,
            verified_peer: false,
        }
    }
}

/// A listener without TLS.
pub(crate) struct PlainListener(TcpListener);

impl PlainListener {
    /// Takes over a bound listener.
    pub(crate) const fn new(listener: TcpListener) -> Self {
        Self(listener)
    }
}

impl Listener for PlainListener {
    type Io = TcpStream;
    type Addr = Connection;

    async fn accept(&mut self) -> (TcpStream, Connection) {
        accept(&mut self.0).await
    }

    fn local_addr(&self) -> io::Result<Connection> {
        self.0.local_addr().map(Connection::unverified)
    }
}

/// Errors of accepting are waited out by axum's own implementation.
async fn accept(listener: &mut TcpListener) -> (TcpStream, Connection) {
    let (stream, remote) = Listener::accept(listener).await;
    let set = stream.set_nodelay(true);
    if let Err(error) = set.and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)) {
        tracing::debug!(%error, "a connection keeps the system's settings");
    }
    (stream, Connection::unverified(remote))
}

/// A listener with TLS. Handshakes run beside each other, so that a slow client keeps nobody waiting, and one that fails
/// ends nothing but its own connection.
pub(crate) struct TlsListener {
    tcp: TcpListener,
    tls: ServerTls,
    /// They end with the listener.
    handshakes: JoinSet<Option<Accepted>>,
}

type Accepted = (TlsStream<TcpStream>, Connection);

impl TlsListener {
    /// Takes over a bound listener.
    pub(crate) fn new(tcp: TcpListener, tls: ServerTls) -> Self {
        Self {
            tcp,
            tls,
            handshakes: JoinSet::new(),
        }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = Connection;

    async fn accept(&mut self) -> Accepted {
        loop {
            tokio::select! {
                Some(handshake) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = handshake {
                        return accepted;
                    }
                }
                (stream, connection) = accept(&mut self.tcp), if self.handshakes.len() < MAX_HANDSHAKES => {
                    let acceptor = TlsAcceptor::from(self.tls.config());
                    self.handshakes.spawn(handshake(acceptor, stream, connection));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Connection> {
        self.tcp.local_addr().map(Connection::unverified)
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, connection: Connection) -> Option<Accepted> {
    let remote = connection.remote;
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            // A certificate that the authorities did not sign ends the handshake: what is there was verified.
            let verified_peer = stream.get_ref().1.peer_certificates().is_some();
            Some((stream, Connection { remote, verified_peer }))
        }
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%remote, "a TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}");
            None
        }
    }
}
