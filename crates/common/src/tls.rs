//! TLS of the listeners and of the calls to peers: certificates from files, taken up anew when the files change.

mod certificate;
mod connector;
mod listener;
mod reload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

pub(crate) use self::listener::{PlainListener, TlsListener};
pub use self::{
    certificate::TlsError,
    connector::{Connector, PeerStream},
    listener::{Connection, HANDSHAKE_TIMEOUT, MAX_HANDSHAKES},
    reload::{EXPIRY, RELOAD_FAILED},
};
use self::{
    certificate::{PemFile, Read},
    reload::{Loaded, Refresh, Watched},
};
use crate::lifecycle::Lifecycle;

/// How often the files are looked at. SIGHUP looks at once.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// HTTP/2, as ALPN names it.
const H2: &[u8] = b"h2";

/// HTTP/1.1, as ALPN names it.
const HTTP_1_1: &[u8] = b"http/1.1";

/// The certificate of a listener that asks its clients for none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    /// The certificate chain as PEM, the listener's own certificate first.
    pub cert_file: PathBuf,
    /// Its private key as PEM, without a passphrase.
    pub key_file: PathBuf,
}

/// The certificate by which processes know each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MutualFiles {
    /// The certificate chain as PEM, this process's own certificate first. It is shown to callers and to peers alike.
    pub cert_file: PathBuf,
    /// Its private key as PEM, without a passphrase.
    pub key_file: PathBuf,
    /// The authorities whose certificates make a peer, as PEM. Whoever has one of these may do everything that a service may.
    pub ca_file: PathBuf,
}

/// Which connections are encrypted, and who is known by a certificate. The files are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The public listener's certificate. Without it, the listener speaks plain HTTP.
    pub public: Option<ServerFiles>,
    /// The internal listener's certificate, which is also shown to peers. Service contracts are then answered only to peers
    /// with a certificate of `ca_file`; probes and metrics to everybody.
    pub internal: Option<MutualFiles>,
    /// The authorities that the public listeners of peers are checked against, as PEM. By default those of
    /// `tls.internal.ca_file`, else those of this machine.
    pub peer_ca_file: Option<PathBuf>,
}

impl Config {
    /// Reads all files as they are now. `calls_peers`: whether a peer has an `https://` address.
    pub fn validate(&self, calls_peers: bool) -> Result<(), TlsError> {
        Tls::open(self, calls_peers).map(|_| ())
    }
}

/// The certificates and authorities of a process, each as it was read last.
pub struct Tls {
    /// For the public listener.
    pub public: Option<ServerTls>,
    /// For the internal listener.
    pub internal: Option<ServerTls>,
    /// For calls to the internal listeners of peers, when a peer has an `https://` address.
    pub calls: Option<ClientTls>,
    /// For requests that are forwarded to the public listeners of peers, when a peer has an `https://` address.
    pub forwarding: Option<ClientTls>,
    watched: Vec<Arc<dyn Refresh>>,
}

impl Tls {
    /// Reads all files. `calls_peers`: whether a peer has an `https://` address.
    pub fn open(config: &Config, calls_peers: bool) -> Result<Self, TlsError> {
        let mut tls = Self {
            public: None,
            internal: None,
            calls: None,
            forwarding: None,
            watched: Vec::new(),
        };
        if let Some(files) = &config.public {
            let files = vec![
                PemFile::new("tls.public.cert_file", &files.cert_file),
                PemFile::secret("tls.public.key_file", &files.key_file),
            ];
            let watched = tls.watch_files("public", files, public_config)?;
            tls.public = Some(ServerTls(watched));
        }
        if let Some(files) = &config.internal {
            let watched = tls.watch_files("internal", files.pem_files(), internal_config)?;
            tls.internal = Some(ServerTls(watched));
        }
        if calls_peers {
            let roots = config.peer_ca_file.as_deref();
            let watched = match &config.internal {
                Some(files) => tls.watch_files("calls", files.pem_files(), calling_config)?,
                None => tls.watch_files("calls", root_files(roots), trusting_config)?,
            };
            tls.calls = Some(ClientTls(watched));
            let authorities = config.internal.as_ref().map(|files| files.ca_file.as_path());
            let files = match (roots, authorities) {
                (None, Some(file)) => vec![PemFile::new("tls.internal.ca_file", file)],
                _ => root_files(roots),
            };
            let watched = tls.watch_files("forwarding", files, trusting_config)?;
            tls.forwarding = Some(ClientTls(watched));
        }
        Ok(tls)
    }

    fn watch_files<T: Send + Sync + 'static>(
        &mut self,
        part: &'static str,
        files: Vec<PemFile>,
        make: fn(&[Read]) -> Result<Loaded<T>, TlsError>,
    ) -> Result<Arc<Watched<T>>, TlsError> {
        let watched = Arc::new(Watched::open(part, files, make)?);
        self.watched.push(Arc::clone(&watched) as Arc<dyn Refresh>);
        Ok(watched)
    }

    /// Looks at the files every `interval` and at SIGHUP, from now on. A change reaches new connections; those that are
    /// open go on.
    pub fn watch(&self, lifecycle: &Lifecycle, interval: Duration) {
        if !self.watched.is_empty() {
            let watched = self.watched.clone();
            lifecycle.spawn("certificates", reload::watch(watched, interval, lifecycle.soft()));
        }
    }
}

