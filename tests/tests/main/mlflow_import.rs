//! Moving from an MLflow server: here from a second Modelyard, which speaks its protocol.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};

use crate::deployment::{Deployment, Engine, Topology, binary, check_refused};

/// How many runs there are.
const RUNS: i64 = 60;
/// How many points the metric of each has.
const POINTS: i64 = 500;
/// How long is waited at most for an import to have begun.
const PATIENCE: Duration = Duration::from_mins(1);

struct Server<'a> {
    http: Client,
    url: &'a str,
}

impl Server<'_> {
    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self
            .http
            .post(format!("{}/api/2.0/mlflow/{path}", self.url))
            .json(body)
            .send()
            .await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}/{path}", self.url)).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    async fn put(&self, path: &str, content: String) -> Result<()> {
        let path = format!("{}/api/2.0/mlflow-artifacts/artifacts/{path}", self.url);
        let answer = self.http.put(path).body(content).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        Ok(())
    }

    async fn experiment(&self, name: &str) -> Result<Value> {
        let path = format!("api/2.0/mlflow/experiments/get-by-name?experiment_name={name}");
        Ok(self.get(&path).await?["experiment"].take())
    }

    /// All runs of an experiment, by their ids.
    async fn runs(&self, experiment: &Value) -> Result<Vec<Value>> {
        let body =
            json!({"experiment_ids": [experiment["experiment_id"]], "run_view_type": "ALL", "max_results": 1000});
        let mut found = self.post("runs/search", &body).await?;
        let Value::Array(mut runs) = found["runs"].take() else {
            return Ok(Vec::new());
        };
        runs.sort_by_key(|run| run["info"]["run_id"].to_string());
        Ok(runs)
    }
}

fn id(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).with_context(|| format!("{pointer}: {value}"))
}

/// Fills the source, and gives the id of its experiment.
async fn fill(source: &Server<'_>) -> Result<String> {
    source.post("experiments/create", &json!({"name": "padding"})).await?;
    let tags = json!([{"key": "team", "value": "a"}]);
    let made = source
        .post("experiments/create", &json!({"name": "moving", "tags": tags}))
        .await?;
    let experiment = id(&made, "/experiment_id")?;
    let mut parent: Option<String> = None;
    for number in 0..RUNS {
        let mut tags = vec![json!({"key": "number", "value": number.to_string()})];
        tags.extend(
            parent
                .as_ref()
                .map(|parent| json!({"key": "mlflow.parentRunId", "value": parent})),
        );
        let body = json!({"experiment_id": experiment, "start_time": 1_000 + number, "run_name": "r", "tags": tags});
        let run_id = id(&source.post("runs/create", &body).await?, "/run/info/run_id")?;
        let points = (0..POINTS).map(|step| json!({"key": "loss", "value": step, "timestamp": step, "step": step}));
        let params = json!([{"key": "rate", "value": "0.1"}]);
        let body = json!({"run_id": run_id, "metrics": points.collect::<Vec<_>>(), "params": params});
        source.post("runs/log-batch", &body).await?;
        source
            .put(
                &format!("{experiment}/{run_id}/artifacts/notes/{number}.txt"),
                format!("note {number}"),
            )
            .await?;
        let body = json!({"run_id": run_id, "status": "FINISHED", "end_time": 9_000 + number});
        source.post("runs/update", &body).await?;
        if number % 7 == 0 {
            source.post("runs/delete", &json!({"run_id": run_id})).await?;
        }
        parent = Some(run_id);
    }
    let run_id = parent.context("there are runs")?;
    source.post("registered-models/create", &json!({"name": "m"})).await?;
    for _ in 0..2 {
        let from = format!("mlflow-artifacts:/{experiment}/{run_id}/artifacts/notes");
        let body = json!({"name": "m", "source": from, "run_id": run_id});
        source.post("model-versions/create", &body).await?;
    }
    let body = json!({"name": "m", "alias": "champion", "version": "2"});
    source.post("registered-models/alias", &body).await?;
    Ok(experiment)
}

