//! Clients of others, unchanged, against an endpoint that serves a real model.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use modelyard_flights::{Quiet, train_first_model};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    deployment::{Deployment, Engine, Topology, example_folder},
    permissions::installation::PATIENCE,
};

/// The variable that names the Python with the clients.
const PYTHON: &str = "TEST_PYTHON";
const PYTHON_OLD_CLIENT: &str = "TEST_PYTHON_OLD_CLIENT";

/// The bucket of the tests.
const BUCKET: &str = "yard";

/// How long a script may take: far more than any does beside all the other tests.
const SCRIPT_LIMIT: Duration = Duration::from_mins(5);

/// Enough flights for a model.
const SAMPLE: f64 = 0.05;

/// The largest difference between answers over different ways: they come from the same float32 computation.
const TOLERANCE: f64 = 1e-6;

#[tokio::test(flavor = "multi_thread")]
async fn tritonclient_gets_the_same_answers_over_http_and_grpc_as_plain_json() -> Result<()> {
    let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    train_first_model(&deployment.main_job(1, SAMPLE, Duration::ZERO), &Quiet).await?;

    let request = example_folder().join("request.json");
    let predicted = deployment.modelyard(&["predict", "flight-delay", "-f", &request.display().to_string()])?;
    ensure!(
        predicted.status.success(),
        "{}",
        String::from_utf8_lossy(&predicted.stderr)
    );
    let json: Value = serde_json::from_slice(&predicted.stdout)?;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/triton.py");
    let address = deployment.url().trim_start_matches("http://").to_owned();
    let answers: Value = serde_json::from_str(&run_python(&script, &[&address, &request.display().to_string()])?)?;
    ensure!(
        answers.pointer("/http/version").and_then(Value::as_str) == Some("1"),
        "{answers}"
    );
    let outputs = json
        .get("outputs")
        .and_then(Value::as_array)
        .context("the answer has no outputs")?;
    ensure!(!outputs.is_empty());
    for output in outputs {
        let name = output
            .get("name")
            .and_then(Value::as_str)
            .context("an output has no name")?;
        let expected = numbers(output.get("data"));
        for way in ["http", "grpc"] {
            let got = numbers(answers.pointer(&format!("/{way}/outputs/{name}")));
            let is_same = got.len() == expected.len()
                && expected
                    .iter()
                    .zip(&got)
                    .all(|(one, other)| (one - other).abs() <= TOLERANCE);
            ensure!(
                !expected.is_empty() && is_same,
                "{name} over {way}: {got:?}, as JSON {expected:?}"
            );
        }
    }

    // The script of the README, as a newcomer runs it.
    let output = run_python(&example_folder().join("predict.py"), &[&address])?;
    ensure!(output.contains("late"), "{output}");
    deployment.stop().await
}

/// A server that speaks S3: moto, which stands in for Amazon's in many projects' tests. It ends with this value.
pub struct ObjectStore {
    _server: tokio::process::Child,
    url: String,
}

impl ObjectStore {
    /// Starts it with an empty bucket.
    pub async fn start() -> Result<Self> {
        let mut command = tokio::process::Command::new(python(PYTHON)?);
        command
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut server = command.spawn()?;
        let said = server.stderr.take().context("the object store says nothing")?;
        let mut lines = BufReader::new(said).lines();
        let url = loop {
            let line = lines.next_line().await?.context("the object store has ended")?;
            if let Some((_, url)) = line.split_once("Running on ") {
                break url.trim().to_owned();
            }
        };
        // What it says from here on has to go somewhere, or it would wait.
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the process, and that with this value"
        )]
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
        let made = http.put(format!("{url}/{BUCKET}")).send().await?;
        ensure!(made.status().is_success(), "{made:?}");
        Ok(Self { _server: server, url })
    }

    /// The settings of a server that keeps its objects there.
    pub fn settings(&self) -> String {
        format!(
            "[storage]\nurl = 's3://{BUCKET}/objects'\ns3 = {{ endpoint = '{}', region = 'us-east-1', allow_http = true, \
             access_key_id = 'test', secret_access_key = 'test', presigned_downloads = true }}\n",
            self.url
        )
    }
}

/// Runs a script beside those of the other clients.
pub fn run_client(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    run_python_with(PYTHON, &client(name), arguments, variables)
}

/// The same with the Python that a variable names.
pub fn run_client_of(python: &str, name: &str, arguments: &[&str]) -> Result<String> {
    run_python_with(python, &client(name), arguments, &[])
}

/// The same with the older MLflow client.
pub fn run_old_client(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    run_python_with(PYTHON_OLD_CLIENT, &client(name), arguments, variables)
}

/// A script beside those of the other clients.
pub fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

fn run_python(script: &Path, arguments: &[&str]) -> Result<String> {
    run_python_with(PYTHON, script, arguments, &[])
}

/// The Python that a variable names.
pub fn python(variable: &str) -> Result<OsString> {
    env::var_os(variable)
        .with_context(|| format!("{variable} is not set: run the tests by `cargo xtask test`, which makes that Python"))
}

fn run_python_with(interpreter: &str, script: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new(python(interpreter)?);
    command
        .arg(script)
        .args(arguments)
        .envs(variables.iter().copied())
        // What it has said is seen also when it has to be killed.
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // So that whatever it has started can be killed with it.
        .process_group(0);
    let output = output_within(SCRIPT_LIMIT, command.spawn()?)?;
    ensure!(
        output.status.success(),
        "{} of {}:\n{}\n{}",
        output.status,
        script.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// What a program says until it ends; it is killed, with what it has started, when it has not ended by then.
fn output_within(limit: Duration, program: Child) -> Result<Output> {
    let id = Pid::from_child(&program);
    let (ended, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process_group(id, Signal::KILL);
            }
        });
        let output = program.wait_with_output();
        drop(ended);
        Ok(output?)
    })
}

/// The numbers in a nested array, in order.
fn numbers(value: Option<&Value>) -> Vec<f64> {
    match value {
        Some(Value::Array(items)) => items.iter().flat_map(|item| numbers(Some(item))).collect(),
        Some(Value::Number(number)) => number.as_f64().into_iter().collect(),
        _ => Vec::new(),
    }
}
