//! `evaluate`: measures a candidate and the champion of its model on the same held-out slice.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use modelyard_artifacts::Digest;
use modelyard_common::{ErrorKind, Fault};
use modelyard_inference::{MAX_MODEL_BYTES, Model, ModelOptions, Runtime};
use modelyard_proto::registry::v1::{LogBatchRequest, Metric, ModelVersion};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Literals, Op, OpShape, StepContext, StepError,
    context::Reporter,
    dataset::DatasetReference,
    held_out::{self, Truth},
    keys, outputs, read,
    register::ONNX,
    table,
    train::Trained,
};

/// Takes `candidate` (the outputs of a step of op `train` with a `holdout`), `model` (the registered model whose champion it
/// is compared with) and `alias` (default: `champion`).
pub(crate) struct Evaluate;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    candidate: Trained,
    model: String,
    #[serde(default = "champion")]
    alias: String,
}

fn champion() -> String {
    "champion".to_owned()
}

/// The outputs: the metrics of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Evaluation {
    pub(super) candidate: BTreeMap<String, f64>,
    /// Null while there is no champion.
    #[serde(default)]
    pub(super) champion: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    pub(super) champion_version: Option<u32>,
    /// The rows that both were measured on.
    #[serde(default)]
    pub(super) rows: u64,
}

#[async_trait]
impl Op for Evaluate {
    fn name(&self) -> &'static str {
        "evaluate"
    }

    fn shape(&self) -> OpShape {
        OpShape {
            keys: Some(keys(&["candidate", "model"], &["alias"])),
            outputs: Some(&["candidate", "champion", "champion_version", "rows"]),
            heavy: true,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        Literals::new(literals)
            .of_step("candidate", "train")
            .name("model", "a model")
            .name("alias", "an alias")
            .problems()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        let with: With = read(&step.with)?;
        let candidate = with.candidate;
        let holdout = candidate.holdout.clone().ok_or_else(|| {
            StepError::Fail(
                "with.candidate: it was trained without `holdout`, so that there is no slice to measure it on"
                    .to_owned(),
            )
        })?;
        let champion = find_champion(step, &with.model, &with.alias).await?;
        let candidate_graph = download(step, "the candidate", &candidate.model).await?;
        let champion_graph = match &champion {
            Some(version) if version.format != ONNX => {
                return Err(StepError::Fail(format!(
                    "the champion {}/{} is of format `{}`, and only ONNX files can be measured here",
                    version.name, version.version, version.format
                )));
            }
            Some(version) => Some(download(step, "the champion", &version.artifact_digest).await?),
            None => None,
        };
        let reference = DatasetReference::parse(&candidate.dataset.reference).map_err(StepError::Fail)?;
        let version = reference.get(step).await?;
        let rows = table::read(step, &version).await?;
        let reporter = step.reporter();
        let trained = candidate.clone();
        let measured = step.blocking(move || {
            let (_, slice) = held_out::split(&rows, trained.time_column.as_deref(), &holdout)?;
            drop(rows);
            let truth = Truth::read(&slice, &trained.target, trained.task, trained.classes.as_ref())?;
            let candidate = measure(&candidate_graph, "the candidate", &slice, &truth, &reporter)?;
            let champion = champion_graph
                .map(|graph| measure(&graph, "the champion", &slice, &truth, &reporter))
                .transpose()?;
            Ok((candidate, champion, slice.num_rows() as u64))
        });
        let (candidate_metrics, champion_metrics, rows) = measured.await?;
        log(step, &candidate, &candidate_metrics).await?;
        outputs(&Evaluation {
            candidate: candidate_metrics,
            champion: champion_metrics,
            champion_version: champion.map(|version| version.version),
            rows,
        })
    }
}

/// The version that serves at present, if there is one.
async fn find_champion(step: &StepContext, model: &str, alias: &str) -> Result<Option<ModelVersion>, StepError> {
    let registry = &step.tools.registry;
    let found = step
        .patiently("the registry", || registry.aliased_version(&step.project, model, alias))
        .await;
    match found {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StepError::of(&error)),
    }
}

async fn download(step: &StepContext, who: &str, digest: &str) -> Result<Bytes, StepError> {
    let digest: Digest = digest
        .parse()
        .map_err(|error| StepError::Fail(format!("{who}: {error}")))?;
    let artifacts = step.artifacts()?;
    step.patiently("the storage", || artifacts.get_bytes(digest, MAX_MODEL_BYTES as u64))
        .await
        .map_err(|error| StepError::of(&error))
}

fn measure(
    graph: &[u8],
    who: &str,
    slice: &RecordBatch,
    truth: &Truth,
    reporter: &Reporter,
) -> Result<BTreeMap<String, f64>, StepError> {
    let fail = |error: modelyard_inference::Error| StepError::Fail(format!("{who}: {error}"));
    let runtime = Runtime::load().map_err(fail)?;
    let model = Model::from_bytes(&runtime, graph, ModelOptions::single()).map_err(fail)?;
    let answers = held_out::score(&model, slice, reporter, who)?;
    truth.metrics(&answers, who)
}

/// Adds the candidate's metrics to its run, so that the experiment shows them.
async fn log(step: &StepContext, candidate: &Trained, metrics: &BTreeMap<String, f64>) -> Result<(), StepError> {
    let metrics = metrics.iter().map(|(name, value)| Metric {
        key: format!("holdout_{name}"),
        value: *value,
        // The same when the step is repeated, so that the history has it once.
        timestamp_us: candidate.run_start_us,
        step: 0,
    });
    let message = LogBatchRequest {
        project: step.project.clone(),
        run_id: candidate.run_id.clone(),
        params: Vec::new(),
        metrics: metrics.collect(),
        tags: Vec::new(),
    };
    let registry = &step.tools.registry;
    step.patiently("the registry", || registry.log_batch(message.clone()))
        .await
        .map_err(|error| StepError::of(&error))
}