fn begin_import(from: &str, to: &str) -> Result<Child> {
    Ok(Command::new(binary())
        .args(["import", "mlflow", "--from", from, "-o", "json"])
        .env("MODELYARD_URL", to)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

/// Kills an import as soon as some runs have arrived.
async fn break_off(from: &str, here: &Server<'_>) -> Result<()> {
    let mut child = begin_import(from, here.url)?;
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(experiment) = here.experiment("moving").await
                && !here.runs(&experiment).await?.is_empty()
            {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::task::yield_now().await;
        }
    });
    let waited = waited.await;
    child.kill()?;
    child.wait()?;
    waited.context("no run arrived")?
}

/// What of a run stays the same when it moves.
fn kept(run: &Value) -> Value {
    let mut run = run.clone();
    for moved in ["experiment_id", "artifact_uri"] {
        run["info"][moved] = Value::Null;
    }
    run
}

async fn moves(engine: Engine) -> Result<()> {
    let from = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let to = Deployment::start(Topology::AllInOne, engine).await?;
    let http = Client::builder().timeout(Duration::from_secs(30)).build()?;
    let source = Server {
        http: http.clone(),
        url: from.url(),
    };
    let here = Server { http, url: to.url() };
    fill(&source).await?;
    // So that the numbers of experiments differ.
    for name in ["a", "b", "c"] {
        here.post("experiments/create", &json!({"name": name})).await?;
    }
    break_off(from.url(), &here).await?;
    let arguments = ["import", "mlflow", "--from", from.url(), "-o", "json"];
    for _ in 0..2 {
        let output = to.modelyard(&arguments)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        for (kind, count) in [
            ("runs", RUNS),
            ("points", RUNS * POINTS),
            ("files", RUNS),
            ("versions", 2),
            ("aliases", 1),
        ] {
            let expected = json!({"read": count, "here": count});
            ensure!(report["counts"][kind] == expected, "{kind}: {report}");
        }
    }
    let (there_experiment, experiment) = (source.experiment("moving").await?, here.experiment("moving").await?);
    ensure!(experiment["tags"] == there_experiment["tags"], "{experiment}");
    let (there, arrived) = (source.runs(&there_experiment).await?, here.runs(&experiment).await?);
    ensure!(there.len() as i64 == RUNS, "{}", there.len());
    ensure!(
        there.iter().map(kept).eq(arrived.iter().map(kept)),
        "runs changed on their way"
    );
    let run_id = id(&arrived[0], "/info/run_id")?;
    let history = format!("api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=loss");
    ensure!(
        source.get(&history).await? == here.get(&history).await?,
        "a history changed"
    );
    let version = here.get("api/2.0/mlflow/model-versions/get?name=m&version=2").await?;
    let number = id(&experiment, "/experiment_id")?;
    let moved_to = id(&version, "/model_version/source")?;
    ensure!(
        moved_to.starts_with(&format!("mlflow-artifacts:/{number}/")),
        "{moved_to}"
    );
    clashes_are_named(&source, &to).await?;
    from.stop().await?;
    to.stop().await
}

/// What has the name of something else is refused before anything is written.
async fn clashes_are_named(source: &Server<'_>, to: &Deployment) -> Result<()> {
    let here = Server {
        http: source.http.clone(),
        url: to.url(),
    };
    let made = here.post("experiments/create", &json!({"name": "taken"})).await?;
    here.post("runs/create", &json!({"experiment_id": made["experiment_id"]}))
        .await?;
    source.post("experiments/create", &json!({"name": "taken"})).await?;
    let output = to.modelyard(&["import", "mlflow", "--from", source.url])?;
    check_refused(&output, 1, &["experiment `taken`", "--rename-experiment"])?;
    let renaming = [
        "import",
        "mlflow",
        "--from",
        source.url,
        "--rename-experiment",
        "taken=theirs",
    ];
    let output = to.modelyard(&renaming)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    here.experiment("theirs").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_goes_on_on_sqlite() -> Result<()> {
    moves(Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_goes_on_on_postgresql() -> Result<()> {
    moves(Engine::Postgres).await
}
