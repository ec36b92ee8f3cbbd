//! The main job, step by step.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    answers::{conditions, failed_steps, group, live_row, number, row_of, running_step, served, text},
    api::{Api, Look, wait_for},
    command::CommandLine,
    data::{Month, read_months},
    encode::{Encoder, Metadata},
    progress::Progress,
    report::{MonthRow, Report, Summary, auc_gain},
    traffic::Traffic,
};

/// The dataset.
const DATASET: &str = "flights";
/// The pipeline that trains.
pub const PIPELINE: &str = "flight-delay";
/// The registered model.
pub const MODEL: &str = "flight-delay";
/// The endpoint that serves it.
pub const ENDPOINT: &str = "flight-delay";
/// The monitor that scores it.
pub const MONITOR: &str = "flight-delay";

/// The months of the first training, and those that follow.
const FIRST_MONTHS: [&str; 2] = ["2013-01", "2013-02"];
const REPLAYED_MONTHS: [&str; 10] = [
    "2013-03", "2013-04", "2013-05", "2013-06", "2013-07", "2013-08", "2013-09", "2013-10", "2013-11", "2013-12",
];

/// The version that stays on as a shadow.
pub const NEVER_RETRAINED: u64 = 1;

/// Labels sent at once; a month's labels are spread evenly, so that the last batch is never a small rest.
const LABEL_BATCH: usize = 10_000;

/// How long each thing may take: a pipeline run, a switch of the endpoint, the scores of a month.
const RUN_PATIENCE: Duration = Duration::from_mins(10);
const SWITCH_PATIENCE: Duration = Duration::from_mins(3);
const SCORE_PATIENCE: Duration = Duration::from_mins(2);

/// How long shadow answers may be missing, without one more, before the job goes on without them.
const SHADOW_PATIENCE: Duration = Duration::from_secs(20);

/// How the main job is run.
#[derive(Debug, Clone)]
pub struct MainJob {
    /// The server's public listener.
    pub url: String,
    /// Where inference over gRPC is; the same listener, usually.
    pub grpc_url: String,
    /// The program `modelyard`.
    pub binary: PathBuf,
    /// The folder with `flights.parquet` and the resources as YAML.
    pub folder: PathBuf,
    /// How many months are replayed, 1 to 10.
    pub months: usize,
    /// Share of the flights that take part, more than 0 and at most 1; always the same ones.
    pub sample: f64,
    /// Requests that are under way at once.
    pub concurrency: usize,
    /// How long a call or request is tried again while the server is away. With zero, a request that meets no server has
    /// failed.
    pub away: Duration,
}

/// Runs the main job on a server that has nothing yet, and reports what came out.
///
/// # Errors
/// What could not be done, with what was waited for and what the server said last.
pub async fn run_main_job(job: &MainJob, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    progress.step("splitting the flights by month");
    let mut run = Run::new(job, progress).await?;
    run.declare_and_train().await?;
    let mut rows = Vec::new();
    for name in REPLAYED_MONTHS.iter().take(job.months) {
        let row = run.month(name).await.with_context(|| format!("in the month {name}"))?;
        progress.month(&row);
        rows.push(row);
    }
    let prediction = run.describe_prediction(&rows).await?;
    let tally = &run.traffic.tally;
    let mut warnings = run.warnings;
    warnings.extend(
        tally
            .failures()
            .into_iter()
            .map(|text| format!("a request failed: {text}")),
    );
    Ok(Report {
        summary: Summary {
            auc_gain: auc_gain(&rows),
            retrainings: rows.iter().filter(|row| row.retrained_to.is_some()).count() as u64,
            failed_requests: tally.failed(),
            seconds: started.elapsed().as_secs_f64(),
        },
        months: rows,
        warnings,
        retried_requests: tally.retried(),
        prediction,
        parts: run.parts,
    })
}

/// The job's beginning alone: data, resources, the first model, and traffic to it.
///
/// # Errors
/// As of the whole job.
pub async fn train_first_model(job: &MainJob, progress: &dyn Progress) -> Result<()> {
    Run::new(job, progress).await?.declare_and_train().await
}

/// What the job holds while it runs.
struct Run<'a> {
    job: &'a MainJob,
    progress: &'a dyn Progress,
    api: Api,
    commands: CommandLine,
    traffic: Arc<Traffic>,
    months: BTreeMap<String, Month>,
    /// The version that the alias `champion` points at.
    champion: u64,
    /// The dataset's files so far, as the API takes them.
    files: Vec<Value>,
    warnings: Vec<String>,
    parts: Vec<(&'static str, Duration)>,
}

