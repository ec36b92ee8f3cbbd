//! The network, as little of it as is needed: one request, one answer of bounded size, no redirects.

use std::{fs, path::Path, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use modelyard_common::error::Chain;
use reqwest::{Certificate, redirect::Policy};

/// The longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer, in bytes.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What providers see of us.
const USER_AGENT: &str = concat!("modelyard/", env!("CARGO_PKG_VERSION"));

/// Sends requests to providers.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// Sends a request; the answer with its whole body.
    async fn fetch(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError>;
}

/// A request without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The way there.
    #[error("{0}")]
    Network(String),
    /// Too much of an answer.
    #[error("its answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    /// A file of certificates.
    #[error("the certificates `{path}` cannot be read: {problem}")]
    Certificates {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// The network itself.
pub struct Network {
    client: reqwest::Client,
}

impl Network {
    /// A client that trusts the system's certificates and those of a file.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, FetchError> {
        // No redirects: an answer from elsewhere is not the provider's.
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT);
        if let Some(path) = ca_file {
            let failed = |problem: String| FetchError::Certificates {
                path: path.display().to_string(),
                problem,
            };
            let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
            if certificates.is_empty() {
                return Err(failed("there is no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| network(&error))?;
        Ok(Self { client })
    }
}

/// The sources of the error, without the address: that can carry a code.
fn network(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::Network("it does not answer in time".to_owned());
    }
    match std::error::Error::source(error) {
        Some(source) => FetchError::Network(Chain(source).to_string()),
        None => FetchError::Network("the request failed".to_owned()),
    }
}

#[async_trait]
impl Fetch for Network {
    async fn fetch(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError> {
        let request = reqwest::Request::try_from(request).map_err(|error| network(&error))?;
        let mut answer = self.client.execute(request).await.map_err(|error| network(&error))?;
        let mut response = Response::new(Vec::new());
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        while let Some(chunk) = answer.chunk().await.map_err(|error| network(&error))? {
            if response.body().len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(FetchError::TooLarge);
            }
            response.body_mut().extend_from_slice(&chunk);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server with a certificate of its own authority, that gives the same answer to everybody. Its address, and the
    /// authority's certificate.
    async fn serve(answer: String, tasks: &mut JoinSet<()>) -> (SocketAddr, String) {
        // Whoever was first in this process has installed the same.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust the certificate hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok_and(|read| read == 0) {
                    continue;
                }
                stream.write_all(answer.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        });
        (address, authority.pem())
    }

    fn request(address: SocketAddr) -> Request<Vec<u8>> {
        let uri = format!("https://localhost:{}/", address.port());
        Request::get(uri).body(Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
        let mut tasks = JoinSet::new();
        let (address, pem) = serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(), &mut tasks).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        fs::write(&path, pem).unwrap();
        let answer = Network::new(Some(&path))
            .unwrap()
            .fetch(request(address))
            .await
            .unwrap();
        assert_eq!(answer.into_body(), b"hi");
        let error = Network::new(None).unwrap().fetch(request(address)).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA"] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(Network::new(Some(&path)), Err(FetchError::Certificates { .. })),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn answers_are_bounded_and_come_from_where_they_were_asked_for() {
        let mut tasks = JoinSet::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let redirect = "HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n".to_owned();
        let (address, pem) = serve(redirect, &mut tasks).await;
        fs::write(&path, pem).unwrap();
        let answer = Network::new(Some(&path))
            .unwrap()
            .fetch(request(address))
            .await
            .unwrap();
        assert_eq!(answer.status(), 302);
        let huge = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_ANSWER_BYTES + 1));
        let (address, pem) = serve(huge, &mut tasks).await;
        fs::write(&path, pem).unwrap();
        let error = Network::new(Some(&path))
            .unwrap()
            .fetch(request(address))
            .await
            .unwrap_err();
        assert_eq!(error, FetchError::TooLarge);
    }
}