impl MutualFiles {
    fn pem_files(&self) -> Vec<PemFile> {
        vec![
            PemFile::new("tls.internal.cert_file", &self.cert_file),
            PemFile::secret("tls.internal.key_file", &self.key_file),
            PemFile::new("tls.internal.ca_file", &self.ca_file),
        ]
    }
}

fn root_files(roots: Option<&Path>) -> Vec<PemFile> {
    roots
        .map(|file| PemFile::new("tls.peer_ca_file", file))
        .into_iter()
        .collect()
}

/// A listener's side of TLS, cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<Watched<ServerConfig>>);

impl ServerTls {
    /// What the next connection is accepted with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.current()
    }
}

/// A caller's side of TLS, cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<Watched<ClientConfigs>>);

impl ClientTls {
    /// Trust in the authorities of this machine, as they are now, and no certificate of one's own.
    pub fn of_machine() -> Result<Self, TlsError> {
        Watched::open("machine", Vec::new(), trusting_config).map(|watched| Self(Arc::new(watched)))
    }

    fn config(&self, protocol: Protocol) -> Arc<ClientConfig> {
        let configs = self.0.current();
        match protocol {
            Protocol::Http1 => Arc::clone(&configs.http1),
            Protocol::Http2 => Arc::clone(&configs.http2),
        }
    }
}

/// What a connection to a peer will carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, which gRPC needs.
    Http2,
}

/// The same trust and certificate, for each protocol.
struct ClientConfigs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl ClientConfigs {
    fn new(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![H2.to_vec()];
        Self {
            http1,
            http2: Arc::new(config),
        }
    }
}

/// The one provider of this program, named so that nothing depends on what is installed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(tokio_rustls::rustls::crypto::ring::default_provider())
}

/// The certificate chain and key of the first two files.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(files: &[Read]) -> Result<Identity, TlsError> {
    let [certificate, key, ..] = files else {
        return Err(TlsError::NoAuthorities);
    };
    Ok((certificate.certificates()?, key.private_key()?))
}

fn roots(file: &Read) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in file.certificates()? {
        roots.add(certificate).map_err(|error| file.unusable(&error))?;
    }
    Ok(roots)
}

fn public_config(files: &[Read]) -> Result<Loaded<ServerConfig>, TlsError> {
    let (chain, key) = identity(files)?;
    let expires = certificate::expiry(&chain);
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| TlsError::of_pair(files, error))?;
    Ok(Loaded {
        value: with_protocols(config),
        expires,
    })
}

/// Clients are asked for a certificate, and one that is not of the authorities ends the handshake. Those that have none are
/// let in, for probes and metrics; the listener tells the two apart.
fn internal_config(files: &[Read]) -> Result<Loaded<ServerConfig>, TlsError> {
    let (chain, key) = identity(files)?;
    let expires = certificate::expiry(&chain);
    let authorities = authorities(files)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| authorities.unusable(&error))?;
    warn_of_stranger(&*verifier, &chain, files);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|error| TlsError::of_pair(files, error))?;
    // Each connection shows its certificate: none is let in by what an earlier one showed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded {
        value: with_protocols(config),
        expires,
    })
}

/// This process's own certificate is shown to peers that trust the same authorities: what they will refuse is said here.
fn warn_of_stranger(verifier: &dyn ClientCertVerifier, chain: &[CertificateDer<'static>], files: &[Read]) {
    let Some((own, intermediates)) = chain.split_first() else {
        return;
    };
    if let (Err(error), Some(file)) = (
        verifier.verify_client_cert(own, intermediates, UnixTime::now()),
        files.first(),
    ) {
        tracing::warn!(%error, file = %file.path().display(), "peers that trust `tls.internal.ca_file` will refuse this certificate: it must be signed by that authority, valid now, and for clientAuth as well as serverAuth");
    }
}

fn with_protocols(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    config
}

fn authorities(files: &[Read]) -> Result<&Read, TlsError> {
    files.get(2).ok_or(TlsError::NoAuthorities)
}

/// For calls that show this process's certificate.
fn calling_config(files: &[Read]) -> Result<Loaded<ClientConfigs>, TlsError> {
    let (chain, key) = identity(files)?;
    let roots = roots(authorities(files)?)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|error| TlsError::of_pair(files, error))?;
    Ok(Loaded {
        value: ClientConfigs::new(config),
        expires: None,
    })
}

/// For calls that show no certificate. Without a file, the authorities of this machine are trusted.
fn trusting_config(files: &[Read]) -> Result<Loaded<ClientConfigs>, TlsError> {
    let roots = match files.first() {
        Some(file) => roots(file)?,
        None => certificate::native_roots()?,
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Protocol)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Loaded {
        value: ClientConfigs::new(config),
        expires: None,
    })
}

#[cfg(test)]
mod tests;