impl<'a> Run<'a> {
    async fn new(job: &'a MainJob, progress: &'a dyn Progress) -> Result<Self> {
        ensure!(
            (1..=REPLAYED_MONTHS.len()).contains(&job.months),
            "{} months cannot be replayed: choose 1 to {}",
            job.months,
            REPLAYED_MONTHS.len()
        );
        ensure!(
            job.sample > 0.0 && job.sample <= 1.0,
            "{} is no share: choose more than 0 and at most 1",
            job.sample
        );
        let (file, sample) = (job.folder.join("flights.parquet"), job.sample);
        let months = tokio::task::spawn_blocking(move || read_months(&file, sample)).await??;
        Ok(Self {
            job,
            progress,
            api: Api::new(&job.url, job.away.max(CALLS_AWAY))?,
            commands: CommandLine::new(&job.binary, &job.url, job.away),
            traffic: Arc::new(Traffic::new(&job.url, &job.grpc_url, ENDPOINT, job.away)?),
            months,
            champion: NEVER_RETRAINED,
            files: Vec::new(),
            warnings: Vec::new(),
            parts: Vec::new(),
        })
    }

    /// From data to traffic: the dataset, the resources, the first model.
    async fn declare_and_train(&mut self) -> Result<()> {
        self.progress
            .step("pushing January and February as the dataset's first version");
        let started = Instant::now();
        for name in FIRST_MONTHS {
            self.add_file(name).await?;
        }
        let version = self.push().await?;
        ensure!(
            version == 1,
            "the dataset `{DATASET}` is at version {version} already: start on an empty server"
        );
        self.took("data", started);

        self.progress
            .step("declaring the pipeline, the endpoint, the monitor, the alert rule and the trigger");
        self.commands
            .run(&["apply", "-f", path_text(&self.job.folder)?])
            .await?;

        self.progress.step("training the first model");
        let started = Instant::now();
        self.run_pipeline().await?;
        self.took("training", started);

        self.progress.step("waiting until the endpoint serves the first model");
        let started = Instant::now();
        self.wait_served(NEVER_RETRAINED).await?;
        self.took("switch", started);
        Ok(())
    }

    /// `modelyard run flight-delay --wait`, with a key, so that it may be said again when the server was away.
    async fn run_pipeline(&self) -> Result<()> {
        let arguments = ["run", PIPELINE, "--wait", "--key", "first-model", "-o", "json"];
        let outcome = self.commands.try_run(&arguments).await?;
        if outcome.is_success {
            return Ok(());
        }
        let run: Value = serde_json::from_str(&outcome.output).unwrap_or_default();
        bail!(
            "the pipeline `{PIPELINE}` did not succeed: {} {}",
            outcome.complaint.trim(),
            failed_steps(&run)
        )
    }

    /// One month: traffic, data, labels, scores, and what the scores led to.
    async fn month(&mut self, name: &str) -> Result<MonthRow> {
        let version = self.champion;
        // A gateway that was just started again first loads its models.
        self.wait_served(version).await?;
        let metadata = self.api.get_path(&format!("/v2/models/{ENDPOINT}")).await?;
        let metadata: Metadata = serde_json::from_value(metadata).context("the model's metadata cannot be read")?;
        let month = Arc::new(self.flights(name)?.clone());
        let encoder = Arc::new(Encoder::new(month.clone(), &metadata, ENDPOINT)?);

        self.progress
            .month_step(name, &format!("replaying {} predictions", month.len()));
        let started = Instant::now();
        self.traffic
            .replay(&encoder, self.job.concurrency, self.progress)
            .await?;
        self.took("replay", started);

        self.progress.month_step(name, "the inference log takes them in");
        let started = Instant::now();
        self.add_file(name).await?;
        self.push().await?;
        self.wait_logged(&month).await?;
        self.took("log", started);

        self.progress.month_step(name, "the labels arrive");
        let started = Instant::now();
        self.send_labels(&month).await?;
        let window = self.wait_evaluated(&month).await?;
        let mut row = row_of(name, version, &window)?;
        self.took("labels and scores", started);

        if let Some(alert) = window.get("alert").and_then(Value::as_str) {
            let trickle = self.traffic.trickle(&encoder);
            let (text, retrained_to) = self.follow_alert(name, alert, version).await?;
            trickle.stop().await?;
            row.alert = Some(text);
            row.retrained_to = retrained_to;
        }
        Ok(row)
    }

