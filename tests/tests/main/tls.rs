//! Encrypted listeners, services that know each other by certificate or by cluster key, and certificates that are replaced
//! while the server runs.

use std::{fmt::Write as _, fs, path::Path, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use modelyard_flights::{Server, ServerOptions};
use modelyard_testkit::{
    certificates::{Authority, Issued},
    wait,
};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response, Version, header};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::deployment::{binary, check_refused, free_port, modelyard, use_tls};

const PATIENCE: Duration = Duration::from_secs(30);

/// All roles, in the order in which they start.
const ROLES: [&str; 4] = ["registry", "orchestrator", "monitoring", "gateway"];

/// A contract of the registry, and a method that it does not have: who is let in is told that, and nothing is changed.
const REGISTRY_CALL: &str = "modelyard.registry.v1.EndpointService/NoSuchMethod";

/// The status codes of gRPC that answer it.
const UNIMPLEMENTED: &str = "12";
const UNAUTHENTICATED: &str = "16";

/// `ServerLive` of the Open Inference Protocol: the empty request, and the answer `live: true`, each as a gRPC frame.
const LIVE_CALL: &str = "inference.GRPCInferenceService/ServerLive";
const EMPTY_FRAME: [u8; 5] = [0; 5];
const LIVE_FRAME: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

const PIPELINE: &str =
    "kind: Pipeline\nname: answer\nspec:\n  steps:\n    - name: answer\n      op: value\n      with: { value: 42 }\n";

/// Processes of one installation, on ports and in a folder of their own.
struct Yard {
    processes: Vec<Process>,
    authority: Authority,
    // Last: the folder goes when the servers are gone.
    folder: TempDir,
}

struct Process {
    public: String,
    internal: String,
    options: ServerOptions,
    server: Option<Server>,
}

impl Yard {
    /// Prepares a process for each of the `groups` of roles, with `settings` of the group's name at the top of its configuration.
    fn new(scheme: &str, groups: &[&[&str]], settings: impl Fn(&Authority, &str) -> String) -> Result<Self> {
        use_tls();
        let folder = tempfile::Builder::new().prefix("modelyard-test-").tempdir()?;
        let authority = Authority::new(folder.path(), "authority");
        let mut processes = Vec::new();
        let mut peers = String::new();
        for roles in groups {
            let (public, internal) = (free_port()?, free_port()?);
            let process = Process::new(folder.path(), &roles.join("-"), scheme, public, internal);
            for role in *roles {
                let _ = write!(
                    peers,
                    "[peers.{role}]\ninternal = '{}'\npublic = '{}'\n",
                    process.internal, process.public
                );
            }
            processes.push(process);
        }
        for (process, roles) in processes.iter().zip(groups) {
            let text = format!(
                "roles = {roles:?}\nstorage.url = '{}'\n{}{peers}",
                folder.path().join("objects").display(),
                settings(&authority, &roles.join("-"))
            );
            fs::write(process.options.data_dir.with_extension("toml"), text)?;
        }
        Ok(Self {
            processes,
            authority,
            folder,
        })
    }

    /// Starts all and waits until both listeners of each say, to a client without a certificate, that they are ready.
    async fn start(mut self) -> Result<Self> {
        for process in &mut self.processes {
            process.server = Some(Server::start(process.options.clone()).await?);
        }
        let http = trusting(&self.authority.file)?.build()?;
        for process in &self.processes {
            for listener in [&process.public, &process.internal] {
                wait::until(&format!("{listener} is ready"), PATIENCE, || async {
                    let answer = http.get(format!("{listener}/readyz")).send().await.ok()?;
                    answer.status().is_success().then_some(())
                })
                .await;
            }
        }
        Ok(self)
    }

    fn process(&self, index: usize) -> Result<&Process> {
        self.processes.get(index).context("there is no such process")
    }

    /// Runs a command against a process, trusting the authority.
    fn modelyard(&self, process: &Process, arguments: &[&str]) -> Result<Output> {
        let authority = self.authority.file.display().to_string();
        modelyard(
            arguments,
            &[("MODELYARD_URL", &process.public), ("MODELYARD_CA_FILE", &authority)],
        )
    }

