//! Models that are served only when a key has signed them that the gateway trusts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use modelyard_testkit::wait::until;
use rcgen::KeyPair;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    clients::{python, run_client},
    deployment::{Deployment, Engine, Topology},
    permissions::installation::PATIENCE,
};

const PYTHON: &str = "TEST_PYTHON";
const PYTHON_SIGNING: &str = "TEST_PYTHON_SIGNING";

/// Keys in files: `trusted` and `other`, the public halves beside them.
struct Keys(TempDir);

impl Keys {
    fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for name in ["trusted", "other"] {
            let key = KeyPair::generate()?;
            fs::write(folder.path().join(name), key.serialize_pem())?;
            fs::write(folder.path().join(format!("{name}.pub")), key.public_key_pem())?;
        }
        Ok(Self(folder))
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The configuration of a gateway that wants the trusted one's signature.
    fn wanted(&self) -> String {
        let key = self.file("trusted.pub");
        format!("gateway.signatures = {{ projects = ['default'], keys = ['{key}'] }}\n")
    }
}

/// What a command says that must fail.
fn refusal(deployment: &Deployment, arguments: &[&str]) -> Result<String> {
    let output = deployment.modelyard(arguments)?;
    ensure!(!output.status.success(), "{arguments:?} did not fail");
    Ok(String::from_utf8(output.stderr)?)
}

async fn is_told(deployment: &Deployment, endpoint: &str, why: &'static str) {
    until(why, PATIENCE, || async {
        let described = deployment.succeed(&["describe", "endpoint", endpoint]).ok()?;
        described.contains(why).then_some(())
    })
    .await;
}

async fn predict(deployment: &Deployment, endpoint: &str) -> Result<(StatusCode, Value)> {
    let url = format!("{}/v2/models/{endpoint}/infer", deployment.url());
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]});
    let answer = Client::builder()
        .timeout(PATIENCE)
        .build()?
        .post(url)
        .json(&body)
        .send()
        .await?;
    Ok((answer.status(), answer.json().await?))
}

async fn is_served(deployment: &Deployment, endpoint: &str) {
    until("the endpoint serves", PATIENCE, || async {
        let (status, _) = predict(deployment, endpoint).await.ok()?;
        (status == StatusCode::OK).then_some(())
    })
    .await;
}

fn models(deployment: &Deployment) -> Result<PathBuf> {
    let folder = deployment.folder().join("models");
    fs::create_dir_all(&folder)?;
    run_client("onnx_models.py", &[&folder.display().to_string()], &[])?;
    Ok(folder)
}