    /// Waits for what the alert started, and until the endpoint has moved to the model that came out better.
    async fn follow_alert(&mut self, name: &str, alert: &str, before: u64) -> Result<(String, Option<u64>)> {
        self.progress.month_step(name, "an alert retrains the model");
        let started = Instant::now();
        let path = format!("alerts/{alert}");
        let found = wait_for(
            "the alert has started its pipeline",
            SCORE_PATIENCE,
            self.progress,
            async || {
                let found = self.api.get(&path).await?;
                Ok(match text(&found, "/pipeline_run_id") {
                    Some(_) => Look::Found(found),
                    None => Look::NotYet(found.to_string()),
                })
            },
        )
        .await?;
        let run = text(&found, "/pipeline_run_id").unwrap_or_default();
        self.wait_run(run).await?;
        self.took("training", started);

        let champion = self.api.get(&format!("models/{MODEL}/aliases/champion")).await?;
        let champion = number(&champion, "/version").context("the alias champion names no version")?;
        if champion == before {
            return Ok((conditions(&found), None));
        }
        self.progress
            .month_step(name, &format!("the endpoint moves to version {champion}"));
        let started = Instant::now();
        self.wait_served(champion).await?;
        let traffic = self.traffic.clone();
        wait_for(
            "both protocols answer with the new version",
            SWITCH_PATIENCE,
            self.progress,
            async || {
                let latest = traffic.tally.latest_versions();
                if latest.values().all(|version| *version == champion) {
                    return Ok(Look::Found(()));
                }
                Ok(Look::NotYet(format!("the latest answers are of {latest:?}")))
            },
        )
        .await?;
        self.took("switch", started);
        self.champion = champion;
        Ok((conditions(&found), Some(champion)))
    }

    async fn wait_run(&self, id: &str) -> Result<()> {
        let path = format!("pipeline-runs/{id}");
        let what = format!("the pipeline run {id} has ended");
        let run = wait_for(&what, RUN_PATIENCE, self.progress, async || {
            let run = self.api.get(&path).await?;
            Ok(match text(&run, "/status") {
                Some("succeeded" | "failed" | "cancelled") => Look::Found(run),
                _ => Look::NotYet(running_step(&run)),
            })
        })
        .await?;
        match text(&run, "/status") {
            Some("succeeded") => Ok(()),
            _ => bail!(
                "the pipeline run {id} did not succeed: {} {}",
                text(&run, "/error").unwrap_or_default(),
                failed_steps(&run)
            ),
        }
    }

    /// Waits until all gateways serve this version to everybody.
    async fn wait_served(&self, version: u64) -> Result<()> {
        let path = format!("endpoints/{ENDPOINT}");
        let what = format!("the endpoint `{ENDPOINT}` serves {MODEL}/{version}");
        wait_for(&what, SWITCH_PATIENCE, self.progress, async || {
            let endpoint = self.api.get(&path).await?;
            let is_served =
                endpoint.pointer("/status/ready") == Some(&json!(true)) && served(&endpoint) == Some(version);
            Ok(if is_served {
                Look::Found(())
            } else {
                Look::NotYet(endpoint.pointer("/status").cloned().unwrap_or_default().to_string())
            })
        })
        .await
    }

    /// Waits until the window has every request, and every answer of the shadow.
    async fn wait_logged(&mut self, month: &Month) -> Result<()> {
        let expected = month.len() as u64;
        let path = window_path(&month.name);
        let what = format!("the window {} shows {expected} requests", month.name);
        let mut shadows = (0, Instant::now());
        let missing = wait_for(&what, SCORE_PATIENCE, self.progress, async || {
            let Some(window) = self.api.find(&path).await? else {
                return Ok(Look::NotYet("there is no window yet".to_owned()));
            };
            let requests = number(&window, "/requests").unwrap_or(0);
            let shadow = group(&window, "shadow", NEVER_RETRAINED).and_then(|group| number(group, "/rows"));
            let shadow = shadow.unwrap_or(0);
            if shadow > shadows.0 {
                shadows = (shadow, Instant::now());
            }
            if requests >= expected && (shadow >= expected || shadows.1.elapsed() > SHADOW_PATIENCE) {
                return Ok(Look::Found(expected.saturating_sub(shadow)));
            }
            Ok(Look::NotYet(format!(
                "{requests} requests, {shadow} answers of the shadow"
            )))
        })
        .await?;
        if missing > 0 {
            let text = format!(
                "{}: {missing} of {expected} answers of the shadow are missing",
                month.name
            );
            self.warnings.push(text);
        }
        Ok(())
    }