    /// Applies a pipeline through a process that has another role, and runs it.
    fn run_pipeline_through(&self, process: &Process) -> Result<()> {
        let file = self.folder.path().join("pipeline.yaml");
        fs::write(&file, PIPELINE)?;
        for arguments in [
            &["apply", "-f", &file.display().to_string()][..],
            &["run", "answer", "--wait"],
        ] {
            let output = self.modelyard(process, arguments)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        for process in self.processes.iter_mut().rev() {
            if let Some(server) = process.server.take() {
                server.stop().await?;
            }
        }
        Ok(())
    }
}

impl Process {
    fn new(folder: &Path, name: &str, scheme: &str, public: u16, internal: u16) -> Self {
        let data_dir = folder.join(name);
        let configuration = data_dir.with_extension("toml").display().to_string();
        let (public, internal) = (format!("127.0.0.1:{public}"), format!("127.0.0.1:{internal}"));
        let arguments = [
            "--config",
            &configuration,
            "--listen",
            &public,
            "--internal-listen",
            &internal,
        ];
        Self {
            options: ServerOptions {
                binary: binary(),
                wrapper: Vec::new(),
                log: data_dir.with_extension("log"),
                arguments: arguments.map(str::to_owned).into(),
                environment: Vec::new(),
                data_dir,
            },
            public: format!("{scheme}://{public}"),
            internal: format!("{scheme}://{internal}"),
            server: None,
        }
    }
}

fn public_tls(files: &Issued) -> String {
    format!(
        "tls.public = {{ cert_file = '{}', key_file = '{}' }}\n",
        files.cert_file.display(),
        files.key_file.display()
    )
}

fn internal_tls(files: &Issued, authority: &Authority) -> String {
    format!(
        "tls.internal = {{ cert_file = '{}', key_file = '{}', ca_file = '{}' }}\n",
        files.cert_file.display(),
        files.key_file.display(),
        authority.file.display()
    )
}

/// A client that trusts one authority alone, and that opens a connection for each request.
fn trusting(authority: &Path) -> Result<ClientBuilder> {
    Ok(Client::builder()
        .timeout(PATIENCE)
        .pool_max_idle_per_host(0)
        .tls_certs_only([Certificate::from_pem(&fs::read(authority)?)?]))
}

fn identity(files: &Issued) -> Result<Identity> {
    let pem = [fs::read(&files.cert_file)?, fs::read(&files.key_file)?].concat();
    Ok(Identity::from_pem(&pem)?)
}

/// A unary call with an empty message.
async fn call(http: &Client, listener: &str, method: &str, key: Option<&str>) -> reqwest::Result<Response> {
    let mut request = http
        .post(format!("{listener}/{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(EMPTY_FRAME.to_vec());
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.send().await
}

/// The status of an answer that has nothing else.
fn status(response: &Response) -> Option<&str> {
    response.headers().get("grpc-status")?.to_str().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_the_api_and_grpc_on_one_encrypted_port() -> Result<()> {
    let yard = Yard::new("https", &[&ROLES], |authority, name| {
        public_tls(&authority.issue(name)) + &internal_tls(&authority.issue("peer"), authority)
    })?;
    let yard = yard.start().await?;
    let server = yard.process(0)?;
    let listed = yard.modelyard(server, &["get", "models", "-o", "json"])?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let distrusted = modelyard(&["get", "models"], &[("MODELYARD_URL", &server.public)])?;
    check_refused(&distrusted, 1, &["is not trusted", "--ca-file"])?;
    let missing = modelyard(
        &["get", "models", "--ca-file", "/nowhere/ca.crt"],
        &[("MODELYARD_URL", &server.public)],
    )?;
    check_refused(&missing, 1, &["/nowhere/ca.crt"])?;

    let http = trusting(&yard.authority.file)?.build()?;
    let live = call(&http, &server.public, LIVE_CALL, None).await?;
    ensure!(live.version() == Version::HTTP_2, "{:?}", live.version());
    let live = live.bytes().await?;
    ensure!(live == LIVE_FRAME[..], "{live:?}");
    let old = trusting(&yard.authority.file)?.http1_only().build()?;
    let answer = old.get(format!("{}/health", server.public)).send().await?;
    ensure!(answer.version() == Version::HTTP_11 && answer.status().is_success());
    let plain = server.public.replace("https://", "http://");
    ensure!(
        old.get(format!("{plain}/health")).send().await.is_err(),
        "the port speaks plain HTTP, too"
    );
    yard.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_answer_only_peers_with_a_certificate_of_their_authority() -> Result<()> {
    let groups = ROLES.each_ref().map(std::slice::from_ref);
    let yard = Yard::new("https", &groups, |authority, name| {
        let files = authority.issue(name);
        public_tls(&files) + &internal_tls(&files, authority)
    })?;
    let yard = yard.start().await?;
    yard.run_pipeline_through(yard.process(3)?)?;

    let registry = &yard.process(0)?.internal;
    let anonymous = trusting(&yard.authority.file)?.build()?;
    let refused = call(&anonymous, registry, REGISTRY_CALL, None).await?;
    ensure!(status(&refused) == Some(UNAUTHENTICATED), "{refused:?}");
    let metrics = anonymous
        .get(format!("{registry}/metrics"))
        .send()
        .await?
        .text()
        .await?;
    ensure!(
        metrics.contains("modelyard_internal_calls_refused_total 1"),
        "{metrics}"
    );

    let peer = yard.authority.issue("operator");
    let peer = trusting(&yard.authority.file)?.identity(identity(&peer)?).build()?;
    let answered = call(&peer, registry, REGISTRY_CALL, None).await?;
    ensure!(status(&answered) == Some(UNIMPLEMENTED), "{answered:?}");

    let foreign = Authority::new(yard.folder.path(), "foreign").issue("stranger");
    let stranger = trusting(&yard.authority.file)?.identity(identity(&foreign)?).build()?;
    let met = call(&stranger, registry, REGISTRY_CALL, None).await;
    ensure!(met.is_err(), "a certificate of another authority is let in: {met:?}");
    yard.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_used_without_a_restart_and_a_broken_one_is_not() -> Result<()> {
    let yard = Yard::new("https", &[&ROLES], |authority, name| {
        public_tls(&authority.issue(name)) + &internal_tls(&authority.issue("peer"), authority)
    })?;
    let yard = yard.start().await?;
    let server = yard.process(0)?;
    let is_trusted = async |authority: &Path| -> Result<bool> {
        let http = trusting(authority)?.build()?;
        Ok(http.get(format!("{}/livez", server.public)).send().await.is_ok())
    };
    ensure!(is_trusted(&yard.authority.file).await?);

    let name = ROLES.join("-");
    let next = Authority::new(yard.folder.path(), "next");
    let files = next.issue(&name);
    wait::until("the new certificate is used", PATIENCE, || async {
        is_trusted(&next.file).await.ok()?.then_some(())
    })
    .await;
    ensure!(
        !is_trusted(&yard.authority.file).await?,
        "the old certificate is used, too"
    );

    fs::write(&files.key_file, "-----BEGIN PRIVATE KEY-----\nnot finished")?;
    let process = server.server.as_ref().context("the server is gone")?.addresses().pid;
    let process = Pid::from_raw(i32::try_from(process)?).context("no process")?;
    kill_process(process, Signal::HUP)?;
    let http = trusting(&yard.authority.file)?.build()?;
    wait::until("the broken key is reported", PATIENCE, || async {
        let metrics = http.get(format!("{}/metrics", server.internal)).send().await.ok()?;
        let metrics = metrics.text().await.ok()?;
        metrics
            .contains("modelyard_tls_reload_failed{part=\"public\"} 1")
            .then_some(())
    })
    .await;
    ensure!(is_trusted(&next.file).await?, "the last good certificate is gone");
    yard.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_key_lets_services_in_and_another_does_not() -> Result<()> {
    const KEY: &str = "a-cluster-key-of-this-test-alone-0123456789";
    const OTHER: &str = "another-key-of-the-same-length-as-0123456789";
    let groups = ROLES.each_ref().map(std::slice::from_ref);
    let with_key = |_: &Authority, _: &str| format!("cluster_key = '{KEY}'\n");
    let yard = Yard::new("http", &groups, with_key)?.start().await?;
    yard.run_pipeline_through(yard.process(3)?)?;

    let registry = &yard.process(0)?.internal;
    let http = Client::builder().timeout(PATIENCE).http2_prior_knowledge().build()?;
    for (key, expected) in [
        (None, UNAUTHENTICATED),
        (Some(OTHER), UNAUTHENTICATED),
        (Some(KEY), UNIMPLEMENTED),
    ] {
        let answer = call(&http, registry, REGISTRY_CALL, key).await?;
        ensure!(status(&answer) == Some(expected), "{key:?}: {answer:?}");
    }

    let short = modelyard(&["config", "print"], &[("MODELYARD__CLUSTER_KEY", "too-short")])?;
    check_refused(&short, 1, &["`cluster_key`", "openssl rand"])?;
    let printed = modelyard(&["config", "print"], &[("MODELYARD__CLUSTER_KEY", KEY)])?;
    let printed = String::from_utf8(printed.stdout)?;
    ensure!(printed.contains("***") && !printed.contains(KEY), "{printed}");
    yard.stop().await
}
