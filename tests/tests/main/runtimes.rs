//! Models that something else than the gateway runs: workers of Python, another server.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use modelyard_testkit::wait::until;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    clients::{client, python, run_client},
    deployment::{Deployment, Engine, Topology, free_port},
    permissions::installation::PATIENCE,
};

const PYTHON: &str = "TEST_PYTHON";
const PYTHON_KSERVE: &str = "TEST_PYTHON_KSERVE";

/// A server that runs models of Python, with the endpoints `orders` and `forest` of what the client has logged. `further` is more of its
/// configuration.
async fn with_python_models(topology: Topology, environments: bool, further: &str) -> Result<Deployment> {
    let interpreter = PathBuf::from(python(PYTHON)?);
    let extra = format!(
        "gateway.python.interpreter = '{}'\n\
         gateway.python.environments = {environments}\n\
         gateway.python.worker_memory_bytes = '4GiB'\n\
         gateway.python.worker_processors = 1\n\
         {further}\n",
        interpreter.display()
    );
    let deployment = Deployment::start_with(topology, Engine::Sqlite, &extra).await?;
    said(&deployment, "log").await?;
    for name in ["orders", "forest"] {
        let model = format!("{name}@champion");
        if environments && name == "forest" {
            // What it asks for takes minutes to install.
            continue;
        }
        deployment.succeed(&["deploy", name, "--model", &model, "--wait"])?;
    }
    Ok(deployment)
}

async fn said(deployment: &Deployment, what: &'static str) -> Result<String> {
    let url = deployment.url().to_owned();
    let run = move || run_client("mlflow_pyfunc.py", &[what], &[("MLFLOW_TRACKING_URI", &url)]);
    tokio::task::spawn_blocking(run).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_python_are_served_and_their_crashes_are_theirs() -> Result<()> {
    let deployment = with_python_models(Topology::AllInOne, false, "").await?;
    let said = said(&deployment, "check").await?;
    ensure!(said.contains("ok and it is back"), "{said}");
    deployment.stop().await
}

/// The workers of a server, by their ids.
fn workers(deployment: &Deployment) -> Result<Vec<i32>> {
    let folder = deployment.folder().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(id) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        if arguments.contains("Runs one model that MLflow saved") && arguments.contains(&folder) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Whether a process has come to its end, whether or not the one that started it knows.
fn has_ended(id: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.trim_start().starts_with('Z'));
    state.unwrap_or(true)
}

/// What fails, fails within this time, also beside other tests: far sooner than a request may take.
const FAST: Duration = Duration::from_secs(15);

/// Somebody who orders one piece after the other.
struct Asking {
    stop: Arc<AtomicBool>,
    answered: JoinHandle<Vec<(StatusCode, Duration)>>,
}

impl Asking {
    fn start(deployment: &Deployment) -> Self {
        let (stop, url) = (Arc::<AtomicBool>::default(), deployment.url().to_owned());
        let stopped = Arc::clone(&stop);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        let answered = tokio::spawn(async move {
            let mut answered = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                if let Ok((status, _)) = order_at(&url, 1.0).await {
                    answered.push((status, began.elapsed()));
                }
            }
            answered
        });
        Self { stop, answered }
    }

    async fn stop(self) -> Vec<(StatusCode, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.answered.await.unwrap_or_default()
    }
}

/// The answer to an order of one piece at this price.
async fn order(deployment: &Deployment, price: f64) -> Result<(StatusCode, Value)> {
    order_at(deployment.url(), price).await
}

async fn order_at(url: &str, price: f64) -> Result<(StatusCode, Value)> {
    order_of(url, price, "tea").await
}

