use std::{fs, net::SocketAddr};

use axum::serve::Listener as _;
use hyper_util::client::legacy::connect::Connection as _;
use modelyard_testkit::certificates::{Authority, Issued};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

use super::*;

/// 2099-01-01T00:00:00Z, when the certificates of tests expire; written as GeneralizedTime.
const YEAR_2099: i64 = 4_070_908_800;

/// 2049-01-01T00:00:00Z, in the last year that is written as UTCTime.
const YEAR_2049: i64 = 2_493_072_000;

struct Setup {
    folder: TempDir,
    authority: Authority,
    server: Issued,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let server = authority.issue("server");
    Setup {
        folder,
        authority,
        server,
    }
}

impl Setup {
    /// The configuration of a process that shows this certificate to peers.
    fn config(&self, own: &Issued) -> Config {
        Config {
            public: Some(ServerFiles {
                cert_file: self.server.cert_file.clone(),
                key_file: self.server.key_file.clone(),
            }),
            internal: Some(MutualFiles {
                cert_file: own.cert_file.clone(),
                key_file: own.key_file.clone(),
                ca_file: self.authority.file.clone(),
            }),
            peer_ca_file: None,
        }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        fs::write(&file, content).unwrap();
        file
    }
}

fn refusal(config: &Config) -> String {
    config.validate(true).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_with_the_files_is_named() {
    let setup = setup();
    let good = setup.config(&setup.server);
    good.validate(true).unwrap();
    let public = good.public.unwrap();
    let with = |cert_file: &Path, key_file: &Path| Config {
        public: Some(ServerFiles {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
        }),
        ..Config::default()
    };
    let missing = refusal(&with(Path::new("/nowhere/x.crt"), &public.key_file));
    assert!(
        missing.contains("`tls.public.cert_file`") && missing.contains("/nowhere/x.crt"),
        "{missing}"
    );
    let swapped = refusal(&with(&public.key_file, &public.cert_file));
    assert!(
        swapped.contains("`tls.public.cert_file`") && swapped.contains("no certificate"),
        "{swapped}"
    );
    let no_key = refusal(&with(&public.cert_file, &public.cert_file));
    assert!(
        no_key.contains("`tls.public.key_file`") && no_key.contains("no private key"),
        "{no_key}"
    );
    let other = setup.authority.issue("other");
    let wrong_key = refusal(&with(&public.cert_file, &other.key_file));
    assert!(
        wrong_key.contains("`tls.public.key_file`") && wrong_key.contains("does not belong"),
        "{wrong_key}"
    );
    let empty = setup.write("empty.pem", "");
    let no_authority = refusal(&Config {
        peer_ca_file: Some(empty),
        ..Config::default()
    });
    assert!(no_authority.contains("`tls.peer_ca_file`"), "{no_authority}");
}

#[test]
fn a_broken_key_is_not_quoted() {
    let setup = setup();
    let key = fs::read_to_string(&setup.server.key_file).unwrap();
    let secret = key.lines().nth(1).unwrap();
    let truncated = key.lines().take(2).collect::<Vec<_>>().join("\n");
    for (name, content) in [
        ("cut.key", truncated),
        ("odd.key", key.replacen(secret, &format!("{secret}!"), 1)),
    ] {
        let mut config = setup.config(&setup.server);
        config.public.as_mut().unwrap().key_file = setup.write(name, &content);
        let error = config.validate(false).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(name) && !text.contains(secret), "{text}");
    }
}

#[test]
fn the_expiry_is_read_of_both_kinds_of_time() {
    let setup = setup();
    let of = |issued: &Issued| {
        let file = PemFile::new("tls.public.cert_file", &issued.cert_file);
        let content = file.read().unwrap();
        certificate::expiry(&Read { file, content }.certificates().unwrap())
    };
    assert_eq!(of(&setup.server), Some(YEAR_2099));
    assert_eq!(of(&setup.authority.issue_until("sooner", 2049)), Some(YEAR_2049));
    assert_eq!(certificate::expiry(&[]), None);
    let cut = CertificateDer::from(vec![0x30, 0x82, 0xff]);
    assert_eq!(certificate::expiry(&[cut]), None);
}

