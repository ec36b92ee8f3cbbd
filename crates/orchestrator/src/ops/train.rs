//! `train`: trains gradient-boosted trees on a dataset version, exports them to one ONNX graph, proves that the graph answers
//! what the trainer predicts, and records it all as a run of an experiment.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use async_trait::async_trait;
use modelyard_common::name::check_name;
use modelyard_proto::registry::v1::{
    CreateRunRequest, DatasetInput as RunInput, DatasetVersion, LogBatchRequest, Metric, Param, Run, RunStatus, Tag,
};
use modelyard_stats::{Profile, ProfileOptions};
use modelyard_trainer::{FeatureKind, Labels, Output, Phase, Predictions, Progress, Task, TrainConfig, TrainedModel};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Literals, Op, OpShape, StepContext, StepError,
    context::Reporter,
    dataset::DatasetInput,
    held_out, outputs,
    parity::{self, Parity},
    table,
};
use crate::model::parse_duration;

/// Without a held-out slice the graph is compared on this many of the last training rows.
const PARITY_ROWS: usize = 20_000;
/// What the profile calls the predictions; monitoring looks for this name.
const PREDICTION_COLUMN: &str = "prediction";
/// The longest value of a setting that the experiment shows.
const MAX_PARAM_BYTES: usize = 6_000;

/// Takes `dataset` (the outputs of a step of op `dataset`, or `NAME/VERSION`), every setting of the trainer, `holdout` (the
/// length of the last slice of time, which is kept away from training), `experiment` (default: the pipeline's name) and
/// `run_name`.
pub(crate) struct Train;

/// The keys that are not the trainer's.
const OWN_KEYS: [&str; 4] = ["dataset", "holdout", "experiment", "run_name"];

struct With {
    dataset: DatasetInput,
    holdout: Option<String>,
    experiment: Option<String>,
    run_name: Option<String>,
    config: TrainConfig,
}

/// The outputs: what was trained, and everything that later steps need to judge and register it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Trained {
    /// The run of the experiment.
    pub(super) run_id: String,
    /// When it began, in microseconds: the time of all its metrics.
    pub(super) run_start_us: i64,
    /// Content address of the graph.
    pub(super) model: String,
    /// Content address of the profile of the training rows.
    pub(super) reference_profile: String,
    /// As MLflow writes it.
    pub(super) signature: Value,
    pub(super) training_rows: u64,
    pub(super) holdout_rows: u64,
    pub(super) dataset: TrainedOn,
    pub(super) target: String,
    pub(super) time_column: Option<String>,
    pub(super) holdout: Option<String>,
    pub(super) task: Task,
    pub(super) classes: Option<Labels>,
    pub(super) trees: u64,
    /// Measured by the trainer on its own last slice, before calibration.
    pub(super) validation: BTreeMap<String, f64>,
    /// Each feature's share of what all splits gained.
    pub(super) importance: BTreeMap<String, f64>,
    pub(super) parity: Parity,
}

/// The dataset version that it was trained on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TrainedOn {
    pub(super) name: String,
    pub(super) version: u32,
    /// `NAME/VERSION`.
    pub(super) reference: String,
}

impl With {
    fn read(with: &Map<String, Value>) -> Result<Self, StepError> {
        let fail = |key: &str, error: serde_json::Error| StepError::Fail(format!("with.{key}: {error}"));
        let text = |key: &str| match with.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| fail(key, error)),
        };
        let dataset = with.get("dataset").cloned().unwrap_or(Value::Null);
        Ok(Self {
            dataset: serde_json::from_value(dataset).map_err(|_| {
                StepError::Fail(
                    "with.dataset: must be the outputs of a step of op `dataset`, or NAME/VERSION".to_owned(),
                )
            })?,
            holdout: text("holdout")?,
            experiment: text("experiment")?,
            run_name: text("run_name")?,
            config: config(with).map_err(|error| StepError::Fail(format!("with: {error}")))?,
        })
    }
}