/// The program of OpenSSF's model signing.
fn model_signing(arguments: &[&str]) -> Result<()> {
    let output = Command::new(python(PYTHON_SIGNING)?)
        .args(["-m", "model_signing"])
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "{arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_trusted_key_has_signed_is_served() -> Result<()> {
    let keys = Keys::make()?;
    let mut deployment = Deployment::start_with(Topology::Split, Engine::Sqlite, &keys.wanted()).await?;
    let folder = models(&deployment)?;
    let file = |name: &str| folder.join(format!("{name}.onnx")).display().to_string();
    deployment.succeed(&["models", "import", &file("good"), "--name", "m", "--alias", "champion"])?;
    deployment.succeed(&["deploy", "e", "--model", "m@champion"])?;
    is_told(&deployment, "e", "is not signed").await;
    let (status, _) = predict(&deployment, "e").await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");

    deployment.succeed(&["models", "sign", "m/1", "--key", &keys.file("other")])?;
    is_told(&deployment, "e", "none of the trusted keys has signed it").await;
    let verify = ["models", "verify", "m/1", "--key", &keys.file("trusted.pub")];
    let said = refusal(&deployment, &verify)?;
    ensure!(said.contains("none of the trusted keys"), "{said}");

    deployment.succeed(&["models", "sign", "m/1", "--key", &keys.file("trusted")])?;
    is_served(&deployment, "e").await;
    let said = deployment.succeed(&verify)?;
    ensure!(said.contains("m/1"), "{said}");

    // The next one is not signed: the one before serves on.
    deployment.succeed(&[
        "models",
        "import",
        &file("better"),
        "--name",
        "m",
        "--alias",
        "champion",
    ])?;
    is_told(&deployment, "e", "is not signed").await;
    let (status, answer) = predict(&deployment, "e").await?;
    ensure!(
        status == StatusCode::OK && answer.get("model_version") == Some(&json!("1")),
        "{status} {answer}"
    );
    // A signature of other files is none of this version.
    model_signing(&[
        "sign",
        "key",
        &file("good"),
        "--private_key",
        &keys.file("trusted"),
        "--signature",
        &keys.file("of-good"),
    ])?;
    let said = refusal(
        &deployment,
        &["models", "sign", "m/2", "--bundle", &keys.file("of-good")],
    )?;
    ensure!(said.contains("not among the files that are signed"), "{said}");

    // A gateway that starts again has what it needs.
    let gateway = deployment.len() - 1;
    deployment.kill(gateway)?;
    deployment.restart(gateway).await?;
    is_served(&deployment, "e").await;
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_those_of_openssf_s_model_signing() -> Result<()> {
    let keys = Keys::make()?;
    let deployment = Deployment::start_with(Topology::AllInOne, Engine::Sqlite, &keys.wanted()).await?;
    let folder = models(&deployment)?;
    // Theirs: with the files, and beside them.
    let own = deployment.folder().join("own");
    fs::create_dir_all(&own)?;
    fs::copy(folder.join("good.onnx"), own.join("model.onnx"))?;
    fs::write(own.join("README"), "what it is")?;
    let signature = own.join("model.sig");
    let signed = |path: &Path, signature: &Path| {
        let (path, signature) = (path.display().to_string(), signature.display().to_string());
        model_signing(&[
            "sign",
            "key",
            &path,
            "--private_key",
            &keys.file("trusted"),
            "--signature",
            &signature,
        ])
    };
    signed(&own, &signature)?;
    let path = own.display().to_string();
    deployment.succeed(&["models", "import", &path, "--name", "theirs", "--alias", "champion"])?;
    deployment.succeed(&["deploy", "theirs", "--model", "theirs@champion", "--wait"])?;
    is_served(&deployment, "theirs").await;

    let file = folder.join("better.onnx");
    let path = file.display().to_string();
    deployment.succeed(&["models", "import", &path, "--name", "beside"])?;
    signed(&file, &folder.join("better.sig"))?;
    let bundle = folder.join("better.sig").display().to_string();
    deployment.succeed(&["models", "sign", "beside/1", "--bundle", &bundle])?;
    deployment.succeed(&["deploy", "beside", "--model", "beside/1", "--wait"])?;

    // Ours, which they verify.
    let version = deployment.succeed(&[
        "models",
        "sign",
        "beside/1",
        "--key",
        &keys.file("trusted"),
        "-o",
        "json",
    ])?;
    let version: Value = serde_json::from_str(&version)?;
    let digest = version
        .get("bundle_digest")
        .and_then(Value::as_str)
        .context("no bundle")?;
    let url = format!("{}/api/v1/projects/default/artifacts/{digest}", deployment.url());
    let content = reqwest::get(url).await?.error_for_status()?.bytes().await?;
    fs::write(folder.join("ours.sig"), &content)?;
    let ours = folder.join("ours.sig").display().to_string();
    model_signing(&[
        "verify",
        "key",
        &path,
        "--public_key",
        &keys.file("trusted.pub"),
        "--signature",
        &ours,
    ])?;
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_files_of_a_model_of_python_are_signed() -> Result<()> {
    let keys = Keys::make()?;
    let interpreter = PathBuf::from(python(PYTHON)?);
    let extra = format!(
        "{}gateway.python = {{ interpreter = '{}', environments = false }}\n",
        keys.wanted(),
        interpreter.display()
    );
    let deployment = Deployment::start_with(Topology::AllInOne, Engine::Sqlite, &extra).await?;
    let url = deployment.url().to_owned();
    let log = move || run_client("mlflow_pyfunc.py", &["log"], &[("MLFLOW_TRACKING_URI", &url)]);
    tokio::task::spawn_blocking(log).await??;
    deployment.succeed(&["deploy", "orders", "--model", "orders@champion"])?;
    is_told(&deployment, "orders", "is not signed").await;
    deployment.succeed(&["models", "sign", "orders/1", "--key", &keys.file("trusted")])?;
    let verified = deployment.succeed(&[
        "models",
        "verify",
        "orders/1",
        "--key",
        &keys.file("trusted.pub"),
        "-o",
        "json",
    ])?;
    let verified: Value = serde_json::from_str(&verified)?;
    let files = verified.get("files").and_then(Value::as_object).context("no files")?;
    ensure!(
        files.len() > 3 && files.contains_key("MLmodel") && files.contains_key("requirements.txt"),
        "{files:?}"
    );
    until("the model is served", PATIENCE, || async {
        let endpoint = deployment.succeed(&["get", "endpoint", "orders", "-o", "json"]).ok()?;
        let endpoint: Value = serde_json::from_str(&endpoint).ok()?;
        (endpoint.pointer("/status/ready") == Some(&json!(true))).then_some(())
    })
    .await;
    deployment.stop().await
}
