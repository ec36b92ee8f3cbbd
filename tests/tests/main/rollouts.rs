//! New versions of an endpoint come to serve step by step under load, or are refused by what guards them.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use modelyard_testkit::wait::until;
use parking_lot::Mutex;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    clients::run_client,
    deployment::{Deployment, Engine, Topology},
    permissions::installation::{PATIENCE, accepted},
};

/// Callers that send one request after the other.
const CALLERS: usize = 4;
/// What a version must keep below half the time; the slow one needs many times as long, the others a hundredth.
const MEDIAN: &str = "40ms";

/// How long a rollout may take to come to an end: its version is loaded at a low priority, and a slow one must answer some requests
/// before it can be judged, while other tests have the processors.
const ROLLOUT_PATIENCE: Duration = Duration::from_mins(3);

/// An endpoint `e` that follows an alias, under load.
pub struct Scene {
    pub deployment: Deployment,
    http: Client,
    pub load: Load,
}

/// What came of requests: by the version that answered, and of those that failed.
#[derive(Default)]
pub struct Outcomes {
    pub answered: BTreeMap<String, usize>,
    pub failed: Vec<String>,
}

pub struct Load {
    outcomes: Arc<Mutex<Outcomes>>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    fn start(url: &str, http: &Client) -> Self {
        let (outcomes, stop) = (Arc::<Mutex<Outcomes>>::default(), Arc::<AtomicBool>::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (outcomes, stop, http) = (Arc::clone(&outcomes), Arc::clone(&stop), http.clone());
            let url = format!("{url}/v2/models/e/infer");
            callers.spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let body = json!({"id": format!("{caller}-{number}"), "inputs": [
                        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]});
                    let outcome = ask(&http, &url, &body).await;
                    let mut outcomes = outcomes.lock();
                    match outcome {
                        Ok(version) => *outcomes.answered.entry(version).or_default() += 1,
                        Err(error) => outcomes.failed.push(format!("{error:#}")),
                    }
                }
            });
        }
        Self {
            outcomes,
            stop,
            callers,
        }
    }

    /// What came of requests since the last time.
    pub fn take(&self) -> Outcomes {
        std::mem::take(&mut self.outcomes.lock())
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
    }
}

async fn ask(http: &Client, url: &str, body: &Value) -> Result<String> {
    let answer = http.post(url).json(body).send().await?;
    let (status, answer) = (answer.status(), answer.json::<Value>().await?);
    ensure!(status.is_success(), "{status}: {answer}");
    let version = answer.get("model_version").and_then(Value::as_str);
    Ok(version.context("no version")?.to_owned())
}

impl Scene {
    /// The endpoint with version 1, and versions that wait: 2 is better, 3 fails, 4 is slow.
    pub async fn start(topology: Topology) -> Result<Self> {
        let deployment = Deployment::start(topology, Engine::Sqlite).await?;
        let folder = deployment.folder().join("models");
        fs::create_dir_all(&folder)?;
        run_client("onnx_models.py", &[&folder.display().to_string()], &[])?;
        for name in ["good", "better", "failing", "slow"] {
            let file = folder.join(format!("{name}.onnx")).display().to_string();
            deployment.succeed(&["models", "import", &file, "--name", "m"])?;
        }
        let scene = Self {
            http: Client::builder().timeout(PATIENCE).build()?,
            load: Load {
                outcomes: Arc::default(),
                stop: Arc::default(),
                callers: JoinSet::new(),
            },
            deployment,
        };
        scene.point_at(1).await?;
        let spec = json!({
            "routes": [{"model": "m@champion"}],
            "rollout": {"steps": [20, 60], "interval": "1s", "min_requests": 20, "guards": [
                {"metric": "error_rate", "max": 0.1},
                {"metric": "p50_latency", "max": MEDIAN},
                {"alert": "watched"},
            ]},
        });
        let url = scene.url("endpoints/e");
        accepted(scene.http.put(url).json(&spec)).await?;
        until("version 1 serves", PATIENCE, || async {
            let endpoint = scene.get("endpoints/e").await.ok()?;
            (endpoint.pointer("/status/ready") == Some(&json!(true))).then_some(())
        })
        .await;
        let load = Load::start(scene.deployment.url(), &scene.http);
        Ok(Self { load, ..scene })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/projects/default/{path}", self.deployment.url())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        accepted(self.http.get(self.url(path))).await
    }