#[test]
fn replaced_files_are_taken_up_and_broken_ones_are_not() {
    let setup = setup();
    let tls = Tls::open(&setup.config(&setup.server), true).unwrap();
    assert_eq!(tls.watched.len(), 4, "public, internal, calls and forwarding");
    let public = tls.public.clone().unwrap();
    let refresh = || tls.watched.iter().for_each(|watched| watched.refresh());
    let first = public.config();
    refresh();
    assert!(Arc::ptr_eq(&first, &public.config()), "nothing has changed");
    fs::write(&setup.server.cert_file, "half a certif").unwrap();
    refresh();
    assert!(Arc::ptr_eq(&first, &public.config()), "the old one stays");
    fs::remove_file(&setup.server.cert_file).unwrap();
    refresh();
    assert!(Arc::ptr_eq(&first, &public.config()), "the old one stays");
    setup.authority.issue("server");
    refresh();
    assert!(!Arc::ptr_eq(&first, &public.config()), "the new one is used");
}

/// A TLS listener on a port of its own.
async fn listener(tls: ServerTls) -> (TlsListener, SocketAddr) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    (TlsListener::new(tcp, tls), address)
}

/// Connects and brings one byte to the other side, which says what it knows of the connection.
async fn meet(listener: &mut TlsListener, address: SocketAddr, tls: Option<ClientTls>) -> Option<Connection> {
    let uri = format!("https://{address}").parse().unwrap();
    let connector = Connector::new(tls, Protocol::Http1);
    let connect = async {
        let mut stream = connector.oneshot(uri).await.ok()?.into_inner();
        stream.write_all(b"x").await.ok()?;
        stream.connected();
        // An answer shows that the handshake was accepted: with TLS 1.3 a client is refused after its own part is done.
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()
    };
    let answer = async {
        let (mut stream, connection) = listener.accept().await;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        stream.write_all(&byte).await.unwrap();
        stream.flush().await.unwrap();
        connection
    };
    tokio::pin!(connect);
    tokio::pin!(answer);
    let connection = tokio::select! {
        connection = &mut answer => connection,
        answered = &mut connect => {
            answered?;
            answer.await
        }
    };
    Some(connection)
}

#[tokio::test]
async fn only_certificates_of_the_authority_make_a_peer() {
    let setup = setup();
    let tls = Tls::open(&setup.config(&setup.authority.issue("peer")), true).unwrap();
    let (mut listener, address) = listener(tls.internal.clone().unwrap()).await;
    let with_certificate = meet(&mut listener, address, tls.calls.clone()).await.unwrap();
    assert!(with_certificate.verified_peer);
    let without = meet(&mut listener, address, tls.forwarding.clone()).await.unwrap();
    assert!(!without.verified_peer);
    let foreign_authority = Authority::new(setup.folder.path(), "foreign");
    let mut config = setup.config(&foreign_authority.issue("stranger"));
    // The stranger trusts the listener, so that it is the listener that refuses.
    config.public = None;
    let stranger = Tls::open(&config, true).unwrap();
    assert_eq!(meet(&mut listener, address, stranger.calls).await, None);
    assert_eq!(meet(&mut listener, address, None).await, None, "https:// without TLS");
}

#[tokio::test]
async fn a_silent_client_keeps_nobody_waiting() {
    let setup = setup();
    let tls = Tls::open(&setup.config(&setup.server), true).unwrap();
    let (mut listener, address) = listener(tls.public.clone().unwrap()).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut noisy = TcpStream::connect(address).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let met = meet(&mut listener, address, tls.forwarding.clone()).await.unwrap();
    assert!(!met.verified_peer);
    assert_eq!(met.remote.ip(), address.ip());
    drop(listener);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.ok();
    assert!(rest.is_empty(), "handshakes end with the listener");
}
