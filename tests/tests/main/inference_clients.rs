//! Clients of the Open Inference Protocol, unchanged, against endpoints that serve models of every datatype.

use std::{
    convert::Infallible,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use modelyard_testkit::wait::until;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    clients::{run_client, run_client_of},
    deployment::{Deployment, Engine, Topology, modelyard},
    permissions::installation::{Installation, PATIENCE, accepted, call, framed, grpc_refusal, open_call, text},
};

/// The variable that names the Python with KServe's client.
const PYTHON_KSERVE: &str = "TEST_PYTHON_KSERVE";
/// The variable that names Triton's load generator.
const PERF_ANALYZER: &str = "TEST_PERF_ANALYZER";

/// A server whose endpoints `identity` and `classes` serve the models that the scripts expect.
async fn deployment(topology: Topology) -> Result<Deployment> {
    let deployment = Deployment::start(topology, Engine::Sqlite).await?;
    let folder = deployment.folder().join("models");
    fs::create_dir_all(&folder)?;
    let folder_name = folder.display().to_string();
    run_client("onnx_models.py", &[&folder_name], &[])?;
    for name in ["identity", "classes"] {
        let file = folder.join(format!("{name}.onnx")).display().to_string();
        let model = format!("{name}@champion");
        for arguments in [
            &["models", "import", &file, "--name", name, "--alias", "champion"][..],
            &["deploy", name, "--model", &model, "--wait"],
        ] {
            let output = deployment.modelyard(arguments)?;
            ensure!(
                output.status.success(),
                "{arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(deployment)
}

fn address(deployment: &Deployment) -> &str {
    deployment.url().trim_start_matches("http://")
}

#[tokio::test(flavor = "multi_thread")]
async fn tritonclient_finds_what_triton_offers() -> Result<()> {
    let deployment = deployment(Topology::AllInOne).await?;
    let said = run_client("triton_protocol.py", &[address(&deployment)], &[])?;
    ensure!(said.contains("ok a stream with asyncio"), "{said}");
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_kserve_is_answered_over_all_its_protocols() -> Result<()> {
    let deployment = deployment(Topology::AllInOne).await?;
    let said = run_client_of(PYTHON_KSERVE, "kserve_protocol.py", &[address(&deployment)])?;
    ensure!(said.contains("ok gRPC gives the same"), "{said}");
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_open_ends_with_the_token_of_its_caller() -> Result<()> {
    for topology in [Topology::AllInOne, Topology::Split] {
        let at = Installation::start(topology, "", "").await?;
        let order = at
            .as_admin(Method::POST, "/api/v1/tokens")
            .json(&json!({"name": "stream"}));
        let made = accepted(order).await?;
        let (id, token) = (text(&made, "/id")?.to_owned(), text(&made, "/token")?.to_owned());
        at.wait_known(&at.url, &token).await;
        let address = at.url.trim_start_matches("http://").to_owned();
        let admin = at.admin.clone();
        let run = move || run_client("triton_stream.py", &[&address, &admin, &id, &token], &[]);
        let said = tokio::task::spawn_blocking(run).await??;
        ensure!(said.contains("ok once it is revoked"), "{said}");
        at.deployment.stop().await?;
    }
    Ok(())
}

/// Through a process of another role calls share a connection to the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_answers_nobody_reads_holds_up_no_other_call() -> Result<()> {
    // How many calls are answered while no more of the stream is taken.
    const CALLS: usize = 100;
    let at = Installation::start(Topology::Split, "", "").await?;
    let mut fronts = at.public_urls()?.into_iter().filter(|front| *front != at.url);
    let front = fronts.next_back().context("the gateway is the only process")?;
    at.wait_known(&front, &at.admin).await;
    // An endpoint that is not there, and an id that comes back with the answer.
    let mut message = b"\x0a\x06absent\x1a\x80\x02".to_vec();
    message.resize(message.len() + 256, b'i');

    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let frame = framed(&message);
    let messages = std::iter::repeat_with(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Infallible>(frame.clone())
    });
    let client = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let stream = open_call(&client, &front, "inference.GRPCInferenceService/ModelStreamInfer")
        .bearer_auth(&at.admin)
        .body(reqwest::Body::wrap_stream(tokio_stream::iter(messages)));
    let unread = stream.send().await?;
    let (mut answered, mut before) = (0, 0);
    while answered < CALLS {
        let asked = call(&at.http2, &front, "inference.GRPCInferenceService/ModelInfer", &message);
        let answer = asked.bearer_auth(&at.admin).send().await?;
        let refusal = grpc_refusal(&answer).context("there is such an endpoint")?;
        ensure!(refusal.0 == 5 && refusal.1.contains("absent"), "{refusal:?}");
        let now = sent.load(Ordering::Relaxed);
        answered = if now == before { answered + 1 } else { 0 };
        before = now;
    }
    ensure!(before > 32, "{before} messages were sent");
    drop(unread);
    at.deployment.stop().await
}

/// Neither waits for those who opened streams and watches to end them.
#[tokio::test(flavor = "multi_thread")]
async fn servers_with_open_streams_stop_at_once() -> Result<()> {
    // Half of what a process gives its tasks before it ends without them.
    const LIMIT: Duration = Duration::from_secs(10);
    for topology in [Topology::AllInOne, Topology::Split] {
        let mut at = Installation::start(topology, "", "").await?;
        let mut open = Vec::new();
        for front in at.public_urls()? {
            at.wait_known(&front, &at.admin).await;
            let messages = tokio_stream::pending::<Result<Vec<u8>, Infallible>>();
            let stream = open_call(&at.http2, &front, "inference.GRPCInferenceService/ModelStreamInfer")
                .bearer_auth(&at.admin)
                .body(reqwest::Body::wrap_stream(messages));
            open.push(stream.send().await?);
        }
        let watch = call(&at.http2, &at.url, "grpc.health.v1.Health/Watch", &[]);
        open.push(watch.send().await?);
        for answer in &open {
            ensure!(
                answer.status().is_success() && grpc_refusal(answer).is_none(),
                "{answer:?}"
            );
        }
        // The gateway last, so that what others forward to it does not end with it.
        for index in 0..at.deployment.len() {
            let began = Instant::now();
            at.deployment.stop_one(index).await?;
            ensure!(began.elapsed() < LIMIT, "{index}: {:?}", began.elapsed());
        }
        drop(open);
    }
    Ok(())
}

/// Clients of the inference protocols read nothing but `error`, and look for a message in the status of a call.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_refuses_says_it_as_inference_clients_read_it() -> Result<()> {
    for topology in [Topology::AllInOne, Topology::Split] {
        let at = Installation::start(topology, "", "").await?;
        for front in at.public_urls()? {
            at.wait_known(&front, &at.admin).await;
            let stranger = |path: &str| at.http.get(format!("{front}{path}"));
            let admin = |path: &str| stranger(path).bearer_auth(&at.admin);
            for (asked, status) in [
                (stranger("/v2/models/e"), 401),
                (stranger("/v1/models/e"), 401),
                (admin("/v2/models/e"), 404),
                (admin("/v2/logging"), 404),
                (admin("/v2/models/e/trace/setting"), 404),
            ] {
                let answer = asked.send().await?;
                let (found, kind) = (answer.status(), answer.headers().get("content-type").cloned());
                let body: Value = answer.json().await?;
                ensure!(found.as_u16() == status, "{found}, expected {status}: {body}");
                ensure!(kind.is_some_and(|kind| kind == "application/json"), "{body}");
                ensure!(!text(&body, "/error")?.is_empty(), "{body}");
            }
            let method = "inference.GRPCInferenceService/TraceSetting";
            let answer = call(&at.http2, &front, method, &[])
                .bearer_auth(&at.admin)
                .send()
                .await?;
            let (code, message) = grpc_refusal(&answer).context("there is no such method")?;
            ensure!(code == 12 && message.contains("TraceSetting"), "{code}: {message}");
            // KServe's client asks this before anything else, and people with a browser want to read.
            let alive: Value = stranger("/").send().await?.json().await?;
            ensure!(alive == json!({"status": "alive"}), "{alive}");
            let page = stranger("/").header("accept", "text/html").send().await?;
            ensure!(
                page.headers().get("location").is_some_and(|to| to == "/api/docs"),
                "{}",
                page.status()
            );
        }
        at.deployment.stop().await?;
    }
    Ok(())
}

/// What the path says plainly, it may say in other words, too; the gateway answers the two by different ways.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_prediction_is_answered_alike_however_its_path_is_written() -> Result<()> {
    let deployment = deployment(Topology::AllInOne).await?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let body = json!({
        "id": "same",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
    });
    let mut answers = Vec::new();
    for path in [
        "/v2/models/classes/infer",
        "/v2/models/classes/versions/1/infer",
        "/projects/default/v2/models/classes/infer",
        "/projects/default/v2/models/classes/versions/1/infer",
        "/v2/models/%63lasses/infer",
        "/v2/models/classes/versions/%31/infer",
        "/projects/%64efault/v2/models/classes/infer",
    ] {
        let url = format!("{}{path}", deployment.url());
        let sent = client
            .post(&url)
            .header("x-request-id", "mine")
            .json(&body)
            .send()
            .await?;
        ensure!(sent.status() == 200, "{path}: {}", sent.text().await?);
        ensure!(sent.headers()["x-request-id"] == "mine", "{path}");
        answers.push(sent.json::<Value>().await?);
        ensure!(client.get(&url).send().await?.status() == 405, "{path}");
        let other = url.replacen("lasses", "lass", 1);
        let sent = client.post(&other).json(&body).send().await?;
        ensure!(sent.status() == 404, "{path}: {}", sent.text().await?);
    }
    ensure!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    deployment.stop().await
}

/// The folder of a library that came with a Python package.
fn cuda_libraries(program: &Path) -> Result<PathBuf> {
    let environment = program
        .ancestors()
        .nth(2)
        .context("the load generator lies in no environment")?;
    let versions = fs::read_dir(environment.join("lib"))?.filter_map(Result::ok);
    let mut folders = versions.map(|version| version.path().join("site-packages/nvidia/cuda_runtime/lib"));
    folders
        .find(|folder| folder.is_dir())
        .context("the library of CUDA is not in the load generator's environment")
}

#[tokio::test(flavor = "multi_thread")]
async fn perf_analyzer_drives_it_over_http_and_grpc() -> Result<()> {
    let program: PathBuf = env::var_os(PERF_ANALYZER)
        .with_context(|| format!("{PERF_ANALYZER} is not set: run the tests by `cargo xtask test`, which fetches it"))?
        .into();
    let deployment = deployment(Topology::AllInOne).await?;
    for protocol in ["http", "grpc"] {
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", cuda_libraries(&program)?);
        command.args(["-m", "classes", "-b", "2", "-u", address(&deployment), "-i", protocol]);
        // Windows as short as they may be, three of them, and no wish that they agree: other tests run beside.
        command.args(["--concurrency-range", "4", "-p", "500", "-r", "3", "-s", "10000"]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // What it takes from the statistics of the server.
        let count = said
            .lines()
            .find_map(|line| line.trim().strip_prefix("Inference count: "));
        let Some(count) = count else {
            bail!("over {protocol} it saw no statistics:\n{said}");
        };
        ensure!(count.trim().parse::<u64>()? > 0, "over {protocol}:\n{said}");
    }
    deployment.stop().await
}

/// However many requests one caller has sent, another one waits for few of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_many_requests_does_not_keep_another_waiting() -> Result<()> {
    const MANY: usize = 48;
    for topology in [Topology::AllInOne, Topology::Split] {
        let at = Installation::start(topology, "", "").await?;
        let folder = at.deployment.folder().join("models");
        fs::create_dir_all(&folder)?;
        run_client("onnx_models.py", &[&folder.display().to_string()], &[])?;
        let file = folder.join("unhurried.onnx").display().to_string();
        let variables = [("MODELYARD_URL", &*at.url), ("MODELYARD_TOKEN", &at.admin)];
        let import = ["models", "import", &file, "--name", "unhurried", "--alias", "champion"];
        let output = modelyard(&import, &variables)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // One by one, so that it is seen whose turn it is.
        let routes = json!([{"model": "unhurried@champion", "weight": 100}]);
        let spec = json!({"routes": routes, "batching": {"max_rows": 1}});
        at.put("/api/v1/projects/default/endpoints/unhurried", &spec).await?;
        at.make_service_account("modest", &[]).await?;
        at.bind("modest", "service-account:modest", "caller", "default").await?;
        let modest = at.make_token("modest", None).await?.text;

        // Through a process without the gateway, which hands on who calls.
        let front = at.public_urls()?.into_iter().find(|front| *front != at.url);
        let front = front.unwrap_or_else(|| at.url.clone());
        let ask = |token: &str| {
            let url = format!("{front}/v2/models/unhurried/infer");
            let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]});
            at.http
                .post(url)
                .bearer_auth(token)
                .json(&json!({"inputs": [x]}))
                .send()
        };
        until("it serves", PATIENCE, || async {
            (ask(&modest).await.ok()?.status() == 200).then_some(())
        })
        .await;
        let answered = Arc::new(AtomicUsize::new(0));
        let mut calls = JoinSet::new();
        for _ in 0..MANY {
            let (call, answered) = (ask(&at.admin), Arc::clone(&answered));
            calls.spawn(async move {
                let status = call.await?.status();
                answered.fetch_add(1, Ordering::Relaxed);
                ensure!(status == 200, "{status}");
                Ok(())
            });
        }
        // Most of them wait when the first is answered.
        until("one of them is answered", PATIENCE, || async {
            (answered.load(Ordering::Relaxed) > 0).then_some(())
        })
        .await;
        for answer in tokio::try_join!(ask(&modest), ask(&modest), ask(&modest)).map(<[_; 3]>::from)? {
            ensure!(answer.status() == 200, "{}", answer.status());
        }
        let before = answered.load(Ordering::Relaxed);
        ensure!(
            before < MANY / 2,
            "{before} of {MANY} of another caller's went before three of one who waits"
        );
        while let Some(answer) = calls.join_next().await {
            answer??;
        }
        at.deployment.stop().await?;
    }
    Ok(())
}