    /// Points the alias at a version: MLflow's client would do the same.
    pub async fn point_at(&self, version: u32) -> Result<()> {
        let alias = json!({"name": "m", "alias": "champion", "version": version.to_string()});
        let url = format!("{}/api/2.0/mlflow/registered-models/alias", self.deployment.url());
        accepted(self.http.post(url).json(&alias)).await?;
        Ok(())
    }

    /// The newest rollout, once it is in a state.
    pub async fn rollout_in(&self, state: &str, to: u32) -> Result<Value> {
        let wanted = json!([format!("m/{to}")]);
        let look = || async {
            let rollouts = self.get("rollouts?endpoint=e&limit=1").await.ok()?;
            let rollout = rollouts.pointer("/items/0")?.clone();
            let is_it = rollout.get("to") == Some(&wanted) && rollout.get("state") == Some(&json!(state));
            is_it.then_some(rollout)
        };
        Ok(until(
            &format!("the rollout of version {to} is {state}"),
            ROLLOUT_PATIENCE,
            look,
        )
        .await)
    }

    /// Waits until all who ask get this version, and gives what came of requests until then.
    pub async fn all_get(&self, version: &str) -> Result<Outcomes> {
        let mut sum = Outcomes::default();
        let deadline = Instant::now() + PATIENCE;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let part = self.load.take();
            let all =
                !part.answered.is_empty() && part.failed.is_empty() && part.answered.keys().all(|key| key == version);
            for (version, count) in part.answered {
                *sum.answered.entry(version).or_default() += count;
            }
            sum.failed.extend(part.failed);
            if all {
                return Ok(sum);
            }
            if Instant::now() >= deadline {
                bail!(
                    "not all get version {version}: {:?}, {:?}",
                    sum.answered,
                    sum.failed.first()
                );
            }
        }
    }

    pub async fn stop(self) -> Result<()> {
        self.load.stop().await;
        self.deployment.stop().await
    }
}

fn reason(rollout: &Value) -> &str {
    rollout.get("reason").and_then(Value::as_str).unwrap_or_default()
}

async fn versions_come_and_are_refused(topology: Topology) -> Result<()> {
    let scene = Scene::start(topology).await?;
    // One that fails: a few requests pay for it, and what served before goes on serving.
    scene.point_at(3).await?;
    let refused = scene.rollout_in("rolled_back", 3).await?;
    ensure!(reason(&refused).starts_with("error_rate is "), "{refused}");
    let outcomes = scene.all_get("1").await?;
    ensure!(!outcomes.failed.is_empty() && !outcomes.answered.contains_key("3"));
    // One that is slow: nobody fails for it.
    scene.point_at(4).await?;
    let refused = scene.rollout_in("rolled_back", 4).await?;
    ensure!(reason(&refused).starts_with("p50_latency is "), "{refused}");
    let outcomes = scene.all_get("1").await?;
    ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed);
    // One that is good comes to serve, and nobody fails for it.
    scene.point_at(2).await?;
    let promoted = scene.rollout_in("promoted", 2).await?;
    ensure!(promoted.pointer("/from") == Some(&json!(["m/1"])), "{promoted}");
    let outcomes = scene.all_get("2").await?;
    ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed);
    // What was asked of the slow one before may be answered only now.
    let is_expected = |(version, count): (&String, &usize)| ["1", "2"].contains(&version.as_str()) || *count <= CALLERS;
    ensure!(outcomes.answered.iter().all(is_expected), "{:?}", outcomes.answered);
    // Back by hand, within a second once it is said.
    let said = scene.deployment.succeed(&["rollback", "e", "--wait"])?;
    ensure!(said.contains("endpoint/e is back at m/1"), "{said}");
    let outcomes = scene.all_get("1").await?;
    ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed);
    let endpoint = scene.get("endpoints/e").await?;
    ensure!(
        endpoint.pointer("/traffic/candidate/rejected") == Some(&json!(true)),
        "{endpoint}"
    );
    scene.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn good_versions_come_to_serve_and_bad_ones_are_refused() -> Result<()> {
    versions_come_and_are_refused(Topology::AllInOne).await
}

#[tokio::test(flavor = "multi_thread")]
async fn good_versions_come_to_serve_and_bad_ones_are_refused_in_separate_processes() -> Result<()> {
    versions_come_and_are_refused(Topology::Split).await
}