    async fn send_labels(&self, month: &Month) -> Result<()> {
        let observed_at = month.end()?;
        let batches = month.len().div_ceil(LABEL_BATCH).max(1);
        let rows: Vec<usize> = (0..month.len()).collect();
        for batch in rows.chunks(month.len().div_ceil(batches).max(1)) {
            let labels: Vec<Value> = batch
                .iter()
                .map(
                    |row| json!({"request_id": month.id(*row), "label": month.label(*row), "observed_at": observed_at}),
                )
                .collect();
            self.api
                .post("labels", &json!({"endpoint": ENDPOINT, "labels": labels}))
                .await?;
        }
        Ok(())
    }

    async fn wait_evaluated(&self, month: &Month) -> Result<Value> {
        let path = window_path(&month.name);
        let expected = month.len() as u64;
        let what = format!("the window {} is evaluated with {expected} labels", month.name);
        wait_for(&what, SCORE_PATIENCE, self.progress, async || {
            let Some(window) = self.api.find(&path).await? else {
                return Ok(Look::NotYet("the window is gone".to_owned()));
            };
            let labels = number(&window, "/labels").unwrap_or(0);
            let is_evaluated = window.get("evaluated") == Some(&json!(true));
            if is_evaluated && labels >= expected {
                return Ok(Look::Found(window));
            }
            Ok(Look::NotYet(format!("{labels} labels, evaluated: {is_evaluated}")))
        })
        .await
    }

    fn flights(&self, name: &str) -> Result<&Month> {
        let month = self.months.get(name).filter(|month| month.len() > 0);
        month.with_context(|| format!("the sample has no flights in {name}: take a larger one"))
    }

    /// Uploads a month's file, which then belongs to the dataset's next version.
    async fn add_file(&mut self, name: &str) -> Result<()> {
        let month = self.flights(name)?.clone();
        let content = tokio::task::spawn_blocking(move || {
            let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
            let file = folder.path().join("month.parquet");
            month.write(&file)?;
            anyhow::Ok(std::fs::read(file)?)
        });
        let digest = self.api.upload(content.await??).await?;
        self.files
            .push(json!({"name": format!("{DATASET}-{name}.parquet"), "digest": digest}));
        Ok(())
    }

    /// Makes the files so far a version. The whole list is sent, so that saying it twice makes one version.
    async fn push(&self) -> Result<u64> {
        let body = json!({"files": self.files, "append": false});
        let version = self.api.post(&format!("datasets/{DATASET}/versions"), &body).await?;
        number(&version, "/version").context("the server gave the dataset no version")
    }

    /// What `modelyard describe prediction` says of the last request, which must name where it came from.
    async fn describe_prediction(&self, rows: &[MonthRow]) -> Result<String> {
        let last = rows.last().context("no month was replayed")?;
        let month = self.flights(&last.month)?;
        let row = month.len().saturating_sub(1);
        let id = month.id(row);
        self.progress
            .step(&format!("asking where the prediction {id} came from"));
        let json = self.commands.run(&["describe", "prediction", id, "-o", "json"]).await?;
        let found: Value = serde_json::from_str(&json).context("`describe -o json` printed something else")?;
        let answer = live_row(&found).with_context(|| format!("the prediction {id} has no live answer: {found}"))?;
        ensure!(
            number(answer, "/version") == Some(last.version),
            "the prediction {id} was served by version {}, and the log says {answer}",
            last.version
        );
        ensure!(
            answer.pointer("/label/value").and_then(Value::as_f64) == Some(month.label(row) as f64),
            "the flight {id} has the label {}, and the log says {answer}",
            month.label(row)
        );
        for pointer in [
            "/model_version/run_id",
            "/model_version/dataset",
            "/model_version/dataset_version",
            "/run",
        ] {
            let value = found.pointer(pointer);
            ensure!(
                value.is_some_and(|value| !value.is_null() && *value != json!("") && *value != json!(0)),
                "the description of the prediction {id} lacks `{pointer}`: {found}"
            );
        }
        self.commands.run(&["describe", "prediction", id]).await
    }

    fn took(&mut self, part: &'static str, started: Instant) {
        let took = started.elapsed();
        match self.parts.iter_mut().find(|(name, _)| *name == part) {
            Some((_, sum)) => *sum += took,
            None => self.parts.push((part, took)),
        }
    }
}

/// How long calls of the API are tried again, whatever is asked of the requests.
const CALLS_AWAY: Duration = Duration::from_secs(10);

fn window_path(month: &str) -> String {
    format!("monitors/{MONITOR}/windows/{month}")
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("`{}` is not text", path.display()))
}