/// The trainer's own settings.
fn config(with: &Map<String, Value>) -> Result<TrainConfig, serde_json::Error> {
    let own = with.iter().filter(|(key, _)| !OWN_KEYS.contains(&key.as_str()));
    let settings: Map<String, Value> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    serde_json::from_value(Value::Object(settings))
}

/// Names of the trainer's settings.
fn settings() -> Vec<String> {
    match serde_json::to_value(TrainConfig::default()) {
        Ok(Value::Object(settings)) => settings.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// What is wrong with the settings, as far as it can be said before the columns are known.
fn check_settings(literals: &Map<String, Value>) -> Result<(), String> {
    let mut config = config(literals).map_err(|error| error.to_string())?;
    if config.target.is_empty() && !literals.contains_key("target") {
        // It comes from an expression, or its absence is a problem of its own.
        "?".clone_into(&mut config.target);
    }
    config.validate().map_err(|error| error.to_string())
}

#[async_trait]
impl Op for Train {
    fn name(&self) -> &'static str {
        "train"
    }

    fn shape(&self) -> OpShape {
        let own = OWN_KEYS.iter().map(|key| ((*key).to_owned(), *key == "dataset"));
        let settings = settings().into_iter().map(|key| {
            let required = key == "target";
            (key, required)
        });
        OpShape {
            keys: Some(own.chain(settings).collect()),
            outputs: Some(&[
                "run_id",
                "run_start_us",
                "model",
                "reference_profile",
                "signature",
                "training_rows",
                "holdout_rows",
                "dataset",
                "target",
                "time_column",
                "holdout",
                "task",
                "classes",
                "trees",
                "validation",
                "importance",
                "parity",
            ]),
            heavy: true,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        let mut problems = Literals::new(literals)
            .each("dataset", |input: DatasetInput| input.reference().map(drop))
            .each("holdout", |text: String| parse_duration(&text).map(drop))
            .each("experiment", |name: String| {
                check_name("an experiment", &name).map_err(|error| error.to_string())
            })
            .each("run_name", |_: String| Ok(()))
            .problems();
        if let Err(problem) = check_settings(literals) {
            problems.push(problem);
        }
        problems
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        let with = With::read(&step.with)?;
        let reference = with.dataset.reference().map_err(StepError::Fail)?;
        let version = reference.get(step).await?;
        let run = begin(step, &with, &version).await?;
        match work(step, with, &version, &run).await {
            Ok(trained) => {
                finish(step, &run, RunStatus::Finished).await?;
                outputs(&trained)
            }
            Err(StepError::Fail(error)) => {
                // The step fails with the reason, whether or not the run can be marked.
                if let Err(StepError::Fail(why) | StepError::Retry(why)) = finish(step, &run, RunStatus::Failed).await {
                    tracing::warn!(
                        run = run.run_id,
                        error = why,
                        "the run of a failed training could not be ended"
                    );
                }
                Err(StepError::Fail(error))
            }
            Err(retry) => {
                if step.called_off.is_cancelled() {
                    // Once, not patiently: the time for it is short.
                    let registry = &step.tools.registry;
                    let killed = registry.finish_run(&step.project, &run.run_id, RunStatus::Killed).await;
                    if let Err(error) = killed {
                        tracing::warn!(run = run.run_id, %error, "the run of a training that was called off could not be ended");
                    }
                }
                Err(retry)
            }
        }
    }
}

/// Opens the run of the experiment; after a crash, the same one.
async fn begin(step: &StepContext, with: &With, version: &DatasetVersion) -> Result<Run, StepError> {
    let tag = |key: &str, value: &str| Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let message = CreateRunRequest {
        project: step.project.clone(),
        experiment: with.experiment.clone().unwrap_or_else(|| step.pipeline.clone()),
        name: with
            .run_name
            .clone()
            .unwrap_or_else(|| format!("{} {}/{}", step.step, version.name, version.version)),
        tags: vec![
            tag("pipeline", &step.pipeline),
            tag("pipeline_run", &step.run_id),
            tag("step", &step.step),
        ],
        inputs: vec![RunInput {
            name: version.name.clone(),
            version: version.version,
            digest: version.digest.clone(),
            context: "training".to_owned(),
        }],
        idempotency_key: step.attempt_key("run"),
    };
    let registry = &step.tools.registry;
    step.patiently("the registry", || registry.create_run(message.clone()))
        .await
        .map_err(|error| StepError::of(&error))
}

async fn finish(step: &StepContext, run: &Run, status: RunStatus) -> Result<(), StepError> {
    let registry = &step.tools.registry;
    step.patiently("the registry", || {
        registry.finish_run(&step.project, &run.run_id, status)
    })
    .await
    .map_err(|error| StepError::of(&error))
}

async fn log(step: &StepContext, run: &Run, params: Vec<Param>, metrics: &[(String, f64)]) -> Result<(), StepError> {
    let metrics = metrics.iter().map(|(key, value)| Metric {
        key: key.clone(),
        value: *value,
        // The same when the step is repeated, so that the history has it once.
        timestamp_us: run.start_time_us,
        step: 0,
    });
    let message = LogBatchRequest {
        project: step.project.clone(),
        run_id: run.run_id.clone(),
        params,
        metrics: metrics.collect(),
        tags: Vec::new(),
    };
    let registry = &step.tools.registry;
    step.patiently("the registry", || registry.log_batch(message.clone()))
        .await
        .map_err(|error| StepError::of(&error))
}

/// The settings as the experiment shows them.
fn params(with: &With) -> Vec<Param> {
    let settings = serde_json::to_value(&with.config).unwrap_or_default();
    let holdout = with
        .holdout
        .iter()
        .map(|text| ("holdout".to_owned(), Value::String(text.clone())));
    let all = settings
        .as_object()
        .cloned()
        .unwrap_or_default()
        .into_iter()
        .chain(holdout);
    all.filter(|(_, value)| !value.is_null())
        .map(|(key, value)| {
            let text = match value {
                Value::String(text) => text,
                value => value.to_string(),
            };
            let end = text.floor_char_boundary(MAX_PARAM_BYTES);
            Param {
                key,
                value: text[..end].to_owned(),
            }
        })
        .collect()
}

async fn work(step: &StepContext, with: With, version: &DatasetVersion, run: &Run) -> Result<Trained, StepError> {
    log(step, run, params(&with), &[]).await?;
    let table = table::read(step, version).await?;
    let reporter = step.reporter();
    let (config, holdout) = (with.config.clone(), with.holdout.clone());
    let fitted = step
        .blocking(move || fit(&table, &config, holdout.as_deref(), &reporter))
        .await?;
    step.report(0, 0, "storing the model");
    let artifacts = step.artifacts()?;
    let (onnx, profile) = (&fitted.onnx, &fitted.profile);
    let model = step
        .patiently("the storage", || artifacts.put_bytes(onnx.clone()))
        .await;
    let model = model.map_err(|error| StepError::of(&error))?;
    let profile = step
        .patiently("the storage", || artifacts.put_bytes(profile.clone()))
        .await;
    let profile = profile.map_err(|error| StepError::of(&error))?;
    let trained = Trained {
        run_id: run.run_id.clone(),
        run_start_us: run.start_time_us,
        model: model.digest.to_string(),
        reference_profile: profile.digest.to_string(),
        signature: fitted.signature,
        training_rows: fitted.training_rows,
        holdout_rows: fitted.holdout_rows,
        dataset: TrainedOn {
            name: version.name.clone(),
            version: version.version,
            reference: format!("{}/{}", version.name, version.version),
        },
        target: with.config.target,
        time_column: with.config.time_column,
        holdout: with.holdout,
        task: fitted.task,
        classes: fitted.classes,
        trees: fitted.trees,
        validation: fitted.validation,
        importance: fitted.importance,
        parity: fitted.parity,
    };
    log(step, run, Vec::new(), &metrics(&trained)).await?;
    Ok(trained)
}

fn metrics(trained: &Trained) -> Vec<(String, f64)> {
    let validation = trained
        .validation
        .iter()
        .map(|(name, value)| (format!("validation_{name}"), *value));
    let counts = [
        ("trees", trained.trees as f64),
        ("training_rows", trained.training_rows as f64),
        ("holdout_rows", trained.holdout_rows as f64),
        ("parity_largest_difference", trained.parity.largest_difference),
    ];
    validation
        .chain(counts.map(|(name, value)| (name.to_owned(), value)))
        .collect()
}

/// What a training gives before anything is stored.
struct Fitted {
    onnx: bytes::Bytes,
    profile: bytes::Bytes,
    signature: Value,
    training_rows: u64,
    holdout_rows: u64,
    task: Task,
    classes: Option<Labels>,
    trees: u64,
    validation: BTreeMap<String, f64>,
    importance: BTreeMap<String, f64>,
    parity: Parity,
}

fn fit(
    table: &RecordBatch,
    config: &TrainConfig,
    holdout: Option<&str>,
    reporter: &Reporter,
) -> Result<Fitted, StepError> {
    let slices = holdout
        .map(|holdout| held_out::split(table, config.time_column.as_deref(), holdout))
        .transpose()?;
    let training = slices.as_ref().map_or(table, |(before, _)| before);
    let model =
        modelyard_trainer::train(training, config, &|progress| tell(&progress, reporter)).map_err(
            |error| match error {
                modelyard_trainer::Error::Cancelled => StepError::Retry("the step was stopped".to_owned()),
                error => StepError::Fail(error.to_string()),
            },
        )?;
    let compared = slices.as_ref().map_or_else(
        || {
            let rows = PARITY_ROWS.min(table.num_rows());
            table.slice(table.num_rows() - rows, rows)
        },
        |(_, slice)| slice.clone(),
    );
    let parity = parity::check(&model, model.onnx(), &compared, reporter)?;
    reporter.check()?;
    reporter.report(0, 0, "profiling the training rows");
    Ok(Fitted {
        profile: profile(training, &compared, &model)?.into(),
        signature: signature(&model),
        training_rows: training.num_rows() as u64,
        holdout_rows: slices.as_ref().map_or(0, |(_, slice)| slice.num_rows() as u64),
        task: model.task(),
        classes: model.classes().cloned(),
        trees: model.trees() as u64,
        validation: model.validation_metrics().iter().cloned().collect(),
        importance: model.importance().iter().cloned().collect(),
        parity,
        onnx: bytes::Bytes::copy_from_slice(model.onnx()),
    })
}

/// Passes the trainer's progress on, and tells it to stop when nobody wants the model any more.
fn tell(progress: &Progress, reporter: &Reporter) -> ControlFlow<()> {
    if reporter.check().is_err() {
        return ControlFlow::Break(());
    }
    let what = match progress.phase {
        Phase::Reading => "reading columns",
        Phase::Encoding => "encoding texts",
        Phase::Boosting => "boosting",
        Phase::Calibrating => "calibrating",
        Phase::Refitting => "boosting on all rows",
        Phase::Exporting => "writing the graph",
    };
    let message = match progress.metric {
        Some((name, value)) => format!("{what}: {name} {value:.5}"),
        None => what.to_owned(),
    };
    if progress.done == progress.total {
        tracing::info!(
            phase = what,
            elapsed_ms = progress.elapsed.as_millis() as u64,
            "training"
        );
    }
    reporter.report(u64::from(progress.done), u64::from(progress.total), message);
    ControlFlow::Continue(())
}

/// The profile that monitoring compares traffic with: the features of the training rows, and as `prediction` what the model
/// answers for rows that it was not trained on, where there are such rows.
fn profile(training: &RecordBatch, compared: &RecordBatch, model: &TrainedModel) -> Result<String, StepError> {
    let fail =
        |error: &dyn std::fmt::Display| StepError::Fail(format!("the training rows cannot be profiled: {error}"));
    let options = ProfileOptions {
        columns: Some(model.inputs().iter().map(|feature| feature.name.clone()).collect()),
        ..ProfileOptions::default()
    };
    let mut profile = Profile::of([training], &options).map_err(|error| fail(&error))?;
    let predictions = model.predict(compared).map_err(|error| fail(&error))?;
    if let Some(predictions) = one_a_row(predictions, model)
        && !profile.columns.contains_key(PREDICTION_COLUMN)
    {
        let column: ArrayRef = Arc::new(Float64Array::from(predictions));
        let batch = RecordBatch::try_from_iter([(PREDICTION_COLUMN, column)]).map_err(|error| fail(&error))?;
        let of_predictions = Profile::of([&batch], &ProfileOptions::default()).map_err(|error| fail(&error))?;
        // Added as a column, not merged: the profile's rows are the training rows.
        profile.columns.extend(of_predictions.columns);
    }
    profile.to_json().map_err(|error| fail(&error))
}

/// The probability of the second of two classes, or the number. Of more classes no single number says enough.
fn one_a_row(predictions: Predictions, model: &TrainedModel) -> Option<Vec<f64>> {
    match predictions {
        Predictions::Numbers(numbers) => Some(numbers.into_iter().map(f64::from).collect()),
        Predictions::Classes { probabilities, .. } => {
            let is_binary = model.classes().is_some_and(|classes| classes.len() == 2);
            is_binary.then(|| probabilities.chunks_exact(2).map(|row| f64::from(row[1])).collect())
        }
    }
}

/// The signature as MLflow writes it: columns in, tensors out.
fn signature(model: &TrainedModel) -> Value {
    let inputs = model.inputs().iter().map(|feature| {
        let can_be_missing = matches!(
            feature.kind,
            FeatureKind::Float32 | FeatureKind::Float64 | FeatureKind::Text
        );
        json!({
            "name": feature.name,
            "type": column_type(feature.kind),
            "required": !(can_be_missing && feature.missing_in_training),
        })
    });
    let outputs = model.outputs().into_iter().map(|output| {
        let (dtype, shape) = match output {
            Output::Label => (model.classes().map_or("int64", label_type), json!([-1])),
            Output::Probabilities { classes } => ("float32", json!([-1, classes])),
            Output::Prediction => ("float32", json!([-1, 1])),
        };
        json!({"name": output.name(), "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}})
    });
    json!({"inputs": inputs.collect::<Vec<_>>(), "outputs": outputs.collect::<Vec<_>>()})
}

/// MLflow's column types.
const fn column_type(kind: FeatureKind) -> &'static str {
    match kind {
        FeatureKind::Bool => "boolean",
        FeatureKind::Int8 | FeatureKind::Int16 | FeatureKind::Int32 | FeatureKind::UInt8 | FeatureKind::UInt16 => {
            "integer"
        }
        FeatureKind::Int64 | FeatureKind::UInt32 | FeatureKind::UInt64 => "long",
        FeatureKind::Float32 => "float",
        FeatureKind::Float64 => "double",
        FeatureKind::Text => "string",
    }
}

const fn label_type(classes: &Labels) -> &'static str {
    match classes {
        Labels::Bool(_) => "bool",
        Labels::Int32(_) => "int32",
        Labels::Int64(_) => "int64",
        Labels::Float32(_) => "float32",
        Labels::Float64(_) => "float64",
        Labels::Text(_) => "str",
    }
}