/// The answer to an order of one piece of this name.
async fn order_of(url: &str, price: f64, name: &str) -> Result<(StatusCode, Value)> {
    let url = format!("{url}/endpoints/orders/invocations");
    let body = json!({"dataframe_split": {"columns": ["price", "quantity", "name"], "data": [[price, 1, name]]}});
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let answer = http.post(url).json(&body).send().await?;
    Ok((answer.status(), answer.json().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_come_back_and_end_with_their_gateway() -> Result<()> {
    let mut deployment = with_python_models(Topology::Split, false, "").await?;
    let asking = Asking::start(&deployment);
    for price in [1.0, 2.0] {
        let killed = workers(&deployment)?;
        ensure!(killed.len() == 2, "{killed:?}");
        for id in &killed {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let allowed = allowed.context("no list of processors")?.trim();
            ensure!(
                allowed.parse::<u32>().is_ok(),
                "a worker may use the processors {allowed}"
            );
        }
        for &id in &killed {
            let id = rustix::process::Pid::from_raw(id).context("no id of a process")?;
            rustix::process::kill_process(id, rustix::process::Signal::KILL)?;
        }
        until("the workers are gone", PATIENCE, || async {
            killed.iter().all(|id| has_ended(*id)).then_some(())
        })
        .await;
        // Who asks before the gateway has noticed is told of it; nobody has to do anything for those who come after.
        let answer = until("another worker answers", PATIENCE, || async {
            let (status, answer) = order(&deployment, price).await.ok()?;
            (status == StatusCode::OK).then_some(answer)
        })
        .await;
        let total = answer.pointer("/predictions/0/total").and_then(Value::as_f64);
        ensure!(total == Some(price), "{answer}");
        until("the other model's worker answers", PATIENCE, || async {
            let (status, _) = forest(&deployment).await.ok()?;
            (status == StatusCode::OK).then_some(())
        })
        .await;
    }
    for (status, took) in asking.stop().await {
        // Who was at it when it was killed is told so at once; all others are answered, once there is another.
        let is_expected = match status {
            StatusCode::OK => true,
            StatusCode::SERVICE_UNAVAILABLE => took < FAST,
            _ => false,
        };
        ensure!(is_expected, "{status} after {took:?}");
    }
    let gateway = deployment.len() - 1;
    deployment.kill(gateway)?;
    until("the workers end with the gateway", PATIENCE, || async {
        workers(&deployment).ok()?.is_empty().then_some(())
    })
    .await;
    deployment.restart(gateway).await?;
    let (status, answer) = until("the gateway serves again", PATIENCE, || async {
        let answered = order(&deployment, 3.0).await.ok()?;
        (answered.0 == StatusCode::OK).then_some(answered)
    })
    .await;
    ensure!(status == StatusCode::OK, "{answer}");
    deployment.stop().await
}

/// The processes that answer several orders at once.
async fn answering(deployment: &Deployment) -> Result<BTreeSet<String>> {
    let mut orders = JoinSet::new();
    for _ in 0..8 {
        let url = deployment.url().to_owned();
        orders.spawn(async move { order_of(&url, 1.0, "who").await });
    }
    let mut found = BTreeSet::new();
    while let Some(answered) = orders.join_next().await {
        let (status, answer) = answered??;
        ensure!(status == StatusCode::OK, "{answer}");
        let label = answer.pointer("/predictions/0/label").and_then(Value::as_str);
        found.insert(label.context("no label")?.to_owned());
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_rest_gets_another_worker_and_one_that_is_stuck_is_replaced() -> Result<()> {
    // One by one, because a single worker that merges them has a rest after each run.
    let further = "gateway.python.max_workers = 2\ngateway.python.run_timeout = '1s'\ngateway.max_batch_rows = 1";
    let deployment = with_python_models(Topology::AllInOne, false, further).await?;
    let busy: Vec<Asking> = (0..8).map(|_| Asking::start(&deployment)).collect();
    let before = until("two workers answer", PATIENCE, || async {
        let answering = answering(&deployment).await.ok()?;
        (answering.len() == 2).then_some(answering)
    })
    .await;
    for asking in busy {
        let answered = asking.stop().await;
        ensure!(
            answered.iter().all(|(status, _)| *status == StatusCode::OK),
            "{answered:?}"
        );
    }
    let input = |name: &str, datatype: &str, value: Value| json!({"name": name, "datatype": datatype, "shape": [1, 1], "data": [value]});
    let stuck = json!({"parameters": {"timeout": 2_000_000}, "inputs": [
        input("price", "FP64", json!(1.0)),
        input("quantity", "INT64", json!(1)),
        input("name", "BYTES", json!("stuck")),
    ]});
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let answer = http.post(format!("{}/v2/models/orders/infer", deployment.url()));
    let answer = answer.json(&stuck).send().await?;
    ensure!(answer.status() == StatusCode::GATEWAY_TIMEOUT, "{answer:?}");
    until("another takes its place", PATIENCE, || async {
        let answering = answering(&deployment).await.ok()?;
        answering.difference(&before).next().map(drop)
    })
    .await;
    deployment.stop().await
}

async fn forest(deployment: &Deployment) -> Result<(StatusCode, Value)> {
    let url = format!("{}/endpoints/forest/invocations", deployment.url());
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let answer = http.post(url).json(&json!({"inputs": [vec![1.0; 30]]})).send().await?;
    Ok((answer.status(), answer.json().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_python_gets_an_environment_with_what_it_asks_for() -> Result<()> {
    let deployment = with_python_models(Topology::AllInOne, true, "").await?;
    let (status, answer) = order(&deployment, 2.5).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    deployment.succeed(&["deploy", "impossible", "--model", "impossible/1"])?;
    until("why another cannot be run is told", PATIENCE, || async {
        let described = deployment.succeed(&["describe", "endpoint", "impossible"]).ok()?;
        let is_told = described.contains("what the model needs cannot be installed")
            && described.contains("modelyard-has-no-such-package");
        is_told.then_some(())
    })
    .await;
    let listed = fs::read_to_string(format!(
        "/proc/{}/maps",
        workers(&deployment)?.first().context("no worker")?
    ))?;
    ensure!(
        listed.contains("gateway/python/") && !listed.contains("sklearn"),
        "the worker runs in an environment of its own"
    );
    deployment.stop().await
}

/// KServe's own server with the model `halves`; it ends with this value.
struct KserveServer {
    child: Child,
    port: u16,
}

impl KserveServer {
    fn start(port: u16) -> Result<Self> {
        let child = Command::new(python(PYTHON_KSERVE)?)
            .arg(client("kserve_server.py"))
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, port })
    }
}

impl Drop for KserveServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn halve(deployment: &Deployment, value: f64) -> Result<(StatusCode, Value)> {
    let url = format!("{}/v2/models/halves/infer", deployment.url());
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 1.0]}]});
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let answer = http.post(url).json(&body).send().await?;
    Ok((answer.status(), answer.json().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_stands_for_a_model_of_kserve() -> Result<()> {
    let server = KserveServer::start(free_port()?)?;
    let place = format!("127.0.0.1:{}", server.port);
    let extra = format!("gateway.upstreams = ['{place}']\n");
    let deployment = Deployment::start_with(Topology::AllInOne, Engine::Sqlite, &extra).await?;
    let address = format!("grpc://{place}/halves");
    let printed = deployment.succeed(&["models", "import", &address, "--name", "halves", "--alias", "champion"])?;
    ensure!(printed.trim() == "halves/1", "{printed}");
    // It is waited for while the other server starts.
    deployment.succeed(&["deploy", "halves", "--model", "halves@champion"])?;
    let answer = until("the other server answers", PATIENCE, || async {
        let (status, answer) = halve(&deployment, 7.0).await.ok()?;
        (status == StatusCode::OK).then_some(answer)
    })
    .await;
    ensure!(
        answer.pointer("/outputs/0/data") == Some(&json!([3.5, 0.5])),
        "{answer}"
    );
    let KserveServer { port, .. } = server;
    drop(server);
    let (status, answer) = halve(&deployment, 7.0).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {answer}");
    let _again = KserveServer::start(port)?;
    until("the other server is found again", PATIENCE, || async {
        let (status, _) = halve(&deployment, 7.0).await.ok()?;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    deployment.stop().await
}