/// Without a load of the model: it is in memory still. The best of a few counts, because other tests run beside this one.
#[tokio::test(flavor = "multi_thread")]
async fn going_back_takes_less_than_a_second() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    let scene = Scene::start(Topology::Split).await?;
    let plain = json!({"routes": [{"model": "m/1"}]});
    accepted(scene.http.put(scene.url("endpoints/e")).json(&plain)).await?;
    let mut took = Vec::new();
    for _ in 0..3 {
        // What was taken back is refused until the routes mean something else.
        for model in ["m/1", "m/2"] {
            scene.deployment.succeed(&["deploy", "e", "--model", model, "--wait"])?;
        }
        scene.all_get("2").await?;
        let began = Instant::now();
        scene.deployment.succeed(&["rollback", "e"])?;
        let outcomes = scene.all_get("1").await?;
        took.push(began.elapsed());
        ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed);
    }
    ensure!(took.iter().any(|took| *took < LIMIT), "{took:?}");
    scene.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_paused_promoted_and_aborted_by_hand() -> Result<()> {
    let scene = Scene::start(Topology::AllInOne).await?;
    scene.point_at(2).await?;
    scene.rollout_in("running", 2).await?;
    let said = scene.deployment.succeed(&["rollout", "pause", "e"])?;
    ensure!(said.contains("the rollout is paused"), "{said}");
    let paused = scene.rollout_in("paused", 2).await?;
    ensure!(reason(&paused) == "paused by user:local", "{paused}");
    let said = scene.deployment.succeed(&["rollout", "resume", "e"])?;
    ensure!(said.contains("the rollout is running"), "{said}");
    let said = scene.deployment.succeed(&["rollout", "abort", "e"])?;
    ensure!(said.contains("the rollout is rolled_back, its share 0 %"), "{said}");
    scene.all_get("1").await?;
    let over = scene.deployment.modelyard(&["rollout", "promote", "e"])?;
    let said = String::from_utf8_lossy(&over.stderr);
    ensure!(!over.status.success() && said.contains("is in no rollout"), "{said}");
    // Something else, and the same again, are rollouts of their own.
    scene.point_at(1).await?;
    scene.point_at(2).await?;
    scene.rollout_in("running", 2).await?;
    scene.deployment.succeed(&["rollout", "promote", "e"])?;
    let outcomes = scene.all_get("2").await?;
    ensure!(outcomes.failed.is_empty(), "{:?}", outcomes.failed);
    // Who deploys and waits is told at the end of it.
    scene.deployment.succeed(&["deploy", "e", "--model", "m/1", "--wait"])?;
    scene.all_get("1").await?;
    let refused = scene
        .deployment
        .modelyard(&["deploy", "e", "--model", "m/3", "--wait"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("it was refused"), "{said}");
    scene
        .deployment
        .succeed(&["deploy", "e", "--model", "m@champion", "--wait"])?;
    scene.all_get("2").await?;
    let listed = scene.deployment.succeed(&["get", "rollouts"])?;
    ensure!(
        listed.contains("promoted") && listed.contains("rolled_back"),
        "{listed}"
    );
    // Going back by hand ends one that is under way.
    scene.point_at(1).await?;
    scene.rollout_in("running", 1).await?;
    scene.deployment.succeed(&["rollback", "e"])?;
    let ended = scene.rollout_in("superseded", 1).await?;
    ensure!(reason(&ended).contains("ended by hand"), "{ended}");
    scene.all_get("2").await?;
    scene.stop().await
}

/// Trains a version of `numbers` on the numbers from `first` on, whether they are in the upper half.
fn train(deployment: &Deployment, first: u32) -> Result<()> {
    let rows = (0..400).map(|row| format!("{},{}\n", first + row % 100, u8::from(row % 100 >= 50)));
    let file = deployment.folder().join("numbers.csv");
    fs::write(&file, format!("x,y\n{}", rows.collect::<String>()))?;
    deployment.succeed(&["data", "push", "numbers", &file.display().to_string()])?;
    deployment.succeed(&["run", "numbers", "--wait"])?;
    Ok(())
}

const NUMBERS: &str = r#"
kind: Pipeline
name: numbers
spec:
  steps:
    - { name: data, op: dataset, with: { dataset: numbers@latest } }
    - { name: train, op: train, with: { dataset: "{{ steps.data.outputs }}", target: y, trees: 5 } }
    - { name: register, op: register, with: { candidate: "{{ steps.train.outputs }}", model: numbers } }
---
kind: Endpoint
name: numbers
spec:
  routes: [{ model: numbers@champion }]
  rollout: { steps: [50], interval: 10m, guards: [{ alert: drifted }] }
---
kind: Monitor
name: numbers
spec: { endpoint: numbers, window: hour, min_rows: 20 }
---
kind: AlertRule
name: drifted
spec:
  monitor: numbers
  labels: { share: 1, within: 1s }
  any: [{ metric: METRIC }]
"#;

fn time_of(minute: u32) -> String {
    let (day, hour) = (1 + minute / 1440, minute / 60 % 24);
    format!("2026-01-{day:02}T{hour:02}:{:02}:00Z", minute % 60)
}

/// Asks about a number a minute of event time, and gives the version that answered.
async fn ask_about(deployment: &Deployment, http: &Client, minute: u32) -> Result<String> {
    let body = json!({
        "id": format!("at-{minute}"),
        "parameters": {"event_time": time_of(minute)},
        "inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [minute * 37 % 100]}],
    });
    ask(http, &format!("{}/v2/models/numbers/infer", deployment.url()), &body).await
}

/// What came of it: all that version 1 is asked ends well, and nothing of what another is asked.
async fn tell_what_came_of(deployment: &Deployment, http: &Client, answered: &[(u32, String)]) -> Result<()> {
    let labels: Vec<Value> = answered
        .iter()
        .map(|(minute, version)| {
            json!({"request_id": format!("at-{minute}"), "label": version == "1", "observed_at": time_of(*minute)})
        })
        .collect();
    let url = format!("{}/api/v1/projects/default/labels", deployment.url());
    accepted(http.post(url).json(&json!({"endpoint": "numbers", "labels": labels}))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_sees_other_inputs_than_in_training_is_refused_by_its_monitor() -> Result<()> {
    refused_by_its_monitor("drift_share, above: 0.5", 1000, false).await
}

/// A business metric: the mean of the labels.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_which_nothing_good_comes_is_refused_by_its_monitor() -> Result<()> {
    refused_by_its_monitor("label, below: 0.5", 1, true).await
}

/// Version 1 was trained on numbers from 0 on, and version 2 from `second` on.
async fn refused_by_its_monitor(metric: &str, second: u32, is_labelled: bool) -> Result<()> {
    const DAYS: u32 = 28;
    let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let http = Client::builder().timeout(PATIENCE).build()?;
    let resources = deployment.folder().join("numbers.yaml");
    fs::write(&resources, NUMBERS.replace("METRIC", metric))?;
    deployment.succeed(&["apply", "-f", &resources.display().to_string()])?;
    train(&deployment, 0)?;
    deployment.succeed(&["deploy", "numbers", "--model", "numbers/1", "--wait"])?;
    train(&deployment, second)?;
    deployment.succeed(&["deploy", "numbers", "--model", "numbers/2"])?;
    let mut minutes = 0..DAYS * 1440;
    let mut answered = BTreeMap::<String, usize>::new();
    let deadline = Instant::now() + 2 * PATIENCE;
    let refused = loop {
        // Hours of event time pass as fast as they are asked for; windows are scored as they close.
        let mut of_hour = Vec::new();
        for minute in minutes.by_ref().take(60) {
            let version = ask_about(&deployment, &http, minute).await?;
            *answered.entry(version.clone()).or_default() += 1;
            of_hour.push((minute, version));
        }
        if is_labelled {
            tell_what_came_of(&deployment, &http, &of_hour).await?;
        }
        let url = format!(
            "{}/api/v1/projects/default/rollouts?endpoint=numbers&limit=1",
            deployment.url()
        );
        let rollouts: Value = accepted(http.get(url)).await?;
        let newest = rollouts.pointer("/items/0").cloned().unwrap_or_default();
        if newest.get("state") == Some(&json!("rolled_back")) {
            break newest;
        }
        ensure!(Instant::now() < deadline, "{rollouts} {answered:?}");
        // Event time that passes faster than it is scored only makes more to score.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(reason(&refused).contains("drifted"), "{refused}");
    ensure!(answered.len() == 2, "both answered until then: {answered:?}");
    // The gateways are told a moment later.
    let mut in_a_row = 0;
    while in_a_row < 60 {
        let minute = minutes.next().context("no event time is left")?;
        let is_first = ask_about(&deployment, &http, minute).await? == "1";
        in_a_row = if is_first { in_a_row + 1 } else { 0 };
        ensure!(Instant::now() < deadline, "version 2 answers after it was refused");
    }
    deployment.stop().await
}
